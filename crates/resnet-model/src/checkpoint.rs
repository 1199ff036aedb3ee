//! Weights that say what they are.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};

use crate::file::Existing;
use crate::graph::Graph;
use crate::meta::{KEY, Meta};
use crate::raw::RawTensor;
use crate::{Error, Mismatch, Reshaped, Result, safetensors};

mod channels;

/// Tensors and what they are: architecture, preprocessing, labels, origin.
///
/// The names and shapes of the tensors are those of the architecture's parameters; that is checked when a checkpoint
/// is made, so whoever holds one can rely on it.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    meta: Meta,
    graph: Graph,
    tensors: BTreeMap<String, RawTensor>,
}

impl Checkpoint {
    /// A checkpoint of `tensors`, which must be those of `meta.arch`: all differences are reported together.
    /// `num_batches_tracked` may be absent, as it is from files older than PyTorch 0.4.1.
    pub fn new(meta: Meta, tensors: BTreeMap<String, RawTensor>) -> Result<Checkpoint> {
        let graph = meta.arch.graph()?;
        compare(&meta, &graph, &tensors)?;
        Ok(Checkpoint { meta, graph, tensors })
    }

    /// Opens the self-describing safetensors file at `path`. Tensors are read when they are asked for.
    pub fn open(path: &Path) -> Result<Checkpoint> {
        Checkpoint::from_contents(safetensors::open(path)?).map_err(|e| e.at(path))
    }

    /// The checkpoint in a safetensors file that has been opened.
    pub fn from_contents(contents: safetensors::Contents) -> Result<Checkpoint> {
        let meta = Meta::from_json(contents.metadata.get(KEY).ok_or(Error::NoMeta)?)?;
        Checkpoint::new(meta, contents.tensors.into_iter().collect())
    }

    /// Writes a self-describing safetensors file at `path`, whole or not at all; `progress` is told the bytes written
    /// since the last call.
    pub fn save(&self, path: &Path, existing: Existing, progress: &mut dyn FnMut(u64)) -> Result<()> {
        let metadata = BTreeMap::from([(KEY.to_owned(), self.meta.to_json()?)]);
        safetensors::write(path, existing, &metadata, &self.tensors, progress)
    }

    /// What the checkpoint says about itself.
    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    /// The same tensors, described otherwise; the architecture must stay the same.
    pub fn with_meta(self, meta: Meta) -> Result<Checkpoint> {
        Checkpoint::new(meta, self.tensors)
    }

    /// The architecture's graph.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// All tensors by name.
    pub fn tensors(&self) -> &BTreeMap<String, RawTensor> {
        &self.tensors
    }

    /// The tensor of this name.
    pub fn tensor(&self, name: &str) -> Result<&RawTensor> {
        self.tensors.get(name).ok_or_else(|| Error::Missing(name.to_owned()))
    }

    /// The values of a tensor as f32.
    pub fn values(&self, name: &str) -> Result<Vec<f32>> {
        self.tensor(name)?.to_f32(name)
    }

    /// The values of a tensor on a device.
    pub fn to_tensor(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        self.tensor(name)?.to_candle(name, dtype, device)
    }

    /// The bytes of all tensors together.
    pub fn byte_len(&self) -> u64 {
        self.tensors.values().map(RawTensor::byte_len).sum()
    }
}

/// Compares a set of tensors with what `graph` needs.
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
