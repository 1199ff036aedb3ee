//! The flags that select weights.

use std::path::PathBuf;

use anyhow::bail;
use indicatif::ProgressBar;
use resnet_hub::{Config, Event};
use resnet_model::Checkpoint;
use resnet_weights::{Options, Report};

use crate::exit::UsageError;
use crate::terminal::{self, Verbosity};

/// The flags of every command that takes a model.
#[derive(Debug, Clone, Default, clap::Args)]
#[group(id = "selection", multiple = true)]
pub struct Selection {
    /// Depth of a ResNet (18, 34, 50, 101, 152) with torchvision's default weights
    #[arg(long, value_name = "N", conflicts_with = "model", required_unless_present_any = ["model", "weights"])]
    pub depth: Option<usize>,
    /// A model (resnet50) or published weights of one (resnet50.a1_in1k)
    #[arg(long, value_name = "NAME")]
    pub model: Option<String>,
    /// A checkpoint file, a folder with one, or a Hub id (owner/name, owner/name@revision)
    #[arg(long, value_name = "FILE|DIR|HUB-ID")]
    pub weights: Option<String>,
}

/// The flags that override preprocessing and labels.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Overrides {
    /// Preprocessing: a JSON file (preprocessor_config.json, timm's config.json) or the name of published weights
    #[arg(long, value_name = "FILE|NAME")]
    pub preprocess: Option<String>,
    /// Names of the classes: config.json, one per line, or a JSON list or object
    #[arg(long, value_name = "FILE")]
    pub labels: Option<PathBuf>,
}

/// The flags of every command that opens weights.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Access {
    /// Architecture of the weights: a name, name,option=value,... or JSON
    #[arg(long, value_name = "ARCH")]
    pub arch: Option<String>,
    /// Fail instead of assuming something that the weights do not state
    #[arg(long)]
    pub strict: bool,
    /// Ask the Hub for the current commit of a branch that is cached
    #[arg(long)]
    pub refresh: bool,
}

/// The part of a report that affects the result of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subjects {
    /// Architecture, preprocessing and labels.
    All,
    /// Architecture and preprocessing.
    Input,
    /// The architecture.
    Arch,
}

impl Selection {
    /// Returns the options that select the weights.
    ///
    /// # Errors
    ///
    /// A [`UsageError`] for a depth without weights.
    pub fn options(&self) -> Result<Options, UsageError> {
        let model = match (self.depth, &self.model) {
            (Some(depth), _) if ![18, 34, 50, 101, 152].contains(&depth) => {
                return Err(UsageError(format!(
                    "--depth {depth}: expected 18, 34, 50, 101 or 152; --model selects other networks"
                )));
            }
            (Some(depth), _) => Some(format!("resnet{depth}")),
            (None, Some(model)) if model.contains('/') => {
                let model = resnet_model::escape(model);
                return Err(UsageError(format!(
                    "--model {model}: expected the name of a model; use --weights {model} for a file or a Hub id"
                )));
            }
            (None, model) => model.clone(),
        };
        Ok(Options { model, weights: self.weights.clone(), ..Options::default() })
    }

    /// Returns the name of the architecture that `--depth` or `--model` selects.
    pub fn arch_name(&self) -> anyhow::Result<Option<String>> {
        match self.options()?.model {
            Some(model) => Ok(Some(resnet_weights::arch_name(&model)?)),
            None => Ok(None),
        }
    }
}

impl Overrides {
    /// Adds the overrides to `options`.
    pub fn apply(&self, options: Options) -> Options {
        Options { preprocess: self.preprocess.clone(), labels: self.labels.clone(), ..options }
    }
}

impl Access {
    /// Opens a checkpoint, downloading it if necessary, and prints what is assumed about `subjects`.
    pub fn open(&self, options: Options, subjects: Subjects) -> anyhow::Result<Checkpoint> {
        let (checkpoint, report) = self.open_with_report(options)?;
        for assumption in report.assumptions() {
            let relevant = match assumption.subject {
                "labels" => subjects == Subjects::All,
                "preprocessing" => subjects != Subjects::Arch,
                _ => true,
            };
            if relevant && self.strict {
                bail!("--strict: {assumption}");
            }
            if relevant {
                note(&assumption);
            }
        }
        Ok(checkpoint)
    }

    /// Opens a checkpoint, downloading it if necessary.
    pub fn open_with_report(&self, mut options: Options) -> resnet_weights::Result<(Checkpoint, Report)> {
        options.arch.clone_from(&self.arch);
        resnet_weights::open(&options, &hub_config(self.refresh)?, &mut progress())
    }
}

/// Returns the settings of the Hub in the environment.
pub(crate) fn hub_config(refresh: bool) -> Result<Config, resnet_hub::Error> {
    Ok(Config { refresh, ..Config::from_env(|name| std::env::var(name).ok())? })
}

/// Returns the path of the checkpoint that `weights` selects, or of the index of its shards, downloading it if necessary.
pub(crate) fn locate(weights: &str, refresh: bool) -> resnet_weights::Result<PathBuf> {
    resnet_weights::locate(weights, &hub_config(refresh)?, &mut progress())
}

/// Returns a function that shows the progress of downloads.
pub(crate) fn progress() -> impl FnMut(Event<'_>) {
    let mut progress = Progress::default();
    move |event| progress.show(event)
}

fn note(text: &dyn std::fmt::Display) {
    terminal::message(Verbosity::Normal, format_args!("note: {text}"));
}

/// The progress of a download: a bar on a terminal, else lines, so that no wait is silent.
#[derive(Default)]
struct Progress {
    bar: Option<ProgressBar>,
    total: u64,
    /// Tenths of `total` that were reported.
    tenths: u64,
}

/// Smaller files are downloaded without lines.
const LARGE: u64 = 4 << 20;

impl Progress {
    fn show(&mut self, event: Event<'_>) {
        match event {
            Event::Start { file, total, resumed } => {
                let style = "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
                let bar = terminal::progress(total, style);
                if bar.is_hidden() && total >= LARGE {
                    let resumed = if resumed > 0 { ", resumed" } else { "" };
                    note(&format_args!("downloading {file} ({:.1} MiB{resumed})", terminal::mib(total)));
                }
                (self.total, self.tenths) = (total, resumed * 10 / total.max(1));
                self.bar = Some(bar.with_position(resumed).with_message(file.to_owned()));
            }
            Event::Progress { bytes } => {
                let Some(bar) = &self.bar else { return };
                bar.set_position(bytes);
                let tenths = bytes * 10 / self.total.max(1);
                if bar.is_hidden() && self.total >= LARGE && tenths > self.tenths {
                    note(&format_args!("downloaded {} %", tenths * 10));
                    self.tenths = tenths;
                }
            }
            Event::Retry { reason, wait, .. } => {
                self.line(&format!("retrying in {:.1} s: {reason}", wait.as_secs_f64()));
            }
            Event::Waiting => self.line("waiting for another process that downloads the same file"),
            Event::Done => self.bar.take().iter().for_each(ProgressBar::finish_and_clear),
            _ => {}
        }
    }

    fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| note(&text)),
            None => note(&text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_selections_are_usage_errors() {
        for (selection, expected) in [
            (Selection { depth: Some(51), ..Selection::default() }, "--depth 51"),
            (
                Selection { model: Some("timm/resnet18.a1_in1k".into()), ..Selection::default() },
                "--weights timm/",
            ),
        ] {
            let error = selection.options().unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
        }
    }
}
