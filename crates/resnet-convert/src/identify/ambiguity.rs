//! Architectures with the same tensors, and the properties that are assumed to choose between them.

use resnet_model::arch::{
    AntiAlias, Arch, Block, GlobalPool, Norm, ProjectionV2, ResNet, ResNetV2, Shortcut, Stem, StemPool,
    StemV2, StrideIn,
};

/// Returns all other architectures with the same tensors.
pub(super) fn equivalents(arch: &Arch) -> Vec<Arch> {
    let all: Vec<Arch> = match arch {
        Arch::ResNet(net) => resnet(net).into_iter().map(Arch::ResNet).collect(),
        Arch::ResNetV2(net) => resnet_v2(net).into_iter().map(Arch::ResNetV2).collect(),
        _ => vec![],
    };
    all.into_iter().filter(|other| other != arch).collect()
}

/// Describes the properties of `arch` that no tensor shows.
pub(super) fn assumptions(arch: &Arch) -> Vec<String> {
    let mut assumed: Vec<&str> = Vec::new();
    let mut epsilon = None;
    match arch {
        Arch::ResNet(net) => {
            assumed.extend(match net.shortcut {
                Shortcut::None => Some("no shortcuts"),
                Shortcut::ZeroPad => Some("zero-padded shortcuts"),
                _ => None,
            });
            if net.stages.iter().any(|s| s.block == Block::Bottleneck) {
                assumed.push(stride(net.stride_in));
            }
            assumed.push(match net.anti_alias {
                AntiAlias::None => "no anti-aliasing",
                AntiAlias::Avg => "average-pooling anti-aliasing",
                _ => "blur anti-aliasing",
            });
            if net.stem_pool == StemPool::Conv && net.anti_alias == AntiAlias::None {
                assumed.pop();
            }
            if net.stem_pool == StemPool::Max && !matches!(net.stem, Stem::Conv3 { .. }) {
                assumed.push("max pooling in the stem");
            }
            if net.pool == GlobalPool::Avg {
                assumed.push("global average pooling");
            }
            assumed.extend(["ReLU", "symmetric padding", "no dilation"]);
            epsilon = Some(net.norm_eps);
        }
        Arch::ResNetV2(net) => {
            assumed.push(match net.projection {
                ProjectionV2::AvgConv => "average pooling before projections",
                _ => "no average pooling before projections",
            });
            if net.block == Block::Bottleneck {
                assumed.push(stride(net.stride_in));
            }
            assumed.push(match net.standardize {
                Some(_) => "standardized weights",
                None => "no weight standardization",
            });
            assumed.push("no dilation");
        }
        _ => {}
    }
    let epsilon = epsilon.map(|eps| format!("norm epsilon {eps:e}"));
    assumed.into_iter().map(str::to_owned).chain(epsilon).collect()
}

fn stride(stride: StrideIn) -> &'static str {
    match stride {
        StrideIn::Conv3x3 => "strides in the 3×3 convolutions",
        StrideIn::Conv1x1 => "strides in the first 1×1 convolutions",
    }
}

const STRIDES: [StrideIn; 2] = [StrideIn::Conv3x3, StrideIn::Conv1x1];

fn resnet(net: &ResNet) -> Vec<ResNet> {
    let anti_aliases: &[AntiAlias] = match (net.stem_pool, net.anti_alias) {
        (StemPool::Conv, AntiAlias::None) => &[AntiAlias::None],
        (StemPool::Conv, _) => &[AntiAlias::Avg, AntiAlias::Blur],
        _ => &[AntiAlias::None, AntiAlias::Avg, AntiAlias::Blur],
    };
    let shortcuts = match net.shortcut {
        Shortcut::None | Shortcut::ZeroPad => vec![Shortcut::None, Shortcut::ZeroPad],
        other => vec![other],
    };
    let mut all = Vec::new();
    for &anti_alias in anti_aliases {
        for &shortcut in &shortcuts {
            for stride_in in STRIDES {
                all.push(ResNet { anti_alias, shortcut, stride_in, ..net.clone() });
            }
        }
    }
    all
}

fn resnet_v2(net: &ResNetV2) -> Vec<ResNetV2> {
    let stems = match net.stem {
        StemV2::Conv7 { width } | StemV2::Conv7ZeroPadded { width } => {
            vec![StemV2::Conv7 { width }, StemV2::Conv7ZeroPadded { width }]
        }
        other => vec![other],
    };
    // BiT's epsilon. No known network has batch norm and weight standardization.
    let standardizations: &[Option<f64>] = match net.norm {
        Norm::Group => &[None, Some(1e-8)],
        _ => &[None],
    };
    let mut all = Vec::new();
    for &stem in &stems {
        for projection in [ProjectionV2::Conv, ProjectionV2::AvgConv] {
            for stride_in in STRIDES {
                for &standardize in standardizations {
                    all.push(ResNetV2 { stem, projection, stride_in, standardize, ..net.clone() });
                }
            }
        }
    }
    all
}
