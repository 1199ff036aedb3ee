//! `train`: train or fine-tune a network on a folder of images.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use candle_core::Device;
use indicatif::ProgressBar;
use resnet_model::parameters::Initialization;
use resnet_model::preprocess::{Channels, Resize};
use resnet_model::{Checkpoint, Meta, Parameters, Preprocess, zoo};
use resnet_train::event::Record;
use resnet_train::fit::{Begin, End, Report, Run, fit_together};
use resnet_train::workers::Limits;
use resnet_train::workers::launch::Launch;
use resnet_train::{Config, Dataset, Event};

use crate::device::Choice;
use crate::terminal;
use crate::weights::Selection;
use crate::workers::{self, Crew};

/// Train or fine-tune a network on a folder of images.
///
/// DATA is a folder with one folder of images per class, a folder with `train` and `val` folders of that form, or a CSV
/// file with the columns path, label and perhaps split. The result, RUN/model.safetensors, is a checkpoint that predict
/// takes as it is. Ctrl-C finishes the step and saves; the same command with --resume goes on, to the very bytes that an
/// uninterrupted run gives. Started by mpirun (a build with the feature mpi), each process takes --batch-size images of
/// every batch, on its share of the cores; the first one writes.
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
    /// An architecture of the zoo, trained from random weights
    #[arg(long, value_name = "NAME", group = "start", conflicts_with_all = ["depth", "model", "weights"])]
    scratch: Option<String>,
    /// Settings as TOML; flags go before
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// What is trained: all, head, or a tap such as layer4 from which on
    #[arg(long, value_name = "PART")]
    train: Option<String>,
    /// Passes over the images
    #[arg(long, value_name = "N")]
    epochs: Option<usize>,
    /// Images per batch
    #[arg(long, value_name = "N")]
    batch_size: Option<usize>,
    /// The highest learning rate
    #[arg(long, value_name = "RATE")]
    rate: Option<f64>,
    /// Chooses all random numbers
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Height and width of the network's input in pixels; default: the weights' own, or 224
    #[arg(long, value_name = "PIXELS", value_parser = super::predict::positive)]
    size: Option<usize>,
    /// One channel of luminance instead of three of colour; the stem of trained weights is adapted
    #[arg(long)]
    grey: bool,
    /// The folder for states, the best network, curves and metrics
    #[arg(long, value_name = "RUN", default_value = "run")]
    out: PathBuf,
    /// Go on with the run in --out
    #[arg(long)]
    resume: bool,
    /// Where to compute: auto, cpu, cuda, cuda:NUMBER, metal
    #[arg(long, default_value_t)]
    device: Choice,
    /// Threads on the CPU; default: all cores, shared with the other workers of the machine
    #[arg(long, value_name = "N", value_parser = super::predict::positive)]
    threads: Option<usize>,
    /// Take the statistics of batch norms over the batches of all workers
    #[arg(long)]
    sync_bn: bool,
    /// Seconds after which workers that do not answer count as lost; the first one then saves and all end
    #[arg(long, value_name = "SECONDS", default_value = "300", value_parser = super::predict::positive)]
    worker_timeout: usize,
    /// The images
    #[arg(value_name = "DATA")]
    data: PathBuf,
}

/// Runs the command; `false` if the run was stopped before its end.
pub fn run(args: Args, out: &mut dyn Write) -> anyhow::Result<bool> {
    let launch = workers::launched()?;
    let rank = launch.map_or(0, |launch| launch.part.rank);
    match train(args, launch, out) {
        // Who has failed says it; what all find, the first one says.
        Err(error) if rank > 0 && workers::is_told_by_others(&error) => Ok(false),
        Err(error) if rank > 0 && !workers::is_lost(&error) => Err(error.context(format!("worker {rank}"))),
        result => result,
    }
}

