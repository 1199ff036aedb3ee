//! The kinds of operation and what each needs to know.

/// The kinds of operation. `[N, C, H, W]` in and out, unless said otherwise.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Op {
    /// The network's input.
    Input,
    /// Convolution; parameters `weight` and, if asked for, `bias`.
    Conv(Conv),
    /// Convolution with a standardised weight; parameters as [`Op::Conv`]. Folding makes an [`Op::Conv`] of it.
    StdConv(StdConv),
    /// Batch normalisation; parameters `weight`, `bias` and the running statistics.
    BatchNorm(BatchNorm),
    /// Group normalisation; parameters `weight` and `bias`.
    GroupNorm(GroupNorm),
    /// Normalisation and activation in one; parameters `weight`, `bias` and `v`.
    EvoNorm(EvoNorm),
    /// Normalisation and activation in one; parameters `weight`, `bias` and `tau`.
    FilterResponseNorm(FilterResponseNorm),
    /// `max(x, 0)`.
    Relu,
    /// `1 / (1 + e^-x)`; any shape.
    Sigmoid,
    /// Maximum over windows; padding never wins (it counts as minus infinity).
    MaxPool(PoolSpec),
    /// Mean over windows.
    AvgPool(AvgPool),
    /// Mean over windows that divide the input into a given number of rows and columns.
    AdaptiveAvgPool(AdaptiveAvgPool),
    /// Binomial blur with reflected borders, each channel for itself; no parameters.
    Blur(Blur),
    /// Mean over all pixels: `[N, C, H, W]` to `[N, C]`.
    GlobalAvgPool,
    /// Maximum over all pixels: `[N, C, H, W]` to `[N, C]`.
    GlobalMaxPool,
    /// Attention from the mean of all pixels to each of them: `[N, C, H, W]` to `[N, C]`; parameters `pos_embed`
    /// `[1 + rows · columns, C]` and, for each of `q`, `k` and `v`, `weight` `[C, C]` and `bias` `[C]`.
    AttentionPool(AttentionPool),
    /// Sum of two results of equal shape.
    Add,
    /// The channels of all inputs, one after the other; `[N, C, H, W]` or `[N, C]`.
    Concat,
    /// The first input `[N, C, H, W]`, each channel multiplied by a number of the second `[N, C]` (attention).
    Scale,
    /// Multiplication by a constant; any shape.
    Multiply(Multiply),
    /// Every `stride`-th pixel along each axis, from the first.
    Subsample(Subsample),
    /// Channels of zeros put before and after those of the input.
    PadChannels(PadChannels),
    /// Pixels of zeros put around those of the input.
    Pad(Pad),
    /// `[N, C, H, W]` to `[N, C · H · W]`, for an input of given height and width.
    Flatten(Flatten),
    /// `[N, C]` to `[N, K]`; parameters `weight` and `bias` `[K]`.
    Linear(Linear),
    /// `[N, C]` to `[N, C]`: a convolution over the channels with zeros around; parameter `weight` `[1, 1, kernel]`.
    ChannelConv(ChannelConv),
}

/// A convolution. Pairs are `[height, width]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conv {
    /// Channels of the input.
    pub in_channels: usize,
    /// Channels of the result.
    pub out_channels: usize,
    /// Kernel size in pixels.
    pub kernel: [usize; 2],
    /// Input pixels between neighbouring windows.
    pub stride: [usize; 2],
    /// Zeros added on both sides of each axis, in pixels.
    pub padding: [usize; 2],
    /// Input pixels between neighbouring taps of the kernel.
    pub dilation: [usize; 2],
    /// Groups of channels that are convolved separately.
    pub groups: usize,
    /// Whether a bias is added.
    pub bias: bool,
}

impl Conv {
    /// A square convolution with stride 1, one group, no bias, padded so that stride 1 keeps the size of odd kernels.
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

    /// The shape of the weight, `[out, in / groups, kernel height, kernel width]`.
    pub const fn weight_shape(&self) -> [usize; 4] {
        [self.out_channels, self.in_channels / self.groups, self.kernel[0], self.kernel[1]]
    }

    /// Output size for an input of `size` pixels along `axis` (0 = height), or `None` if no window fits.
    pub fn output(&self, axis: usize, size: usize) -> Option<usize> {
        let span = self.dilation[axis] * (self.kernel[axis] - 1) + 1;
        Some((size + 2 * self.padding[axis]).checked_sub(span)? / self.stride[axis] + 1)
    }
}

/// A convolution whose weight is shifted and scaled to mean 0 and variance 1 for each output channel before use
/// (weight standardisation, arXiv 1903.10520; timm's `StdConv2d`).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StdConv {
    /// The convolution.
    pub conv: Conv,
    /// Added to the weight's variance.
    pub eps: f64,
}

/// A batch normalisation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BatchNorm {
    /// Added to the variance.
    pub eps: f64,
}

/// A group normalisation (arXiv 1803.08494): each image's groups of channels to mean 0 and variance 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GroupNorm {
    /// Number of groups; it divides the channels.
    pub groups: usize,
    /// Added to the variance.
    pub eps: f64,
}

/// EvoNorm-S0 (arXiv 2004.02967): `x · sigmoid(v · x) / √(var + eps) · weight + bias`, with the biased variance of each
/// image's groups of channels.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EvoNorm {
    /// Number of groups; it divides the channels.
    pub groups: usize,
    /// Added to the variance.
    pub eps: f64,
}

/// A filter response normalisation with a thresholded linear unit (arXiv 1911.09737):
/// `max(x / √(mean of x² + eps) · weight + bias, tau)`, with the mean over the pixels of each image's channel.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FilterResponseNorm {
    /// Added to the mean of squares.
    pub eps: f64,
}

