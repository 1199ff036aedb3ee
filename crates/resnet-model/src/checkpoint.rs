//! Checkpoints: tensors with their metadata.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};

use crate::file::Existing;
use crate::graph::Graph;
use crate::meta::{KEY, Meta};
use crate::raw::RawTensor;
use crate::{Error, Mismatch, Reshaped, Result, safetensors};

mod channels;
mod classes;

/// Tensors and their metadata: architecture, preprocessing, labels, origin.
///
/// The names and shapes of the tensors always match the architecture, which the constructors check.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    meta: Meta,
    graph: Graph,
    tensors: BTreeMap<String, RawTensor>,
}

impl Checkpoint {
    /// Creates a checkpoint. `num_batches_tracked` may be absent, as in files older than PyTorch 0.4.1.
    ///
    /// # Errors
    ///
    /// [`Error::Mismatch`] with all differences between `tensors` and those of `meta.arch`.
    pub fn new(meta: Meta, tensors: BTreeMap<String, RawTensor>) -> Result<Checkpoint> {
        let graph = meta.arch.graph()?;
        compare(&meta, &graph, &tensors)?;
        Ok(Checkpoint { meta, graph, tensors })
    }

    /// Opens the safetensors file at `path`, which must have the metadata of this crate. Tensors are read on demand.
    ///
    /// # Errors
    ///
    /// [`Error::At`] with [`Error::Io`], [`Error::Safetensors`], [`Error::NoMeta`], [`Error::Meta`] or [`Error::Mismatch`].
    pub fn open(path: &Path) -> Result<Checkpoint> {
        Checkpoint::from_contents(safetensors::open(path)?).map_err(|e| e.at(path))
    }

    /// Creates a checkpoint from an open safetensors file.
    ///
    /// # Errors
    ///
    /// As [`Checkpoint::open`].
    pub fn from_contents(contents: safetensors::Contents) -> Result<Checkpoint> {
        let meta = Meta::from_json(contents.metadata.get(KEY).ok_or(Error::NoMeta)?)?;
        Checkpoint::new(meta, contents.tensors.into_iter().collect())
    }

    /// Writes a safetensors file with metadata atomically. Calls `progress` with the number of bytes written since the last
    /// call.
    ///
    /// # Errors
    ///
    /// As [`safetensors::write`].
    pub fn save(&self, path: &Path, existing: Existing, progress: &mut dyn FnMut(u64)) -> Result<()> {
        let metadata = BTreeMap::from([(KEY.to_owned(), self.meta.to_json()?)]);
        safetensors::write(path, existing, &metadata, &self.tensors, progress)
    }

    /// Returns the metadata.
    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    /// Replaces the metadata.
    ///
    /// # Errors
    ///
    /// [`Error::Mismatch`] if the tensors do not match the new architecture.
    pub fn with_meta(self, meta: Meta) -> Result<Checkpoint> {
        Checkpoint::new(meta, self.tensors)
    }

    /// Returns the architecture's graph.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// Returns all tensors by name.
    pub fn tensors(&self) -> &BTreeMap<String, RawTensor> {
        &self.tensors
    }

    /// Returns a tensor.
    ///
    /// # Errors
    ///
    /// [`Error::Missing`].
    pub fn tensor(&self, name: &str) -> Result<&RawTensor> {
        self.tensors.get(name).ok_or_else(|| Error::Missing(name.to_owned()))
    }

    /// Returns the values of a tensor as f32.
    ///
    /// # Errors
    ///
    /// [`Error::Missing`], [`Error::Dtype`] or [`Error::Io`].
    pub fn values(&self, name: &str) -> Result<Vec<f32>> {
        self.tensor(name)?.to_f32(name)
    }

    /// Returns a tensor as a candle tensor.
    ///
    /// # Errors
    ///
    /// As [`Checkpoint::values`], or a candle error.
    pub fn to_tensor(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        self.tensor(name)?.to_candle(name, dtype, device)
    }

    /// Returns the total size of all tensors in bytes.
    pub fn byte_len(&self) -> u64 {
        self.tensors.values().map(RawTensor::byte_len).sum()
    }
}

/// Compares tensors with those of `graph`.
fn compare(meta: &Meta, graph: &Graph, tensors: &BTreeMap<String, RawTensor>) -> Result<()> {
    let mut mismatch = Mismatch { arch: meta.arch.to_string(), ..Mismatch::default() };
    let params = graph.param_specs();
    for param in &params {
        match tensors.get(&param.name) {
            Some(tensor) if tensor.shape() == param.shape => {}
            Some(tensor) => mismatch.reshaped.push(Reshaped {
                name: param.name.clone(),
                found: tensor.shape().to_vec(),
                expected: param.shape.clone(),
            }),
            None if param.role.is_optional() => {}
            None => mismatch.missing.push(param.name.clone()),
        }
    }
    let known: std::collections::HashSet<&str> = params.iter().map(|p| p.name.as_str()).collect();
    mismatch.unexpected = tensors.keys().filter(|n| !known.contains(n.as_str())).cloned().collect();
    if mismatch.is_empty() { Ok(()) } else { Err(mismatch.into()) }
}
