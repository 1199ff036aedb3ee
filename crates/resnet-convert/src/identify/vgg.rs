//! Identification of VGG networks.

use resnet_model::arch::{Arch, Vgg, VggNorm, VggStage};

use super::Shapes;

/// Limit on the module index.
const MAX_MODULES: usize = 4096;

pub(super) fn identify(shapes: &Shapes) -> Result<Arch, String> {
    let [_, in_channels, ..] = shapes.need("features.0.weight")?;
    let norm = if shapes.has("features.1.running_mean") { VggNorm::Batch } else { VggNorm::None };
    // Convolution, norm and ReLU are numbered modules; a further one before the next convolution is max pooling.
    let step = if norm == VggNorm::Batch { 3usize } else { 2 };
    let mut stages = Vec::<VggStage>::new();
    let mut expected = 0usize;
    for i in 0..MAX_MODULES {
        let Some([width, ..]) = shapes.conv(&format!("features.{i}.weight")) else { continue };
        match stages.last_mut() {
            Some(stage) if i == expected && stage.width == width => {
                stage.depth = stage.depth.saturating_add(1)
            }
            Some(stage) if i == expected => {
                return Err(format!(
                    "`features.{i}.weight` changes {} channels to {width} without max pooling",
                    stage.width
                ));
            }
            Some(_) if i != expected.saturating_add(1) => {
                return Err(format!("`features.{i}.weight`: a VGG has no convolution at this index"));
            }
            _ => stages.push(VggStage { depth: 1, width }),
        }
        expected = i.saturating_add(step);
    }
    let num_classes = shapes.linear("classifier.6.weight")?.map_or(0, |[classes, _]| classes);
    Ok(Arch::Vgg(Vgg { stages, norm, in_channels, num_classes }))
}
