//! Lazy tensors from views into storages and from numpy arrays.

use std::io;
use std::sync::Arc;

use resnet_model::RawTensor;
use resnet_model::raw::{ByteRange, Bytes, Dtype};

use resnet_model::raw::Computed;

use super::lazy::{Checked, Swapped, Verified};
use super::pickle::call::latin1;
use super::pickle::numpy::Array;
use super::pickle::specs::{TensorSpec, item_size};
use super::pickle::value::{Arena, Span};
use super::zip::inflate::Deflated;
use crate::error::{Code, Fault};

/// Size up to which a whole storage may be read for few elements.
const SMALL: u64 = 64 << 20;

/// Bytes of a storage.
#[derive(Debug, Clone)]
pub(crate) enum Blob {
    Plain(Arc<dyn Bytes>),
    Checked(Arc<Checked>),
    Deflated(Arc<Deflated>),
}

impl Blob {
    pub(crate) fn len(&self) -> u64 {
        match self {
            Blob::Plain(bytes) => bytes.len(),
            Blob::Checked(bytes) => bytes.len(),
            Blob::Deflated(entry) => entry.len(),
        }
    }
}

/// Builder of tensors that limits their total size, because views may repeat elements.
#[derive(Debug)]
pub(crate) struct TensorBuilder {
    left: u64,
    limit: u64,
    /// Remaining budget, in bytes, for inflated storages kept in memory.
    kept: u64,
}

impl TensorBuilder {
    pub(crate) fn new(file_len: u64) -> TensorBuilder {
        let limit = file_len.saturating_mul(4).max(1 << 20);
        TensorBuilder { left: limit, limit, kept: limit.max(SMALL) }
    }

    fn spend(&mut self, bytes: Option<u64>) -> Result<u64, Fault> {
        let left = bytes.and_then(|b| self.left.checked_sub(b));
        match (bytes, left) {
            (Some(bytes), Some(left)) => {
                self.left = left;
                Ok(bytes)
            }
            _ => {
                let detail = format!("tensors exceed {} bytes, four times the file size", self.limit);
                Err(Fault::new(Code::TensorBytes, detail))
            }
        }
    }

    fn keep(&mut self, bytes: u64) -> Result<(), Fault> {
        let left = self.kept.checked_sub(bytes).ok_or_else(|| {
            let most = self.limit.max(SMALL);
            let detail = format!(
                "views into deflated storages exceed {most} bytes; save the file without compression"
            );
            Fault::new(Code::ZipRatio, detail)
        })?;
        self.kept = left;
        Ok(())
    }

    /// Returns the tensor for a view into a storage.
    pub(crate) fn tensor(
        &mut self,
        spec: &TensorSpec,
        storage: &Blob,
        big_endian: bool,
    ) -> Result<RawTensor, Fault> {
        let bounds = || Fault::new(Code::Bounds, "tensor exceeds its storage");
        let len = self.spend(spec.byte_len())?;
        let item = item_size(spec.dtype);
        let start = spec
            .offset
            .checked_mul(item)
            .and_then(|o| o.checked_add(spec.storage.start))
            .ok_or_else(bounds)?;
        let span = spec.span().and_then(|n| n.checked_mul(item)).ok_or_else(bounds)?;
        let all = start == 0 && len == storage.len() && span == len;
        let whole = all && spec.is_contiguous();
        let bytes: Arc<dyn Bytes> = match storage {
            Blob::Plain(bytes) => bytes.clone(),
            Blob::Checked(bytes) if whole => bytes.clone(),
            Blob::Checked(bytes) => Arc::new(Verified(bytes.clone())),
            // Streams are for sequential reads; each view would inflate everything before it again.
            Blob::Deflated(entry) if all => entry.stream(),
            Blob::Deflated(entry) => entry.kept(|| self.keep(entry.len()))?,
        };
        let start = if span == 0 { 0 } else { start };
        let part = |bytes| {
            ByteRange::new(bytes, start, span).map(|p| Arc::new(p) as Arc<dyn Bytes>).ok_or_else(bounds)
        };
        let mut bytes = if whole { bytes } else { part(bytes)? };
        if big_endian && item > 1 {
            bytes = Arc::new(Swapped { bytes, item });
        }
        if !spec.is_contiguous() {
            let view = View { item, size: spec.size.to_vec(), stride: spec.stride.to_vec() };
            bytes = Arc::new(Computed::new(len, move || view.gather(&*bytes)));
        }
        raw(spec.dtype, &spec.size, bytes)
    }

    /// Returns the tensor for a numpy array; `None` if its elements are not numbers.
    pub(crate) fn array(
        &mut self,
        array: &Array,
        arena: &Arena,
        pickle: &Arc<dyn Bytes>,
    ) -> Result<Option<RawTensor>, Fault> {
        let Some(data) = array.data else { return Ok(None) };
        let item = item_size(array.dtype);
        let len = array.shape.iter().try_fold(item, |n, &d| n.checked_mul(d));
        let len = self.spend(len)?;
        let size = |found: u64| {
            Fault::new(Code::StorageSize, format!("array of {len} bytes with {found} bytes of data"))
        };
        let bytes: Arc<dyn Bytes> = match data {
            Span::Inline { .. } => Arc::new(arena.inline(data).unwrap_or(&[]).to_vec()),
            Span::Input { offset, len } => {
                Arc::new(ByteRange::new(pickle.clone(), offset, len).ok_or_else(|| size(len))?)
            }
            Span::Latin1 { offset, len: encoded } => {
                let text = ByteRange::new(pickle.clone(), offset, encoded).ok_or_else(|| size(encoded))?;
                // UTF-8 encodes a Latin-1 character in one or two bytes.
                if len > encoded || encoded > len.saturating_mul(2) {
                    return Err(size(encoded));
                }
                Arc::new(Computed::new(len, move || {
                    let mut utf8 = vec![0; text.len() as usize];
                    text.read_at(0, &mut utf8)?;
                    let bytes = latin1(&utf8).filter(|b| b.len() as u64 == len);
                    bytes
                        .ok_or_else(|| Fault::new(Code::StorageSize, "array data is not Latin-1 text").into())
                }))
            }
        };
        if bytes.len() != len {
            return Err(size(bytes.len()));
        }
        layout(array.dtype, array.layout, &array.shape, bytes).map(Some)
    }

