//! Upsampling and conversion to RGB, as in libjpeg-turbo.

use std::ops::Range;

use super::{Plane, Region};

/// The color space of the components.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ColorSpace {
    Gray,
    Rgb,
    YCbCr,
    /// Inverted, as written by Adobe software and assumed by Pillow.
    Cmyk,
    /// [`ColorSpace::Cmyk`] with C, M and Y converted to YCbCr.
    Ycck,
}

/// Upsampling of a plane.
#[derive(Debug, Clone, Copy)]
struct Upsampling {
    /// Pixels per sample.
    across: usize,
    /// Rows per sample.
    down: usize,
    /// Uses libjpeg's triangle filter, which exists for 2×1, 1×2 and 2×2; otherwise samples are repeated.
    smooth: bool,
}

/// Returns the pixels of `region`, three bytes each. `max` holds the largest horizontal and vertical sampling factors,
/// which are multiples of the others.
pub(super) fn to_rgb(planes: &[Plane], space: ColorSpace, region: &Region, max: (usize, usize)) -> Vec<u8> {
    let upsampling: Vec<Upsampling> = planes
        .iter()
        .map(|plane| {
            let (across, down) = (max.0 / plane.sampling.0, max.1 / plane.sampling.1);
            let smooth = match (across, down) {
                (2, 1 | 2) => plane.width > 2,
                (1, 2) => true,
                _ => false,
            };
            Upsampling { across, down, smooth }
        })
        .collect();
    let chroma = Chroma::new();
    let width = region.columns.len();
    let mut rgb = vec![0u8; width * region.rows.len() * 3];
    let mut rows = vec![Vec::new(); planes.len()];
    let mut first = vec![0; planes.len()];
    let mut sums = Vec::new();
    for (y, out) in region.rows.clone().zip(rgb.chunks_exact_mut((width * 3).max(1))) {
        for (i, (plane, method)) in planes.iter().zip(&upsampling).enumerate() {
            first[i] = upsample(plane, *method, y, &region.columns, &mut sums, &mut rows[i]);
        }
        let rows: Vec<&[u8]> = rows.iter().zip(&first).map(|(row, &first)| &row[first..]).collect();
        convert(&rows, space, &chroma, out);
    }
    rgb
}

/// Writes at least the pixels `columns` of row `y` to `out` and returns the index of the first of them. `sums` is a scratch
/// buffer.
fn upsample(
    plane: &Plane,
    method: Upsampling,
    y: usize,
    columns: &Range<usize>,
    sums: &mut Vec<u16>,
    out: &mut Vec<u8>,
) -> usize {
    let near = y / method.down;
    out.clear();
    // With a neighbor on either side, except at the image's edges.
    let from = (columns.start / method.across).saturating_sub(1);
    let to = (columns.end.div_ceil(method.across) + 1).min(plane.width);
    let first = columns.start - from * method.across;
    let samples = |row: usize| &plane.row(row)[from..to];
    let row = samples(near);
    if (method.across, method.down) == (1, 1) {
        out.extend_from_slice(row);
        return first;
    }
    if !method.smooth {
        out.extend(row.iter().flat_map(|&s| std::iter::repeat_n(s, method.across)));
        return first;
    }
    // The second-nearest row of samples; at the edges the row itself.
    let far = if y.is_multiple_of(2) { near.saturating_sub(1) } else { (near + 1).min(plane.height - 1) };
    let both = row.iter().zip(samples(far)).map(|(&near, &far)| (u16::from(near), u16::from(far)));
    if method.across == 1 {
        let bias = if y.is_multiple_of(2) { 1 } else { 2 };
        out.extend(both.map(|(near, far)| ((near * 3 + far + bias) >> 2) as u8));
        return first;
    }
    sums.clear();
    let rounding = if method.down == 1 {
        sums.extend(row.iter().map(|&s| u16::from(s)));
        Rounding { bits: 2, left: 1, right: 2 }
    } else {
        sums.extend(both.map(|(near, far)| near * 3 + far));
        Rounding { bits: 4, left: 8, right: 7 }
    };
    triangle(sums, rounding, out);
    first
}

