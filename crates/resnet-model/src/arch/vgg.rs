//! VGG: plain stacks of 3×3 convolutions.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::options::{article, check_ends, is_default, within};
use crate::Result;

/// A VGG network (arXiv 1409.1556), as torchvision's `vgg.py` writes it. Its head sees a grid of 7×7 pixels, so that it
/// has no other global pool.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vgg {
    /// The stages; each ends with a 2×2 max-pool.
    pub stages: Vec<VggStage>,
    /// What normalises the channels after each convolution.
    #[serde(default, skip_serializing_if = "is_default")]
    pub norm: VggNorm,
    /// Channels of the input.
    pub in_channels: usize,
    /// Number of classes; 0 = no last layer, the result is the 4096 features before it.
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

/// What normalises the channels of a VGG network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum VggNorm {
    /// Nothing: the paper.
    #[default]
    None,
    /// Batch normalisation (torchvision's `_bn`).
    Batch,
}

impl Vgg {
    /// The paper's network with `depths` convolutions per stage: widths 64, 128, 256, 512 and 512, 3 input channels,
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

    /// Refuses sizes that no network has, so that a hostile description cannot ask for unbounded memory.
    pub(crate) fn validate(&self) -> Result<()> {
        within("number of stages", self.stages.len(), 16)?;
        for stage in &self.stages {
            within("depth of a stage", stage.depth, 1000)?;
            within("width of a stage", stage.width, 1 << 14)?;
        }
        check_ends(self.in_channels, self.num_classes)
    }
}
