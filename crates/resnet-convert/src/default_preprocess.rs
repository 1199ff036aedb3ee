//! Default preprocessing of an architecture, where neither the file nor the caller specifies it.

use resnet_image::preprocess::{Channels, Filter, Resize};
use resnet_model::Preprocess;
use resnet_model::arch::{Arch, Clip, ClipHead, ResNet, ResNetV2, Stem, StemV2};

/// Returns torchvision's preprocessing for ImageNet networks, the image size of CIFAR for its networks, timm's for
/// networks from Google, and unnormalized grayscale for one input channel.
pub(crate) fn default_preprocess(arch: &Arch) -> Preprocess {
    let mut default = Preprocess::torchvision(256, 224);
    match arch {
        Arch::ResNet(ResNet { stem: Stem::Conv3 { .. }, .. })
        | Arch::ResNetV2(ResNetV2 { stem: StemV2::Conv3 { .. }, .. }) => {
            (default.resize, default.crop) = (Resize::Exact([32; 2]), [32; 2]);
        }
        Arch::InceptionV3(_) | Arch::InceptionV4(_) | Arch::InceptionResNetV2(_) => {
            default = inception(Preprocess::torchvision(341, 299));
        }
        Arch::ResNetV2(_) => default = inception(default),
        Arch::Clip(Clip { head: ClipHead::Attention { grid: [rows, _] }, .. }) => {
            let side = rows.saturating_mul(32).clamp(32, 4096);
            default = Preprocess::torchvision(side, side);
        }
        _ => {}
    }
    if arch.in_channels() == 1 {
        (default.channels, default.mean, default.std) = (Channels::Gray, vec![0.0], vec![1.0]);
    }
    default
}

/// Returns `default` with mean and std 0.5 (timm's `IMAGENET_INCEPTION_MEAN`) and bicubic resizing.
fn inception(default: Preprocess) -> Preprocess {
    Preprocess { filter: Filter::Bicubic, mean: vec![0.5; 3], std: vec![0.5; 3], ..default }
}