    /// Returns the tensor for an array in a numpy file. `bytes` must hold exactly its elements.
    pub(crate) fn elements(
        &mut self,
        dtype: Dtype,
        order: ArrayOrder,
        shape: &[u64],
        bytes: Arc<dyn Bytes>,
    ) -> Result<RawTensor, Fault> {
        let len = shape.iter().try_fold(item_size(dtype), |n, &d| n.checked_mul(d));
        if len.is_none_or(|len| len > bytes.len()) {
            let found = bytes.len();
            let detail = format!("array of dtype {dtype:?} and shape {shape:?} in {found} bytes");
            return Err(Fault::new(Code::TensorSize, detail));
        }
        let len = self.spend(len)?;
        if len < bytes.len() {
            let more = bytes.len().saturating_sub(len);
            return Err(Fault::new(Code::Trailing, format!("{more} bytes after the array")));
        }
        layout(dtype, order, shape, bytes)
    }
}

/// Byte order and memory order of an array.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ArrayOrder {
    pub(crate) big_endian: bool,
    /// Column-major order.
    pub(crate) fortran: bool,
}

fn layout(dtype: Dtype, order: ArrayOrder, shape: &[u64], bytes: Arc<dyn Bytes>) -> Result<RawTensor, Fault> {
    let item = item_size(dtype);
    let len = bytes.len();
    let mut bytes = bytes;
    if order.big_endian && item > 1 {
        bytes = Arc::new(Swapped { bytes, item });
    }
    if order.fortran && shape.len() > 1 {
        let mut next = 1u64;
        let mut stride = Vec::new();
        for &d in shape {
            stride.push(next);
            next = next.saturating_mul(d);
        }
        let view = View { item, stride, size: shape.to_vec() };
        bytes = Arc::new(Computed::new(len, move || view.gather(&*bytes)));
    }
    raw(dtype, shape, bytes)
}

fn raw(dtype: Dtype, shape: &[u64], bytes: Arc<dyn Bytes>) -> Result<RawTensor, Fault> {
    let shape: Option<Vec<usize>> = shape.iter().map(|&d| usize::try_from(d).ok()).collect();
    let tensor = shape.and_then(|shape| RawTensor::new(dtype, shape, bytes));
    tensor.ok_or_else(|| Fault::new(Code::Bounds, "tensor data does not match its shape"))
}

/// Strided view that starts at the first byte.
struct View {
    item: u64,
    size: Vec<u64>,
    stride: Vec<u64>,
}

impl View {
    /// Gathers all elements in row-major order.
    fn gather(&self, bytes: &dyn Bytes) -> io::Result<Vec<u8>> {
        let eof = || io::Error::from(io::ErrorKind::UnexpectedEof);
        let len = self.size.iter().try_fold(self.item, |n, &d| n.checked_mul(d)).ok_or_else(eof)?;
        let mut out = vec![0u8; usize::try_from(len).map_err(|_| eof())?];
        let span = bytes.len();
        if span <= SMALL || span.div_euclid(4) <= len {
            let mut all = vec![0u8; span as usize];
            bytes.read_at(0, &mut all)?;
            self.for_each(&mut out, |at, element| {
                let end = at.checked_add(element.len())?;
                element.copy_from_slice(all.get(at..end)?);
                Some(())
            })
            .ok_or_else(eof)?;
        } else {
            let mut failed = None;
            let read = self.for_each(&mut out, |at, element| {
                bytes.read_at(at as u64, element).map_err(|e| failed = Some(e)).ok()
            });
            if read.is_none() {
                return Err(failed.unwrap_or_else(eof));
            }
        }
        Ok(out)
    }

    /// Calls `each` with every element's byte offset, in row-major order.
    fn for_each(&self, out: &mut [u8], mut each: impl FnMut(usize, &mut [u8]) -> Option<()>) -> Option<()> {
        let item = usize::try_from(self.item).ok()?;
        let mut index = vec![0u64; self.size.len()];
        let mut at = 0u64;
        for element in out.chunks_exact_mut(item) {
            each(usize::try_from(at).ok()?, element)?;
            // Increment like an odometer.
            for ((i, &size), &stride) in index.iter_mut().zip(&self.size).zip(&self.stride).rev() {
                let step = stride.checked_mul(self.item)?;
                *i = i.checked_add(1)?;
                if *i < size {
                    at = at.checked_add(step)?;
                    break;
                }
                at = at.checked_sub(step.checked_mul(size.checked_sub(1)?)?)?;
                *i = 0;
            }
        }
        Some(())
    }
}
