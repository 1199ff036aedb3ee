//! Helpers shared by the tests.

/// Returns `len` pseudorandom values in −1..1, determined by `seed`.
pub(crate) fn random(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

/// Asserts equality up to `tolerance` × the largest finite expected magnitude. NaN equals NaN; infinities must be
/// equal.
pub(crate) fn assert_close(what: &str, found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let scale = expected.iter().filter(|x| x.is_finite()).fold(0.0f32, |max, x| max.max(x.abs()));
    for (index, (f, e)) in found.iter().zip(expected).enumerate() {
        let same = (f.is_nan() && e.is_nan()) || f == e || (f - e).abs() <= tolerance * scale;
        assert!(same, "{what}: element {index} is {f}, expected {e} (scale {scale})");
    }
}
