//! Lazy permutation of axes.

use std::io;
use std::sync::Arc;

use super::{Bytes, Computed, RawTensor, byte_len};

/// Returns `tensor` with its axes in the order `axes`, as `torch.permute` does; `None` if `axes` is not a permutation or the
/// tensor has no elements. The elements are moved when they are read.
pub fn permute(tensor: &RawTensor, axes: &[usize]) -> Option<RawTensor> {
    let shape = tensor.shape();
    let mut sorted = axes.to_vec();
    sorted.sort_unstable();
    if axes.is_empty() || tensor.elements() == 0 || !sorted.into_iter().eq(0..shape.len()) {
        return None;
    }
    let item = usize::try_from(byte_len(tensor.dtype(), &[1])?).ok()?;
    // Size and stride in bytes of each axis of the result.
    let steps: Option<Vec<(usize, usize)>> = axes
        .iter()
        .map(|&axis| {
            let stride =
                shape.get(axis.checked_add(1)?..)?.iter().try_fold(item, |n, &d| n.checked_mul(d))?;
            Some((*shape.get(axis)?, stride))
        })
        .collect();
    let steps = steps?;
    let sizes = steps.iter().map(|(size, _)| *size).collect();
    let bytes = tensor.bytes().clone();
    let computed = Computed::new(tensor.byte_len(), move || gather(&*bytes, item, &steps));
    RawTensor::new(tensor.dtype(), sizes, Arc::new(computed))
}

/// Gathers all elements in the order of `steps`: (size, stride in bytes) from the slowest axis to the fastest.
fn gather(bytes: &dyn Bytes, item: usize, steps: &[(usize, usize)]) -> io::Result<Vec<u8>> {
    let len = usize::try_from(bytes.len()).map_err(|_| io::ErrorKind::OutOfMemory)?;
    let mut source = vec![0; len];
    bytes.read_at(0, &mut source)?;
    let mut out = Vec::with_capacity(len);
    let eof = || io::Error::from(io::ErrorKind::UnexpectedEof);
    let (last, outer) = steps.split_last().ok_or_else(eof)?;
    let mut index = vec![0usize; outer.len()];
    while out.len() < len {
        let start = index.iter().zip(outer).map(|(i, (_, step))| i.saturating_mul(*step));
        let mut at = start.fold(0usize, usize::saturating_add);
        for _ in 0..last.0 {
            out.extend_from_slice(source.get(at..at.saturating_add(item)).ok_or_else(eof)?);
            at = at.saturating_add(last.1);
        }
        for (i, (size, _)) in index.iter_mut().zip(outer).rev() {
            *i = i.saturating_add(1);
            if *i < *size {
                break;
            }
            *i = 0;
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_are_permuted() {
        let check = |shape: &[usize], axes: &[usize], expected_shape: &[usize], expected: &[f32]| {
            let values: Vec<f32> = (0..expected.len()).map(|i| i as f32).collect();
            let tensor = permute(&RawTensor::from_f32(shape.to_vec(), &values).unwrap(), axes).unwrap();
            assert_eq!(tensor.shape(), expected_shape);
            assert_eq!(tensor.to_f32("t").unwrap(), expected);
        };
        check(&[2, 3], &[1, 0], &[3, 2], &[0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
        check(&[2, 1, 2, 2], &[3, 2, 0, 1], &[2, 2, 2, 1], &[0.0, 4.0, 2.0, 6.0, 1.0, 5.0, 3.0, 7.0]);
        let tensor = RawTensor::from_f32(vec![2, 3], &[0.0; 6]).unwrap();
        assert!(permute(&tensor, &[0, 0]).is_none());
        assert!(permute(&tensor, &[0]).is_none());
        assert!(permute(&RawTensor::from_f32(vec![0, 3], &[]).unwrap(), &[1, 0]).is_none());
    }
}
