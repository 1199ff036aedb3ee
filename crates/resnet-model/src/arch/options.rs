//! Data that several families share.

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// How all pixels become one, before the head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum GlobalPool {
    /// Their mean: `[N, C]`.
    #[default]
    Avg,
    /// Their maximum: `[N, C]`.
    Max,
    /// The mean of both (timm's `avgmax`): `[N, C]`.
    AvgMax,
    /// Both, first the mean (timm's `catavgmax`): `[N, 2C]`.
    CatAvgMax,
}

impl GlobalPool {
    /// Features per channel.
    pub const fn multiple(self) -> usize {
        match self {
            GlobalPool::Avg | GlobalPool::Max | GlobalPool::AvgMax => 1,
            GlobalPool::CatAvgMax => 2,
        }
    }
}

/// What normalises the channels after (or before) a convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Norm {
    /// Batch normalisation (arXiv 1502.03167).
    #[default]
    Batch,
    /// Group normalisation with 32 groups (arXiv 1803.08494).
    Group,
    /// EvoNorm-S0 with 32 groups (arXiv 2004.02967), which is an activation too; pre-activation networks only.
    Evo,
    /// Filter response normalisation (arXiv 1911.09737), whose threshold is an activation too; pre-activation networks
    /// only.
    FilterResponse,
}

impl Norm {
    /// Whether it activates its result, so that no ReLU follows.
    pub fn activates(self) -> bool {
        matches!(self, Norm::Evo | Norm::FilterResponse)
    }
}

/// Groups of [`Norm::Group`] and [`Norm::Evo`].
pub(crate) const NORM_GROUPS: usize = 32;

/// What a family is asked for beyond its variants; `None` leaves a setting as it is. See [`Arch::with`](crate::Arch::with).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ArchOptions {
    /// Number of classes; 0 removes the head, so that the result is the pooled features.
    pub num_classes: Option<usize>,
    /// Channels of the input.
    pub in_channels: Option<usize>,
    /// How all pixels become one.
    pub pool: Option<GlobalPool>,
    /// Input pixels per pixel of the last features, along each axis: stages beyond it are dilated instead (8 and 16 are
    /// usual, 32 is what ImageNet networks have without it).
    pub output_stride: Option<usize>,
}

/// Refuses a size that no network has, so that a hostile description cannot ask for unbounded memory.
pub(crate) fn within(what: &str, value: usize, max: usize) -> Result<()> {
    match value {
        0 => Err(Error::Arch(format!("{what} is 0"))),
        v if v > max => Err(Error::Arch(format!("{what} is {v}, more than {max}"))),
        _ => Ok(()),
    }
}

/// The largest number of classes.
const MAX_CLASSES: usize = 10_000_000;

/// Refuses inputs and heads that no network has.
pub(crate) fn check_ends(in_channels: usize, num_classes: usize) -> Result<()> {
    within("in_channels", in_channels, 1 << 14)?;
    if num_classes > MAX_CLASSES {
        return Err(Error::Arch(format!("num_classes is {num_classes}, more than {MAX_CLASSES}")));
    }
    Ok(())
}

pub(crate) fn check_eps(eps: f64) -> Result<()> {
    match eps > 0.0 && eps < 1.0 {
        true => Ok(()),
        false => Err(Error::Arch(format!("norm_eps is {eps}, expected between 0 and 1"))),
    }
}

pub(crate) fn check_output_stride(stride: Option<usize>) -> Result<()> {
    match stride {
        Some(s) if !s.is_power_of_two() || s > 1 << 16 => {
            Err(Error::Arch(format!("output_stride is {s}, expected a power of two up to 65536")))
        }
        _ => Ok(()),
    }
}

/// Batch norm's epsilon in PyTorch.
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

/// The English article before a number of layers: `an 8-layer`, `an 18-layer`, `a 34-layer`.
pub(crate) fn article(number: usize) -> &'static str {
    let vowel = number.to_string().starts_with('8') || [11, 18].contains(&number);
    if vowel { "an" } else { "a" }
}

#[cfg(test)]
mod tests {
    #[test]
    fn articles_go_by_the_sound() {
        let with = |n| format!("{} {n}", super::article(n));
        let all: Vec<String> = [1, 8, 10, 11, 18, 34, 80, 110, 118, 800].map(with).to_vec();
        assert_eq!(
            all,
            ["a 1", "an 8", "a 10", "an 11", "an 18", "a 34", "an 80", "a 110", "a 118", "an 800"]
        );
    }
}
