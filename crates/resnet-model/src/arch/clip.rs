//! The residual networks of CLIP.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::GlobalPool;
use super::options::{check_ends, check_output_stride, within};
use crate::{Error, Result};

/// A residual network of CLIP (arXiv 2103.00020, section 2.4), as timm's `byobnet.py` writes it: a stem of three 3×3
/// convolutions, a 2×2 mean instead of every stride, attention instead of the global mean.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Clip {
    /// Channels of the stem's result (`64` for RN50); stage `i` has `4 · width · 2^i`.
    pub width: usize,
    /// Bottleneck blocks per stage; each stage but the first halves height and width.
    pub depths: Vec<usize>,
    /// How all pixels become one.
    pub head: ClipHead,
    /// Input pixels per pixel of the last stage, if that is limited: stages beyond it are dilated instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_stride: Option<usize>,
    /// Channels of the input.
    pub in_channels: usize,
    /// Features of the result: the embedding's with attention, classes else; 0 = no last layer.
    pub num_classes: usize,
}

/// How all pixels of a CLIP network become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum ClipHead {
    /// Attention from their mean to all of them, 64 channels per head.
    Attention {
        /// Rows and columns of the position embedding: the pixels of the last stage at the size of training.
        grid: [usize; 2],
    },
    /// A pool (timm's `_gap`).
    Global {
        /// Which.
        pool: GlobalPool,
    },
}

/// Channels of an attention head.
pub(crate) const HEAD_CHANNELS: usize = 64;

impl Clip {
    /// A network with attention for images of `size` pixels.
    pub fn new(width: usize, depths: [usize; 4], size: usize, embedding: usize) -> Clip {
        Clip {
            width,
            depths: depths.to_vec(),
            head: ClipHead::Attention { grid: [size / 32; 2] },
            output_stride: None,
            in_channels: 3,
            num_classes: embedding,
        }
    }

    /// Channels of the results of stage `i`.
    pub(crate) fn channels(&self, i: usize) -> usize {
        (4 * self.width) << i
    }

    pub(super) fn describe(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a CLIP ResNet of width {} ({} blocks)", self.width, self.depths.iter().sum::<usize>())
    }

    /// Refuses sizes that no network has, so that a hostile description cannot ask for unbounded memory.
    pub(crate) fn validate(&self) -> Result<()> {
        within("number of stages", self.depths.len(), 8)?;
        self.depths.iter().try_for_each(|&depth| within("depth of a stage", depth, 1000))?;
        within("stem width", self.width, 1 << 10)?;
        if !self.width.is_multiple_of(2) {
            return Err(Error::Arch(format!("a stem width of {} cannot be halved", self.width)));
        }
        if let ClipHead::Attention { grid } = self.head {
            grid.iter().try_for_each(|&side| within("grid of the position embedding", side, 1 << 8))?;
            let channels = self.channels(self.depths.len() - 1);
            if !channels.is_multiple_of(HEAD_CHANNELS) {
                return Err(Error::Arch(format!(
                    "{channels} channels do not make attention heads of {HEAD_CHANNELS}"
                )));
            }
        }
        check_ends(self.in_channels, self.num_classes)?;
        check_output_stride(self.output_stride)
    }
}
