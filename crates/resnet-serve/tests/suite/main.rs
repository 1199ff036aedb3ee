//! The server as clients see it, with the bundled digits model. No Python, and no network but loopback.
#![cfg(test)]

mod connections;
mod faults;
mod hf;
mod oip;
mod ops;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{HeaderMap, Method, Request, StatusCode};
use resnet_model::Checkpoint;
use resnet_serve::registry::ModelState;
use resnet_serve::{App, Config, Registry, ServedModel, router};
use serde_json::Value;
use tower::ServiceExt;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// A PNG file of a seven.
fn seven() -> Vec<u8> {
    std::fs::read(root().join("examples/images/digit-7-a.png")).unwrap()
}

fn model(name: &str) -> Arc<ServedModel> {
    let checkpoint = Checkpoint::open(&root().join("weights/digits_resnet20.safetensors")).unwrap();
    Arc::new(ServedModel::new(name, &checkpoint, 2).unwrap())
}

fn app(config: Config) -> App {
    let registry = Registry::default();
    registry.set("digits", ModelState::Ready(model("digits")));
    App::new(registry, config).unwrap()
}

fn server() -> Router {
    router(app(Config { threads: 2, ..Config::default() }))
}

struct Reply {
    status: StatusCode,
    headers: HeaderMap,
    body: Vec<u8>,
}

impl Reply {
    #[track_caller]
    fn json(&self) -> Value {
        let text = String::from_utf8_lossy(&self.body);
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{}: {e}: {text}", self.status))
    }

    /// The `error_type` of an error response, after checking its shape.
    #[track_caller]
    fn error_type(&self) -> String {
        let json = self.json();
        assert!(json["error"].as_str().is_some_and(|text| !text.is_empty()), "{json}");
        json["error_type"].as_str().unwrap().to_owned()
    }
}

async fn send(router: &Router, request: Request<Body>) -> Reply {
    let response = tokio::time::timeout(Duration::from_secs(60), router.clone().oneshot(request));
    let response = response.await.expect("a response within a minute").unwrap();
    let (status, headers) = (response.status(), response.headers().clone());
    let body = to_bytes(response.into_body(), 64 << 20).await.unwrap().to_vec();
    Reply { status, headers, body }
}

async fn post(router: &Router, path: &str, content_type: &str, body: impl Into<Body>) -> Reply {
    let request = Request::builder().method(Method::POST).uri(path);
    let request =
        if content_type.is_empty() { request } else { request.header("content-type", content_type) };
    send(router, request.body(body.into()).unwrap()).await
}

async fn get(router: &Router, path: &str) -> Reply {
    send(router, Request::get(path).body(Body::empty()).unwrap()).await
}
