//! Residual networks with the norm after the convolution, and plain networks with the same layers.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::options::{
    EPS, article, check_ends, check_eps, check_output_stride, check_size, default_eps, invalid, is_default,
    is_default_eps, is_one, one,
};
use super::{GlobalPool, Norm};
use crate::{Error, Result};

/// A residual (or plain) network: stages of equal blocks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResNet {
    /// The layers before the first stage.
    pub stem: Stem,
    /// The strided layer between the convolutions of an ImageNet stem and the first stage.
    #[serde(default, skip_serializing_if = "is_default")]
    pub stem_pool: StemPool,
    /// The sides on which strided layers are padded.
    #[serde(default, skip_serializing_if = "is_default")]
    pub padding: Padding,
    /// The stages; each except the first halves height and width.
    pub stages: Vec<Stage>,
    /// The shortcuts.
    pub shortcut: Shortcut,
    /// The convolution that has the stride in a strided bottleneck block.
    #[serde(default, skip_serializing_if = "is_default")]
    pub stride_in: StrideIn,
    /// Groups of the 3×3 convolution in bottleneck blocks (ResNeXt's cardinality).
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub groups: usize,
    /// Channels per group at a stage width of 64 (`base_width` or `width_per_group` elsewhere).
    #[serde(default = "sixty_four", skip_serializing_if = "is_sixty_four")]
    pub group_width: usize,
    /// Width of the second convolution of a block divided by that of the first (SENet-154: 2).
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub first_reduction: usize,
    /// The channel attention of the blocks.
    #[serde(default, skip_serializing_if = "is_default")]
    pub attention: Attention,
    /// The filter before downsampling.
    #[serde(default, skip_serializing_if = "is_default")]
    pub anti_alias: AntiAlias,
    /// The normalization layer.
    #[serde(default, skip_serializing_if = "is_default")]
    pub norm: Norm,
    /// Epsilon of the norms.
    #[serde(default = "default_eps", skip_serializing_if = "is_default_eps")]
    pub norm_eps: f64,
    /// Widths of a pruned network by stage; empty if the network is not pruned.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pruned: Vec<PrunedStage>,
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

/// A sequence of equal blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stage {
    /// The type of the blocks.
    pub block: Block,
    /// Number of blocks.
    pub depth: usize,
    /// Channels of the inner convolutions (torchvision's `planes`); the output has [`Block::expansion`] times as many.
    pub width: usize,
}

impl Stage {
    /// Returns the output channels of the stage if it is not pruned.
    pub const fn out_channels(self) -> usize {
        self.width * self.block.expansion()
    }
}

/// The channels of a pruned stage of bottleneck blocks (arXiv 2002.08258).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrunedStage {
    /// Output channels of the stage.
    pub out: usize,
    /// Output channels of the first and second convolution of each block.
    pub inner: Vec<[usize; 2]>,
}

/// The residual blocks of the paper, figure 5.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Block {
    /// Two 3×3 convolutions.
    Basic,
    /// 1×1, 3×3 and 1×1 convolutions, the last with four times the width.
    Bottleneck,
}

impl Block {
    /// Returns the ratio of output channels to width.
    pub const fn expansion(self) -> usize {
        match self {
            Block::Basic => 1,
            Block::Bottleneck => 4,
        }
    }

    /// Returns the number of convolutions in the block.
    pub const fn layers(self) -> usize {
        match self {
            Block::Basic => 2,
            Block::Bottleneck => 3,
        }
    }
}

/// The layers before the first stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Stem {
    /// 7×7 convolution with stride 2, then a [`StemPool`]: the ImageNet networks.
    Conv7 {
        /// Channels of the convolution.
        width: usize,
    },
    /// Three 3×3 convolutions, the first with stride 2, then a [`StemPool`]: timm's `deep` and `deep_tiered` stems, used
    /// by the variants -C, -D, -S and -T (arXiv 1812.01187).
    Deep {
        /// Channels of the convolutions.
        widths: [usize; 3],
    },
    /// 3×3 convolution with stride 1, no pooling: the CIFAR-10 networks of the paper (section 4.2).
    Conv3 {
        /// Channels of the convolution.
        width: usize,
    },
}

