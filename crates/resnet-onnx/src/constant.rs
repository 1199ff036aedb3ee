//! Constant folding: shapes, computed weights, and arithmetic between constants.

use std::io;
use std::sync::Arc;

use resnet_model::RawTensor;
use resnet_model::raw::{Bytes, Dtype, byte_len};

use resnet_model::raw::{self, Float};

/// Maximum length of an integer list: shapes, axes, indices.
const MAX_INTS: usize = 1 << 10;

/// A weight or another constant, and its name in the file.
#[derive(Debug, Clone)]
pub(crate) struct Constant {
    pub(crate) tensor: RawTensor,
    pub(crate) name: String,
}

impl Constant {
    pub(crate) fn shape(&self) -> &[usize] {
        self.tensor.shape()
    }

    /// Returns a constant with the same name and another tensor.
    pub(crate) fn with(&self, tensor: RawTensor) -> Constant {
        Constant { tensor, name: self.name.clone() }
    }

    pub(crate) fn reshape(&self, shape: &[usize]) -> Option<Constant> {
        Some(self.with(self.tensor.reshape(shape.to_vec())?))
    }

    /// Returns all values; `None` if they are not numeric or a read fails.
    pub(crate) fn values(&self) -> Option<Vec<f32>> {
        self.tensor.to_f32(&self.name).ok()
    }

    /// Returns the value of a tensor of one element.
    pub(crate) fn scalar(&self) -> Option<f32> {
        match (self.tensor.elements(), self.values()?.as_slice()) {
            (1, &[value]) => Some(value),
            _ => None,
        }
    }
}

/// Returns the elements of an integer tensor of at most [`MAX_INTS`].
pub(crate) fn ints(tensor: &RawTensor) -> Option<Vec<i64>> {
    if tensor.elements() > MAX_INTS {
        return None;
    }
    let bytes = tensor.read().ok()?;
    Some(match tensor.dtype() {
        Dtype::I64 => bytes.as_chunks::<8>().0.iter().map(|&b| i64::from_le_bytes(b)).collect(),
        Dtype::I32 => bytes.as_chunks::<4>().0.iter().map(|&b| i64::from(i32::from_le_bytes(b))).collect(),
        _ => return None,
    })
}

/// Returns an i64 tensor `[values.len()]`.
pub(crate) fn from_ints(values: &[i64]) -> Option<RawTensor> {
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    RawTensor::new(Dtype::I64, vec![values.len()], Arc::new(bytes))
}

/// One element, repeated.
#[derive(Debug)]
struct Fill {
    element: Vec<u8>,
    len: u64,
}

impl Bytes for Fill {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let end = offset.checked_add(out.len() as u64);
        if end.is_none_or(|end| end > self.len) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let skip = offset.checked_rem(self.element.len() as u64).unwrap_or(0) as usize;
        let bytes = self.element.iter().cycle().skip(skip);
        out.iter_mut().zip(bytes).for_each(|(out, &byte)| *out = byte);
        Ok(())
    }
}

/// Returns `element` expanded to `shape`, without allocating it.
pub(crate) fn fill(element: &RawTensor, shape: Vec<usize>) -> Option<RawTensor> {
    let len = byte_len(element.dtype(), &shape)?;
    let element_bytes = match element.elements() {
        1 => element.read().ok()?,
        _ => return None,
    };
    RawTensor::new(element.dtype(), shape, Arc::new(Fill { element: element_bytes, len }))
}

/// Copies elements at strides into a contiguous buffer.
fn gather(from: &[u8], to: &mut [u8], item: usize, sizes: &[usize], strides: &[usize]) -> Option<()> {
    if item == 0 {
        return None;
    }
    let mut index = vec![0usize; sizes.len()];
    let mut at = 0usize;
    for element in to.chunks_exact_mut(item) {
        let start = at.checked_mul(item)?;
        element.copy_from_slice(from.get(start..start.checked_add(item)?)?);
        // Increments the multi-index.
        for ((i, &size), &stride) in index.iter_mut().zip(sizes).zip(strides).rev() {
            *i = i.checked_add(1)?;
            if *i < size {
                at = at.checked_add(stride)?;
                break;
            }
            at = at.checked_sub(stride.checked_mul(size.checked_sub(1)?)?)?;
            *i = 0;
        }
    }
    Some(())
}

