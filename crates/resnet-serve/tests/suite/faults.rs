//! Bad input and overload: a 4xx with `{"error", "error_type"}`, and the next request is served.

use std::io::Write;
use std::time::Duration;

use axum::body::Body;
use axum::http::{Request, StatusCode};
use resnet_serve::{Config, ThreadsPerImage, router};
use serde_json::json;

use crate::{app, post, send, server, seven};

#[tokio::test]
async fn bad_bodies_are_rejected_and_the_next_request_is_served() {
    let server = server();
    let json = "application/json";
    let form = "multipart/form-data; boundary=B";
    let truncated_form = "--B\r\nContent-Disposition: form-data; name=\"f\"; filename=\"x\"\r\n\r\nabc";
    let no_file = "--B\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\n1\r\n--B--\r\n";
    let mut truncated_png = seven();
    truncated_png.truncate(truncated_png.len() / 2);
    let deep = "[".repeat(100_000);
    let cases: Vec<(&str, &str, Vec<u8>, &str)> = vec![
        ("/", "", vec![], "validation"),
        ("/", "image/png", b"not an image".to_vec(), "decode"),
        ("/", "image/png", truncated_png, "decode"),
        ("/", json, b"{".to_vec(), "validation"),
        ("/", json, b"[]".to_vec(), "validation"),
        ("/", json, deep.into_bytes(), "validation"),
        ("/", json, json!({"inputs": 5}).to_string().into_bytes(), "validation"),
        ("/", json, json!({"inputs": "%%%"}).to_string().into_bytes(), "validation"),
        ("/", json, json!({"inputs": "data:image/png,abc"}).to_string().into_bytes(), "validation"),
        (
            "/",
            json,
            json!({"inputs": "", "parameters": {"top_k": -1}}).to_string().into_bytes(),
            "validation",
        ),
        ("/", form, truncated_form.into(), "validation"),
        ("/", form, no_file.into(), "validation"),
        ("/", "multipart/form-data", b"x".to_vec(), "validation"),
        ("/models/nosuch", "", seven(), "unknown_model"),
        ("/models/..%2F..%2Fetc%2Fpasswd", "", seven(), "unknown_model"),
        ("/models/a/b", "", seven(), "unknown_route"),
        ("/v1/models/digits:explode", json, b"{}".to_vec(), "validation"),
        ("/v1/models/digits:predict", json, b"{\"instances\": [{}]}".to_vec(), "validation"),
    ];
    for (path, content_type, body, expected) in cases {
        let start: Vec<u8> = body.iter().copied().take(40).collect();
        let start = String::from_utf8_lossy(&start).into_owned();
        let reply = post(&server, path, content_type, body).await;
        assert!(reply.status.is_client_error(), "{path} {start}: {}", reply.status);
        assert_eq!(reply.error_type(), expected, "{path} {start}");
        assert!(!String::from_utf8_lossy(&reply.body).contains("src/"), "{path} {start}");
    }
    assert_eq!(post(&server, "/", "", seven()).await.status, StatusCode::OK);
}

#[tokio::test]
async fn bodies_are_limited_before_and_after_decompression() {
    let server = router(app(Config { max_body: 1 << 16, ..Config::default() }));
    let large = post(&server, "/", "", vec![0; (1 << 16) + 1]).await;
    assert_eq!((large.status, large.error_type().as_str()), (StatusCode::PAYLOAD_TOO_LARGE, "too_large"));
    let mut gzip = flate2::write::GzEncoder::new(vec![], flate2::Compression::best());
    gzip.write_all(&vec![0; 16 << 20]).unwrap();
    let bomb = gzip.finish().unwrap();
    assert!(bomb.len() < 1 << 16);
    let request = Request::post("/").header("content-encoding", "gzip").body(Body::from(bomb)).unwrap();
    assert_eq!(send(&server, request).await.error_type(), "too_large");
    let mut gzip = flate2::write::GzEncoder::new(vec![], flate2::Compression::best());
    gzip.write_all(&seven()).unwrap();
    let small = Body::from(gzip.finish().unwrap());
    let request = Request::post("/").header("content-encoding", "gzip").body(small).unwrap();
    assert_eq!(send(&server, request).await.json()[0]["label"], "7");
}

#[tokio::test]
async fn more_images_than_permits_are_answered_with_429() {
    let server = router(app(Config { threads: 1, max_in_flight: 2, ..Config::default() }));
    let inputs = vec![base64::Engine::encode(&base64::engine::general_purpose::STANDARD, seven()); 3];
    let reply = post(&server, "/", "application/json", json!({ "inputs": inputs }).to_string()).await;
    assert_eq!(reply.status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(reply.error_type(), "overloaded");
    assert!(reply.headers.contains_key("retry-after"));
    assert_eq!(post(&server, "/", "", seven()).await.status, StatusCode::OK);
}

#[tokio::test]
async fn images_past_their_deadline_are_not_computed() {
    let config = Config { threads: 1, queue_timeout: Duration::ZERO, ..Config::default() };
    let server = router(app(config));
    let reply = post(&server, "/", "", seven()).await;
    assert_eq!((reply.status, reply.error_type().as_str()), (StatusCode::SERVICE_UNAVAILABLE, "timeout"));
}

#[tokio::test]
async fn requests_of_disconnected_clients_are_dropped_before_computing() {
    let server = router(app(Config { threads: 1, max_in_flight: 64, ..Config::default() }));
    let requests: Vec<_> = (0..32)
        .map(|_| {
            let server = server.clone();
            tokio::spawn(async move { post(&server, "/", "", seven()).await })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(2)).await;
    requests.iter().for_each(|request| request.abort());
    for request in requests {
        let _ = request.await;
    }
    assert_eq!(post(&server, "/", "", seven()).await.status, StatusCode::OK);
    let text = String::from_utf8(crate::get(&server, "/metrics").await.body).unwrap();
    let value = |name: &str| {
        let line =
            text.lines().find(|l| l.starts_with(name)).map(|l| l.rsplit(' ').next().unwrap().to_owned());
        line.map_or(0, |v| v.parse::<u64>().unwrap())
    };
    let computed = value("resnet_images_total{model=\"digits\"}");
    let dropped = value("resnet_failures_total{model=\"digits\",reason=\"cancelled\"}");
    assert!(dropped > 0 && computed < 33, "{computed} computed, {dropped} dropped");
}

#[tokio::test]
async fn every_policy_gives_equal_results() {
    let mut replies = vec![];
    for policy in [ThreadsPerImage::Auto, ThreadsPerImage::All, ThreadsPerImage::One] {
        let server = router(app(Config { threads: 2, threads_per_image: policy, ..Config::default() }));
        replies.push(post(&server, "/?top_k=10&function_to_apply=none", "", seven()).await.body);
    }
    assert!(replies.windows(2).all(|w| w[0] == w[1]));
}