impl Stem {
    /// Returns timm's `deep` stem for this `stem_width`.
    pub const fn deep(width: usize) -> Stem {
        Stem::Deep { widths: [width, width, 2 * width] }
    }

    /// Returns timm's `deep_tiered` stem for this `stem_width`.
    pub const fn tiered(width: usize) -> Stem {
        Stem::Deep { widths: [width / 4 * 3, width, 2 * width] }
    }

    /// Returns the output channels.
    pub const fn width(self) -> usize {
        match self {
            Stem::Conv7 { width } | Stem::Conv3 { width } => width,
            Stem::Deep { widths } => widths[2],
        }
    }

    /// Returns the stride of the stem in input pixels, along each axis.
    pub const fn stride(self) -> usize {
        match self {
            Stem::Conv7 { .. } | Stem::Deep { .. } => 4,
            Stem::Conv3 { .. } => 1,
        }
    }
}

/// The strided layer after the convolutions of an ImageNet stem.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum StemPool {
    /// 3×3 max pooling with stride 2.
    #[default]
    Max,
    /// 3×3 convolution with stride 2 (ResNet-RS, arXiv 2103.07579).
    Conv,
}

/// The padding of layers with stride 2. One-sided is TensorFlow's `SAME` for even sizes: the total is an odd number of
/// pixels, one more at the bottom and right than at the top and left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Padding {
    /// Equal on both sides.
    #[default]
    Symmetric,
    /// One-sided in the max pooling of the stem: TensorFlow's official networks, and Caffe with its rounded-up pooling.
    OneSidedPool,
    /// One-sided in the max pooling and in the blocks, but not in the first convolution: Keras applications.
    OneSidedBlocks,
    /// One-sided in all layers with stride 2: TensorFlow Model Garden.
    OneSided,
}

impl Padding {
    pub(crate) fn one_sided_stem(self) -> bool {
        self == Padding::OneSided
    }

    pub(crate) fn one_sided_pool(self) -> bool {
        self != Padding::Symmetric
    }

    pub(crate) fn one_sided_blocks(self) -> bool {
        matches!(self, Padding::OneSidedBlocks | Padding::OneSided)
    }

    /// Returns a phrase that completes "a network with …".
    pub(super) fn described(self) -> Option<&'static str> {
        match self {
            Padding::Symmetric => None,
            Padding::OneSidedPool => Some("one-sided padding in the max pooling"),
            Padding::OneSidedBlocks => Some("one-sided padding after the first convolution"),
            Padding::OneSided => Some("one-sided padding"),
        }
    }
}

/// The shortcut options of the paper (section 4.1), later ones, and none for plain networks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shortcut {
    /// No shortcut: the plain network with the same layers.
    None,
    /// Option A: identity; where sizes differ, every second pixel, and zero channels, half on each side.
    ZeroPad,
    /// Option B: identity, and a 1×1 projection where sizes differ.
    Projection,
    /// Option C: a 1×1 projection in every block.
    ProjectionAll,
    /// Option B with 2×2 average pooling before the projection in strided blocks: the variants -D and -T
    /// (arXiv 1812.01187).
    AvgProjection,
    /// Option B with a 3×3 projection in strided blocks (SENet-154).
    Projection3x3,
}

/// The convolution that has the stride in a bottleneck block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StrideIn {
    /// The 3×3 (v1.5: torchvision, timm).
    #[default]
    Conv3x3,
    /// The first 1×1 (v1: the paper, Caffe, Detectron).
    Conv1x1,
}

/// The channel attention of a block, applied before the residual add.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Attention {
    /// None.
    #[default]
    None,
    /// Squeeze-and-excitation (arXiv 1709.01507): two fully connected layers on the channel means.
    Se {
        /// Ratio of channels to hidden channels; the hidden channels are rounded to a multiple of 8 as in timm.
        reduction: usize,
    },
    /// Efficient channel attention (arXiv 1910.03151): a convolution over the channel means.
    Eca,
}

