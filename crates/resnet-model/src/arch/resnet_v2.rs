//! Residual networks with the norm before the convolution (pre-activation).

use std::fmt;

use serde::{Deserialize, Serialize};

use super::options::{
    EPS, article, check_ends, check_eps, check_output_stride, check_size, default_eps, is_default,
    is_default_eps,
};
use super::{Block, GlobalPool, Norm, StrideIn};
use crate::{Error, Result};

/// A pre-activation residual network (He et al. 2016, arXiv 1603.05027) or BiT network (arXiv 1912.11370), as in timm's
/// `resnetv2.py`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResNetV2 {
    /// The layers before the first stage.
    pub stem: StemV2,
    /// The type of all blocks.
    pub block: Block,
    /// The stages; each except the first halves height and width.
    pub stages: Vec<StageV2>,
    /// The shortcut in the first block of a stage.
    #[serde(default, skip_serializing_if = "is_default")]
    pub projection: ProjectionV2,
    /// The convolution that has the stride in a strided bottleneck block.
    #[serde(default, skip_serializing_if = "is_default")]
    pub stride_in: StrideIn,
    /// The normalization layer.
    #[serde(default, skip_serializing_if = "is_default")]
    pub norm: Norm,
    /// Epsilon of the norms.
    #[serde(default = "default_eps", skip_serializing_if = "is_default_eps")]
    pub norm_eps: f64,
    /// Epsilon of weight standardization (BiT); `None` disables it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub standardize: Option<f64>,
    /// The pooling over all pixels before the head.
    #[serde(default, skip_serializing_if = "is_default")]
    pub pool: GlobalPool,
    /// Maximum stride of the last stage in input pixels: later stages are dilated instead of strided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_stride: Option<usize>,
    /// Channels of the input.
    pub in_channels: usize,
    /// Number of classes; 0 = no head, the output is the pooled features.
    pub num_classes: usize,
}

/// Blocks of equal width.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StageV2 {
    /// Number of blocks.
    pub depth: usize,
    /// Output channels of the stage; the inner convolutions of bottleneck blocks have a quarter.
    pub channels: usize,
}

/// The layers before the first stage. The output is usually not normalized: the first block starts with a norm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum StemV2 {
    /// 7×7 convolution with stride 2, then 3×3 max-pool with stride 2.
    Conv7 {
        /// Channels of the convolution.
        width: usize,
    },
    /// [`StemV2::Conv7`] with zero padding before the max pooling, so that 0 can be the maximum (timm's `fixed`, BiT).
    Conv7ZeroPadded {
        /// Channels of the convolution.
        width: usize,
    },
    /// [`StemV2::Conv7`] with a norm of the input, and a norm and a ReLU before the pooling (GluonCV and the ONNX model
    /// zoo).
    NormConv7 {
        /// Channels of the convolution.
        width: usize,
    },
    /// Three 3×3 convolutions, the first with stride 2, then 3×3 max-pool with stride 2.
    Deep {
        /// Channels of the convolutions.
        widths: [usize; 3],
    },
    /// 3×3 convolution with stride 1, no pooling: the CIFAR networks of the paper.
    Conv3 {
        /// Channels of the convolution.
        width: usize,
    },
}

impl StemV2 {
    /// Returns the stride of the stem in input pixels, along each axis.
    pub const fn stride(self) -> usize {
        match self {
            StemV2::Conv3 { .. } => 1,
            _ => 4,
        }
    }

    /// Returns the channels of all convolutions.
    pub(crate) fn widths(self) -> Vec<usize> {
        match self {
            StemV2::Conv7 { width }
            | StemV2::Conv7ZeroPadded { width }
            | StemV2::NormConv7 { width }
            | StemV2::Conv3 { width } => vec![width],
            StemV2::Deep { widths } => widths.to_vec(),
        }
    }
}

/// The shortcut in the first block of a stage. Its input is the normalized input of the block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ProjectionV2 {
    /// A 1×1 convolution.
    #[default]
    Conv,
    /// 2×2 average pooling in strided blocks, then a 1×1 convolution.
    AvgConv,
}

