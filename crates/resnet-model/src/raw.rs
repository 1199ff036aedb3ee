//! Tensors in a file: dtype, shape and a source of bytes that are read on demand.

use std::fmt;
use std::io;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};
pub use safetensors::Dtype;

mod cast;
mod computed;
mod permute;

pub use cast::{Float, cast, is_float};
pub use computed::Computed;
pub use permute::permute;

use crate::file::SharedFile;
use crate::{Error, Result};

/// A source of bytes that are read at offsets: a range of a file, a vector, a view that gathers its elements.
pub trait Bytes: Send + Sync + fmt::Debug {
    /// Returns the number of bytes.
    fn len(&self) -> u64;

    /// Returns `true` if there are no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Fills `out` with the bytes from `offset`.
    ///
    /// # Errors
    ///
    /// `UnexpectedEof` if `out` extends past the end, or an error of the source.
    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()>;
}

impl Bytes for Vec<u8> {
    fn len(&self) -> u64 {
        Vec::len(self) as u64
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let range = usize::try_from(offset)
            .ok()
            .and_then(|start| self.get(start..start.checked_add(out.len())?))
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(range);
        Ok(())
    }
}

impl Bytes for SharedFile {
    fn len(&self) -> u64 {
        SharedFile::len(self)
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        SharedFile::read_at(self, offset, out)
    }
}

/// A range of another byte source.
#[derive(Debug, Clone)]
pub struct ByteRange {
    bytes: Arc<dyn Bytes>,
    offset: u64,
    len: u64,
}

impl ByteRange {
    /// Returns the range of `len` bytes from `offset`, or `None` if it exceeds `bytes`.
    pub fn new(bytes: Arc<dyn Bytes>, offset: u64, len: u64) -> Option<ByteRange> {
        (offset.checked_add(len)? <= bytes.len()).then_some(ByteRange { bytes, offset, len })
    }
}

impl Bytes for ByteRange {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        match offset.checked_add(out.len() as u64) {
            Some(end) if end <= self.len => self.bytes.read_at(self.offset + offset, out),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

/// A tensor in row-major order and little-endian, in memory or in a file.
#[derive(Debug, Clone)]
pub struct RawTensor {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Arc<dyn Bytes>,
}

/// Returns the size in bytes of a tensor, or `None` if it overflows or is not a whole number of bytes.
pub fn byte_len(dtype: Dtype, shape: &[usize]) -> Option<u64> {
    let bits = shape.iter().try_fold(dtype.bitsize() as u64, |n, &d| n.checked_mul(d as u64))?;
    (bits % 8 == 0).then_some(bits / 8)
}

impl RawTensor {
    /// Creates a tensor over `bytes`, or returns `None` if their number does not match dtype and shape.
    pub fn new(dtype: Dtype, shape: Vec<usize>, bytes: Arc<dyn Bytes>) -> Option<RawTensor> {
        (byte_len(dtype, &shape)? == bytes.len()).then_some(RawTensor { dtype, shape, bytes })
    }

    /// Creates an f32 tensor in memory, or returns `None` if the number of `values` does not match `shape`.
    pub fn from_f32(shape: Vec<usize>, values: &[f32]) -> Option<RawTensor> {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        RawTensor::new(Dtype::F32, shape, Arc::new(bytes))
    }

    /// Creates an i64 scalar in memory, the form of PyTorch's `num_batches_tracked`.
    pub fn scalar_i64(value: i64) -> RawTensor {
        RawTensor { dtype: Dtype::I64, shape: vec![], bytes: Arc::new(value.to_le_bytes().to_vec()) }
    }

    /// Returns the value of an i64 scalar, or `None` for any other tensor or if its bytes cannot be read.
    pub fn scalar(&self) -> Option<i64> {
        match (self.dtype, self.shape.as_slice(), self.read()) {
            (Dtype::I64, [], Ok(bytes)) => Some(i64::from_le_bytes(bytes.try_into().ok()?)),
            _ => None,
        }
    }

    /// Copies a candle tensor to memory.
    ///
    /// # Errors
    ///
    /// A candle error if the tensor cannot be read.
    pub fn from_candle(tensor: &Tensor) -> Result<RawTensor> {
        let dtype = Dtype::from(tensor.dtype());
        let mut bytes = Vec::new();
        tensor.write_bytes(&mut bytes)?;
        RawTensor::new(dtype, tensor.dims().to_vec(), Arc::new(bytes)).ok_or_else(|| {
            Error::Candle(candle_core::Error::Msg("the number of bytes does not match the tensor".into()))
        })
    }

    /// Returns the dtype.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Returns the shape, empty for a scalar.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Returns the number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Returns the number of bytes.
    pub fn byte_len(&self) -> u64 {
        self.bytes.len()
    }

    /// Returns the source of the bytes.
    pub fn bytes(&self) -> &Arc<dyn Bytes> {
        &self.bytes
    }

    /// Returns the same elements in another shape, or `None` if the number of elements differs.
    pub fn reshape(&self, shape: Vec<usize>) -> Option<RawTensor> {
        RawTensor::new(self.dtype, shape, self.bytes.clone())
    }

    /// Reads all bytes, little-endian.
    pub fn read(&self) -> io::Result<Vec<u8>> {
        let mut out = vec![0; usize::try_from(self.bytes.len()).map_err(|_| io::ErrorKind::OutOfMemory)?];
        self.bytes.read_at(0, &mut out)?;
        Ok(out)
    }

    /// Reads all bytes in chunks of at most 1 MiB and calls `each` with them. Chunks hold whole elements.
    pub fn for_each_chunk(&self, mut each: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        const CHUNK: u64 = 1 << 20;
        let mut buffer = vec![0; self.bytes.len().min(CHUNK) as usize];
        let mut offset = 0;
        while offset < self.bytes.len() {
            let n = (self.bytes.len() - offset).min(CHUNK);
            let chunk = &mut buffer[..n as usize];
            self.bytes.read_at(offset, chunk)?;
            each(chunk)?;
            offset += n;
        }
        Ok(())
    }

