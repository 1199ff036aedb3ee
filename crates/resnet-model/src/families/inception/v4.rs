//! Inception-v4 (Szegedy et al. 2016, arXiv 1602.07261), with the module names of timm's `inception_v4`.

use super::{ConvUnit, InceptionBuilder};
use crate::Result;
use crate::arch::Inception;
use crate::families::head::{Head, head};
use crate::graph::{Builder, Divisor, Graph, NodeId};

/// Taps: `stages.0` … `stages.4` (timm's `features.2`, `.3`, `.9`, `.17` and `.21`), `pooled` and, with a head, `logits`.
pub(crate) fn graph(arch: &Inception) -> Result<Graph> {
    arch.validate()?;
    let (g, x) = Builder::new(arch.in_channels);
    let mut n = InceptionBuilder { g, eps: arch.norm_eps };
    let x = n.sequence("features", x, 0, &[ConvUnit::down(32), ConvUnit::valid3(32), ConvUnit::same(64, 3)]);
    n.g.tap("stages.0", x);
    let x = stem_3(&mut n, "features.3", x);
    n.g.tap("stages.1", x);
    let x = stem_4(&mut n, "features.4", x);
    let x = stem_5(&mut n, "features.5", x);
    let x = (6..10).fold(x, |x, i| block_a(&mut n, &format!("features.{i}"), x));
    n.g.tap("stages.2", x);
    let x = reduction_a(&mut n, "features.10", x);
    let x = (11..18).fold(x, |x, i| block_b(&mut n, &format!("features.{i}"), x));
    n.g.tap("stages.3", x);
    let x = reduction_b(&mut n, "features.18", x);
    let x = (19..22).fold(x, |x, i| block_c(&mut n, &format!("features.{i}"), x));
    n.g.tap("stages.4", x);
    let classes = arch.num_classes;
    head(&mut n.g, x, &Head { pool: arch.pool, name: "last_linear", classes, ..Head::default() });
    Ok(n.g.finish())
}

fn branch(n: &mut InceptionBuilder, name: &str, i: usize, x: NodeId, units: &[ConvUnit]) -> NodeId {
    n.sequence(&format!("{name}.branch{i}"), x, 0, units)
}

/// Adds the branch that starts with average pooling, with `count_include_pad=False`.
fn pool_branch(n: &mut InceptionBuilder, name: &str, x: NodeId, out: usize) -> NodeId {
    let x = n.avg_pool(&format!("{name}.branch3.0"), x, Divisor::Pixels);
    n.unit(&format!("{name}.branch3.1"), x, ConvUnit::same(out, 1))
}

fn stem_3(n: &mut InceptionBuilder, name: &str, x: NodeId) -> NodeId {
    let a = n.max_pool(&format!("{name}.maxpool"), x);
    let b = n.unit(&format!("{name}.conv"), x, ConvUnit::down(96));
    n.concat(name, &[a, b])
}

fn stem_4(n: &mut InceptionBuilder, name: &str, x: NodeId) -> NodeId {
    let a = branch(n, name, 0, x, &[ConvUnit::same(64, 1), ConvUnit::valid3(96)]);
    let units =
        [ConvUnit::same(64, 1), ConvUnit::rect(64, 1, 7), ConvUnit::rect(64, 7, 1), ConvUnit::valid3(96)];
    let b = branch(n, name, 1, x, &units);
    n.concat(name, &[a, b])
}

fn stem_5(n: &mut InceptionBuilder, name: &str, x: NodeId) -> NodeId {
    let a = n.unit(&format!("{name}.conv"), x, ConvUnit::down(192));
    let b = n.max_pool(&format!("{name}.maxpool"), x);
    n.concat(name, &[a, b])
}

fn block_a(n: &mut InceptionBuilder, name: &str, x: NodeId) -> NodeId {
    let a = n.unit(&format!("{name}.branch0"), x, ConvUnit::same(96, 1));
    let b = branch(n, name, 1, x, &[ConvUnit::same(64, 1), ConvUnit::same(96, 3)]);
    let c = branch(n, name, 2, x, &[ConvUnit::same(64, 1), ConvUnit::same(96, 3), ConvUnit::same(96, 3)]);
    let d = pool_branch(n, name, x, 96);
    n.concat(name, &[a, b, c, d])
}

fn reduction_a(n: &mut InceptionBuilder, name: &str, x: NodeId) -> NodeId {
    let a = n.unit(&format!("{name}.branch0"), x, ConvUnit::down(384));
    let b = branch(n, name, 1, x, &[ConvUnit::same(192, 1), ConvUnit::same(224, 3), ConvUnit::down(256)]);
    let c = n.max_pool(&format!("{name}.branch2"), x);
    n.concat(name, &[a, b, c])
}

fn block_b(n: &mut InceptionBuilder, name: &str, x: NodeId) -> NodeId {
    let a = n.unit(&format!("{name}.branch0"), x, ConvUnit::same(384, 1));
    let b = branch(
        n,
        name,
        1,
        x,
        &[ConvUnit::same(192, 1), ConvUnit::rect(224, 1, 7), ConvUnit::rect(256, 7, 1)],
    );
    let units = [
        ConvUnit::same(192, 1),
        ConvUnit::rect(192, 7, 1),
        ConvUnit::rect(224, 1, 7),
        ConvUnit::rect(224, 7, 1),
        ConvUnit::rect(256, 1, 7),
    ];
    let c = branch(n, name, 2, x, &units);
    let d = pool_branch(n, name, x, 128);
    n.concat(name, &[a, b, c, d])
}

fn reduction_b(n: &mut InceptionBuilder, name: &str, x: NodeId) -> NodeId {
    let a = branch(n, name, 0, x, &[ConvUnit::same(192, 1), ConvUnit::down(192)]);
    let units =
        [ConvUnit::same(256, 1), ConvUnit::rect(256, 1, 7), ConvUnit::rect(320, 7, 1), ConvUnit::down(320)];
    let b = branch(n, name, 1, x, &units);
    let c = n.max_pool(&format!("{name}.branch2"), x);
    n.concat(name, &[a, b, c])
}

/// Adds a block in which two branches split again.
fn block_c(n: &mut InceptionBuilder, name: &str, x: NodeId) -> NodeId {
    let a = n.unit(&format!("{name}.branch0"), x, ConvUnit::same(256, 1));
    let y = n.unit(&format!("{name}.branch1_0"), x, ConvUnit::same(384, 1));
    let b1 = n.unit(&format!("{name}.branch1_1a"), y, ConvUnit::rect(256, 1, 3));
    let b2 = n.unit(&format!("{name}.branch1_1b"), y, ConvUnit::rect(256, 3, 1));
    let y = n.unit(&format!("{name}.branch2_0"), x, ConvUnit::same(384, 1));
    let y = n.unit(&format!("{name}.branch2_1"), y, ConvUnit::rect(448, 3, 1));
    let y = n.unit(&format!("{name}.branch2_2"), y, ConvUnit::rect(512, 1, 3));
    let c1 = n.unit(&format!("{name}.branch2_3a"), y, ConvUnit::rect(256, 1, 3));
    let c2 = n.unit(&format!("{name}.branch2_3b"), y, ConvUnit::rect(256, 3, 1));
    let d = pool_branch(n, name, x, 256);
    n.concat(name, &[a, b1, b2, c1, c2, d])
}
