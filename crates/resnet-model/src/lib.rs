//! ResNets as data: architectures, weights, inference, fine-tuning and inspection, on [candle](candle_core).
//!
//! An [`Arch`] describes a network. Its [`Graph`] lists the operations with the tensor names of torchvision or timm, and
//! everything else interprets the graph. A [`Checkpoint`] is a set of tensors with [`Meta`]data: architecture, preprocessing
//! and labels.
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use resnet_model::{Network, synthetic, zoo};
//!
//! let arch = zoo::arch("resnet18")?;
//! let graph = arch.graph()?;
//! assert_eq!(graph.param_count(), 11_689_512);
//!
//! // Real weights: `Checkpoint::open("resnet18.safetensors".as_ref())?`.
//! let checkpoint = synthetic::checkpoint(&arch)?;
//! let network = Network::load(&checkpoint, DType::F32, &Device::Cpu)?;
//! let images = Tensor::zeros((1, 3, 64, 64), DType::F32, &Device::Cpu)?;
//! assert_eq!(network.forward(&images)?.dims(), [1, 1000]);
//! # Ok::<(), resnet_model::Error>(())
//! ```
//!
//! | task | API |
//! |---|---|
//! | find an architecture by name | [`zoo::arch`] |
//! | define an architecture | [`arch`] |
//! | list tensors and count parameters | [`param_specs`](mod@param_specs) |
//! | compute output shapes and multiply-adds | [`cost`](mod@cost) |
//! | open and save weights | [`Checkpoint`], [`safetensors`] |
//! | decode and preprocess images | [`image`], [`Preprocess`] |
//! | classify images | [`Classifier`] |
//! | run fast on a CPU | [`engine`] |
//! | run on any device, extract features | [`Runtime`], [`Network`] |
//! | fine-tune | [`Parameters`] |
//! | fold batch norms into convolutions | [`fold`](mod@fold) |
//!
//! Shapes are written `[N, C, H, W]`: `N` images, `C` channels, `H` × `W` pixels; `K` is the number of classes.
//!
//! # Features
//!
//! All are off by default and passed through to candle.
//!
//! | feature | effect |
//! |---|---|
//! | `cuda`, `cudnn` | NVIDIA GPUs |
//! | `metal` | Apple GPUs |
//! | `accelerate`, `mkl` | BLAS of Apple or Intel for candle on the CPU; [`engine`] does not need them |

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
pub mod labels;
pub mod meta;
pub mod raw;
pub mod safetensors;

// Shared with the other crates of the workspace.
#[doc(hidden)]
pub mod file;
#[doc(hidden)]
pub mod random;
#[doc(hidden)]
pub mod synthetic;
#[doc(hidden)]
pub mod text;

pub use arch::Arch;
pub use checkpoint::Checkpoint;
pub use classifier::{Classifier, Prediction};
pub use error::{Error, Mismatch, Reshaped, Result};
#[doc(inline)]
pub use file::Existing;
pub use graph::Graph;
pub use labels::Labels;
pub use meta::Meta;
pub use network::Network;
pub use parameters::Parameters;
pub use raw::RawTensor;
pub use resnet_image as image;
pub use resnet_image::Preprocess;
pub use runtime::Runtime;
#[doc(hidden)]
pub use text::escape;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