/// Casts the elements, rounding to nearest.
pub(crate) fn cast(tensor: &RawTensor, to: Dtype) -> Option<RawTensor> {
    if tensor.dtype() == to {
        return Some(tensor.clone());
    }
    let float = match to {
        Dtype::F32 => Some(Float::F32),
        Dtype::F16 => Some(Float::F16),
        Dtype::BF16 => Some(Float::BF16),
        _ => None,
    };
    match float {
        Some(float) if raw::is_float(tensor.dtype()) => raw::cast(tensor, float),
        Some(_) if tensor.elements() <= MAX_INTS => {
            let values = tensor.to_f32("").ok()?;
            cast(&RawTensor::from_f32(tensor.shape().to_vec(), &values)?, to)
        }
        None if to == Dtype::I64 => from_ints(&ints(tensor)?)?.reshape(tensor.shape().to_vec()),
        _ => None,
    }
}

/// Returns the number of elements of a shape.
fn count(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d))
}

/// Returns `true` if `shape` broadcasts to `other`.
fn broadcasts(shape: &[usize], other: &[usize]) -> bool {
    let pairs = shape.iter().rev().zip(other.iter().rev());
    shape.len() <= other.len() && pairs.into_iter().all(|(&a, &b)| a == b || a == 1)
}

/// Applies `op` elementwise; one operand broadcasts to the other.
pub(crate) fn arithmetic(op: &str, a: &RawTensor, b: &RawTensor) -> Option<RawTensor> {
    let shape = match (broadcasts(b.shape(), a.shape()), broadcasts(a.shape(), b.shape())) {
        (true, _) => a.shape().to_vec(),
        (false, true) => b.shape().to_vec(),
        _ => return None,
    };
    if let (Some(a), Some(b)) = (ints(a), ints(b)) {
        let value = |(a, b): (i64, i64)| match op {
            "Add" => a.checked_add(b),
            "Sub" => a.checked_sub(b),
            "Mul" => a.checked_mul(b),
            "Div" => a.checked_div(b),
            _ => None,
        };
        let n = count(&shape)?;
        let pairs = a.into_iter().cycle().zip(b.into_iter().cycle()).take(n);
        return from_ints(&pairs.map(value).collect::<Option<Vec<_>>>()?)?.reshape(shape);
    }
    let (x, y) = (broadcast(a, &shape)?, broadcast(b, &shape)?);
    let value = |(x, y): (f32, f32)| match op {
        "Add" => Some(x + y),
        "Sub" => Some(x - y),
        "Mul" => Some(x * y),
        "Div" => Some(x / y),
        "Pow" => Some(x.powf(y)),
        _ => None,
    };
    let values = x.into_iter().zip(y).map(value).collect::<Option<Vec<_>>>()?;
    cast(&RawTensor::from_f32(shape, &values)?, a.dtype())
}

/// Returns the values of a tensor broadcast to `shape`.
fn broadcast(tensor: &RawTensor, shape: &[usize]) -> Option<Vec<f32>> {
    let values = tensor.to_f32("").ok()?;
    let missing = shape.len().checked_sub(tensor.shape().len())?;
    let own: Vec<usize> = std::iter::repeat_n(1, missing).chain(tensor.shape().iter().copied()).collect();
    let mut strides = vec![0usize; own.len()];
    let mut step = 1usize;
    for (stride, &size) in strides.iter_mut().zip(&own).rev() {
        *stride = if size == 1 { 0 } else { step };
        step = step.checked_mul(size)?;
    }
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let mut out = vec![0; count(shape)?.checked_mul(4)?];
    gather(&bytes, &mut out, 4, shape, &strides)?;
    Some(out.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect())
}

/// Applies a unary operator elementwise.
pub(crate) fn unary(op: &str, tensor: &RawTensor) -> Option<RawTensor> {
    let value = |x: f32| match op {
        "Sqrt" => Some(x.sqrt()),
        "Reciprocal" => Some(x.recip()),
        "Neg" => Some(-x),
        "Exp" => Some(x.exp()),
        "Abs" => Some(x.abs()),
        _ => None,
    };
    let values = tensor.to_f32("").ok()?.into_iter().map(value).collect::<Option<Vec<_>>>()?;
    cast(&RawTensor::from_f32(tensor.shape().to_vec(), &values)?, tensor.dtype())
}

