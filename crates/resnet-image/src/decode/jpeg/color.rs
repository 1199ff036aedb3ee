//! From component planes to RGB: upsampling and colour conversion, as libjpeg-turbo does them.

use std::ops::Range;

use super::{Plane, Region};

/// What the components are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Space {
    Grey,
    Rgb,
    YCbCr,
    /// Inverted, as Adobe's programs write it and Pillow assumes.
    Cmyk,
    /// [`Space::Cmyk`] with the inks in luminance and chrominance.
    Ycck,
}

/// How a plane's rows become rows of the image.
#[derive(Debug, Clone, Copy)]
struct Upsampling {
    /// Pixels per sample.
    across: usize,
    /// Rows per sample.
    down: usize,
    /// Triangle filters where they exist: 2×1, 1×2, 2×2; else samples are repeated.
    smooth: bool,
}

/// The pixels of a part of the image, three bytes each. `max` is the largest sampling factor of the components, across
/// and down, and a multiple of each.
pub(super) fn to_rgb(planes: &[Plane], space: Space, part: &Region, max: (usize, usize)) -> Vec<u8> {
    let ways: Vec<Upsampling> = planes
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
    let width = part.columns.len();
    let mut rgb = vec![0u8; width * part.rows.len() * 3];
    let mut rows = vec![Vec::new(); planes.len()];
    let mut first = vec![0; planes.len()];
    let mut sums = Vec::new();
    for (y, out) in part.rows.clone().zip(rgb.chunks_exact_mut((width * 3).max(1))) {
        for (i, (plane, way)) in planes.iter().zip(&ways).enumerate() {
            first[i] = upsample(plane, *way, y, &part.columns, &mut sums, &mut rows[i]);
        }
        let rows: Vec<&[u8]> = rows.iter().zip(&first).map(|(row, &first)| &row[first..]).collect();
        convert(&rows, space, &chroma, out);
    }
    rgb
}

/// Row `y` of the image, at least its pixels `columns`, the first of which stands at the returned place of `out`. `sums` is
/// scratch.
fn upsample(
    plane: &Plane,
    way: Upsampling,
    y: usize,
    columns: &Range<usize>,
    sums: &mut Vec<u16>,
    out: &mut Vec<u8>,
) -> usize {
    let near = y / way.down;
    out.clear();
    // With a neighbour on either side, but at the image's edges.
    let from = (columns.start / way.across).saturating_sub(1);
    let to = (columns.end.div_ceil(way.across) + 1).min(plane.width);
    let first = columns.start - from * way.across;
    let samples = |row: usize| &plane.row(row)[from..to];
    let row = samples(near);
    if (way.across, way.down) == (1, 1) {
        out.extend_from_slice(row);
        return first;
    }
    if !way.smooth {
        out.extend(row.iter().flat_map(|&s| std::iter::repeat_n(s, way.across)));
        return first;
    }
    // The other row that this one lies between; at the edges the row itself.
    let far = if y.is_multiple_of(2) { near.saturating_sub(1) } else { (near + 1).min(plane.height - 1) };
    let both = row.iter().zip(samples(far)).map(|(&near, &far)| (u16::from(near), u16::from(far)));
    if way.across == 1 {
        let bias = if y.is_multiple_of(2) { 1 } else { 2 };
        out.extend(both.map(|(near, far)| ((near * 3 + far + bias) >> 2) as u8));
        return first;
    }
    sums.clear();
    let rounding = if way.down == 1 {
        sums.extend(row.iter().map(|&s| u16::from(s)));
        Rounding { bits: 2, left: 1, right: 2 }
    } else {
        sums.extend(both.map(|(near, far)| near * 3 + far));
        Rounding { bits: 4, left: 8, right: 7 }
    };
    triangle(sums, rounding, out);
    first
}

/// What is added before the last `bits` bits are dropped, for the left and the right pixel of a sample.
#[derive(Clone, Copy)]
struct Rounding {
    bits: u32,
    left: u16,
    right: u16,
}

/// Two pixels per sample: three quarters of it and one of its neighbour. Beyond the edges lies the edge again.
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

/// What chrominance adds to luminance, in 16 bits after the point where two are summed.
struct Chroma {
    red: [i16; 256],
    blue: [i16; 256],
    green_from_cr: [i32; 256],
    green_from_cb: [i32; 256],
}

impl Chroma {
    /// The coefficients of ITU-R BT.601, as JFIF defines.
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

fn convert(rows: &[&[u8]], space: Space, chroma: &Chroma, out: &mut [u8]) {
    let pixels = out.as_chunks_mut::<3>().0.iter_mut();
    match (space, rows) {
        (Space::Grey, [grey]) => pixels.zip(*grey).for_each(|(out, &v)| *out = [v; 3]),
        (Space::Rgb, [r, g, b]) => {
            pixels.zip(*r).zip(*g).zip(*b).for_each(|(((out, &r), &g), &b)| *out = [r, g, b]);
        }
        (Space::YCbCr, [y, cb, cr]) => {
            pixels.zip(*y).zip(*cb).zip(*cr).for_each(|(((out, &y), &cb), &cr)| *out = chroma.rgb(y, cb, cr));
        }
        (Space::Cmyk | Space::Ycck, [c, m, y, k]) => {
            for ((((out, &c), &m), &y), &k) in pixels.zip(*c).zip(*m).zip(*y).zip(*k) {
                let inks =
                    if space == Space::Cmyk { [c, m, y].map(|v| 255 - v) } else { chroma.rgb(c, m, y) };
                *out = inks.map(|ink| k - scaled(ink, k));
            }
        }
        // The caller chose the space by the number of planes.
        _ => {}
    }
}

/// `a`·`b`/255, rounded.
#[inline(always)]
fn scaled(a: u8, b: u8) -> u8 {
    let product = u32::from(a) * u32::from(b) + 128;
    (((product >> 8) + product) >> 8) as u8
}
