//! Layers that the Inception networks share: convolutions with norm and ReLU, in parallel branches.

use crate::graph::{AvgPool, Builder, Conv, Divisor, NodeId, PoolSpec, Rounding};

pub(crate) mod resnet_v2;
pub(crate) mod v3;
pub(crate) mod v4;

/// A convolution with norm and ReLU.
#[derive(Clone, Copy)]
struct ConvUnit {
    out: usize,
    kernel: [usize; 2],
    stride: usize,
    padding: [usize; 2],
}

impl ConvUnit {
    /// Square, stride 1, same padding.
    const fn same(out: usize, kernel: usize) -> ConvUnit {
        ConvUnit::rect(out, kernel, kernel)
    }

    /// `height` × `width`, stride 1, same padding.
    const fn rect(out: usize, height: usize, width: usize) -> ConvUnit {
        ConvUnit { out, kernel: [height, width], stride: 1, padding: [height / 2, width / 2] }
    }

    /// 3×3 without padding.
    const fn valid3(out: usize) -> ConvUnit {
        ConvUnit { out, kernel: [3; 2], stride: 1, padding: [0; 2] }
    }

    /// 3×3 with stride 2, without padding.
    const fn down(out: usize) -> ConvUnit {
        ConvUnit { stride: 2, ..ConvUnit::valid3(out) }
    }
}

/// A builder with the epsilon of the norms.
struct InceptionBuilder {
    g: Builder,
    eps: f64,
}

impl InceptionBuilder {
    /// Adds convolution `name.conv`, norm `name.bn` and ReLU `name.act`.
    fn unit(&mut self, name: &str, x: NodeId, unit: ConvUnit) -> NodeId {
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

    /// Adds a sequence of units, numbered from `first`.
    fn sequence(&mut self, name: &str, x: NodeId, first: usize, units: &[ConvUnit]) -> NodeId {
        let numbered = units.iter().zip(first..);
        numbered.fold(x, |x, (&unit, i)| self.unit(&format!("{name}.{i}"), x, unit))
    }

    /// Adds 3×3 max pooling with stride 2, without padding.
    fn max_pool(&mut self, name: &str, x: NodeId) -> NodeId {
        self.g.max_pool(name, x, PoolSpec::square(3, 2))
    }

    /// Adds 3×3 average pooling with stride 1 and same padding.
    fn avg_pool(&mut self, name: &str, x: NodeId, divisor: Divisor) -> NodeId {
        let window = PoolSpec { padding: [1; 2], ..PoolSpec::square(3, 1) };
        self.g.avg_pool(name, x, AvgPool { window, rounding: Rounding::Floor, divisor })
    }

    fn concat(&mut self, name: &str, branches: &[NodeId]) -> NodeId {
        self.g.concat(format!("{name}.concat"), branches)
    }
}
