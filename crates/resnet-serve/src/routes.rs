//! Routes, one module per protocol.

mod body;
mod hf;
mod middleware;
pub(crate) mod oip;
mod openapi;
mod ops;

use axum::Router;
use axum::http::{HeaderValue, Method, header};
use axum::middleware::from_fn_with_state;
use axum::response::IntoResponse;
use tower::ServiceBuilder;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::{Any, CorsLayer};
use tower_http::decompression::RequestDecompressionLayer;

use crate::config::Config;
use crate::error::ApiError;
use crate::state::App;

/// The server's routes over `app`.
pub fn router(app: App) -> Router {
    let panicked = |_| ApiError::Internal("a handler panicked".into()).into_response();
    let routes =
        Router::new().merge(hf::routes()).merge(ops::routes()).merge(oip::routes()).fallback(unknown_route);
    // Outermost first. Bodies are decompressed before their size is checked.
    let layers = ServiceBuilder::new()
        .layer(from_fn_with_state(app.clone(), middleware::observe))
        .layer(CatchPanicLayer::custom(panicked))
        .option_layer(cors(&app.config))
        .layer(from_fn_with_state(app.clone(), middleware::authorize))
        .layer(RequestDecompressionLayer::new());
    routes.layer(layers).with_state(app)
}

async fn unknown_route() -> ApiError {
    ApiError::UnknownRoute
}

/// CORS headers for the configured origins; `None` if there are none, so that browsers block other pages.
fn cors(config: &Config) -> Option<CorsLayer> {
    if config.cors_origins.is_empty() {
        return None;
    }
    let layer = CorsLayer::new().allow_methods([Method::GET, Method::POST, Method::PUT]).allow_headers([
        header::CONTENT_TYPE,
        header::AUTHORIZATION,
        header::ACCEPT,
    ]);
    if config.cors_origins.iter().any(|origin| origin == "*") {
        return Some(layer.allow_origin(Any));
    }
    let origins = config.cors_origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok());
    Some(layer.allow_origin(origins.collect::<Vec<_>>()))
}
