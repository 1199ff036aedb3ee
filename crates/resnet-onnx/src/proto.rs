//! Messages of `onnx.proto` for reading; other fields are skipped.

use std::sync::Arc;

use prost::encoding::{DecodeContext, WireType, double, float, int32, int64, string, uint64};
use resnet_model::escape;
use resnet_model::raw::Bytes;

use super::protobuf::Reader;
use crate::MAX_NAME;
use crate::error::{Code, Fault};

/// Limits of decoded items; they bound memory in proportion to the file size.
pub(crate) const MAX_NODES: usize = 100_000;
const MAX_TENSORS: usize = 100_000;
const MAX_LIST: usize = 10_000;
const MAX_DIMS: usize = 16;
/// Maximum length of a metadata value in bytes.
const MAX_TEXT: u64 = 16 << 20;
const EXTERNAL: ListLimit = ListLimit { what: "external data entries", count: 16, bytes: 1 << 14 };

/// `ModelProto`.
#[derive(Debug, Default)]
pub(crate) struct ModelProto {
    pub(crate) ir_version: i64,
    pub(crate) producer: String,
    pub(crate) opsets: Vec<Opset>,
    pub(crate) metadata: Vec<StringEntry>,
    pub(crate) graph: GraphProto,
    /// If `true`, the model defines local functions.
    pub(crate) functions: bool,
}

#[derive(Debug, Default)]
pub(crate) struct GraphProto {
    pub(crate) nodes: Vec<NodeProto>,
    pub(crate) tensors: Vec<TensorProto>,
    pub(crate) inputs: Vec<ValueInfo>,
    pub(crate) outputs: Vec<ValueInfo>,
    /// If `true`, the graph has sparse initializers.
    pub(crate) sparse: bool,
}

#[derive(Debug, Default)]
pub(crate) struct NodeProto {
    pub(crate) name: String,
    pub(crate) op: String,
    pub(crate) domain: String,
    pub(crate) inputs: Vec<String>,
    pub(crate) outputs: Vec<String>,
    pub(crate) attributes: Vec<AttributeProto>,
}

#[derive(Debug, Default)]
pub(crate) struct AttributeProto {
    pub(crate) name: String,
    pub(crate) f: Option<f32>,
    pub(crate) i: Option<i64>,
    pub(crate) s: Option<String>,
    pub(crate) t: Option<TensorProto>,
    pub(crate) floats: Vec<f32>,
    pub(crate) ints: Vec<i64>,
}