/// Returns the mean over `axes`, computed in `f64`.
pub(crate) fn mean(tensor: &RawTensor, axes: &[i64], keep: bool) -> Option<RawTensor> {
    let shape = tensor.shape();
    let axes: Vec<usize> = axes.iter().map(|&a| axis(a, shape.len())).collect::<Option<_>>()?;
    let kept: Vec<usize> =
        shape.iter().enumerate().map(|(i, &d)| if axes.contains(&i) { 1 } else { d }).collect();
    // Strides of the result, 0 along the reduced axes.
    let mut strides = vec![0usize; shape.len()];
    let mut step = 1usize;
    for (i, (stride, &size)) in strides.iter_mut().zip(&kept).enumerate().rev() {
        *stride = if axes.contains(&i) { 0 } else { step };
        step = step.checked_mul(size)?;
    }
    let mut sums = vec![0f64; step];
    let mut index = vec![0usize; shape.len()];
    for value in tensor.to_f32("").ok()? {
        let at = index.iter().zip(&strides).map(|(i, s)| i.checked_mul(*s)).sum::<Option<usize>>()?;
        *sums.get_mut(at)? += f64::from(value);
        for (i, &size) in index.iter_mut().zip(shape).rev() {
            *i = i.checked_add(1)?;
            if *i < size {
                break;
            }
            *i = 0;
        }
    }
    let count = tensor.elements().checked_div(step)? as f64;
    let means: Vec<f32> = sums.into_iter().map(|sum| (sum / count) as f32).collect();
    let out = kept.into_iter().enumerate().filter(|(i, _)| keep || !axes.contains(i));
    cast(&RawTensor::from_f32(out.map(|(_, d)| d).collect(), &means)?, tensor.dtype())
}

/// Returns the batch norm of `tensor` `[N, C, …]` with scale, bias, mean and variance `[C]`, computed in `f64`.
/// `batch_statistics` uses the mean and variance of `tensor` (training mode).
pub(crate) fn batch_norm(
    tensor: &RawTensor,
    parameters: [Option<&RawTensor>; 4],
    eps: f64,
    batch_statistics: bool,
) -> Option<RawTensor> {
    let &[images, channels, ref rest @ ..] = tensor.shape() else { return None };
    let pixels = count(rest)?;
    let mut values = tensor.to_f32("").ok()?;
    let [scale, bias, mean, var] = parameters.map(|p| p?.to_f32("").ok());
    let (scale, bias, mean, var) = (scale?, bias?, mean?, var?);
    let count = images.checked_mul(pixels)? as f64;
    for channel in 0..channels {
        let range = |image: usize| {
            let start = image.checked_mul(channels)?.checked_add(channel)?.checked_mul(pixels)?;
            Some(start..start.checked_add(pixels)?)
        };
        let (mut mean, mut var) = (f64::from(*mean.get(channel)?), f64::from(*var.get(channel)?));
        if batch_statistics {
            let sum = |f: &dyn Fn(f64) -> f64| {
                let planes = (0..images).map(|image| values.get(range(image)?));
                let sums = planes.map(|plane| Some(plane?.iter().map(|&v| f(f64::from(v))).sum::<f64>()));
                sums.sum::<Option<f64>>()
            };
            mean = sum(&|v| v)? / count;
            var = sum(&|v| (v - mean) * (v - mean))? / count;
        }
        let scale = f64::from(*scale.get(channel)?) / (var + eps).sqrt();
        let bias = f64::from(*bias.get(channel)?);
        for image in 0..images {
            let plane = values.get_mut(range(image)?)?;
            plane.iter_mut().for_each(|v| *v = ((f64::from(*v) - mean) * scale + bias) as f32);
        }
    }
    cast(&RawTensor::from_f32(tensor.shape().to_vec(), &values)?, tensor.dtype())
}

/// Returns the output shape of `Reshape`: -1 is inferred, 0 copies the input size unless `allow_zero`.
pub(crate) fn reshaped(shape: &[usize], target: &[i64], allow_zero: bool) -> Option<Vec<usize>> {
    let mut inferred = None;
    let mut out = Vec::new();
    for (i, &size) in target.iter().enumerate() {
        out.push(match size {
            -1 if inferred.is_none() => {
                inferred = Some(i);
                1
            }
            0 if !allow_zero => *shape.get(i)?,
            size => usize::try_from(size).ok()?,
        });
    }
    if let Some(i) = inferred {
        *out.get_mut(i)? = count(shape)?.checked_div(count(&out)?)?;
    }
    (count(&out)? == count(shape)?).then_some(out)
}

