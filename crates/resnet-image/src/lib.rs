#![doc = include_str!("../README.md")]

pub mod decode;
mod error;
pub mod preprocess;

pub use error::{Error, Result};
pub use image::RgbImage;
pub use preprocess::Preprocess;
