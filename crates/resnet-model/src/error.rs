//! What can go wrong in this crate.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::text::{escape, some_of, suggestions};

/// A result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, with the file, tensor or field it is about, what was found and what was expected.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Something went wrong with the file at `path`.
    #[error("`{}`: {error}", path.display())]
    At {
        /// The file.
        path: PathBuf,
        /// The error.
        error: Box<Error>,
    },
    /// The operating system refused to read or write.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// The bytes are no valid safetensors file.
    #[error("not a valid safetensors file: {0}")]
    Safetensors(String),
    /// A safetensors file without our metadata: it does not say what it is.
    #[error("the safetensors file does not describe itself (no `resnet` entry in its metadata)")]
    NoMeta,
    /// The metadata of a checkpoint is not what this version can read.
    #[error("the checkpoint's metadata: {0}")]
    Meta(String),
    /// An option outside its valid range.
    #[error("invalid {option}: expected {expected}, found {found}")]
    InvalidOption {
        /// The option, e.g. `norm_eps`.
        option: &'static str,
        /// The value.
        found: String,
        /// The valid values.
        expected: String,
    },
    /// An option that the family of the architecture does not have.
    #[error("{family} has no {option} option")]
    NoSuchOption {
        /// The family, e.g. `VGG`.
        family: &'static str,
        /// The option.
        option: &'static str,
    },
    /// Two properties of an architecture that exclude each other.
    #[error("{feature} cannot be combined with {other}")]
    UnsupportedCombination {
        /// The first property.
        feature: &'static str,
        /// The second property.
        other: &'static str,
    },
    /// Channels that do not divide into equal parts.
    #[error("the {channels} channels of {layer} are not divisible by {divisor}")]
    Indivisible {
        /// The layer or stage.
        layer: String,
        /// Number of channels.
        channels: usize,
        /// Number of groups, or channels per part.
        divisor: usize,
    },
    /// A network without a classification head, where logits are needed.
    #[error("the network has no classification head: it outputs features, not class scores")]
    NoHead,
    /// An option for layers that the network does not have.
    #[error("{option} is {value}, but the network has no {layers}")]
    NotApplicable {
        /// The option, e.g. `drop_path`.
        option: &'static str,
        /// Its value.
        value: f64,
        /// The layers that it applies to.
        layers: &'static str,
    },
    /// Synchronized batch norm on a device or with a dtype that does not support it.
    #[error("synchronized batch norm is supported in f32 on the CPU only")]
    UnsupportedSyncBatchNorm,
    /// An inconsistency in a compiled engine: a bug in this crate.
    #[error("internal error in the engine at `{layer}`: {problem}; please report it")]
    Engine {
        /// The operation.
        layer: String,
        /// The inconsistency.
        problem: &'static str,
    },
    /// A model name that the zoo does not know.
    #[error("unknown model `{name}`{}", suggestions(nearest))]
    UnknownModel {
        /// The name that was asked for.
        name: String,
        /// Known names that look like it, best first.
        nearest: Vec<&'static str>,
    },
    /// The tensors of a checkpoint are not those of its architecture.
    #[error("{0}")]
    Mismatch(Mismatch),
    /// A tensor has another shape than the one needed.
    #[error("tensor `{name}` has shape {found:?}, expected {expected:?}")]
    Shape {
        /// The tensor.
        name: String,
        /// Its shape.
        found: Vec<usize>,
        /// The shape needed.
        expected: Vec<usize>,
    },
    /// A tensor is missing.
    #[error("tensor `{0}` is missing")]
    Missing(String),
    /// A tensor's element type cannot be used where it stands.
    #[error("tensor `{name}` has element type {dtype}, which cannot be used as {wanted}")]
    Dtype {
        /// The tensor.
        name: String,
        /// Its element type.
        dtype: String,
        /// What was needed.
        wanted: &'static str,
    },
    /// An input that the network cannot take.
    #[error("input has shape {found:?}, expected {expected}")]
    Input {
        /// The shape given.
        found: Vec<usize>,
        /// The shape needed, in words.
        expected: String,
    },
    /// An input so small that a layer would have no output.
    #[error("input of {height}×{width} pixels is too small: `{layer}` would have no output")]
    TooSmall {
        /// The first layer that cannot be computed.
        layer: String,
        /// Input height in pixels.
        height: usize,
        /// Input width in pixels.
        width: usize,
    },
    /// An input of a size at which two branches of the network differ, as they would in PyTorch.
    #[error(
        "input of {height}×{width} pixels does not suit this network: `{layer}` would be given {shapes:?}; \
         try multiples of 32"
    )]
    Misfit {
        /// The first layer that cannot be computed.
        layer: String,
        /// The shapes of its inputs, without the batch.
        shapes: Vec<Vec<usize>>,
        /// Input height in pixels.
        height: usize,
        /// Input width in pixels.
        width: usize,
    },
    /// A batch norm in training mode with a single value per channel, whose variance is 0.
    #[error("`{name}` is given {found:?}: training needs more than one value per channel")]
    OneValue {
        /// The norm.
        name: String,
        /// The shape of its input.
        found: Vec<usize>,
    },
    /// Other workers of a training cannot be reached.
    #[error("worker {rank} of {count} lost the others: {why}")]
    ProcessGroup {
        /// Which worker says so, counted from 0.
        rank: usize,
        /// How many there are.
        count: usize,
        /// What happened.
        why: String,
    },
    /// A tap that the network does not have.
    #[error("no tap `{name}`; this network has {known}")]
    UnknownTap {
        /// The name that was asked for.
        name: String,
        /// The names that exist.
        known: String,
    },
    /// An image that cannot be decoded or preprocessed, or invalid preprocessing.
    #[error(transparent)]
    Image(#[from] resnet_image::Error),
    /// A checkpoint whose preprocessing returns another number of channels than its network takes.
    #[error("preprocessing returns {preprocess} channels, the network takes {network}")]
    InputChannels {
        /// Channels after preprocessing.
        preprocess: usize,
        /// Input channels of the network.
        network: usize,
    },
    /// A kernel refused its arguments.
    #[error(transparent)]
    Kernel(#[from] resnet_kernels::Error),
    /// candle reported an error.
    #[error(transparent)]
    Candle(candle_core::Error),
    /// The file to be written exists already.
    #[error("`{}` exists already", .0.display())]
    Exists(PathBuf),
}

impl Error {
    /// The same error, told of the file it is about.
    pub fn at(self, path: &Path) -> Error {
        match self {
            Error::At { .. } | Error::Exists(_) => self,
            error => Error::At { path: path.to_owned(), error: Box::new(error) },
        }
    }
}

/// Without candle's stack traces, which it writes into the message when `RUST_BACKTRACE` is set.
impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        match error {
            candle_core::Error::WithBacktrace { inner, .. } => Error::from(*inner),
            candle_core::Error::Wrapped(inner) => Error::Candle(candle_core::Error::Msg(inner.to_string())),
            other => Error::Candle(other),
        }
    }
}

