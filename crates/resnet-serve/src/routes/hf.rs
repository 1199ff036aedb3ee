//! Hugging Face's image classification API.

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::routing::post;
use axum::{Json, Router};
use serde::Serialize;

use crate::error::ApiError;
use crate::model::{Input, LOGITS};
use crate::state::App;

pub(super) fn routes() -> Router<App> {
    Router::new().route("/", post(default).put(default)).route("/models/{name}", post(named).put(named))
}

/// One class of a response.
#[derive(Debug, Serialize)]
struct Class {
    label: String,
    score: f32,
}

async fn default(State(app): State<App>, body: Bytes) -> Result<Json<Vec<Class>>, ApiError> {
    classify(&app, None, body).await
}

async fn named(
    State(app): State<App>,
    Path(name): Path<String>,
    body: Bytes,
) -> Result<Json<Vec<Class>>, ApiError> {
    classify(&app, Some(&name), body).await
}

async fn classify(app: &App, name: Option<&str>, body: Bytes) -> Result<Json<Vec<Class>>, ApiError> {
    let model = app.registry.get(name)?;
    model.classes()?;
    let answer = app.infer(&model, Input::Encoded(body), &[LOGITS.to_owned()]).await?;
    let logits = &answer.outputs[0].values;
    let _ = logits;
    Ok(Json(vec![]))
}
