//! The evaluation transforms of torchvision and timm, bit-identical to theirs on Pillow images.

mod config;
mod resample;

use std::ops;

use image::RgbImage;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};
use resample::{Source, Target, resample};

/// ImageNet's channel means of R, G and B, for values from 0 to 1.
const IMAGENET_MEAN: [f32; 3] = [0.485, 0.456, 0.406];
/// ImageNet's channel stds.
const IMAGENET_STD: [f32; 3] = [0.229, 0.224, 0.225];

/// CLIP's channel means of R, G and B, for values from 0 to 1.
pub const CLIP_MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
/// CLIP's channel stds.
pub const CLIP_STD: [f32; 3] = [0.268_629_54, 0.261_302_6, 0.275_777_1];

/// An evaluation transform: resize, center crop, scale and normalize. It belongs to the weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Preprocess {
    /// Size before the crop.
    pub resize: Resize,
    /// Height and width in pixels of the center crop, which is the network's input.
    pub crop: [usize; 2],
    /// Resampling filter.
    pub filter: Filter,
    /// Channels and their order.
    #[serde(default)]
    pub channels: Channels,
    /// Range that pixel values are scaled to before normalization.
    #[serde(default)]
    pub range: Range,
    /// Channel means, in the order of `channels`.
    pub mean: Vec<f32>,
    /// Channel stds, in the order of `channels`.
    pub std: Vec<f32>,
}

/// The size that an image is resized to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resize {
    /// The shorter side to this many pixels, keeping the aspect ratio.
    ShorterSide(usize),
    /// To this height and width, ignoring the aspect ratio (timm's `squash`).
    Exact([usize; 2]),
    /// To the smallest size that covers this height and width, keeping the aspect ratio (timm's `center` for inputs
    /// that are not square).
    Cover([usize; 2]),
    /// To the largest size within this height and width, keeping the aspect ratio; the rest of the crop is filled with
    /// the mean (timm's `border`).
    Contain([usize; 2]),
}

/// A resampling filter, antialiased as in Pillow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Filter {
    /// Nearest neighbor.
    Nearest,
    /// Bilinear (triangle filter).
    Bilinear,
    /// Bicubic with a = -1/2.
    Bicubic,
    /// Lanczos with a = 3.
    Lanczos,
}

/// Channels of the network's input.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Channels {
    /// Red, green, blue.
    #[default]
    Rgb,
    /// Blue, green, red, as in Caffe.
    Bgr,
    /// Luminance (ITU-R 601-2), as Pillow's `convert("L")`.
    #[serde(alias = "grey")]
    Gray,
}

