//! Counts of NaN and infinity, taken while tensors are read.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use resnet_model::RawTensor;
use resnet_model::raw::{Bytes, Dtype};

use crate::report::NonFinite;

/// Counter of NaN and infinite elements by tensor name. Reads fail once `cancel` is set.
#[derive(Debug, Default)]
pub(crate) struct NonFiniteCounter {
    counts: Mutex<BTreeMap<String, NonFinite>>,
    cancel: Option<Arc<AtomicBool>>,
}

impl NonFiniteCounter {
    pub(crate) fn new(cancel: Option<Arc<AtomicBool>>) -> NonFiniteCounter {
        NonFiniteCounter { cancel, ..NonFiniteCounter::default() }
    }

    /// Wraps a tensor, so that its elements are counted when they are read.
    pub(crate) fn wrap(self: &Arc<NonFiniteCounter>, name: &str, tensor: &RawTensor) -> RawTensor {
        let Some(kind) = FloatKind::from_dtype(tensor.dtype()) else { return tensor.clone() };
        let (bytes, counter) = (tensor.bytes().clone(), self.clone());
        let bytes = CountedBytes { bytes, kind, name: name.to_owned(), counter };
        let counted = RawTensor::new(tensor.dtype(), tensor.shape().to_vec(), Arc::new(bytes));
        counted.unwrap_or_else(|| tensor.clone())
    }

    /// Returns the tensors with NaN or infinite elements, sorted by name.
    pub(crate) fn counts(&self) -> Vec<NonFinite> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}

#[derive(Debug)]
struct CountedBytes {
    bytes: Arc<dyn Bytes>,
    kind: FloatKind,
    name: String,
    counter: Arc<NonFiniteCounter>,
}

/// Floating-point layout. An element is not finite if all exponent bits are set.
#[derive(Debug, Clone, Copy)]
enum FloatKind {
    /// 16 bits, with this exponent mask.
    Bits16(u16),
    Bits32,
    Bits64,
}

impl FloatKind {
    fn from_dtype(dtype: Dtype) -> Option<FloatKind> {
        Some(match dtype {
            Dtype::F16 => FloatKind::Bits16(0x7c00),
            Dtype::BF16 => FloatKind::Bits16(0x7f80),
            Dtype::F32 => FloatKind::Bits32,
            Dtype::F64 => FloatKind::Bits64,
            _ => return None,
        })
    }

    /// Returns the numbers of NaN and infinite elements.
    fn count(self, bytes: &[u8]) -> [usize; 2] {
        match self {
            FloatKind::Bits16(exponent) => count(bytes, |b: [u8; 2]| {
                let bits = u16::from_le_bytes(b);
                (bits & exponent == exponent, bits & 0x7fff != exponent)
            }),
            FloatKind::Bits32 => count(bytes, |b: [u8; 4]| {
                let bits = u32::from_le_bytes(b);
                (bits & 0x7f80_0000 == 0x7f80_0000, bits & 0x7fff_ffff != 0x7f80_0000)
            }),
            FloatKind::Bits64 => count(bytes, |b: [u8; 8]| {
                let bits = u64::from_le_bytes(b);
                let exponent = 0x7ff0_0000_0000_0000;
                (bits & exponent == exponent, bits & 0x7fff_ffff_ffff_ffff != exponent)
            }),
        }
    }
}

/// `classify` returns (not finite, NaN) for an element; the second is only valid with the first.
fn count<const N: usize>(bytes: &[u8], classify: impl Fn([u8; N]) -> (bool, bool)) -> [usize; 2] {
    let (elements, _) = bytes.as_chunks::<N>();
    // This vectorized pass is the common case: all elements are finite.
    if !elements.iter().fold(false, |any, &e| any | classify(e).0) {
        return [0; 2];
    }
    elements.iter().fold([0usize; 2], |[nan, infinite], &e| match classify(e) {
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
        if self.counter.cancel.as_ref().is_some_and(|cancel| cancel.load(Ordering::Relaxed)) {
            return Err(io::Error::other("canceled"));
        }
        self.bytes.read_at(offset, out)?;
        let [nan, infinite] = self.kind.count(out);
        if nan > 0 || infinite > 0 {
            let mut counts = self.counter.counts.lock().unwrap_or_else(PoisonError::into_inner);
            let entry = counts.entry(self.name.clone()).or_insert_with(|| NonFinite {
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
    fn nan_and_infinity_of_every_dtype_are_counted() {
        let (n, i) = (f64::NAN, f64::INFINITY);
        let values = [0.0, -0.0, 1e30, n, i, -i, -n, -n, 1e-40];
        let check = |dtype, bytes: Vec<u8>, expected: [usize; 2]| {
            let counter = Arc::new(NonFiniteCounter::default());
            let tensor = RawTensor::new(dtype, vec![values.len()], Arc::new(bytes)).unwrap();
            counter.wrap("t", &tensor).read().unwrap();
            let [found] = &counter.counts()[..] else { panic!("{dtype:?}") };
            assert_eq!([found.nan, found.infinite], expected, "{dtype:?}");
        };
        check(Dtype::F64, values.iter().flat_map(|v| v.to_le_bytes()).collect(), [3, 2]);
        check(Dtype::F32, values.iter().flat_map(|v| (*v as f32).to_le_bytes()).collect(), [3, 2]);
        check(Dtype::BF16, values.iter().flat_map(|v| bf16::from_f64(*v).to_le_bytes()).collect(), [3, 2]);
        // 1e30 is more than f16 can hold.
        check(Dtype::F16, values.iter().flat_map(|v| f16::from_f64(*v).to_le_bytes()).collect(), [3, 3]);
        let counter = Arc::new(NonFiniteCounter::default());
        let finite = RawTensor::from_f32(vec![2], &[f32::MAX, f32::MIN_POSITIVE]).unwrap();
        counter.wrap("t", &finite).read().unwrap();
        counter.wrap("n", &RawTensor::scalar_i64(-1)).read().unwrap();
        assert!(counter.counts().is_empty());
    }

    #[test]
    fn reads_fail_after_cancellation() {
        let cancel = Arc::new(AtomicBool::new(false));
        let counter = Arc::new(NonFiniteCounter::new(Some(cancel.clone())));
        let tensor = counter.wrap("t", &RawTensor::from_f32(vec![1], &[1.0]).unwrap());
        tensor.read().unwrap();
        cancel.store(true, Ordering::Relaxed);
        assert_eq!(tensor.read().unwrap_err().to_string(), "canceled");
    }
}
