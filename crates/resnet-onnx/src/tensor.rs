//! Tensors of a model: raw data in the file, typed data fields, or external data.

use std::sync::Arc;

use resnet_model::RawTensor;
use resnet_model::raw::{ByteRange, Bytes, Dtype, byte_len};

use super::external::External;
use super::proto::TensorProto;
use crate::error::{Code, Fault};

/// Support for an element type.
enum Element {
    Supported(Dtype),
    Unsupported(&'static str),
}

fn element(data_type: i32) -> Result<Element, Fault> {
    use Element::{Supported, Unsupported};
    Ok(match data_type {
        1 => Supported(Dtype::F32),
        2 => Supported(Dtype::U8),
        3 => Supported(Dtype::I8),
        4 => Supported(Dtype::U16),
        5 => Supported(Dtype::I16),
        6 => Supported(Dtype::I32),
        7 => Supported(Dtype::I64),
        9 => Supported(Dtype::BOOL),
        10 => Supported(Dtype::F16),
        11 => Supported(Dtype::F64),
        12 => Supported(Dtype::U32),
        13 => Supported(Dtype::U64),
        16 => Supported(Dtype::BF16),
        14 | 15 => Unsupported("complex"),
        17..=20 | 24 => Unsupported("of 8-bit floating point"),
        21..=23 => Unsupported("of 4-bit elements"),
        25 | 26 => Unsupported("of 2-bit elements"),
        8 => return Err(Fault::new(Code::Dtype, "unsupported element type string")),
        n => return Err(Fault::new(Code::Dtype, format!("unknown element type {n}"))),
    })
}

/// Returns the dtype of an ONNX element type, e.g. of `Cast`.
pub(crate) fn dtype(data_type: i64) -> Option<Dtype> {
    match element(i32::try_from(data_type).ok()?) {
        Ok(Element::Supported(dtype)) => Some(dtype),
        _ => None,
    }
}

/// Returns the tensor, or a description of its element type if it is unsupported.
pub(crate) fn raw(
    tensor: &TensorProto,
    file: &Arc<dyn Bytes>,
    external: &mut External,
) -> Result<Result<RawTensor, &'static str>, Fault> {
    let within = |fault: Fault| match tensor.name.is_empty() {
        true => fault,
        false => fault.within(&tensor.name),
    };
    read(tensor, file, external).map_err(within)
}

fn read(
    tensor: &TensorProto,
    file: &Arc<dyn Bytes>,
    external: &mut External,
) -> Result<Result<RawTensor, &'static str>, Fault> {
    let dtype = match element(tensor.data_type)? {
        Element::Supported(dtype) => dtype,
        Element::Unsupported(what) => return Ok(Err(what)),
    };
    let size = |detail: String| Fault::new(Code::TensorSize, detail);
    let shape = tensor.dims.iter().map(|&d| usize::try_from(d).ok()).collect::<Option<Vec<_>>>();
    let shape = shape.ok_or_else(|| size(format!("shape {:?} has a negative size", tensor.dims)))?;
    let needed = byte_len(dtype, &shape);
    let needed = needed.ok_or_else(|| size(format!("shape {:?} is too large", tensor.dims)))?;
    let lists = [
        tensor.floats.len(),
        tensor.int32s.len(),
        tensor.int64s.len(),
        tensor.doubles.len(),
        tensor.uint64s.len(),
    ];
    let is_external = tensor.location == 1 || !tensor.external.is_empty();
    let sources = lists.iter().filter(|&&n| n > 0).count();
    if sources.saturating_add(usize::from(tensor.raw.is_some())).saturating_add(usize::from(is_external)) > 1
    {
        return Err(Fault::new(Code::Ambiguous, "the tensor has more than one data field"));
    }
    let bytes: Arc<dyn Bytes> = match tensor.raw {
        _ if is_external => external.part(&tensor.external, needed)?,
        Some((offset, len)) => {
            let eof = || Fault::new(Code::Protobuf, "raw data exceeds the file");
            Arc::new(ByteRange::new(file.clone(), offset, len).ok_or_else(eof)?)
        }
        None => Arc::new(from_data_fields(tensor, dtype)?),
    };
    let found = bytes.len();
    RawTensor::new(dtype, shape, bytes).map(Ok).ok_or_else(|| {
        size(format!("expected {needed} bytes for {dtype} and shape {:?}, found {found}", tensor.dims))
    })
}

/// Returns the bytes of a tensor with typed data fields.
fn from_data_fields(tensor: &TensorProto, dtype: Dtype) -> Result<Vec<u8>, Fault> {
    /// Converts elements of `int32_data` to a narrower type.
    fn narrow<const N: usize>(
        values: &[i32],
        range: std::ops::RangeInclusive<i32>,
        bytes: impl Fn(i32) -> [u8; N],
    ) -> Result<Vec<u8>, Fault> {
        match values.iter().find(|v| !range.contains(v)) {
            Some(v) => Err(Fault::new(
                Code::Integer,
                format!("element {v} does not fit in {} bits", 8usize.saturating_mul(N)),
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
            let narrow = |&v: &u64| {
                u32::try_from(v)
                    .map_err(|_| Fault::new(Code::Integer, format!("element {v} does not fit in u32")))
            };
            let values = tensor.uint64s.iter().map(narrow).collect::<Result<Vec<_>, _>>()?;
            values.into_iter().flat_map(u32::to_le_bytes).collect()
        }
        Dtype::I32 => ints.iter().flat_map(|v| v.to_le_bytes()).collect(),
        Dtype::I16 => narrow(ints, -0x8000..=0x7fff, |v| (v as i16).to_le_bytes())?,
        Dtype::I8 => narrow(ints, -0x80..=0x7f, |v| (v as i8).to_le_bytes())?,
        Dtype::U8 => narrow(ints, 0..=0xff, |v| (v as u8).to_le_bytes())?,
        Dtype::BOOL => narrow(ints, 0..=1, |v| (v as u8).to_le_bytes())?,
        // Bit patterns of 16 bits.
        Dtype::F16 | Dtype::BF16 | Dtype::U16 => narrow(ints, 0..=0xffff, |v| (v as u16).to_le_bytes())?,
        _ => vec![],
    })
}
