//! Inception-v3 (Szegedy et al. 2015, arXiv 1512.00567), with the module names of torchvision's and timm's
//! `inception_v3`. The auxiliary head (`AuxLogits`), used only in training, is not included.

use super::{ConvUnit, InceptionBuilder};
use crate::Result;
use crate::arch::Inception;
use crate::families::head::{Head, head};
use crate::graph::{Builder, Divisor, Graph, NodeId};

/// Taps: `stages.0` … `stages.4` (after each strided layer except the first: `maxpool1`, `maxpool2`, `Mixed_5d`, `Mixed_6e`,
/// `Mixed_7c`), `pooled` and, with a head, `logits`.
pub(crate) fn graph(arch: &Inception) -> Result<Graph> {
    arch.validate()?;
    let (g, x) = Builder::new(arch.in_channels);
    let mut n = InceptionBuilder { g, eps: arch.norm_eps };
    let x = n.unit("Conv2d_1a_3x3", x, ConvUnit::down(32));
    let x = n.unit("Conv2d_2a_3x3", x, ConvUnit::valid3(32));
    let x = n.unit("Conv2d_2b_3x3", x, ConvUnit::same(64, 3));
    let x = n.max_pool("maxpool1", x);
    n.g.tap("stages.0", x);
    let x = n.unit("Conv2d_3b_1x1", x, ConvUnit::same(80, 1));
    let x = n.unit("Conv2d_4a_3x3", x, ConvUnit::valid3(192));
    let x = n.max_pool("maxpool2", x);
    n.g.tap("stages.1", x);
    let x = block_a(&mut n, "Mixed_5b", x, 32);
    let x = block_a(&mut n, "Mixed_5c", x, 64);
    let x = block_a(&mut n, "Mixed_5d", x, 64);
    n.g.tap("stages.2", x);
    let x = block_b(&mut n, "Mixed_6a", x);
    let x = block_c(&mut n, "Mixed_6b", x, 128);
    let x = block_c(&mut n, "Mixed_6c", x, 160);
    let x = block_c(&mut n, "Mixed_6d", x, 160);
    let x = block_c(&mut n, "Mixed_6e", x, 192);
    n.g.tap("stages.3", x);
    let x = block_d(&mut n, "Mixed_7a", x);
    let x = block_e(&mut n, "Mixed_7b", x);
    let x = block_e(&mut n, "Mixed_7c", x);
    n.g.tap("stages.4", x);
    head(&mut n.g, x, &Head { pool: arch.pool, classes: arch.num_classes, ..Head::default() });
    Ok(n.g.finish())
}

/// Adds units named `name` with a number starting at 1.
fn numbered(n: &mut InceptionBuilder, name: &str, x: NodeId, units: &[ConvUnit]) -> NodeId {
    units.iter().zip(1..).fold(x, |x, (&unit, i)| n.unit(&format!("{name}_{i}"), x, unit))
}

/// Adds the branch that starts with average pooling.
fn pool_branch(n: &mut InceptionBuilder, name: &str, x: NodeId, out: usize) -> NodeId {
    let x = n.avg_pool(&format!("{name}.avgpool"), x, Divisor::Window);
    n.unit(&format!("{name}.branch_pool"), x, ConvUnit::same(out, 1))
}

/// torchvision's `InceptionA`.
fn block_a(n: &mut InceptionBuilder, name: &str, x: NodeId, pool: usize) -> NodeId {
    let a = n.unit(&format!("{name}.branch1x1"), x, ConvUnit::same(64, 1));
    let b = numbered(n, &format!("{name}.branch5x5"), x, &[ConvUnit::same(48, 1), ConvUnit::same(64, 5)]);
    let units = [ConvUnit::same(64, 1), ConvUnit::same(96, 3), ConvUnit::same(96, 3)];
    let c = numbered(n, &format!("{name}.branch3x3dbl"), x, &units);
    let d = pool_branch(n, name, x, pool);
    n.concat(name, &[a, b, c, d])
}

/// torchvision's `InceptionB`, with stride 2.
fn block_b(n: &mut InceptionBuilder, name: &str, x: NodeId) -> NodeId {
    let a = n.unit(&format!("{name}.branch3x3"), x, ConvUnit::down(384));
    let units = [ConvUnit::same(64, 1), ConvUnit::same(96, 3), ConvUnit::down(96)];
    let b = numbered(n, &format!("{name}.branch3x3dbl"), x, &units);
    let c = n.max_pool(&format!("{name}.maxpool"), x);
    n.concat(name, &[a, b, c])
}

/// torchvision's `InceptionC`, with `c` channels between the 7-pixel convolutions.
fn block_c(n: &mut InceptionBuilder, name: &str, x: NodeId, c: usize) -> NodeId {
    let one = n.unit(&format!("{name}.branch1x1"), x, ConvUnit::same(192, 1));
    let units = [ConvUnit::same(c, 1), ConvUnit::rect(c, 1, 7), ConvUnit::rect(192, 7, 1)];
    let seven = numbered(n, &format!("{name}.branch7x7"), x, &units);
    let units = [
        ConvUnit::same(c, 1),
        ConvUnit::rect(c, 7, 1),
        ConvUnit::rect(c, 1, 7),
        ConvUnit::rect(c, 7, 1),
        ConvUnit::rect(192, 1, 7),
    ];
    let double = numbered(n, &format!("{name}.branch7x7dbl"), x, &units);
    let pool = pool_branch(n, name, x, 192);
    n.concat(name, &[one, seven, double, pool])
}

/// torchvision's `InceptionD`, with stride 2.
fn block_d(n: &mut InceptionBuilder, name: &str, x: NodeId) -> NodeId {
    let a = numbered(n, &format!("{name}.branch3x3"), x, &[ConvUnit::same(192, 1), ConvUnit::down(320)]);
    let units =
        [ConvUnit::same(192, 1), ConvUnit::rect(192, 1, 7), ConvUnit::rect(192, 7, 1), ConvUnit::down(192)];
    let b = numbered(n, &format!("{name}.branch7x7x3"), x, &units);
    let c = n.max_pool(&format!("{name}.maxpool"), x);
    n.concat(name, &[a, b, c])
}

/// torchvision's `InceptionE`, in which two branches split again.
fn block_e(n: &mut InceptionBuilder, name: &str, x: NodeId) -> NodeId {
    let split = |n: &mut InceptionBuilder, stem: &str, x: NodeId| {
        let a = n.unit(&format!("{stem}a"), x, ConvUnit::rect(384, 1, 3));
        let b = n.unit(&format!("{stem}b"), x, ConvUnit::rect(384, 3, 1));
        n.concat(stem, &[a, b])
    };
    let one = n.unit(&format!("{name}.branch1x1"), x, ConvUnit::same(320, 1));
    let y = n.unit(&format!("{name}.branch3x3_1"), x, ConvUnit::same(384, 1));
    let three = split(n, &format!("{name}.branch3x3_2"), y);
    let y =
        numbered(n, &format!("{name}.branch3x3dbl"), x, &[ConvUnit::same(448, 1), ConvUnit::same(384, 3)]);
    let double = split(n, &format!("{name}.branch3x3dbl_3"), y);
    let pool = pool_branch(n, name, x, 192);
    n.concat(name, &[one, three, double, pool])
}
