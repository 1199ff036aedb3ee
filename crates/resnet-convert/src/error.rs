//! The crate's error types.

use std::fmt;
use std::path::{Path, PathBuf};

use resnet_model::escape;

/// Result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Error of reading or converting a checkpoint.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file violates its format or uses an unsupported or unsafe feature.
    #[error("`{}`: {fault}", escape(&path.display().to_string()))]
    Fault {
        /// The file.
        path: PathBuf,
        /// The violation and its location.
        fault: Box<Fault>,
    },
    /// The file cannot be opened or read.
    #[error("`{}`: {source}", escape(&path.display().to_string()))]
    Io {
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// The tensors match no known network.
    #[error("`{}`: {reason}", escape(&path.display().to_string()))]
    Unrecognized {
        /// The file.
        path: PathBuf,
        /// The tensors found and the mismatch.
        reason: String,
    },
    /// Tensors that belong neither to the network nor to a known training state.
    #[error(
        "`{}`: {} outside the network: {}",
        escape(&path.display().to_string()), resnet_model::text::plural(names.len(), "tensor"), resnet_model::text::some_of(names)
    )]
    Leftover {
        /// The file.
        path: PathBuf,
        /// The names of the tensors.
        names: Vec<String>,
    },
    /// An error of `resnet-model`: tensors that do not match the architecture, a failed write, …
    #[error(transparent)]
    Model(#[from] resnet_model::Error),
    /// The number of labels differs from the number of classes.
    #[error("labels: {0}")]
    Labels(String),
    /// The network cannot be expressed in ONNX.
    #[error(transparent)]
    Onnx(resnet_onnx::Error),
    /// The model exceeds the size limit of its format.
    #[error("`{}`: {bytes} bytes, but an ONNX file is limited to 2 GiB", escape(&path.display().to_string()))]
    TooLarge {
        /// The output file.
        path: PathBuf,
        /// The size of the model.
        bytes: u64,
    },
    /// The output's extension selects no format.
    #[error(
        "`{}`: unsupported output extension, expected .safetensors, .onnx, .pth, .pt or .bin",
        escape(&.0.display().to_string())
    )]
    Extension(PathBuf),
    /// ONNX options for another output format.
    #[error(
        "`{}`: --keep-norms and --batch require an .onnx output",
        escape(&.0.display().to_string())
    )]
    OnlyOnnx(PathBuf),
    /// The conversion was canceled; nothing was written.
    #[error("`{}`: interrupted, nothing was written", escape(&.0.display().to_string()))]
    Canceled(PathBuf),
    /// Input and output are the same file.
    #[error("`{}`: input and output are the same file; choose another --output", .0.display())]
    SameFile(PathBuf),
}

impl Error {
    /// Returns the code of the fault; `None` for errors other than [`Error::Fault`].
    pub fn code(&self) -> Option<Code> {
        match self {
            Error::Fault { fault, .. } => Some(fault.code),
            _ => None,
        }
    }

    /// Returns a hint on how to resolve the error.
    pub fn hint(&self) -> Option<&'static str> {
        Some(match self {
            Error::TooLarge { .. } => "--dtype f16 halves the size",
            Error::Leftover { .. } => "--partial omits them",
            Error::Model(resnet_model::Error::At { error, .. }) => match &**error {
                resnet_model::Error::Mismatch(m) if m.missing.is_empty() && m.reshaped.is_empty() => {
                    "--partial omits them"
                }
                _ => return None,
            },
            Error::Unrecognized { .. } => "--arch NAME sets the architecture",
            Error::Model(resnet_model::Error::Exists(_)) => "--force overwrites it",
            Error::Fault { fault, .. } if fault.code == Code::UnsafeGlobal => {
                "no checkpoint needs this function; the file may be malicious: get the weights from another source"
            }
            _ => return None,
        })
    }

    /// Adds the file to an error of `resnet-model`. A fault in a tensor's bytes names the input, even if it surfaces
    /// while the output is written.
    pub(crate) fn from_model(error: resnet_model::Error, path: &Path) -> Error {
        let mut error = error;
        let mut at = None;
        while let resnet_model::Error::At { path, error: inner } = error {
            at.get_or_insert(path);
            error = *inner;
        }
        match error {
            resnet_model::Error::Io(e) => match Fault::from_io(e) {
                Ok(fault) => Error::Fault { path: path.to_owned(), fault: Box::new(fault) },
                Err(e) => resnet_model::Error::from(e).at(&at.unwrap_or_else(|| path.to_owned())).into(),
            },
            resnet_model::Error::Safetensors(reason) => {
                let fault = Box::new(Fault::new(Code::Safetensors, reason));
                Error::Fault { path: at.unwrap_or_else(|| path.to_owned()), fault }
            }
            other => other.at(&at.unwrap_or_else(|| path.to_owned())).into(),
        }
    }
}

