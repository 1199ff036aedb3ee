//! Classification in the shapes of Hugging Face, SageMaker, TorchServe and Vertex AI.

use std::collections::BTreeMap;

use axum::extract::{Path, Query, State};
use axum::http::HeaderMap;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::body::{Body, Images, JsonRequest, Parameters, ScoreFunction, decode_base64};
use crate::error::{ApiError, ErrorBody};
use crate::model::{Answer, Input, LOGITS, ServedModel};
use crate::state::App;

pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/", post(classify_default).put(classify_default))
        .route("/predict", post(classify_default).put(classify_default))
        .route("/models/{name}", post(classify).put(classify))
        .route("/invocations", post(invocations))
        .route("/ping", get(ping))
        .route("/predictions/{name}", post(torchserve).put(torchserve))
        .route("/v1/models/{name}", get(vertex_ready).post(vertex))
}

/// One class of a response.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct Class {
    /// Name of the class, or `LABEL_i` if the checkpoint has no labels.
    pub label: String,
    /// Score of the class.
    pub score: f32,
}

/// Classes of one image, or the error of that image.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(super) enum Row {
    Classes(Vec<Class>),
    Error { error: String, error_type: &'static str },
}

/// Query parameters of a classification.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct Params {
    /// Number of classes to return.
    top_k: Option<usize>,
    /// Function that turns logits into scores.
    function_to_apply: Option<ScoreFunction>,
}

/// Classifies an image with the only model that is served.
#[utoipa::path(post, path = "/", tag = "classification", params(Params),
    request_body(content((Vec<u8> = "image/*"), (JsonRequest = "application/json"))),
    responses((status = 200, body = Vec<Class>), (status = "4XX", body = ErrorBody)))]
pub(super) async fn classify_default(
    State(app): State<App>,
    Query(query): Query<Params>,
    headers: HeaderMap,
    Body(body): Body,
) -> Result<Json<Reply>, ApiError> {
    let images = Images::parse(&headers, body).await?;
    respond(&app, None, images, &query).await
}

/// Classifies an image with the model `name`.
#[utoipa::path(post, path = "/models/{name}", tag = "classification",
    params(("name" = String, Path, description = "Name of the model"), Params),
    request_body(content((Vec<u8> = "image/*"), (JsonRequest = "application/json"))),
    responses((status = 200, body = Vec<Class>), (status = "4XX", body = ErrorBody)))]
pub(super) async fn classify(
    State(app): State<App>,
    Path(name): Path<String>,
    Query(query): Query<Params>,
    headers: HeaderMap,
    Body(body): Body,
) -> Result<Json<Reply>, ApiError> {
    let images = Images::parse(&headers, body).await?;
    respond(&app, Some(&name), images, &query).await
}

/// Classes of one image, or a row for each image of a list.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(super) enum Reply {
    One(Vec<Class>),
    List(Vec<Row>),
}

/// One image: its classes, or an error status. A list of images: a list of classes or errors.
async fn respond(
    app: &App,
    name: Option<&str>,
    images: Images,
    query: &Params,
) -> Result<Json<Reply>, ApiError> {
    let is_list = images.is_list;
    let mut rows = rows(app, name, images, query).await?;
    if is_list {
        return Ok(Json(Reply::List(rows.into_iter().map(row_or_error).collect())));
    }
    let row = rows.pop().unwrap_or(Err(ApiError::ShuttingDown))?;
    Ok(Json(Reply::One(row)))
}

fn row_or_error(row: Result<Vec<Class>, ApiError>) -> Row {
    match row {
        Ok(classes) => Row::Classes(classes),
        Err(error) => Row::Error { error: error.to_string(), error_type: error.kind() },
    }
}

async fn rows(
    app: &App,
    name: Option<&str>,
    images: Images,
    query: &Params,
) -> Result<Vec<Result<Vec<Class>, ApiError>>, ApiError> {
    let model = app.registry.get(name)?;
    model.classes()?;
    let parameters = Parameters {
        top_k: query.top_k.or(images.parameters.top_k),
        function_to_apply: query.function_to_apply.or(images.parameters.function_to_apply),
    };
    let inputs = images.images.into_iter().map(Input::Encoded).collect();
    let answers = app.infer_all(&model, inputs, &[LOGITS.to_owned()], None).await?;
    let top_k = parameters.top_k.unwrap_or(app.config.top_k);
    let function = parameters.function_to_apply.unwrap_or_default();
    Ok(answers.into_iter().map(|answer| classes(&model, &answer?, top_k, function)).collect())
}

