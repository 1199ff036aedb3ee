//! Storages and tensors declared in a pickle, checked without their bytes.

use std::collections::HashMap;

use resnet_model::escape;
use resnet_model::raw::{Dtype, byte_len};

use crate::error::{Code, Fault};

use super::value::Value;

pub(crate) const MAX_TENSORS: usize = 100_000;
pub(crate) const MAX_DIMS: usize = 16;

/// A storage that the file holds.
#[derive(Debug)]
pub(crate) struct DeclaredStorage {
    pub(crate) key: String,
    pub(crate) bytes: u64,
    /// The element size of its first declaration, in bytes.
    pub(crate) item: u64,
}

/// Typed reference to a storage or a part of one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StorageRef {
    pub(crate) root: u32,
    pub(crate) dtype: Dtype,
    /// The offset of its first byte in the root.
    pub(crate) start: u64,
    pub(crate) bytes: u64,
}

/// View into a storage; offset and strides are in elements.
#[derive(Debug, Clone)]
pub(crate) struct TensorSpec {
    pub(crate) storage: StorageRef,
    pub(crate) dtype: Dtype,
    pub(crate) offset: u64,
    pub(crate) size: Box<[u64]>,
    pub(crate) stride: Box<[u64]>,
}

#[derive(Debug, Default)]
pub(crate) struct Specs {
    pub(crate) roots: Vec<DeclaredStorage>,
    index: HashMap<String, u32>,
    pub(crate) refs: Vec<StorageRef>,
    pub(crate) tensors: Vec<TensorSpec>,
}

/// Returns the size of an element in bytes.
pub(crate) fn item_size(dtype: Dtype) -> u64 {
    byte_len(dtype, &[1]).unwrap_or(1)
}

fn index(len: usize) -> Result<u32, Fault> {
    u32::try_from(len).map_err(|_| Fault::new(Code::Limit, "storages"))
}

impl Specs {
    pub(crate) fn root(&self, key: &str) -> Option<u32> {
        self.index.get(key).copied()
    }

    /// Declares that storage `key` has `numel` elements of `dtype`.
    pub(crate) fn declare(&mut self, key: &str, dtype: Dtype, numel: Value) -> Result<StorageRef, Fault> {
        let (root, bytes) = self.declare_items(key, item_size(dtype), numel)?;
        Ok(StorageRef { root, dtype, start: 0, bytes })
    }

    /// Declares that storage `key` has `numel` elements of `item` bytes. Returns its index and size in bytes.
    pub(crate) fn declare_items(&mut self, key: &str, item: u64, numel: Value) -> Result<(u32, u64), Fault> {
        let size = |found: &str| {
            Fault::new(Code::StorageSize, format!("storage `{}` declares {found} elements", escape(key)))
        };
        let numel = match numel {
            Value::Int(n) => u64::try_from(n).map_err(|_| size(&n.to_string()))?,
            Value::Big => {
                return Err(Fault::new(Code::Integer, format!("the size of storage `{}`", escape(key))));
            }
            _ => {
                return Err(Fault::new(
                    Code::Args,
                    format!("the size of storage `{}` is not an integer", escape(key)),
                ));
            }
        };
        let bytes = numel.checked_mul(item).ok_or_else(|| size(&numel.to_string()))?;
        let root = match self.root(key) {
            Some(root) => root,
            None => {
                let root = index(self.roots.len())?;
                self.roots.push(DeclaredStorage { key: key.to_owned(), bytes, item });
                self.index.insert(key.to_owned(), root);
                root
            }
        };
        let known = self.roots.get(root as usize).map_or(0, |r| r.bytes);
        if known != bytes {
            let detail = format!("storage `{}` is declared with {known} and with {bytes} bytes", escape(key));
            return Err(Fault::new(Code::StorageConflict, detail));
        }
        Ok((root, bytes))
    }

    pub(crate) fn push_ref(&mut self, storage: StorageRef) -> Result<Value, Fault> {
        let id = index(self.refs.len())?;
        self.refs.push(storage);
        Ok(Value::Storage(id))
    }