/// Rounding offsets for the left and right pixel of a sample, added before shifting right by `bits`.
#[derive(Clone, Copy)]
struct Rounding {
    bits: u32,
    left: u16,
    right: u16,
}

/// Writes two pixels per sample: 3/4 of the sample plus 1/4 of its neighbor. The edges are replicated.
fn triangle(samples: &[u16], rounding: Rounding, out: &mut Vec<u8>) {
    let Rounding { bits, left, right } = rounding;
    let (&[first, ..], &[.., last]) = (samples, samples) else { return };
    let toward = |this: u16, other: u16, bias: u16| ((this * 3 + other + bias) >> bits) as u8;
    out.resize(2 * samples.len(), 0);
    for (out, pair) in out[1..].as_chunks_mut::<2>().0.iter_mut().zip(samples.windows(2)) {
        *out = [toward(pair[0], pair[1], right), toward(pair[1], pair[0], left)];
    }
    if let [start, .., end] = &mut out[..] {
        (*start, *end) = (toward(first, first, left), toward(last, last, right));
    }
}

/// Contributions of chroma to R, G and B; those of green, the sum of two, have 16 fractional bits.
struct Chroma {
    red: [i16; 256],
    blue: [i16; 256],
    green_from_cr: [i32; 256],
    green_from_cb: [i32; 256],
}

impl Chroma {
    /// ITU-R BT.601 coefficients, as in JFIF.
    fn new() -> Chroma {
        let fixed = |x: f64| (x * 65_536.0 + 0.5) as i32;
        let table = |f: &dyn Fn(i32) -> i32| -> [i32; 256] { std::array::from_fn(|i| f(i as i32 - 128)) };
        Chroma {
            red: table(&|x| (fixed(1.402) * x + 32_768) >> 16).map(|x| x as i16),
            blue: table(&|x| (fixed(1.772) * x + 32_768) >> 16).map(|x| x as i16),
            green_from_cr: table(&|x| -fixed(0.71414) * x),
            green_from_cb: table(&|x| -fixed(0.34414) * x + 32_768),
        }
    }

    #[inline(always)]
    fn rgb(&self, y: u8, cb: u8, cr: u8) -> [u8; 3] {
        let (y, cb, cr) = (i32::from(y), usize::from(cb), usize::from(cr));
        let clamp = |x: i32| x.clamp(0, 255) as u8;
        [
            clamp(y + i32::from(self.red[cr])),
            clamp(y + ((self.green_from_cb[cb] + self.green_from_cr[cr]) >> 16)),
            clamp(y + i32::from(self.blue[cb])),
        ]
    }
}

fn convert(rows: &[&[u8]], space: ColorSpace, chroma: &Chroma, out: &mut [u8]) {
    let pixels = out.as_chunks_mut::<3>().0.iter_mut();
    match (space, rows) {
        (ColorSpace::Gray, [gray]) => pixels.zip(*gray).for_each(|(out, &v)| *out = [v; 3]),
        (ColorSpace::Rgb, [r, g, b]) => {
            pixels.zip(*r).zip(*g).zip(*b).for_each(|(((out, &r), &g), &b)| *out = [r, g, b]);
        }
        (ColorSpace::YCbCr, [y, cb, cr]) => {
            pixels.zip(*y).zip(*cb).zip(*cr).for_each(|(((out, &y), &cb), &cr)| *out = chroma.rgb(y, cb, cr));
        }
        (ColorSpace::Cmyk | ColorSpace::Ycck, [c, m, y, k]) => {
            for ((((out, &c), &m), &y), &k) in pixels.zip(*c).zip(*m).zip(*y).zip(*k) {
                let inks =
                    if space == ColorSpace::Cmyk { [c, m, y].map(|v| 255 - v) } else { chroma.rgb(c, m, y) };
                *out = inks.map(|ink| k - scaled(ink, k));
            }
        }
        // The color space is chosen by the number of planes.
        _ => {}
    }
}

/// Returns `a`·`b`/255, rounded.
#[inline(always)]
fn scaled(a: u8, b: u8) -> u8 {
    let product = u32::from(a) * u32::from(b) + 128;
    (((product >> 8) + product) >> 8) as u8
}
