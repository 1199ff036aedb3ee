//! `train`: training and fine-tuning on a folder of images.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use candle_core::Device;
use indicatif::ProgressBar;
use resnet_image::preprocess::{Channels, Resize};
use resnet_model::parameters::Initialization;
use resnet_model::{Checkpoint, Meta, Parameters, Preprocess, zoo};
use resnet_train::event::Record;
use resnet_train::fit::{Begin, End, Report, Run, fit_together};
use resnet_train::workers::Limits;
use resnet_train::workers::launch::Launch;
use resnet_train::{Config, Dataset, Event};

use crate::device::Choice;
use crate::exit::Outcome;
use crate::terminal::{self, Verbosity};
use crate::weights::Selection;
use crate::workers::{self, Crew};

/// Train or fine-tune a network on a folder of images
///
/// DATA is a folder with one subfolder of images per class, a folder with `train` and `val` subfolders of this form, or a CSV
/// file with the columns path, label and optionally split. The result is RUN/model.safetensors, a checkpoint for `predict`.
///
/// Ctrl-C finishes the current step and saves the state; the same command with --resume continues, and its result is identical
/// to that of an uninterrupted run. The exit status of an interrupted run is 1.
///
/// For distributed training, start it with mpirun (in a build with the feature mpi). Each process takes --batch-size images per
/// step and an equal number of cores.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("start").required(true).multiple(true))]
pub struct Args {
    /// Depth of a ResNet (18, 34, 50, 101, 152) with torchvision's default weights
    #[arg(long, value_name = "N", conflicts_with = "model", group = "start")]
    depth: Option<usize>,
    /// A model (resnet50) or published weights of one (resnet50.a1_in1k)
    #[arg(long, value_name = "NAME", group = "start")]
    model: Option<String>,
    /// A checkpoint file that resnet-convert reads, or a Hub id (owner/name, owner/name@revision)
    #[arg(long, value_name = "FILE|HUB-ID", group = "start")]
    weights: Option<String>,
    /// Architecture to train from random weights
    #[arg(long, value_name = "NAME", group = "start", conflicts_with_all = ["depth", "model", "weights"])]
    scratch: Option<String>,
    /// TOML file with settings; flags take precedence
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Layers to train: all, head, or a layer such as layer4 and those after it
    #[arg(long, value_name = "LAYERS")]
    train: Option<String>,
    /// Number of epochs
    #[arg(long, value_name = "N")]
    epochs: Option<usize>,
    /// Number of images per batch
    #[arg(long, value_name = "N")]
    batch_size: Option<usize>,
    /// Maximum learning rate
    #[arg(long, value_name = "RATE", value_parser = super::predict::number::<f64>)]
    lr: Option<f64>,
    /// Seed of all random numbers
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Height and width of the input in pixels; default: that of the weights, or 224
    #[arg(long, value_name = "PIXELS", value_parser = super::predict::positive)]
    size: Option<usize>,
    /// Convert images to grayscale; pretrained weights are adapted to one input channel
    #[arg(long)]
    gray: bool,
    /// Folder for checkpoints, training curves and metrics
    #[arg(long, value_name = "RUN", default_value = "run")]
    out: PathBuf,
    /// Continue the run in --out
    #[arg(long)]
    resume: bool,
    /// Device to compute on: auto, cpu, cuda, cuda:INDEX or metal
    #[arg(long, default_value_t)]
    device: Choice,
    /// Number of CPU threads; default: all cores, divided among the processes on this machine
    #[arg(long, value_name = "N", value_parser = super::predict::positive)]
    threads: Option<usize>,
    /// Synchronize batch norm statistics across processes
    #[arg(long)]
    sync_bn: bool,
    /// Seconds to wait for another process before the state is saved and training ends
    #[arg(long, value_name = "SECONDS", default_value = "300", value_parser = super::predict::positive)]
    worker_timeout: usize,
    /// Folder or CSV file of labeled images
    #[arg(value_name = "DATA")]
    data: PathBuf,
}

/// Runs the command.
pub fn run(args: Args, out: &mut dyn Write) -> anyhow::Result<Outcome> {
    let launch = workers::launched()?;
    let rank = launch.map_or(0, |launch| launch.part.rank);
    match train(args, launch, out) {
        // A process reports its own errors; rank 0 reports those that all processes see.
        Err(error) if rank > 0 && workers::is_told_by_others(&error) => Ok(Outcome::Failure),
        Err(error) if rank > 0 && !workers::is_lost(&error) => Err(error.context(format!("rank {rank}"))),
        result => result,
    }
}

