//! `convert`: `resnet-convert` with Hub ids, folders and the configuration files next to a checkpoint.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use resnet_convert::IdentifiedBy;
pub use resnet_convert::cli::Args;
use resnet_convert::cli::{Located, execute};
use resnet_weights::{Options, Provenance};

use crate::weights::{Access, locate};

/// Runs the command.
pub fn run(args: &Args, out: &mut dyn Write) -> ExitCode {
    execute(args, &find, out, &mut io::stderr())
}

/// Finds the checkpoint of an input, and preprocessing and labels in the configuration files next to it.
fn find(input: &Path, arch: Option<&str>) -> anyhow::Result<Located> {
    let Some(name) = input.to_str() else {
        return Ok(Located { path: input.to_owned(), ..Located::default() });
    };
    let path = if input.is_file() { input.to_owned() } else { locate(name, false)? };
    let output = (path != input).then(|| default_output(name));
    let located = Located { path, output, ..Located::default() };
    let options = Options { weights: Some(name.to_owned()), ..Options::default() };
    let access = Access { arch: arch.map(str::to_owned), ..Access::default() };
    match access.open_with_report(options) {
        Ok((checkpoint, report)) => {
            let meta = checkpoint.meta().clone();
            // What the converter finds by itself, it also reports with the evidence.
            let is_known = |from| !matches!(from, Provenance::Default | Provenance::Metadata);
            Ok(Located {
                arch: Some(meta.arch).filter(|_| report.file.identified.by == IdentifiedBy::Specified),
                preprocess: Some(meta.preprocess).filter(|_| is_known(report.preprocess_from)),
                labels: Some(meta.labels).filter(|_| is_known(report.labels_from)),
                ..located
            })
        }
        // The conversion reports it, or succeeds with its own flags.
        Err(resnet_weights::Error::Convert(_)) => Ok(located),
        Err(error) => Err(error.into()),
    }
}

/// Returns the output file of a folder or Hub id: its name in the current folder.
fn default_output(name: &str) -> PathBuf {
    let name = name.split_once('@').filter(|_| !Path::new(name).exists()).map_or(name, |(name, _)| name);
    let last = name.trim_end_matches('/').rsplit('/').next().unwrap_or(name);
    PathBuf::from(format!("{last}.safetensors"))
}
