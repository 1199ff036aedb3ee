//! Inference: requested outputs to taps, results to tensors. Shared by HTTP and gRPC.

use std::sync::Arc;
use std::time::{Duration, Instant};

use resnet_model::classifier::{Score, softmax};

use super::metadata;
use crate::error::ApiError;
use crate::model::{Answer, FEATURES, Input, LOGITS, ServedModel};
use crate::state::App;

/// An output that a request names.
#[derive(Debug, Clone)]
pub(super) struct Requested {
    pub name: String,
    /// Number of classes of the classification extension; 0 for the tensor itself.
    pub classes: usize,
}

/// An output tensor.
#[derive(Debug)]
pub(super) struct Tensor {
    pub name: String,
    /// `[N, …]`.
    pub shape: Vec<usize>,
    pub values: Values,
}

/// Elements of a tensor.
#[derive(Debug)]
pub(super) enum Values {
    F32(Vec<f32>),
    /// `value:index:label` of the classification extension.
    Text(Vec<String>),
}

/// Runs all images of a request and returns the outputs named by `requested`, or all if it is empty.
pub(super) async fn run(
    app: &App,
    model: &Arc<ServedModel>,
    inputs: Vec<Input>,
    requested: &[Requested],
    timeout: Option<Duration>,
) -> Result<Vec<Tensor>, ApiError> {
    let all: Vec<Requested>;
    let requested = match requested {
        [] => {
            let outputs = metadata::outputs(model).into_iter();
            all = outputs.map(|o| Requested { name: o.name.to_owned(), classes: 0 }).collect();
            &all
        }
        requested => requested,
    };
    let mut taps: Vec<String> = vec![];
    let mut positions = vec![];
    for output in requested {
        let tap = tap(model, &output.name)?;
        let known = taps.iter().position(|t| t == tap);
        positions.push(known.unwrap_or(taps.len()));
        if known.is_none() {
            taps.push(tap.to_owned());
        }
    }
    let deadline = timeout.map(|timeout| Instant::now() + timeout);
    let answers = app.infer_all(model, inputs, &taps, deadline).await?;
    // A tensor has no place for the error of a row, so the first error is that of the request.
    let count = answers.len();
    let mut rows = Vec::with_capacity(count);
    for (index, answer) in answers.into_iter().enumerate() {
        rows.push(answer.map_err(|error| match error {
            ApiError::Image(text) if count > 1 => ApiError::Image(format!("image {index}: {text}")),
            error => error,
        })?);
    }
    requested.iter().zip(positions).map(|(output, position)| gather(model, output, &rows, position)).collect()
}

/// Tap that the output `name` is computed from.
fn tap<'a>(model: &'a ServedModel, name: &'a str) -> Result<&'a str, ApiError> {
    match name {
        LOGITS | "probabilities" => model.classes().map(|_| LOGITS),
        "features" => model.features_tap().map(|_| FEATURES),
        name => {
            let taps = model.engine().graph().taps();
            let tap = taps.iter().find(|tap| tap.name == name).map(|tap| tap.name.as_str());
            tap.ok_or_else(|| {
                let names: Vec<&str> = taps.iter().map(|tap| tap.name.as_str()).collect();
                ApiError::Invalid(format!(
                    "unknown output `{}`; available: probabilities, features, {}",
                    resnet_model::escape(name),
                    names.join(", ")
                ))
            })
        }
    }
}

fn gather(
    model: &ServedModel,
    output: &Requested,
    rows: &[Answer],
    position: usize,
) -> Result<Tensor, ApiError> {
    let name = output.name.clone();
    let mut shape = vec![rows.len()];
    if output.classes > 0 {
        let score = if output.name == "probabilities" { Score::Probability } else { Score::Logit };
        let mut text = vec![];
        for row in rows {
            for p in model.top_k(&row.outputs[position].values, output.classes, score)? {
                let label = p.label.as_deref().map(|label| format!(":{label}")).unwrap_or_default();
                text.push(format!("{}:{}{label}", p.score, p.index));
            }
        }
        shape.push(text.len() / rows.len().max(1));
        return Ok(Tensor { name, shape, values: Values::Text(text) });
    }
    let mut values = vec![];
    for row in rows {
        let found = &row.outputs[position];
        match output.name.as_str() {
            "probabilities" => values.extend(softmax(&found.values).into_iter().map(|p| p as f32)),
            _ => values.extend(&found.values),
        }
    }
    if let Some(first) = rows.first() {
        let rest = first.outputs[position].shape.get(1..).unwrap_or_default();
        if rows.iter().any(|row| row.outputs[position].shape.get(1..).unwrap_or_default() != rest) {
            return Err(ApiError::Invalid(format!("output `{name}` has another shape for each image")));
        }
        shape.extend(rest);
    }
    Ok(Tensor { name, shape, values: Values::F32(values) })
}
