//! What can go wrong in this crate.

use std::fmt;
use std::path::{Path, PathBuf};

use resnet_model::escape;

/// A result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a checkpoint could not be read or converted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file's bytes are not what its format demands, or ask for something that is refused.
    #[error("`{}`: {fault}", escape(&path.display().to_string()))]
    Fault {
        /// The file.
        path: PathBuf,
        /// What is wrong where.
        fault: Box<Fault>,
    },
    /// The file could not be opened or read.
    #[error("`{}`: {source}", escape(&path.display().to_string()))]
    Io {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// The tensors are none of a network that is known.
    #[error("`{}`: {reason}", escape(&path.display().to_string()))]
    Unrecognized {
        /// The file.
        path: PathBuf,
        /// What was found and what was looked for.
        reason: String,
    },
    /// Tensors beside the network that nothing is known about.
    #[error(
        "`{}`: {} beside the network would be left out: {}",
        escape(&path.display().to_string()), crate::report::plural(names.len(), "tensor"), resnet_model::text::some_of(names)
    )]
    Leftover {
        /// The file.
        path: PathBuf,
        /// The names of the tensors.
        names: Vec<String>,
    },
    /// The tensors are not those of the architecture, a file could not be written, …
    #[error(transparent)]
    Model(#[from] resnet_model::Error),
    /// The labels given do not fit.
    #[error("labels: {0}")]
    Labels(String),
    /// A network that ONNX cannot express.
    #[error("ONNX: {0}")]
    Export(String),
    /// A model beyond what its format can hold.
    #[error("`{}`: {bytes} bytes, but an ONNX file holds less than 2 GiB", escape(&path.display().to_string()))]
    TooLarge {
        /// The file that was to be written.
        path: PathBuf,
        /// The bytes that it would have.
        bytes: u64,
    },
    /// The output's name ends as that of no file that is written.
    #[error(
        "`{}`: what is written ends in .safetensors, .onnx, .pth, .pt or .bin",
        escape(&.0.display().to_string())
    )]
    Extension(PathBuf),
    /// Settings for ONNX, where something else is written.
    #[error(
        "`{}` is no .onnx file: batch norms to keep and a size of batches are for those",
        escape(&.0.display().to_string())
    )]
    OnlyOnnx(PathBuf),
    /// Output and input are the same file.
    #[error("`{}` would overwrite its own source", .0.display())]
    SameFile(PathBuf),
}

impl Error {
    /// What kind of fault it is; `None` if the file's format is not to blame.
    pub fn code(&self) -> Option<Code> {
        match self {
            Error::Fault { fault, .. } => Some(fault.code),
            _ => None,
        }
    }

    /// What the user might do about it.
    pub fn hint(&self) -> Option<&'static str> {
        Some(match self {
            Error::TooLarge { .. } => "--dtype f16 halves it",
            Error::Leftover { .. } => "--partial leaves them out",
            Error::Model(resnet_model::Error::At { source, .. }) => match &**source {
                resnet_model::Error::Mismatch(m) if m.missing.is_empty() && m.reshaped.is_empty() => {
                    "--partial leaves them out"
                }
                _ => return None,
            },
            Error::Unrecognized { .. } => "--arch NAME insists on an architecture",
            Error::Model(resnet_model::Error::Exists(_)) => "--force replaces it",
            Error::Fault { fault, .. } if fault.code == Code::UnsafeGlobal => {
                "a checkpoint has no reason to name this function; get the weights from another source"
            }
            _ => return None,
        })
    }

    /// An error from below, told of the file it is about. A fault that surfaced while a tensor's bytes were read
    /// names the file read, not the file being written.
    pub(crate) fn from_model(error: resnet_model::Error, path: &Path) -> Error {
        let mut error = error;
        let mut at = None;
        while let resnet_model::Error::At { path, source } = error {
            at.get_or_insert(path);
            error = *source;
        }
        match error {
            resnet_model::Error::Io(e) => match Fault::of(e) {
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

/// What is wrong in a file, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The kind, a stable short name.
    pub code: Code,
    /// The part of the file, e.g. `archive/data.pkl`.
    pub entry: Option<String>,
    /// The byte in that part (in the file, if no part is named).
    pub offset: Option<u64>,
    /// What was found and what was expected; safe to print.
    pub detail: String,
}

impl Fault {
    pub(crate) fn new(code: Code, detail: impl Into<String>) -> Fault {
        Fault { code, entry: None, offset: None, detail: detail.into() }
    }

    /// The same fault with the part of the file, unless it is known already.
    pub(crate) fn within(mut self, entry: &str) -> Fault {
        self.entry.get_or_insert_with(|| escape(entry));
        self
    }

    /// The same fault with the byte offset, unless it is known already.
    pub(crate) fn at(mut self, offset: u64) -> Fault {
        self.offset.get_or_insert(offset);
        self
    }

    /// The error that this is for the file at `path`.
    pub(crate) fn of_file(self, path: &Path) -> Error {
        Error::Fault { path: path.to_owned(), fault: Box::new(self) }
    }

    /// The fault that an I/O error carries, or the I/O error itself.
    pub(crate) fn of(error: std::io::Error) -> Result<Fault, std::io::Error> {
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
        Fault::of(error).unwrap_or_else(|e| match e.kind() {
            std::io::ErrorKind::UnexpectedEof => Fault::new(Code::Eof, "the file ends too early"),
            _ => Fault::new(Code::Read, e.to_string()),
        })
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
            /// The short name, e.g. `zip-overlap`.
            pub fn as_str(self) -> &'static str {
                match self { $(Code::$name => $text,)* }
            }
        }
    };
}