/// Violation of a file format, and its location.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The kind; its name is stable.
    pub code: Code,
    /// The archive entry, e.g. `archive/data.pkl`.
    pub entry: Option<String>,
    /// The byte offset in the entry, or in the file without one.
    pub offset: Option<u64>,
    /// The message; safe to print.
    pub detail: String,
}

impl Fault {
    pub(crate) fn new(code: Code, detail: impl Into<String>) -> Fault {
        Fault { code, entry: None, offset: None, detail: detail.into() }
    }

    /// Sets the entry, unless it is set already.
    pub(crate) fn within(mut self, entry: &str) -> Fault {
        self.entry.get_or_insert_with(|| escape(entry));
        self
    }

    /// Sets the byte offset, unless it is set already.
    pub(crate) fn at(mut self, offset: u64) -> Fault {
        self.offset.get_or_insert(offset);
        self
    }

    /// Converts the fault to the error for the file at `path`.
    pub(crate) fn in_file(self, path: &Path) -> Error {
        Error::Fault { path: path.to_owned(), fault: Box::new(self) }
    }

    /// Returns the fault that an I/O error wraps, or the I/O error itself.
    pub(crate) fn from_io(error: std::io::Error) -> Result<Fault, std::io::Error> {
        error.downcast::<Fault>()
    }
}

impl From<Fault> for std::io::Error {
    fn from(fault: Fault) -> Self {
        std::io::Error::new(std::io::ErrorKind::InvalidData, fault)
    }
}

impl From<std::io::Error> for Fault {
    fn from(error: std::io::Error) -> Self {
        Fault::from_io(error).unwrap_or_else(|e| match e.kind() {
            std::io::ErrorKind::UnexpectedEof => Fault::new(Code::Eof, "unexpected end of file"),
            _ => Fault::new(Code::Read, e.to_string()),
        })
    }
}

impl From<resnet_onnx::Fault> for Fault {
    fn from(fault: resnet_onnx::Fault) -> Self {
        use resnet_onnx::Code as Onnx;
        let code = match fault.code {
            Onnx::Ambiguous => Code::Ambiguous,
            Onnx::Cycle => Code::Cycle,
            Onnx::Dtype => Code::Dtype,
            Onnx::DuplicateName => Code::DuplicateName,
            Onnx::Empty => Code::Empty,
            Onnx::Eof => Code::Eof,
            Onnx::ExternalBounds => Code::ExternalBounds,
            Onnx::ExternalKey => Code::ExternalKey,
            Onnx::ExternalPath => Code::ExternalPath,
            Onnx::Graph => Code::Graph,
            Onnx::Integer => Code::Integer,
            Onnx::Limit => Code::Limit,
            Onnx::Name => Code::Name,
            Onnx::Protobuf => Code::Protobuf,
            Onnx::Read => Code::Read,
            Onnx::TensorBytes => Code::TensorBytes,
            Onnx::TensorSize => Code::TensorSize,
            Onnx::Text => Code::Text,
            Onnx::Unsupported => Code::Unsupported,
            Onnx::Version => Code::Version,
            _ => Code::Unsupported,
        };
        Fault { code, entry: fault.entry, offset: fault.offset, detail: fault.detail }
    }
}

impl From<resnet_onnx::Error> for Error {
    fn from(error: resnet_onnx::Error) -> Self {
        match error {
            resnet_onnx::Error::TooLarge { path, bytes } => Error::TooLarge { path, bytes },
            resnet_onnx::Error::Model(error) => Error::Model(error),
            error => Error::Onnx(error),
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
        write!(f, "{} [{}]", self.detail, self.code)
    }
}

macro_rules! codes {
    ($($name:ident = $text:literal, $doc:literal;)*) => {
        /// Kinds of [`Fault`]; the names are stable.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Code {
            $(#[doc = $doc] $name,)*
        }

        impl Code {
            /// Returns the stable name, e.g. `zip-overlap`.
            pub fn as_str(self) -> &'static str {
                match self { $(Code::$name => $text,)* }
            }
        }
    };
}

