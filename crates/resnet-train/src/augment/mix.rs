//! Mixup and CutMix of the images of a batch and their targets.

use super::Augment;
use crate::random::Random;

/// Mixes image `i` of a batch with image `n − 1 − i` by mixup or CutMix, if `augment` enables them.
///
/// `images` is `[N, C, H, W]` for the given height and width, `targets` is `[N, K]`.
pub(crate) fn mix(
    augment: &Augment,
    images: &mut [f32],
    targets: &mut [f32],
    [n, channels, height, width]: [usize; 4],
    random: &mut Random,
) {
    let cut = match (augment.mixup > 0.0, augment.cutmix > 0.0) {
        (false, false) => return,
        (true, true) => random.happens(0.5),
        (_, cut) => cut,
    };
    let kept = random.beta(if cut { augment.cutmix } else { augment.mixup });
    let classes = targets.len() / n.max(1);
    let kept = match cut {
        false => {
            blend(images, n, kept as f32);
            kept
        }
        true => {
            let side = (1.0 - kept).sqrt();
            let mut span = |size: usize| {
                let half = (size as f64 * side) as usize / 2;
                let center = random.below(size);
                center.saturating_sub(half)..(center + half).min(size)
            };
            let (rows, columns) = (span(height), span(width));
            exchange(images, [n, channels, height, width], rows.clone(), columns.clone());
            1.0 - (rows.len() * columns.len()) as f64 / (height * width).max(1) as f64
        }
    };
    debug_assert_eq!(classes * n, targets.len());
    blend(targets, n, kept as f32);
}

/// Blends row `i` of `n` with row `n − 1 − i`: `kept · row[i] + (1 − kept) · row[n − 1 − i]`.
fn blend(rows: &mut [f32], n: usize, kept: f32) {
    let len = rows.len() / n.max(1);
    for i in 0..n / 2 {
        let (head, tail) = rows.split_at_mut((n - 1 - i) * len);
        for (a, b) in head[i * len..][..len].iter_mut().zip(&mut tail[..len]) {
            (*a, *b) = (kept * *a + (1.0 - kept) * *b, kept * *b + (1.0 - kept) * *a);
        }
    }
}

/// Swaps a rectangle of image `i` and image `n − 1 − i`.
fn exchange(
    images: &mut [f32],
    [n, channels, height, width]: [usize; 4],
    rows: std::ops::Range<usize>,
    columns: std::ops::Range<usize>,
) {
    let len = channels * height * width;
    for i in 0..n / 2 {
        let (head, tail) = images.split_at_mut((n - 1 - i) * len);
        for channel in 0..channels {
            for y in rows.clone() {
                let at = (channel * height + y) * width;
                head[i * len + at..][columns.clone()].swap_with_slice(&mut tail[at..][columns.clone()]);
            }
        }
    }
}