codes! {
    Format = "format", "None of the formats that are read.";
    Read = "read", "The operating system failed to read.";
    Eof = "eof", "The data ends too early.";
    Trailing = "trailing-data", "Data follows where the format ends.";
    Empty = "no-tensors", "Nothing in the file is a tensor.";
    Limit = "limit", "More than the reader's limits allow.";
    UnsafeGlobal = "unsafe-global", "A pickle names a function that no checkpoint needs.";
    NotTorch = "not-a-torch-file", "A pickle of another program.";
    Opcode = "opcode", "A pickle instruction that is unknown or has no use in a checkpoint.";
    OpcodeCount = "opcode-count", "More pickle instructions than a checkpoint needs.";
    Protocol = "protocol", "An unknown pickle protocol.";
    Frame = "frame", "A pickle frame that contradicts its contents.";
    Stack = "stack", "A pickle instruction lacks its operands.";
    Memo = "memo-missing", "A pickle fetches what it never stored.";
    Type = "type", "A value has a type that cannot stand where it does.";
    Arity = "arity", "A key without a value.";
    Args = "args", "A call with arguments that its function does not take.";
    Integer = "integer", "A number that is malformed or too large.";
    Length = "length", "A length beyond the data.";
    Line = "line-length", "A text line beyond the limit.";
    Text = "text", "Text that is not UTF-8.";
    Depth = "depth", "Nesting beyond the limit.";
    Cycle = "cycle", "A value that contains itself.";
    Expansion = "expansion", "Values that share parts to become huge.";
    Persid = "persid", "A persistent id of an unknown form.";
    Name = "name", "A tensor name that is empty, too long or not printable.";
    DuplicateName = "duplicate-name", "Two tensors of one name.";
    Dtype = "dtype", "An unknown element type.";
    Unsupported = "unsupported", "A kind of tensor that is not read: quantised, sparse, without data.";
    Bounds = "bounds", "A tensor outside its storage.";
    TensorBytes = "tensor-bytes", "Tensors far larger than the file.";
    StorageSize = "storage-size", "A storage whose size is not the one declared.";
    StorageMissing = "storage-missing", "A storage that the file lacks.";
    StorageConflict = "storage-conflict", "A storage declared with two sizes.";
    StorageKeys = "storage-keys", "A list of storages that differs from those in use.";
    Crc = "crc", "Bytes that differ from their checksum.";
    ZipPrefix = "zip-prefix", "Bytes before a zip archive.";
    ZipTrailing = "zip-trailing", "Bytes after a zip archive.";
    ZipBounds = "zip-bounds", "A zip entry or directory outside the file.";
    ZipMismatch = "zip-mismatch", "A zip entry that differs from its directory.";
    ZipDuplicate = "zip-duplicate", "Two zip entries of one name.";
    ZipOverlap = "zip-overlap", "Two zip entries on the same bytes.";
    ZipEncrypted = "zip-encrypted", "An encrypted zip entry.";
    ZipFlags = "zip-flags", "Zip features that are not read.";
    ZipMethod = "zip-method", "A zip compression that is not read.";
    ZipRatio = "zip-ratio", "A zip entry compressed beyond belief.";
    ZipEntries = "zip-entries", "Too many zip entries.";
    ZipLayout = "zip-layout", "A zip archive without exactly one checkpoint.";
    ByteOrder = "byteorder", "An unknown byte order.";
    Version = "version", "A format version that is not known.";
    TorchScriptV1 = "torchscript-v1", "A TorchScript archive of PyTorch 1.0.";
    TarHeader = "tar-header", "A malformed tar header.";
    TarLink = "tar-link", "A tar member that is no regular file.";
    TarSize = "tar-size", "A tar member with two sizes.";
    TarLayout = "tar-layout", "A tar archive without the members of a checkpoint.";
    Count = "count", "A count beyond the data.";
    Safetensors = "safetensors", "A malformed safetensors file.";
    Protobuf = "protobuf", "Malformed protobuf in an ONNX model.";
    Graph = "graph", "An ONNX graph with a node that no network of the zoo has, or with a broken link.";
    TensorSize = "tensor-size", "A tensor whose bytes are not as many as its shape needs.";
    Ambiguous = "ambiguous", "A tensor whose elements are given twice.";
    ExternalPath = "external-path", "An external file outside the model's folder.";
    ExternalBounds = "external-bounds", "A tensor outside its external file.";
    ExternalKey = "external-key", "An external file described twice.";
    NpyHeader = "npy-header", "A malformed header of a numpy array.";
    Shard = "shard", "Shards that differ from their index.";
    ShardPath = "shard-path", "An index that names a file elsewhere.";
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
