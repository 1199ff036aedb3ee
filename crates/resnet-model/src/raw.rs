//! Tensors as they lie in a file: element type, shape and where the bytes are, read when they are asked for.

use std::fmt;
use std::io;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};
pub use safetensors::Dtype;

use crate::file::SharedFile;
use crate::{Error, Result};

/// Bytes that can be read at offsets: a part of a file, a vector, a view that gathers its elements.
pub trait Bytes: Send + Sync + fmt::Debug {
    /// How many bytes there are.
    fn len(&self) -> u64;

    /// Whether there is no byte.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Fills `out` with the bytes from `offset` on; reading past the end is an error.
    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()>;
}

impl Bytes for Vec<u8> {
    fn len(&self) -> u64 {
        Vec::len(self) as u64
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let part = usize::try_from(offset)
            .ok()
            .and_then(|start| self.get(start..start.checked_add(out.len())?))
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(part);
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

/// `len` bytes of others from `offset` on.
#[derive(Debug, Clone)]
pub struct ByteRange {
    bytes: Arc<dyn Bytes>,
    offset: u64,
    len: u64,
}

impl ByteRange {
    /// The part; `None` if `bytes` are too few.
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

/// A tensor in row-major order, little-endian, wherever it lies.
#[derive(Debug, Clone)]
pub struct RawTensor {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Arc<dyn Bytes>,
}

/// How many bytes a tensor of this type and shape takes; `None` if that overflows or the elements do not fill whole bytes.
pub fn byte_len(dtype: Dtype, shape: &[usize]) -> Option<u64> {
    let bits = shape.iter().try_fold(dtype.bitsize() as u64, |n, &d| n.checked_mul(d as u64))?;
    (bits % 8 == 0).then_some(bits / 8)
}

impl RawTensor {
    /// A tensor over `bytes`, which must be exactly as many as type and shape need; else `None`.
    pub fn new(dtype: Dtype, shape: Vec<usize>, bytes: Arc<dyn Bytes>) -> Option<RawTensor> {
        (byte_len(dtype, &shape)? == bytes.len()).then_some(RawTensor { dtype, shape, bytes })
    }

    /// An f32 tensor in memory; `None` if `values` are not as many as `shape` needs.
    pub fn from_f32(shape: Vec<usize>, values: &[f32]) -> Option<RawTensor> {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        RawTensor::new(Dtype::F32, shape, Arc::new(bytes))
    }

    /// An i64 scalar in memory, as PyTorch keeps `num_batches_tracked`.
    pub fn scalar_i64(value: i64) -> RawTensor {
        RawTensor { dtype: Dtype::I64, shape: vec![], bytes: Arc::new(value.to_le_bytes().to_vec()) }
    }

    /// The value of an i64 scalar; `None` for any other tensor, or if its bytes cannot be read.
    pub fn scalar(&self) -> Option<i64> {
        match (self.dtype, self.shape.as_slice(), self.read()) {
            (Dtype::I64, [], Ok(bytes)) => Some(i64::from_le_bytes(bytes.try_into().ok()?)),
            _ => None,
        }
    }

    /// The values of a candle tensor, copied to memory. Its type must be one that safetensors files know.
    pub fn from_candle(tensor: &Tensor) -> Result<RawTensor> {
        let dtype = Dtype::from(tensor.dtype());
        let mut bytes = Vec::new();
        tensor.write_bytes(&mut bytes)?;
        RawTensor::new(dtype, tensor.dims().to_vec(), Arc::new(bytes)).ok_or_else(|| {
            Error::Candle(candle_core::Error::Msg("tensor and its bytes differ in size".into()))
        })
    }

    /// The element type.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// The shape; empty for a scalar.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// The number of bytes.
    pub fn byte_len(&self) -> u64 {
        self.bytes.len()
    }

    /// Where the bytes are.
    pub fn bytes(&self) -> &Arc<dyn Bytes> {
        &self.bytes
    }

    /// The same elements in another shape; `None` if it holds another number of elements.
    pub fn reshape(&self, shape: Vec<usize>) -> Option<RawTensor> {
        RawTensor::new(self.dtype, shape, self.bytes.clone())
    }

    /// All bytes, little-endian.
    pub fn read(&self) -> io::Result<Vec<u8>> {
        let mut out = vec![0; usize::try_from(self.bytes.len()).map_err(|_| io::ErrorKind::OutOfMemory)?];
        self.bytes.read_at(0, &mut out)?;
        Ok(out)
    }

    /// Hands all bytes to `each` in pieces of at most 1 MiB, so that the size of a tensor is not the size of a buffer.
    /// Pieces hold whole elements.
    pub fn for_each_chunk(&self, mut each: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        const CHUNK: u64 = 1 << 20;
        let mut buffer = vec![0; self.bytes.len().min(CHUNK) as usize];
        let mut offset = 0;
        while offset < self.bytes.len() {
            let n = (self.bytes.len() - offset).min(CHUNK);
            let piece = &mut buffer[..n as usize];
            self.bytes.read_at(offset, piece)?;
            each(piece)?;
            offset += n;
        }
        Ok(())
    }

    /// All values as f32, widened or rounded to nearest; `name` is for the error. Booleans and exotic types are refused.
    pub fn to_f32(&self, name: &str) -> Result<Vec<f32>> {
        let mut out = Vec::new();
        self.read_f32(name, &mut out)?;
        Ok(out)
    }

    /// As [`RawTensor::to_f32`], in memory that the caller uses again; what it held is gone.
    pub fn read_f32(&self, name: &str, out: &mut Vec<f32>) -> Result<()> {
        let widen = self.widener(name)?;
        out.clear();
        out.reserve_exact(self.elements());
        self.for_each_chunk(|bytes| {
            widen(bytes, out);
            Ok(())
        })
    }

    /// As [`RawTensor::to_f32`], in pieces.
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
            dtype: format!("{:?}", self.dtype),
            wanted: "f32",
        })
    }

    /// The values as a candle tensor of type `dtype` on `device`; `name` is for the error.
    pub fn to_candle(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        Ok(Tensor::from_vec(self.to_f32(name)?, self.shape.clone(), device)?.to_dtype(dtype)?)
    }
}

/// Appends the f32 values of little-endian elements.
type Widen = fn(&[u8], &mut Vec<f32>);

/// How elements of this type become f32.
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
    fn types_widen_to_f32() {
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
        assert!(t.to_f32("mask").unwrap_err().to_string().contains("`mask` has element type BOOL"));
    }

    #[test]
    fn sizes_must_agree() {
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
