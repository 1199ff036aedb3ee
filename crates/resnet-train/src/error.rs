//! Errors of this crate.

use std::path::PathBuf;

/// A result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error with the file or setting concerned, what was found and what was expected.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An error of the model library.
    #[error(transparent)]
    Model(#[from] resnet_model::Error),
    /// An image that cannot be decoded or preprocessed.
    #[error(transparent)]
    Image(#[from] resnet_image::Error),
    /// A failed read or write.
    #[error("`{}`: {source}", path.display())]
    Io {
        /// File or folder.
        path: PathBuf,
        /// Cause.
        #[source]
        source: std::io::Error,
    },
    /// A configuration that cannot be parsed.
    #[error("configuration: {0}")]
    Syntax(String),
    /// A setting with an invalid value.
    #[error("setting `{name}` is {found}, expected {expected}")]
    Setting {
        /// Path of the setting, e.g. `schedule.lr`.
        name: &'static str,
        /// Value.
        found: String,
        /// Valid values.
        expected: &'static str,
    },
    /// A dataset that cannot be used.
    #[error("dataset `{}`: {why}", path.display())]
    Dataset {
        /// Folder or CSV file.
        path: PathBuf,
        /// Cause.
        why: String,
    },
    /// Too many images that cannot be read.
    #[error(
        "{found} images cannot be read, more than the {limit} allowed (`max_unreadable`); the last: {last}"
    )]
    Unreadable {
        /// Number of unreadable images.
        found: usize,
        /// Number that is allowed.
        limit: usize,
        /// The last one, and why.
        last: String,
    },
    /// A loss or gradient that is NaN or infinite.
    #[error(
        "training diverged at step {step}: the {what} is {value} at a learning rate of {lr:e}; \
         the last good state is kept; try a lower learning rate"
    )]
    Diverged {
        /// Step, from 0.
        step: u64,
        /// Quantity that was not finite.
        what: &'static str,
        /// Its value.
        value: f64,
        /// Learning rate.
        lr: f64,
    },
    /// A run in the folder with other settings.
    #[error("the run in `{}` has other settings: {}", path.display(), differences.join("; "))]
    RunMismatch {
        /// Folder.
        path: PathBuf,
        /// Differences, each `name: A in the run, B now`.
        differences: Vec<String>,
    },
    /// A run in the folder of a new one.
    #[error("`{}` already contains a run; resume it with --resume or choose another folder with --out", .0.display())]
    Exists(PathBuf),
    /// A folder without a state to resume from.
    #[error("`{}` contains no state to resume from{}", path.display(), list(skipped))]
    NoState {
        /// Folder.
        path: PathBuf,
        /// States that were skipped, and why.
        skipped: Vec<String>,
    },
    /// A folder that another process is training in.
    #[error("another process is training in `{}`", .0.display())]
    Locked(PathBuf),
    /// Inconsistent environment variables of a launcher.
    #[error(
        "environment variable `{name}` is `{found}`, expected {expected}; unset it to train in a single process"
    )]
    Launch {
        /// Variable.
        name: &'static str,
        /// Value.
        found: String,
        /// Valid values.
        expected: String,
    },
    /// An error that another rank reports.
    #[error("another rank failed and reports the error")]
    PeerFailed,
    /// Ranks with different settings.
    #[error("rank {rank} has other settings than rank 0: {}", differences.join("; "))]
    SettingsMismatch {
        /// Rank.
        rank: usize,
        /// Differences, each `name: A in the run, B now`.
        differences: Vec<String>,
    },
}

impl Error {
    /// Returns a converter for a failed read or write of `path`.
    pub(crate) fn io(path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Error + '_ {
        move |source| Error::Io { path: path.to_owned(), source }
    }
}

/// Returns an [`Error::Setting`] unless `valid`.
pub(crate) fn require(
    name: &'static str,
    found: impl ToString,
    expected: &'static str,
    valid: bool,
) -> Result<()> {
    if valid { Ok(()) } else { Err(Error::Setting { name, found: found.to_string(), expected }) }
}

impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        Error::Model(error.into())
    }
}

fn list(skipped: &[String]) -> String {
    match skipped {
        [] => String::new(),
        skipped => format!(" ({})", skipped.join("; ")),
    }
}
