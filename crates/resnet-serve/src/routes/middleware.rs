//! Layers around every request: API keys, request ids, access log, metrics.

use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use subtle::ConstantTimeEq;

use crate::error::ApiError;
use crate::state::App;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Routes that need no API key: probes of orchestrators.
const PUBLIC: &[&str] = &["/health", "/live", "/ready", "/ping", "/v2/health/live", "/v2/health/ready"];

/// Rejects requests without one of the API keys, if there are any.
pub(super) async fn authorize(State(app): State<App>, request: Request, next: Next) -> Response {
    let keys = &app.config.api_keys;
    if keys.is_empty() || PUBLIC.contains(&request.uri().path()) {
        return next.run(request).await;
    }
    let given = request.headers().get(header::AUTHORIZATION).map(HeaderValue::as_bytes).unwrap_or_default();
    let given = given.strip_prefix(b"Bearer ").unwrap_or_default();
    // All keys are compared in constant time, so that response times reveal nothing about them.
    let is_known = keys.iter().fold(false, |known, key| known | bool::from(key.as_bytes().ct_eq(given)));
    match is_known {
        true => next.run(request).await,
        false => ApiError::Unauthorized.into_response(),
    }
}

/// Assigns a request id, counts the request and logs it.
pub(super) async fn observe(State(app): State<App>, request: Request, next: Next) -> Response {
    let start = Instant::now();
    let method = request.method().clone();
    // The matched route, not the path: labels stay bounded and logs hold no user data.
    let route =
        request.extensions().get::<MatchedPath>().map_or("<unmatched>", MatchedPath::as_str).to_owned();
    let id = match request.headers().get(&REQUEST_ID) {
        Some(id) if id.len() <= 128 => id.clone(),
        _ => app.next_request_id(),
    };
    let in_progress = app.metrics.begin_request();
    let mut response = next.run(request).await;
    drop(in_progress);
    let status = response.status().as_u16();
    let elapsed = start.elapsed();
    app.metrics.request(method.as_str(), &route, status, elapsed);
    let id_text = id.to_str().unwrap_or("?");
    tracing::info!(%method, route, status, us = elapsed.as_micros() as u64, id = id_text, "request");
    response.headers_mut().insert(REQUEST_ID, id);
    response
}
