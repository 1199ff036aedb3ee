//! Writes a checkpoint as an ONNX model with operator set 17.

mod emit;
mod message;

use std::io::Write;
use std::path::Path;

use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};
use resnet_model::file::{Existing, write_atomically};
use resnet_model::graph::{Graph, Op};
use resnet_model::meta::KEY;
use resnet_model::raw::Dtype;
use resnet_model::{Checkpoint, Labels, RawTensor, fold};

use self::emit::{FixedSize, Initializer, InitializerSource};
use self::message::{ModelHead, ModelTail, TensorHead};
use super::proto::{Opset, StringEntry};
use crate::error::{Error, Result};
use resnet_model::raw::{self, Float};

/// The operator set of written models, and its IR version.
const OPSET: i64 = 17;
const IR_VERSION: i64 = 8;
/// Maximum size of a protobuf message: readers use signed 32-bit lengths.
const MAX_MODEL: u64 = (1 << 31) - 1;

/// Options for writing an ONNX model.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Export {
    /// Keeps batch norms as operators instead of folding them into the preceding convolutions.
    pub keep_norms: bool,
    /// Fixed batch size; dynamic by default.
    pub batch: Option<usize>,
}

/// Writes `checkpoint` atomically as an ONNX model to `path`; `progress` receives the number of tensor bytes written
/// since the last call.
///
/// Weights are f32, or f16 if all weights of the checkpoint are f16; input and output are always f32. Preprocessing,
/// labels and architecture are written to `metadata_props`. Returns an error for models of 2 GiB or more.
pub(crate) fn write(
    checkpoint: &Checkpoint,
    path: &Path,
    existing: Existing,
    export: &Export,
    progress: &mut dyn FnMut(u64),
) -> Result<()> {
    let graph = checkpoint.graph();
    // Folding replaces standardized weights by constants.
    let standardized = graph.nodes().iter().any(|n| matches!(n.op, Op::StdConv(_)));
    let folded = (!export.keep_norms || standardized).then(|| fold::fold(graph));
    let exported = folded.as_ref().map_or(graph, |f| f.graph());
    let half = is_half(checkpoint);
    let emitted = emit::emit(&emit::EmitOptions {
        graph: exported,
        checkpoint,
        folded: folded.is_some(),
        half,
        size: size(exported, checkpoint)?,
        batch: export.batch,
    })?;
    let dtype = if half { Float::F16 } else { Float::F32 };
    let head = ModelHead {
        ir_version: IR_VERSION,
        producer_name: env!("CARGO_PKG_NAME").into(),
        producer_version: env!("CARGO_PKG_VERSION").into(),
    };
    let tail = ModelTail {
        opsets: vec![Opset { domain: String::new(), version: OPSET }],
        metadata: metadata(checkpoint)?,
    };
    let item = if half { 2 } else { 4 };
    let heads = emitted.initializers.iter().map(|i| TensorHead::new(i, dtype).encode_to_vec());
    let heads: Vec<(Vec<u8>, u64)> =
        heads.zip(&emitted.initializers).map(|(head, i)| (head, i.bytes(item))).collect();
    let tensor_len = |(head, len): &(Vec<u8>, u64)| (head.len() as u64).saturating_add(delimited(9, *len));
    let tensors = heads.iter().map(|h| delimited(5, tensor_len(h))).fold(0u64, u64::saturating_add);
    let (before, after) = (emitted.nodes.encode_to_vec(), emitted.io.encode_to_vec());
    let graph_len = tensors.saturating_add(before.len() as u64).saturating_add(after.len() as u64);
    let total =
        graph_len.saturating_add((head.encoded_len() as u64).saturating_add(tail.encoded_len() as u64));
    if total > MAX_MODEL.saturating_sub(16) {
        return Err(Error::TooLarge { path: path.to_owned(), bytes: total });
    }
    let written = write_atomically(path, existing, |out| {
        out.write_all(&head.encode_to_vec())?;
        out.write_all(&prefix(7, graph_len))?;
        out.write_all(&before)?;
        let mut folded = Folding { folded: folded.as_ref(), checkpoint, bias: None };
        for (initializer, head) in emitted.initializers.iter().zip(&heads) {
            out.write_all(&prefix(5, tensor_len(head)))?;
            out.write_all(&head.0)?;
            out.write_all(&prefix(9, head.1))?;
            let tensor = folded.tensor(initializer)?;
            let tensor = cast_to(initializer, tensor, dtype);
            tensor.for_each_chunk(|bytes| {
                out.write_all(bytes)?;
                progress(bytes.len() as u64);
                Ok(())
            })?;
        }
        out.write_all(&after)?;
        out.write_all(&tail.encode_to_vec())?;
        Ok(())
    });
    written.map_err(|error| Error::Model(error.at(path)))
}

