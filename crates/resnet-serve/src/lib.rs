#![doc = include_str!("../README.md")]

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
