//! Residual networks with the norm after the convolution, and plain networks of the same layers.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::options::{
    EPS, article, check_ends, check_eps, check_output_stride, default_eps, is_default, is_default_eps,
    is_one, one, within,
};
use super::{GlobalPool, Norm};
use crate::{Error, Result};

/// A residual (or plain) network of stages of equal blocks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResNet {
    /// What comes before the first stage.
    pub stem: Stem,
    /// What halves the size between an ImageNet stem's convolutions and the first stage.
    #[serde(default, skip_serializing_if = "is_default")]
    pub stem_pool: StemPool,
    /// On which side of the image what has a stride of 2 is padded.
    #[serde(default, skip_serializing_if = "is_default")]
    pub padding: Padding,
    /// The stages; each but the first halves height and width.
    pub stages: Vec<Stage>,
    /// What the shortcuts are.
    pub shortcut: Shortcut,
    /// Where a bottleneck block that halves the size does so.
    #[serde(default, skip_serializing_if = "is_default")]
    pub stride_in: StrideIn,
    /// Groups of the 3×3 convolution in bottleneck blocks (ResNeXt's cardinality).
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub groups: usize,
    /// Channels per group at a stage width of 64 (`base_width` or `width_per_group` elsewhere).
    #[serde(default = "sixty_four", skip_serializing_if = "is_sixty_four")]
    pub group_width: usize,
    /// By how much the first convolution of a block is narrower than the second (SENet-154: 2).
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub first_reduction: usize,
    /// What the blocks' results are weighted by, channel by channel.
    #[serde(default, skip_serializing_if = "is_default")]
    pub attention: Attention,
    /// What smooths the image where its size is halved.
    #[serde(default, skip_serializing_if = "is_default")]
    pub anti_alias: AntiAlias,
    /// What normalises the channels.
    #[serde(default, skip_serializing_if = "is_default")]
    pub norm: Norm,
    /// What the norms add to the variance.
    #[serde(default = "default_eps", skip_serializing_if = "is_default_eps")]
    pub norm_eps: f64,
    /// Widths of a pruned network, stage by stage; empty where the stages say everything.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pruned: Vec<PrunedStage>,
    /// How all pixels become one, before the head.
    #[serde(default, skip_serializing_if = "is_default")]
    pub pool: GlobalPool,
    /// Input pixels per pixel of the last stage, if that is limited: stages beyond it are dilated instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_stride: Option<usize>,
    /// Channels of the input.
    pub in_channels: usize,
    /// Number of classes; 0 = no head, the result is the pooled features.
    pub num_classes: usize,
}

/// Blocks of equal kind and width.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stage {
    /// The kind of block.
    pub block: Block,
    /// Number of blocks.
    pub depth: usize,
    /// Channels of the inner convolutions (`planes` elsewhere); the stage's result has [`Block::expansion`] times as many.
    pub width: usize,
}

impl Stage {
    /// Channels of the stage's result, unless it is pruned.
    pub const fn out_channels(self) -> usize {
        self.width * self.block.expansion()
    }
}

/// The channels that pruning left in a stage of bottleneck blocks (arXiv 2002.08258).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrunedStage {
    /// Channels of the stage's result.
    pub out: usize,
    /// Channels of each block's first and second convolution.
    pub inner: Vec<[usize; 2]>,
}

/// The residual units of the paper, figure 5.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Block {
    /// Two 3×3 convolutions.
    Basic,
    /// 1×1, 3×3 and 1×1 convolutions, the last with four times the width.
    Bottleneck,
}

impl Block {
    /// Channels of the result per channel of width.
    pub const fn expansion(self) -> usize {
        match self {
            Block::Basic => 1,
            Block::Bottleneck => 4,
        }
    }

    /// Convolutions in the block.
    pub const fn layers(self) -> usize {
        match self {
            Block::Basic => 2,
            Block::Bottleneck => 3,
        }
    }
}

/// What comes before the first stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Stem {
    /// 7×7 convolution with stride 2, then a [`StemPool`]: the ImageNet networks.
    Conv7 {
        /// Channels of the convolution.
        width: usize,
    },
    /// Three 3×3 convolutions, the first with stride 2, then a [`StemPool`]: timm's `deep` and `deep_tiered` stems, the
    /// variants -C, -D, -S and -T (arXiv 1812.01187).
    Deep {
        /// Channels of the convolutions.
        widths: [usize; 3],
    },
    /// 3×3 convolution with stride 1, no pooling: the paper's CIFAR-10 networks (section 4.2).
    Conv3 {
        /// Channels of the convolution.
        width: usize,
    },
}

