//! Transposition of TensorFlow's weight layouts to PyTorch's.

use resnet_model::RawTensor;
use resnet_model::raw::permute;

/// Transposes `[height, width, in, out]` to `[out, in, height, width]` and `[in, out]` to `[out, in]`; returns `None` for
/// vectors, whose layout is the same.
pub(super) fn to_torch(tensor: &RawTensor) -> Option<RawTensor> {
    match tensor.shape().len() {
        2 => permute(tensor, &[1, 0]),
        4 => permute(tensor, &[3, 2, 0, 1]),
        _ => None,
    }
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
