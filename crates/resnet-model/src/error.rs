//! Errors of this crate.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::text::{escape, plural, some_of, suggestions};

/// A result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of this crate. The message includes the cause, which [`source`](std::error::Error::source) therefore does not
/// return.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An error in the file at `path`.
    #[error("`{}`: {error}", path.display())]
    At {
        /// The file.
        path: PathBuf,
        /// The error.
        error: Box<Error>,
    },
    /// A failure to read or write.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// An invalid safetensors file.
    #[error("invalid safetensors file: {0}")]
    Safetensors(String),
    /// A safetensors file without the metadata of this crate.
    #[error(
        "safetensors file without a `resnet` entry in its metadata; convert it with resnet-convert first"
    )]
    NoMeta,
    /// Invalid or unsupported checkpoint metadata.
    #[error("invalid checkpoint metadata: {0}")]
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
        /// The requested name.
        name: String,
        /// Similar names, best first.
        nearest: Vec<&'static str>,
    },
    /// The tensors of a checkpoint do not match its architecture.
    #[error("{0}")]
    Mismatch(Mismatch),
    /// A tensor with an unexpected shape.
    #[error("tensor `{name}` has shape {found:?}, expected {expected:?}")]
    Shape {
        /// The tensor.
        name: String,
        /// Its shape.
        found: Vec<usize>,
        /// The expected shape.
        expected: Vec<usize>,
    },
    /// A missing tensor.
    #[error("missing tensor `{0}`")]
    Missing(String),
    /// A tensor with an unsupported dtype.
    #[error("tensor `{name}` has dtype {dtype}, which cannot be converted to {expected}")]
    Dtype {
        /// The tensor.
        name: String,
        /// Its dtype.
        dtype: String,
        /// The dtype needed.
        expected: &'static str,
    },
    /// A network input with an unexpected shape.
    #[error("input has shape {found:?}, expected {expected}")]
    Input {
        /// The input's shape.
        found: Vec<usize>,
        /// A description of the expected shape.
        expected: String,
    },
    /// An input so small that the output of a layer would be empty.
    #[error("input of {height}×{width} pixels is too small: the output of `{layer}` would be empty")]
    TooSmall {
        /// The first layer that cannot be computed.
        layer: String,
        /// Input height in pixels.
        height: usize,
        /// Input width in pixels.
        width: usize,
    },
    /// An input of a size at which two branches of the network have different shapes, as in PyTorch.
    #[error(
        "unsupported input size of {height}×{width} pixels: the inputs of `{layer}` would have the shapes {shapes:?}; \
         use multiples of 32"
    )]
    Misfit {
        /// The first layer that cannot be computed.
        layer: String,
        /// The shapes of its inputs, without the batch dimension.
        shapes: Vec<Vec<usize>>,
        /// Input height in pixels.
        height: usize,
        /// Input width in pixels.
        width: usize,
    },
    /// A batch norm in training mode with a single value per channel, whose variance is 0.
    #[error(
        "input of `{name}` has shape {found:?}: batch norm needs more than one value per channel in training"
    )]
    OneValue {
        /// The norm.
        name: String,
        /// The shape of its input.
        found: Vec<usize>,
    },
    /// Another rank of a distributed training run cannot be reached.
    #[error("rank {rank} of {world_size}: lost connection to the process group: {why}")]
    ProcessGroup {
        /// Rank that reports the error, from 0.
        rank: usize,
        /// Number of processes.
        world_size: usize,
        /// Cause.
        why: String,
    },
    /// A tap that is not in the network.
    #[error("unknown tap `{name}`; this network has {known}")]
    UnknownTap {
        /// The requested name.
        name: String,
        /// The existing names.
        known: String,
    },
    /// An image that cannot be decoded or preprocessed, or invalid preprocessing.
    #[error(transparent)]
    Image(#[from] resnet_image::Error),
    /// A network output that contains NaN.
    #[error(
        "the network returned NaN for image {image} of the batch; check the weights and the preprocessing"
    )]
    Nan {
        /// The index of the image in its batch.
        image: usize,
    },
    /// A checkpoint whose preprocessing returns another number of channels than its network takes.
    #[error("preprocessing returns {preprocess} channels, the network takes {network}")]
    InputChannels {
        /// Channels after preprocessing.
        preprocess: usize,
        /// Input channels of the network.
        network: usize,
    },
    /// A kernel error.
    #[error(transparent)]
    Kernel(#[from] resnet_kernels::Error),
    /// A candle error.
    #[error(transparent)]
    Candle(candle_core::Error),
    /// The file to be written already exists.
    #[error("`{}` already exists", .0.display())]
    Exists(PathBuf),
}

impl Error {
    /// Adds the path of the file that the error is about.
    pub fn at(self, path: &Path) -> Error {
        match self {
            Error::At { .. } | Error::Exists(_) => self,
            error => Error::At { path: path.to_owned(), error: Box::new(error) },
        }
    }
}

/// Removes candle's stack traces, which are part of the message if `RUST_BACKTRACE` is set.
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

/// All differences between the tensors of an architecture and those of a file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mismatch {
    /// A description of the architecture.
    pub arch: String,
    /// Tensors of the architecture that are not in the file.
    pub missing: Vec<String>,
    /// Tensors in the file that are not in the architecture.
    pub unexpected: Vec<String>,
    /// Tensors with unexpected shapes.
    pub reshaped: Vec<Reshaped>,
}

/// A tensor with an unexpected shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reshaped {
    /// The tensor.
    pub name: String,
    /// Its shape in the file.
    pub found: Vec<usize>,
    /// Its shape in the architecture.
    pub expected: Vec<usize>,
}

impl Mismatch {
    /// Returns `true` if there are no differences.
    pub fn is_empty(&self) -> bool {
        self.missing.is_empty() && self.unexpected.is_empty() && self.reshaped.is_empty()
    }
}

impl std::error::Error for Mismatch {}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the tensors do not match {}", self.arch)?;
        let mut separator = ": ";
        for (names, label) in [(&self.missing, "missing"), (&self.unexpected, "unexpected")] {
            if !names.is_empty() {
                write!(f, "{separator}{} {label} ({})", plural(names.len(), "tensor"), some_of(names))?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mismatch_lists_all_differences() {
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
            "the tensors do not match resnet50: 2 tensors missing (fc.weight, fc.bias), \
             1 tensor unexpected (head\\u{1b}[2J), `conv1.weight` has shape [64, 1, 7, 7], expected [64, 3, 7, 7]"
        );
    }
}
