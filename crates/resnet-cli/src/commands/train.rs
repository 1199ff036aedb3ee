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
use resnet_model::network::SingleProcess;
use resnet_model::parameters::Initialization;
use resnet_model::{Checkpoint, Meta, Parameters, Preprocess, zoo};
use resnet_train::distributed::launch::Launch;
use resnet_train::distributed::{Communicator, Limits};
use resnet_train::event::EpochMetrics;
use resnet_train::fit::{Begin, End, Report, Run, fit_distributed};
use resnet_train::{Config, Dataset, Event};

use crate::device::Choice;
use crate::exit::Outcome;
use crate::terminal::{self, Verbosity};
use crate::weights::{Access, Selection, Subjects};
use crate::workers;
use resnet_weights::Options;

/// Train or fine-tune a network on a folder of images
///
/// DATA is a folder with one subfolder of images per class, a folder with `train` and `val` subfolders of this form, or a CSV
/// file with the columns path, label and optionally split. The result is RUN/model.safetensors, a checkpoint for `predict`.
///
/// Ctrl-C finishes the current step and saves the state; the same command with --resume continues, and its result is identical
/// to that of an uninterrupted run. The exit status of an interrupted run is 1.
///
/// For distributed training, start it with mpirun or srun (in a build with the feature mpi). Each process trains on --batch-size
/// images of every batch, and rank 0 writes the files.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("start").required(true).multiple(true))]
pub struct Args {
    /// Depth of a ResNet (18, 34, 50, 101, 152) with torchvision's default weights
    #[arg(long, value_name = "N", conflicts_with = "model", group = "start")]
    depth: Option<usize>,
    /// Model (resnet50) or published weights of one (resnet50.a1_in1k)
    #[arg(long, value_name = "NAME", group = "start")]
    model: Option<String>,
    /// A checkpoint file, a folder with one, or a Hub id (owner/name, owner/name@revision)
    #[arg(long, value_name = "FILE|DIR|HUB-ID", group = "start")]
    weights: Option<String>,
    /// Architecture to train from random weights
    #[arg(long, value_name = "NAME", group = "start", conflicts_with_all = ["depth", "model", "weights"])]
    scratch: Option<String>,
    /// Preprocessing of the weights: a JSON file or the name of published weights
    #[arg(long, value_name = "FILE|NAME", conflicts_with = "scratch")]
    preprocess: Option<String>,
    #[command(flatten)]
    access: Access,
    /// Settings as TOML; flags take precedence
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Trainable part: all, head, or a tap such as layer4 (that and all later layers)
    #[arg(long, value_name = "PART")]
    train: Option<String>,
    /// Number of epochs
    #[arg(long, value_name = "N")]
    epochs: Option<usize>,
    /// Images per batch and process
    #[arg(long, value_name = "N")]
    batch_size: Option<usize>,
    /// Peak learning rate; default: 0.005 × batch size / 32 for trained weights, 0.1 from scratch (SGD)
    #[arg(long, value_name = "LR")]
    lr: Option<f64>,
    /// Seed of all random numbers
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Height and width of the network's input in pixels; default: that of the weights, or 224
    #[arg(long, value_name = "PIXELS", value_parser = super::predict::positive)]
    size: Option<usize>,
    /// Train on grayscale images (one channel); the stem of trained weights is adapted
    #[arg(long)]
    gray: bool,
    /// Output folder for states, the best network, curves and metrics
    #[arg(long, value_name = "RUN", default_value = "run")]
    out: PathBuf,
    /// Resume the run in --out
    #[arg(long)]
    resume: bool,
    /// Device: auto, cpu, cuda, cuda:NUMBER, metal
    #[arg(long, default_value_t)]
    device: Choice,
    /// Number of CPU threads; default: all cores, divided among the processes of the machine
    #[arg(long, value_name = "N", value_parser = super::predict::positive)]
    threads: Option<usize>,
    /// Compute batch norm statistics over the batches of all processes
    #[arg(long)]
    sync_bn: bool,
    /// Seconds without an answer after which other processes count as lost; rank 0 then saves the state and all end
    #[arg(long, value_name = "SECONDS", default_value = "300", value_parser = super::predict::positive)]
    timeout: usize,
    /// Labeled images
    #[arg(value_name = "DATA")]
    data: PathBuf,
}

/// Runs the command.
pub fn run(args: Args, out: &mut dyn Write) -> anyhow::Result<Outcome> {
    let launch = workers::launched()?;
    let rank = launch.map_or(0, |launch| launch.rank);
    match train(args, launch, out) {
        // The failed rank reports its error; rank 0 reports what all ranks find.
        Err(error) if rank > 0 && workers::is_reported_elsewhere(&error) => Ok(Outcome::Failure),
        Err(error) if rank > 0 && !workers::is_lost_rank(&error) => {
            Err(error.context(format!("rank {rank}")))
        }
        result => result,
    }
}

