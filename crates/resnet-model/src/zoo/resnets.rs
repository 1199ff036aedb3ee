//! The networks of timm's and torchvision's `resnet.py` and of the paper, one line per variant.

use super::pruned;
use crate::arch::{AntiAlias, Attention, Block, Norm, ResNet, Shortcut, Stage, Stem, StemPool};

/// Blocks per stage, named by the number of layers with bottleneck blocks (with basic blocks: 18 and 34).
const N14: [usize; 4] = [1, 1, 1, 1];
const N26: [usize; 4] = [2, 2, 2, 2];
const N50: [usize; 4] = [3, 4, 6, 3];
const N101: [usize; 4] = [3, 4, 23, 3];
const N152: [usize; 4] = [3, 8, 36, 3];
const N200: [usize; 4] = [3, 24, 36, 3];
const N269: [usize; 4] = [3, 30, 48, 8];

fn basic(depths: [usize; 4]) -> ResNet {
    ResNet::imagenet(Block::Basic, &depths)
}

fn bottleneck(depths: [usize; 4]) -> ResNet {
    ResNet::imagenet(Block::Bottleneck, &depths)
}

/// ResNeXt: `groups` groups of `width` channels (arXiv 1611.05431).
fn x(groups: usize, width: usize, depths: [usize; 4]) -> ResNet {
    ResNet { groups, group_width: width, ..bottleneck(depths) }
}

/// Wide ResNet: bottlenecks twice as wide (arXiv 1605.07146).
fn wide(depths: [usize; 4]) -> ResNet {
    ResNet { group_width: 128, ..bottleneck(depths) }
}

/// A deep stem (arXiv 1812.01187).
fn c(net: ResNet) -> ResNet {
    ResNet { stem: Stem::deep(32), ..net }
}

/// A deep stem of twice the width.
fn s(net: ResNet) -> ResNet {
    ResNet { stem: Stem::deep(64), ..net }
}

/// Average pooling before the projections.
fn avg_down(net: ResNet) -> ResNet {
    ResNet { shortcut: Shortcut::AvgProjection, ..net }
}

/// A deep stem, and average pooling before the projections.
fn d(net: ResNet) -> ResNet {
    avg_down(c(net))
}

/// `d` with a tiered stem.
fn t(net: ResNet) -> ResNet {
    ResNet { stem: Stem::tiered(32), ..avg_down(net) }
}

fn se(net: ResNet) -> ResNet {
    ResNet { attention: Attention::Se { reduction: 16 }, ..net }
}

fn eca(net: ResNet) -> ResNet {
    ResNet { attention: Attention::Eca, ..net }
}

fn aa(net: ResNet) -> ResNet {
    ResNet { anti_alias: AntiAlias::Avg, ..net }
}

fn blur(net: ResNet) -> ResNet {
    ResNet { anti_alias: AntiAlias::Blur, ..net }
}

fn gn(net: ResNet) -> ResNet {
    ResNet { norm: Norm::Group, ..net }
}

/// ResNet-RS (arXiv 2103.07579).
fn rs(depths: [usize; 4]) -> ResNet {
    ResNet { stem_pool: StemPool::Conv, attention: Attention::Se { reduction: 4 }, ..d(bottleneck(depths)) }
}

/// SENet-154 (arXiv 1709.01507).
fn senet(depths: [usize; 4]) -> ResNet {
    ResNet { shortcut: Shortcut::Projection3x3, first_reduction: 2, ..se(s(x(64, 4, depths))) }
}

