//! Train and fine-tune any ResNet.
//!
//! A run is a [`Config`], a [`Dataset`] and [`Parameters`](resnet_model::Parameters); [`fit`](mod@fit) trains and tells
//! what happens as [`Event`]s. Runs are exact: the same seed gives the same weights, bit by bit, on any number of threads,
//! whether or not the run was interrupted and resumed.

pub mod config;
pub mod dataset;

pub mod augment;
pub mod loader;
pub mod loss;
pub mod optim;
pub mod random;
pub mod schedule;

pub mod eval;
pub mod event;
pub mod fit;
pub mod plot;
mod state;
pub mod workers;

mod error;
#[cfg(test)]
mod golden_tests;

pub use config::Config;
pub use dataset::Dataset;
pub use error::{Error, Result};
pub use event::Event;
pub use fit::{Begin, Run, fit};
