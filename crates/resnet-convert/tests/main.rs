//! Hostile and honest files, made by the builders in `build`, through the public interface.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod attacks;
mod build;
mod convert;
#[allow(unreachable_pub)] // A library of its own in `fuzz/`.
mod fuzz;
mod large;
mod matrix;
mod names;
mod onnx;
mod readme;
