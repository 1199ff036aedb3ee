//! Open Inference Protocol v2 over HTTP, with Triton's extensions for binary tensors, classification, configuration,
//! statistics and the repository index. Written for the clients (tritonclient, kserve), which differ from the text of
//! the protocol in places; comments name them.

mod binary;
mod infer;
mod metadata;
mod request;
mod stats;

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};

use super::body::Body;
use crate::error::ApiError;
use crate::registry::ModelState;
use crate::state::App;

use infer::run;
use metadata::EXTENSIONS;
pub(crate) use stats::Stats;

/// The only version of a model.
pub(crate) const VERSION: &str = "1";

pub(super) fn routes() -> Router<App> {
    let model = |suffix: &str| format!("/v2/models/{{name}}{suffix}");
    let version = |suffix: &str| format!("/v2/models/{{name}}/versions/{{version}}{suffix}");
    let mut router = Router::new()
        .route("/v2", get(server))
        .route("/v2/", get(server))
        .route("/v2/health/live", get(live))
        .route("/v2/health/ready", get(ready))
        .route("/v2/models", get(models))
        .route("/v2/models/stats", get(all_stats))
        .route("/v2/repository/index", post(index))
        .route("/v2/repository/models/{name}/{action}", post(fixed));
    for path in [&model as &dyn Fn(&str) -> String, &version] {
        router = router
            .route(&path(""), get(describe))
            .route(&path("/ready"), get(model_ready))
            .route(&path("/config"), get(config))
            .route(&path("/stats"), get(model_stats))
            .route(&path("/infer"), post(predict));
    }
    router
}

/// Path parameters of a model route.
#[derive(Debug, serde::Deserialize)]
struct ModelPath {
    name: String,
    version: Option<String>,
}

impl ModelPath {
    fn get(&self, app: &App) -> Result<std::sync::Arc<crate::ServedModel>, ApiError> {
        match self.version.as_deref() {
            None | Some(VERSION) => app.registry.get(Some(&self.name)),
            Some(other) => Err(ApiError::UnknownModel {
                name: format!("{} version {}", resnet_model::escape(&self.name), resnet_model::escape(other)),
                available: format!("version {VERSION}"),
            }),
        }
    }
}

async fn server() -> Json<Value> {
    Json(json!({"name": "resnet-serve", "version": env!("CARGO_PKG_VERSION"), "extensions": EXTENSIONS}))
}

// kserve reads `live` from the one and `ready` from the other; tritonclient looks at the status only.
async fn live() -> Json<Value> {
    Json(json!({"live": true}))
}

async fn ready(State(app): State<App>) -> Response {
    let is_ready = app.check_ready().is_ok();
    let status = if is_ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(json!({"live": true, "ready": is_ready}))).into_response()
}

async fn models(State(app): State<App>) -> Json<Value> {
    let names: Vec<String> = app.registry.list().into_iter().map(|(name, _)| name).collect();
    Json(json!({ "models": names }))
}

async fn describe(State(app): State<App>, Path(path): Path<ModelPath>) -> Result<Json<Value>, ApiError> {
    Ok(Json(metadata::metadata(&*path.get(&app)?)))
}

async fn model_ready(State(app): State<App>, Path(path): Path<ModelPath>) -> Result<Json<Value>, ApiError> {
    let model = path.get(&app)?;
    Ok(Json(json!({"name": model.name(), "ready": true})))
}

async fn config(State(app): State<App>, Path(path): Path<ModelPath>) -> Result<Json<Value>, ApiError> {
    Ok(Json(metadata::config(&*path.get(&app)?, app.config.max_in_flight)))
}

async fn model_stats(State(app): State<App>, Path(path): Path<ModelPath>) -> Result<Json<Value>, ApiError> {
    let model = path.get(&app)?;
    Ok(Json(json!({"model_stats": [model.stats().json(model.name())]})))
}

async fn all_stats(State(app): State<App>) -> Json<Value> {
    let ready = app.registry.list().into_iter().filter_map(|(_, state)| match state {
        ModelState::Ready(model) => Some(model.stats().json(model.name())),
        _ => None,
    });
    Json(json!({"model_stats": ready.collect::<Vec<_>>()}))
}

async fn index(State(app): State<App>) -> Json<Value> {
    let row = |(name, state): (String, ModelState)| match state {
        ModelState::Ready(_) => json!({"name": name, "version": VERSION, "state": "READY"}),
        ModelState::Loading => json!({"name": name, "version": VERSION, "state": "LOADING"}),
        ModelState::Failed(_) => {
            json!({"name": name, "version": VERSION, "state": "UNAVAILABLE", "reason": "loading failed"})
        }
    };
    Json(Value::Array(app.registry.list().into_iter().map(row).collect()))
}

/// Explicit loading and unloading: models are those that the server was started with.
async fn fixed(Path((name, action)): Path<(String, String)>) -> ApiError {
    ApiError::Unsupported { model: resnet_model::escape(&name), what: resnet_model::escape(&action) }
}

async fn predict(
    State(app): State<App>,
    Path(path): Path<ModelPath>,
    headers: HeaderMap,
    Body(body): Body,
) -> Result<Response, ApiError> {
    let model = path.get(&app)?;
    let request = request::parse(&headers, body, &model)?;
    let tensors = run(&app, &model, request.inputs, &request.requested, request.timeout).await?;
    binary::respond(&model, request.id.as_deref(), tensors, &request.is_binary)
}
