//! `predict`: classify images.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc;

use anyhow::Context;
use clap::ValueEnum;
use indicatif::ProgressBar;
use rayon::prelude::*;
use resnet_image::{Preprocess, decode};
use resnet_model::Classifier;
use resnet_model::classifier::Score;
use resnet_model::engine::EngineOptions;
use resnet_model::file::{Existing, write_atomically};

use crate::device::Choice;
use crate::exit::Outcome;
use crate::images;
use crate::output::{Format, Writer, describe};
use crate::terminal::{self, Verbosity};
use crate::weights::{Access, Overrides, Selection, Subjects};

/// Classify images
///
/// Predictions are written to standard output, messages to standard error. Folders are searched recursively, without
/// hidden files. Images that cannot be read are reported and skipped: the exit status is then 3, or 1 if all failed.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    selection: Selection,
    #[command(flatten)]
    overrides: Overrides,
    #[command(flatten)]
    access: Access,
    /// Device to compute on: auto, cpu, cuda, cuda:INDEX or metal
    #[arg(long, default_value_t)]
    device: Choice,
    /// Number of classes to print per image, best first
    #[arg(long, default_value_t = 5, value_name = "K", value_parser = positive)]
    top_k: usize,
    /// Omit classes with a score below this
    #[arg(long, value_name = "SCORE", allow_negative_numbers = true, value_parser = number::<f32>)]
    min_score: Option<f32>,
    /// Kind of score
    #[arg(long, value_enum, default_value_t = OutputType::Prob)]
    output_type: OutputType,
    /// Output format
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    /// Write to this file instead of standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Replace the file of --output if it exists
    #[arg(short, long, requires = "output")]
    force: bool,
    /// Number of images per batch
    #[arg(long, default_value_t = 8, value_name = "N", value_parser = positive)]
    batch_size: usize,
    /// Number of CPU threads; default: all cores
    #[arg(long, value_name = "N", value_parser = positive)]
    threads: Option<usize>,
    /// Image files, folders, patterns ('*.jpg'), lists of these (@list.txt), or - for standard input
    #[arg(required = true, value_name = "IMAGE|FOLDER|@LIST|-")]
    images: Vec<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum OutputType {
    /// Probabilities
    Prob,
    /// Outputs of the network before softmax
    Logit,
}

/// Parses a count from 1 to 65536, more than any machine needs.
pub(super) fn positive(s: &str) -> Result<usize, String> {
    match s.parse() {
        Ok(n @ 1..=65536) => Ok(n),
        _ => Err("expected a whole number from 1 to 65536".into()),
    }
}

/// Parses a finite number.
pub(super) fn number<T: std::str::FromStr + Into<f64> + Copy>(s: &str) -> Result<T, String> {
    s.parse().ok().filter(|&n: &T| n.into().is_finite()).ok_or_else(|| "expected a number".to_owned())
}

/// An image's name, and its network input or the reason why it could not be read.
type Prepared = (String, anyhow::Result<Vec<f32>>);

/// Runs the command.
pub fn run(args: Args, out: &mut dyn Write) -> anyhow::Result<Outcome> {
    let Some(path) = &args.output else { return predict(&args, out) };
    // Before the work, not after it.
    if !args.force && path.exists() {
        return Err(resnet_model::Error::Exists(path.clone()).into());
    }
    let mut result = Ok(Outcome::Success);
    let written = write_atomically(path, Existing::replace_if(args.force), |file| {
        result = predict(&args, file);
        match result {
            Ok(_) => Ok(()),
            // Stops the writing; the error that is reported is `result`.
            Err(_) => Err(io::Error::other("no predictions").into()),
        }
    });
    let outcome = result?;
    written?;
    Ok(outcome)
}

fn predict(args: &Args, out: &mut dyn Write) -> anyhow::Result<Outcome> {
    let found = images::find(&args.images)?;
    found.warnings.iter().for_each(terminal::warn);
    let images = found.images;
    let device = args.device.open()?;
    let options = args.overrides.apply(args.selection.options()?);
    let checkpoint = args.access.open(options, Subjects::All)?;
    let batch = args.batch_size.min(images.len());
    let mut options = EngineOptions { batch, ..EngineOptions::default() };
    options.threads = args.threads.unwrap_or(options.threads);
    let threads = options.threads;
    let classifier = Classifier::with_options(&checkpoint, &device, options)?;
    let preprocess = classifier.preprocess();
    terminal::message(
        Verbosity::Verbose,
        format_args!(
            "device: {}\narchitecture: {}\npreprocessing: {}",
            crate::device::describe(&device, threads),
            checkpoint.meta().arch,
            serde_json::to_string(preprocess)?
        ),
    );
    let score = match args.output_type {
        OutputType::Prob => Score::Probability,
        OutputType::Logit => Score::Logit,
    };
    let bar = match images.len() > args.batch_size {
        true => terminal::progress(images.len() as u64, terminal::COUNT),
        false => ProgressBar::hidden(),
    };
    let mut writer = Writer::new(out, args.format)?;
    let mut failed = 0;
    // Not `Classifier::classify`: it decodes nothing, fails for the whole batch if one image fails, and returns probabilities.
    std::thread::scope(|scope| {
        // The next batch is decoded while this one is computed.
        let (sender, batches) = mpsc::sync_channel::<Vec<Prepared>>(1);
        let (images, batch_size) = (&images, args.batch_size);
        scope.spawn(move || {
            for batch in images.chunks(batch_size) {
                let prepared = batch.par_iter().map(|path| prepare(path, preprocess)).collect();
                if sender.send(prepared).is_err() {
                    break;
                }
            }
        });
        for batch in batches {
            let (mut names, mut inputs) = (Vec::new(), Vec::new());
            for (name, input) in batch {
                bar.inc(1);
                match input {
                    Ok(input) => {
                        names.push(name);
                        inputs.push(input);
                    }
                    Err(error) => {
                        failed += 1;
                        bar.suspend(|| writeln!(io::stderr(), "error: {}", describe(&error)))?;
                    }
                }
            }
            for (name, logits) in names.iter().zip(classifier.logits(&inputs)?) {
                let mut predictions = classifier.top_k(&logits, args.top_k, score);
                predictions.retain(|p| args.min_score.is_none_or(|min| p.score >= min));
                writer.image(name, &predictions)?;
            }
        }
        anyhow::Ok(())
    })?;
    bar.finish_and_clear();
    writer.finish()?;
    if failed > 0 && images.len() > 1 {
        writeln!(io::stderr(), "{failed} of {} images failed", images.len())?;
    }
    Ok(Outcome::from_failed(failed, images.len()))
}

fn prepare(path: &Path, preprocess: &Preprocess) -> Prepared {
    let name = path.display().to_string();
    let input = || -> anyhow::Result<Vec<f32>> {
        let image = match name.as_str() {
            "-" => decode::decode(&read_stdin()?).context("standard input")?,
            _ => decode::open(path)?,
        };
        preprocess.apply(&image).with_context(|| format!("`{name}`"))
    };
    (name.clone(), input())
}

fn read_stdin() -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    io::stdin().lock().take(decode::MAX_FILE + 1).read_to_end(&mut bytes).context("standard input")?;
    Ok(bytes)
}
