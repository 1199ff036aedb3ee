//! Errors of reading and writing ONNX models.

use std::fmt;
use std::path::PathBuf;

use resnet_model::escape;

/// Result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Error of writing a model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The network cannot be expressed in ONNX.
    #[error("ONNX: {0}")]
    Export(String),
    /// The model exceeds the size limit of protobuf.
    #[error("`{}`: the model has {bytes} bytes, but an ONNX file is limited to 2 GiB", escape(&path.display().to_string()))]
    TooLarge {
        /// The output file.
        path: PathBuf,
        /// The size in bytes.
        bytes: u64,
    },
    /// An error of `resnet-model`: tensors that cannot be read, a failed write.
    #[error(transparent)]
    Model(#[from] resnet_model::Error),
}

/// CellKind of a [`Fault`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Code {
    /// A tensor with two sources of data.
    Ambiguous,
    /// A value that contains itself.
    Cycle,
    /// An unknown element type.
    Dtype,
    /// Two tensors with the same name.
    DuplicateName,
    /// A file without tensors.
    Empty,
    /// Unexpected end of data.
    Eof,
    /// A tensor outside its external file.
    ExternalBounds,
    /// A duplicate key in an external data entry.
    ExternalKey,
    /// An external file outside the model's folder.
    ExternalPath,
    /// An ONNX graph with an unsupported node or a broken link.
    Graph,
    /// An invalid or too large integer.
    Integer,
    /// A limit of the reader is exceeded.
    Limit,
    /// A tensor name that is empty, too long or not printable.
    Name,
    /// Malformed protobuf in an ONNX model.
    Protobuf,
    /// A read error of the operating system.
    Read,
    /// Tensors far larger than the file.
    TensorBytes,
    /// A tensor whose byte count differs from its shape.
    TensorSize,
    /// Text that is not UTF-8.
    Text,
    /// An unsupported kind of tensor: quantized, sparse, without data.
    Unsupported,
    /// An unknown format version.
    Version,
}

/// Violation of the format or use of an unsupported feature, and its location.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The kind.
    pub code: Code,
    /// The part of the model, e.g. a metadata key.
    pub entry: Option<String>,
    /// The byte offset in the file.
    pub offset: Option<u64>,
    /// The message; safe to print.
    pub detail: String,
}

impl Fault {
    pub(crate) fn new(code: Code, detail: impl Into<String>) -> Fault {
        Fault { code, entry: None, offset: None, detail: detail.into() }
    }

    /// Sets the part of the model, unless it is set already.
    pub(crate) fn within(mut self, entry: &str) -> Fault {
        self.entry.get_or_insert_with(|| escape(entry));
        self
    }

    /// Sets the byte offset, unless it is set already.
    pub(crate) fn at(mut self, offset: u64) -> Fault {
        self.offset.get_or_insert(offset);
        self
    }
}

impl From<std::io::Error> for Fault {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::UnexpectedEof => Fault::new(Code::Eof, "unexpected end of file"),
            _ => Fault::new(Code::Read, error.to_string()),
        }
    }
}

impl std::error::Error for Fault {}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.entry, self.offset) {
            (Some(entry), Some(offset)) => write!(f, "{entry}, byte {offset}: ")?,
            (Some(entry), None) => write!(f, "{entry}: ")?,
            (None, Some(offset)) => write!(f, "byte {offset}: ")?,
            (None, None) => {}
        }
        f.write_str(&self.detail)
    }
}
