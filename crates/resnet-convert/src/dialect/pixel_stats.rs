//! Detectron2's `pixel_mean` and `pixel_std`: the normalization that a detection checkpoint was trained with.

use resnet_image::preprocess::{Channels, Range};
use resnet_model::{Preprocess, RawTensor};

/// Mean and std of the input, one value per channel in the network's order.
#[derive(Debug)]
pub(super) struct PixelStats {
    mean: Vec<f32>,
    std: Vec<f32>,
}

impl PixelStats {
    /// Finds both tensors, under any prefix; `None` unless each has three values and their order is clear.
    pub(super) fn find(tensors: &[(String, RawTensor)]) -> Option<PixelStats> {
        let values = |suffix: &str| {
            let named = |name: &str| name.rsplit('.').next() == Some(suffix);
            let (name, tensor) = tensors.iter().find(|(name, t)| named(name) && t.elements() == 3)?;
            let values = tensor.to_f32(name).ok()?;
            values.iter().all(|v| v.is_finite()).then_some(values)
        };
        let stats = PixelStats { mean: values("pixel_mean")?, std: values("pixel_std")? };
        let [first, _, last] = stats.mean[..] else { return None };
        (first != last && stats.std.iter().all(|&s| s > 0.0)).then_some(stats)
    }

    /// Returns `true` for RGB. ImageNet's mean is largest in red and smallest in blue.
    pub(super) fn is_rgb(&self) -> bool {
        self.mean.first() > self.mean.last()
    }

    /// Returns `default` with this normalization.
    pub(super) fn preprocess(&self, default: Preprocess) -> Preprocess {
        // Means of unit-range images are at most 1.
        let range = if self.mean.iter().any(|&m| m > 1.0) { Range::Byte } else { Range::Unit };
        let channels = if self.is_rgb() { Channels::Rgb } else { Channels::Bgr };
        Preprocess { channels, range, mean: self.mean.clone(), std: self.std.clone(), ..default }
    }
}
