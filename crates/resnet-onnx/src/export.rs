//! A network written as an ONNX model, operator set 17.

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

/// The operator set that is written, and the version of the format that belongs to it.
const OPSET: i64 = 17;
const IR_VERSION: i64 = 8;
/// What a protobuf message may hold: readers count in 32 bits with a sign.
const MAX_MODEL: u64 = (1 << 31) - 1;

/// How an ONNX model is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Export {
    /// Keep batch norms as operators, instead of folding them into the convolutions before them.
    pub keep_norms: bool,
    /// Images in a batch; any number by default.
    pub batch: Option<usize>,
}

/// Writes `checkpoint` as an ONNX model at `path`, whole or not at all; `progress` is told the bytes of tensors written
/// since the last call.
///
/// Weights are f32, or f16 if all of the checkpoint's are; input and output are f32 in any case. Preprocessing, labels
/// and architecture are under `metadata_props`. Fails for models of 2 GiB, which protobuf cannot hold.
pub(crate) fn write(
    checkpoint: &Checkpoint,
    path: &Path,
    existing: Existing,
    export: &Export,
    progress: &mut dyn FnMut(u64),
) -> Result<()> {
    let graph = checkpoint.graph();
    // Standardised weights are constants here, so that they are computed, which folding does.
    let computed = graph.nodes().iter().any(|n| matches!(n.op, Op::StdConv(_)));
    let folded = (!export.keep_norms || computed).then(|| fold::fold(graph));
    let shown = folded.as_ref().map_or(graph, |f| f.graph());
    let half = is_half(checkpoint);
    let emitted = emit::emit(&emit::EmitOptions {
        graph: shown,
        checkpoint,
        folded: folded.is_some(),
        half,
        size: size(shown, checkpoint)?,
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

/// The bytes of an initialiser in the type it is written in; lists of integers stay what they are.
fn cast_to(initializer: &Initializer, tensor: RawTensor, to: Float) -> RawTensor {
    match initializer.source {
        InitializerSource::Ints(_) => tensor,
        _ => raw::cast(&tensor, to).unwrap_or(tensor),
    }
}

/// The tensors of a graph whose norms are folded, computed one convolution at a time.
struct Folding<'a> {
    folded: Option<&'a fold::Folded>,
    checkpoint: &'a Checkpoint,
    /// The bias that came with the last weight.
    bias: Option<Vec<f32>>,
}

impl Folding<'_> {
    fn tensor(&mut self, initializer: &Initializer) -> resnet_model::Result<RawTensor> {
        let shape = initializer.shape.clone();
        let missing = || resnet_model::Error::Missing(initializer.name.clone());
        let values = match (&initializer.source, self.folded) {
            (InitializerSource::Stored(name), _) => {
                let tensor = self.checkpoint.tensor(name)?;
                // Whatever the type is, as f32: the cast to f16 comes after.
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

/// Whether all weights are f16.
fn is_half(checkpoint: &Checkpoint) -> bool {
    let mut floats = checkpoint.tensors().values().filter(|t| raw::is_float(t.dtype())).peekable();
    floats.peek().is_some() && floats.all(|t| t.dtype() == Dtype::F16)
}

/// The size of images where the graph depends on it: the one that positions are known for, else that of the crop.
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

/// The length of a field of bytes with its key and length.
fn delimited(tag: u32, len: u64) -> u64 {
    len.saturating_add(encoded_len_varint(len) as u64).saturating_add(key_len(tag) as u64)
}

/// Key and length of a field of bytes.
fn prefix(tag: u32, len: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(16);
    encode_key(tag, WireType::LengthDelimited, &mut out);
    encode_varint(len, &mut out);
    out
}
