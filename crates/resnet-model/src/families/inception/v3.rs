//! Inception-v3 (Szegedy et al. 2015, arXiv 1512.00567), named as torchvision's and timm's `inception_v3` name it. The
//! auxiliary head (`AuxLogits`) is not part of it: it is for training only.

use super::{Net, Unit};
use crate::Result;
use crate::arch::Inception;
use crate::families::head::{Head, head};
use crate::graph::{Builder, Divisor, Graph, NodeId};

/// Taps: `stages.0` … `stages.4` (after each halving but the first: `maxpool1`, `maxpool2`, `Mixed_5d`, `Mixed_6e`,
/// `Mixed_7c`), `pooled` and, with a head, `logits`.
pub(crate) fn graph(arch: &Inception) -> Result<Graph> {
    arch.validate()?;
    let (g, x) = Builder::new(arch.in_channels);
    let mut n = Net { g, eps: arch.norm_eps };
    let x = n.unit("Conv2d_1a_3x3", x, Unit::down(32));
    let x = n.unit("Conv2d_2a_3x3", x, Unit::valid3(32));
    let x = n.unit("Conv2d_2b_3x3", x, Unit::same(64, 3));
    let x = n.max_pool("maxpool1", x);
    n.g.tap("stages.0", x);
    let x = n.unit("Conv2d_3b_1x1", x, Unit::same(80, 1));
    let x = n.unit("Conv2d_4a_3x3", x, Unit::valid3(192));
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

/// Units whose names are `name` and their numbers from 1 on.
fn numbered(n: &mut Net, name: &str, x: NodeId, units: &[Unit]) -> NodeId {
    units.iter().zip(1..).fold(x, |x, (&unit, i)| n.unit(&format!("{name}_{i}"), x, unit))
}

/// The branch that starts with a mean.
fn pool_branch(n: &mut Net, name: &str, x: NodeId, out: usize) -> NodeId {
    let x = n.mean(&format!("{name}.avgpool"), x, Divisor::Window);
    n.unit(&format!("{name}.branch_pool"), x, Unit::same(out, 1))
}

/// torchvision's `InceptionA`.
fn block_a(n: &mut Net, name: &str, x: NodeId, pool: usize) -> NodeId {
    let a = n.unit(&format!("{name}.branch1x1"), x, Unit::same(64, 1));
    let b = numbered(n, &format!("{name}.branch5x5"), x, &[Unit::same(48, 1), Unit::same(64, 5)]);
    let units = [Unit::same(64, 1), Unit::same(96, 3), Unit::same(96, 3)];
    let c = numbered(n, &format!("{name}.branch3x3dbl"), x, &units);
    let d = pool_branch(n, name, x, pool);
    n.concat(name, &[a, b, c, d])
}

/// torchvision's `InceptionB`: halves the size.
fn block_b(n: &mut Net, name: &str, x: NodeId) -> NodeId {
    let a = n.unit(&format!("{name}.branch3x3"), x, Unit::down(384));
    let units = [Unit::same(64, 1), Unit::same(96, 3), Unit::down(96)];
    let b = numbered(n, &format!("{name}.branch3x3dbl"), x, &units);
    let c = n.max_pool(&format!("{name}.maxpool"), x);
    n.concat(name, &[a, b, c])
}

/// torchvision's `InceptionC`, with `c` channels between the 7-pixel convolutions.
fn block_c(n: &mut Net, name: &str, x: NodeId, c: usize) -> NodeId {
    let one = n.unit(&format!("{name}.branch1x1"), x, Unit::same(192, 1));
    let units = [Unit::same(c, 1), Unit::rect(c, 1, 7), Unit::rect(192, 7, 1)];
    let seven = numbered(n, &format!("{name}.branch7x7"), x, &units);
    let units = [
        Unit::same(c, 1),
        Unit::rect(c, 7, 1),
        Unit::rect(c, 1, 7),
        Unit::rect(c, 7, 1),
        Unit::rect(192, 1, 7),
    ];
    let double = numbered(n, &format!("{name}.branch7x7dbl"), x, &units);
    let pool = pool_branch(n, name, x, 192);
    n.concat(name, &[one, seven, double, pool])
}

/// torchvision's `InceptionD`: halves the size.
fn block_d(n: &mut Net, name: &str, x: NodeId) -> NodeId {
    let a = numbered(n, &format!("{name}.branch3x3"), x, &[Unit::same(192, 1), Unit::down(320)]);
    let units = [Unit::same(192, 1), Unit::rect(192, 1, 7), Unit::rect(192, 7, 1), Unit::down(192)];
    let b = numbered(n, &format!("{name}.branch7x7x3"), x, &units);
    let c = n.max_pool(&format!("{name}.maxpool"), x);
    n.concat(name, &[a, b, c])
}

/// torchvision's `InceptionE`: two branches split once more.
fn block_e(n: &mut Net, name: &str, x: NodeId) -> NodeId {
    let split = |n: &mut Net, stem: &str, x: NodeId| {
        let a = n.unit(&format!("{stem}a"), x, Unit::rect(384, 1, 3));
        let b = n.unit(&format!("{stem}b"), x, Unit::rect(384, 3, 1));
        n.concat(stem, &[a, b])
    };
    let one = n.unit(&format!("{name}.branch1x1"), x, Unit::same(320, 1));
    let y = n.unit(&format!("{name}.branch3x3_1"), x, Unit::same(384, 1));
    let three = split(n, &format!("{name}.branch3x3_2"), y);
    let y = numbered(n, &format!("{name}.branch3x3dbl"), x, &[Unit::same(448, 1), Unit::same(384, 3)]);
    let double = split(n, &format!("{name}.branch3x3dbl_3"), y);
    let pool = pool_branch(n, name, x, 192);
    n.concat(name, &[one, three, double, pool])
}
