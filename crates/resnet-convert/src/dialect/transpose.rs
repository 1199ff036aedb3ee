//! Lazy transposition of TensorFlow's weight layouts to PyTorch's.

use std::io;
use std::sync::Arc;

use resnet_model::RawTensor;
use resnet_model::raw::Bytes;

use crate::source::lazy::Computed;

/// Transposes `[height, width, in, out]` to `[out, in, height, width]` and `[in, out]` to `[out, in]`; returns `None` for
/// vectors, whose layout is the same.
pub(super) fn to_torch(tensor: &RawTensor) -> Option<RawTensor> {
    let shape = tensor.shape();
    // Source axes in the order of the result.
    let axes: &[usize] = match shape.len() {
        2 => &[1, 0],
        4 => &[3, 2, 0, 1],
        _ => return None,
    };
    let elements = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d))?;
    let item = usize::try_from(tensor.byte_len()).ok()?.checked_div(elements)?;
    let size: Option<Vec<usize>> = axes.iter().map(|&a| shape.get(a).copied()).collect();
    let stride: Option<Vec<usize>> = axes
        .iter()
        .map(|&a| shape.get(a.checked_add(1)?..)?.iter().try_fold(item, |n, &d| n.checked_mul(d)))
        .collect();
    let (size, stride) = (size?, stride?);
    let (bytes, steps) = (tensor.bytes().clone(), size.iter().copied().zip(stride).collect::<Vec<_>>());
    let computed = Computed::new(tensor.byte_len(), move || gather(&*bytes, item, &steps));
    RawTensor::new(tensor.dtype(), size, Arc::new(computed))
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
    fn axes_are_transposed() {
        let check = |shape: &[usize], expected_shape: &[usize], expected: &[f32]| {
            let values: Vec<f32> = (0..expected.len()).map(|i| i as f32).collect();
            let tensor = to_torch(&RawTensor::from_f32(shape.to_vec(), &values).unwrap()).unwrap();
            assert_eq!(tensor.shape(), expected_shape);
            assert_eq!(tensor.to_f32("t").unwrap(), expected);
        };
        check(&[2, 3], &[3, 2], &[0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
        // Two rows, one column, two inputs, three outputs.
        let out = [0.0, 6.0, 3.0, 9.0, 1.0, 7.0, 4.0, 10.0, 2.0, 8.0, 5.0, 11.0];
        check(&[2, 1, 2, 3], &[3, 2, 2, 1], &out);
        assert!(to_torch(&RawTensor::from_f32(vec![2], &[1.0, 2.0]).unwrap()).is_none());
        assert!(to_torch(&RawTensor::from_f32(vec![0, 3], &[]).unwrap()).is_none());
    }
}
