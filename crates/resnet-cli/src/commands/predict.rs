//! `predict`: name what images show.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc;

use anyhow::{Context, bail};
use clap::ValueEnum;
use indicatif::ProgressBar;
use rayon::prelude::*;
use resnet_image::{Preprocess, decode};
use resnet_model::Classifier;
use resnet_model::classifier::Score;
use resnet_model::engine::EngineOptions;

use crate::device::Choice;
use crate::output::{Format, Writer, describe};
use crate::terminal;
use crate::weights::Selection;

/// Name what images show.
///
/// Predictions go to standard output, everything else to standard error. An image that cannot be read is reported and
/// does not stop the others; the exit code is then 1.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    selection: Selection,
    /// Where to compute: auto, cpu, cuda, cuda:NUMBER, metal
    #[arg(long, default_value_t)]
    device: Choice,
    /// Classes to print per image, best first
    #[arg(long, default_value_t = 5, value_name = "K", value_parser = positive)]
    top_k: usize,
    /// What a score is
    #[arg(long, value_enum, default_value_t = OutputType::Prob)]
    output_type: OutputType,
    /// How predictions are written
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    /// Images computed at once
    #[arg(long, default_value_t = 8, value_name = "N", value_parser = positive)]
    batch_size: usize,
    /// Threads that compute on the CPU; default: all cores
    #[arg(long, value_name = "N", value_parser = positive)]
    threads: Option<usize>,
    /// Image files, folders of them, or `-` for one image on standard input
    #[arg(required = true, value_name = "IMAGE|FOLDER|-")]
    images: Vec<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum OutputType {
    /// Probabilities
    Prob,
    /// What the network gives, before softmax
    Logit,
}

/// A number from 1 to a bound that no machine reaches.
pub(super) fn positive(s: &str) -> Result<usize, String> {
    match s.parse() {
        Ok(n @ 1..=65536) => Ok(n),
        _ => Err("expected a number from 1 to 65536".into()),
    }
}

/// An image's name and its network input, or why there is none.
type Prepared = (String, anyhow::Result<Vec<f32>>);

/// Runs the command; `false` if an image failed.
pub fn run(args: Args, out: &mut dyn Write) -> anyhow::Result<bool> {
    let images = find_images(&args.images)?;
    let device = args.device.open()?;
    let checkpoint = args.selection.open()?;
    let batch = args.batch_size.min(images.len());
    let mut options = EngineOptions { batch, ..EngineOptions::default() };
    options.threads = args.threads.unwrap_or(options.threads);
    let classifier = Classifier::with_options(&checkpoint, &device, options)?;
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
    std::thread::scope(|scope| {
        // The next batch is decoded while this one is computed.
        let (sender, batches) = mpsc::sync_channel::<Vec<Prepared>>(1);
        let preprocess = classifier.preprocess();
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
                writer.image(name, &classifier.top_k(&logits, args.top_k, score))?;
            }
        }
        anyhow::Ok(())
    })?;
    bar.finish_and_clear();
    writer.finish()?;
    if failed > 0 && images.len() > 1 {
        writeln!(io::stderr(), "{failed} of {} images failed", images.len())?;
    }
    Ok(failed == 0)
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

/// The files that the arguments name: folders are searched, in the order of names.
fn find_images(arguments: &[PathBuf]) -> anyhow::Result<Vec<PathBuf>> {
    let mut images = Vec::new();
    for argument in arguments {
        if argument.is_dir() {
            let before = images.len();
            search(argument, &mut images, 0)?;
            if images.len() == before {
                bail!(
                    "`{}`: no image in this folder ({})",
                    argument.display(),
                    decode::EXTENSIONS.join(", ")
                );
            }
        } else {
            images.push(argument.clone());
        }
    }
    Ok(images)
}

fn search(folder: &Path, images: &mut Vec<PathBuf>, depth: usize) -> anyhow::Result<()> {
    // A link back to a parent must not be followed for ever.
    const MAX_DEPTH: usize = 32;
    let read = || -> io::Result<Vec<PathBuf>> {
        std::fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect()
    };
    let mut paths = read().with_context(|| format!("`{}`", folder.display()))?;
    paths.sort();
    for path in paths {
        if path.is_dir() {
            if depth < MAX_DEPTH {
                search(&path, images, depth + 1)?;
            }
        } else if decode::EXTENSIONS
            .iter()
            .any(|e| path.extension().is_some_and(|x| x.eq_ignore_ascii_case(e)))
        {
            images.push(path);
        }
    }
    Ok(())
}
