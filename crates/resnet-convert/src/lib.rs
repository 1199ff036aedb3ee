//! Any ResNet checkpoint in, one that describes itself out; nothing in a file is ever executed.
//!
//! [`open`] turns a file into a [`Checkpoint`](resnet_model::Checkpoint), [`convert`] writes that as safetensors, ONNX or a
//! state dict of PyTorch's; [`source::read`] and [`build_checkpoint`] are the two halves of [`open`]. A file is found out by its
//! first bytes, never by its name: what `torch.save` has written since PyTorch 0.1 (zip, legacy stream, tar), TorchScript
//! archives, pickles of numpy arrays, `.npy` and `.npz`, safetensors, ONNX; an index leads to the shards beside it.
//!
//! ```no_run
//! let options = resnet_convert::ConvertOptions::default();
//! let (checkpoint, report) = resnet_convert::open("resnet50.pth".as_ref(), &options)?;
//! println!("{report}");
//! # Ok::<(), resnet_convert::Error>(())
//! ```
//!
//! For every input, of any content, the result is a typed error or exact tensors: no panic, no guess, no padding; memory
//! and time are bounded by the bytes present; no file but the one named is opened, or those beside it that an index names.
// Readers of hostile bytes: nothing may panic on an index or an overflow.
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::string_slice))]

mod cast;
mod convert;
mod dialect;
mod error;
mod identify;
mod non_finite;
mod onnx;
mod reconcile;
mod report;
pub mod source;
mod write;

pub use cast::Float;
pub use convert::{Conversion, ConvertOptions, Progress, build_checkpoint, convert, open};
pub use error::{Code, Error, Fault, Result};
pub use onnx::Export;
pub use report::{
    Cast, Dropped, Identified, IdentifiedBy, NonFinite, Renamed, Report, Reshaped, Synthesized,
};
pub use source::{Format, StateDict};