fn train(args: Args, launch: Option<Launch>, out: &mut dyn Write) -> anyhow::Result<Outcome> {
    if let Some(threads) = args.threads.or_else(|| launch.map(|launch| workers::threads(&launch))) {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().context("--threads")?;
    }
    let config = args.settings()?;
    let stop = Arc::new(AtomicBool::new(false));
    let interrupted = stop.clone();
    ctrlc::set_handler(move || {
        if interrupted.swap(true, Ordering::Relaxed) {
            // Files are written atomically, so that ending at any moment is safe.
            #[allow(clippy::exit, reason = "the second Ctrl-C ends the program immediately")]
            std::process::exit(130);
        }
    })
    .context("cannot handle Ctrl-C")?;
    let device = args.device.of_worker(launch.as_ref()).open()?;
    let timeout = Duration::from_secs(args.worker_timeout as u64);
    let crew = Crew::connect(launch.as_ref(), &device, Limits { timeout, stop: stop.clone() })?;
    let first = crew.team().rank() == 0;
    let dataset = match args.data.is_dir() {
        true => Dataset::folder(&args.data, config.held_out, config.seed)?,
        false => Dataset::csv(&args.data, config.held_out, config.seed)?,
    };
    let (parameters, meta, initialized) = args.start(&dataset, config.seed, &device)?;
    if first && !initialized.is_empty() {
        terminal::message(
            Verbosity::Normal,
            format_args!("new, randomly initialized: {}", initialized.join(", ")),
        );
    }
    let begin = if args.resume { Begin::Resume } else { Begin::New };
    let mut console = first.then(|| Console::new(&args.out));
    let run = Run {
        config: &config,
        dataset: Arc::new(dataset),
        parameters,
        meta,
        folder: &args.out,
        begin,
        stop: &stop,
    };
    let report = fit_together(run, crew.team(), &mut |event| {
        if let Some(console) = &mut console {
            console.show(&event);
        }
    });
    crew.close();
    let report = report.map_err(anyhow::Error::from);
    if first && report.as_ref().is_err_and(workers::is_lost) {
        let _ = writeln!(io::stderr(), "saved; run the same command with --resume to continue");
    }
    let report = report?;
    match console {
        Some(console) => console.finish()?,
        None => return Ok(Outcome::from_success(report.end != End::Stopped)),
    }
    print_summary(&report, out)
}

impl Args {
    fn settings(&self) -> anyhow::Result<Config> {
        let mut config = match &self.config {
            Some(path) => Config::open(path).with_context(|| format!("--config {}", path.display()))?,
            None => Config::default(),
        };
        config.train = self.train.clone().unwrap_or(config.train);
        config.epochs = self.epochs.unwrap_or(config.epochs);
        config.batch_size = self.batch_size.unwrap_or(config.batch_size);
        config.schedule.rate = self.lr.unwrap_or(config.schedule.rate);
        config.seed = self.seed.unwrap_or(config.seed);
        config.sync_bn |= self.sync_bn;
        config.validate()?;
        Ok(config)
    }

    /// Returns the initial parameters, their metadata, and the names of randomly initialized tensors.
    fn start(
        &self,
        dataset: &Dataset,
        seed: u64,
        device: &Device,
    ) -> anyhow::Result<(Parameters, Meta, Vec<String>)> {
        let classes = dataset.classes().len();
        let start = Initialization { seed, ..Initialization::default() };
        if let Some(name) = &self.scratch {
            let channels = if self.gray { 1 } else { 3 };
            let arch = zoo::arch(name)?.with_classes(classes).with_in_channels(channels);
            let size = self.size.unwrap_or(224);
            // Small images are not cropped.
            let resize = if size < 64 { size } else { size * 256 / 224 };
            let mut preprocess = Preprocess::torchvision(resize, size);
            if self.gray {
                preprocess.channels = Channels::Gray;
                (preprocess.mean, preprocess.std) = (vec![0.5], vec![0.5]);
            }
            return Ok((Parameters::new(&arch, start, device)?, Meta::new(arch, preprocess), vec![]));
        }
        let selection =
            Selection { depth: self.depth, model: self.model.clone(), weights: self.weights.clone() };
        let mut checkpoint: Checkpoint = selection.open()?;
        if self.gray {
            checkpoint = checkpoint.with_in_channels(1)?;
        }
        let (parameters, partial) = Parameters::transfer(&checkpoint, classes, start, device)?;
        let mut preprocess = checkpoint.meta().preprocess.clone();
        if let Some(size) = self.size {
            let scaled = |side: usize, crop: usize| (side * size).div_ceil(crop.max(1));
            preprocess.resize = match preprocess.resize {
                Resize::ShorterSide(side) => Resize::ShorterSide(scaled(side, preprocess.crop[0])),
                _ => Resize::Exact([size; 2]),
            };
            preprocess.crop = [size; 2];
        }
        let mut meta = Meta::new(parameters.arch().clone(), preprocess);
        meta.origin = checkpoint.meta().origin.clone();
        Ok((parameters, meta, partial.initialized))
    }
}

