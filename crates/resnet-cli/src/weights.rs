//! The flags that select weights.

use std::path::PathBuf;

use anyhow::bail;
use indicatif::ProgressBar;
use resnet_hub::{Config, Event};
use resnet_model::Checkpoint;
use resnet_weights::Options;

use crate::terminal;

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
    /// Preprocessing: a JSON file (preprocessor_config.json, timm's config.json) or the name of published weights
    #[arg(long, value_name = "FILE|NAME")]
    pub preprocess: Option<String>,
    /// Names of the classes: config.json, one per line, or a JSON list or object
    #[arg(long, value_name = "FILE")]
    pub labels: Option<PathBuf>,
    /// Architecture of the weights: a name, name,option=value,... or JSON
    #[arg(long, value_name = "ARCH")]
    pub arch: Option<String>,
    /// Fail instead of assuming architecture, preprocessing or labels
    #[arg(long)]
    pub strict: bool,
    /// Do not print notes about assumptions and downloads
    #[arg(long, short)]
    pub quiet: bool,
    /// Ask the Hub for the current commit of a branch that is cached
    #[arg(long)]
    pub refresh: bool,
}

impl Selection {
    /// Opens the selected checkpoint, downloading it if necessary, and prints what is assumed about it.
    pub fn open(&self) -> anyhow::Result<Checkpoint> {
        let options = Options {
            model: self.model()?,
            weights: self.weights.clone(),
            preprocess: self.preprocess.clone(),
            labels: self.labels.clone(),
            arch: self.arch.clone(),
        };
        let config = Config::from_env(|name| std::env::var(name).ok())?;
        let config = Config { refresh: self.refresh, ..config };
        let mut progress = Progress { bar: None, quiet: self.quiet };
        let (checkpoint, report) =
            resnet_weights::open(&options, &config, &mut |event| progress.show(event))?;
        for assumption in report.assumptions() {
            if self.strict {
                bail!("--strict: {assumption}");
            }
            if !self.quiet {
                note(&assumption);
            }
        }
        Ok(checkpoint)
    }

    /// Returns the name of the architecture that `--depth` or `--model` selects.
    pub fn arch_name(&self) -> anyhow::Result<Option<String>> {
        match self.model()? {
            Some(model) => Ok(Some(resnet_weights::arch_name(&model)?)),
            None => Ok(None),
        }
    }

    fn model(&self) -> anyhow::Result<Option<String>> {
        match (self.depth, &self.model) {
            (Some(depth), _) if ![18, 34, 50, 101, 152].contains(&depth) => {
                bail!("--depth {depth}: expected 18, 34, 50, 101 or 152; --model selects other networks")
            }
            (Some(depth), _) => Ok(Some(format!("resnet{depth}"))),
            (None, model) => Ok(model.clone()),
        }
    }
}

#[allow(clippy::print_stderr)]
fn note(text: &dyn std::fmt::Display) {
    eprintln!("note: {text}");
}

/// The progress of a download: a bar on a terminal, and a line for each event that would otherwise be a silent wait.
struct Progress {
    bar: Option<ProgressBar>,
    quiet: bool,
}

impl Progress {
    fn show(&mut self, event: Event<'_>) {
        match event {
            Event::Start { file, total, resumed } => {
                let style = "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
                let bar = terminal::progress(total, style);
                self.bar = Some(bar.with_position(resumed).with_message(file.to_owned()));
            }
            Event::Progress { bytes } => self.bar.iter().for_each(|bar| bar.set_position(bytes)),
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
            _ if self.quiet => {}
            Some(bar) => bar.suspend(|| note(&text)),
            None => note(&text),
        }
    }
}
