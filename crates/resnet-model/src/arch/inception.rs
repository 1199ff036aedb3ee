//! Inception networks.

use serde::{Deserialize, Serialize};

use super::GlobalPool;
use super::options::{check_ends, check_eps, is_default};
use crate::Result;

/// The options of an Inception network; the [`Arch`](super::Arch) variant selects the network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Inception {
    /// Epsilon of the batch norms.
    #[serde(default = "inception_eps", skip_serializing_if = "is_inception_eps")]
    pub norm_eps: f64,
    /// The pooling over all pixels before the head.
    #[serde(default, skip_serializing_if = "is_default")]
    pub pool: GlobalPool,
    /// Channels of the input.
    pub in_channels: usize,
    /// Number of classes; 0 = no head, the output is the pooled features.
    pub num_classes: usize,
}

/// Epsilon of batch norm in the Inception networks.
const INCEPTION_EPS: f64 = 1e-3;

impl Inception {
    /// Returns the network of the paper: 3 input channels, 1000 classes.
    pub fn imagenet() -> Inception {
        Inception { norm_eps: INCEPTION_EPS, pool: GlobalPool::Avg, in_channels: 3, num_classes: 1000 }
    }

    /// Checks all sizes, so that an untrusted description cannot request unbounded memory.
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