impl Stem {
    /// timm's `deep` stem of this `stem_width`.
    pub const fn deep(width: usize) -> Stem {
        Stem::Deep { widths: [width, width, 2 * width] }
    }

    /// timm's `deep_tiered` stem of this `stem_width`.
    pub const fn tiered(width: usize) -> Stem {
        Stem::Deep { widths: [width / 4 * 3, width, 2 * width] }
    }

    /// Channels of the result.
    pub const fn width(self) -> usize {
        match self {
            Stem::Conv7 { width } | Stem::Conv3 { width } => width,
            Stem::Deep { widths } => widths[2],
        }
    }

    /// Input pixels per pixel of the first stage, along each axis.
    pub const fn stride(self) -> usize {
        match self {
            Stem::Conv7 { .. } | Stem::Deep { .. } => 4,
            Stem::Conv3 { .. } => 1,
        }
    }
}

/// What halves the size after the convolutions of an ImageNet stem.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum StemPool {
    /// 3×3 max-pool with stride 2.
    #[default]
    Max,
    /// 3×3 convolution with stride 2 (ResNet-RS, arXiv 2103.07579).
    Conv,
}

/// Where the padding of windows that move by two pixels lies. An odd number of pixels in all is what TensorFlow's `SAME`
/// gives images of even size: one more behind the image than before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Padding {
    /// As much before the image as behind it.
    #[default]
    Symmetric,
    /// One-sided in the stem's max-pool: TensorFlow's official networks, and those of Caffe, whose pools round up.
    OneSidedPool,
    /// One-sided in the max-pool and in the blocks, but not in the first convolution: TensorFlow's networks of Keras.
    OneSidedBlocks,
    /// One-sided wherever the stride is 2: TensorFlow's Model Garden.
    OneSided,
}

impl Padding {
    pub(crate) fn of_stem(self) -> bool {
        self == Padding::OneSided
    }

    pub(crate) fn of_pool(self) -> bool {
        self != Padding::Symmetric
    }

    pub(crate) fn of_blocks(self) -> bool {
        matches!(self, Padding::OneSidedBlocks | Padding::OneSided)
    }

    /// As in "a network with …".
    pub(super) fn described(self) -> Option<&'static str> {
        match self {
            Padding::Symmetric => None,
            Padding::OneSidedPool => Some("a one-sided max-pool"),
            Padding::OneSidedBlocks => Some("one-sided padding after the first convolution"),
            Padding::OneSided => Some("one-sided padding"),
        }
    }
}

/// The paper's shortcut options (section 4.1) and later ones, and none for plain networks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shortcut {
    /// No shortcut: the plain network of the same layers.
    None,
    /// Option A: identity; where sizes differ, every second pixel and zero channels, half of them on each side.
    ZeroPad,
    /// Option B: identity, and a 1×1 projection where sizes differ.
    Projection,
    /// Option C: a 1×1 projection in every block.
    ProjectionAll,
    /// As option B, with a 2×2 mean before the projection where the size is halved: the variants -D and -T
    /// (arXiv 1812.01187).
    AvgProjection,
    /// As option B, with a 3×3 projection where the size is halved (SENet-154).
    Projection3x3,
}

/// Which convolution of a bottleneck block has the stride.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StrideIn {
    /// The 3×3 (v1.5: torchvision, timm).
    #[default]
    Conv3x3,
    /// The first 1×1 (v1: the paper, Caffe, Detectron).
    Conv1x1,
}

/// What the result of a block is weighted by, channel by channel, before the shortcut is added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Attention {
    /// Nothing.
    #[default]
    None,
    /// Squeeze and excitation (arXiv 1709.01507): two fully connected layers on the means of the channels.
    Se {
        /// Channels per channel of the hidden layer, which timm rounds up to a multiple of 8.
        reduction: usize,
    },
    /// Efficient channel attention (arXiv 1910.03151): a convolution over the means of the channels.
    Eca,
}

impl Attention {
    /// Channels of the hidden layer of squeeze and excitation for a stage's result of `channels`; `reduction` is at least 1.
    pub fn hidden(channels: usize, reduction: usize) -> usize {
        // timm's `make_divisible(channels / reduction, 8, round_limit=0)`: to the nearest multiple of 8, but not to 0.
        // Halves go up.
        ((channels + 4 * reduction) / reduction.max(1) / 8 * 8).max(8)
    }

