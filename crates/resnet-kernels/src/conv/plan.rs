use super::winograd::{F2, F4, Points, S2};
use crate::error::Error;
use crate::layout::LANES;
use crate::shape::ConvShape;
use crate::simd::Isa;

/// Accuracy relative to a direct sum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Precision {
    /// Allows Winograd: relative error about 5e-7, two to three times that of a direct sum.
    #[default]
    F32,
    /// Direct sums only.
    Exact,
}

/// Convolution algorithm; all compute the same result up to rounding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// Direct convolution of a planar `[N, C, H, W]` input, for few input channels: blocks of 16 would be mostly
    /// padding.
    Planar,
    /// 1×1 convolution: a matrix product over the pixels of a blocked input.
    Pointwise,
    /// Direct convolution of a blocked input with any kernel, stride, padding, dilation and groups.
    Direct,
    /// Winograd F(2×2, 3×3): 2.25 times fewer products, 1.8 times the weights.
    Winograd2,
    /// Winograd F(4×4, 3×3) with points 0, ±5/8, ±3/2, ∞: 4 times fewer products, 4 times the weights.
    Winograd4,
    /// Winograd F(2×4, 3×3), F(2, 3) vertically and F(4, 3) horizontally: 3 times fewer products, 2.7 times the
    /// weights.
    Winograd2x4,
    /// Winograd for 3×3 with stride 2, tiles of 2 × 2 outputs: 1.44 times fewer products, 2.8 times the weights.
    WinogradStrided,
}

impl Algorithm {
    /// All algorithms.
    pub const ALL: [Self; 7] = [
        Self::Planar,
        Self::Pointwise,
        Self::Direct,
        Self::Winograd2,
        Self::Winograd2x4,
        Self::Winograd4,
        Self::WinogradStrided,
    ];
}

/// Expected input, used to choose the fastest plan. A packed convolution runs on any batch size and image size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct InputHint {
    /// Batch size.
    pub batch: usize,
    /// `[height, width]` in pixels.
    pub input: [usize; 2],
}

/// Algorithm and instruction set of a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Plan {
    /// Algorithm.
    pub algorithm: Algorithm,
    /// Instruction set.
    pub isa: Isa,
}

impl Plan {
    /// Returns the plan that is expected to be fastest within `precision`. Pure function of its arguments.
    pub fn choose(shape: &ConvShape, hint: InputHint, isa: Isa, precision: Precision) -> Self {
        let algorithm = if shape.groups == 1 && shape.c_in < LANES {
            Algorithm::Planar
        } else if shape.kernel == [1, 1] && shape.padding == [0, 0] && shape.groups == 1 {
            Algorithm::Pointwise
        } else if precision == Precision::F32 {
            cheapest(shape, hint)
        } else {
            Algorithm::Direct
        };
        Self { algorithm, isa }
    }
}

/// Cost of loading a byte of weights from memory, in multiply-adds, and the size from which on weights do not stay in
/// the cache until the next image. Measured on Zen 4.
const MACS_PER_BYTE: f64 = 1.2;
const CACHED_BYTES: f64 = 6e6;

/// Ratio of costs that count as equal; among those, the algorithm with the fewest weights is chosen to save memory.
const COST_TOLERANCE: f64 = 1.06;

/// Returns the cheapest algorithm for a convolution of a blocked input.
fn cheapest(shape: &ConvShape, hint: InputHint) -> Algorithm {
    let Ok(output) = shape.output_hw(hint.input) else { return Algorithm::Direct };
    let channels = (shape.c_in * shape.c_out) as f64;
    // The transforms cost a constant number of operations per channel, the products one per pair of channels.
    let transforms = 1.0 + 12.0 * (1.0 / shape.c_in as f64 + 1.0 / shape.c_out as f64);
    let cost = |down: f64, across: f64, weights: usize, overhead: f64| {
        let bytes = channels * weights as f64 * 4.0;
        let traffic = if bytes > CACHED_BYTES { bytes * MACS_PER_BYTE } else { 0.0 };
        (channels * hint.batch as f64 * down * across * overhead + traffic, weights)
    };
    let [two, four] = [F2::products, F4::products];
    let [h, w] = output;
    let costs = [
        (Algorithm::Winograd4, cost(four(h), four(w), 36, transforms)),
        (Algorithm::Winograd2x4, cost(two(h), four(w), 24, transforms)),
        (Algorithm::Winograd2, cost(two(h), two(w), 16, transforms)),
        (Algorithm::WinogradStrided, cost(S2::products(h), S2::products(w), 25, transforms)),
        (Algorithm::Direct, cost(9.0 * h as f64, w as f64, 9, 1.0)),
    ]
    .map(|(algorithm, (cost, weights))| (algorithm, cost, weights));
    let possible = || costs.into_iter().filter(|(algorithm, ..)| algorithm.supports(shape).is_ok());
    let lowest = possible().map(|(_, cost, _)| cost).fold(f64::INFINITY, f64::min);
    let fast = possible().filter(|(_, cost, _)| *cost <= lowest * COST_TOLERANCE);
    fast.min_by_key(|(.., weights)| *weights).map_or(Algorithm::Direct, |(algorithm, ..)| algorithm)
}

