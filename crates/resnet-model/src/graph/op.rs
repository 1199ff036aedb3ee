//! The operations and their attributes.

/// An operation. Inputs and outputs are `[N, C, H, W]` unless stated otherwise.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Op {
    /// The network's input.
    Input,
    /// Convolution; parameters `weight` and optionally `bias`.
    Conv(Conv),
    /// Convolution with a standardized weight; parameters as for [`Op::Conv`], which folding turns it into.
    StdConv(StdConv),
    /// Batch normalization; parameters `weight`, `bias` and the running statistics.
    BatchNorm(BatchNorm),
    /// Group normalization; parameters `weight` and `bias`.
    GroupNorm(GroupNorm),
    /// Normalization with built-in activation; parameters `weight`, `bias` and `v`.
    EvoNorm(EvoNorm),
    /// Normalization with built-in activation; parameters `weight`, `bias` and `tau`.
    FilterResponseNorm(FilterResponseNorm),
    /// `max(x, 0)`.
    Relu,
    /// `1 / (1 + e^-x)`; any shape.
    Sigmoid,
    /// Max pooling; padding counts as minus infinity.
    MaxPool(PoolSpec),
    /// Average pooling.
    AvgPool(AvgPool),
    /// Average pooling to a given output size.
    AdaptiveAvgPool(AdaptiveAvgPool),
    /// Depthwise binomial blur with reflection padding; no parameters.
    Blur(Blur),
    /// Global average pooling: `[N, C, H, W]` to `[N, C]`.
    GlobalAvgPool,
    /// Global max pooling: `[N, C, H, W]` to `[N, C]`.
    GlobalMaxPool,
    /// Attention pooling, `[N, C, H, W]` to `[N, C]`; parameters `pos_embed` `[1 + rows · columns, C]` and, for each of `q`,
    /// `k` and `v`, `weight` `[C, C]` and `bias` `[C]`.
    AttentionPool(AttentionPool),
    /// Sum of two inputs of equal shape.
    Add,
    /// Concatenation along the channels; `[N, C, H, W]` or `[N, C]`.
    Concat,
    /// The first input `[N, C, H, W]` multiplied channel by channel by the second `[N, C]` (channel attention).
    Scale,
    /// Multiplication by a constant; any shape.
    Multiply(Multiply),
    /// Every `stride`-th pixel along each axis, starting with the first.
    Subsample(Subsample),
    /// Zero padding of the channels.
    PadChannels(PadChannels),
    /// Zero padding of the pixels.
    Pad(Pad),
    /// `[N, C, H, W]` to `[N, C · H · W]`, for a fixed height and width.
    Flatten(Flatten),
    /// Fully connected layer, `[N, C]` to `[N, K]`; parameters `weight` and `bias` `[K]`.
    Linear(Linear),
    /// Convolution over the channels of `[N, C]` with zero padding; parameter `weight` `[1, 1, kernel]`.
    ChannelConv(ChannelConv),
}

/// A convolution. Pairs are `[height, width]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conv {
    /// Input channels.
    pub in_channels: usize,
    /// Output channels.
    pub out_channels: usize,
    /// Kernel size in pixels.
    pub kernel: [usize; 2],
    /// Stride in pixels.
    pub stride: [usize; 2],
    /// Zero padding on both sides of each axis, in pixels.
    pub padding: [usize; 2],
    /// Dilation: distance between the taps of the kernel in pixels.
    pub dilation: [usize; 2],
    /// Number of groups of channels.
    pub groups: usize,
    /// If `true`, the convolution has a bias.
    pub bias: bool,
}

impl Conv {
    /// Returns a square convolution with stride 1, one group, no bias, and same padding for odd kernels.
    pub const fn square(in_channels: usize, out_channels: usize, kernel: usize) -> Conv {
        Conv {
            in_channels,
            out_channels,
            kernel: [kernel; 2],
            stride: [1; 2],
            padding: [kernel / 2; 2],
            dilation: [1; 2],
            groups: 1,
            bias: false,
        }
    }

    /// Returns the shape of the weight, `[out, in / groups, kernel height, kernel width]`.
    pub const fn weight_shape(&self) -> [usize; 4] {
        [self.out_channels, self.in_channels / self.groups, self.kernel[0], self.kernel[1]]
    }

    /// Returns the output size for an input of `size` pixels along `axis` (0 = height), or `None` if no window fits.
    pub fn output(&self, axis: usize, size: usize) -> Option<usize> {
        let span = self.dilation[axis] * (self.kernel[axis] - 1) + 1;
        Some((size + 2 * self.padding[axis]).checked_sub(span)? / self.stride[axis] + 1)
    }
}

