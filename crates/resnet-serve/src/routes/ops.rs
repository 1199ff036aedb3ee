//! Health, readiness, metrics, the OpenAPI document and the list of models.

use axum::extract::State;
use axum::http::header;
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::Serialize;

use crate::error::ApiError;
use crate::model::ServedModel;
use crate::registry::ModelState;
use crate::state::App;

pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/health", get(live))
        .route("/live", get(live))
        .route("/ready", get(ready))
        .route("/metrics", get(metrics))
        .route("/info", get(info))
        .route("/openapi.json", get(openapi))
        .route("/docs", get(docs))
}

/// Liveness: the server answers.
#[utoipa::path(get, path = "/health", tag = "operations", responses((status = 200, description = "The server is running")))]
pub(super) async fn live() {}

/// Readiness: all models are loaded and the server is not shutting down.
#[utoipa::path(get, path = "/ready", tag = "operations", responses(
    (status = 200, description = "All models are ready"),
    (status = 503, description = "A model is loading or failed, or the server is shutting down", body = crate::error::ErrorBody),
))]
pub(super) async fn ready(State(app): State<App>) -> Result<(), ApiError> {
    app.check_ready()
}

/// Prometheus metrics in the text format.
#[utoipa::path(get, path = "/metrics", tag = "operations", responses((status = 200, content_type = "text/plain", body = String)))]
pub(super) async fn metrics(State(app): State<App>) -> Result<Response, ApiError> {
    let text = app.encode_metrics().map_err(|e| ApiError::Internal(e.to_string()))?;
    let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, content_type)], text).into_response())
}

/// Description of one model.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct ModelInfo {
    /// Name in the path of requests.
    pub name: String,
    /// `ready`, `loading` or `failed`.
    pub state: &'static str,
    /// Architecture.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub arch: Option<String>,
    /// Number of classes; absent for models without a classification head.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub classes: Option<usize>,
    /// Height and width in pixels of the network's input.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub input: Option<[usize; 2]>,
}

impl ModelInfo {
    fn ready(model: &ServedModel) -> ModelInfo {
        let meta = model.meta();
        ModelInfo {
            name: model.name().to_owned(),
            state: "ready",
            arch: Some(meta.arch.to_string()),
            classes: meta.arch.classes(),
            input: Some(meta.preprocess.crop),
        }
    }
}

/// Version and models of the server.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct Info {
    /// Version of the server.
    pub version: &'static str,
    /// Worker threads.
    pub threads: usize,
    /// Models, sorted by name.
    pub models: Vec<ModelInfo>,
}

/// Version and models of the server.
#[utoipa::path(get, path = "/info", tag = "operations", responses((status = 200, body = Info)))]
pub(super) async fn info(State(app): State<App>) -> Json<Info> {
    let describe = |(name, state): (String, ModelState)| match state {
        ModelState::Ready(model) => ModelInfo::ready(&model),
        ModelState::Loading => ModelInfo { name, state: "loading", arch: None, classes: None, input: None },
        ModelState::Failed(_) => ModelInfo { name, state: "failed", arch: None, classes: None, input: None },
    };
    let models = app.registry.list().into_iter().map(describe).collect();
    Json(Info { version: env!("CARGO_PKG_VERSION"), threads: app.config.threads, models })
}

/// OpenAPI document of the server.
async fn openapi() -> Json<utoipa::openapi::OpenApi> {
    Json(super::openapi::document())
}

/// The OpenAPI document as a page without scripts.
async fn docs() -> Html<String> {
    Html(super::openapi::page())
}
