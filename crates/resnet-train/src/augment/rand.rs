//! RandAugment with torchvision's operations and strengths.

use super::Pixels;
use crate::random::Random;

/// Applies one operation, each equally likely, of strength `magnitude` 0 to 30; signed ones in either direction.
pub(super) fn apply(pixels: &mut Pixels, magnitude: usize, random: &mut Random) {
    let which = random.below(14);
    let sign = if random.happens(0.5) { -1.0 } else { 1.0 };
    let strength = magnitude as f64 / 30.0;
    let [height, width] = pixels.size.map(|side| side as f64);
    let moved = |side: f64| sign * strength * 150.0 / 331.0 * side;
    match which {
        1 => *pixels = pixels.warped([[1.0, sign * strength * 0.3, 0.0], [0.0, 1.0, 0.0]]),
        2 => *pixels = pixels.warped([[1.0, 0.0, 0.0], [sign * strength * 0.3, 1.0, 0.0]]),
        3 => *pixels = pixels.warped([[1.0, 0.0, moved(width).trunc()], [0.0, 1.0, 0.0]]),
        4 => *pixels = pixels.warped([[1.0, 0.0, 0.0], [0.0, 1.0, moved(height).trunc()]]),
        5 => {
            let (sin, cos) = (sign * strength * 30.0).to_radians().sin_cos();
            *pixels = pixels.warped([[cos, -sin, 0.0], [sin, cos, 0.0]]);
        }
        6 => pixels.brighten(1.0 + sign * strength * 0.9),
        7 => pixels.saturate(1.0 + sign * strength * 0.9),
        8 => pixels.contrast(1.0 + sign * strength * 0.9),
        9 => pixels.sharpen(1.0 + sign * strength * 0.9),
        10 => pixels.posterize(8 - (magnitude as f64 / 7.5).round() as u32),
        11 => pixels.solarize((255.0 * (1.0 - strength)) as f32),
        12 => pixels.stretch(),
        13 => pixels.equalize(),
        _ => {}
    }
}
