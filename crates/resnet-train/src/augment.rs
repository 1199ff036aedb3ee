//! Augmentation of training images. It depends on the seed, the epoch and the image's index only.

use resnet_image::preprocess::{Channels, Range, Resize};
use resnet_model::Preprocess;
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::dataset::ImageSource;
use crate::error::require;
use crate::random::Random;

mod color;
mod geometry;
mod mix;
mod rand;

use geometry::Interpolation;
pub(crate) use mix::mix;

/// Augmentation of training images, in this order: crop, flip, affine transform, color jitter, RandAugment, random
/// erasing, mixup or CutMix.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Augment {
    /// Crop.
    pub crop: Crop,
    /// For `random`: minimum and maximum fraction of the image's area.
    pub scale: [f64; 2],
    /// For `random`: minimum and maximum aspect ratio, width / height.
    pub ratio: [f64; 2],
    /// For `pad`: maximum shift of the evaluation crop in pixels, filled with zeros.
    pub pad: usize,
    /// Probability of a horizontal flip.
    pub hflip: f64,
    /// Maximum rotation in degrees.
    pub degrees: f64,
    /// Maximum relative zoom, in or out.
    pub zoom: f64,
    /// Maximum translation along each axis, as a fraction of the size.
    pub translate: f64,
    /// Color jitter: brightness factor of 1 ± this.
    pub brightness: f64,
    /// Color jitter: contrast factor of 1 ± this.
    pub contrast: f64,
    /// Color jitter: saturation factor of 1 ± this.
    pub saturation: f64,
    /// Color jitter: maximum hue shift, at most 0.5 (half the color circle).
    pub hue: f64,
    /// RandAugment (arXiv 1909.13719): number of operations, drawn from torchvision's list.
    pub rand_num_ops: usize,
    /// RandAugment: magnitude, 0 to 30.
    pub rand_magnitude: usize,
    /// Probability of random erasing (arXiv 1708.04896).
    pub random_erasing: f64,
    /// Mixup (arXiv 1710.09412): alpha of the beta distribution; 0 is off.
    pub mixup: f64,
    /// CutMix (arXiv 1905.04899): alpha of the beta distribution; 0 is off. With both, one is chosen per batch.
    pub cutmix: f64,
}

/// Crop of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Crop {
    /// A random crop, resized (torchvision's `RandomResizedCrop`).
    Random,
    /// The evaluation crop, shifted.
    Pad,
    /// The evaluation crop.
    Center,
}

impl Default for Augment {
    fn default() -> Self {
        Augment { crop: Crop::Random, hflip: 0.5, ..Augment::none() }
    }
}

impl Augment {
    /// Returns no augmentation: images are those of the evaluation.
    pub fn none() -> Augment {
        Augment {
            crop: Crop::Center,
            scale: [0.08, 1.0],
            ratio: [3.0 / 4.0, 4.0 / 3.0],
            pad: 4,
            hflip: 0.0,
            degrees: 0.0,
            zoom: 0.0,
            translate: 0.0,
            brightness: 0.0,
            contrast: 0.0,
            saturation: 0.0,
            hue: 0.0,
            rand_num_ops: 0,
            rand_magnitude: 9,
            random_erasing: 0.0,
            mixup: 0.0,
            cutmix: 0.0,
        }
    }

    pub(crate) fn validate(&self) -> Result<()> {
        let fraction = |name, x: f64| require(name, x, "0 to 1", (0.0..=1.0).contains(&x));
        let ordered = |name, [low, high]: [f64; 2], most: f64| {
            let valid = low > 0.0 && low <= high && high <= most;
            require(name, format!("[{low}, {high}]"), "two ascending numbers above 0", valid)
        };
        ordered("augment.scale", self.scale, 1.0)?;
        ordered("augment.ratio", self.ratio, 100.0)?;
        fraction("augment.hflip", self.hflip)?;
        fraction("augment.brightness", self.brightness)?;
        fraction("augment.contrast", self.contrast)?;
        fraction("augment.saturation", self.saturation)?;
        fraction("augment.random_erasing", self.random_erasing)?;
        require("augment.zoom", self.zoom, "0 to less than 1", (0.0..1.0).contains(&self.zoom))?;
        fraction("augment.translate", self.translate)?;
        require("augment.degrees", self.degrees, "0 to 180", (0.0..=180.0).contains(&self.degrees))?;
        require("augment.hue", self.hue, "0 to 0.5", (0.0..=0.5).contains(&self.hue))?;
        require("augment.pad", self.pad, "at most 1024", self.pad <= 1024)?;
        require("augment.rand_num_ops", self.rand_num_ops, "at most 14", self.rand_num_ops <= 14)?;
        require("augment.rand_magnitude", self.rand_magnitude, "0 to 30", self.rand_magnitude <= 30)?;
        let alpha = |x: f64| (0.0..=100.0).contains(&x);
        require("augment.mixup", self.mixup, "0 to 100", alpha(self.mixup))?;
        require("augment.cutmix", self.cutmix, "0 to 100", alpha(self.cutmix))
    }

