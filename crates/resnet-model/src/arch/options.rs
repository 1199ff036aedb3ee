//! Options and checks that several families share.

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The pooling over all pixels before the head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum GlobalPool {
    /// The mean: `[N, C]`.
    #[default]
    Avg,
    /// The maximum: `[N, C]`.
    Max,
    /// The average of mean and maximum (timm's `avgmax`): `[N, C]`.
    AvgMax,
    /// Mean and maximum concatenated (timm's `catavgmax`): `[N, 2C]`.
    CatAvgMax,
}

impl GlobalPool {
    /// Returns the number of features per channel.
    pub const fn multiple(self) -> usize {
        match self {
            GlobalPool::Avg | GlobalPool::Max | GlobalPool::AvgMax => 1,
            GlobalPool::CatAvgMax => 2,
        }
    }
}

/// The normalization layer after (or before) a convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Norm {
    /// Batch normalization (arXiv 1502.03167).
    #[default]
    Batch,
    /// Group normalization with 32 groups (arXiv 1803.08494).
    Group,
    /// EvoNorm-S0 with 32 groups (arXiv 2004.02967), which includes the activation; pre-activation networks only.
    Evo,
    /// Filter response normalization (arXiv 1911.09737) with a thresholded activation; pre-activation networks only.
    FilterResponse,
}

impl Norm {
    /// Returns `true` if the layer includes an activation, so that no ReLU follows.
    pub fn activates(self) -> bool {
        matches!(self, Norm::Evo | Norm::FilterResponse)
    }
}

/// Groups of [`Norm::Group`] and [`Norm::Evo`].
pub(crate) const NORM_GROUPS: usize = 32;

/// Options that are independent of the variant; `None` keeps a setting. See [`Arch::with`](crate::Arch::with).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ArchOptions {
    /// Number of classes; 0 removes the head, so that the network outputs pooled features.
    pub num_classes: Option<usize>,
    /// Channels of the input.
    pub in_channels: Option<usize>,
    /// The pooling over all pixels.
    pub pool: Option<GlobalPool>,
    /// Stride of the last stage in input pixels: later stages are dilated instead of strided. Common values are 8 and 16;
    /// the default of ImageNet networks is 32.
    pub output_stride: Option<usize>,
}

/// Returns an error unless `value` is from 1 to `max`. The limits keep an untrusted description from requesting unbounded
/// memory.
pub(crate) fn check_size(option: &'static str, value: usize, max: usize) -> Result<()> {
    match (1..=max).contains(&value) {
        true => Ok(()),
        false => Err(invalid(option, value, format!("1 to {max}"))),
    }
}

/// Returns the error for an option outside its valid range.
pub(crate) fn invalid(option: &'static str, found: impl ToString, expected: impl Into<String>) -> Error {
    Error::InvalidOption { option, found: found.to_string(), expected: expected.into() }
}

/// The largest number of classes.
const MAX_CLASSES: usize = 10_000_000;

/// Checks the number of input channels and classes.
pub(crate) fn check_ends(in_channels: usize, num_classes: usize) -> Result<()> {
    check_size("in_channels", in_channels, 1 << 14)?;
    if num_classes > MAX_CLASSES {
        return Err(invalid("num_classes", num_classes, format!("0 to {MAX_CLASSES}")));
    }
    Ok(())
}

pub(crate) fn check_eps(eps: f64) -> Result<()> {
    match eps > 0.0 && eps < 1.0 {
        true => Ok(()),
        false => Err(invalid("norm_eps", eps, "a value between 0 and 1")),
    }
}

pub(crate) fn check_output_stride(stride: Option<usize>) -> Result<()> {
    match stride {
        Some(s) if !s.is_power_of_two() || s > 1 << 16 => {
            Err(invalid("output_stride", s, "a power of two up to 65536"))
        }
        _ => Ok(()),
    }
}

/// The default epsilon of batch norm in PyTorch.
pub(crate) const EPS: f64 = 1e-5;

pub(crate) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

pub(crate) fn one() -> usize {
    1
}

pub(crate) fn is_one(value: &usize) -> bool {
    *value == 1
}

pub(crate) fn default_eps() -> f64 {
    EPS
}

pub(crate) fn is_default_eps(value: &f64) -> bool {
    *value == EPS
}

/// Returns the English article before a number of layers: `an 8-layer`, `an 18-layer`, `a 34-layer`.
pub(crate) fn article(number: usize) -> &'static str {
    let vowel = number.to_string().starts_with('8') || [11, 18].contains(&number);
    if vowel { "an" } else { "a" }
}

#[cfg(test)]
mod tests {
    #[test]
    fn article_follows_pronunciation() {
        let with = |n| format!("{} {n}", super::article(n));
        let all: Vec<String> = [1, 8, 10, 11, 18, 34, 80, 110, 118, 800].map(with).to_vec();
        assert_eq!(
            all,
            ["a 1", "an 8", "a 10", "an 11", "an 18", "a 34", "an 80", "a 110", "a 118", "an 800"]
        );
    }
}