fn train(args: Args, launch: Option<Launch>, out: &mut dyn Write) -> anyhow::Result<Outcome> {
    if let Some(threads) = args.threads.or_else(|| launch.map(|launch| workers::threads(&launch))) {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().context("--threads")?;
    }
    let mut config = args.settings()?;
    let stop = Arc::new(AtomicBool::new(false));
    let requested = stop.clone();
    ctrlc::set_handler(move || {
        if requested.swap(true, Ordering::Relaxed) {
            // The second Ctrl-C exits at once; files are written atomically.
            #[allow(clippy::exit, reason = "the second Ctrl-C ends the program wherever it is")]
            std::process::exit(130);
        }
    })
    .context("cannot handle Ctrl-C")?;
    let device = args.device.of_worker(launch.as_ref()).open()?;
    let timeout = Duration::from_secs(args.timeout as u64);
    let connect = |launch| workers::connect(launch, &device, Limits { timeout, stop: stop.clone() });
    let group = launch.as_ref().map(connect).transpose()?;
    let communicator: &dyn Communicator = group.as_ref().map_or(&SingleProcess, |group| group);
    let first = communicator.rank() == 0;
    let lr = config.default_lr(args.scratch.is_none(), launch.map_or(1, |launch| launch.world_size));
    config.schedule.lr.get_or_insert(lr);
    let dataset = match args.data.is_dir() {
        true => Dataset::from_folder(&args.data, config.val_fraction, config.seed)?,
        false => Dataset::from_csv(&args.data, config.val_fraction, config.seed)?,
    };
    let (parameters, meta, initialized) = args.start(&dataset, config.seed, &device)?;
    if first && !initialized.is_empty() {
        let _ = writeln!(io::stderr(), "new, randomly initialized: {}", initialized.join(", "));
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
    let report = fit_distributed(run, communicator, &mut |event| {
        if let Some(console) = &mut console {
            console.handle(&event);
        }
    });
    if let Some(group) = group {
        group.shutdown(workers::SHUTDOWN);
    }
    let report = report.map_err(anyhow::Error::from);
    if first && report.as_ref().is_err_and(workers::is_lost_rank) {
        let _ = writeln!(io::stderr(), "state saved; the same command with --resume continues");
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
        config.schedule.lr = self.lr.or(config.schedule.lr);
        config.seed = self.seed.unwrap_or(config.seed);
        config.sync_bn |= self.sync_bn;
        config.validate()?;
        Ok(config)
    }

    /// Returns initial parameters, metadata, and the names of randomly initialized tensors of a trained network.
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
        let (depth, model, weights) = (self.depth, self.model.clone(), self.weights.clone());
        let selected = Selection { depth, model, weights }.options()?;
        let options = Options { preprocess: self.preprocess.clone(), ..selected };
        let mut checkpoint: Checkpoint = self.access.open(options, Subjects::Input)?;
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

/// Progress bar and messages on standard error, and the event log.
struct Console {
    bar: ProgressBar,
    path: PathBuf,
    /// First write error of the event log.
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

    fn handle(&mut self, event: &Event) {
        if let Err(error) = self.append(event) {
            self.failed.get_or_insert(error);
        }
        match event {
            Event::Started { train, val, classes, steps, lr, resumed } => {
                self.bar.set_length(*steps);
                self.bar.set_position(resumed.unwrap_or(0));
                self.bar.reset_eta();
                self.since = Instant::now();
                let from = resumed.map_or(String::new(), |step| format!(", resumed at step {step}"));
                self.line(&format!(
                    "{train} training and {val} validation images, {classes} classes; {steps} steps, learning rate {lr}{from}"
                ));
            }
            Event::Skipped { why } => self.line(&format!("skipped: {why}")),
            Event::Step { step, loss, lr, images, .. } => {
                self.images += images;
                let speed = self.images as f64 / self.since.elapsed().as_secs_f64().max(1e-9);
                self.bar.set_position(*step);
                self.bar.set_message(format!("loss {loss:.4}  lr {lr:.2e}  {speed:.0} images/s"));
            }
            Event::Epoch(record) => self.line(&describe(record)),
            _ => {}
        }
    }

    /// Appends one line of JSON per event.
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

fn describe(record: &EpochMetrics) -> String {
    let val = match (record.val_top1, record.val_loss) {
        (Some(top1), Some(loss)) => format!("; validation: loss {loss:.4}, accuracy {:.2} %", 100.0 * top1),
        _ => String::new(),
    };
    let (epoch, accuracy) = (record.epoch + 1, 100.0 * record.train_top1);
    format!("epoch {epoch}: loss {:.4}, accuracy {accuracy:.2} %{val}", record.loss)
}

fn print_summary(report: &Report, out: &mut dyn Write) -> anyhow::Result<Outcome> {
    if report.end == End::Stopped {
        let _ = writeln!(io::stderr(), "stopped; the same command with --resume continues");
        return Ok(Outcome::Failure);
    }
    let Some(path) = &report.checkpoint else { bail!("the run ended before its first evaluation") };
    let metrics = Checkpoint::open(path)?.meta().metrics.clone();
    let top1 = metrics.get("top1").map_or(String::new(), |top1| format!("  accuracy {top1:.2} %"));
    writeln!(out, "{}{top1}", path.display())?;
    Ok(Outcome::Success)
}
