//! Responses, and Triton's binary tensor format: JSON, then the tensors' little-endian bytes in order.

use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::VERSION;
use super::infer::{Tensor, Values};
use super::request::IsBinary;
use crate::error::ApiError;
use crate::model::ServedModel;

/// Header with the length of the JSON part in bytes.
pub(super) const HEADER: &str = "inference-header-content-length";

/// Returns `true` for the magic bytes of JPEG, PNG, GIF, BMP and WebP.
pub(super) fn is_image(bytes: &[u8]) -> bool {
    let magic: [&[u8]; 5] = [b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"BM", b"RIFF"];
    magic.iter().any(|magic| bytes.starts_with(magic))
}

/// Elements as little-endian bytes; text with a 32-bit length before each element.
pub(super) fn bytes(values: &Values) -> Vec<u8> {
    match values {
        Values::F32(values) => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        Values::Text(texts) => {
            let mut out = vec![];
            for text in texts {
                out.extend((text.len() as u32).to_le_bytes());
                out.extend(text.as_bytes());
            }
            out
        }
    }
}

pub(super) fn respond(
    model: &ServedModel,
    id: Option<&str>,
    tensors: Vec<Tensor>,
    is_binary: &IsBinary,
) -> Result<Response, ApiError> {
    let mut binary: Vec<u8> = vec![];
    let mut outputs = vec![];
    for (index, tensor) in tensors.into_iter().enumerate() {
        let datatype = match tensor.values {
            Values::F32(_) => "FP32",
            Values::Text(_) => "BYTES",
        };
        let mut output = json!({"name": tensor.name, "datatype": datatype, "shape": tensor.shape});
        if is_binary.named.get(index).copied().unwrap_or(is_binary.default) {
            let data = bytes(&tensor.values);
            output["parameters"] = json!({"binary_data_size": data.len()});
            binary.extend(data);
        } else {
            output["data"] = match tensor.values {
                Values::F32(values) => json!(values),
                Values::Text(texts) => json!(texts),
            };
        }
        outputs.push(output);
    }
    let mut body = json!({"model_name": model.name(), "model_version": VERSION, "outputs": outputs});
    if let Some(id) = id {
        body["id"] = Value::from(id);
    }
    let mut body = serde_json::to_vec(&body).map_err(|e| ApiError::Internal(e.to_string()))?;
    if binary.is_empty() {
        return Ok(([(header::CONTENT_TYPE, "application/json")], body).into_response());
    }
    let len = HeaderValue::from(body.len());
    body.extend(binary);
    let mut response = ([(header::CONTENT_TYPE, "application/octet-stream")], body).into_response();
    response.headers_mut().insert(HEADER, len);
    Ok(response)
}