/// Normalizes an axis; negative ones count from the end.
pub(crate) fn axis(axis: i64, rank: usize) -> Option<usize> {
    let rank = i64::try_from(rank).ok()?;
    let axis = if axis < 0 { axis.checked_add(rank)? } else { axis };
    (0..rank).contains(&axis).then_some(axis as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(shape: &[usize]) -> RawTensor {
        let n = shape.iter().product::<usize>();
        RawTensor::from_f32(shape.to_vec(), &(0..n).map(|i| i as f32).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn operands_broadcast() {
        let check = |op, a: &[usize], b: &[usize], expected: &[f32]| {
            let result = arithmetic(op, &tensor(a), &tensor(b)).unwrap();
            assert_eq!(result.to_f32("").unwrap(), expected, "{op} {a:?} {b:?}");
        };
        check("Add", &[2, 2], &[2], &[0.0, 2.0, 2.0, 4.0]);
        check("Mul", &[2], &[2, 2], &[0.0, 1.0, 0.0, 3.0]);
        check("Sub", &[2, 2], &[2, 1], &[0.0, 1.0, 1.0, 2.0]);
        assert!(arithmetic("Add", &tensor(&[2, 1]), &tensor(&[1, 2])).is_none());
    }

    #[test]
    fn mean_reduces_the_given_axes() {
        let check = |axes: &[i64], keep, shape: &[usize], expected: &[f32]| {
            let result = mean(&tensor(&[2, 3, 2]), axes, keep).unwrap();
            assert_eq!(
                (result.shape(), result.to_f32("").unwrap().as_slice()),
                (shape, expected),
                "{axes:?}"
            );
        };
        check(&[0, 2], false, &[3], &[3.5, 5.5, 7.5]);
        check(&[1], true, &[2, 1, 2], &[2.0, 3.0, 8.0, 9.0]);
        check(&[-1, 0, 1], false, &[], &[5.5]);
        assert!(mean(&tensor(&[2]), &[1], true).is_none());
    }

    #[test]
    fn batch_norm_uses_given_or_batch_statistics() {
        let numbers = |values: &[f32]| RawTensor::from_f32(vec![values.len()], values).unwrap();
        let parameters = [[2.0, 1.0], [0.5, 0.0], [1.0, 3.0], [4.0, 0.25]].map(|v| numbers(&v));
        let norm = |own| {
            batch_norm(&tensor(&[1, 2, 2]), parameters.each_ref().map(Some), 0.0, own)
                .unwrap()
                .to_f32("")
                .unwrap()
        };
        assert_eq!(norm(false), [-0.5, 0.5, -2.0, 0.0]);
        assert_eq!(norm(true), [-1.5, 2.5, -1.0, 1.0]);
        assert!(batch_norm(&tensor(&[1, 3, 2]), parameters.each_ref().map(Some), 0.0, true).is_none());
    }

    #[test]
    fn fill_expands_one_element() {
        let one = RawTensor::from_f32(vec![1], &[0.5]).unwrap();
        let filled = fill(&one, vec![3, 2]).unwrap();
        assert_eq!(filled.to_f32("").unwrap(), [0.5; 6]);
        let mut bytes = [0; 3];
        filled.bytes().read_at(2, &mut bytes).unwrap();
        assert_eq!(bytes, [0, 0x3f, 0]);
        assert!(fill(&one, vec![usize::MAX, 4]).is_none());
    }

    #[test]
    fn reshape_infers_sizes() {
        let check = |shape: &[usize], target: &[i64], expected: Option<&[usize]>| {
            assert_eq!(reshaped(shape, target, false).as_deref(), expected, "{shape:?} {target:?}");
        };
        check(&[2, 3, 4], &[0, -1], Some(&[2, 12]));
        check(&[6], &[2, 3], Some(&[2, 3]));
        check(&[6], &[-1, 4], None);
        check(&[6], &[-1, -1], None);
        check(&[6], &[7], None);
    }
}
