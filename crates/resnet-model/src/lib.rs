//! Every ResNet as data, and what can be done with one: run it, inspect it, load it, fine-tune it.
//!
//! The one idea: a network is data and everything else interprets it. An [`Arch`] describes which network, its
//! [`Graph`] lists the operations with the names that PyTorch gives their parameters, and the interpreters are
//! [`Graph::param_specs`] (every tensor's name and shape), [`Graph::costs`] (output shapes and multiply-adds), [`Network`]
//! (a differentiable candle network) and [`fold`](mod@fold) (batch norm folded into the convolutions).
//!
//! ```
//! use resnet_model::zoo;
//!
//! let arch = zoo::arch("resnet50")?;
//! assert_eq!(arch.graph()?.param_count(), 25_557_032);
//! # Ok::<(), resnet_model::Error>(())
//! ```
//!
//! Weights come as a [`Checkpoint`]: tensors and [`Meta`], which says what they are: architecture, preprocessing,
//! labels, origin. [`Classifier`] makes a checkpoint runnable.
//!
//! Shapes are written `[N, C, H, W]`: `N` images, `C` channels, `H` × `W` pixels; `K` is the number of classes.

pub mod arch;
mod families;
pub mod graph;
pub mod zoo;

pub mod cost;
pub mod engine;
pub mod fold;
pub mod network;
mod ops;
pub mod param_specs;
pub mod parameters;
pub mod runtime;

pub mod checkpoint;
pub mod classifier;
mod error;
pub mod file;
pub mod labels;
pub mod meta;
pub mod raw;
pub mod safetensors;
pub mod synthetic;
pub mod text;

pub use arch::Arch;
pub use checkpoint::Checkpoint;
pub use classifier::{Classifier, Prediction};
pub use error::{Error, Mismatch, Reshaped, Result};
pub use graph::Graph;
pub use labels::Labels;
pub use meta::Meta;
pub use network::Network;
pub use parameters::Parameters;
pub use raw::RawTensor;
pub use resnet_image as image;
pub use resnet_image::Preprocess;
pub use runtime::Runtime;
pub use text::escape;
