//! Parsing of an inference request: JSON, optionally followed by binary tensors.

use std::fmt;
use std::time::Duration;

use axum::body::Bytes;
use axum::http::HeaderMap;
use half::f16;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::binary::{HEADER, is_image};
use super::infer::Requested;
use crate::error::ApiError;
use crate::model::{Input, ServedModel};
use crate::routes::body::decode_base64;

/// A parsed inference request.
pub(super) struct InferRequest {
    pub id: Option<String>,
    pub inputs: Vec<Input>,
    pub requested: Vec<Requested>,
    pub is_binary: IsBinary,
    pub timeout: Option<Duration>,
}

/// Choice of outputs that are returned as binary data.
pub(super) struct IsBinary {
    /// For outputs that the request does not name.
    pub default: bool,
    /// In the order of the requested outputs.
    pub named: Vec<bool>,
}

// Unknown fields are ignored: kserve sends some.
#[derive(Deserialize)]
struct Json<'a> {
    id: Option<String>,
    #[serde(default)]
    parameters: Option<Parameters>,
    #[serde(borrow)]
    inputs: Vec<JsonInput<'a>>,
    #[serde(default)]
    outputs: Option<Vec<JsonOutput>>,
}

#[derive(Default, Deserialize)]
struct Parameters {
    binary_data_output: Option<bool>,
    binary_data: Option<bool>,
    binary_data_size: Option<usize>,
    classification: Option<usize>,
    /// Microseconds.
    timeout: Option<u64>,
}

#[derive(Deserialize)]
struct JsonInput<'a> {
    name: String,
    shape: Vec<usize>,
    datatype: String,
    #[serde(default)]
    parameters: Option<Parameters>,
    #[serde(borrow, default)]
    data: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct JsonOutput {
    name: String,
    #[serde(default)]
    parameters: Option<Parameters>,
}

fn invalid(text: impl Into<String>) -> ApiError {
    ApiError::Invalid(text.into())
}

pub(super) fn parse(headers: &HeaderMap, body: Bytes, model: &ServedModel) -> Result<InferRequest, ApiError> {
    // The header decides, not the content type: tritonclient sends none.
    let header_len = match headers.get(HEADER) {
        None => body.len(),
        Some(value) => {
            let len = value.to_str().ok().and_then(|v| v.trim().parse::<usize>().ok());
            let expected =
                || invalid(format!("invalid header {HEADER}: expected a length up to {}", body.len()));
            len.filter(|len| *len <= body.len()).ok_or_else(expected)?
        }
    };
    if header_len == 0 && headers.contains_key(HEADER) {
        return raw(body, model);
    }
    let json: Json<'_> = serde_json::from_slice(&body[..header_len])
        .map_err(|e| invalid(format!("invalid inference request: {e}")))?;
    let [input] = json.inputs.as_slice() else {
        return Err(invalid(format!("expected one input, found {}", json.inputs.len())));
    };
    let binary = body.slice(header_len..);
    let size = input.parameters.as_ref().and_then(|p| p.binary_data_size);
    let inputs = match (input.data, size) {
        (Some(data), None) if binary.is_empty() => from_json(input, data.get())?,
        (None, size) => {
            // OVMS's clients leave the size out.
            let size = size.unwrap_or(binary.len());
            if size != binary.len() {
                return Err(invalid(format!(
                    "input `{}`: binary_data_size is {size}, but {} bytes follow the JSON header",
                    input.name,
                    binary.len()
                )));
            }
            from_binary(input, binary)?
        }
        _ => return Err(invalid(format!("input `{}` has both `data` and binary data", input.name))),
    };
    let request = json.parameters.unwrap_or_default();
    let default = request.binary_data_output.unwrap_or(false);
    let outputs = json.outputs.unwrap_or_default();
    let named = outputs
        .iter()
        .map(|output| output.parameters.as_ref().and_then(|p| p.binary_data).unwrap_or(default))
        .collect();
    let requested = outputs
        .into_iter()
        .map(|output| Requested {
            name: output.name,
            classes: output.parameters.and_then(|p| p.classification).unwrap_or(0),
        })
        .collect();
    Ok(InferRequest {
        id: json.id,
        inputs,
        requested,
        is_binary: IsBinary { default, named },
        timeout: request.timeout.filter(|us| *us > 0).map(Duration::from_micros),
    })
}

/// A body without a JSON header: one image file, or one FP32 tensor of the model's size.
fn raw(body: Bytes, model: &ServedModel) -> Result<InferRequest, ApiError> {
    let input = match is_image(&body) {
        true => Input::Encoded(body),
        false => {
            let [height, width] = model.meta().preprocess.crop;
            let dims = [model.meta().arch.in_channels(), height, width];
            Input::Tensor { dims, values: f32s(&body)? }
        }
    };
    Ok(InferRequest {
        id: None,
        inputs: vec![input],
        requested: vec![],
        is_binary: IsBinary { default: true, named: vec![] },
        timeout: None,
    })
}

