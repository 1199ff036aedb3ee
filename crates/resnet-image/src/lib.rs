//! Image decoding, resampling and preprocessing for neural networks, bit-identical to Pillow, torchvision and timm.
//!
//! ```
//! use resnet_image::{Preprocess, RgbImage};
//!
//! // A file: `resnet_image::decode::open("cat.jpg".as_ref())?`.
//! let image = RgbImage::new(640, 480);
//! let preprocess = Preprocess::torchvision(256, 224);
//! let input: Vec<f32> = preprocess.apply(&image)?;
//! assert_eq!(preprocess.shape(), [3, 224, 224]);
//! assert_eq!(input.len(), 3 * 224 * 224);
//! # Ok::<(), resnet_image::Error>(())
//! ```
//!
//! | task | API |
//! |---|---|
//! | decode a file or bytes | [`decode::open`], [`decode::decode`] |
//! | decode a region of a large JPEG | [`decode::open_region`] |
//! | ignore the EXIF orientation, as torchvision's and timm's loaders do | [`decode::DecodeOptions`] |
//! | preprocess one image, or into a batch `[N, C, H, W]` | [`Preprocess::apply`], [`Preprocess::apply_into`] |
//! | read the transform from a timm `config.json` | [`Preprocess::from_hub_config`] |
//! | read the transform from a transformers `preprocessor_config.json` | [`Preprocess::from_hf_preprocessor`] |
//!
//! The crate has no feature flags and does not depend on a tensor library.

pub mod decode;
mod error;
pub mod preprocess;

pub use error::{Error, Result};
pub use image::RgbImage;
pub use preprocess::Preprocess;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
