//! How an image becomes a network's input: the evaluation transforms of torchvision and timm on Pillow images, equal
//! to the last bit.

mod config;
mod resample;

use std::ops::Range as Span;

use image::RgbImage;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};
use resample::{Source, Target, resample};

/// ImageNet's channel means of R, G and B, for values from 0 to 1.
const IMAGENET_MEAN: [f32; 3] = [0.485, 0.456, 0.406];
/// ImageNet's channel deviations.
const IMAGENET_STD: [f32; 3] = [0.229, 0.224, 0.225];

/// CLIP's channel means of R, G and B, for values from 0 to 1.
pub const CLIP_MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
/// CLIP's channel deviations.
pub const CLIP_STD: [f32; 3] = [0.268_629_54, 0.261_302_6, 0.275_777_1];

/// How an image becomes a network's input: resize, crop, scale, normalise. It belongs to the weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Preprocess {
    /// What the image is resized to before the crop.
    pub resize: Resize,
    /// Height and width in pixels of the centre crop: the network's input.
    pub crop: [usize; 2],
    /// The resampling filter.
    pub filter: Filter,
    /// Which channels, in which order.
    #[serde(default)]
    pub channels: Channels,
    /// What pixel values are scaled to before normalisation.
    #[serde(default)]
    pub range: Range,
    /// Subtracted from each channel, in the order of `channels`.
    pub mean: Vec<f32>,
    /// Each channel is divided by it.
    pub std: Vec<f32>,
}

/// What an image is resized to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resize {
    /// The shorter side to this many pixels, keeping the aspect ratio.
    ShorterSide(usize),
    /// To this height and width, whatever the aspect ratio (timm's `squash`).
    Exact([usize; 2]),
    /// To the smallest size that covers this height and width, keeping the aspect ratio (timm's `center` for inputs
    /// that are not square).
    Cover([usize; 2]),
    /// To the largest size within this height and width, keeping the aspect ratio; the crop's rest is filled with the
    /// mean (timm's `border`).
    Contain([usize; 2]),
}

/// A resampling filter, antialiased as Pillow's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Filter {
    /// Nearest pixel.
    Nearest,
    /// Triangle.
    Bilinear,
    /// Cubic with a = -1/2.
    Bicubic,
    /// Lanczos with three lobes.
    Lanczos,
}

/// Channels of the network's input.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Channels {
    /// Red, green, blue.
    #[default]
    Rgb,
    /// Blue, green, red, as Caffe's networks take it.
    Bgr,
    /// One channel of luminance (ITU-R 601), as Pillow's `convert("L")`.
    Grey,
}

/// The range of pixel values before normalisation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Range {
    /// 0 to 1.
    #[default]
    Unit,
    /// 0 to 255.
    Byte,
}

impl Preprocess {
    /// torchvision's evaluation transform: shorter side to `resize` pixels with an antialiased bilinear filter, centre
    /// crop of `crop` pixels, ImageNet's mean and deviation. `IMAGENET1K_V1` weights: 256 and 224; V2: 232 and 224.
    pub fn torchvision(resize: usize, crop: usize) -> Preprocess {
        Preprocess {
            resize: Resize::ShorterSide(resize),
            crop: [crop; 2],
            filter: Filter::Bilinear,
            channels: Channels::Rgb,
            range: Range::Unit,
            mean: IMAGENET_MEAN.to_vec(),
            std: IMAGENET_STD.to_vec(),
        }
    }

    /// Refuses sizes of 0 or beyond reason, and means and deviations that are not one finite number per channel.
    pub fn validate(&self) -> Result<()> {
        const MAX_SIDE: usize = 1 << 14;
        let sides = match self.resize {
            Resize::ShorterSide(side) => [side; 2],
            Resize::Exact(sides) | Resize::Cover(sides) | Resize::Contain(sides) => sides,
        };
        if let Some(side) = sides.iter().chain(&self.crop).find(|&&s| s == 0 || s > MAX_SIDE) {
            return Err(Error::Preprocess(format!("a size of {side} pixels, expected 1 to {MAX_SIDE}")));
        }
        let channels = self.channels.count();
        for (what, values) in [("mean", &self.mean), ("std", &self.std)] {
            if values.len() != channels || values.iter().any(|v| !v.is_finite()) {
                return Err(Error::Preprocess(format!(
                    "{what} is {values:?}, expected {channels} finite numbers"
                )));
            }
        }
        if let Some(std) = self.std.iter().find(|&&s| s < f32::MIN_POSITIVE) {
            return Err(Error::Preprocess(format!("std is {std}, expected more than 0")));
        }
        Ok(())
    }

    /// Shape of the network's input for one image, `[C, H, W]`.
    pub fn shape(&self) -> [usize; 3] {
        [self.channels.count(), self.crop[0], self.crop[1]]
    }

    /// The network's input, `[C, H, W]`, of an image as [`decode`](crate::decode) returns it.
    ///
    /// # Errors
    ///
    /// [`Error::Preprocess`] if the description cannot be used, [`Error::Image`] if the image has no pixels.
    pub fn apply(&self, image: &RgbImage) -> Result<Vec<f32>> {
        self.validate()?;
        let mut out = vec![0.0; self.shape().iter().product()];
        self.apply_into(image, &mut out)?;
        Ok(out)
    }

