//! How training images are varied. What is done to an image depends on the seed, the epoch and the image's number alone.

use resnet_image::preprocess::{Channels, Range, Resize};
use resnet_model::Preprocess;
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::config::require;
use crate::dataset::Source;
use crate::random::Random;

mod colour;
mod geometry;
mod mix;
mod rand;

pub(crate) use mix::mix;

/// How training images are varied, in this order: crop, flip, turn, colours, RandAugment, erasing; then pairs are mixed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Augment {
    /// Which part of an image is taken.
    pub crop: Crop,
    /// For `random`: the least and the largest share of the area.
    pub scale: [f64; 2],
    /// For `random`: the least and the largest width divided by height.
    pub ratio: [f64; 2],
    /// For `pad`: the most pixels by which the evaluation's crop is moved, zeros following.
    pub pad: usize,
    /// The probability of left and right exchanged.
    pub flip: f64,
    /// The most degrees by which an image is turned.
    pub degrees: f64,
    /// The largest share by which an image is enlarged or made smaller.
    pub zoom: f64,
    /// The largest share of its size by which an image is moved along each axis.
    pub shift: f64,
    /// How much brightness changes: a factor of up to 1 ± this.
    pub brightness: f64,
    /// How much contrast changes.
    pub contrast: f64,
    /// How much saturation changes.
    pub saturation: f64,
    /// How much hue changes, at most 0.5: half a turn.
    pub hue: f64,
    /// RandAugment (arXiv 1909.13719): how many operations of torchvision's list, each equally likely.
    pub rand_operations: usize,
    /// RandAugment: how strong, 0 to 30.
    pub rand_magnitude: usize,
    /// The probability that a rectangle is erased (arXiv 1708.04896).
    pub erase: f64,
    /// Mixup (arXiv 1710.09412): the beta distribution's parameter; 0 is off.
    pub mixup: f64,
    /// CutMix (arXiv 1905.04899): the beta distribution's parameter; 0 is off. With both, one is chosen per batch.
    pub cutmix: f64,
}

/// Which part of an image is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Crop {
    /// A random part, resized (torchvision's `RandomResizedCrop`).
    Random,
    /// The evaluation's crop, moved.
    Pad,
    /// The evaluation's crop.
    Centre,
}

impl Default for Augment {
    fn default() -> Self {
        Augment { crop: Crop::Random, flip: 0.5, ..Augment::none() }
    }
}

impl Augment {
    /// Nothing is varied: images are those of the evaluation.
    pub fn none() -> Augment {
        Augment {
            crop: Crop::Centre,
            scale: [0.08, 1.0],
            ratio: [3.0 / 4.0, 4.0 / 3.0],
            pad: 4,
            flip: 0.0,
            degrees: 0.0,
            zoom: 0.0,
            shift: 0.0,
            brightness: 0.0,
            contrast: 0.0,
            saturation: 0.0,
            hue: 0.0,
            rand_operations: 0,
            rand_magnitude: 9,
            erase: 0.0,
            mixup: 0.0,
            cutmix: 0.0,
        }
    }

    pub(crate) fn validate(&self) -> Result<()> {
        let share = |name, x: f64| require(name, x, "0 to 1", (0.0..=1.0).contains(&x));
        let ordered = |name, [low, high]: [f64; 2], most: f64| {
            let fine = low > 0.0 && low <= high && high <= most;
            require(name, format!("[{low}, {high}]"), "two ascending numbers above 0 and within reason", fine)
        };
        ordered("augment.scale", self.scale, 1.0)?;
        ordered("augment.ratio", self.ratio, 100.0)?;
        share("augment.flip", self.flip)?;
        share("augment.brightness", self.brightness)?;
        share("augment.contrast", self.contrast)?;
        share("augment.saturation", self.saturation)?;
        share("augment.erase", self.erase)?;
        require("augment.zoom", self.zoom, "0 to less than 1", (0.0..1.0).contains(&self.zoom))?;
        share("augment.shift", self.shift)?;
        require("augment.degrees", self.degrees, "0 to 180", (0.0..=180.0).contains(&self.degrees))?;
        require("augment.hue", self.hue, "0 to 0.5", (0.0..=0.5).contains(&self.hue))?;
        require("augment.pad", self.pad, "at most 1024", self.pad <= 1024)?;
        require("augment.rand_operations", self.rand_operations, "at most 14", self.rand_operations <= 14)?;
        require("augment.rand_magnitude", self.rand_magnitude, "0 to 30", self.rand_magnitude <= 30)?;
        let alpha = |x: f64| (0.0..=100.0).contains(&x);
        require("augment.mixup", self.mixup, "0 to 100", alpha(self.mixup))?;
        require("augment.cutmix", self.cutmix, "0 to 100", alpha(self.cutmix))
    }

    /// The network's input `[C, H, W]` made of a varied `image`, normalised as `preprocess` says.
    ///
    /// Errors: an image that cannot be read or has no pixels.
    pub fn apply(&self, image: &Source, preprocess: &Preprocess, random: &mut Random) -> Result<Vec<f32>> {
        let mut pixels = self.cropped(image, preprocess, random)?;
        if random.happens(self.flip) {
            pixels.flip();
        }
        if self.degrees > 0.0 || self.zoom > 0.0 || self.shift > 0.0 {
            let mut around = |bound: f64| random.between(-bound, bound);
            let (angle, zoom) = (around(self.degrees).to_radians(), 1.0 + around(self.zoom));
            let [dy, dx] = pixels.size.map(|side| around(self.shift) * side as f64);
            let (sin, cos) = (angle.sin() * zoom, angle.cos() * zoom);
            pixels = pixels.warped([[cos, -sin, dx], [sin, cos, dy]]);
        }
        self.jitter(&mut pixels, random);
        for _ in 0..self.rand_operations {
            rand::apply(&mut pixels, self.rand_magnitude, random);
        }
        let mut values = pixels.normalised(preprocess);
        if random.happens(self.erase) {
            geometry::erase(&mut values, pixels.size, random);
        }
        Ok(values)
    }

    fn cropped(&self, image: &Source, preprocess: &Preprocess, random: &mut Random) -> Result<Pixels> {
        let channels = match preprocess.channels {
            Channels::Gray => Channels::Gray,
            Channels::Rgb | Channels::Bgr => Channels::Rgb,
        };
        let count = channels.count();
        // The levels themselves; they are normalised at the end.
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
                pixels = pixels.warped([[1.0, 0.0, dx as f64], [0.0, 1.0, dy as f64]]);
            }
            return Ok(pixels);
        }
        let part = image.open_part(|size| geometry::part(size, self.scale, self.ratio, random))?;
        let exact = Preprocess { resize: Resize::Exact(preprocess.crop), ..plain };
        Ok(pixels(exact.apply(&part)?))
    }

    /// torchvision's `ColorJitter`: the four changes in random order.
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
                0 => pixels.brighten(1.0 + change),
                1 => pixels.contrast(1.0 + change),
                2 => pixels.saturate(1.0 + change),
                _ => pixels.turn_hue(change),
            }
        }
    }
}

/// An image while it is varied: levels 0 to 255, `[C, H, W]`; three channels are R, G, B.
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

    fn normalised(&self, preprocess: &Preprocess) -> Vec<f32> {
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
