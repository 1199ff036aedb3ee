//! NaN and infinity, counted while tensors are read anyway.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use resnet_model::RawTensor;
use resnet_model::raw::{Bytes, Dtype};

use crate::report::NonFinite;

/// What was seen so far, by the tensor's name.
#[derive(Debug, Default)]
pub(crate) struct NonFiniteCounter(Mutex<BTreeMap<String, NonFinite>>);

impl NonFiniteCounter {
    /// The same tensor, whose elements are looked at when they are read.
    pub(crate) fn over(self: &Arc<NonFiniteCounter>, name: &str, tensor: &RawTensor) -> RawTensor {
        let Some(kind) = FloatKind::of(tensor.dtype()) else { return tensor.clone() };
        let bytes =
            CountedBytes { bytes: tensor.bytes().clone(), kind, name: name.to_owned(), watch: self.clone() };
        let watched = RawTensor::new(tensor.dtype(), tensor.shape().to_vec(), Arc::new(bytes));
        watched.unwrap_or_else(|| tensor.clone())
    }

    /// The tensors with elements that are no finite numbers, by name.
    pub(crate) fn seen(&self) -> Vec<NonFinite> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}

#[derive(Debug)]
struct CountedBytes {
    bytes: Arc<dyn Bytes>,
    kind: FloatKind,
    name: String,
    watch: Arc<NonFiniteCounter>,
}

/// How elements are told from numbers: all bits of the exponent are set.
#[derive(Debug, Clone, Copy)]
enum FloatKind {
    /// 16 bits, with this exponent.
    Two(u16),
    Four,
    Eight,
}

impl FloatKind {
    fn of(dtype: Dtype) -> Option<FloatKind> {
        Some(match dtype {
            Dtype::F16 => FloatKind::Two(0x7c00),
            Dtype::BF16 => FloatKind::Two(0x7f80),
            Dtype::F32 => FloatKind::Four,
            Dtype::F64 => FloatKind::Eight,
            _ => return None,
        })
    }

    /// How many elements are NaN, and how many infinite.
    fn count(self, bytes: &[u8]) -> [usize; 2] {
        match self {
            FloatKind::Two(exponent) => count(bytes, |b: [u8; 2]| {
                let bits = u16::from_le_bytes(b);
                (bits & exponent == exponent, bits & 0x7fff != exponent)
            }),
            FloatKind::Four => count(bytes, |b: [u8; 4]| {
                let bits = u32::from_le_bytes(b);
                (bits & 0x7f80_0000 == 0x7f80_0000, bits & 0x7fff_ffff != 0x7f80_0000)
            }),
            FloatKind::Eight => count(bytes, |b: [u8; 8]| {
                let bits = u64::from_le_bytes(b);
                let exponent = 0x7ff0_0000_0000_0000;
                (bits & exponent == exponent, bits & 0x7fff_ffff_ffff_ffff != exponent)
            }),
        }
    }
}

/// `odd` tells whether an element is no finite number and, if so, whether it is NaN.
fn count<const N: usize>(bytes: &[u8], odd: impl Fn([u8; N]) -> (bool, bool)) -> [usize; 2] {
    let (elements, _) = bytes.as_chunks::<N>();
    // Nearly always there are none, and this pass is quick.
    if !elements.iter().fold(false, |any, &e| any | odd(e).0) {
        return [0; 2];
    }
    elements.iter().fold([0usize; 2], |[nan, infinite], &e| match odd(e) {
        (true, true) => [nan.saturating_add(1), infinite],
        (true, false) => [nan, infinite.saturating_add(1)],
        _ => [nan, infinite],
    })
}

impl Bytes for CountedBytes {
    fn len(&self) -> u64 {
        self.bytes.len()
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.bytes.read_at(offset, out)?;
        let [nan, infinite] = self.kind.count(out);
        if nan > 0 || infinite > 0 {
            let mut seen = self.watch.0.lock().unwrap_or_else(PoisonError::into_inner);
            let entry = seen.entry(self.name.clone()).or_insert_with(|| NonFinite {
                name: self.name.clone(),
                nan: 0,
                infinite: 0,
            });
            entry.nan = entry.nan.saturating_add(nan);
            entry.infinite = entry.infinite.saturating_add(infinite);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;

    #[test]
    fn odd_elements_of_every_type_are_counted() {
        let (n, i) = (f64::NAN, f64::INFINITY);
        let values = [0.0, -0.0, 1e30, n, i, -i, -n, -n, 1e-40];
        let check = |dtype, bytes: Vec<u8>, expected: [usize; 2]| {
            let watch = Arc::new(NonFiniteCounter::default());
            let tensor = RawTensor::new(dtype, vec![values.len()], Arc::new(bytes)).unwrap();
            watch.over("t", &tensor).read().unwrap();
            let [seen] = &watch.seen()[..] else { panic!("{dtype:?}") };
            assert_eq!([seen.nan, seen.infinite], expected, "{dtype:?}");
        };
        check(Dtype::F64, values.iter().flat_map(|v| v.to_le_bytes()).collect(), [3, 2]);
        check(Dtype::F32, values.iter().flat_map(|v| (*v as f32).to_le_bytes()).collect(), [3, 2]);
        check(Dtype::BF16, values.iter().flat_map(|v| bf16::from_f64(*v).to_le_bytes()).collect(), [3, 2]);
        // 1e30 is more than f16 can hold.
        check(Dtype::F16, values.iter().flat_map(|v| f16::from_f64(*v).to_le_bytes()).collect(), [3, 3]);
        let watch = Arc::new(NonFiniteCounter::default());
        watch
            .over("t", &RawTensor::from_f32(vec![2], &[f32::MAX, f32::MIN_POSITIVE]).unwrap())
            .read()
            .unwrap();
        watch.over("n", &RawTensor::scalar_i64(-1)).read().unwrap();
        assert!(watch.seen().is_empty());
    }
}
