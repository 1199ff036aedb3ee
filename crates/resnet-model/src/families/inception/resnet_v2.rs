//! Inception-ResNet-v2 (Szegedy et al. 2016, arXiv 1602.07261), with the module names of timm's
//! `inception_resnet_v2`.

use super::{ConvUnit, InceptionBuilder};
use crate::Result;
use crate::arch::Inception;
use crate::families::head::{Head, head};
use crate::graph::{Builder, Conv, Divisor, Graph, NodeId};

/// Scale of the residual branch for each type of block (section 3.3 of the paper).
const SCALE_35: f64 = 0.17;
const SCALE_17: f64 = 0.1;
const SCALE_8: f64 = 0.2;

/// Taps: `stages.0` … `stages.4` (timm's `conv2d_2b`, `conv2d_4a`, `repeat`, `repeat_1` and `conv2d_7b`), `pooled` and,
/// with a head, `logits`.
pub(crate) fn graph(arch: &Inception) -> Result<Graph> {
    arch.validate()?;
    let (g, x) = Builder::new(arch.in_channels);
    let mut n = InceptionBuilder { g, eps: arch.norm_eps };
    let x = n.unit("conv2d_1a", x, ConvUnit::down(32));
    let x = n.unit("conv2d_2a", x, ConvUnit::valid3(32));
    let x = n.unit("conv2d_2b", x, ConvUnit::same(64, 3));
    n.g.tap("stages.0", x);
    let x = n.max_pool("maxpool_3a", x);
    let x = n.unit("conv2d_3b", x, ConvUnit::same(80, 1));
    let x = n.unit("conv2d_4a", x, ConvUnit::valid3(192));
    n.g.tap("stages.1", x);
    let x = n.max_pool("maxpool_5a", x);
    let x = mixed_5b(&mut n, "mixed_5b", x);
    let x = (0..10).fold(x, |x, i| block_35(&mut n, &format!("repeat.{i}"), x));
    n.g.tap("stages.2", x);
    let x = mixed_6a(&mut n, "mixed_6a", x);
    let x = (0..20).fold(x, |x, i| block_17(&mut n, &format!("repeat_1.{i}"), x));
    n.g.tap("stages.3", x);
    let x = mixed_7a(&mut n, "mixed_7a", x);
    let x = (0..9).fold(x, |x, i| {
        let x = block_8(&mut n, &format!("repeat_2.{i}"), x, SCALE_8);
        n.g.relu(format!("repeat_2.{i}.relu"), x)
    });
    // The last block of timm has no scale and no ReLU.
    let x = block_8(&mut n, "block8", x, 1.0);
    let x = n.unit("conv2d_7b", x, ConvUnit::same(1536, 1));
    n.g.tap("stages.4", x);
    let classes = arch.num_classes;
    head(&mut n.g, x, &Head { pool: arch.pool, name: "classif", classes, ..Head::default() });
    Ok(n.g.finish())
}

fn branch(n: &mut InceptionBuilder, name: &str, i: usize, x: NodeId, units: &[ConvUnit]) -> NodeId {
    n.sequence(&format!("{name}.branch{i}"), x, 0, units)
}

fn mixed_5b(n: &mut InceptionBuilder, name: &str, x: NodeId) -> NodeId {
    let a = n.unit(&format!("{name}.branch0"), x, ConvUnit::same(96, 1));
    let b = branch(n, name, 1, x, &[ConvUnit::same(48, 1), ConvUnit::same(64, 5)]);
    let c = branch(n, name, 2, x, &[ConvUnit::same(64, 1), ConvUnit::same(96, 3), ConvUnit::same(96, 3)]);
    let y = n.avg_pool(&format!("{name}.branch3.0"), x, Divisor::Pixels);
    let d = n.unit(&format!("{name}.branch3.1"), y, ConvUnit::same(64, 1));
    n.concat(name, &[a, b, c, d])
}

/// Concatenates the branches, projects them to the channels of `x`, scales them and adds `x`.
fn residual(n: &mut InceptionBuilder, name: &str, x: NodeId, branches: &[NodeId], scale: f64) -> NodeId {
    let y = n.concat(name, branches);
    let conv = Conv { bias: true, ..Conv::square(n.g.channels(y), n.g.channels(x), 1) };
    let y = n.g.conv(format!("{name}.conv2d"), y, conv);
    let y = if scale == 1.0 { y } else { n.g.multiply(format!("{name}.scale"), y, scale) };
    n.g.add(format!("{name}.add"), y, x)
}

fn block_35(n: &mut InceptionBuilder, name: &str, x: NodeId) -> NodeId {
    let a = n.unit(&format!("{name}.branch0"), x, ConvUnit::same(32, 1));
    let b = branch(n, name, 1, x, &[ConvUnit::same(32, 1), ConvUnit::same(32, 3)]);
    let c = branch(n, name, 2, x, &[ConvUnit::same(32, 1), ConvUnit::same(48, 3), ConvUnit::same(64, 3)]);
    let x = residual(n, name, x, &[a, b, c], SCALE_35);
    n.g.relu(format!("{name}.act"), x)
}

fn mixed_6a(n: &mut InceptionBuilder, name: &str, x: NodeId) -> NodeId {
    let a = n.unit(&format!("{name}.branch0"), x, ConvUnit::down(384));
    let b = branch(n, name, 1, x, &[ConvUnit::same(256, 1), ConvUnit::same(256, 3), ConvUnit::down(384)]);
    let c = n.max_pool(&format!("{name}.branch2"), x);
    n.concat(name, &[a, b, c])
}

fn block_17(n: &mut InceptionBuilder, name: &str, x: NodeId) -> NodeId {
    let a = n.unit(&format!("{name}.branch0"), x, ConvUnit::same(192, 1));
    let b = branch(
        n,
        name,
        1,
        x,
        &[ConvUnit::same(128, 1), ConvUnit::rect(160, 1, 7), ConvUnit::rect(192, 7, 1)],
    );
    let x = residual(n, name, x, &[a, b], SCALE_17);
    n.g.relu(format!("{name}.act"), x)
}

fn mixed_7a(n: &mut InceptionBuilder, name: &str, x: NodeId) -> NodeId {
    let a = branch(n, name, 0, x, &[ConvUnit::same(256, 1), ConvUnit::down(384)]);
    let b = branch(n, name, 1, x, &[ConvUnit::same(256, 1), ConvUnit::down(288)]);
    let c = branch(n, name, 2, x, &[ConvUnit::same(256, 1), ConvUnit::same(288, 3), ConvUnit::down(320)]);
    let d = n.max_pool(&format!("{name}.branch3"), x);
    n.concat(name, &[a, b, c, d])
}

fn block_8(n: &mut InceptionBuilder, name: &str, x: NodeId, scale: f64) -> NodeId {
    let a = n.unit(&format!("{name}.branch0"), x, ConvUnit::same(192, 1));
    let b = branch(
        n,
        name,
        1,
        x,
        &[ConvUnit::same(192, 1), ConvUnit::rect(224, 1, 3), ConvUnit::rect(256, 3, 1)],
    );
    residual(n, name, x, &[a, b], scale)
}
