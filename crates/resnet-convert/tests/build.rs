//! Builders of checkpoints, byte by byte, valid or corrupt. Payloads are inert: these files are only parsed.

pub(crate) mod legacy;
pub(crate) mod network;
pub(crate) mod npy;
pub(crate) mod onnx;
pub(crate) mod pickle;
pub(crate) mod safetensors;
pub(crate) mod sparse;
pub(crate) mod tar;
pub(crate) mod zip;

/// `bytes` with the first `old` replaced.
#[track_caller]
pub(crate) fn patch(bytes: &[u8], old: &[u8], new: &[u8]) -> Vec<u8> {
    let at = bytes.windows(old.len()).position(|w| w == old).expect("nothing to patch");
    [&bytes[..at], new, &bytes[at + old.len()..]].concat()
}

/// Returns `bytes` with those from `at` overwritten.
pub(crate) fn overwrite(bytes: &[u8], at: usize, new: &[u8]) -> Vec<u8> {
    let mut out = bytes.to_vec();
    out[at..at + new.len()].copy_from_slice(new);
    out
}

/// The bytes of f32 values.
pub(crate) fn f32s(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// Deterministic random number generator (SplitMix64).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}
