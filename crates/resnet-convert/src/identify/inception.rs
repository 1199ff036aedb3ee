//! Identification of Inception networks, whose widths are fixed.

use resnet_model::arch::{Arch, Inception};

use super::{Shapes, head};

fn net(shapes: &Shapes, first: &str, last: &str, features: usize) -> Result<Inception, String> {
    let [_, in_channels, ..] = shapes.need(first)?;
    let (num_classes, pool) = head(shapes, last, features)?;
    Ok(Inception { pool, in_channels, num_classes, ..Inception::imagenet() })
}

pub(super) fn v3(shapes: &Shapes) -> Result<Arch, String> {
    net(shapes, "Conv2d_1a_3x3.conv.weight", "fc.weight", 2048).map(Arch::InceptionV3)
}

pub(super) fn v4(shapes: &Shapes) -> Result<Arch, String> {
    net(shapes, "features.0.conv.weight", "last_linear.weight", 1536).map(Arch::InceptionV4)
}

pub(super) fn resnet_v2(shapes: &Shapes) -> Result<Arch, String> {
    net(shapes, "conv2d_1a.conv.weight", "classif.weight", 1536).map(Arch::InceptionResNetV2)
}
