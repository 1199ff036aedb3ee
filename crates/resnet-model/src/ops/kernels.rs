//! Operations as the kernels describe them.

use resnet_kernels::{AvgPoolSpec, ConvShape};

use crate::graph::{self, Conv, Divisor, PoolSpec, Rounding};

pub(crate) fn shape_of(conv: &Conv) -> ConvShape {
    let Conv { in_channels, out_channels, kernel, stride, padding, dilation, groups, bias: _ } = *conv;
    ConvShape { c_in: in_channels, c_out: out_channels, kernel, stride, padding, dilation, groups }
}

pub(crate) fn window_of(pool: &PoolSpec) -> resnet_kernels::PoolSpec {
    resnet_kernels::PoolSpec {
        kernel: pool.kernel,
        stride: pool.stride,
        padding: pool.padding,
        ceil_mode: false,
    }
}

pub(crate) fn average_of(pool: &graph::AvgPool) -> AvgPoolSpec {
    let window =
        resnet_kernels::PoolSpec { ceil_mode: pool.rounding == Rounding::Ceil, ..window_of(&pool.window) };
    AvgPoolSpec { window, count_include_pad: pool.divisor == Divisor::Window }
}
