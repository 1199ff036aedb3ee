//! What can go wrong in this crate.

use std::path::PathBuf;

/// A result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, with the file or setting it is about, what was found and what was expected.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The model library refused.
    #[error(transparent)]
    Model(#[from] resnet_model::Error),
    /// An image cannot be decoded or preprocessed.
    #[error(transparent)]
    Image(#[from] resnet_image::Error),
    /// The operating system refused to read or write.
    #[error("`{}`: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A configuration that cannot be read.
    #[error("configuration: {0}")]
    Syntax(String),
    /// A setting that makes no sense.
    #[error("setting `{name}` is {found}, expected {expected}")]
    Setting {
        /// The setting's path, e.g. `schedule.rate`.
        name: &'static str,
        /// Its value.
        found: String,
        /// What it may be.
        expected: &'static str,
    },
    /// A dataset that cannot be trained on.
    #[error("dataset `{}`: {why}", path.display())]
    Dataset {
        /// The folder or list.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// More images than allowed cannot be read.
    #[error("{found} images cannot be read, more than the {limit} allowed; the last: {last}")]
    Unreadable {
        /// How many.
        found: usize,
        /// How many are allowed.
        limit: usize,
        /// The last one and why.
        last: String,
    },
    /// Loss or gradients are no numbers any more.
    #[error(
        "training diverged at step {step}: the {what} is {value} at a learning rate of {rate:e}; \
         the last good state is kept"
    )]
    Diverged {
        /// The step, counted from 0.
        step: u64,
        /// What was not finite.
        what: &'static str,
        /// Its value.
        value: f64,
        /// The learning rate.
        rate: f64,
    },
    /// The folder holds a run with other settings.
    #[error("the run in `{}` has other settings: {}", path.display(), differences.join("; "))]
    OtherRun {
        /// The folder.
        path: PathBuf,
        /// Each difference: `name: there A, here B`.
        differences: Vec<String>,
    },
    /// The folder holds a run and none was to be resumed.
    #[error("`{}` holds a run already; resume it or choose another folder", .0.display())]
    Exists(PathBuf),
    /// No state to resume from.
    #[error("`{}` holds no state to resume from{}", path.display(), list(skipped))]
    NoState {
        /// The folder.
        path: PathBuf,
        /// States that were skipped, and why.
        skipped: Vec<String>,
    },
    /// Another process trains in the folder.
    #[error("another process trains in `{}`", .0.display())]
    Locked(PathBuf),
    /// The variables of a launcher make no sense.
    #[error("variable `{name}` is `{found}`, expected {expected}; unset it to train in one process")]
    Launch {
        /// The variable.
        name: &'static str,
        /// Its value.
        found: String,
        /// What it may be.
        expected: String,
    },
    /// Another worker of a training cannot go on, and says why itself.
    #[error("another worker cannot go on and says why")]
    OtherWorker,
    /// The workers were not given the same.
    #[error("worker {rank} has other settings: {}", differences.join("; "))]
    OtherSettings {
        /// Which worker, from 0.
        rank: usize,
        /// Each difference to the first worker: `name: there A, here B`.
        differences: Vec<String>,
    },
    /// The plot cannot be drawn.
    #[error("plot: {0}")]
    Plot(String),
}

impl Error {
    /// A refused read or write of `path`.
    pub(crate) fn io(path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Error + '_ {
        move |source| Error::Io { path: path.to_owned(), source }
    }
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
