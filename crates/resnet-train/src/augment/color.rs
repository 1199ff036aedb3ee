//! Color operations of Pillow and torchvision, on levels 0 to 255.

use super::Pixels;

impl Pixels {
    /// Returns the luma of every pixel (ITU-R 601).
    fn luma(&self) -> Vec<f32> {
        match self.channels {
            3 => {
                let (r, rest) = self.values.split_at(self.area());
                let (g, b) = rest.split_at(self.area());
                r.iter().zip(g).zip(b).map(|((r, g), b)| 0.299 * r + 0.587 * g + 0.114 * b).collect()
            }
            _ => self.values.clone(),
        }
    }

    /// Blends: `other + (self − other) · factor`, clamped to 0 to 255.
    fn blend(&mut self, factor: f64, other: impl Fn(usize) -> f32) {
        let factor = factor as f32;
        for (i, value) in self.values.iter_mut().enumerate() {
            let other = other(i);
            *value = (other + (*value - other) * factor).clamp(0.0, 255.0);
        }
    }

    /// Adjusts brightness: 0 is black, 1 the image.
    pub(super) fn adjust_brightness(&mut self, factor: f64) {
        self.blend(factor, |_| 0.0);
    }

    /// Adjusts contrast: 0 is the mean gray, 1 the image.
    pub(super) fn adjust_contrast(&mut self, factor: f64) {
        let luma = self.luma();
        let mean = (luma.iter().map(|v| f64::from(*v)).sum::<f64>() / luma.len().max(1) as f64) as f32;
        self.blend(factor, |_| mean);
    }

    /// Adjusts saturation: 0 is grayscale, 1 the image.
    pub(super) fn adjust_saturation(&mut self, factor: f64) {
        let (luma, area) = (self.luma(), self.area());
        self.blend(factor, |i| luma[i % area]);
    }

    /// Adjusts sharpness: 0 is smoothed, 1 the image, 2 sharpened; the border is kept.
    pub(super) fn adjust_sharpness(&mut self, factor: f64) {
        let [height, width] = self.size;
        let source = self.values.clone();
        self.blend(factor, |i| {
            let (y, x) = (i / width % height, i % width);
            if y == 0 || x == 0 || y + 1 == height || x + 1 == width {
                return source[i];
            }
            let around: f32 = [i - width, i, i + width]
                .iter()
                .map(|&at| source[at - 1] + source[at] + source[at + 1])
                .sum();
            (around + 4.0 * source[i]) / 13.0
        });
    }

    /// Shifts every hue by `turns` of the color circle.
    pub(super) fn shift_hue(&mut self, turns: f64) {
        if self.channels != 3 {
            return;
        }
        let area = self.area();
        for i in 0..area {
            let rgb = [0, 1, 2].map(|c| self.values[c * area + i]);
            let shifted = hue(rgb, turns as f32);
            for (c, value) in shifted.into_iter().enumerate() {
                self.values[c * area + i] = value;
            }
        }
    }

    /// Keeps the highest `bits` bits of every level.
    pub(super) fn posterize(&mut self, bits: u32) {
        let mask = !(0xffu32 >> bits.min(8)) & 0xff;
        self.values.iter_mut().for_each(|v| *v = ((*v as u32) & mask) as f32);
    }

    /// Inverts levels of at least `threshold`.
    pub(super) fn solarize(&mut self, threshold: f32) {
        self.values.iter_mut().for_each(|v| *v = if *v >= threshold { 255.0 - *v } else { *v });
    }

    /// Stretches each channel to 0 to 255.
    pub(super) fn autocontrast(&mut self) {
        let area = self.area().max(1);
        for plane in self.values.chunks_exact_mut(area) {
            let low = plane.iter().copied().fold(f32::INFINITY, f32::min);
            let high = plane.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            if high > low {
                plane.iter_mut().for_each(|v| *v = (*v - low) * 255.0 / (high - low));
            }
        }
    }

    /// Equalizes the histogram of each channel (Pillow's `equalize`).
    pub(super) fn equalize(&mut self) {
        let area = self.area().max(1);
        for plane in self.values.chunks_exact_mut(area) {
            let mut counts = [0usize; 256];
            plane.iter().for_each(|v| counts[*v as usize & 255] += 1);
            let last = counts.iter().rev().find(|c| **c > 0).copied().unwrap_or(0);
            let step = (area - last) / 255;
            if step == 0 {
                continue;
            }
            let mut sum = step / 2;
            let table = counts.map(|count| {
                let level = (sum / step).min(255);
                sum += count;
                level as f32
            });
            plane.iter_mut().for_each(|v| *v = table[*v as usize & 255]);
        }
    }
}

/// Shifts the hue of a color; saturation and value are kept.
fn hue([r, g, b]: [f32; 3], turns: f32) -> [f32; 3] {
    let (max, min) = (r.max(g).max(b), r.min(g).min(b));
    let range = max - min;
    if range <= 0.0 {
        return [r, g, b];
    }
    let sixth = if max == r {
        (g - b) / range
    } else if max == g {
        (b - r) / range + 2.0
    } else {
        (r - g) / range + 4.0
    };
    let turned = (sixth / 6.0 + turns).rem_euclid(1.0) * 6.0;
    let part = |shift: f32| {
        let k = (turned + shift).rem_euclid(6.0);
        max - range * k.min(4.0 - k).clamp(0.0, 1.0)
    };
    [part(5.0), part(3.0), part(1.0)]
}