    /// Returns all values as f32, rounded to nearest.
    ///
    /// # Errors
    ///
    /// [`Error::Dtype`] with `name` if the tensor holds booleans or another unsupported dtype.
    pub fn to_f32(&self, name: &str) -> Result<Vec<f32>> {
        let mut out = Vec::new();
        self.read_f32(name, &mut out)?;
        Ok(out)
    }

    /// Replaces the contents of `out` with all values as f32, as [`RawTensor::to_f32`].
    ///
    /// # Errors
    ///
    /// As [`RawTensor::to_f32`].
    pub fn read_f32(&self, name: &str, out: &mut Vec<f32>) -> Result<()> {
        let widen = self.widener(name)?;
        out.clear();
        out.reserve_exact(self.elements());
        self.for_each_chunk(|bytes| {
            widen(bytes, out);
            Ok(())
        })
    }

    /// Calls `each` with all values as f32 in chunks.
    ///
    /// # Errors
    ///
    /// As [`RawTensor::to_f32`], or an error of `each`.
    pub fn for_each_f32(&self, name: &str, mut each: impl FnMut(&[f32]) -> Result<()>) -> Result<()> {
        let widen = self.widener(name)?;
        let mut values = Vec::new();
        self.for_each_chunk(|bytes| {
            values.clear();
            widen(bytes, &mut values);
            each(&values)
        })
    }

    fn widener(&self, name: &str) -> Result<Widen> {
        widener(self.dtype).ok_or_else(|| Error::Dtype {
            name: name.to_owned(),
            dtype: self.dtype.to_string(),
            expected: "f32",
        })
    }

    /// Returns the values as a candle tensor of `dtype` on `device`.
    ///
    /// # Errors
    ///
    /// As [`RawTensor::to_f32`].
    pub fn to_candle(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        Ok(Tensor::from_vec(self.to_f32(name)?, self.shape.clone(), device)?.to_dtype(dtype)?)
    }
}

/// Appends the f32 values of little-endian elements.
type Widen = fn(&[u8], &mut Vec<f32>);

/// Returns the conversion of a dtype to f32.
fn widener(dtype: Dtype) -> Option<Widen> {
    fn each<const N: usize>(bytes: &[u8], out: &mut Vec<f32>, value: impl Fn([u8; N]) -> f32) {
        out.extend(bytes.as_chunks::<N>().0.iter().map(|&b| value(b)));
    }
    Some(match dtype {
        Dtype::F32 => |b, out| each(b, out, f32::from_le_bytes),
        Dtype::F16 => |b, out| each(b, out, |v| f16::from_le_bytes(v).to_f32()),
        Dtype::BF16 => |b, out| each(b, out, |v| bf16::from_le_bytes(v).to_f32()),
        Dtype::F64 => |b, out| each(b, out, |v| f64::from_le_bytes(v) as f32),
        Dtype::U8 => |b, out| each(b, out, |v: [u8; 1]| v[0] as f32),
        Dtype::I8 => |b, out| each(b, out, |v| i8::from_le_bytes(v) as f32),
        Dtype::I16 => |b, out| each(b, out, |v| i16::from_le_bytes(v) as f32),
        Dtype::I32 => |b, out| each(b, out, |v| i32::from_le_bytes(v) as f32),
        Dtype::I64 => |b, out| each(b, out, |v| i64::from_le_bytes(v) as f32),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dtypes_convert_to_f32() {
        let check = |dtype, bytes: Vec<u8>, expected: &[f32]| {
            let t = RawTensor::new(dtype, vec![expected.len()], Arc::new(bytes)).unwrap();
            assert_eq!(t.to_f32("t").unwrap(), expected, "{dtype:?}");
        };
        check(Dtype::F32, [1.5f32, -2.0].iter().flat_map(|v| v.to_le_bytes()).collect(), &[1.5, -2.0]);
        check(Dtype::F16, vec![0x00, 0x3c, 0x00, 0xc0], &[1.0, -2.0]);
        check(Dtype::BF16, vec![0x80, 0x3f, 0x00, 0xc0], &[1.0, -2.0]);
        check(Dtype::F64, 0.1f64.to_le_bytes().to_vec(), &[0.1]);
        check(Dtype::I64, (-7i64).to_le_bytes().to_vec(), &[-7.0]);
        check(Dtype::U8, vec![255], &[255.0]);
        let t = RawTensor::new(Dtype::BOOL, vec![1], Arc::new(vec![1])).unwrap();
        assert!(t.to_f32("mask").unwrap_err().to_string().contains("`mask` has dtype BOOL"));
    }

    #[test]
    fn the_size_must_match_dtype_and_shape() {
        assert!(RawTensor::new(Dtype::F32, vec![2, 3], Arc::new(vec![0; 24])).is_some());
        assert!(RawTensor::new(Dtype::F32, vec![2, 3], Arc::new(vec![0; 23])).is_none());
        assert!(RawTensor::new(Dtype::F32, vec![usize::MAX, 2], Arc::new(vec![])).is_none());
        assert!(RawTensor::new(Dtype::F4, vec![3], Arc::new(vec![0; 2])).is_none());
    }

    #[test]
    fn reading_past_the_end_is_an_error() {
        let bytes = vec![1u8, 2, 3];
        assert!(Bytes::read_at(&bytes, 2, &mut [0; 2]).is_err());
        assert!(Bytes::read_at(&bytes, u64::MAX, &mut [0; 1]).is_err());
    }
}