/// Casts an initializer to the dtype of the file; integer lists are unchanged.
fn cast_to(initializer: &Initializer, tensor: RawTensor, to: Float) -> RawTensor {
    match initializer.source {
        InitializerSource::Ints(_) => tensor,
        _ => raw::cast(&tensor, to).unwrap_or(tensor),
    }
}

/// Computes the initializers of a graph one at a time, with folded norms.
struct Folding<'a> {
    folded: Option<&'a fold::Folded>,
    checkpoint: &'a Checkpoint,
    /// The bias of the last folded weight.
    bias: Option<Vec<f32>>,
}

impl Folding<'_> {
    fn tensor(&mut self, initializer: &Initializer) -> resnet_model::Result<RawTensor> {
        let shape = initializer.shape.clone();
        let missing = || resnet_model::Error::Missing(initializer.name.clone());
        let values = match (&initializer.source, self.folded) {
            (InitializerSource::Stored(name), _) => {
                let tensor = self.checkpoint.tensor(name)?;
                // Cast to the dtype of the file later.
                return tensor.reshape(shape).ok_or_else(missing);
            }
            (InitializerSource::Ints(list), _) => {
                let bytes: Vec<u8> = list.iter().flat_map(|v| v.to_le_bytes()).collect();
                let tensor = RawTensor::new(Dtype::I64, shape, std::sync::Arc::new(bytes));
                return tensor.ok_or_else(missing);
            }
            (InitializerSource::Values(values), _) => values.clone(),
            (InitializerSource::Folded(node), Some(folded)) => {
                let conv = folded.conv(node, self.checkpoint, Vec::new())?;
                self.bias = Some(conv.bias);
                conv.weight
            }
            (InitializerSource::FoldedBias, _) => self.bias.take().ok_or_else(missing)?,
            (InitializerSource::Folded(_), None) => return Err(missing()),
        };
        RawTensor::from_f32(shape, &values).ok_or_else(missing)
    }
}

/// Returns `true` if all weights are f16.
fn is_half(checkpoint: &Checkpoint) -> bool {
    let mut floats = checkpoint.tensors().values().filter(|t| raw::is_float(t.dtype())).peekable();
    floats.peek().is_some() && floats.all(|t| t.dtype() == Dtype::F16)
}

/// Returns the image size if the graph depends on it: the size of the positional embedding, or the crop.
fn size(graph: &Graph, checkpoint: &Checkpoint) -> Result<Option<FixedSize>> {
    let depends = |op: &Op| matches!(op, Op::AdaptiveAvgPool(_) | Op::Flatten(_) | Op::AttentionPool(_));
    let Some(node) = graph.nodes().iter().find(|n| depends(&n.op)) else { return Ok(None) };
    let crop = checkpoint.meta().preprocess.crop;
    let stride = graph.taps().iter().find(|t| node.inputs.contains(&t.node)).map(|t| t.stride);
    let image = match (&node.op, stride) {
        (Op::AttentionPool(pool), Some(stride)) => pool.grid.map(|n| n.saturating_mul(stride)),
        _ => crop,
    };
    let [height, width] = image;
    Ok(Some(FixedSize { image, costs: graph.costs(height, width)? }))
}

fn metadata(checkpoint: &Checkpoint) -> Result<Vec<StringEntry>> {
    let meta = checkpoint.meta();
    let json = |e: serde_json::Error| Error::Model(resnet_model::Error::Meta(e.to_string()));
    let mut entries = vec![
        StringEntry { key: KEY.into(), value: meta.to_json()? },
        StringEntry {
            key: "preprocess".into(),
            value: serde_json::to_string(&meta.preprocess).map_err(json)?,
        },
    ];
    if let Labels::Names(names) = &meta.labels {
        entries
            .push(StringEntry { key: "labels".into(), value: serde_json::to_string(names).map_err(json)? });
    }
    Ok(entries)
}

/// Returns the encoded length of a length-delimited field, including its key and length prefix.
fn delimited(tag: u32, len: u64) -> u64 {
    len.saturating_add(encoded_len_varint(len) as u64).saturating_add(key_len(tag) as u64)
}

/// Returns the key and length prefix of a length-delimited field.
fn prefix(tag: u32, len: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(16);
    encode_key(tag, WireType::LengthDelimited, &mut out);
    encode_varint(len, &mut out);
    out
}
