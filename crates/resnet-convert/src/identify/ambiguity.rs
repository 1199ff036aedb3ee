//! Architectures that differ in nothing that a tensor shows.

use resnet_model::arch::{
    AntiAlias, Arch, Block, Norm, ProjectionV2, ResNet, ResNetV2, Shortcut, StemPool, StemV2, StrideIn,
};

/// All others with the same tensors.
pub(super) fn equivalents(arch: &Arch) -> Vec<Arch> {
    let all: Vec<Arch> = match arch {
        Arch::ResNet(net) => resnet(net).into_iter().map(Arch::ResNet).collect(),
        Arch::ResNetV2(net) => resnet_v2(net).into_iter().map(Arch::ResNetV2).collect(),
        _ => vec![],
    };
    all.into_iter().filter(|other| other != arch).collect()
}

/// What is taken for granted of an architecture because no tensor shows it, for people.
pub(super) fn assumptions(arch: &Arch) -> Vec<String> {
    let mut assumed: Vec<&str> = Vec::new();
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
                AntiAlias::Avg => "anti-aliasing by means",
                _ => "anti-aliasing by a blur",
            });
            if net.stem_pool == StemPool::Conv && net.anti_alias == AntiAlias::None {
                assumed.pop();
            }
        }
        Arch::ResNetV2(net) => {
            assumed.push(match net.projection {
                ProjectionV2::AvgConv => "a mean before the projections",
                _ => "no mean before the projections",
            });
            if net.block == Block::Bottleneck {
                assumed.push(stride(net.stride_in));
            }
            assumed.push(match net.standardize {
                Some(_) => "standardised weights",
                None => "weights that are not standardised",
            });
        }
        _ => {}
    }
    assumed.into_iter().map(str::to_owned).collect()
}

fn stride(stride: StrideIn) -> &'static str {
    match stride {
        StrideIn::Conv3x3 => "strides in the 3×3 convolutions",
        StrideIn::Conv1x1 => "strides in the first 1×1 convolutions",
    }
}

const STRIDES: [StrideIn; 2] = [StrideIn::Conv3x3, StrideIn::Conv1x1];

fn resnet(net: &ResNet) -> Vec<ResNet> {
    let smooth: &[AntiAlias] = match (net.stem_pool, net.anti_alias) {
        (StemPool::Conv, AntiAlias::None) => &[AntiAlias::None],
        (StemPool::Conv, _) => &[AntiAlias::Avg, AntiAlias::Blur],
        _ => &[AntiAlias::None, AntiAlias::Avg, AntiAlias::Blur],
    };
    let shortcuts = match net.shortcut {
        Shortcut::None | Shortcut::ZeroPad => vec![Shortcut::None, Shortcut::ZeroPad],
        other => vec![other],
    };
    let mut all = Vec::new();
    for &anti_alias in smooth {
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
    // BiT's epsilon; batch norm after standardised weights is in no network that is known.
    let standards: &[Option<f64>] = match net.norm {
        Norm::Group => &[None, Some(1e-8)],
        _ => &[None],
    };
    let mut all = Vec::new();
    for &stem in &stems {
        for projection in [ProjectionV2::Conv, ProjectionV2::AvgConv] {
            for stride_in in STRIDES {
                for &standardize in standards {
                    all.push(ResNetV2 { stem, projection, stride_in, standardize, ..net.clone() });
                }
            }
        }
    }
    all
}