    /// [`apply`](Self::apply) into `out`, one image's part of a batch `[N, C, H, W]`.
    ///
    /// # Errors
    ///
    /// As [`apply`](Self::apply); [`Error::Preprocess`] if `out` has another length than [`shape`](Self::shape).
    pub fn apply_into(&self, image: &RgbImage, out: &mut [f32]) -> Result<()> {
        let pixels = self.pixels(image)?;
        let [channels, height, width] = self.shape();
        if out.len() != channels * height * width {
            return Err(Error::Preprocess(format!(
                "the output has room for {} values, expected {channels}×{height}×{width}",
                out.len()
            )));
        }
        for (channel, out) in out.chunks_exact_mut(height * width).enumerate() {
            let (mean, std) = (self.mean[channel], self.std[channel]);
            // In PyTorch's order of operations, so that they round alike.
            let value = |level: usize| match self.range {
                Range::Unit => (level as f32 / 255.0 - mean) / std,
                Range::Byte => (level as f32 - mean) / std,
            };
            let values: [f32; 256] = std::array::from_fn(value);
            let source = if self.channels == Channels::Bgr { channels - 1 - channel } else { channel };
            for (out, pixel) in out.iter_mut().zip(pixels.chunks_exact(channels)) {
                *out = values[usize::from(pixel[source])];
            }
        }
        Ok(())
    }

    /// The crop before normalisation, `[H, W, C]`; three channels are in the order R, G, B.
    fn pixels(&self, image: &RgbImage) -> Result<Vec<u8>> {
        self.validate()?;
        let (width, height) = (image.width() as usize, image.height() as usize);
        if width == 0 || height == 0 {
            return Err(Error::Image(format!("the image has {width}×{height} pixels")));
        }
        let size = self.resized(height, width)?;
        let [rows, columns] = [0, 1].map(|axis| Window::new(size[axis], self.crop[axis]));
        let target =
            Target { size, rows: rows.taken.clone(), columns: columns.taken.clone(), filter: self.filter };
        let window = if self.channels == Channels::Grey {
            let grey: Vec<u8> = image.pixels().map(|p| luminance(p.0)).collect();
            resample::<1>(Source { pixels: &grey, width, height }, &target)
        } else {
            resample::<3>(Source { pixels: image.as_raw(), width, height }, &target)
        };
        if [rows.taken.len(), columns.taken.len()] == self.crop {
            return Ok(window);
        }
        let channels = self.channels.count();
        let mut padded = self.fill().repeat(self.crop[0] * self.crop[1]);
        let lines = padded.chunks_exact_mut(channels * self.crop[1]).skip(rows.before);
        for (out, line) in lines.zip(window.chunks_exact(channels * columns.taken.len())) {
            out[channels * columns.before..][..line.len()].copy_from_slice(line);
        }
        Ok(padded)
    }

    /// Height and width that an image of this height and width is resized to.
    fn resized(&self, height: usize, width: usize) -> Result<[usize; 2]> {
        let scaled = |target: [usize; 2], choose: fn(f64, f64) -> f64| {
            let ratio = choose(height as f64 / target[0] as f64, width as f64 / target[1] as f64);
            [height, width].map(|side| (side as f64 / ratio).round_ties_even() as usize)
        };
        let size = match self.resize {
            Resize::Exact(size) => size,
            Resize::Cover(target) => scaled(target, f64::min),
            Resize::Contain(target) => scaled(target, f64::max),
            Resize::ShorterSide(side) => {
                // torchvision's `int(size * long / short)`.
                let long = (side * height.max(width)) as f64 / height.min(width) as f64;
                if width <= height { [long as usize, side] } else { [side, long as usize] }
            }
        };
        if size.contains(&0) {
            return Err(Error::Image(format!(
                "an image of {width}×{height} pixels is too narrow to be resized"
            )));
        }
        Ok(size)
    }

    /// The levels beyond the image where the crop is larger, R, G, B or grey.
    fn fill(&self) -> Vec<u8> {
        let level = |mean: &f32| {
            let scale = if self.range == Range::Unit { 255.0 } else { 1.0 };
            (f64::from(*mean) * scale).round_ties_even().clamp(0.0, 255.0) as u8
        };
        let mut fill: Vec<u8> = match self.resize {
            Resize::Contain(_) => self.mean.iter().map(level).collect(),
            _ => vec![0; self.channels.count()],
        };
        if self.channels == Channels::Bgr {
            fill.reverse();
        }
        fill
    }
}

impl Channels {
    /// Number of channels.
    pub fn count(self) -> usize {
        if self == Channels::Grey { 1 } else { 3 }
    }
}

/// ITU-R 601 luminance, as Pillow's `convert("L")`. Of a grey pixel it is its level.
fn luminance([r, g, b]: [u8; 3]) -> u8 {
    ((u32::from(r) * 19_595 + u32::from(g) * 38_470 + u32::from(b) * 7_471 + 0x8000) >> 16) as u8
}

/// The centre crop along one axis.
struct Window {
    /// What is taken of the resized image.
    taken: Span<usize>,
    /// Padding before it.
    before: usize,
}

impl Window {
    fn new(size: usize, crop: usize) -> Window {
        match size.checked_sub(crop) {
            // Python's `round`: to the even number if two are equally near.
            Some(rest) => {
                let start = (rest as f64 / 2.0).round_ties_even() as usize;
                Window { taken: start..start + crop, before: 0 }
            }
            None => Window { taken: 0..size, before: (crop - size) / 2 },
        }
    }
}

#[cfg(test)]
mod tests;
