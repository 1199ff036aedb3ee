//! Counter-based random numbers: a value depends only on the name of its sequence and its index, so that results do not
//! depend on the order of calls or on threads. For initial weights, dropout and [`synthetic`](crate::synthetic) weights.

/// The increment of splitmix64.
pub const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// The output function of splitmix64.
pub fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Returns the 64-bit FNV-1a hash of a name.
pub(crate) fn hash(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}

/// Returns element `index` of the sequence `name`: uniform in [0, 1), a multiple of 2⁻²⁴.
pub fn uniform(name: &str, index: usize) -> f64 {
    sequence(name)(index)
}

/// Returns [`uniform`] of a fixed name, which is hashed once.
pub(crate) fn sequence(name: &str) -> impl Fn(usize) -> f64 + use<> {
    let hash = hash(name);
    move |index| {
        let z = mix(hash.wrapping_add((index as u64).wrapping_add(1).wrapping_mul(STEP)));
        (z >> 40) as f64 / (1u64 << 24) as f64
    }
}
