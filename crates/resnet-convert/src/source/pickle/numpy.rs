//! numpy arrays in pickles: `_reconstruct`, then a state of version, shape, dtype, order and bytes.

use resnet_model::raw::Dtype;

use crate::error::{Code, Fault};

use super::super::tensors::ArrayOrder;
use super::value::{Arena, Node, Span, Text, Value};

/// An array: elements as they lie in a byte string of the pickle.
#[derive(Debug, Clone)]
pub(crate) struct Array {
    pub(crate) shape: Vec<u64>,
    pub(crate) dtype: Dtype,
    pub(crate) layout: ArrayOrder,
    pub(crate) data: Option<Span>,
}

/// An element type and whether its bytes are swapped, from numpy's description, e.g. `<f4`.
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

/// The array that `ndarray.__setstate__` makes of `(version, shape, dtype, fortran, bytes)`.
/// `None` for elements that are no numbers: the array stays opaque.
pub(crate) fn from_state(arena: &Arena, state: Value) -> Result<Option<Array>, Fault> {
    let bad = || {
        Fault::new(Code::Args, "a numpy array with a state that is not (version, shape, dtype, order, bytes)")
    };
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

/// Where the bytes of a byte string are.
fn span(arena: &Arena, value: Value) -> Option<Span> {
    let Value::Node(id) = value else { return None };
    match arena.node(id)? {
        Node::Str { span, text: Text::Bytes | Text::Either } => Some(*span),
        _ => None,
    }
}

/// The element type of a `numpy.dtype` object: called with `('f4', …)`, then given a state whose second part is the
/// byte order.
fn element_type(arena: &Arena, value: Value) -> Option<(Dtype, bool)> {
    let Value::Node(id) = value else { return None };
    let Node::Object(object) = arena.node(id)? else { return None };
    let text = arena.str(*arena.tuple(object.args)?.first()?)?;
    let (dtype, swapped) = dtype(text)?;
    let order = arena.tuple(object.state).and_then(|s| s.get(1)).and_then(|&v| arena.str(v));
    Some((dtype, swapped || order == Some(">")))
}

impl Array {
    /// What `_reconstruct` makes before the state is known.
    pub(crate) fn empty() -> Array {
        Array {
            shape: vec![0],
            dtype: Dtype::F32,
            layout: ArrayOrder { big_endian: false, fortran: false },
            data: None,
        }
    }
}

/// `_frombuffer(bytes, dtype, shape, order)`, numpy's form in protocol 5.
pub(crate) fn from_buffer(arena: &Arena, parts: &[Value]) -> Result<Option<Array>, Fault> {
    let bad = || Fault::new(Code::Args, "a numpy array that is not made from (bytes, dtype, shape, order)");
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
