//! Protobuf messages of ONNX for writing.

use prost::Message;

use super::emit::{Initializer, InitializerSource};
use crate::proto::{Dim, DimValue, Opset, Shape, StringEntry, TensorType, Type, ValueInfo};
use resnet_model::raw::Float;

/// The fields of a model before its graph.
#[derive(Clone, PartialEq, Message)]
pub(super) struct ModelHead {
    #[prost(int64, tag = "1")]
    pub(super) ir_version: i64,
    #[prost(string, tag = "2")]
    pub(super) producer_name: String,
    #[prost(string, tag = "3")]
    pub(super) producer_version: String,
}

/// The fields of a model after its graph.
#[derive(Clone, PartialEq, Message)]
pub(super) struct ModelTail {
    #[prost(message, repeated, tag = "8")]
    pub(super) opsets: Vec<Opset>,
    #[prost(message, repeated, tag = "14")]
    pub(super) metadata: Vec<StringEntry>,
}

/// The fields of a graph before its initializers.
#[derive(Clone, PartialEq, Message)]
pub(super) struct GraphNodes {
    #[prost(message, repeated, tag = "1")]
    pub(super) nodes: Vec<Node>,
    #[prost(string, tag = "2")]
    pub(super) name: String,
}

/// The fields of a graph after its initializers.
#[derive(Clone, PartialEq, Message)]
pub(super) struct GraphIo {
    #[prost(message, repeated, tag = "11")]
    pub(super) inputs: Vec<ValueInfo>,
    #[prost(message, repeated, tag = "12")]
    pub(super) outputs: Vec<ValueInfo>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Node {
    #[prost(string, repeated, tag = "1")]
    pub(super) inputs: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    pub(super) outputs: Vec<String>,
    #[prost(string, tag = "3")]
    pub(super) name: String,
    #[prost(string, tag = "4")]
    pub(super) op: String,
    #[prost(message, repeated, tag = "5")]
    pub(super) attributes: Vec<Attribute>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Attribute {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(float, optional, tag = "2")]
    f: Option<f32>,
    #[prost(int64, optional, tag = "3")]
    i: Option<i64>,
    #[prost(bytes = "vec", optional, tag = "4")]
    s: Option<Vec<u8>>,
    #[prost(int64, repeated, packed = "false", tag = "8")]
    ints: Vec<i64>,
    #[prost(int32, tag = "20")]
    kind: i32,
}

impl Attribute {
    pub(super) fn float(name: &str, value: f32) -> Attribute {
        Attribute { name: name.into(), f: Some(value), kind: 1, ..Attribute::default() }
    }

    pub(super) fn int(name: &str, value: i64) -> Attribute {
        Attribute { name: name.into(), i: Some(value), kind: 2, ..Attribute::default() }
    }

    pub(super) fn text(name: &str, value: &str) -> Attribute {
        Attribute { name: name.into(), s: Some(value.as_bytes().to_vec()), kind: 3, ..Attribute::default() }
    }

    pub(super) fn ints(name: &str, values: &[i64]) -> Attribute {
        Attribute { name: name.into(), ints: values.to_vec(), kind: 7, ..Attribute::default() }
    }
}

/// The fields of a tensor before its bytes.
#[derive(Clone, PartialEq, Message)]
pub(super) struct TensorHead {
    #[prost(int64, repeated, packed = "false", tag = "1")]
    dims: Vec<i64>,
    #[prost(int32, tag = "2")]
    data_type: i32,
    #[prost(string, tag = "8")]
    name: String,
}

impl TensorHead {
    pub(super) fn new(initializer: &Initializer, float: Float) -> TensorHead {
        TensorHead {
            dims: initializer.shape.iter().map(|&d| i64::try_from(d).unwrap_or(i64::MAX)).collect(),
            data_type: match (&initializer.source, float) {
                (InitializerSource::Ints(_), _) => 7,
                (_, Float::F32) => 1,
                (_, Float::F16) => 10,
                (_, Float::BF16) => 16,
            },
            name: initializer.name.clone(),
        }
    }
}

/// Returns an f32 input or output with fixed (`Ok`) or named (`Err`) dimensions.
pub(super) fn value_info(name: &str, dims: &[Result<usize, &str>]) -> ValueInfo {
    let dim = |dim: &Result<usize, &str>| Dim {
        value: Some(match dim {
            Ok(n) => DimValue::Value(i64::try_from(*n).unwrap_or(i64::MAX)),
            Err(name) => DimValue::Param((*name).into()),
        }),
    };
    let shape = Some(Shape { dims: dims.iter().map(dim).collect() });
    let kind = Some(Type { tensor: Some(TensorType { elem_type: 1, shape }) });
    ValueInfo { name: name.into(), kind }
}
