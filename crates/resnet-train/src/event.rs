//! What a run tells while it goes on.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Event {
    /// The run begins or goes on.
    Started {
        /// Images trained on.
        train: usize,
        /// Images held out.
        held_out: usize,
        /// Classes.
        classes: usize,
        /// Steps of the whole run.
        steps: u64,
        /// Steps that had been done when the run was interrupted.
        resumed: Option<u64>,
    },
    /// A state was skipped on resuming, or an image in training.
    Skipped {
        /// Which and why.
        why: String,
    },
    /// A step was done.
    Step {
        /// Steps done.
        step: u64,
        /// Steps of the whole run.
        steps: u64,
        /// The epoch, counted from 0.
        epoch: usize,
        /// Mean loss of the step's images.
        loss: f64,
        /// The learning rate.
        rate: f64,
        /// The norm of all gradients.
        norm: f64,
        /// The step's images.
        images: usize,
    },
    /// An epoch was done.
    Epoch(Record),
    /// The state was saved.
    Saved {
        /// The file.
        path: PathBuf,
    },
    /// The network is the best so far, or the last where that is wanted, and was saved.
    Best {
        /// The file.
        path: PathBuf,
    },
}

/// The figures of an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// The epoch, counted from 0.
    pub epoch: usize,
    /// Steps done.
    pub step: u64,
    /// Mean training loss.
    pub loss: f64,
    /// Share of training images right, as they were varied.
    pub train_top1: f64,
    /// The last learning rate.
    pub rate: f64,
    /// Mean cross entropy of the images held out.
    pub held_out_loss: Option<f64>,
    /// Share of images held out that are right.
    pub held_out_top1: Option<f64>,
}
