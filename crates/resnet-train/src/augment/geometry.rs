//! Crops, erasing, flips and affine transforms.

use super::Pixels;
use crate::random::Random;

/// Returns a random crop `[x, y, width, height]` of an image `[width, height]`, like torchvision's `RandomResizedCrop`.
pub(super) fn random_crop(
    [width, height]: [u32; 2],
    scale: [f64; 2],
    ratio: [f64; 2],
    random: &mut Random,
) -> [u32; 4] {
    let area = f64::from(width) * f64::from(height);
    for _ in 0..10 {
        let target = area * random.between(scale[0], scale[1]);
        let aspect = random.between(ratio[0].ln(), ratio[1].ln()).exp();
        let w = (target * aspect).sqrt().round();
        let h = (target / aspect).sqrt().round();
        if (1.0..=f64::from(width)).contains(&w) && (1.0..=f64::from(height)).contains(&h) {
            let (w, h) = (w as u32, h as u32);
            let mut first = |room: u32| random.below(room as usize + 1) as u32;
            let y = first(height - h);
            return [first(width - w), y, w, h];
        }
    }
    // The largest center crop with a valid aspect ratio.
    let aspect = (f64::from(width) / f64::from(height)).clamp(ratio[0], ratio[1]);
    let w = (f64::from(height) * aspect).round().clamp(1.0, f64::from(width)) as u32;
    let h = (f64::from(width) / aspect).round().clamp(1.0, f64::from(height)) as u32;
    [(width - w) / 2, (height - h) / 2, w, h]
}

/// Sets a random rectangle of normalized `values` `[C, H, W]` to 0, like torchvision's `RandomErasing`.
pub(super) fn erase(values: &mut [f32], [height, width]: [usize; 2], random: &mut Random) {
    let area = (height * width) as f64;
    for _ in 0..10 {
        let target = area * random.between(0.02, 0.33);
        let aspect = random.between(0.3f64.ln(), 3.3f64.ln()).exp();
        let h = (target * aspect).sqrt().round() as usize;
        let w = (target / aspect).sqrt().round() as usize;
        if (1..height).contains(&h) && (1..width).contains(&w) {
            let (y, x) = (random.below(height - h + 1), random.below(width - w + 1));
            for plane in values.chunks_exact_mut(height * width) {
                for row in plane.chunks_exact_mut(width).skip(y).take(h) {
                    row[x..x + w].fill(0.0);
                }
            }
            return;
        }
    }
}

/// Interpolation of an affine transform.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Interpolation {
    Nearest,
    Bilinear,
}

impl Pixels {
    /// Flips horizontally.
    pub(super) fn flip(&mut self) {
        self.values.chunks_exact_mut(self.size[1]).for_each(<[f32]>::reverse);
    }

    /// Returns the affine transform of the image: pixel `p`, relative to the center, is sampled at `matrix · (p, 1)`; outside
    /// is 0. Rows of the matrix are x and y.
    pub(super) fn warped(&self, matrix: [[f64; 3]; 2], interpolation: Interpolation) -> Pixels {
        let [height, width] = self.size;
        let center = [(width as f64 - 1.0) / 2.0, (height as f64 - 1.0) / 2.0];
        let mut out = Pixels { values: vec![0.0; self.values.len()], ..*self };
        for y in 0..height {
            for x in 0..width {
                let p = [x as f64 - center[0], y as f64 - center[1]];
                let from: [f64; 2] = std::array::from_fn(|i| {
                    let from = matrix[i][0] * p[0] + matrix[i][1] * p[1] + matrix[i][2] + center[i];
                    if interpolation == Interpolation::Nearest { from.round_ties_even() } else { from }
                });
                let (left, top) = (from[0].floor(), from[1].floor());
                let (fx, fy) = ((from[0] - left) as f32, (from[1] - top) as f32);
                for (dy, wy) in [(0.0, 1.0 - fy), (1.0, fy)] {
                    for (dx, wx) in [(0.0, 1.0 - fx), (1.0, fx)] {
                        let (sx, sy) = (left + dx, top + dy);
                        let inside = (0.0..width as f64).contains(&sx) && (0.0..height as f64).contains(&sy);
                        if !inside || wx * wy == 0.0 {
                            continue;
                        }
                        let source = sy as usize * width + sx as usize;
                        for channel in 0..self.channels {
                            let plane = channel * height * width;
                            out.values[plane + y * width + x] += wx * wy * self.values[plane + source];
                        }
                    }
                }
            }
        }
        out
    }
}