/// A pooling window. Pairs are `[height, width]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolSpec {
    /// Window size in pixels.
    pub kernel: [usize; 2],
    /// Input pixels between neighbouring windows.
    pub stride: [usize; 2],
    /// Pixels added on both sides of each axis.
    pub padding: [usize; 2],
}

impl PoolSpec {
    /// A square window without padding.
    pub const fn square(kernel: usize, stride: usize) -> PoolSpec {
        PoolSpec { kernel: [kernel; 2], stride: [stride; 2], padding: [0; 2] }
    }

    /// Output size for an input of `size` pixels along `axis` (0 = height), or `None` if no window fits.
    pub fn output(&self, axis: usize, size: usize) -> Option<usize> {
        Some((size + 2 * self.padding[axis]).checked_sub(self.kernel[axis])? / self.stride[axis] + 1)
    }
}

/// A mean over windows (PyTorch's `AvgPool2d`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AvgPool {
    /// The windows; padding is zeros.
    pub window: PoolSpec,
    /// What happens to input pixels that fill no whole window.
    pub rounding: Rounding,
    /// What the sum over a window is divided by.
    pub divisor: Divisor,
}

/// What happens to the last pixels of an axis when they fill no whole window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rounding {
    /// They are dropped.
    Floor,
    /// They get a window that reaches over the border (PyTorch's `ceil_mode`).
    Ceil,
}

/// What a mean over a window divides by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Divisor {
    /// The pixels of the window, those of the padding included (PyTorch's `count_include_pad=True`).
    Window,
    /// The pixels of the window that are the input's.
    Pixels,
}

impl AvgPool {
    /// Output size for an input of `size` pixels along `axis` (0 = height), or `None` if no window fits.
    pub fn output(&self, axis: usize, size: usize) -> Option<usize> {
        let PoolSpec { kernel, stride, padding } = self.window;
        match self.rounding {
            Rounding::Floor => self.window.output(axis, size),
            Rounding::Ceil => {
                let padded = size + 2 * padding[axis];
                let windows = (padded + stride[axis] - 1).checked_sub(kernel[axis])? / stride[axis] + 1;
                // A window may reach over the border, but not start behind it.
                let last_is_outside = (windows - 1) * stride[axis] >= size + padding[axis];
                (size > 0).then_some(windows - usize::from(last_is_outside))
            }
        }
    }

    /// What the sum of the window at `position` along `axis` is divided by, for an input of `size` pixels there; the
    /// divisor of a window is the product of both axes'.
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

/// A mean over `output` windows along each axis: window `i` of `n` reaches from pixel `⌊i · size / n⌋` up to
/// `⌈(i + 1) · size / n⌉` (PyTorch's `AdaptiveAvgPool2d`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AdaptiveAvgPool {
    /// Pixels of the result, `[height, width]`.
    pub output: [usize; 2],
}

impl AdaptiveAvgPool {
    /// The pixels of window `i` along `axis` of an input of `size` pixels: the first, and the one after the last.
    pub fn window(&self, axis: usize, size: usize, i: usize) -> [usize; 2] {
        let n = self.output[axis];
        [i * size / n, ((i + 1) * size).div_ceil(n)]
    }
}

/// The 3×3 binomial filter `[1, 2, 1]ᵀ [1, 2, 1] / 16` with one reflected pixel around the input (arXiv 1904.11486;
/// timm's `BlurPool2d`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blur {
    /// Input pixels between neighbouring output pixels, both axes.
    pub stride: usize,
}

impl Blur {
    /// Output size for an input of `size` pixels, or `None` if there is no pixel to reflect.
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

/// Taking every `stride`-th pixel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subsample {
    /// Input pixels between neighbouring output pixels, both axes.
    pub stride: usize,
}

/// Channels of zeros around those of the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PadChannels {
    /// Zero channels before.
    pub before: usize,
    /// Zero channels after.
    pub after: usize,
}

/// Zeros around the pixels of the input; unlike the padding of a max-pool they can win. Pairs are `[height, width]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pad {
    /// Pixels above and to the left.
    pub before: [usize; 2],
    /// Pixels below and to the right.
    pub after: [usize; 2],
}

/// All pixels of all channels in one row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flatten {
    /// Height and width of the input.
    pub pixels: [usize; 2],
}

/// CLIP's pool (arXiv 2103.00020): multi-head attention whose one query is the mean of all pixels, with a learned position
/// embedding, which is resampled for inputs of other sizes than that of training.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttentionPool {
    /// Heads; they divide the channels.
    pub heads: usize,
    /// Rows and columns of the position embedding.
    pub grid: [usize; 2],
}

impl AttentionPool {
    /// The shape of the position embedding for `channels` channels.
    pub const fn position_shape(&self, channels: usize) -> [usize; 2] {
        [1 + self.grid[0] * self.grid[1], channels]
    }
}

/// A fully connected layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Linear {
    /// Features of the input.
    pub in_features: usize,
    /// Features of the result.
    pub out_features: usize,
    /// How its weight is stored.
    pub form: LinearForm,
}

/// How a fully connected layer's weight is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LinearForm {
    /// `[K, C]`.
    #[default]
    Matrix,
    /// `[K, C, 1, 1]`: PyTorch's module is a 1×1 convolution of a single pixel.
    Pointwise,
}

impl Linear {
    /// The shape of the weight.
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

    /// Sizes and divisors that `torch.nn.AvgPool2d` has for one axis.
    #[test]
    fn windows_of_a_mean_are_pytorchs() {
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
