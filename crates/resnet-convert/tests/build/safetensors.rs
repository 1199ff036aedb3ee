//! Safetensors files.

/// Header and data, with the header's length in front.
pub(crate) fn st(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat()
}

/// The description of one tensor.
pub(crate) fn tensor(dtype: &str, shape: &str, start: &str, end: &str) -> String {
    format!(r#"{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{start},{end}]}}"#)
}

/// The usual tensor: 2×2 f32.
pub(crate) fn w() -> String {
    tensor("F32", "[2,2]", "0", "16")
}
