//! Progress events of a run.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A progress event.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Event {
    /// The run starts or resumes.
    Started {
        /// Number of training images.
        train: usize,
        /// Number of validation images.
        val: usize,
        /// Number of classes.
        classes: usize,
        /// Steps of the whole run.
        steps: u64,
        /// Peak learning rate.
        lr: f64,
        /// Steps done before, if the run was resumed.
        resumed: Option<u64>,
    },
    /// An unreadable state was skipped on resuming, or an unreadable image.
    Skipped {
        /// File and cause.
        why: String,
    },
    /// A step is done.
    Step {
        /// Steps done.
        step: u64,
        /// Steps of the whole run.
        steps: u64,
        /// Epoch, from 0.
        epoch: usize,
        /// Mean loss of the step's images.
        loss: f64,
        /// Learning rate.
        lr: f64,
        /// L2 norm of all gradients.
        grad_norm: f64,
        /// Number of images in the step.
        images: usize,
    },
    /// An epoch is done.
    Epoch(EpochMetrics),
    /// The state was saved.
    Saved {
        /// State file.
        path: PathBuf,
    },
    /// The best network so far (or the last, with [`Keep::Last`](crate::config::Keep::Last)) was saved.
    Best {
        /// Checkpoint.
        path: PathBuf,
    },
}

/// Metrics of an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EpochMetrics {
    /// Epoch, from 0.
    pub epoch: usize,
    /// Steps done.
    pub step: u64,
    /// Mean training loss.
    pub loss: f64,
    /// Top-1 accuracy on the augmented training images, 0 to 1.
    pub train_top1: f64,
    /// Learning rate of the last step.
    pub lr: f64,
    /// Mean cross-entropy on the validation set.
    pub val_loss: Option<f64>,
    /// Top-1 accuracy on the validation set, 0 to 1.
    pub val_top1: Option<f64>,
}