fn pruned(net: ResNet, widths: &[(usize, &'static [[usize; 2]])]) -> ResNet {
    ResNet { pruned: pruned::stages(widths), ..net }
}

fn plain(net: ResNet) -> ResNet {
    ResNet { shortcut: Shortcut::None, ..net }
}

/// The test network of timm: four stages of one block.
fn test_resnet() -> ResNet {
    let stage = |(block, width)| Stage { block, depth: 1, width };
    let stages = [(Block::Basic, 32), (Block::Basic, 48), (Block::Bottleneck, 48), (Block::Basic, 96)];
    ResNet { stem: Stem::deep(16), stages: stages.map(stage).to_vec(), ..avg_down(basic(N14)) }
}

pub(super) fn imagenet() -> Vec<(&'static str, ResNet)> {
    vec![
        ("resnet18", basic(N26)),
        ("resnet34", basic(N50)),
        ("resnet50", bottleneck(N50)),
        ("resnet101", bottleneck(N101)),
        ("resnet152", bottleneck(N152)),
        ("plain18", plain(basic(N26))),
        ("plain34", plain(basic(N50))),
        ("resnet26", bottleneck(N26)),
        ("resnet200", bottleneck(N200)),
        ("resnet50c", c(bottleneck(N50))),
        ("resnet101c", c(bottleneck(N101))),
        ("resnet152c", c(bottleneck(N152))),
        ("resnet50s", s(bottleneck(N50))),
        ("resnet101s", s(bottleneck(N101))),
        ("resnet152s", s(bottleneck(N152))),
        ("resnet18d", d(basic(N26))),
        ("resnet34d", d(basic(N50))),
        ("resnet26d", d(bottleneck(N26))),
        ("resnet50d", d(bottleneck(N50))),
        ("resnet101d", d(bottleneck(N101))),
        ("resnet152d", d(bottleneck(N152))),
        ("resnet200d", d(bottleneck(N200))),
        ("resnet10t", t(basic(N14))),
        ("resnet14t", t(bottleneck(N14))),
        ("resnet26t", t(bottleneck(N26))),
        ("resnet50t", t(bottleneck(N50))),
        ("resnet50_gn", gn(bottleneck(N50))),
        ("wide_resnet50_2", wide(N50)),
        ("wide_resnet101_2", wide(N101)),
        ("resnext50_32x4d", x(32, 4, N50)),
        ("resnext50d_32x4d", d(x(32, 4, N50))),
        ("resnext101_32x4d", x(32, 4, N101)),
        ("resnext101_32x8d", x(32, 8, N101)),
        ("resnext101_32x16d", x(32, 16, N101)),
        ("resnext101_32x32d", x(32, 32, N101)),
        ("resnext101_64x4d", x(64, 4, N101)),
        ("seresnet18", se(basic(N26))),
        ("seresnet34", se(basic(N50))),
        ("seresnet50", se(bottleneck(N50))),
        ("seresnet50t", se(t(bottleneck(N50)))),
        ("seresnet101", se(bottleneck(N101))),
        ("seresnet152", se(bottleneck(N152))),
        ("seresnet152d", se(d(bottleneck(N152)))),
        ("seresnet200d", se(d(bottleneck(N200)))),
        ("seresnet269d", se(d(bottleneck(N269)))),
        ("seresnext26d_32x4d", se(d(x(32, 4, N26)))),
        ("seresnext26t_32x4d", se(t(x(32, 4, N26)))),
        ("seresnext50_32x4d", se(x(32, 4, N50))),
        ("seresnext101_32x4d", se(x(32, 4, N101))),
        ("seresnext101_32x8d", se(x(32, 8, N101))),
        ("seresnext101d_32x8d", se(d(x(32, 8, N101)))),
        ("seresnext101_64x4d", se(x(64, 4, N101))),
        ("senet154", senet(N152)),
        ("ecaresnet26t", eca(t(bottleneck(N26)))),
        ("ecaresnet50d", eca(d(bottleneck(N50)))),
        ("ecaresnet50d_pruned", pruned(eca(d(bottleneck(N50))), &pruned::ECA_RESNET_50D)),
        ("ecaresnet50t", eca(t(bottleneck(N50)))),
        ("ecaresnetlight", eca(avg_down(bottleneck([1, 1, 11, 3])))),
        ("ecaresnet101d", eca(d(bottleneck(N101)))),
        ("ecaresnet101d_pruned", pruned(eca(d(bottleneck(N101))), &pruned::ECA_RESNET_101D)),
        ("ecaresnet200d", eca(d(bottleneck(N200)))),
        ("ecaresnet269d", eca(d(bottleneck(N269)))),
        ("ecaresnext26t_32x4d", eca(t(x(32, 4, N26)))),
        ("ecaresnext50t_32x4d", eca(t(x(32, 4, N50)))),
        ("resnetblur18", blur(basic(N26))),
        ("resnetblur50", blur(bottleneck(N50))),
        ("resnetblur50d", blur(d(bottleneck(N50)))),
        ("resnetblur101d", blur(d(bottleneck(N101)))),
        ("resnetaa34d", aa(d(basic(N50)))),
        ("resnetaa50", aa(bottleneck(N50))),
        ("resnetaa50d", aa(d(bottleneck(N50)))),
        ("resnetaa101d", aa(d(bottleneck(N101)))),
        ("seresnetaa50d", se(aa(d(bottleneck(N50))))),
        ("seresnextaa101d_32x8d", se(aa(d(x(32, 8, N101))))),
        ("seresnextaa201d_32x8d", se(aa(avg_down(s(x(32, 8, [3, 24, 36, 4])))))),
        ("resnetrs50", rs(N50)),
        ("resnetrs101", rs(N101)),
        ("resnetrs152", rs(N152)),
        ("resnetrs200", rs(N200)),
        ("resnetrs270", rs([4, 29, 53, 4])),
        ("resnetrs350", rs([4, 36, 72, 4])),
        ("resnetrs420", rs([4, 44, 87, 4])),
        ("test_resnet", test_resnet()),
    ]
}

/// The CIFAR-10 networks of the paper, section 4.2, and the plain networks with the same layers.
pub(super) fn cifar() -> Vec<(&'static str, ResNet)> {
    let depths = [
        ("resnet20_cifar", "plain20_cifar", 20),
        ("resnet32_cifar", "plain32_cifar", 32),
        ("resnet44_cifar", "plain44_cifar", 44),
        ("resnet56_cifar", "plain56_cifar", 56),
        ("resnet110_cifar", "plain110_cifar", 110),
        ("resnet1202_cifar", "plain1202_cifar", 1202),
    ];
    let nets = depths.into_iter().filter_map(|(residual, without, depth)| {
        let net = ResNet::cifar(depth)?;
        Some([(residual, net.clone()), (without, plain(net))])
    });
    nets.flatten().collect()
}
