//! The Inception networks that the ResNet papers compare with.

use serde::{Deserialize, Serialize};

use super::GlobalPool;
use super::options::{check_ends, check_eps, is_default};
use crate::Result;

/// An Inception network: which one is said by the [`Arch`](super::Arch); its widths are the paper's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Inception {
    /// What the batch norms add to the variance.
    #[serde(default = "inception_eps", skip_serializing_if = "is_inception_eps")]
    pub norm_eps: f64,
    /// How all pixels become one, before the head.
    #[serde(default, skip_serializing_if = "is_default")]
    pub pool: GlobalPool,
    /// Channels of the input.
    pub in_channels: usize,
    /// Number of classes; 0 = no head, the result is the pooled features.
    pub num_classes: usize,
}

/// Batch norm's epsilon in the Inception networks.
const INCEPTION_EPS: f64 = 1e-3;

impl Inception {
    /// The paper's network: 3 input channels, 1000 classes.
    pub fn imagenet() -> Inception {
        Inception { norm_eps: INCEPTION_EPS, pool: GlobalPool::Avg, in_channels: 3, num_classes: 1000 }
    }

    /// Refuses sizes that no network has, so that a hostile description cannot ask for unbounded memory.
    pub(crate) fn validate(&self) -> Result<()> {
        check_ends(self.in_channels, self.num_classes)?;
        check_eps(self.norm_eps)
    }
}

fn inception_eps() -> f64 {
    INCEPTION_EPS
}

fn is_inception_eps(value: &f64) -> bool {
    *value == INCEPTION_EPS
}
