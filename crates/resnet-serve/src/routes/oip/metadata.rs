//! Metadata and configuration of a model.

use serde_json::{Value, json};

use super::VERSION;
use crate::model::{FEATURES, LOGITS, ServedModel};

/// Extensions that this server supports.
pub(super) const EXTENSIONS: &[&str] =
    &["classification", "binary_tensor_data", "model_configuration", "model_repository", "statistics"];

/// Name, data type and shape of an input or output; the first dimension is the batch, -1.
pub(super) struct TensorInfo {
    pub(super) name: &'static str,
    pub(super) shape: Vec<i64>,
}

/// Inputs of a model. An input of data type `BYTES` and shape `[N]`, encoded images, is accepted too.
pub(super) fn inputs(model: &ServedModel) -> Vec<TensorInfo> {
    let [height, width] = model.meta().preprocess.crop;
    let channels = model.meta().arch.in_channels();
    vec![TensorInfo { name: "input", shape: vec![-1, channels as i64, height as i64, width as i64] }]
}

/// Outputs that are returned if a request names none. Every tap of the graph can be requested by name.
pub(super) fn outputs(model: &ServedModel) -> Vec<TensorInfo> {
    let graph = model.engine().graph();
    let columns = |tap: &str| graph.tap(tap).ok().map(|tap| graph.node(tap.node).channels as i64);
    let mut outputs = vec![];
    if let (Ok(_), Some(classes)) = (model.classes(), columns(LOGITS)) {
        outputs.push(TensorInfo { name: LOGITS, shape: vec![-1, classes] });
        outputs.push(TensorInfo { name: "probabilities", shape: vec![-1, classes] });
    }
    if let Some(features) = columns(FEATURES) {
        outputs.push(TensorInfo { name: "features", shape: vec![-1, features] });
    }
    outputs
}

pub(super) fn metadata(model: &ServedModel) -> Value {
    let tensor = |t: TensorInfo| json!({"name": t.name, "datatype": "FP32", "shape": t.shape});
    json!({
        "name": model.name(),
        "versions": [VERSION],
        "platform": "resnet",
        "inputs": inputs(model).into_iter().map(tensor).collect::<Vec<_>>(),
        "outputs": outputs(model).into_iter().map(tensor).collect::<Vec<_>>(),
    })
}

pub(super) fn config(model: &ServedModel, max_batch: usize) -> Value {
    // Dimensions of a configuration have no batch dimension if `max_batch_size` is positive.
    let tensor = |t: TensorInfo| json!({"name": t.name, "data_type": "TYPE_FP32", "dims": t.shape.get(1..).unwrap_or(&[])});
    json!({
        "name": model.name(),
        "platform": "resnet",
        "backend": "resnet",
        "max_batch_size": max_batch,
        "input": inputs(model).into_iter().map(tensor).collect::<Vec<_>>(),
        "output": outputs(model).into_iter().map(tensor).collect::<Vec<_>>(),
    })
}
