//! Inverse discrete cosine transform, as in libjpeg's `jidctint`.

use std::num::Wrapping;

/// The coefficients of a block in natural order.
pub(super) type Block = [i16; 64];

/// Fractional bits of the constants.
const CONST_BITS: usize = 13;
/// Fractional bits of the values between the passes.
const PASS_BITS: usize = 2;

/// Converts `x` to fixed point with [`CONST_BITS`] fractional bits.
const fn fixed(x: f64) -> Wrapping<i32> {
    Wrapping((x * (1 << CONST_BITS) as f64 + 0.5) as i32)
}

/// The 8-point transform of Loeffler, Ligtenberg and Moschytz (1989) with libjpeg's `islow` constants and rounding. The
/// result has [`CONST_BITS`] more fractional bits.
#[inline(always)]
fn transform(x: [Wrapping<i32>; 8]) -> [Wrapping<i32>; 8] {
    let z = (x[2] + x[6]) * fixed(0.541196100);
    let low = z - x[6] * fixed(1.847759065);
    let high = z + x[2] * fixed(0.765366865);
    let sum = (x[0] + x[4]) << CONST_BITS;
    let difference = (x[0] - x[4]) << CONST_BITS;
    let even = [sum + high, difference + low, difference - low, sum - high];

    let z1 = (x[7] + x[1]) * fixed(0.899976223);
    let z2 = (x[5] + x[3]) * fixed(2.562915447);
    let z5 = (x[7] + x[3] + x[5] + x[1]) * fixed(1.175875602);
    let z3 = z5 - (x[7] + x[3]) * fixed(1.961570560);
    let z4 = z5 - (x[5] + x[1]) * fixed(0.390180644);
    let odd = [
        x[1] * fixed(1.501321110) - z1 + z4,
        x[3] * fixed(3.072711026) - z2 + z3,
        x[5] * fixed(2.053119869) - z2 + z4,
        x[7] * fixed(0.298631336) - z1 + z3,
    ];
    std::array::from_fn(|i| if i < 4 { even[i] + odd[i] } else { even[7 - i] - odd[7 - i] })
}

/// Shifts right by `bits`, rounding to nearest.
#[inline(always)]
fn round_off(x: Wrapping<i32>, bits: usize) -> Wrapping<i32> {
    (x + Wrapping(1 << (bits - 1))) >> bits
}

/// Writes the samples of a block to `out`, whose rows are `stride` apart.
pub(super) fn idct(coefficients: &Block, quantization: &[u16; 64], out: &mut [u8], stride: usize) {
    // In 16 bits, as in SIMD decoders; only corrupt files overflow.
    let dequantized = |i: usize| Wrapping(i32::from(coefficients[i].wrapping_mul(quantization[i] as i16)));
    if coefficients[1..].iter().all(|&c| c == 0) {
        let sample = sample(round_off(dequantized(0) << PASS_BITS, PASS_BITS + 3));
        for row in out.chunks_mut(stride).take(8) {
            row[..8].fill(sample);
        }
        return;
    }
    let mut between = [Wrapping(0i32); 64];
    for column in 0..8 {
        let x: [_; 8] = std::array::from_fn(|row| dequantized(8 * row + column));
        if x[1..].iter().all(|&x| x.0 == 0) {
            for row in 0..8 {
                between[8 * row + column] = x[0] << PASS_BITS;
            }
        } else {
            for (row, value) in transform(x).into_iter().enumerate() {
                between[8 * row + column] = round_off(value, CONST_BITS - PASS_BITS);
            }
        }
    }
    for (row, x) in out.chunks_mut(stride).zip(between.as_chunks::<8>().0) {
        for (out, value) in row[..8].iter_mut().zip(transform(*x)) {
            *out = sample(round_off(value, CONST_BITS + PASS_BITS + 3));
        }
    }
}

#[inline(always)]
fn sample(x: Wrapping<i32>) -> u8 {
    (x + Wrapping(128)).0.clamp(0, 255) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition of the transform in floating point.
    fn reference(f: &[f64; 64], x: usize, y: usize) -> f64 {
        let scale = |u: usize| if u == 0 { 0.5f64.sqrt() } else { 1.0 };
        let cos = |x: usize, u: usize| ((2 * x + 1) as f64 * u as f64 * std::f64::consts::PI / 16.0).cos();
        let mut sum = 0.0;
        for v in 0..8 {
            for u in 0..8 {
                sum += scale(u) * scale(v) * f[8 * v + u] * cos(x, u) * cos(y, v);
            }
        }
        sum / 4.0 + 128.0
    }

    #[test]
    fn matches_the_definition() {
        let mut state = 1u32;
        for round in 0..50 {
            let mut block = [0i16; 64];
            for (i, c) in block.iter_mut().enumerate() {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                if i <= round {
                    *c = (state >> 24) as i16 % 32 - 16;
                }
            }
            let mut out = [0u8; 64];
            idct(&block, &[3; 64], &mut out, 8);
            let f = block.map(|c| 3.0 * f64::from(c));
            for (i, &found) in out.iter().enumerate() {
                let expected = reference(&f, i % 8, i / 8).clamp(0.0, 255.0);
                assert!((f64::from(found) - expected).abs() < 0.6, "round {round}, {i}: {found}, {expected}");
            }
        }
    }

    #[test]
    fn extreme_coefficients_do_not_overflow() {
        let mut out = [0u8; 64];
        idct(&[i16::MIN; 64], &[u16::MAX; 64], &mut out, 8);
        idct(&[i16::MAX; 64], &[u16::MAX; 64], &mut out, 8);
    }
}
