//! Server for ResNet checkpoints, as a library: [`router`] returns an [`axum::Router`] to run or to embed.
//!
//! A request passes these stages: bounded body → one permit per image, otherwise 429 → decoding and preprocessing on a
//! worker thread → bounded queue with a deadline → the network on a worker thread → response. Worker threads are std
//! threads outside of the async runtime; an image whose client disconnected or whose deadline passed is dropped before
//! it is computed. On a CPU a batch has no advantage over single images, so under load every worker computes one image
//! on one core, and a lone image is computed by all cores.

pub mod config;
pub mod error;
mod executor;
mod metrics;
pub mod model;
pub mod registry;
mod routes;
pub mod server;
mod state;

pub use config::{Config, ThreadsPerImage};
pub use error::ApiError;
pub use model::ServedModel;
pub use registry::Registry;
pub use routes::router;
pub use state::App;