codes! {
    Format = "format", "An unsupported file format.";
    Read = "read", "A read error of the operating system.";
    Eof = "eof", "Unexpected end of data.";
    Trailing = "trailing-data", "Data after the end of the format.";
    Empty = "no-tensors", "A file without tensors.";
    Limit = "limit", "A limit of the reader is exceeded.";
    UnsafeGlobal = "unsafe-global", "A pickle names a function that no checkpoint needs.";
    NotTorch = "not-a-torch-file", "A pickle that PyTorch cannot read.";
    Opcode = "opcode", "An unknown or unsupported pickle opcode.";
    OpcodeCount = "opcode-count", "Too many pickle opcodes.";
    Protocol = "protocol", "An unknown pickle protocol.";
    Frame = "frame", "A pickle frame that contradicts its contents.";
    Stack = "stack", "A pickle stack underflow or leftover.";
    Memo = "memo-missing", "A missing pickle memo entry.";
    Type = "type", "A value of an unexpected type.";
    Arity = "arity", "A key without a value.";
    Args = "args", "A call with invalid arguments.";
    Integer = "integer", "An invalid or too large integer.";
    Length = "length", "A length beyond the data.";
    Line = "line-length", "A text line beyond the limit.";
    Text = "text", "Text that is not UTF-8.";
    Depth = "depth", "Nesting beyond the limit.";
    Cycle = "cycle", "A value that contains itself.";
    Expansion = "expansion", "Shared values that expand beyond the limit.";
    Persid = "persid", "A persistent id of an unknown form.";
    Name = "name", "A tensor name that is empty, too long or not printable.";
    DuplicateName = "duplicate-name", "Two tensors with the same name.";
    Dtype = "dtype", "An unknown element type.";
    Unsupported = "unsupported", "An unsupported kind of tensor: quantized, sparse, without data.";
    Bounds = "bounds", "A tensor outside its storage.";
    TensorBytes = "tensor-bytes", "Tensors far larger than the file.";
    StorageSize = "storage-size", "A storage whose size differs from the declared one.";
    StorageMissing = "storage-missing", "A missing storage.";
    StorageConflict = "storage-conflict", "A storage declared with two sizes.";
    StorageKeys = "storage-keys", "A storage list that differs from the storages in use.";
    Crc = "crc", "A checksum mismatch.";
    ZipPrefix = "zip-prefix", "Bytes before a zip archive.";
    ZipTrailing = "zip-trailing", "Bytes after a zip archive.";
    ZipBounds = "zip-bounds", "A zip entry or directory outside the file.";
    ZipMismatch = "zip-mismatch", "A zip entry that differs from its directory.";
    ZipDuplicate = "zip-duplicate", "Two zip entries with the same name.";
    ZipOverlap = "zip-overlap", "Overlapping zip entries.";
    ZipEncrypted = "zip-encrypted", "An encrypted zip entry.";
    ZipFlags = "zip-flags", "Unsupported zip flags.";
    ZipMethod = "zip-method", "An unsupported zip compression method.";
    ZipRatio = "zip-ratio", "A zip compression ratio beyond the limit.";
    ZipEntries = "zip-entries", "Too many zip entries.";
    ZipLayout = "zip-layout", "A zip archive without exactly one checkpoint.";
    ByteOrder = "byteorder", "An unknown byte order.";
    Version = "version", "An unknown format version.";
    TorchScriptV1 = "torchscript-v1", "A TorchScript archive of PyTorch 1.0.";
    TarHeader = "tar-header", "A malformed tar header.";
    TarLink = "tar-link", "A tar member that is not a regular file.";
    TarSize = "tar-size", "A tar member with two sizes.";
    TarLayout = "tar-layout", "A tar archive without the members of a checkpoint.";
    Count = "count", "A count beyond the data.";
    Safetensors = "safetensors", "A malformed safetensors file.";
    Protobuf = "protobuf", "Malformed protobuf in an ONNX model.";
    Graph = "graph", "An ONNX graph with an unsupported node or a broken link.";
    TensorSize = "tensor-size", "A tensor whose byte count differs from its shape.";
    Ambiguous = "ambiguous", "A tensor with two sources of data.";
    ExternalPath = "external-path", "An external file outside the model's folder.";
    ExternalBounds = "external-bounds", "A tensor outside its external file.";
    ExternalKey = "external-key", "A duplicate key in an external data entry.";
    NpyHeader = "npy-header", "A malformed header of a numpy array.";
    Shard = "shard", "Shards that differ from their index.";
    ShardPath = "shard-path", "An index that names a file outside its folder.";
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
