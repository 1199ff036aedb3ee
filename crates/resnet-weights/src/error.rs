//! The error of this crate.

use std::path::PathBuf;

use resnet_model::escape;

/// A result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The reason why weights could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The Hub or its cache.
    #[error(transparent)]
    Hub(#[from] resnet_hub::Error),
    /// The checkpoint file.
    #[error(transparent)]
    Convert(Box<resnet_convert::Error>),
    /// The architecture or the preprocessing.
    #[error(transparent)]
    Model(#[from] resnet_model::Error),
    /// The manifest in this crate is invalid.
    #[error("manifest.toml: {0}")]
    Manifest(#[from] toml::de::Error),
    /// A file cannot be read.
    #[error("`{}`: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: std::io::Error,
    },
    /// A configuration file or an override is not valid JSON.
    #[error("`{}`: {}", path.display(), escape(&source.to_string()))]
    Json {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: serde_json::Error,
    },
    /// A configuration file has an invalid preprocessing.
    #[error("`{}`: {source}", path.display())]
    Preprocess {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: Box<resnet_image::Error>,
    },
    /// A configuration key that changes the network and is not supported.
    #[error("`{}`: unsupported `{key}`: {}; --arch overrides it", path.display(), escape(found))]
    ConfigKey {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// Its value.
        found: String,
    },
    /// A file of labels without labels.
    #[error("`{}`: expected names of classes: config.json, one per line, or a JSON list or object", path.display())]
    Labels {
        /// The file.
        path: PathBuf,
    },
    /// An invalid architecture override.
    #[error("invalid architecture `{}`: {}", escape(text), escape(reason))]
    Arch {
        /// The override.
        text: String,
        /// The reason.
        reason: String,
    },
    /// No file, published weights or Hub id has this name.
    #[error("`{}`: no such file{}", escape(weights), hint(weights))]
    NotFound {
        /// The name.
        weights: String,
    },
    /// A folder or repository without weights.
    #[error("{place}: no weights; expected {expected}")]
    NoWeights {
        /// The folder or repository.
        place: String,
        /// The names of the files that were looked for.
        expected: String,
    },
    /// No weights are published for an architecture.
    #[error("no published weights of `{}` are known; --weights selects a file or a Hub id", escape(model))]
    Unpublished {
        /// The name of the model.
        model: String,
    },
    /// The weights have another architecture than the model.
    #[error("`{}` contains {found}, but the model is {expected}{difference}", escape(weights))]
    Mismatch {
        /// The weights.
        weights: String,
        /// Their architecture.
        found: String,
        /// The architecture of the model.
        expected: String,
        /// The first tensor that differs.
        difference: String,
    },
    /// Neither a model nor weights are specified.
    #[error("no weights are specified; expected a model (--depth, --model) or --weights")]
    Unspecified,
}

impl From<resnet_convert::Error> for Error {
    fn from(error: resnet_convert::Error) -> Self {
        Error::Convert(Box::new(error))
    }
}

fn hint(weights: &str) -> &'static str {
    let segments = weights.split('/').filter(|s| !s.is_empty()).count();
    if weights.contains('/') && segments != 2 { "; a Hub id has the form owner/name" } else { "" }
}
