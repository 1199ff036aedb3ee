//! Lazy casts between floating-point dtypes.

use std::io;
use std::sync::Arc;

use half::{bf16, f16};
use serde::Serialize;

use super::{Bytes, Dtype, RawTensor, byte_len};

/// Returns the size of an element in bytes.
fn item_size(dtype: Dtype) -> u64 {
    byte_len(dtype, &[1]).unwrap_or(1)
}

/// Floating-point dtype of stored weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Float {
    /// 32 bits.
    F32,
    /// 16 bits, IEEE 754 half precision.
    F16,
    /// bfloat16: 16 bits with the exponent of f32.
    BF16,
}

impl Float {
    /// Returns the dtype.
    pub fn dtype(self) -> Dtype {
        match self {
            Float::F32 => Dtype::F32,
            Float::F16 => Dtype::F16,
            Float::BF16 => Dtype::BF16,
        }
    }
}

/// Returns the tensor cast to `to`, rounded to nearest even when it is read; `None` if it has that dtype already or is
/// not floating-point.
pub fn cast(tensor: &RawTensor, to: Float) -> Option<RawTensor> {
    let from = tensor.dtype();
    if from == to.dtype() || !is_float(from) {
        return None;
    }
    let bytes = CastBytes { bytes: tensor.bytes().clone(), from, to };
    RawTensor::new(to.dtype(), tensor.shape().to_vec(), Arc::new(bytes))
}

/// Returns `true` for floating-point dtypes that can be cast.
pub fn is_float(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F16 | Dtype::BF16 | Dtype::F32 | Dtype::F64)
}

#[derive(Debug)]
struct CastBytes {
    bytes: Arc<dyn Bytes>,
    from: Dtype,
    to: Float,
}

impl Bytes for CastBytes {
    fn len(&self) -> u64 {
        self.bytes.len().div_euclid(item_size(self.from)).saturating_mul(item_size(self.to.dtype()))
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let (from, to) = (item_size(self.from), item_size(self.to.dtype()));
        let end = offset.checked_add(out.len() as u64).filter(|&e| e <= self.len());
        let end = end.ok_or(io::ErrorKind::UnexpectedEof)?;
        let (first, last) = (offset.div_euclid(to), end.div_ceil(to));
        let mut source = vec![0; last.saturating_sub(first).saturating_mul(from) as usize];
        self.bytes.read_at(first.saturating_mul(from), &mut source)?;
        let mut cast = Vec::with_capacity(last.saturating_sub(first).saturating_mul(to) as usize);
        for element in source.chunks_exact(from as usize) {
            self.element(element, &mut cast);
        }
        let skip = offset.saturating_sub(first.saturating_mul(to)) as usize;
        let part = cast.get(skip..skip.saturating_add(out.len())).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(part);
        Ok(())
    }
}

impl CastBytes {
    fn element(&self, bytes: &[u8], out: &mut Vec<u8>) {
        // f64 is rounded once, directly to the target.
        match (bytes.try_into().map(f64::from_le_bytes), self.to) {
            (Ok(x), Float::F32) => return out.extend((x as f32).to_le_bytes()),
            (Ok(x), Float::F16) => return out.extend(f16::from_f64(x).to_le_bytes()),
            (Ok(x), Float::BF16) => return out.extend(bf16::from_f64(x).to_le_bytes()),
            _ => {}
        }
        let wide = match (self.from, bytes) {
            (Dtype::F16, &[a, b]) => f16::from_le_bytes([a, b]).to_f32(),
            (Dtype::BF16, &[a, b]) => bf16::from_le_bytes([a, b]).to_f32(),
            (_, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]),
            _ => f32::NAN,
        };
        match self.to {
            Float::F32 => out.extend(wide.to_le_bytes()),
            Float::F16 => out.extend(f16::from_f32(wide).to_le_bytes()),
            Float::BF16 => out.extend(bf16::from_f32(wide).to_le_bytes()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn casts_round_to_nearest_even_at_any_offset() {
        let check = |values: &[f32], to: Float, expected: &[u16]| {
            let tensor = RawTensor::from_f32(vec![values.len()], values).unwrap();
            let cast = cast(&tensor, to).unwrap();
            let bytes: Vec<u8> = expected.iter().flat_map(|v| v.to_le_bytes()).collect();
            assert_eq!(cast.read().unwrap(), bytes, "{values:?}");
            let mut byte = [0];
            cast.bytes().read_at(1, &mut byte).unwrap();
            assert_eq!(byte[0], bytes[1]);
        };
        // 1 + 2⁻¹¹ is halfway between two f16 values: the even one is 1. 1 + 3·2⁻¹¹ rounds up.
        check(
            &[1.0 + 0.00048828125, 1.0 + 3.0 * 0.00048828125, 70000.0],
            Float::F16,
            &[0x3c00, 0x3c02, 0x7c00],
        );
        check(&[1.0 + 0.00390625, 1.0 + 3.0 * 0.00390625, -0.0], Float::BF16, &[0x3f80, 0x3f82, 0x8000]);
        let whole = RawTensor::scalar_i64(1);
        assert!(cast(&whole, Float::F16).is_none());
        assert!(cast(&RawTensor::from_f32(vec![0], &[]).unwrap(), Float::F32).is_none());
    }
}
