//! numpy arrays in pickles: `_reconstruct`, then a state of version, shape, dtype, order and bytes.

use resnet_model::raw::Dtype;

use crate::error::{Code, Fault};

use super::super::tensors::ArrayOrder;
use super::value::{Arena, Node, Span, Text, Value};

/// Array whose elements are a byte string of the pickle.
#[derive(Debug, Clone)]
pub(crate) struct Array {
    pub(crate) shape: Vec<u64>,
    pub(crate) dtype: Dtype,
    pub(crate) layout: ArrayOrder,
    pub(crate) data: Option<Span>,
}

/// Parses a numpy dtype, e.g. `<f4`, to (dtype, big-endian).
pub(crate) fn dtype(text: &str) -> Option<(Dtype, bool)> {
    let (order, kind) = match text.as_bytes() {
        [b'<' | b'=' | b'|', ..] => (false, text.get(1..)?),
        [b'>', ..] => (true, text.get(1..)?),
        _ => (false, text),
    };
    let dtype = match kind {
        "f2" => Dtype::F16,
        "f4" => Dtype::F32,
        "f8" => Dtype::F64,
        "i1" => Dtype::I8,
        "i2" => Dtype::I16,
        "i4" => Dtype::I32,
        "i8" => Dtype::I64,
        "u1" => Dtype::U8,
        "u2" => Dtype::U16,
        "u4" => Dtype::U32,
        "u8" => Dtype::U64,
        "b1" => Dtype::BOOL,
        _ => return None,
    };
    Some((dtype, order))
}

/// Returns the array of `ndarray.__setstate__((version, shape, dtype, fortran, bytes))`; `None` if its elements are not
/// numbers.
pub(crate) fn from_state(arena: &Arena, state: Value) -> Result<Option<Array>, Fault> {
    let bad = || Fault::new(Code::Args, "numpy array: expected state (version, shape, dtype, order, bytes)");
    let [_, shape, element, fortran, data] = arena.tuple(state).ok_or_else(bad)? else { return Err(bad()) };
    let shape = natural_dims(arena.tuple(*shape).ok_or_else(bad)?)?;
    let Some((dtype, big_endian)) = element_type(arena, *element) else { return Ok(None) };
    let Value::Bool(fortran) = *fortran else { return Err(bad()) };
    let Some(data) = span(arena, *data) else { return Ok(None) };
    Ok(Some(Array { shape, dtype, layout: ArrayOrder { big_endian, fortran }, data: Some(data) }))
}

fn natural_dims(values: &[Value]) -> Result<Vec<u64>, Fault> {
    Ok(super::specs::dims(values, "an array dimension")?.into_vec())
}

/// Returns the location of a byte string.
fn span(arena: &Arena, value: Value) -> Option<Span> {
    let Value::Node(id) = value else { return None };
    match arena.node(id)? {
        Node::Str { span, text: Text::Bytes | Text::Either } => Some(*span),
        _ => None,
    }
}

/// Returns the dtype of a `numpy.dtype` object: arguments `('f4', …)` and a state whose second item is the byte order.
fn element_type(arena: &Arena, value: Value) -> Option<(Dtype, bool)> {
    let Value::Node(id) = value else { return None };
    let Node::Object(object) = arena.node(id)? else { return None };
    let text = arena.str(*arena.tuple(object.args)?.first()?)?;
    let (dtype, swapped) = dtype(text)?;
    let order = arena.tuple(object.state).and_then(|s| s.get(1)).and_then(|&v| arena.str(v));
    Some((dtype, swapped || order == Some(">")))
}

impl Array {
    /// Returns the array of `_reconstruct`, before its state is set.
    pub(crate) fn empty() -> Array {
        Array {
            shape: vec![0],
            dtype: Dtype::F32,
            layout: ArrayOrder { big_endian: false, fortran: false },
            data: None,
        }
    }
}

/// Returns the array of `_frombuffer(bytes, dtype, shape, order)`, numpy's form in protocol 5.
pub(crate) fn from_buffer(arena: &Arena, parts: &[Value]) -> Result<Option<Array>, Fault> {
    let bad = || Fault::new(Code::Args, "numpy array: expected (bytes, dtype, shape, order)");
    let [data, element, shape, order] = parts else { return Err(bad()) };
    let fortran = match arena.str(*order) {
        Some("C") => false,
        Some("F") => true,
        _ => return Err(bad()),
    };
    let shape = natural_dims(arena.tuple(*shape).ok_or_else(bad)?)?;
    let Some((dtype, big_endian)) = element_type(arena, *element) else { return Ok(None) };
    let Some(data) = span(arena, *data) else { return Ok(None) };
    Ok(Some(Array { shape, dtype, layout: ArrayOrder { big_endian, fortran }, data: Some(data) }))
}
