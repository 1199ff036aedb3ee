//! Readers of foreign files: the format is detected from magic bytes, names and tensors form a [`StateDict`].
//!
//! Detection happens once; no reader falls back to another. Limits are fixed, every length is checked against the file
//! size, and tensors are read lazily.

pub(crate) mod companion_files;
pub(crate) mod input;
pub(crate) mod lazy;
mod legacy;
mod npy;
mod numpy_pickle;
pub(crate) mod pickle;
pub(crate) mod pickled_tensors;
mod shards;
mod tar;
pub(crate) mod tensors;
mod torch_zip;
pub(crate) mod zip;

use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use resnet_model::RawTensor;
use resnet_model::file::SharedFile;
use resnet_model::raw::Bytes;
use serde::Serialize;

use crate::error::{Code, Error, Fault, Result};

/// Entry of a PyTorch archive that holds the checkpoint's metadata; only written by this crate.
pub(crate) const META_ENTRY: &str = "resnet.json";
/// Maximum length of a tensor name, in bytes.
pub(crate) const MAX_NAME: usize = 4096;

/// File format, detected from magic bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Format {
    /// `torch.save` since PyTorch 1.6.
    TorchZip,
    /// `torch.save` from 0.1.10 to 1.5, and with `_use_new_zipfile_serialization=False`.
    TorchLegacy,
    /// `torch.save` before 0.1.10.
    TorchTar,
    /// `torch.jit.save`.
    TorchScript,
    /// `pickle.dump` of numpy arrays.
    Pickle,
    /// Safetensors.
    Safetensors,
    /// ONNX, with or without external data.
    Onnx,
    /// `numpy.save`.
    Npy,
    /// `numpy.savez`.
    Npz,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Format::TorchZip => "PyTorch zip",
            Format::TorchLegacy => "PyTorch legacy stream",
            Format::TorchTar => "PyTorch tar (before 0.1.10)",
            Format::TorchScript => "TorchScript archive",
            Format::Pickle => "pickle of arrays",
            Format::Safetensors => "safetensors",
            Format::Onnx => "ONNX",
            Format::Npy => "numpy array",
            Format::Npz => "archive of numpy arrays",
        })
    }
}

/// Names and tensors of a foreign file.
#[derive(Debug)]
#[non_exhaustive]
pub struct StateDict {
    /// The file format.
    pub container: Format,
    /// The tensors in file order; names of nested values are joined with dots.
    pub tensors: Vec<(String, RawTensor)>,
    /// Unsupported tensors as (name, kind): quantized, sparse, without data.
    pub unsupported: Vec<(String, String)>,
    /// Python classes and functions in the file whose contents were skipped.
    pub opaque: Vec<String>,
    /// Notes for the user.
    pub notes: Vec<String>,
    /// `__metadata__` of a safetensors file; the architecture's name in a PyTorch checkpoint.
    pub metadata: HashMap<String, String>,
    /// The computation graph of an ONNX file.
    pub(crate) graph: Option<Box<resnet_onnx::Graph>>,
}

impl StateDict {
    pub(crate) fn new(container: Format) -> StateDict {
        StateDict {
            container,
            tensors: vec![],
            unsupported: vec![],
            opaque: vec![],
            notes: vec![],
            metadata: HashMap::new(),
            graph: None,
        }
    }
}

/// Reads the file at `path`. The bytes of the tensors stay in the file until they are needed.
pub fn read(path: &Path) -> Result<StateDict> {
    let io = |source| Error::Io { path: path.to_owned(), source };
    let file = Arc::new(SharedFile::open(path).map_err(io)?);
    let in_file = |fault: Fault| fault.in_file(path);
    match detect(&*file).map_err(in_file)? {
        Signature::Index => shards::read(path, &*file),
        format => read_as(format, file, Some(path)).map_err(in_file),
    }
}

/// Reads bytes in memory, like [`read`]. An index of shards is an error, because there is no folder.
pub fn read_bytes(bytes: Arc<dyn Bytes>) -> Result<StateDict, Fault> {
    read_as(detect(&*bytes)?, bytes, None)
}