/// `TensorProto`; raw data stays in the file.
#[derive(Debug, Default)]
pub(crate) struct TensorProto {
    pub(crate) name: String,
    pub(crate) dims: Vec<i64>,
    pub(crate) data_type: i32,
    /// Offset and length of the raw data in the file.
    pub(crate) raw: Option<(u64, u64)>,
    pub(crate) floats: Vec<f32>,
    pub(crate) int32s: Vec<i32>,
    pub(crate) int64s: Vec<i64>,
    pub(crate) doubles: Vec<f64>,
    pub(crate) uint64s: Vec<u64>,
    pub(crate) external: Vec<StringEntry>,
    /// `DataLocation`: 1 is external.
    pub(crate) location: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Opset {
    #[prost(string, tag = "1")]
    pub(crate) domain: String,
    #[prost(int64, tag = "2")]
    pub(crate) version: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct StringEntry {
    #[prost(string, tag = "1")]
    pub(crate) key: String,
    #[prost(string, tag = "2")]
    pub(crate) value: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ValueInfo {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    #[prost(message, optional, tag = "2")]
    pub(crate) kind: Option<Type>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Type {
    #[prost(message, optional, tag = "1")]
    pub(crate) tensor: Option<TensorType>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct TensorType {
    #[prost(int32, tag = "1")]
    pub(crate) elem_type: i32,
    #[prost(message, optional, tag = "2")]
    pub(crate) shape: Option<Shape>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Shape {
    #[prost(message, repeated, tag = "1")]
    pub(crate) dims: Vec<Dim>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Dim {
    #[prost(oneof = "DimValue", tags = "1, 2")]
    pub(crate) value: Option<DimValue>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub(crate) enum DimValue {
    #[prost(int64, tag = "1")]
    Value(i64),
    #[prost(string, tag = "2")]
    Param(String),
}

impl ValueInfo {
    /// Returns the size of each axis, `None` for dynamic ones; `None` without a shape.
    pub(crate) fn dims(&self) -> Option<Vec<Option<i64>>> {
        let shape = self.kind.as_ref()?.tensor.as_ref()?.shape.as_ref()?;
        let fixed = |dim: &Dim| match dim.value {
            Some(DimValue::Value(n)) if n > 0 => Some(n),
            _ => None,
        };
        Some(shape.dims.iter().map(fixed).collect())
    }
}

/// Decodes a model.
pub(crate) fn read(bytes: Arc<dyn Bytes>) -> Result<ModelProto, Fault> {
    let mut reader = Reader::new(bytes);
    let end = reader.bytes().len();
    let mut model = ModelProto::default();
    reader.fields(end, |reader, (tag, kind)| match tag {
        1 => number(reader, kind, &mut model.ir_version),
        2 => text(reader, kind, &mut model.producer),
        7 => graph(reader, kind, &mut model.graph),
        8 => push(
            reader,
            kind,
            &mut model.opsets,
            &ListLimit { what: "operator sets", count: MAX_LIST, bytes: 1 << 12 },
        ),
        14 => push(
            reader,
            kind,
            &mut model.metadata,
            &ListLimit { what: "metadata entries", count: MAX_LIST, bytes: MAX_TEXT },
        ),
        25 => {
            model.functions = true;
            reader.skip((tag, kind))
        }
        _ => reader.skip((tag, kind)),
    })?;
    Ok(model)
}

fn graph(reader: &mut Reader, kind: WireType, graph: &mut GraphProto) -> Result<(), Fault> {
    let end = reader.delimited(kind)?;
    reader.fields(end, |reader, (tag, kind)| match tag {
        1 => {
            check_count(reader, graph.nodes.len(), MAX_NODES, "nodes")?;
            let node = node(reader, kind)?;
            graph.nodes.push(node);
            Ok(())
        }
        5 => {
            check_count(reader, graph.tensors.len(), MAX_TENSORS, "initializers")?;
            let tensor = tensor(reader, kind)?;
            graph.tensors.push(tensor);
            Ok(())
        }
        11 => value_info(reader, kind, &mut graph.inputs, "inputs"),
        12 => value_info(reader, kind, &mut graph.outputs, "outputs"),
        15 => {
            graph.sparse = true;
            reader.skip((tag, kind))
        }
        _ => reader.skip((tag, kind)),
    })
}

fn node(reader: &mut Reader, kind: WireType) -> Result<NodeProto, Fault> {
    let end = reader.delimited(kind)?;
    let mut node = NodeProto::default();
    reader.fields(end, |reader, (tag, kind)| match tag {
        1 => push_text(reader, kind, &mut node.inputs),
        2 => push_text(reader, kind, &mut node.outputs),
        3 => text(reader, kind, &mut node.name),
        4 => text(reader, kind, &mut node.op),
        5 => {
            check_count(reader, node.attributes.len(), MAX_LIST, "attributes of a node")?;
            let attribute = attribute(reader, kind)?;
            node.attributes.push(attribute);
            Ok(())
        }
        7 => text(reader, kind, &mut node.domain),
        _ => reader.skip((tag, kind)),
    })?;
    Ok(node)
}

fn attribute(reader: &mut Reader, kind: WireType) -> Result<AttributeProto, Fault> {
    let end = reader.delimited(kind)?;
    let mut attribute = AttributeProto::default();
    let context = DecodeContext::default;
    reader.fields(end, |reader, (tag, kind)| match tag {
        1 => text(reader, kind, &mut attribute.name),
        2 => {
            attribute.f = Some(reader.value(|v, w| float::merge(kind, v, w, context()))?);
            Ok(())
        }
        3 => number(reader, kind, attribute.i.get_or_insert(0)),
        // Bytes; no supported attribute is invalid UTF-8.
        4 => {
            let bytes = bytes(reader, kind)?;
            attribute.s = Some(String::from_utf8_lossy(&bytes).into_owned());
            Ok(())
        }
        5 => {
            attribute.t = Some(tensor(reader, kind)?);
            Ok(())
        }
        7 => reader.merge(&mut attribute.floats, |v, w| float::merge_repeated(kind, v, w, context())),
        8 => reader.merge(&mut attribute.ints, |v, w| int64::merge_repeated(kind, v, w, context())),
        // Subgraphs are not decoded.
        _ => reader.skip((tag, kind)),
    })?;
    Ok(attribute)
}

fn tensor(reader: &mut Reader, kind: WireType) -> Result<TensorProto, Fault> {
    let end = reader.delimited(kind)?;
    let mut tensor = TensorProto::default();
    let context = DecodeContext::default;
    let decoded = reader.fields(end, |reader, (tag, kind)| match tag {
        1 => {
            reader.merge(&mut tensor.dims, |v, w| int64::merge_repeated(kind, v, w, context()))?;
            check_count(reader, tensor.dims.len().saturating_sub(1), MAX_DIMS, "dimensions")
        }
        2 => reader.merge(&mut tensor.data_type, |v, w| int32::merge(kind, v, w, context())),
        4 => reader.merge(&mut tensor.floats, |v, w| float::merge_repeated(kind, v, w, context())),
        5 => reader.merge(&mut tensor.int32s, |v, w| int32::merge_repeated(kind, v, w, context())),
        7 => reader.merge(&mut tensor.int64s, |v, w| int64::merge_repeated(kind, v, w, context())),
        8 => text(reader, kind, &mut tensor.name),
        9 => {
            tensor.raw = Some(reader.span(kind)?);
            Ok(())
        }
        10 => reader.merge(&mut tensor.doubles, |v, w| double::merge_repeated(kind, v, w, context())),
        11 => reader.merge(&mut tensor.uint64s, |v, w| uint64::merge_repeated(kind, v, w, context())),
        13 => push(reader, kind, &mut tensor.external, &EXTERNAL),
        14 => reader.merge(&mut tensor.location, |v, w| int32::merge(kind, v, w, context())),
        _ => reader.skip((tag, kind)),
    });
    decoded.map_err(|fault| match tensor.name.is_empty() {
        true => fault,
        false => fault.within(&tensor.name),
    })?;
    Ok(tensor)
}

fn number(reader: &mut Reader, kind: WireType, value: &mut i64) -> Result<(), Fault> {
    reader.merge(value, |v, w| int64::merge(kind, v, w, DecodeContext::default()))
}

fn bytes(reader: &mut Reader, kind: WireType) -> Result<Vec<u8>, Fault> {
    reader.value(|v: &mut Vec<u8>, w| prost::encoding::bytes::merge(kind, v, w, DecodeContext::default()))
}

/// Decodes a name; returns an error if it is too long or contains NUL.
fn text(reader: &mut Reader, kind: WireType, value: &mut String) -> Result<(), Fault> {
    let start = reader.pos();
    reader.merge(value, |v, w| string::merge(kind, v, w, DecodeContext::default()))?;
    if value.len() > MAX_NAME || value.contains('\0') {
        let shown: String = value.chars().take(32).collect();
        let detail =
            format!("name `{}…` of {} bytes is too long or contains NUL", escape(&shown), value.len());
        return Err(Fault::new(Code::Name, detail).at(start));
    }
    Ok(())
}

fn push_text(reader: &mut Reader, kind: WireType, list: &mut Vec<String>) -> Result<(), Fault> {
    check_count(reader, list.len(), MAX_LIST, "inputs and outputs of a node")?;
    let mut value = String::new();
    text(reader, kind, &mut value)?;
    list.push(value);
    Ok(())
}

/// Maximum number of messages in a list, and maximum size of each.
struct ListLimit {
    what: &'static str,
    count: usize,
    bytes: u64,
}

/// Decodes a small message and appends it to a list.
fn push<M: prost::Message + Default>(
    reader: &mut Reader,
    kind: WireType,
    list: &mut Vec<M>,
    limit: &ListLimit,
) -> Result<(), Fault> {
    check_count(reader, list.len(), limit.count, limit.what)?;
    let end = reader.delimited(kind)?;
    if end.saturating_sub(reader.pos()) > limit.bytes {
        let detail = format!("one of the {} exceeds {} bytes", limit.what, limit.bytes);
        return Err(reader.fault(Code::Limit, detail));
    }
    let mut message = M::default();
    reader.fields(end, |reader, (tag, kind)| {
        reader.merge(&mut message, |m, w| m.merge_field(tag, kind, w, DecodeContext::default()))
    })?;
    list.push(message);
    Ok(())
}

/// Decodes an input or output of the graph.
fn value_info(
    reader: &mut Reader,
    kind: WireType,
    list: &mut Vec<ValueInfo>,
    what: &'static str,
) -> Result<(), Fault> {
    let start = reader.pos();
    push(reader, kind, list, &ListLimit { what, count: MAX_TENSORS, bytes: 1 << 16 })?;
    match list.last().and_then(ValueInfo::dims).is_some_and(|dims| dims.len() > MAX_DIMS) {
        true => Err(Fault::new(Code::Limit, format!("more than {MAX_DIMS} dimensions")).at(start)),
        false => Ok(()),
    }
}

fn check_count(reader: &mut Reader, len: usize, max: usize, what: &str) -> Result<(), Fault> {
    match len < max {
        true => Ok(()),
        false => Err(reader.fault(Code::Limit, format!("more than {max} {what}"))),
    }
}
