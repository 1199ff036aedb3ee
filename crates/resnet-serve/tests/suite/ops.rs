//! Health, readiness, metrics, OpenAPI, API keys, CORS.

use axum::body::Body;
use axum::http::{Request, StatusCode};
use resnet_serve::registry::ModelState;
use resnet_serve::{App, Config, Registry, router};

use crate::{app, get, model, post, send, server, seven};

#[tokio::test]
async fn readiness_follows_the_models() {
    let registry = Registry::default();
    let server = router(App::new(registry.clone(), Config::default()).unwrap());
    assert_eq!(get(&server, "/health").await.status, StatusCode::OK);
    assert_eq!(get(&server, "/ready").await.status, StatusCode::SERVICE_UNAVAILABLE);
    registry.set("digits", ModelState::Loading);
    assert_eq!(get(&server, "/ready").await.error_type(), "not_ready");
    assert_eq!(post(&server, "/", "", seven()).await.status, StatusCode::SERVICE_UNAVAILABLE);
    registry.set("digits", ModelState::Ready(model("digits")));
    assert_eq!(get(&server, "/ready").await.status, StatusCode::OK);
    registry.set("broken", ModelState::Failed("truncated".into()));
    assert_eq!(get(&server, "/ready").await.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(post(&server, "/models/digits", "", seven()).await.status, StatusCode::OK);
}

#[tokio::test]
async fn metrics_count_requests_images_and_failures() {
    let server = server();
    post(&server, "/", "", seven()).await;
    post(&server, "/", "", "not an image").await;
    get(&server, "/no/such/path").await;
    let text = String::from_utf8(get(&server, "/metrics").await.body).unwrap();
    for line in [
        "resnet_images_total{model=\"digits\"} 1",
        "resnet_failures_total{model=\"digits\",reason=\"decode\"} 1",
        "resnet_http_requests_total{method=\"POST\",route=\"/\",status=\"200\"} 1",
        "resnet_http_requests_total{method=\"POST\",route=\"/\",status=\"400\"} 1",
        "resnet_http_requests_total{method=\"GET\",route=\"<unmatched>\",status=\"404\"} 1",
        "resnet_images_in_flight 0",
        "resnet_inference_seconds_count 1",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} is missing:\n{text}");
    }
}

#[tokio::test]
async fn the_openapi_document_lists_every_api_route() {
    let document = get(&server(), "/openapi.json").await.json();
    assert!(document["openapi"].as_str().unwrap().starts_with("3."));
    for path in
        ["/", "/models/{name}", "/invocations", "/predictions/{name}", "/health", "/ready", "/metrics"]
    {
        assert!(document["paths"][path].is_object(), "{path}");
    }
    let page = String::from_utf8(get(&server(), "/docs").await.body).unwrap();
    assert!(page.contains("/models/{name}") && !page.contains("<script") && !page.contains("http"), "{page}");
}

#[tokio::test]
async fn api_keys_protect_everything_but_probes() {
    let server = router(app(Config { api_keys: vec!["secret".into(), "other".into()], ..Config::default() }));
    assert_eq!(get(&server, "/health").await.status, StatusCode::OK);
    assert_eq!(get(&server, "/metrics").await.error_type(), "unauthorized");
    for (key, status) in [
        ("Bearer secret", 200),
        ("Bearer other", 200),
        ("Bearer secre", 401),
        ("secret", 401),
        ("Bearer ", 401),
    ] {
        let request = Request::post("/").header("authorization", key).body(Body::from(seven())).unwrap();
        assert_eq!(send(&server, request).await.status, status, "{key}");
    }
}

#[tokio::test]
async fn cors_is_closed_unless_configured() {
    let request = || Request::post("/").header("origin", "https://a.test").body(Body::from(seven())).unwrap();
    let header = "access-control-allow-origin";
    assert!(!send(&server(), request()).await.headers.contains_key(header));
    let open = router(app(Config { cors_origins: vec!["https://a.test".into()], ..Config::default() }));
    assert_eq!(send(&open, request()).await.headers[header], "https://a.test");
    let other = router(app(Config { cors_origins: vec!["https://b.test".into()], ..Config::default() }));
    assert!(!send(&other, request()).await.headers.contains_key(header));
}

#[tokio::test]
async fn request_ids_are_kept_or_assigned() {
    let request = Request::get("/health").header("x-request-id", "abc-1").body(Body::empty()).unwrap();
    assert_eq!(send(&server(), request).await.headers["x-request-id"], "abc-1");
    assert!(!get(&server(), "/health").await.headers["x-request-id"].is_empty());
}
