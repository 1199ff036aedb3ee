//! Errors as clients see them: a status and `{"error", "error_type"}`.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

/// Reason why a request, or one image of it, failed. Texts never contain server paths.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ApiError {
    /// The body, a parameter or a header is invalid.
    #[error("{0}")]
    Invalid(String),
    /// The bytes are not an image that can be decoded within the limits.
    #[error("{0}")]
    Image(String),
    /// The request has no valid API key.
    #[error("missing or invalid API key; expected `Authorization: Bearer KEY`")]
    Unauthorized,
    /// No route for this path.
    #[error("unknown path; see /docs for the routes")]
    UnknownRoute,
    /// No model of this name is served.
    #[error("unknown model `{name}`; available: {available}")]
    UnknownModel {
        /// Requested name.
        name: String,
        /// Names that are served, separated by commas.
        available: String,
    },
    /// The model does not support the request, e.g. classification without a classification head.
    #[error("model `{model}` does not support {what}")]
    Unsupported {
        /// Name of the model.
        model: String,
        /// Requested feature.
        what: String,
    },
    /// The model is still loading, or failed to load.
    #[error("model `{name}` is not ready: {reason}")]
    NotReady {
        /// Name of the model.
        name: String,
        /// State of the model.
        reason: String,
    },
    /// The body is larger than the limit.
    #[error("request body exceeds the limit of {limit} bytes")]
    TooLarge {
        /// Limit in bytes.
        limit: usize,
    },
    /// All permits are taken, or the request has more images than there are permits.
    #[error("overloaded: {in_flight} images are in flight, the limit is {limit}; retry later")]
    Overloaded {
        /// Images in flight.
        in_flight: usize,
        /// Limit on images in flight.
        limit: usize,
    },
    /// The deadline passed before the image was computed.
    #[error("timed out in the queue")]
    Timeout,
    /// The server is shutting down.
    #[error("the server is shutting down")]
    ShuttingDown,
    /// The network failed; details are in the server's log.
    #[error("internal error: {0}")]
    Internal(String),
}

/// Body of an error response.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct ErrorBody {
    /// Description for people.
    error: String,
    /// Stable name for programs.
    error_type: &'static str,
}

impl ApiError {
    /// HTTP status of the error.
    pub fn status(&self) -> StatusCode {
        match self {
            ApiError::Invalid(_) | ApiError::Image(_) | ApiError::Unsupported { .. } => {
                StatusCode::BAD_REQUEST
            }
            ApiError::Unauthorized => StatusCode::UNAUTHORIZED,
            ApiError::UnknownRoute | ApiError::UnknownModel { .. } => StatusCode::NOT_FOUND,
            ApiError::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            ApiError::Overloaded { .. } => StatusCode::TOO_MANY_REQUESTS,
            ApiError::NotReady { .. } | ApiError::ShuttingDown | ApiError::Timeout => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            ApiError::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// Stable name of the kind of error: `error_type` of the response and label of the metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            ApiError::Invalid(_) => "validation",
            ApiError::Image(_) => "decode",
            ApiError::Unauthorized => "unauthorized",
            ApiError::UnknownRoute => "unknown_route",
            ApiError::UnknownModel { .. } => "unknown_model",
            ApiError::Unsupported { .. } => "unsupported",
            ApiError::NotReady { .. } => "not_ready",
            ApiError::TooLarge { .. } => "too_large",
            ApiError::Overloaded { .. } => "overloaded",
            ApiError::Timeout => "timeout",
            ApiError::ShuttingDown => "shutting_down",
            ApiError::Internal(_) => "backend",
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = Json(ErrorBody { error: self.to_string(), error_type: self.kind() });
        let mut response = (self.status(), body).into_response();
        if matches!(self.status(), StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}