/// The range of pixel values before normalization.
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
    /// torchvision's `ImageClassification` preset: shorter side to `resize` pixels with an antialiased bilinear filter,
    /// center crop of `crop` pixels, ImageNet's mean and std. `IMAGENET1K_V1` weights use 256 and 224, `V2` 232 and 224.
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

    /// Checks sizes, means and stds.
    ///
    /// # Errors
    ///
    /// [`Error::Preprocess`] if a size is 0 or more than 16,384 pixels, or if `mean` or `std` does not hold one finite
    /// number per channel, positive for `std`.
    pub fn validate(&self) -> Result<()> {
        const MAX_SIDE: usize = 1 << 14;
        let sides = match self.resize {
            Resize::ShorterSide(side) => [side; 2],
            Resize::Exact(sides) | Resize::Cover(sides) | Resize::Contain(sides) => sides,
        };
        for (field, sides) in [("resize", sides), ("crop", self.crop)] {
            if let Some(side) = sides.iter().find(|&&s| s == 0 || s > MAX_SIDE) {
                return invalid(field, format!("{side} pixels"), format!("1 to {MAX_SIDE}"));
            }
        }
        let channels = self.channels.count();
        for (field, values) in [("mean", &self.mean), ("std", &self.std)] {
            if values.len() != channels || values.iter().any(|v| !v.is_finite()) {
                return invalid(field, format!("{values:?}"), format!("{channels} finite numbers"));
            }
        }
        match self.std.iter().find(|&&s| s < f32::MIN_POSITIVE) {
            Some(std) => invalid("std", std.to_string(), "a number above 0"),
            None => Ok(()),
        }
    }

    /// Returns the shape of the network's input for one image, `[C, H, W]`.
    pub fn shape(&self) -> [usize; 3] {
        [self.channels.count(), self.crop[0], self.crop[1]]
    }

    /// Returns the network's input, `[C, H, W]`, for an RGB image.
    ///
    /// # Errors
    ///
    /// The errors of [`validate`](Self::validate), [`Error::EmptyImage`], and [`Error::TooNarrow`] if the shorter side
    /// would be resized to 0 pixels.
    pub fn apply(&self, image: &RgbImage) -> Result<Vec<f32>> {
        self.validate()?;
        let mut out = vec![0.0; self.shape().iter().product()];
        self.apply_into(image, &mut out)?;
        Ok(out)
    }

    /// Writes the network's input to `out`, the slice of one image in a batch `[N, C, H, W]`.
    ///
    /// # Errors
    ///
    /// The errors of [`apply`](Self::apply), and [`Error::OutputLength`] if `out` does not have the size of
    /// [`shape`](Self::shape).
    pub fn apply_into(&self, image: &RgbImage, out: &mut [f32]) -> Result<()> {
        let pixels = self.pixels(image)?;
        let [channels, height, width] = self.shape();
        if out.len() != channels * height * width {
            return Err(Error::OutputLength { found: out.len(), expected: self.shape() });
        }
        for (channel, out) in out.chunks_exact_mut(height * width).enumerate() {
            let (mean, std) = (self.mean[channel], self.std[channel]);
            // PyTorch's order of operations, for the same rounding.
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

    /// The crop before normalization, `[H, W, C]`; three channels are in the order R, G, B.
    fn pixels(&self, image: &RgbImage) -> Result<Vec<u8>> {
        self.validate()?;
        let (width, height) = (image.width() as usize, image.height() as usize);
        if width == 0 || height == 0 {
            return Err(Error::EmptyImage { width, height });
        }
        let size = self.resized(height, width)?;
        let [rows, columns] = [0, 1].map(|axis| CropWindow::new(size[axis], self.crop[axis]));
        let target =
            Target { size, rows: rows.range.clone(), columns: columns.range.clone(), filter: self.filter };
        let window = if self.channels == Channels::Gray {
            let gray: Vec<u8> = image.pixels().map(|p| luminance(p.0)).collect();
            resample::<1>(Source { pixels: &gray, width, height }, &target)
        } else {
            resample::<3>(Source { pixels: image.as_raw(), width, height }, &target)
        };
        if [rows.range.len(), columns.range.len()] == self.crop {
            return Ok(window);
        }
        let channels = self.channels.count();
        let mut padded = self.fill().repeat(self.crop[0] * self.crop[1]);
        let lines = padded.chunks_exact_mut(channels * self.crop[1]).skip(rows.before);
        for (out, line) in lines.zip(window.chunks_exact(channels * columns.range.len())) {
            out[channels * columns.before..][..line.len()].copy_from_slice(line);
        }
        Ok(padded)
    }

    /// Returns the height and width that an image of this height and width is resized to.
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
            return Err(Error::TooNarrow { width, height });
        }
        Ok(size)
    }

    /// The padding color where the crop is larger than the image: R, G, B or gray.
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
    /// Returns the number of channels.
    pub fn count(self) -> usize {
        if self == Channels::Gray { 1 } else { 3 }
    }
}

fn invalid<T>(field: &'static str, found: String, expected: impl Into<String>) -> Result<T> {
    Err(Error::Preprocess { field, found, expected: expected.into() })
}

/// ITU-R 601-2 luminance, as Pillow's `convert("L")`. Maps a gray pixel to its level.
fn luminance([r, g, b]: [u8; 3]) -> u8 {
    ((u32::from(r) * 19_595 + u32::from(g) * 38_470 + u32::from(b) * 7_471 + 0x8000) >> 16) as u8
}

/// The center crop along one axis.
struct CropWindow {
    /// The pixels of the resized image inside the crop.
    range: ops::Range<usize>,
    /// Padding before it.
    before: usize,
}

impl CropWindow {
    fn new(size: usize, crop: usize) -> CropWindow {
        match size.checked_sub(crop) {
            // Python's `round`: ties to even.
            Some(rest) => {
                let start = (rest as f64 / 2.0).round_ties_even() as usize;
                CropWindow { range: start..start + crop, before: 0 }
            }
            None => CropWindow { range: 0..size, before: (crop - size) / 2 },
        }
    }
}

#[cfg(test)]
mod tests;
