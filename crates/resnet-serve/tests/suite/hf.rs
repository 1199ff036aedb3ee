//! Hugging Face and cloud protocols.

use axum::body::Body;
use axum::http::{Request, StatusCode};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use crate::{get, post, send, server, seven};

#[tokio::test]
async fn raw_bytes_with_any_content_type_are_classified() {
    let server = server();
    for content_type in ["image/png", "", "application/octet-stream", "application/x-www-form-urlencoded"] {
        let reply = post(&server, "/", content_type, seven()).await;
        assert_eq!(reply.status, StatusCode::OK, "{content_type}");
        let json = reply.json();
        let classes = json.as_array().unwrap();
        assert_eq!(classes.len(), 5);
        assert_eq!(classes[0]["label"], "7");
        assert!(classes[0]["score"].as_f64().unwrap() > 0.9);
        assert!(classes.windows(2).all(|w| w[0]["score"].as_f64() >= w[1]["score"].as_f64()));
    }
}

#[tokio::test]
async fn curl_upload_uses_put() {
    let request = Request::put("/models/digits?top_k=1").body(Body::from(seven())).unwrap();
    let reply = send(&server(), request).await;
    assert_eq!(reply.json().as_array().unwrap().len(), 1);
    assert_eq!(reply.json()[0]["label"], "7");
}

#[tokio::test]
async fn json_with_parameters() {
    let server = server();
    let body = |parameters| json!({"inputs": STANDARD.encode(seven()), "parameters": parameters}).to_string();
    let logits =
        post(&server, "/", "application/json", body(json!({"top_k": 10, "function_to_apply": "none"}))).await;
    let softmax = post(&server, "/", "application/json", body(json!({"top_k": 10}))).await;
    let sigmoid =
        post(&server, "/", "application/json", body(json!({"top_k": 10, "function_to_apply": "sigmoid"})))
            .await;
    let scores = |reply: &crate::Reply| -> Vec<f64> {
        reply.json().as_array().unwrap().iter().map(|c| c["score"].as_f64().unwrap()).collect()
    };
    let (logits, softmax, sigmoid) = (scores(&logits), scores(&softmax), scores(&sigmoid));
    let sum: f64 = logits.iter().map(|x| x.exp()).sum();
    for i in 0..10 {
        assert!((softmax[i] - logits[i].exp() / sum).abs() < 1e-6);
        assert!((sigmoid[i] - 1.0 / (1.0 + (-logits[i]).exp())).abs() < 1e-6);
    }
}

#[tokio::test]
async fn a_list_of_images_has_an_entry_for_each_even_if_one_is_bad() {
    let inputs = [STANDARD.encode(seven()), STANDARD.encode(b"not an image")];
    let reply = post(&server(), "/", "application/json", json!({ "inputs": inputs }).to_string()).await;
    assert_eq!(reply.status, StatusCode::OK);
    assert_eq!(reply.json()[0][0]["label"], "7");
    assert_eq!(reply.json()[1]["error_type"], "decode");
}

#[tokio::test]
async fn multipart_form() {
    let mut body = b"--B\r\nContent-Disposition: form-data; name=\"top_k\"\r\n\r\n2\r\n--B\r\n\
        Content-Disposition: form-data; name=\"file\"; filename=\"7.png\"\r\nContent-Type: image/png\r\n\r\n"
        .to_vec();
    body.extend(seven());
    body.extend(b"\r\n--B--\r\n");
    let reply = post(&server(), "/predict", "multipart/form-data; boundary=B", body).await;
    assert_eq!(reply.json().as_array().unwrap().len(), 2);
    assert_eq!(reply.json()[0]["label"], "7");
}

#[tokio::test]
async fn sagemaker_torchserve_and_vertex() {
    let server = server();
    assert_eq!(get(&server, "/ping").await.status, StatusCode::OK);
    assert_eq!(post(&server, "/invocations", "image/png", seven()).await.json()[0]["label"], "7");
    let torchserve = post(&server, "/predictions/digits?top_k=1", "image/png", seven()).await;
    assert!(torchserve.json()["7"].as_f64().unwrap() > 0.9);
    let b64 = STANDARD.encode(seven());
    let body =
        json!({"instances": [{"b64": b64}, {"image_bytes": {"b64": b64}}, b64], "parameters": {"top_k": 1}});
    let vertex = post(&server, "/v1/models/digits:predict", "application/json", body.to_string()).await;
    let predictions = vertex.json()["predictions"].as_array().unwrap().clone();
    assert_eq!(predictions.len(), 3);
    assert!(predictions.iter().all(|p| p[0]["label"] == "7"), "{predictions:?}");
}