impl Attention {
    /// Returns the hidden channels of squeeze-and-excitation for `channels` channels; `reduction` is at least 1.
    pub fn hidden(channels: usize, reduction: usize) -> usize {
        // timm's `make_divisible(channels / reduction, 8, round_limit=0)`: the nearest multiple of 8, at least 8, rounding
        // halves up.
        ((channels + 4 * reduction) / reduction.max(1) / 8 * 8).max(8)
    }

    /// Returns the kernel size of efficient channel attention: `(log₂ channels + 1) / 2` rounded to an odd number, at least 3.
    pub(crate) fn kernel(channels: usize) -> usize {
        let half = (((channels as f64).log2() + 1.0) / 2.0) as usize;
        (half | 1).max(3)
    }
}

/// The low-pass filter before downsampling (arXiv 1904.11486).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum AntiAlias {
    /// None: convolutions and pooling layers have the stride.
    #[default]
    None,
    /// 2×2 average pooling (timm's `resnetaa`).
    Avg,
    /// A 3×3 binomial blur (timm's `resnetblur`).
    Blur,
}

impl ResNet {
    /// Returns the ImageNet network of the paper with `depths` blocks per stage: widths 64 to 512, projection shortcuts,
    /// 3 input channels, 1000 classes.
    pub fn imagenet(block: Block, depths: &[usize]) -> ResNet {
        let stage = |(i, &depth): (usize, &usize)| Stage { block, depth, width: 64usize << i };
        ResNet {
            stem: Stem::Conv7 { width: 64 },
            stem_pool: StemPool::Max,
            padding: Padding::Symmetric,
            stages: depths.iter().enumerate().map(stage).collect(),
            shortcut: Shortcut::Projection,
            stride_in: StrideIn::Conv3x3,
            groups: 1,
            group_width: 64,
            first_reduction: 1,
            attention: Attention::None,
            anti_alias: AntiAlias::None,
            norm: Norm::Batch,
            norm_eps: EPS,
            pruned: vec![],
            pool: GlobalPool::Avg,
            output_stride: None,
            in_channels: 3,
            num_classes: 1000,
        }
    }

    /// Returns the CIFAR-10 network of the paper, section 4.2: 6n + 2 layers, widths 16, 32, 64, zero-padded shortcuts,
    /// 3 input channels, 10 classes. `None` unless `depth` is 6n + 2 with n ≥ 1.
    pub fn cifar(depth: usize) -> Option<ResNet> {
        let n = depth.checked_sub(2)?;
        if n == 0 || n % 6 != 0 {
            return None;
        }
        let stage = |width| Stage { block: Block::Basic, depth: n / 6, width };
        Some(ResNet {
            stem: Stem::Conv3 { width: 16 },
            stages: [16, 32, 64].map(stage).to_vec(),
            shortcut: Shortcut::ZeroPad,
            num_classes: 10,
            ..ResNet::imagenet(Block::Basic, &[])
        })
    }

    /// Returns the number of layers with weights as the paper counts them: convolutions on the main path and the head.
    pub fn layers(&self) -> usize {
        2 + self.stages.iter().map(|s| s.depth * s.block.layers()).sum::<usize>()
    }

    pub(super) fn describe(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.shortcut == Shortcut::None { "plain network" } else { "ResNet" };
        let layers = self.layers();
        write!(f, "{} {layers}-layer {kind} (", article(layers))?;
        for (i, s) in self.stages.iter().enumerate() {
            let block = if s.block == Block::Basic { "basic" } else { "bottleneck" };
            write!(f, "{}{}×{block} {}", if i > 0 { ", " } else { "" }, s.depth, s.width)?;
        }
        if self.groups > 1 {
            write!(f, ", {} groups of {}", self.groups, self.group_width)?;
        }
        if let Some(padding) = self.padding.described() {
            write!(f, ", {padding}")?;
        }
        f.write_str(")")
    }

