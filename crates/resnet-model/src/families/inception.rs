//! What the Inception networks are made of: convolutions with norm and ReLU, in branches beside each other.

use crate::graph::{AvgPool, Builder, Conv, Divisor, NodeId, PoolSpec, Rounding};

pub(crate) mod resnet_v2;
pub(crate) mod v3;
pub(crate) mod v4;

/// A convolution with norm and ReLU.
#[derive(Clone, Copy)]
struct Unit {
    out: usize,
    kernel: [usize; 2],
    stride: usize,
    padding: [usize; 2],
}

impl Unit {
    /// Square, with stride 1, at every pixel of the input.
    const fn same(out: usize, kernel: usize) -> Unit {
        Unit::rect(out, kernel, kernel)
    }

    /// `height` × `width`, with stride 1, at every pixel of the input.
    const fn rect(out: usize, height: usize, width: usize) -> Unit {
        Unit { out, kernel: [height, width], stride: 1, padding: [height / 2, width / 2] }
    }

    /// 3×3 without padding.
    const fn valid3(out: usize) -> Unit {
        Unit { out, kernel: [3; 2], stride: 1, padding: [0; 2] }
    }

    /// 3×3 with stride 2, without padding.
    const fn down(out: usize) -> Unit {
        Unit { stride: 2, ..Unit::valid3(out) }
    }
}

/// A builder that knows the norms' epsilon.
struct Net {
    g: Builder,
    eps: f64,
}

impl Net {
    /// Convolution `name.conv`, norm `name.bn` and ReLU.
    fn unit(&mut self, name: &str, x: NodeId, unit: Unit) -> NodeId {
        let conv = Conv {
            kernel: unit.kernel,
            stride: [unit.stride; 2],
            padding: unit.padding,
            ..Conv::square(self.g.channels(x), unit.out, 1)
        };
        let x = self.g.conv(format!("{name}.conv"), x, conv);
        let x = self.g.batch_norm(format!("{name}.bn"), x, self.eps);
        self.g.relu(format!("{name}.act"), x)
    }

    /// Units one after the other, named by their places from `first` on.
    fn sequence(&mut self, name: &str, x: NodeId, first: usize, units: &[Unit]) -> NodeId {
        let numbered = units.iter().zip(first..);
        numbered.fold(x, |x, (&unit, i)| self.unit(&format!("{name}.{i}"), x, unit))
    }

    /// A 3×3 max-pool with stride 2, without padding.
    fn max_pool(&mut self, name: &str, x: NodeId) -> NodeId {
        self.g.max_pool(name, x, PoolSpec::square(3, 2))
    }

    /// A 3×3 mean at every pixel.
    fn mean(&mut self, name: &str, x: NodeId, divisor: Divisor) -> NodeId {
        let window = PoolSpec { padding: [1; 2], ..PoolSpec::square(3, 1) };
        self.g.avg_pool(name, x, AvgPool { window, rounding: Rounding::Floor, divisor })
    }

    fn concat(&mut self, name: &str, branches: &[NodeId]) -> NodeId {
        self.g.concat(format!("{name}.concat"), branches)
    }
}