/// A convolution with weight standardization (arXiv 1903.10520; timm's `StdConv2d`): the weight is normalized to mean 0 and
/// variance 1 per output channel.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StdConv {
    /// The convolution.
    pub conv: Conv,
    /// Added to the variance of the weight.
    pub eps: f64,
}

/// A batch normalization.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BatchNorm {
    /// Added to the variance.
    pub eps: f64,
}

/// A group normalization (arXiv 1803.08494).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GroupNorm {
    /// Number of groups, a divisor of the channels.
    pub groups: usize,
    /// Added to the variance.
    pub eps: f64,
}

/// EvoNorm-S0 (arXiv 2004.02967): `x · sigmoid(v · x) / √(var + eps) · weight + bias`, with the biased variance of each
/// group of channels.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EvoNorm {
    /// Number of groups, a divisor of the channels.
    pub groups: usize,
    /// Added to the variance.
    pub eps: f64,
}

/// A filter response normalization with a thresholded linear unit (arXiv 1911.09737):
/// `max(x / √(mean of x² + eps) · weight + bias, tau)`, with the mean over the pixels of each channel.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FilterResponseNorm {
    /// Added to the mean of squares.
    pub eps: f64,
}

/// A pooling window. Pairs are `[height, width]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolSpec {
    /// Kernel size in pixels.
    pub kernel: [usize; 2],
    /// Stride in pixels.
    pub stride: [usize; 2],
    /// Padding on both sides of each axis, in pixels.
    pub padding: [usize; 2],
}

impl PoolSpec {
    /// Returns a square window without padding.
    pub const fn square(kernel: usize, stride: usize) -> PoolSpec {
        PoolSpec { kernel: [kernel; 2], stride: [stride; 2], padding: [0; 2] }
    }

    /// Returns the output size for an input of `size` pixels along `axis` (0 = height), or `None` if no window fits.
    pub fn output(&self, axis: usize, size: usize) -> Option<usize> {
        Some((size + 2 * self.padding[axis]).checked_sub(self.kernel[axis])? / self.stride[axis] + 1)
    }
}

/// Average pooling (PyTorch's `AvgPool2d`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AvgPool {
    /// The window; padding is zeros.
    pub window: PoolSpec,
    /// The handling of windows that are not covered by the input.
    pub rounding: Rounding,
    /// The divisor of the sum over a window.
    pub divisor: Divisor,
}

/// The rounding of the output size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rounding {
    /// Incomplete windows are dropped.
    Floor,
    /// Incomplete windows are included (PyTorch's `ceil_mode`).
    Ceil,
}

/// The divisor of the sum over a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Divisor {
    /// The pixels of the window, including padding (PyTorch's `count_include_pad=True`).
    Window,
    /// The pixels of the window without padding.
    Pixels,
}

impl AvgPool {
    /// Returns the output size for an input of `size` pixels along `axis` (0 = height), or `None` if no window fits.
    pub fn output(&self, axis: usize, size: usize) -> Option<usize> {
        let PoolSpec { kernel, stride, padding } = self.window;
        match self.rounding {
            Rounding::Floor => self.window.output(axis, size),
            Rounding::Ceil => {
                let padded = size + 2 * padding[axis];
                let windows = (padded + stride[axis] - 1).checked_sub(kernel[axis])? / stride[axis] + 1;
                // A window may extend beyond the input, but not start there.
                let last_starts_outside = (windows - 1) * stride[axis] >= size + padding[axis];
                (size > 0).then_some(windows - usize::from(last_starts_outside))
            }
        }
    }

    /// Returns the divisor of the window at `position` along `axis`, for an input of `size` pixels; the divisor of a window
    /// is the product over both axes.
    pub fn count(&self, axis: usize, size: usize, position: usize) -> usize {
        let PoolSpec { kernel, stride, padding } = self.window;
        let pad = padding[axis];
        let start = position * stride[axis];
        let end = (start + kernel[axis]).min(size + 2 * pad);
        match self.divisor {
            Divisor::Window => end - start,
            Divisor::Pixels => end.min(size + pad).saturating_sub(start.max(pad)),
        }
    }
}

/// Average pooling to a fixed output size: window `i` of `n` covers pixels `⌊i · size / n⌋` to `⌈(i + 1) · size / n⌉`,
/// exclusive (PyTorch's `AdaptiveAvgPool2d`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AdaptiveAvgPool {
    /// Output size in pixels, `[height, width]`.
    pub output: [usize; 2],
}