impl ResNetV2 {
    /// Returns timm's ResNet-v2 with `depths` blocks per stage: 7×7 stem of width 64, batch norm, 3 input channels, 1000 classes.
    pub fn imagenet(block: Block, depths: &[usize]) -> ResNetV2 {
        let stage = |(i, &depth): (usize, &usize)| StageV2 { depth, channels: (64 * block.expansion()) << i };
        ResNetV2 {
            stem: StemV2::Conv7 { width: 64 },
            block,
            stages: depths.iter().enumerate().map(stage).collect(),
            projection: ProjectionV2::Conv,
            stride_in: StrideIn::Conv3x3,
            norm: Norm::Batch,
            norm_eps: EPS,
            standardize: None,
            pool: GlobalPool::Avg,
            output_stride: None,
            in_channels: 3,
            num_classes: 1000,
        }
    }

    /// Returns a BiT network: `width` times as wide, weight standardization, group norm, zero-padded max pooling.
    pub fn bit(depths: &[usize], width: usize) -> ResNetV2 {
        let mut net = ResNetV2::imagenet(Block::Bottleneck, depths);
        net.stages.iter_mut().for_each(|stage| stage.channels *= width);
        let stem = StemV2::Conv7ZeroPadded { width: 64 * width };
        ResNetV2 { stem, norm: Norm::Group, standardize: Some(1e-8), ..net }
    }

    /// Returns the bottleneck network of the paper for CIFAR-10: 9n + 2 layers, widths 64, 128 and 256, stride in the first 1×1
    /// convolution, 3 input channels, 10 classes. `None` unless `depth` is 9n + 2 with n ≥ 1.
    pub fn cifar(depth: usize) -> Option<ResNetV2> {
        let n = depth.checked_sub(2)?;
        if n == 0 || n % 9 != 0 {
            return None;
        }
        Some(ResNetV2 {
            stem: StemV2::Conv3 { width: 16 },
            stages: [64, 128, 256].map(|channels| StageV2 { depth: n / 9, channels }).to_vec(),
            stride_in: StrideIn::Conv1x1,
            num_classes: 10,
            ..ResNetV2::imagenet(Block::Bottleneck, &[])
        })
    }

    /// Returns the number of layers with weights as the paper counts them: convolutions on the main path and the head.
    pub fn layers(&self) -> usize {
        2 + self.stages.iter().map(|s| s.depth * self.block.layers()).sum::<usize>()
    }

    pub(super) fn describe(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let layers = self.layers();
        write!(f, "{} {layers}-layer pre-activation ResNet (", article(layers))?;
        for (i, s) in self.stages.iter().enumerate() {
            write!(f, "{}{}×{}", if i > 0 { ", " } else { "" }, s.depth, s.channels)?;
        }
        f.write_str(")")
    }

    /// Checks all sizes, so that an untrusted description cannot request unbounded memory.
    pub(crate) fn validate(&self) -> Result<()> {
        check_size("number of stages", self.stages.len(), 16)?;
        for stage in &self.stages {
            check_size("stage depth", stage.depth, 1000)?;
            check_size("stage channels", stage.channels, 1 << 16)?;
            check_size("inner width of a block", self.inner_width(*stage), 1 << 16)?;
        }
        self.stem.widths().into_iter().try_for_each(|width| check_size("stem width", width, 1 << 14))?;
        if self.norm.activates() && matches!(self.stem, StemV2::NormConv7 { .. }) {
            return Err(Error::UnsupportedCombination {
                feature: "a normalized input",
                other: "a norm that includes an activation",
            });
        }
        check_ends(self.in_channels, self.num_classes)?;
        check_eps(self.norm_eps)?;
        self.standardize.map_or(Ok(()), check_eps)?;
        check_output_stride(self.output_stride)
    }

    /// Returns the channels between the convolutions of a block.
    pub(crate) fn inner_width(&self, stage: StageV2) -> usize {
        stage.channels / self.block.expansion()
    }
}