/// The `top_k` best classes of one image.
pub(super) fn classes(
    model: &ServedModel,
    answer: &Answer,
    top_k: usize,
    function: ScoreFunction,
) -> Result<Vec<Class>, ApiError> {
    let logits = answer.outputs.first().ok_or(ApiError::ShuttingDown)?;
    let best = model.top_k(&logits.values, top_k, function.into())?;
    let class = |p: resnet_model::Prediction| Class {
        label: p.label.unwrap_or_else(|| format!("LABEL_{}", p.index)),
        score: p.score,
    };
    Ok(best.into_iter().map(class).collect())
}

/// Classifies an image (SageMaker).
#[utoipa::path(post, path = "/invocations", tag = "clouds", params(Params),
    request_body(content((Vec<u8> = "image/*"), (JsonRequest = "application/json"))),
    responses((status = 200, body = Vec<Class>), (status = "4XX", body = ErrorBody)))]
pub(super) async fn invocations(
    state: State<App>,
    query: Query<Params>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Reply>, ApiError> {
    classify_default(state, query, headers, body).await
}

/// Readiness (SageMaker).
#[utoipa::path(get, path = "/ping", tag = "clouds", responses((status = 200), (status = 503, body = ErrorBody)))]
pub(super) async fn ping(State(app): State<App>) -> Result<(), ApiError> {
    app.check_ready()
}

/// Classifies an image; the response is an object from label to score (TorchServe).
#[utoipa::path(post, path = "/predictions/{name}", tag = "clouds",
    params(("name" = String, Path, description = "Name of the model"), Params),
    request_body(content((Vec<u8> = "image/*"), (JsonRequest = "application/json"))),
    responses((status = 200), (status = "4XX", body = ErrorBody)))]
pub(super) async fn torchserve(
    State(app): State<App>,
    Path(name): Path<String>,
    Query(query): Query<Params>,
    headers: HeaderMap,
    Body(body): Body,
) -> Result<Json<BTreeMap<String, f32>>, ApiError> {
    let images = Images::parse(&headers, body).await?;
    let mut rows = rows(&app, Some(&name), images, &query).await?;
    let classes = rows.pop().unwrap_or(Err(ApiError::ShuttingDown))?;
    Ok(Json(classes.into_iter().map(|class| (class.label, class.score)).collect()))
}

/// Vertex AI's readiness of one model: `GET /v1/models/NAME`.
async fn vertex_ready(State(app): State<App>, Path(name): Path<String>) -> Result<Json<Value>, ApiError> {
    let model = app.registry.get(Some(name.trim_end_matches(":predict")))?;
    Ok(Json(json!({"name": model.name(), "ready": true})))
}

#[derive(Debug, Deserialize)]
struct VertexBody {
    instances: Vec<VertexInstance>,
    #[serde(default)]
    parameters: Parameters,
}

#[derive(Debug, Serialize)]
pub(super) struct VertexReply {
    predictions: Vec<Row>,
}

/// An image as a base64 string, `{"b64": …}` or `{"image_bytes": {"b64": …}}`.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum VertexInstance {
    Text(String),
    Object { b64: String },
    Bytes { image_bytes: Box<VertexInstance> },
}

impl VertexInstance {
    fn text(&self) -> &str {
        match self {
            VertexInstance::Text(text) | VertexInstance::Object { b64: text } => text,
            VertexInstance::Bytes { image_bytes } => image_bytes.text(),
        }
    }
}

/// Classifies `{"instances": [{"b64": …}]}` (Vertex AI, TensorFlow Serving).
#[utoipa::path(post, path = "/v1/models/{name}:predict", tag = "clouds",
    params(("name" = String, Path, description = "Name of the model")),
    responses((status = 200), (status = "4XX", body = ErrorBody)))]
pub(super) async fn vertex(
    State(app): State<App>,
    Path(name): Path<String>,
    Body(body): Body,
) -> Result<Json<VertexReply>, ApiError> {
    let name = name.strip_suffix(":predict").ok_or_else(|| {
        ApiError::Invalid("unsupported method; expected POST /v1/models/NAME:predict".into())
    })?;
    let parsed: VertexBody = serde_json::from_slice(&body).map_err(|e| {
        ApiError::Invalid(format!("invalid JSON body: {e}; expected {{\"instances\": [{{\"b64\": \"…\"}}]}}"))
    })?;
    let images = parsed.instances.iter().map(|one| decode_base64(one.text())).collect::<Result<_, _>>()?;
    let images = Images { images, parameters: parsed.parameters, is_list: true };
    let rows = rows(&app, Some(name), images, &Params::default()).await?;
    let predictions = rows.into_iter().map(row_or_error).collect();
    Ok(Json(VertexReply { predictions }))
}

impl From<ScoreFunction> for resnet_model::classifier::Score {
    fn from(function: ScoreFunction) -> Self {
        match function {
            ScoreFunction::Softmax => Self::Probability,
            ScoreFunction::Sigmoid => Self::Sigmoid,
            ScoreFunction::None => Self::Logit,
        }
    }
}
