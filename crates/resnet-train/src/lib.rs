//! Training, fine-tuning and evaluation of the networks of [`resnet_model`].
//!
//! A run is a [`Config`], a [`Dataset`] and [`Parameters`](resnet_model::Parameters); [`fit`](mod@fit) trains the network
//! and reports progress as [`Event`]s. Runs are reproducible: the same seed gives bit-identical weights on any number of
//! threads, also if the run was interrupted and resumed.
//!
#![doc = include_str!("../README.md")]

pub mod config;
pub mod dataset;

pub mod augment;
pub mod loader;
pub mod loss;
pub mod optim;
pub mod random;
pub mod schedule;

pub mod distributed;
pub mod eval;
pub mod event;
pub mod fit;
pub mod plot;
mod state;

mod error;
#[cfg(test)]
mod golden_tests;

pub use config::Config;
pub use dataset::Dataset;
pub use error::{Error, Result};
pub use event::Event;
pub use fit::{Begin, Run, fit};