fn read_as(format: Signature, bytes: Arc<dyn Bytes>, path: Option<&Path>) -> Result<StateDict, Fault> {
    match format {
        Signature::Safetensors => {
            let contents = resnet_model::safetensors::read(bytes).map_err(|e| match e {
                resnet_model::Error::Io(e) => Fault::from(e),
                resnet_model::Error::Safetensors(reason) => Fault::new(Code::Safetensors, reason),
                other => Fault::new(Code::Safetensors, other.to_string()),
            })?;
            let tensors = contents.tensors;
            if tensors.is_empty() {
                return Err(Fault::new(Code::Empty, "the file has no tensors"));
            }
            Ok(StateDict { tensors, metadata: contents.metadata, ..StateDict::new(Format::Safetensors) })
        }
        Signature::Zip => {
            let len = bytes.len();
            let archive = zip::ZipReader::open(bytes)?;
            match npy::is_archive(&archive) && !torch_zip::is_archive(&archive) {
                true => npy::read_archive(&archive, len),
                false => torch_zip::read(&archive, len),
            }
        }
        Signature::Npy => npy::read(bytes),
        Signature::Index => Err(Fault::new(
            Code::Format,
            "JSON: an index of shards must be opened by its path, other JSON is not a checkpoint",
        )),
        Signature::Legacy { start } => legacy::read(bytes, start),
        Signature::Tar => tar::read(bytes),
        Signature::Pickle => numpy_pickle::read(bytes),
        Signature::Onnx => {
            let model = resnet_onnx::read(bytes, path)?;
            let (tensors, unsupported) = (model.tensors, model.unsupported);
            Ok(StateDict {
                tensors,
                unsupported,
                graph: Some(Box::new(model.graph)),
                ..StateDict::new(Format::Onnx)
            })
        }
    }
}

/// Format as far as the first bytes show it.
enum Signature {
    Zip,
    /// `start` is the end of the magic number.
    Legacy {
        start: u64,
    },
    Tar,
    Pickle,
    Safetensors,
    Onnx,
    Npy,
    /// JSON that may name other files.
    Index,
}

/// Detects the format from the first bytes.
fn detect(bytes: &dyn Bytes) -> Result<Signature, Fault> {
    let mut head = [0; 265];
    let n = bytes.len().min(head.len() as u64) as usize;
    let head = head.get_mut(..n).unwrap_or(&mut []);
    bytes.read_at(0, head)?;
    let head = &*head;
    let unknown = |what: &str| Err(Fault::new(Code::Format, what));
    if let Some(start) = legacy::magic(head) {
        return Ok(Signature::Legacy { start });
    }
    match head {
        [] => unknown("the file is empty"),
        [b'P', b'K', 3, 4, ..] => Ok(Signature::Zip),
        [b'P', b'K', 5, 6, ..] => unknown("empty zip archive"),
        _ if head.get(257..262) == Some(b"ustar") => Ok(Signature::Tar),
        // Before formats with short magic bytes: the header length may have any value.
        [_, _, _, _, _, 0, 0, 0, b'{' | b' ', ..] => Ok(Signature::Safetensors),
        [0x80, 0..=5, ..] => Ok(Signature::Pickle),
        _ if resnet_onnx::is_onnx(head) => Ok(Signature::Onnx),
        [0x80, n, ..] => {
            Err(Fault::new(Code::Protocol, format!("unsupported pickle protocol {n}, expected 0 to 5")).at(1))
        }
        _ if numpy_pickle::is_text_pickle(head) => Ok(Signature::Pickle),
        [0x1f, 0x8b, ..] => unknown("gzip file; decompress it first"),
        [0x89, b'P', b'N', b'G', ..] | [0xff, 0xd8, 0xff, ..] => unknown("image, not a checkpoint"),
        [0x89, b'H', b'D', b'F', ..] => unknown("HDF5 file (Keras); save it as safetensors or ONNX first"),
        [b'<', ..] => unknown("web page, not a checkpoint; check the download URL"),
        _ if npy::is_array(head) => Ok(Signature::Npy),
        [b'{', ..] => Ok(Signature::Index),
        _ if head.starts_with(b"version https://git-lfs") => {
            unknown("Git LFS pointer, not the file itself; run `git lfs pull`")
        }
        _ if ends_in_zip(bytes) => Err(Fault::new(Code::ZipPrefix, "data before the zip archive")),
        _ if head.len() > 8 && head.iter().all(|&b| b.is_ascii_graphic() || b.is_ascii_whitespace()) => {
            unknown("text file, not a checkpoint")
        }
        // An overlong header: the reader reports it.
        [_, _, _, _, _, _, _, _, b'{', ..] => Ok(Signature::Safetensors),
        _ => unknown(
            "unknown format, expected PyTorch (zip, legacy, tar), TorchScript, pickle, numpy, safetensors or ONNX",
        ),
    }
}

fn ends_in_zip(bytes: &dyn Bytes) -> bool {
    let mut end = [0; 22];
    bytes.len().checked_sub(22).is_some_and(|at| bytes.read_at(at, &mut end).is_ok())
        && end.starts_with(b"PK\x05\x06")
}
