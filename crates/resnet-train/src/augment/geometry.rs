//! Parts of images, and images moved and turned.

use super::Pixels;
use crate::random::Random;

/// A random part `[x, y, width, height]` of an image `[width, height]`, as torchvision's `RandomResizedCrop` chooses it.
pub(super) fn part(
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
    // The largest part in the middle whose sides have a ratio that is allowed.
    let aspect = (f64::from(width) / f64::from(height)).clamp(ratio[0], ratio[1]);
    let w = (f64::from(height) * aspect).round().clamp(1.0, f64::from(width)) as u32;
    let h = (f64::from(width) / aspect).round().clamp(1.0, f64::from(height)) as u32;
    [(width - w) / 2, (height - h) / 2, w, h]
}

/// Sets a random rectangle of normalised `values` `[C, H, W]` to 0, the mean, as torchvision's `RandomErasing` does.
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

impl Pixels {
    /// Exchanges left and right.
    pub(super) fn flip(&mut self) {
        self.values.chunks_exact_mut(self.size[1]).for_each(<[f32]>::reverse);
    }

    /// The image moved so that the pixel at `p`, counted from the centre, comes from `matrix · (p, 1)` by bilinear
    /// interpolation; zeros come from outside. Rows of the matrix are x and y.
    pub(super) fn warped(&self, matrix: [[f64; 3]; 2]) -> Pixels {
        let [height, width] = self.size;
        let centre = [(width as f64 - 1.0) / 2.0, (height as f64 - 1.0) / 2.0];
        let mut out = Pixels { values: vec![0.0; self.values.len()], ..*self };
        for y in 0..height {
            for x in 0..width {
                let p = [x as f64 - centre[0], y as f64 - centre[1]];
                let from: [f64; 2] = std::array::from_fn(|i| {
                    matrix[i][0] * p[0] + matrix[i][1] * p[1] + matrix[i][2] + centre[i]
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
