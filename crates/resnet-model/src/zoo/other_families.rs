//! Pre-activation ResNets, VGG, Inception and CLIP networks, one line per variant.

use crate::arch::{
    Arch, Block, Clip, ClipHead, GlobalPool, Inception, Norm, ProjectionV2, ResNetV2, StemV2, Vgg, VggNorm,
};

/// Blocks per stage, named by the number of layers with bottleneck blocks (with basic blocks: 18 and 34).
const N26: [usize; 4] = [2, 2, 2, 2];
const N50: [usize; 4] = [3, 4, 6, 3];
const N101: [usize; 4] = [3, 4, 23, 3];
const N152: [usize; 4] = [3, 8, 36, 3];

fn basic(depths: [usize; 4]) -> ResNetV2 {
    ResNetV2::imagenet(Block::Basic, &depths)
}

fn bottleneck(depths: [usize; 4]) -> ResNetV2 {
    ResNetV2::imagenet(Block::Bottleneck, &depths)
}

fn bit(depths: [usize; 4], width: usize) -> ResNetV2 {
    ResNetV2::bit(&depths, width)
}

/// A deep stem, and average pooling before the projections (arXiv 1812.01187).
fn d(net: ResNetV2) -> ResNetV2 {
    ResNetV2 { stem: StemV2::Deep { widths: [32, 32, 64] }, projection: ProjectionV2::AvgConv, ..net }
}

/// `d` with a tiered stem.
fn t(net: ResNetV2) -> ResNetV2 {
    ResNetV2 { stem: StemV2::Deep { widths: [24, 32, 64] }, ..d(net) }
}

fn gn(net: ResNetV2) -> ResNetV2 {
    ResNetV2 { norm: Norm::Group, ..net }
}

fn evos(net: ResNetV2) -> ResNetV2 {
    ResNetV2 { norm: Norm::Evo, ..net }
}

fn frn(net: ResNetV2) -> ResNetV2 {
    ResNetV2 { norm: Norm::FilterResponse, ..net }
}

/// timm's `resnetv2.py`.
pub(super) fn pre_activation() -> Vec<(&'static str, Arch)> {
    let table = vec![
        ("resnetv2_18", basic(N26)),
        ("resnetv2_18d", d(basic(N26))),
        ("resnetv2_34", basic(N50)),
        ("resnetv2_34d", d(basic(N50))),
        ("resnetv2_50", bottleneck(N50)),
        ("resnetv2_50d", d(bottleneck(N50))),
        ("resnetv2_50t", t(bottleneck(N50))),
        ("resnetv2_50d_gn", gn(d(bottleneck(N50)))),
        ("resnetv2_50d_evos", evos(d(bottleneck(N50)))),
        ("resnetv2_50d_frn", frn(d(bottleneck(N50)))),
        ("resnetv2_101", bottleneck(N101)),
        ("resnetv2_101d", d(bottleneck(N101))),
        ("resnetv2_152", bottleneck(N152)),
        ("resnetv2_152d", d(bottleneck(N152))),
        ("resnetv2_200", bottleneck([3, 24, 36, 3])),
        ("resnetv2_50x1_bit", bit(N50, 1)),
        ("resnetv2_50x3_bit", bit(N50, 3)),
        ("resnetv2_101x1_bit", bit(N101, 1)),
        ("resnetv2_101x3_bit", bit(N101, 3)),
        ("resnetv2_152x2_bit", bit(N152, 2)),
        ("resnetv2_152x4_bit", bit(N152, 4)),
    ];
    // The networks of the paper (arXiv 1603.05027, table 4).
    let cifar = [("preresnet164_cifar", 164), ("preresnet1001_cifar", 1001)];
    let cifar = cifar.into_iter().filter_map(|(name, depth)| Some((name, ResNetV2::cifar(depth)?)));
    table.into_iter().chain(cifar).map(|(name, net)| (name, Arch::ResNetV2(net))).collect()
}

/// torchvision's `vgg.py`: the configurations A, B, D and E of the paper.
pub(super) fn vgg() -> Vec<(&'static str, Arch)> {
    let (a, b) = ([1, 1, 2, 2, 2], [2, 2, 2, 2, 2]);
    let (d, e) = ([2, 2, 3, 3, 3], [2, 2, 4, 4, 4]);
    let plain = |depths| Arch::Vgg(Vgg::imagenet(depths));
    let bn = |depths| Arch::Vgg(Vgg { norm: VggNorm::Batch, ..Vgg::imagenet(depths) });
    vec![
        ("vgg11", plain(a)),
        ("vgg11_bn", bn(a)),
        ("vgg13", plain(b)),
        ("vgg13_bn", bn(b)),
        ("vgg16", plain(d)),
        ("vgg16_bn", bn(d)),
        ("vgg19", plain(e)),
        ("vgg19_bn", bn(e)),
    ]
}

/// The Inception networks of torchvision and timm.
pub(super) fn inception() -> Vec<(&'static str, Arch)> {
    vec![
        ("inception_v3", Arch::InceptionV3(Inception::imagenet())),
        ("inception_v4", Arch::InceptionV4(Inception::imagenet())),
        ("inception_resnet_v2", Arch::InceptionResNetV2(Inception::imagenet())),
    ]
}

/// CLIP with average instead of attention pooling, and no last layer.
fn gap(net: Clip) -> Clip {
    Clip { head: ClipHead::Global { pool: GlobalPool::Avg }, num_classes: 0, ..net }
}

/// CLIP's residual networks in timm's `byobnet.py`: RN50, RN101, RN50x4, RN50x16 and RN50x64.
pub(super) fn clip() -> Vec<(&'static str, Arch)> {
    let rn50 = Clip::new(64, N50, 224, 1024);
    let rn101 = Clip::new(64, N101, 224, 512);
    let x4 = Clip::new(80, [4, 6, 10, 6], 288, 640);
    let x16 = Clip::new(96, [6, 8, 18, 8], 384, 768);
    let x64 = Clip::new(128, [3, 15, 36, 10], 448, 1024);
    let table = vec![
        ("resnet50_clip", rn50.clone()),
        ("resnet101_clip", rn101.clone()),
        ("resnet50x4_clip", x4.clone()),
        ("resnet50x16_clip", x16.clone()),
        ("resnet50x64_clip", x64.clone()),
        ("resnet50_clip_gap", gap(rn50)),
        ("resnet101_clip_gap", gap(rn101)),
        ("resnet50x4_clip_gap", gap(x4)),
        ("resnet50x16_clip_gap", gap(x16)),
        ("resnet50x64_clip_gap", gap(x64)),
    ];
    table.into_iter().map(|(name, net)| (name, Arch::Clip(net))).collect()
}