    pub(crate) fn push_tensor(&mut self, tensor: TensorSpec) -> Result<Value, Fault> {
        if self.tensors.len() >= MAX_TENSORS {
            return Err(Fault::new(Code::Limit, format!("more than {MAX_TENSORS} tensors")));
        }
        check(&tensor)?;
        let id = index(self.tensors.len())?;
        self.tensors.push(tensor);
        Ok(Value::Tensor(id))
    }
}

impl StorageRef {
    /// Returns `len` elements from element `offset`.
    pub(crate) fn part(self, offset: u64, len: u64) -> Result<StorageRef, Fault> {
        let item = item_size(self.dtype);
        let bytes = len.checked_mul(item);
        let start = offset.checked_mul(item);
        let end = start.zip(bytes).and_then(|(s, b)| s.checked_add(b));
        match (start, bytes, end) {
            (Some(start), Some(bytes), Some(end)) if end <= self.bytes => {
                let start = self.start.saturating_add(start);
                Ok(StorageRef { start, bytes, ..self })
            }
            _ => {
                let detail =
                    format!("view of {len} elements at {offset} exceeds a storage of {} bytes", self.bytes);
                Err(Fault::new(Code::Bounds, detail))
            }
        }
    }
}

impl TensorSpec {
    /// Returns the size of the elements in bytes; `None` on overflow.
    pub(crate) fn byte_len(&self) -> Option<u64> {
        self.size.iter().try_fold(item_size(self.dtype), |n, &d| n.checked_mul(d))
    }

    /// Returns the number of elements from the first to the last in the storage; 0 if there are none.
    pub(crate) fn span(&self) -> Option<u64> {
        if self.size.contains(&0) {
            return Some(0);
        }
        let dims = self.size.iter().zip(&self.stride);
        dims.into_iter().try_fold(1u64, |n, (d, s)| n.checked_add(d.checked_sub(1)?.checked_mul(*s)?))
    }

    /// Returns `true` if the elements are contiguous in row-major order.
    pub(crate) fn is_contiguous(&self) -> bool {
        let mut expected = 1u64;
        self.size.contains(&0)
            || self.size.iter().zip(&self.stride).rev().all(|(&d, &s)| {
                let fits = d == 1 || s == expected;
                expected = expected.saturating_mul(d);
                fits
            })
    }
}

/// Returns an error for a tensor that exceeds its storage.
fn check(tensor: &TensorSpec) -> Result<(), Fault> {
    let bounds = |what: String| Fault::new(Code::Bounds, what);
    if tensor.size.len() != tensor.stride.len() {
        return Err(bounds(format!("{} dimensions with {} strides", tensor.size.len(), tensor.stride.len())));
    }
    let available = tensor.storage.bytes.div_euclid(item_size(tensor.dtype));
    let end = tensor.span().and_then(|span| match span {
        0 => Some(0),
        span => tensor.offset.checked_add(span),
    });
    match (end, tensor.byte_len()) {
        (Some(end), Some(_)) if end <= available => Ok(()),
        _ => Err(bounds(format!(
            "tensor of shape {:?}, strides {:?} and offset {} exceeds a storage of {available} elements",
            tensor.size, tensor.stride, tensor.offset
        ))),
    }
}

/// Parses sizes or strides.
pub(crate) fn dims(values: &[Value], what: &str) -> Result<Box<[u64]>, Fault> {
    if values.len() > MAX_DIMS {
        return Err(Fault::new(Code::Bounds, format!("{} dimensions, more than {MAX_DIMS}", values.len())));
    }
    values.iter().map(|&v| natural(v, what)).collect()
}

/// Parses a non-negative integer.
pub(crate) fn natural(value: Value, what: &str) -> Result<u64, Fault> {
    match value {
        Value::Int(n) => u64::try_from(n).map_err(|_| Fault::new(Code::Bounds, format!("{what} of {n}"))),
        Value::Big => Err(Fault::new(Code::Bounds, format!("{what} beyond 64 bits"))),
        _ => Err(Fault::new(Code::Args, format!("{what} that is not an integer"))),
    }
}
