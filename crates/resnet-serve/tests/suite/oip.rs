//! Open Inference Protocol v2 over HTTP, as tritonclient and kserve speak it.

use axum::body::Body;
use axum::http::{Request, StatusCode};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use resnet_image::{Preprocess, decode};
use serde_json::{Value, json};

use crate::{Reply, get, model, post, send, server, seven};

const HEADER: &str = "inference-header-content-length";
const INFER: &str = "/v2/models/digits/infer";

/// The seven as the network's input.
fn tensor() -> Vec<f32> {
    let preprocess: Preprocess = model("digits").meta().preprocess.clone();
    preprocess.apply(&decode::decode(&seven()).unwrap()).unwrap()
}

async fn binary(json: &Value, data: &[u8]) -> Reply {
    let head = json.to_string();
    let body = [head.as_bytes(), data].concat();
    let request = Request::post(INFER).header(HEADER, head.len()).body(Body::from(body)).unwrap();
    send(&server(), request).await
}

async fn infer(json: Value) -> Reply {
    post(&server(), INFER, "", json.to_string()).await
}

#[track_caller]
fn output<'a>(json: &'a Value, name: &str) -> &'a Value {
    json["outputs"].as_array().unwrap().iter().find(|o| o["name"] == name).unwrap()
}

fn floats(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect()
}

fn largest(values: &[f32]) -> usize {
    (0..values.len()).max_by(|&a, &b| values[a].total_cmp(&values[b])).unwrap()
}

#[tokio::test]
async fn health_and_metadata() {
    let server = server();
    assert_eq!(get(&server, "/v2/health/live").await.json(), json!({"live": true}));
    assert_eq!(get(&server, "/v2/health/ready").await.json(), json!({"live": true, "ready": true}));
    assert!(get(&server, "/v2").await.json()["extensions"].as_array().unwrap().len() >= 4);
    assert_eq!(get(&server, "/v2/models").await.json(), json!({"models": ["digits"]}));
    for path in ["/v2/models/digits", "/v2/models/digits/versions/1"] {
        let metadata = get(&server, path).await.json();
        assert_eq!(metadata["inputs"][0]["shape"], json!([-1, 1, 28, 28]));
        assert_eq!(metadata["outputs"][0], json!({"name": "logits", "datatype": "FP32", "shape": [-1, 10]}));
    }
    assert_eq!(get(&server, "/v2/models/digits/ready").await.status, StatusCode::OK);
    assert_eq!(get(&server, "/v2/models/nosuch/ready").await.status, StatusCode::NOT_FOUND);
    assert_eq!(get(&server, "/v2/models/digits/versions/2").await.status, StatusCode::NOT_FOUND);
    let config = get(&server, "/v2/models/digits/config").await.json();
    assert_eq!((&config["input"][0]["dims"], &config["max_batch_size"]), (&json!([1, 28, 28]), &json!(64)));
    let index = post(&server, "/v2/repository/index", "", "{}").await.json();
    assert_eq!(index, json!([{"name": "digits", "version": "1", "state": "READY"}]));
}

#[tokio::test]
async fn json_tensors_flat_and_nested_and_images_agree() {
    let values = tensor();
    let rows: Vec<&[f32]> = values.chunks(28).collect();
    let input =
        |data: Value| json!([{"name": "input", "shape": [1, 1, 28, 28], "datatype": "FP32", "data": data}]);
    let flat = infer(json!({"id": "a", "inputs": input(json!(values)), "unknown": 1})).await.json();
    let nested = infer(json!({"inputs": input(json!([[rows]]))})).await.json();
    let bytes =
        json!([{"name": "input", "shape": [1], "datatype": "BYTES", "data": [STANDARD.encode(seven())]}]);
    let image = infer(json!({ "inputs": bytes })).await.json();
    assert_eq!((&flat["model_name"], &flat["id"]), (&json!("digits"), &json!("a")));
    assert!(nested.get("id").is_none());
    for json in [&nested, &image] {
        assert_eq!(output(json, "logits"), output(&flat, "logits"));
        assert_eq!(output(json, "features"), output(&flat, "features"));
    }
    let probabilities = floats(&output(&flat, "probabilities")["data"]);
    assert_eq!(largest(&probabilities), 7);
    assert!((probabilities.iter().sum::<f32>() - 1.0).abs() < 1e-5);
    assert_eq!(output(&flat, "logits")["shape"], json!([1, 10]));
}

#[tokio::test]
async fn binary_tensors_in_and_out() {
    let values = tensor();
    let data: Vec<u8> = values.iter().chain(&values).flat_map(|v| v.to_le_bytes()).collect();
    let size = data.len();
    let request = json!({
        "inputs": [{"name": "input", "shape": [2, 1, 28, 28], "datatype": "FP32",
            "parameters": {"binary_data_size": size}}],
        "outputs": [{"name": "logits", "parameters": {"binary_data": true}}, {"name": "probabilities"}],
    });
    let reply = binary(&request, &data).await;
    let head: usize = reply.headers[HEADER].to_str().unwrap().parse().unwrap();
    let json: Value = serde_json::from_slice(&reply.body[..head]).unwrap();
    assert_eq!(output(&json, "logits")["parameters"]["binary_data_size"], 80);
    let logits: Vec<f32> =
        reply.body[head..].as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    assert_eq!(logits.len(), 20);
    assert_eq!(logits[..10], logits[10..]);
    assert_eq!(largest(&logits[..10]), 7);
    assert_eq!(output(&json, "probabilities")["shape"], json!([2, 10]));
    // tritonclient asks for all outputs in binary by default.
    let request = json!({"inputs": request["inputs"], "parameters": {"binary_data_output": true}});
    let reply = binary(&request, &data).await;
    let head: usize = reply.headers[HEADER].to_str().unwrap().parse().unwrap();
    let features =
        output(&serde_json::from_slice(&reply.body[..head]).unwrap(), "features")["shape"][1].clone();
    assert_eq!(reply.body.len() - head, 2 * 4 * (20 + features.as_u64().unwrap() as usize));
}

