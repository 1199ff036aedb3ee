//! Exit statuses.

use std::fmt;
use std::io;
use std::process::ExitCode;

/// The outcome of a command that ran to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Everything succeeded.
    Success,
    /// The answer is negative: files differ, a tolerance is exceeded, no image could be read.
    Failure,
    /// Some images could not be read.
    Partial,
}

impl Outcome {
    /// [`Outcome::Success`] if `success`, else [`Outcome::Failure`].
    pub fn from_success(success: bool) -> Outcome {
        if success { Outcome::Success } else { Outcome::Failure }
    }

    /// The outcome of reading `total` images, `failed` of which could not be read.
    pub fn from_failed(failed: usize, total: usize) -> Outcome {
        match failed {
            0 => Outcome::Success,
            n if n < total => Outcome::Partial,
            _ => Outcome::Failure,
        }
    }
}

impl From<Outcome> for ExitCode {
    fn from(outcome: Outcome) -> ExitCode {
        match outcome {
            Outcome::Success => ExitCode::SUCCESS,
            Outcome::Failure => ExitCode::FAILURE,
            Outcome::Partial => ExitCode::from(3),
        }
    }
}

/// An invalid argument that the definition of the command line cannot detect.
#[derive(Debug)]
pub struct UsageError(pub String);

impl fmt::Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for UsageError {}

/// Returns `true` if the user has to change the arguments: exit status 2.
pub fn is_usage(error: &anyhow::Error) -> bool {
    let unknown_model = |e: &resnet_model::Error| matches!(e, resnet_model::Error::UnknownModel { .. });
    // A transparent error does not have the error that it contains in its chain.
    let weights = |e: &resnet_weights::Error| match e {
        resnet_weights::Error::Model(e) => unknown_model(e),
        resnet_weights::Error::Arch { .. } | resnet_weights::Error::Unspecified => true,
        _ => false,
    };
    error.chain().any(|e| {
        e.is::<UsageError>()
            || e.downcast_ref().is_some_and(unknown_model)
            || e.downcast_ref().is_some_and(weights)
    })
}

/// Returns `true` if the reader of standard output has closed the pipe (`| head`), which is not a failure.
pub fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let kind = |e: &(dyn std::error::Error + 'static)| {
        let json = |e: &serde_json::Error| e.io_error_kind();
        let csv = |e: &csv::Error| match e.kind() {
            csv::ErrorKind::Io(e) => Some(e.kind()),
            _ => None,
        };
        (e.downcast_ref().map(io::Error::kind))
            .or_else(|| e.downcast_ref().and_then(json))
            .or_else(|| e.downcast_ref().and_then(csv))
    };
    error.chain().any(|e| kind(e) == Some(io::ErrorKind::BrokenPipe))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broken_pipes_are_found_in_errors_of_every_writer() {
        let pipe = || io::Error::from(io::ErrorKind::BrokenPipe);
        assert!(is_broken_pipe(&pipe().into()));
        assert!(is_broken_pipe(&serde_json::Error::io(pipe()).into()));
        assert!(is_broken_pipe(&csv::Error::from(pipe()).into()));
        assert!(is_broken_pipe(&anyhow::Error::from(pipe()).context("writing")));
        assert!(!is_broken_pipe(&io::Error::from(io::ErrorKind::NotFound).into()));
    }

    #[test]
    fn unknown_names_are_usage_errors() {
        assert!(is_usage(&resnet_model::zoo::arch("resnet51").unwrap_err().into()));
        assert!(is_usage(&resnet_weights::arch_name("resnet51").unwrap_err().into()));
        assert!(is_usage(&UsageError("--svg x.png".into()).into()));
        assert!(!is_usage(&anyhow::anyhow!("no such file")));
    }

    #[test]
    fn failed_images_decide_the_outcome() {
        let outcomes = [(0, 2), (1, 2), (2, 2)].map(|(failed, total)| Outcome::from_failed(failed, total));
        assert_eq!(outcomes, [Outcome::Success, Outcome::Partial, Outcome::Failure]);
    }
}