fn train(args: Args, launch: Option<Launch>, out: &mut dyn Write) -> anyhow::Result<bool> {
    if let Some(threads) = args.threads.or_else(|| launch.map(|launch| workers::threads(&launch))) {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().context("--threads")?;
    }
    let config = args.settings()?;
    let stop = Arc::new(AtomicBool::new(false));
    let told = stop.clone();
    ctrlc::set_handler(move || {
        if told.swap(true, Ordering::Relaxed) {
            // Told twice: at once. Files are whole at any moment.
            #[allow(clippy::exit, reason = "the second Ctrl-C ends the program wherever it is")]
            std::process::exit(130);
        }
    })
    .context("cannot listen for Ctrl-C")?;
    let device = args.device.of_worker(launch.as_ref()).open()?;
    let timeout = Duration::from_secs(args.worker_timeout as u64);
    let crew = Crew::connect(launch.as_ref(), &device, Limits { timeout, stop: stop.clone() })?;
    let first = crew.team().rank() == 0;
    let dataset = match args.data.is_dir() {
        true => Dataset::folder(&args.data, config.held_out, config.seed)?,
        false => Dataset::csv(&args.data, config.held_out, config.seed)?,
    };
    let (parameters, meta, anew) = args.start(&dataset, config.seed, &device)?;
    if first && !anew.is_empty() {
        let _ = writeln!(io::stderr(), "begins anew: {}", anew.join(", "));
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
            console.tell(&event);
        }
    });
    crew.close();
    let report = report.map_err(anyhow::Error::from);
    if first && report.as_ref().is_err_and(workers::is_lost) {
        let _ = writeln!(io::stderr(), "saved; the same command with --resume goes on");
    }
    let report = report?;
    match console {
        Some(console) => console.finish()?,
        None => return Ok(report.end != End::Stopped),
    }
    summary(&report, out)
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
        config.schedule.rate = self.rate.unwrap_or(config.schedule.rate);
        config.seed = self.seed.unwrap_or(config.seed);
        config.sync_bn |= self.sync_bn;
        config.validate()?;
        Ok(config)
    }

    /// Where training begins, and the tensors that begin anew.
    fn start(
        &self,
        dataset: &Dataset,
        seed: u64,
        device: &Device,
    ) -> anyhow::Result<(Parameters, Meta, Vec<String>)> {
        let classes = dataset.classes().len();
        let start = Initialization { seed, ..Initialization::default() };
        if let Some(name) = &self.scratch {
            let channels = if self.grey { 1 } else { 3 };
            let arch = zoo::arch(name)?.with_classes(classes).with_in_channels(channels);
            let size = self.size.unwrap_or(224);
            // Small images are taken whole.
            let resize = if size < 64 { size } else { size * 256 / 224 };
            let mut preprocess = Preprocess::torchvision(resize, size);
            if self.grey {
                preprocess.channels = Channels::Grey;
                (preprocess.mean, preprocess.std) = (vec![0.5], vec![0.5]);
            }
            return Ok((Parameters::new(&arch, start, device)?, Meta::new(arch, preprocess), vec![]));
        }
        let (depth, model, weights) = (self.depth, self.model.clone(), self.weights.clone());
        let selection = Selection { depth, model, weights, ..Selection::default() };
        let mut checkpoint: Checkpoint = selection.open()?;
        if self.grey {
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
        Ok((parameters, meta, partial.initialised))
    }
}

/// The program's standard error while it trains, and the file of events.
struct Console {
    bar: ProgressBar,
    path: PathBuf,
    /// The first failure to write.
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
        self.bar.suspend(|| {
            let _ = writeln!(io::stderr(), "{text}");
        });
    }

    fn tell(&mut self, event: &Event) {
        if let Err(error) = self.append(event) {
            self.failed.get_or_insert(error);
        }
        match event {
            Event::Started { train, held_out, classes, steps, resumed } => {
                self.bar.set_length(*steps);
                self.bar.set_position(resumed.unwrap_or(0));
                self.bar.reset_eta();
                self.since = Instant::now();
                let from = resumed.map_or(String::new(), |step| format!(", going on at step {step}"));
                self.line(&format!(
                    "{train} images of {classes} classes, {held_out} held out; {steps} steps{from}"
                ));
            }
            Event::Skipped { why } => self.line(&format!("skipped: {why}")),
            Event::Step { step, loss, rate, images, .. } => {
                self.images += images;
                let speed = self.images as f64 / self.since.elapsed().as_secs_f64().max(1e-9);
                self.bar.set_position(*step);
                self.bar.set_message(format!("loss {loss:.4}  rate {rate:.2e}  {speed:.0} images/s"));
            }
            Event::Epoch(record) => self.line(&describe(record)),
            _ => {}
        }
    }

    /// One line of JSON per event.
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
    let held_out = match (record.held_out_top1, record.held_out_loss) {
        (Some(top1), Some(loss)) => format!("; held out: {:.2} % right, loss {loss:.4}", 100.0 * top1),
        _ => String::new(),
    };
    let (epoch, right) = (record.epoch + 1, 100.0 * record.train_top1);
    format!("epoch {epoch}: loss {:.4}, {right:.2} % right{held_out}", record.loss)
}

fn summary(report: &Report, out: &mut dyn Write) -> anyhow::Result<bool> {
    if report.end == End::Stopped {
        let _ = writeln!(io::stderr(), "stopped; the same command with --resume goes on");
        return Ok(false);
    }
    let Some(path) = &report.checkpoint else { bail!("the run ended without a network") };
    let metrics = Checkpoint::open(path)?.meta().metrics.clone();
    let top1 = metrics.get("top1").map_or(String::new(), |top1| format!("  {top1:.2} % right"));
    writeln!(out, "{}{top1}", path.display())?;
    Ok(true)
}