#[tokio::test]
async fn binary_images_with_and_without_length_prefix() {
    let image = seven();
    let element = [&(image.len() as u32).to_le_bytes()[..], &image].concat();
    let request = |n: usize, size: Option<usize>| {
        let mut input = json!({"name": "input", "shape": [n], "datatype": "BYTES"});
        if let Some(size) = size {
            input["parameters"] = json!({ "binary_data_size": size });
        }
        json!({"inputs": [input], "outputs": [{"name": "logits", "parameters": {"classification": 2}}]})
    };
    let two = [element.clone(), element.clone()].concat();
    let reply = binary(&request(2, Some(two.len())), &two).await.json();
    let classes = output(&reply, "logits");
    assert_eq!((&classes["datatype"], &classes["shape"]), (&json!("BYTES"), &json!([2, 2])));
    assert!(classes["data"][0].as_str().unwrap().ends_with(":7:7"), "{classes}");
    for data in [&element, &image] {
        let reply = binary(&request(1, None), data).await.json();
        assert!(output(&reply, "logits")["data"][0].as_str().unwrap().ends_with(":7:7"));
    }
    // A header of length 0: the body is the only input.
    for body in [image, tensor().iter().flat_map(|v| v.to_le_bytes()).collect()] {
        let raw = Request::post(INFER).header(HEADER, 0).body(Body::from(body)).unwrap();
        assert_eq!(send(&server(), raw).await.status, StatusCode::OK);
    }
}

#[tokio::test]
async fn any_tap_can_be_requested() {
    let bytes =
        json!([{"name": "input", "shape": [1], "datatype": "BYTES", "data": [STANDARD.encode(seven())]}]);
    let reply = infer(json!({"inputs": bytes, "outputs": [{"name": "layer2"}]})).await.json();
    assert_eq!(output(&reply, "layer2")["shape"].as_array().unwrap().len(), 4);
    let reply = infer(json!({"inputs": bytes, "outputs": [{"name": "nosuch"}]})).await;
    assert!(reply.json()["error"].as_str().unwrap().contains("layer2"));
}

#[tokio::test]
async fn statistics_count_images() {
    let server = server();
    post(&server, "/", "", seven()).await;
    post(&server, "/", "", "no image").await;
    let stats = get(&server, "/v2/models/digits/stats").await.json();
    let stats = &stats["model_stats"][0];
    assert_eq!(
        (&stats["inference_count"], &stats["inference_stats"]["fail"]["count"]),
        (&json!(1), &json!(1))
    );
    assert!(stats["inference_stats"]["compute_infer"]["ns"].as_u64().unwrap() > 0);
    assert_eq!(get(&server, "/v2/models/stats").await.json()["model_stats"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn bad_requests_are_4xx() {
    let values = tensor();
    let input = |shape: Value, datatype: &str, data: Value| json!({"inputs": [{"name": "input", "shape": shape, "datatype": datatype, "data": data}]});
    for request in [
        json!({}),
        json!({"inputs": []}),
        input(json!([1, 1, 28, 27]), "FP32", json!(values)),
        input(json!([784]), "FP32", json!(values)),
        input(json!([0, 1, 28, 28]), "FP32", json!([])),
        input(json!([1, 3, 28, 28]), "FP32", json!(vec![0.0; 2352])),
        input(json!([1, 1, 28, 28]), "INT64", json!(values)),
        input(json!([1, 1, 28, 28]), "FP32", json!(["a"])),
        input(json!([2]), "BYTES", json!([STANDARD.encode(seven())])),
        input(json!([1]), "BYTES", json!([STANDARD.encode(b"no image")])),
        input(json!([usize::MAX, usize::MAX, 2, 2]), "FP32", json!([1.0])),
    ] {
        let reply = infer(request.clone()).await;
        assert!(reply.status.is_client_error(), "{request}: {}", reply.status);
        reply.error_type();
    }
    let request = json!({"inputs": [{"name": "input", "shape": [2], "datatype": "BYTES",
        "parameters": {"binary_data_size": 8}}]});
    assert_eq!(binary(&request, &[255; 8]).await.status, StatusCode::BAD_REQUEST);
    assert_eq!(binary(&request, &[0; 7]).await.status, StatusCode::BAD_REQUEST);
    for len in ["1000", "-1", "x"] {
        let past = Request::post(INFER).header(HEADER, len).body(Body::from("{}")).unwrap();
        assert_eq!(send(&server(), past).await.status, StatusCode::BAD_REQUEST, "{len}");
    }
    assert_eq!(
        post(&server(), "/v2/repository/models/digits/load", "", "").await.status,
        StatusCode::BAD_REQUEST
    );
}