impl From<Mismatch> for Error {
    fn from(m: Mismatch) -> Self {
        Error::Mismatch(m)
    }
}

/// All differences between the tensors that an architecture needs and those that a file holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mismatch {
    /// The architecture, in words.
    pub arch: String,
    /// Names that the architecture has and the file lacks.
    pub missing: Vec<String>,
    /// Names that the file has and the architecture lacks.
    pub unexpected: Vec<String>,
    /// Tensors with another shape than the architecture's.
    pub reshaped: Vec<Reshaped>,
}

/// A tensor whose shape differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reshaped {
    /// The tensor.
    pub name: String,
    /// The file's shape.
    pub found: Vec<usize>,
    /// The architecture's shape.
    pub expected: Vec<usize>,
}

impl Mismatch {
    /// Whether nothing differs.
    pub fn is_empty(&self) -> bool {
        self.missing.is_empty() && self.unexpected.is_empty() && self.reshaped.is_empty()
    }
}

impl std::error::Error for Mismatch {}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the tensors are not those of {}", self.arch)?;
        let mut separator = ": ";
        for (names, what) in [(&self.missing, "missing"), (&self.unexpected, "unexpected")] {
            if !names.is_empty() {
                write!(f, "{separator}{} {what} ({})", plural(names.len(), "tensor"), some_of(names))?;
                separator = ", ";
            }
        }
        if let Some(first) = self.reshaped.first() {
            let others = match self.reshaped.len() - 1 {
                0 => String::new(),
                n => format!(" and {n} more"),
            };
            write!(
                f,
                "{separator}`{}` has shape {:?}, expected {:?}{others}",
                escape(&first.name),
                first.found,
                first.expected
            )?;
        }
        Ok(())
    }
}

fn plural(n: usize, noun: &str) -> String {
    format!("{n} {noun}{}", if n == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mismatch_tells_everything_at_once() {
        let m = Mismatch {
            arch: "resnet50".into(),
            missing: vec!["fc.weight".into(), "fc.bias".into()],
            unexpected: vec!["head\u{1b}[2J".into()],
            reshaped: vec![Reshaped {
                name: "conv1.weight".into(),
                found: vec![64, 1, 7, 7],
                expected: vec![64, 3, 7, 7],
            }],
        };
        assert_eq!(
            m.to_string(),
            "the tensors are not those of resnet50: 2 tensors missing (fc.weight, fc.bias), \
             1 tensor unexpected (head\\u{1b}[2J), `conv1.weight` has shape [64, 1, 7, 7], expected [64, 3, 7, 7]"
        );
    }
}
