//! The residual networks of CLIP.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::GlobalPool;
use super::options::{check_ends, check_output_stride, check_size};
use crate::{Error, Result};

/// A residual network of CLIP (arXiv 2103.00020, section 2.4), as in timm's `byobnet.py`: a stem of three 3×3 convolutions,
/// 2×2 average pooling instead of strides, attention pooling instead of global average pooling.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Clip {
    /// Output channels of the stem (`64` for RN50); stage `i` has `4 · width · 2^i`.
    pub width: usize,
    /// Bottleneck blocks per stage; each stage except the first halves height and width.
    pub depths: Vec<usize>,
    /// The pooling over all pixels.
    pub head: ClipHead,
    /// Maximum stride of the last stage in input pixels: later stages are dilated instead of strided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_stride: Option<usize>,
    /// Channels of the input.
    pub in_channels: usize,
    /// Output features: embedding size with attention pooling, otherwise classes; 0 = no last layer.
    pub num_classes: usize,
}

/// The pooling over all pixels of a CLIP network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum ClipHead {
    /// Attention pooling with 64 channels per head.
    Attention {
        /// Rows and columns of the position embedding: the size of the last feature map at the training resolution.
        grid: [usize; 2],
    },
    /// Global pooling (timm's `_gap`).
    Global {
        /// The pooling.
        pool: GlobalPool,
    },
}

/// Channels per attention head.
pub(crate) const HEAD_CHANNELS: usize = 64;

impl Clip {
    /// Returns a network with attention pooling for images of `size`×`size` pixels.
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

    /// Returns the output channels of stage `i`.
    pub(crate) fn channels(&self, i: usize) -> usize {
        (4 * self.width) << i
    }

    pub(super) fn describe(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a CLIP ResNet of width {} ({} blocks)", self.width, self.depths.iter().sum::<usize>())
    }

    /// Checks all sizes, so that an untrusted description cannot request unbounded memory.
    pub(crate) fn validate(&self) -> Result<()> {
        check_size("number of stages", self.depths.len(), 8)?;
        self.depths.iter().try_for_each(|&depth| check_size("stage depth", depth, 1000))?;
        check_size("stem width", self.width, 1 << 10)?;
        if !self.width.is_multiple_of(2) {
            return Err(Error::Indivisible { layer: "the stem".into(), channels: self.width, divisor: 2 });
        }
        if let ClipHead::Attention { grid } = self.head {
            grid.iter().try_for_each(|&side| check_size("position embedding size", side, 1 << 8))?;
            let channels = self.channels(self.depths.len() - 1);
            if !channels.is_multiple_of(HEAD_CHANNELS) {
                let layer = "the attention pooling".into();
                return Err(Error::Indivisible { layer, channels, divisor: HEAD_CHANNELS });
            }
        }
        check_ends(self.in_channels, self.num_classes)?;
        check_output_stride(self.output_stride)
    }
}
