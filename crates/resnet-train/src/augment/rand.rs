//! RandAugment with torchvision's operations and magnitudes.

use super::Pixels;
use super::geometry::Interpolation::Nearest;
use crate::random::Random;

/// Applies one random operation with `magnitude` 0 to 30; the sign of signed ones is random.
pub(super) fn apply(pixels: &mut Pixels, magnitude: usize, random: &mut Random) {
    let which = random.below(14);
    let sign = if random.happens(0.5) { -1.0 } else { 1.0 };
    let strength = magnitude as f64 / 30.0;
    let [height, width] = pixels.size.map(|side| side as f64);
    let moved = |side: f64| sign * strength * 150.0 / 331.0 * side;
    match which {
        1 => *pixels = shear(pixels, [sign * strength * 0.3, 0.0]),
        2 => *pixels = shear(pixels, [0.0, sign * strength * 0.3]),
        3 => *pixels = pixels.warped([[1.0, 0.0, moved(width).trunc()], [0.0, 1.0, 0.0]], Nearest),
        4 => *pixels = pixels.warped([[1.0, 0.0, 0.0], [0.0, 1.0, moved(height).trunc()]], Nearest),
        5 => {
            let (sin, cos) = (sign * strength * 30.0).to_radians().sin_cos();
            *pixels = pixels.warped([[cos, -sin, 0.0], [sin, cos, 0.0]], Nearest);
        }
        6 => pixels.adjust_brightness(1.0 + sign * strength * 0.9),
        7 => pixels.adjust_saturation(1.0 + sign * strength * 0.9),
        8 => pixels.adjust_contrast(1.0 + sign * strength * 0.9),
        9 => pixels.adjust_sharpness(1.0 + sign * strength * 0.9),
        10 => pixels.posterize(8 - (magnitude as f64 / 7.5).round() as u32),
        11 => pixels.solarize((255.0 * (1.0 - strength)) as f32),
        12 => pixels.autocontrast(),
        13 => pixels.equalize(),
        _ => {}
    }
}

/// Shears by `x` and `y` about the top left corner, like torchvision's RandAugment.
pub(super) fn shear(pixels: &Pixels, [x, y]: [f64; 2]) -> Pixels {
    let [height, width] = pixels.size.map(|side| side as f64 / 2.0);
    pixels.warped([[1.0, x, x * height], [y, 1.0, y * width]], Nearest)
}
