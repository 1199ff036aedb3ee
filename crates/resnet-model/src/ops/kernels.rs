//! Conversion of operations to the types of `resnet-kernels`.

use resnet_kernels::{AvgPoolSpec, ConvShape};

use crate::graph::{self, Conv, Divisor, PoolSpec, Rounding};

pub(crate) fn conv_shape(conv: &Conv) -> ConvShape {
    let Conv { in_channels, out_channels, kernel, stride, padding, dilation, groups, bias: _ } = *conv;
    ConvShape { c_in: in_channels, c_out: out_channels, kernel, stride, padding, dilation, groups }
}

pub(crate) fn pool_spec(pool: &PoolSpec) -> resnet_kernels::PoolSpec {
    resnet_kernels::PoolSpec {
        kernel: pool.kernel,
        stride: pool.stride,
        padding: pool.padding,
        ceil_mode: false,
    }
}

pub(crate) fn avg_pool_spec(pool: &graph::AvgPool) -> AvgPoolSpec {
    let window =
        resnet_kernels::PoolSpec { ceil_mode: pool.rounding == Rounding::Ceil, ..pool_spec(&pool.window) };
    AvgPoolSpec { window, count_include_pad: pool.divisor == Divisor::Window }
}
