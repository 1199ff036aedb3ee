//! Tests of the public interface with malicious and valid files from the builders in `build`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod attacks;
mod build;
mod convert;
#[allow(unreachable_pub)] // A separate library in `fuzz/`.
mod fuzz;
mod large;
mod matrix;
mod names;
mod onnx;
mod readme;
