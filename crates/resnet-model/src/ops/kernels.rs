//! Operations as the kernels describe them.

use resnet_kernels::{AvgPool, ConvShape, Window};

use crate::graph::{self, Conv, Divisor, Pool, Rounding};

pub(crate) fn shape_of(conv: &Conv) -> ConvShape {
    let Conv { in_channels, out_channels, kernel, stride, padding, dilation, groups, bias: _ } = *conv;
    ConvShape { c_in: in_channels, c_out: out_channels, kernel, stride, padding, dilation, groups }
}

pub(crate) fn window_of(pool: &Pool) -> Window {
    Window { kernel: pool.kernel, stride: pool.stride, padding: pool.padding, ceil_mode: false }
}

pub(crate) fn average_of(pool: &graph::AvgPool) -> AvgPool {
    let window = Window { ceil_mode: pool.rounding == Rounding::Ceil, ..window_of(&pool.window) };
    AvgPool { window, count_include_pad: pool.divisor == Divisor::Window }
}
