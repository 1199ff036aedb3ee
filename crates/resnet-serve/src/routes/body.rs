//! Request bodies: reading within the limit, and images in JSON, multipart or raw form.

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, header};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::error::ApiError;
use crate::state::App;

/// A request body of at most `Config::max_body` bytes after decompression, whatever its content type.
pub(super) struct Body(pub Bytes);

impl FromRequest<App> for Body {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Body, ApiError> {
        let limit = app.config.max_body;
        let declared =
            request.headers().get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse().ok());
        if declared.is_some_and(|len: usize| len > limit) {
            return Err(ApiError::TooLarge { limit });
        }
        match axum::body::to_bytes(request.into_body(), limit).await {
            Ok(bytes) => Ok(Body(bytes)),
            Err(error) if is_length_limit(&error) => Err(ApiError::TooLarge { limit }),
            Err(_) => Err(ApiError::Invalid("the request body could not be read to its end".into())),
        }
    }
}

fn is_length_limit(error: &axum::Error) -> bool {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = source {
        if error.is::<http_body_util::LengthLimitError>() {
            return true;
        }
        source = error.source();
    }
    false
}

/// Function that turns logits into scores.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum ScoreFunction {
    /// Probabilities over all classes.
    #[default]
    Softmax,
    /// A probability per class, for multi-label networks.
    Sigmoid,
    /// Logits.
    None,
}

/// Parameters of a classification.
#[derive(Debug, Clone, Copy, Default, Deserialize, utoipa::ToSchema)]
pub(super) struct Parameters {
    /// Number of classes to return.
    pub top_k: Option<usize>,
    /// Function that turns logits into scores.
    pub function_to_apply: Option<ScoreFunction>,
}

/// Images of a request, and parameters from its body.
#[derive(Debug, Default)]
pub(super) struct Images {
    pub images: Vec<Bytes>,
    pub parameters: Parameters,
    /// `true` if the body is a list of images, whose response is a list too.
    pub is_list: bool,
}

/// The JSON body of Hugging Face's API, as the OpenAPI document describes it.
#[derive(Debug, utoipa::ToSchema)]
#[allow(dead_code)]
pub(super) struct JsonRequest {
    /// Image file in base64.
    inputs: String,
    /// Parameters of the classification.
    parameters: Option<Parameters>,
}

/// The JSON body of Hugging Face's API.
#[derive(Debug, Deserialize)]
struct JsonBody<'a> {
    #[serde(borrow)]
    inputs: &'a RawValue,
    #[serde(default)]
    parameters: Option<Parameters>,
}

impl Images {
    /// Parses a raw image, `{"inputs": …}` or a multipart form with one or more files.
    pub(super) async fn parse(headers: &HeaderMap, body: Bytes) -> Result<Images, ApiError> {
        let content_type =
            headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let media_type = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        if media_type == "multipart/form-data" {
            return multipart(content_type, body).await;
        }
        // No image format starts with `{`; clients without a content type send JSON too.
        let is_json = media_type == "application/json" || body.first() == Some(&b'{');
        if is_json { json(&body) } else { raw(body) }
    }
}

fn raw(body: Bytes) -> Result<Images, ApiError> {
    if body.is_empty() {
        return Err(ApiError::Invalid("the request body is empty; expected an image file".into()));
    }
    Ok(Images { images: vec![body], ..Images::default() })
}

fn json(body: &[u8]) -> Result<Images, ApiError> {
    let expected = "expected {\"inputs\": \"BASE64\", \"parameters\": {\"top_k\": 5}}";
    let parsed: JsonBody<'_> = serde_json::from_slice(body)
        .map_err(|e| ApiError::Invalid(format!("invalid JSON body: {e}; {expected}")))?;
    let (encoded, is_list): (Vec<String>, bool) = match serde_json::from_str::<String>(parsed.inputs.get()) {
        Ok(one) => (vec![one], false),
        Err(_) => match serde_json::from_str(parsed.inputs.get()) {
            Ok(list) => (list, true),
            Err(_) => return Err(ApiError::Invalid(format!("invalid `inputs`; {expected}"))),
        },
    };
    let images = encoded.iter().map(|text| decode_base64(text)).collect::<Result<_, _>>()?;
    Ok(Images { images, parameters: parsed.parameters.unwrap_or_default(), is_list })
}

/// Decodes base64, with or without a `data:` URI prefix.
pub(super) fn decode_base64(text: &str) -> Result<Bytes, ApiError> {
    let data = match text.strip_prefix("data:") {
        Some(uri) => uri
            .split_once(";base64,")
            .map(|(_, data)| data)
            .ok_or_else(|| ApiError::Invalid("invalid data URI: expected `data:image/…;base64,…`".into()))?,
        None => text,
    };
    let decoded = STANDARD.decode(data.trim());
    decoded.map(Bytes::from).map_err(|e| ApiError::Invalid(format!("invalid base64 image: {e}")))
}

async fn multipart(content_type: &str, body: Bytes) -> Result<Images, ApiError> {
    let invalid = |e: multer::Error| ApiError::Invalid(format!("invalid multipart body: {e}"));
    let boundary = multer::parse_boundary(content_type).map_err(invalid)?;
    let stream = futures_util::stream::once(async move { Ok::<_, std::convert::Infallible>(body) });
    let mut form = multer::Multipart::new(stream, boundary);
    let mut found = Images::default();
    while let Some(field) = form.next_field().await.map_err(invalid)? {
        let name = field.name().unwrap_or_default().to_owned();
        let is_file = field.file_name().is_some();
        let bytes = field.bytes().await.map_err(invalid)?;
        match name.as_str() {
            "top_k" if !is_file => {
                let text = String::from_utf8_lossy(&bytes);
                let value = text.trim().parse().map_err(|_| {
                    ApiError::Invalid("invalid field `top_k`: expected a whole number".into())
                })?;
                found.parameters.top_k = Some(value);
            }
            _ if is_file => found.images.push(bytes),
            _ => {}
        }
    }
    if found.images.is_empty() {
        return Err(ApiError::Invalid(
            "no file in the multipart body; expected a field with a file name".into(),
        ));
    }
    found.is_list = found.images.len() > 1;
    Ok(found)
}