/// `[C, H, W]` of each image and the number of images of an `[N, C, H, W]` tensor.
fn image_dims(input: &JsonInput<'_>) -> Result<([usize; 3], usize), ApiError> {
    match *input.shape.as_slice() {
        [n, c, h, w] if n > 0 && c > 0 && h > 0 && w > 0 => Ok(([c, h, w], n)),
        _ => {
            Err(invalid(format!("input `{}` has shape {:?}, expected [N, C, H, W]", input.name, input.shape)))
        }
    }
}

fn count(input: &JsonInput<'_>) -> Result<usize, ApiError> {
    match *input.shape.as_slice() {
        [n] | [n, 1] if n > 0 => Ok(n),
        _ => {
            let shape = &input.shape;
            Err(invalid(format!("input `{}` of BYTES has shape {shape:?}, expected [N]", input.name)))
        }
    }
}

fn split(input: &JsonInput<'_>, values: Vec<f32>) -> Result<Vec<Input>, ApiError> {
    let (dims, n) = image_dims(input)?;
    let expected = dims.iter().try_fold(n, |product, &d| product.checked_mul(d));
    if expected != Some(values.len()) {
        let shape = &input.shape;
        return Err(invalid(format!(
            "input `{}` of shape {shape:?} has {} values",
            input.name,
            values.len()
        )));
    }
    let len = values.len() / n;
    Ok(values.chunks(len).map(|image| Input::Tensor { dims, values: image.to_vec() }).collect())
}

fn from_json(input: &JsonInput<'_>, data: &str) -> Result<Vec<Input>, ApiError> {
    let bad = |e: serde_json::Error| invalid(format!("invalid `data` of input `{}`: {e}", input.name));
    match input.datatype.as_str() {
        "FP32" | "FP64" => {
            let mut values = vec![];
            Flat(&mut values).deserialize(&mut serde_json::Deserializer::from_str(data)).map_err(bad)?;
            split(input, values)
        }
        "BYTES" => {
            let texts: Vec<String> = serde_json::from_str(data).map_err(bad)?;
            if texts.len() != count(input)? {
                return Err(invalid(format!("input `{}` has {} elements", input.name, texts.len())));
            }
            texts.iter().map(|text| Ok(Input::Encoded(decode_base64(text)?))).collect()
        }
        other => Err(unsupported(input, other)),
    }
}

fn unsupported(input: &JsonInput<'_>, datatype: &str) -> ApiError {
    invalid(format!(
        "input `{}` has unsupported datatype {}; expected FP32, FP16 (binary only) or BYTES (encoded images)",
        input.name,
        resnet_model::escape(datatype)
    ))
}

fn from_binary(input: &JsonInput<'_>, mut data: Bytes) -> Result<Vec<Input>, ApiError> {
    match input.datatype.as_str() {
        "FP32" => split(input, f32s(&data)?),
        "FP16" => {
            let (values, rest) = data.as_chunks::<2>();
            if !rest.is_empty() {
                return Err(invalid(format!("input `{}` of FP16 has an uneven number of bytes", input.name)));
            }
            split(input, values.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect())
        }
        "BYTES" => {
            let n = count(input)?;
            // A single image without the length prefix, as OVMS accepts it.
            if n == 1 && is_image(&data) {
                return Ok(vec![Input::Encoded(data)]);
            }
            let mut images = vec![];
            while let Some((len, _)) = data.split_first_chunk::<4>() {
                let len = u32::from_le_bytes(*len) as usize;
                let end = len.checked_add(4).filter(|end| *end <= data.len()).ok_or_else(|| {
                    invalid(format!("element {} of input `{}` is truncated", images.len(), input.name))
                })?;
                images.push(Input::Encoded(data.split_to(end).slice(4..)));
            }
            if images.len() != n || !data.is_empty() {
                return Err(invalid(format!(
                    "input `{}` has {} elements, expected {n} according to its shape",
                    input.name,
                    images.len()
                )));
            }
            Ok(images)
        }
        other => Err(unsupported(input, other)),
    }
}

/// Little-endian f32 values.
fn f32s(bytes: &[u8]) -> Result<Vec<f32>, ApiError> {
    let (values, rest) = bytes.as_chunks::<4>();
    match rest {
        [] => Ok(values.iter().map(|b| f32::from_le_bytes(*b)).collect()),
        _ => Err(invalid(format!("FP32 data has {} bytes, not a multiple of 4", bytes.len()))),
    }
}

/// Appends the numbers of arbitrarily nested arrays, without building a tree of values.
struct Flat<'a>(&'a mut Vec<f32>);

impl<'de> DeserializeSeed<'de> for Flat<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Flat<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("numbers or arrays of numbers")
    }

    fn visit_f64<E>(self, value: f64) -> Result<(), E> {
        self.0.push(value as f32);
        Ok(())
    }

    fn visit_u64<E>(self, value: u64) -> Result<(), E> {
        self.0.push(value as f32);
        Ok(())
    }

    fn visit_i64<E>(self, value: i64) -> Result<(), E> {
        self.0.push(value as f32);
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element_seed(Flat(self.0))?.is_some() {}
        Ok(())
    }
}
