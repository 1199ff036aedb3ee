//! Routes, one module per protocol.

mod hf;

use axum::Router;
use axum::extract::DefaultBodyLimit;

use crate::state::App;

/// The server's routes over `app`.
pub fn router(app: App) -> Router {
    let limit = DefaultBodyLimit::max(app.config.max_body);
    Router::new().merge(hf::routes()).layer(limit).with_state(app)
}
