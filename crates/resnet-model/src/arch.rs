//! Architectures: plain data that can be compared, stored and printed.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::graph::{EvoNorm, Graph, GroupNorm, Node, Op};
use crate::{Error, Result, families, zoo};

mod clip;
mod inception;
pub(crate) mod options;
mod resnet;
mod resnet_v2;
mod vgg;

pub(crate) use clip::HEAD_CHANNELS;
pub use clip::{Clip, ClipHead};
pub use inception::Inception;
pub use options::{ArchOptions, GlobalPool, Norm};
pub use resnet::{
    AntiAlias, Attention, Block, Padding, PrunedStage, ResNet, Shortcut, Stage, Stem, StemPool, StrideIn,
};

pub use resnet_v2::{ProjectionV2, ResNetV2, StageV2, StemV2};
pub use vgg::{Vgg, VggNorm, VggStage};

/// An architecture.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "family", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Arch {
    /// Residual networks and their plain counterparts (He et al. 2015, arXiv 1512.03385).
    #[serde(rename = "resnet")]
    ResNet(ResNet),
    /// Pre-activation residual networks (He et al. 2016, arXiv 1603.05027) and BiT.
    #[serde(rename = "resnet_v2")]
    ResNetV2(ResNetV2),
    /// VGG (arXiv 1409.1556).
    Vgg(Vgg),
    /// Inception-v3 (arXiv 1512.00567), without its auxiliary head.
    InceptionV3(Inception),
    /// Inception-v4 (arXiv 1602.07261).
    InceptionV4(Inception),
    /// Inception-ResNet-v2 (arXiv 1602.07261).
    #[serde(rename = "inception_resnet_v2")]
    InceptionResNetV2(Inception),
    /// The residual image encoders of CLIP (arXiv 2103.00020).
    Clip(Clip),
}

/// The options of an architecture; `None` if the family does not have the option.
struct Settings<'a> {
    num_classes: &'a mut usize,
    in_channels: &'a mut usize,
    pool: Option<&'a mut GlobalPool>,
    output_stride: Option<&'a mut Option<usize>>,
}

impl Arch {
    /// Builds the graph of this architecture.
    ///
    /// # Errors
    ///
    /// Returns an error for sizes out of range and for unsupported combinations of options.
    pub fn graph(&self) -> Result<Graph> {
        let graph = match self {
            Arch::ResNet(net) => families::resnet::graph(net),
            Arch::ResNetV2(net) => families::resnet_v2::graph(net),
            Arch::Vgg(net) => families::vgg::graph(net),
            Arch::InceptionV3(net) => families::inception::v3::graph(net),
            Arch::InceptionV4(net) => families::inception::v4::graph(net),
            Arch::InceptionResNetV2(net) => families::inception::resnet_v2::graph(net),
            Arch::Clip(net) => families::clip::graph(net),
        }?;
        let indivisible = |node: &Node| match &node.op {
            Op::GroupNorm(GroupNorm { groups, .. }) | Op::EvoNorm(EvoNorm { groups, .. })
                if !node.channels.is_multiple_of(*groups) =>
            {
                let (layer, channels) = (format!("`{}`", node.name), node.channels);
                Some(Error::Indivisible { layer, channels, divisor: *groups })
            }
            _ => None,
        };
        match graph.nodes().iter().find_map(indivisible) {
            Some(error) => Err(error),
            None => Ok(graph),
        }
    }