/// Progress on standard error, and the log of events in `metrics.jsonl`.
struct Console {
    bar: ProgressBar,
    path: PathBuf,
    /// The first error in writing the log.
    failed: Option<io::Error>,
    since: Instant,
    images: usize,
}

impl Console {
    fn new(folder: &Path) -> Console {
        let bar = terminal::progress(0, terminal::COUNT);
        Console { bar, path: folder.join("metrics.jsonl"), failed: None, since: Instant::now(), images: 0 }
    }

    fn line(&self, text: &str) {
        self.bar.suspend(|| terminal::message(Verbosity::Normal, text));
    }

    fn show(&mut self, event: &Event) {
        if let Err(error) = self.append(event) {
            self.failed.get_or_insert(error);
        }
        match event {
            Event::Started { train, held_out, classes, steps, resumed } => {
                self.bar.set_length(*steps);
                self.bar.set_position(resumed.unwrap_or(0));
                self.bar.reset_eta();
                self.since = Instant::now();
                let from = resumed.map_or(String::new(), |step| format!(", resumed at step {step}"));
                self.line(&format!(
                    "{train} training images, {held_out} validation images, {classes} classes; {steps} steps{from}"
                ));
            }
            Event::Skipped { why } => self.line(&format!("skipped: {why}")),
            Event::Step { step, loss, rate, images, .. } => {
                self.images += images;
                let speed = self.images as f64 / self.since.elapsed().as_secs_f64().max(1e-9);
                self.bar.set_position(*step);
                self.bar.set_message(format!("loss {loss:.4}  lr {rate:.2e}  {speed:.0} images/s"));
            }
            Event::Epoch(record) => self.line(&describe(record)),
            _ => {}
        }
    }

    /// Appends an event as one line of JSON.
    fn append(&self, event: &Event) -> io::Result<()> {
        let mut file = OpenOptions::new().create(true).append(true).open(&self.path)?;
        let mut line = serde_json::to_string(event)?;
        line.push('\n');
        file.write_all(line.as_bytes())
    }

    fn finish(self) -> anyhow::Result<()> {
        self.bar.finish_and_clear();
        match self.failed {
            Some(error) => Err(error).with_context(|| format!("`{}`", self.path.display())),
            None => Ok(()),
        }
    }
}

fn describe(record: &Record) -> String {
    let validation = match (record.held_out_top1, record.held_out_loss) {
        (Some(top1), Some(loss)) => format!("; validation accuracy {:.2} %, loss {loss:.4}", 100.0 * top1),
        _ => String::new(),
    };
    let (epoch, accuracy) = (record.epoch + 1, 100.0 * record.train_top1);
    format!("epoch {epoch}: loss {:.4}, accuracy {accuracy:.2} %{validation}", record.loss)
}

fn print_summary(report: &Report, out: &mut dyn Write) -> anyhow::Result<Outcome> {
    if report.end == End::Stopped {
        let _ = writeln!(io::stderr(), "stopped; run the same command with --resume to continue");
        return Ok(Outcome::Failure);
    }
    let Some(path) = &report.checkpoint else { bail!("the run ended without a checkpoint") };
    let metrics = Checkpoint::open(path)?.meta().metrics.clone();
    let top1 = metrics.get("top1").map_or(String::new(), |top1| format!("  accuracy {top1:.2} %"));
    writeln!(out, "{}{top1}", path.display())?;
    Ok(Outcome::Success)
}
