//! Tensors of a model: their bytes lie in the file, in fields of their own kind, or in another file.

use std::sync::Arc;

use resnet_model::RawTensor;
use resnet_model::raw::{ByteRange, Bytes, Dtype, byte_len};

use super::external::External;
use super::proto::TensorProto;
use crate::error::{Code, Fault};

/// What an element type is here.
enum Element {
    Known(Dtype),
    Exotic(&'static str),
}

fn element(data_type: i32) -> Result<Element, Fault> {
    use Element::{Exotic, Known};
    Ok(match data_type {
        1 => Known(Dtype::F32),
        2 => Known(Dtype::U8),
        3 => Known(Dtype::I8),
        4 => Known(Dtype::U16),
        5 => Known(Dtype::I16),
        6 => Known(Dtype::I32),
        7 => Known(Dtype::I64),
        9 => Known(Dtype::BOOL),
        10 => Known(Dtype::F16),
        11 => Known(Dtype::F64),
        12 => Known(Dtype::U32),
        13 => Known(Dtype::U64),
        16 => Known(Dtype::BF16),
        14 | 15 => Exotic("complex"),
        17..=20 | 24 => Exotic("of 8-bit floating point"),
        21..=23 => Exotic("of 4-bit elements"),
        25 | 26 => Exotic("of 2-bit elements"),
        8 => return Err(Fault::new(Code::Dtype, "a tensor of strings")),
        n => return Err(Fault::new(Code::Dtype, format!("element type {n}, which ONNX does not have"))),
    })
}

/// The element type that a `Cast` names.
pub(crate) fn dtype(data_type: i64) -> Option<Dtype> {
    match element(i32::try_from(data_type).ok()?) {
        Ok(Element::Known(dtype)) => Some(dtype),
        _ => None,
    }
}

/// The tensor, or what it is if its kind is not read.
pub(crate) fn raw(
    tensor: &TensorProto,
    file: &Arc<dyn Bytes>,
    external: &mut External,
) -> Result<Result<RawTensor, &'static str>, Fault> {
    let within = |fault: Fault| match tensor.name.is_empty() {
        true => fault,
        false => fault.within(&tensor.name),
    };
    make(tensor, file, external).map_err(within)
}

fn make(
    tensor: &TensorProto,
    file: &Arc<dyn Bytes>,
    external: &mut External,
) -> Result<Result<RawTensor, &'static str>, Fault> {
    let dtype = match element(tensor.data_type)? {
        Element::Known(dtype) => dtype,
        Element::Exotic(what) => return Ok(Err(what)),
    };
    let size = |detail: String| Fault::new(Code::TensorSize, detail);
    let shape = tensor.dims.iter().map(|&d| usize::try_from(d).ok()).collect::<Option<Vec<_>>>();
    let shape = shape.ok_or_else(|| size(format!("the shape {:?} has a negative size", tensor.dims)))?;
    let needed = byte_len(dtype, &shape);
    let needed = needed.ok_or_else(|| size(format!("the shape {:?} is too large", tensor.dims)))?;
    let lists = [
        tensor.floats.len(),
        tensor.int32s.len(),
        tensor.int64s.len(),
        tensor.doubles.len(),
        tensor.uint64s.len(),
    ];
    let elsewhere = tensor.location == 1 || !tensor.external.is_empty();
    let sources = lists.iter().filter(|&&n| n > 0).count();
    if sources.saturating_add(usize::from(tensor.raw.is_some())).saturating_add(usize::from(elsewhere)) > 1 {
        return Err(Fault::new(Code::Ambiguous, "its elements are given in two ways"));
    }
    let bytes: Arc<dyn Bytes> = match tensor.raw {
        _ if elsewhere => external.part(&tensor.external, needed)?,
        Some((offset, len)) => {
            let eof = || Fault::new(Code::Protobuf, "bytes outside the file");
            Arc::new(ByteRange::new(file.clone(), offset, len).ok_or_else(eof)?)
        }
        None => Arc::new(listed(tensor, dtype)?),
    };
    let found = bytes.len();
    RawTensor::new(dtype, shape, bytes).map(Ok).ok_or_else(|| {
        size(format!("{found} bytes, but its type {dtype:?} and shape {:?} need {needed}", tensor.dims))
    })
}

/// The bytes of elements that are given one by one.
fn listed(tensor: &TensorProto, dtype: Dtype) -> Result<Vec<u8>, Fault> {
    /// Elements that fill `int32_data` in a type of fewer bits.
    fn narrow<const N: usize>(
        values: &[i32],
        range: std::ops::RangeInclusive<i32>,
        bytes: impl Fn(i32) -> [u8; N],
    ) -> Result<Vec<u8>, Fault> {
        match values.iter().find(|v| !range.contains(v)) {
            Some(v) => Err(Fault::new(
                Code::Integer,
                format!("{v} is no element of {} bits", 8usize.saturating_mul(N)),
            )),
            None => Ok(values.iter().flat_map(|&v| bytes(v)).collect()),
        }
    }
    let ints = &tensor.int32s;
    Ok(match dtype {
        Dtype::F32 => tensor.floats.iter().flat_map(|v| v.to_le_bytes()).collect(),
        Dtype::F64 => tensor.doubles.iter().flat_map(|v| v.to_le_bytes()).collect(),
        Dtype::I64 => tensor.int64s.iter().flat_map(|v| v.to_le_bytes()).collect(),
        Dtype::U64 => tensor.uint64s.iter().flat_map(|v| v.to_le_bytes()).collect(),
        Dtype::U32 => {
            let narrow =
                |&v: &u64| u32::try_from(v).map_err(|_| Fault::new(Code::Integer, format!("{v} is no u32")));
            let values = tensor.uint64s.iter().map(narrow).collect::<Result<Vec<_>, _>>()?;
            values.into_iter().flat_map(u32::to_le_bytes).collect()
        }
        Dtype::I32 => ints.iter().flat_map(|v| v.to_le_bytes()).collect(),
        Dtype::I16 => narrow(ints, -0x8000..=0x7fff, |v| (v as i16).to_le_bytes())?,
        Dtype::I8 => narrow(ints, -0x80..=0x7f, |v| (v as i8).to_le_bytes())?,
        Dtype::U8 => narrow(ints, 0..=0xff, |v| (v as u8).to_le_bytes())?,
        Dtype::BOOL => narrow(ints, 0..=1, |v| (v as u8).to_le_bytes())?,
        // 16 bits as they lie in memory.
        Dtype::F16 | Dtype::BF16 | Dtype::U16 => narrow(ints, 0..=0xffff, |v| (v as u16).to_le_bytes())?,
        _ => vec![],
    })
}