    fn settings(&mut self) -> Settings<'_> {
        match self {
            Arch::ResNet(net) => Settings {
                num_classes: &mut net.num_classes,
                in_channels: &mut net.in_channels,
                pool: Some(&mut net.pool),
                output_stride: Some(&mut net.output_stride),
            },
            Arch::ResNetV2(net) => Settings {
                num_classes: &mut net.num_classes,
                in_channels: &mut net.in_channels,
                pool: Some(&mut net.pool),
                output_stride: Some(&mut net.output_stride),
            },
            Arch::Vgg(net) => Settings {
                num_classes: &mut net.num_classes,
                in_channels: &mut net.in_channels,
                pool: None,
                output_stride: None,
            },
            Arch::InceptionV3(net) | Arch::InceptionV4(net) | Arch::InceptionResNetV2(net) => Settings {
                num_classes: &mut net.num_classes,
                in_channels: &mut net.in_channels,
                pool: Some(&mut net.pool),
                output_stride: None,
            },
            Arch::Clip(net) => Settings {
                num_classes: &mut net.num_classes,
                in_channels: &mut net.in_channels,
                pool: match &mut net.head {
                    ClipHead::Global { pool } => Some(pool),
                    ClipHead::Attention { .. } => None,
                },
                output_stride: Some(&mut net.output_stride),
            },
        }
    }

    /// Returns the name of the family.
    pub fn family(&self) -> &'static str {
        match self {
            Arch::ResNet(_) => "ResNet",
            Arch::ResNetV2(_) => "ResNet-v2",
            Arch::Vgg(_) => "VGG",
            Arch::InceptionV3(_) => "Inception-v3",
            Arch::InceptionV4(_) => "Inception-v4",
            Arch::InceptionResNetV2(_) => "Inception-ResNet-v2",
            Arch::Clip(Clip { head: ClipHead::Attention { .. }, .. }) => "CLIP with attention",
            Arch::Clip(_) => "CLIP",
        }
    }

    /// Returns the number of classes `K`; `None` without a classification head.
    pub fn classes(&self) -> Option<usize> {
        let classes = match self {
            Arch::ResNet(net) => net.num_classes,
            Arch::ResNetV2(net) => net.num_classes,
            Arch::Vgg(net) => net.num_classes,
            Arch::Clip(net) => net.num_classes,
            Arch::InceptionV3(net) | Arch::InceptionV4(net) | Arch::InceptionResNetV2(net) => net.num_classes,
        };
        (classes > 0).then_some(classes)
    }

    /// Returns the number of input channels.
    pub fn in_channels(&self) -> usize {
        match self {
            Arch::ResNet(net) => net.in_channels,
            Arch::ResNetV2(net) => net.in_channels,
            Arch::Vgg(net) => net.in_channels,
            Arch::Clip(net) => net.in_channels,
            Arch::InceptionV3(net) | Arch::InceptionV4(net) | Arch::InceptionResNetV2(net) => net.in_channels,
        }
    }

    /// Returns the architecture with another number of classes; 0 removes the head.
    pub fn with_classes(mut self, classes: usize) -> Arch {
        *self.settings().num_classes = classes;
        self
    }

    /// Returns the architecture with another number of input channels.
    pub fn with_in_channels(mut self, channels: usize) -> Arch {
        *self.settings().in_channels = channels;
        self
    }

    /// Returns the architecture with other options.
    ///
    /// # Errors
    ///
    /// Returns [`Error::NoSuchOption`] if the family does not have the option.
    pub fn with(mut self, options: ArchOptions) -> Result<Arch> {
        let family = self.family();
        let missing = |option| Err(Error::NoSuchOption { family, option });
        let settings = self.settings();
        if let Some(classes) = options.num_classes {
            *settings.num_classes = classes;
        }
        if let Some(channels) = options.in_channels {
            *settings.in_channels = channels;
        }
        if let Some(pool) = options.pool {
            match settings.pool {
                Some(setting) => *setting = pool,
                None => return missing("global pooling"),
            }
        }
        if let Some(stride) = options.output_stride {
            match settings.output_stride {
                Some(setting) => *setting = Some(stride),
                None => return missing("output stride"),
            }
        }
        Ok(self)
    }

    /// Returns the architecture with 3 input channels, no head and default options, which identifies the variant.
    pub(crate) fn without_options(&self) -> Arch {
        let mut arch = self.clone();
        let settings = arch.settings();
        (*settings.num_classes, *settings.in_channels) = (0, 3);
        if let Some(pool) = settings.pool {
            *pool = GlobalPool::default();
        }
        if let Some(stride) = settings.output_stride {
            *stride = None;
        }
        arch
    }
}

/// The name in the zoo if there is one, otherwise a short description.
impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (zoo::name_of(self), self) {
            (Some(name), _) => f.write_str(name),
            (None, Arch::ResNet(net)) => {
                // The original networks differ from the named ones only in these options.
                let named = ResNet {
                    stride_in: StrideIn::Conv3x3,
                    padding: Padding::Symmetric,
                    norm_eps: options::EPS,
                    ..net.clone()
                };
                let strides = (net.stride_in == StrideIn::Conv1x1).then_some("strides in the first 1×1");
                let differences: Vec<&str> = strides.into_iter().chain(net.padding.described()).collect();
                match zoo::name_of(&Arch::ResNet(named)) {
                    Some(name) if !differences.is_empty() => {
                        write!(f, "{name} with {}", differences.join(" and "))
                    }
                    _ => net.describe(f),
                }
            }
            (None, Arch::ResNetV2(net)) => net.describe(f),
            (None, Arch::Vgg(net)) => net.describe(f),
            (None, Arch::Clip(net)) => net.describe(f),
            (None, Arch::InceptionV3(_)) => f.write_str("an Inception-v3"),
            (None, Arch::InceptionV4(_)) => f.write_str("an Inception-v4"),
            (None, Arch::InceptionResNetV2(_)) => f.write_str("an Inception-ResNet-v2"),
        }
    }
}
