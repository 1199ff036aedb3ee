//! Reads ResNet checkpoints of any origin, without executing code in them, and writes self-describing ones.
//!
//! [`open`] reads a file into a [`Checkpoint`](resnet_model::Checkpoint); [`convert`] writes it as safetensors, ONNX or a
//! PyTorch state dict. [`open`] is [`source::read`] followed by [`build_checkpoint`]. The format is detected from magic
//! bytes, never from the file name: every `torch.save` format since PyTorch 0.1 (zip, legacy stream, tar), TorchScript
//! archives, pickled numpy arrays, `.npy` and `.npz`, safetensors and ONNX. A JSON index reads the shards in its folder.
//!
//! ```no_run
//! let options = resnet_convert::ConvertOptions::default();
//! let (checkpoint, report) = resnet_convert::open("resnet50.pth".as_ref(), &options)?;
//! println!("{report}");
//! # Ok::<(), resnet_convert::Error>(())
//! ```
//!
//! Every input yields a typed error or exact tensors; nothing panics and nothing is padded. Memory and time are bounded by
//! the size of the file. Only the named file is opened, and files in its folder that it refers to.
// The readers accept hostile bytes: indexing and overflow must not panic.
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::string_slice))]

mod checkpoint;
pub mod cli;
mod convert;
mod default_preprocess;
mod dialect;
mod error;
mod identify;
mod non_finite;
mod reconcile;
mod report;
pub mod source;
mod write;

pub use convert::{Conversion, ConvertOptions, Progress, build_checkpoint, convert, open};
pub use error::{Code, Error, Fault, Result};
pub use report::{
    Cast, Dropped, Identified, IdentifiedBy, NonFinite, Renamed, Report, Reshaped, Synthesized,
};
pub use resnet_model::raw::Float;
pub use resnet_onnx::Export;
pub use source::{Format, StateDict};