    /// Checks all sizes, so that an untrusted description cannot request unbounded memory.
    pub(crate) fn validate(&self) -> Result<()> {
        check_size("number of stages", self.stages.len(), 16)?;
        for stage in &self.stages {
            check_size("stage depth", stage.depth, 1000)?;
            check_size("stage width", stage.width, 1 << 14)?;
        }
        match self.stem {
            Stem::Deep { widths } => widths.iter().try_for_each(|&w| check_size("stem width", w, 1 << 14))?,
            stem => check_size("stem width", stem.width(), 1 << 14)?,
        }
        check_size("groups", self.groups, 1 << 10)?;
        check_size("group_width", self.group_width, 1 << 14)?;
        check_size("first_reduction", self.first_reduction, 64)?;
        if let Attention::Se { reduction } = self.attention {
            check_size("attention reduction", reduction, 1 << 10)?;
        }
        check_ends(self.in_channels, self.num_classes)?;
        check_eps(self.norm_eps)?;
        check_output_stride(self.output_stride)?;
        for stage in &self.stages {
            if stage.block == Block::Basic && (self.groups, self.group_width) != (1, 64) {
                let feature = "groups or a group width other than 64";
                return Err(Error::UnsupportedCombination { feature, other: "basic blocks" });
            }
            let inner = self.inner_width(*stage);
            check_size("inner width of a block", inner, 1 << 16)?;
            let divisor = self.first_reduction * self.groups;
            if !inner.is_multiple_of(divisor) {
                return Err(Error::Indivisible { layer: "a block".into(), channels: inner, divisor });
            }
        }
        if self.norm.activates() {
            return Err(Error::UnsupportedCombination {
                feature: "a norm that includes an activation",
                other: "post-activation blocks",
            });
        }
        if self.shortcut == Shortcut::ZeroPad {
            let mut channels = self.stem.width();
            for stage in &self.stages {
                let out = stage.out_channels();
                if out < channels {
                    let expected =
                        format!("at least {channels}, the input channels of the zero-padded shortcut");
                    return Err(invalid("output channels of a stage", out, expected));
                }
                channels = out;
            }
        }
        let plain = self.stem_pool == StemPool::Max
            && self.anti_alias == AntiAlias::None
            && self.shortcut != Shortcut::Projection3x3
            && self.output_stride.is_none();
        if self.padding != Padding::Symmetric && !plain {
            return Err(Error::UnsupportedCombination {
                feature: "one-sided padding",
                other: "a convolutional stem pool, anti-aliasing, 3×3 projections or an output stride",
            });
        }
        self.validate_pruned()
    }

    fn validate_pruned(&self) -> Result<()> {
        if self.pruned.is_empty() {
            return Ok(());
        }
        let depths: Vec<usize> = self.stages.iter().map(|s| s.depth).collect();
        let pruned: Vec<usize> = self.pruned.iter().map(|p| p.inner.len()).collect();
        if pruned != depths {
            let list = |depths: &[usize]| {
                format!(
                    "widths for {} blocks",
                    depths.iter().map(usize::to_string).collect::<Vec<_>>().join("-")
                )
            };
            return Err(invalid("pruned", list(&pruned), list(&depths)));
        }
        if self.groups != 1 || self.stages.iter().any(|s| s.block == Block::Basic) {
            return Err(Error::UnsupportedCombination {
                feature: "pruning",
                other: "basic blocks or groups",
            });
        }
        let widths = self.pruned.iter().flat_map(|p| p.inner.iter().flatten().chain([&p.out]));
        widths.copied().try_for_each(|w| check_size("pruned width", w, 1 << 16))
    }

    /// Returns the channels of the 3×3 convolutions of a stage.
    pub(crate) fn inner_width(&self, stage: Stage) -> usize {
        match stage.block {
            Block::Basic => stage.width,
            Block::Bottleneck => stage.width * self.group_width / 64 * self.groups,
        }
    }
}

fn sixty_four() -> usize {
    64
}

fn is_sixty_four(value: &usize) -> bool {
    *value == 64
}