impl Algorithm {
    /// Returns the first part of the kernel name.
    pub fn name(&self) -> &'static str {
        match self {
            Algorithm::Planar => "planar",
            Algorithm::Pointwise => "pointwise",
            Algorithm::Direct => "direct",
            Algorithm::Winograd2 => "winograd2",
            Algorithm::Winograd2x4 => "winograd2x4",
            Algorithm::Winograd4 => "winograd4",
            Algorithm::WinogradStrided => "winograds2",
        }
    }

    /// Checks that this algorithm supports a shape.
    ///
    /// # Errors
    ///
    /// [`Error::Algorithm`] if it does not.
    pub fn supports(&self, shape: &ConvShape) -> Result<(), Error> {
        let unsupported = |what| Err(Error::Algorithm { algorithm: self.name(), what });
        match self {
            Algorithm::Direct => Ok(()),
            Algorithm::Planar if shape.groups != 1 => unsupported("groups"),
            Algorithm::Planar => Ok(()),
            Algorithm::Pointwise if shape.kernel != [1, 1] => unsupported("kernels other than 1x1"),
            Algorithm::Pointwise => Ok(()),
            Algorithm::WinogradStrided => match *shape {
                ConvShape { kernel: [3, 3], stride: [2, 2], dilation: [1, 1], groups: 1, .. } => Ok(()),
                _ => unsupported("shapes other than 3x3 with stride 2, dilation 1 and 1 group"),
            },
            Algorithm::Winograd2 | Algorithm::Winograd2x4 | Algorithm::Winograd4 => match *shape {
                ConvShape { kernel: [3, 3], stride: [1, 1], dilation: [1, 1], groups: 1, .. } => Ok(()),
                _ => unsupported("shapes other than 3x3 with stride 1, dilation 1 and 1 group"),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(shape: ConvShape, size: usize, batch: usize, expected: Algorithm) {
        let hint = InputHint { batch, input: [size, size] };
        let plan = Plan::choose(&shape, hint, Isa::best(), Precision::F32);
        assert_eq!(plan.algorithm, expected, "{shape:?} {hint:?}");
        let exact = Plan::choose(&shape, hint, Isa::best(), Precision::Exact).algorithm;
        assert!(matches!(exact, Algorithm::Planar | Algorithm::Pointwise | Algorithm::Direct));
        assert!(exact.supports(&shape).is_ok() && expected.supports(&shape).is_ok());
    }

    #[test]
    fn plans_for_resnet_layers() {
        let k3 =
            |c_in, c_out| ConvShape { kernel: [3, 3], padding: [1, 1], ..ConvShape::pointwise(c_in, c_out) };
        check(
            ConvShape { kernel: [7, 7], stride: [2, 2], padding: [3, 3], ..ConvShape::pointwise(3, 64) },
            224,
            1,
            Algorithm::Planar,
        );
        check(k3(64, 64), 56, 1, Algorithm::Winograd4);
        check(k3(128, 128), 28, 1, Algorithm::Winograd4);
        check(k3(256, 256), 14, 1, Algorithm::Winograd4);
        check(k3(512, 512), 7, 1, Algorithm::Winograd2x4);
        check(k3(512, 512), 7, 8, Algorithm::Winograd4);
        check(ConvShape { stride: [2, 2], ..k3(64, 128) }, 56, 1, Algorithm::WinogradStrided);
        check(ConvShape { stride: [2, 2], ..k3(512, 512) }, 14, 1, Algorithm::Direct);
        check(ConvShape { dilation: [2, 2], padding: [2, 2], ..k3(256, 256) }, 28, 1, Algorithm::Direct);
        check(ConvShape { groups: 32, ..k3(128, 128) }, 56, 1, Algorithm::Direct);
        check(ConvShape { stride: [2, 2], ..ConvShape::pointwise(64, 128) }, 56, 1, Algorithm::Pointwise);
        check(ConvShape::pointwise(2048, 512), 7, 1, Algorithm::Pointwise);
        check(ConvShape { padding: [1, 1], ..ConvShape::pointwise(16, 16) }, 7, 1, Algorithm::Direct);
    }

    #[test]
    fn unsupported_shapes_are_rejected() {
        let shape = ConvShape { kernel: [3, 3], groups: 2, ..ConvShape::pointwise(32, 32) };
        for algorithm in [Algorithm::Planar, Algorithm::Pointwise, Algorithm::Winograd2, Algorithm::Winograd4]
        {
            let error = algorithm.supports(&shape).unwrap_err().to_string();
            assert!(error.contains(algorithm.name()), "{error}");
        }
        assert!(Algorithm::Direct.supports(&shape).is_ok());
    }
}