    /// Returns the augmented, normalized network input `[C, H, W]`.
    ///
    /// # Errors
    /// An image that cannot be read or is empty.
    pub fn apply(
        &self,
        image: &ImageSource,
        preprocess: &Preprocess,
        random: &mut Random,
    ) -> Result<Vec<f32>> {
        let mut pixels = self.cropped(image, preprocess, random)?;
        if random.happens(self.hflip) {
            pixels.flip();
        }
        if self.degrees > 0.0 || self.zoom > 0.0 || self.translate > 0.0 {
            let mut around = |bound: f64| random.between(-bound, bound);
            let (angle, zoom) = (around(self.degrees).to_radians(), 1.0 + around(self.zoom));
            let [dy, dx] = pixels.size.map(|side| around(self.translate) * side as f64);
            let (sin, cos) = (angle.sin() * zoom, angle.cos() * zoom);
            pixels = pixels.warped([[cos, -sin, dx], [sin, cos, dy]], Interpolation::Bilinear);
        }
        self.jitter(&mut pixels, random);
        for _ in 0..self.rand_num_ops {
            rand::apply(&mut pixels, self.rand_magnitude, random);
        }
        let mut values = pixels.normalized(preprocess);
        if random.happens(self.random_erasing) {
            geometry::erase(&mut values, pixels.size, random);
        }
        Ok(values)
    }

    fn cropped(&self, image: &ImageSource, preprocess: &Preprocess, random: &mut Random) -> Result<Pixels> {
        let channels = match preprocess.channels {
            Channels::Gray => Channels::Gray,
            Channels::Rgb | Channels::Bgr => Channels::Rgb,
        };
        let count = channels.count();
        // Levels 0 to 255; they are normalized at the end.
        let plain = Preprocess {
            channels,
            range: Range::Byte,
            mean: vec![0.0; count],
            std: vec![1.0; count],
            ..preprocess.clone()
        };
        let pixels = |values| Pixels { values, channels: count, size: preprocess.crop };
        if self.crop != Crop::Random {
            let mut pixels = pixels(plain.apply(&*image.open()?)?);
            if self.crop == Crop::Pad {
                let pad = self.pad as i64;
                let mut moved = || random.below(2 * self.pad + 1) as i64 - pad;
                let (dy, dx) = (moved(), moved());
                pixels =
                    pixels.warped([[1.0, 0.0, dx as f64], [0.0, 1.0, dy as f64]], Interpolation::Bilinear);
            }
            return Ok(pixels);
        }
        let crop = image.open_part(|size| geometry::random_crop(size, self.scale, self.ratio, random))?;
        let exact = Preprocess { resize: Resize::Exact(preprocess.crop), ..plain };
        Ok(pixels(exact.apply(&crop)?))
    }

    /// Applies torchvision's `ColorJitter`: four changes in random order.
    fn jitter(&self, pixels: &mut Pixels, random: &mut Random) {
        let amounts = [self.brightness, self.contrast, self.saturation, self.hue];
        if amounts == [0.0; 4] {
            return;
        }
        for which in random.permutation(4) {
            let amount = amounts[which];
            let change = random.between(-amount, amount);
            match which {
                _ if amount == 0.0 => {}
                0 => pixels.adjust_brightness(1.0 + change),
                1 => pixels.adjust_contrast(1.0 + change),
                2 => pixels.adjust_saturation(1.0 + change),
                _ => pixels.shift_hue(change),
            }
        }
    }
}

/// An image being augmented: levels 0 to 255, `[C, H, W]`; three channels are RGB.
#[derive(Debug, Clone, PartialEq)]
struct Pixels {
    values: Vec<f32>,
    channels: usize,
    /// Height and width.
    size: [usize; 2],
}

impl Pixels {
    fn area(&self) -> usize {
        self.size[0] * self.size[1]
    }

    fn normalized(&self, preprocess: &Preprocess) -> Vec<f32> {
        let area = self.area();
        let mut out = Vec::with_capacity(self.values.len());
        for channel in 0..self.channels {
            let source =
                if preprocess.channels == Channels::Bgr { self.channels - 1 - channel } else { channel };
            let unit = if preprocess.range == Range::Unit { 255.0 } else { 1.0 };
            let (mean, std) = (preprocess.mean[channel], preprocess.std[channel]);
            out.extend(self.values[source * area..][..area].iter().map(|v| (v / unit - mean) / std));
        }
        out
    }
}

#[cfg(test)]
mod tests;