    /// Kernel size of efficient channel attention: the odd number nearest above `(log₂ channels + 1) / 2`, at least 3.
    pub(crate) fn kernel(channels: usize) -> usize {
        let half = (((channels as f64).log2() + 1.0) / 2.0) as usize;
        (half | 1).max(3)
    }
}

/// What smooths the image before it is subsampled (arXiv 1904.11486).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum AntiAlias {
    /// Nothing: convolutions and pools have the stride themselves.
    #[default]
    None,
    /// A 2×2 mean (timm's `resnetaa`).
    Avg,
    /// A 3×3 binomial blur (timm's `resnetblur`).
    Blur,
}

impl ResNet {
    /// The ImageNet network of the paper with `depths` blocks per stage: widths 64 to 512, projection shortcuts,
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

    /// The CIFAR-10 network of the paper, section 4.2: 6n + 2 layers, widths 16, 32, 64, zero-padded shortcuts,
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

    /// Layers with weights, counted as the paper does: convolutions on the main path and the head.
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

    /// Refuses sizes that no network has, so that a hostile description cannot ask for unbounded memory.
    pub(crate) fn validate(&self) -> Result<()> {
        within("number of stages", self.stages.len(), 16)?;
        for stage in &self.stages {
            within("depth of a stage", stage.depth, 1000)?;
            within("width of a stage", stage.width, 1 << 14)?;
        }
        match self.stem {
            Stem::Deep { widths } => widths.iter().try_for_each(|&w| within("stem width", w, 1 << 14))?,
            stem => within("stem width", stem.width(), 1 << 14)?,
        }
        within("groups", self.groups, 1 << 10)?;
        within("group_width", self.group_width, 1 << 14)?;
        within("first_reduction", self.first_reduction, 64)?;
        if let Attention::Se { reduction } = self.attention {
            within("reduction of the attention", reduction, 1 << 10)?;
        }
        check_ends(self.in_channels, self.num_classes)?;
        check_eps(self.norm_eps)?;
        check_output_stride(self.output_stride)?;
        for stage in &self.stages {
            if stage.block == Block::Basic && (self.groups, self.group_width) != (1, 64) {
                return Err(Error::Arch("basic blocks have one group of width 64".into()));
            }
            let inner = self.inner_width(*stage);
            within("inner width of a block", inner, 1 << 16)?;
            if !inner.is_multiple_of(self.first_reduction * self.groups) {
                return Err(Error::Arch(format!(
                    "a width of {inner} cannot be reduced by {}",
                    self.first_reduction
                )));
            }
        }
        if self.norm.activates() {
            return Err(Error::Arch("blocks that end in a norm cannot have one that activates".into()));
        }
        if self.shortcut == Shortcut::ZeroPad {
            let mut channels = self.stem.width();
            for stage in &self.stages {
                let out = stage.out_channels();
                if out < channels {
                    let what = "a zero-padded shortcut cannot go";
                    return Err(Error::Arch(format!("{what} from {channels} channels to {out}")));
                }
                channels = out;
            }
        }
        let plain = self.stem_pool == StemPool::Max
            && self.anti_alias == AntiAlias::None
            && self.shortcut != Shortcut::Projection3x3
            && self.output_stride.is_none();
        if self.padding != Padding::Symmetric && !plain {
            let what =
                "one-sided padding goes with max-pools and strides, not with what stands for them elsewhere";
            return Err(Error::Arch(what.into()));
        }
        self.validate_pruned()
    }

    fn validate_pruned(&self) -> Result<()> {
        if self.pruned.is_empty() {
            return Ok(());
        }
        let depths = self.stages.iter().map(|s| s.depth);
        if !self.pruned.iter().map(|p| p.inner.len()).eq(depths) {
            return Err(Error::Arch("the pruned widths are not those of the stages' blocks".into()));
        }
        if self.groups != 1 || self.stages.iter().any(|s| s.block == Block::Basic) {
            return Err(Error::Arch("only bottleneck blocks of one group are pruned".into()));
        }
        let widths = self.pruned.iter().flat_map(|p| p.inner.iter().flatten().chain([&p.out]));
        widths.copied().try_for_each(|w| within("a pruned width", w, 1 << 16))
    }

    /// Channels of the 3×3 convolutions of a stage.
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