impl AdaptiveAvgPool {
    /// Returns start and end of window `i` along `axis` for an input of `size` pixels.
    pub fn window(&self, axis: usize, size: usize, i: usize) -> [usize; 2] {
        let n = self.output[axis];
        [i * size / n, ((i + 1) * size).div_ceil(n)]
    }
}

/// The 3×3 binomial filter `[1, 2, 1]ᵀ [1, 2, 1] / 16` with reflection padding (arXiv 1904.11486; timm's `BlurPool2d`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blur {
    /// Stride in pixels along both axes.
    pub stride: usize,
}

impl Blur {
    /// Returns the output size for an input of `size` pixels, or `None` if it is too small for reflection padding.
    pub fn output(&self, size: usize) -> Option<usize> {
        (size > 1).then(|| (size - 1) / self.stride + 1)
    }
}

/// Multiplication by a constant.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Multiply {
    /// The constant.
    pub factor: f64,
}

/// Subsampling to every `stride`-th pixel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subsample {
    /// Stride in pixels along both axes.
    pub stride: usize,
}

/// Zero padding of the channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PadChannels {
    /// Zero channels before.
    pub before: usize,
    /// Zero channels after.
    pub after: usize,
}

/// Zero padding of the pixels. Before max pooling, 0 can be the maximum, unlike the padding of the pooling. Pairs are
/// `[height, width]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pad {
    /// Pixels at the top and left.
    pub before: [usize; 2],
    /// Pixels at the bottom and right.
    pub after: [usize; 2],
}

/// Flattening of channels and pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flatten {
    /// Height and width of the input.
    pub pixels: [usize; 2],
}

/// The attention pooling of CLIP (arXiv 2103.00020): multi-head attention with the mean of all pixels as the only query. The
/// learned position embedding is resampled for sizes other than that of training.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttentionPool {
    /// Number of heads, a divisor of the channels.
    pub heads: usize,
    /// Rows and columns of the position embedding.
    pub grid: [usize; 2],
}

impl AttentionPool {
    /// Returns the shape of the position embedding for `channels` channels.
    pub const fn position_shape(&self, channels: usize) -> [usize; 2] {
        [1 + self.grid[0] * self.grid[1], channels]
    }
}

/// A fully connected layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Linear {
    /// Input features.
    pub in_features: usize,
    /// Output features.
    pub out_features: usize,
    /// The stored shape of the weight.
    pub form: LinearForm,
}

/// The stored shape of the weight of a fully connected layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LinearForm {
    /// `[K, C]`.
    #[default]
    Matrix,
    /// `[K, C, 1, 1]`: a 1×1 convolution of a single pixel in PyTorch.
    Pointwise,
}

impl Linear {
    /// Returns the shape of the weight.
    pub fn weight_shape(&self) -> Vec<usize> {
        match self.form {
            LinearForm::Matrix => vec![self.out_features, self.in_features],
            LinearForm::Pointwise => vec![self.out_features, self.in_features, 1, 1],
        }
    }
}

/// A convolution over the channels of `[N, C]` (arXiv 1910.03151).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChannelConv {
    /// Kernel size in channels; odd.
    pub kernel: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Output sizes and divisors of `torch.nn.AvgPool2d` along one axis.
    #[test]
    fn avg_pool_windows_match_pytorch() {
        let check = |rounding, divisor, [k, s, p, size]: [usize; 4], expected: &[usize]| {
            let window = PoolSpec { padding: [p; 2], ..PoolSpec::square(k, s) };
            let pool = AvgPool { window, rounding, divisor };
            let n = pool.output(0, size).unwrap_or(0);
            let counts: Vec<usize> = (0..n).map(|i| pool.count(0, size, i)).collect();
            assert_eq!(counts, expected, "{pool:?} of {size}");
        };
        check(Rounding::Floor, Divisor::Window, [2, 2, 0, 5], &[2, 2]);
        check(Rounding::Ceil, Divisor::Window, [2, 2, 0, 5], &[2, 2, 1]);
        check(Rounding::Ceil, Divisor::Pixels, [2, 2, 0, 1], &[1]);
        check(Rounding::Floor, Divisor::Window, [3, 1, 1, 3], &[3, 3, 3]);
        check(Rounding::Floor, Divisor::Pixels, [3, 1, 1, 3], &[2, 3, 2]);
        check(Rounding::Ceil, Divisor::Pixels, [3, 2, 1, 4], &[2, 3, 1]);
        check(Rounding::Ceil, Divisor::Window, [3, 2, 1, 4], &[3, 3, 2]);
        check(Rounding::Ceil, Divisor::Pixels, [2, 2, 1, 4], &[1, 2, 1]);
        check(Rounding::Floor, Divisor::Window, [3, 1, 0, 2], &[]);
    }
}
