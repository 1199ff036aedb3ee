//! VGG: plain stacks of 3×3 convolutions.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::options::{article, check_ends, check_size, is_default};
use crate::Result;

/// A VGG network (arXiv 1409.1556), as in torchvision's `vgg.py`. Its head reads a 7×7 feature map, so that the global
/// pooling cannot be chosen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vgg {
    /// The stages; each ends with a 2×2 max-pool.
    pub stages: Vec<VggStage>,
    /// The normalization layer after each convolution.
    #[serde(default, skip_serializing_if = "is_default")]
    pub norm: VggNorm,
    /// Channels of the input.
    pub in_channels: usize,
    /// Number of classes; 0 = no last layer, the output is the 4096 features before it.
    pub num_classes: usize,
}

/// 3×3 convolutions of equal width.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VggStage {
    /// Number of convolutions.
    pub depth: usize,
    /// Channels of the convolutions.
    pub width: usize,
}

/// The normalization layer of a VGG network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum VggNorm {
    /// None, as in the paper.
    #[default]
    None,
    /// Batch normalization (torchvision's `_bn`).
    Batch,
}

impl Vgg {
    /// Returns the network of the paper with `depths` convolutions per stage: widths 64, 128, 256, 512 and 512, 3 input channels,
    /// 1000 classes.
    pub fn imagenet(depths: [usize; 5]) -> Vgg {
        let widths = [64, 128, 256, 512, 512];
        let stages = depths.into_iter().zip(widths).map(|(depth, width)| VggStage { depth, width });
        Vgg { stages: stages.collect(), norm: VggNorm::None, in_channels: 3, num_classes: 1000 }
    }

    pub(super) fn describe(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let layers = 3 + self.stages.iter().map(|s| s.depth).sum::<usize>();
        write!(f, "{} {layers}-layer VGG", article(layers))
    }

    /// Checks all sizes, so that an untrusted description cannot request unbounded memory.
    pub(crate) fn validate(&self) -> Result<()> {
        check_size("number of stages", self.stages.len(), 16)?;
        for stage in &self.stages {
            check_size("stage depth", stage.depth, 1000)?;
            check_size("stage width", stage.width, 1 << 14)?;
        }
        check_ends(self.in_channels, self.num_classes)
    }
}
