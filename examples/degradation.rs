//! The degradation experiment of the paper (arXiv 1512.03385, section 4.2) on digits: training error of deeper networks with
//! and without shortcuts: `cargo run --release --example degradation -- [OUT [EPOCHS]]`.
//!
//! Trains plain networks of 20 and 56 layers and residual ones with shortcuts A, B and C, with the same images, seed and settings,
//! and writes OUT/degradation.svg (default: `target/degradation`). Interrupted runs in OUT are resumed.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use anyhow::Context;
use candle_core::Device;
use image::{DynamicImage, GrayImage};
use resnet_image::preprocess::Channels;
use resnet_model::arch::{ResNet, Shortcut};
use resnet_model::file::{Existing, write_atomically};
use resnet_model::parameters::Initialization;
use resnet_model::{Arch, Meta, Parameters, Preprocess, safetensors};
use resnet_train::augment::{Augment, Crop};
use resnet_train::event::EpochMetrics;
use resnet_train::plot::{Axis, COLORS, Chart, Mark, Point, Scale, Series, svg};
use resnet_train::schedule::{Schedule, ScheduleKind};
use resnet_train::{Begin, Config, Dataset, Event, Run, fit};

/// Side of a digit in pixels, and of the network's input, which is smaller to save three quarters of the time.
const SIDE: usize = 28;
const SEEN: usize = 14;
const DEPTHS: [usize; 2] = [20, 56];
/// Name, shortcut, index of the color.
const KINDS: [(&str, Shortcut, usize); 4] = [
    ("plain", Shortcut::None, 4),
    ("A", Shortcut::ZeroPad, 0),
    ("B", Shortcut::Projection, 1),
    ("C", Shortcut::ProjectionAll, 2),
];

fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let out = args.next().map_or_else(|| here.join("../target/degradation"), PathBuf::from);
    let epochs = args.next().map_or(Ok(12), |epochs| epochs.parse()).context("EPOCHS")?;
    let digits = Arc::new(digits(&here.join("../tests/golden/digits.safetensors"))?);
    let mut series = Vec::new();
    println!(
        "{:12} {:>10} {:>12} {:>12} {:>8}",
        "network", "parameters", "last error", "last loss", "minutes"
    );
    for (kind, shortcut, color) in KINDS {
        for depth in DEPTHS {
            let net = ResNet::cifar(depth).context("the depth must be 6n + 2")?;
            let arch = Arch::ResNet(ResNet { shortcut, in_channels: 1, ..net });
            let name =
                if kind == "plain" { format!("plain-{depth}") } else { format!("ResNet-{depth} {kind}") };
            let since = Instant::now();
            let parameters = Parameters::new(&arch, Initialization::default(), &Device::Cpu)?;
            let size: usize =
                parameters.list().iter().map(|param| param.shape.iter().product::<usize>()).sum();
            let records = train(&out.join(name.replace(' ', "-")), parameters, &arch, &digits, epochs)?;
            let last = records.last().context("no epoch was trained")?;
            let minutes = since.elapsed().as_secs_f64() / 60.0;
            println!("{name:12} {size:>10} {:>10.2} % {:>12.4} {minutes:>8.1}", error(last), last.loss);
            let points = records.iter().map(|r| Point::new(r.epoch as f64 + 1.0, error(r))).collect();
            let mark = Mark::Line(if depth > 20 { 3.0 } else { 1.0 });
            series.push(Series { name, color: COLORS[color], mark, points });
        }
    }
    let note = format!("{} digits", digits.train().len());
    let (x, y) = (Axis::new("epoch", Scale::Integer), Axis::new("training error, %", Scale::Linear));
    let chart = Chart { height: 400.0, x, y, series, note };
    let path = out.join("degradation.svg");
    let plot = svg(&[chart]);
    write_atomically(&path, Existing::Replace, |file| Ok(std::io::Write::write_all(file, plot.as_bytes())?))?;
    println!("{}", path.display());
    Ok(())
}

/// Returns the training error of an epoch in percent, measured during training.
fn error(record: &EpochMetrics) -> f64 {
    100.0 * (1.0 - record.train_top1)
}

fn train(
    folder: &Path,
    parameters: Parameters,
    arch: &Arch,
    digits: &Arc<Dataset>,
    epochs: usize,
) -> anyhow::Result<Vec<EpochMetrics>> {
    // The paper's settings except for the length: momentum 0.9, weight decay 1e-4, learning rate 0.1 for a batch size of 128,
    // divided by ten after 50 % and 75 % of the steps, images shifted by up to a seventh. Digits are not flipped.
    let config = Config {
        epochs,
        batch_size: 32,
        augment: Augment { crop: Crop::Pad, pad: 2, ..Augment::none() },
        schedule: Schedule {
            lr: Some(0.025),
            kind: ScheduleKind::Step,
            milestones: vec![0.5, 0.75],
            warmup: 0.0,
            ..Schedule::default()
        },
        ..Config::default()
    };
    let mut preprocess = Preprocess::torchvision(SEEN, SEEN);
    (preprocess.channels, preprocess.mean, preprocess.std) = (Channels::Gray, vec![0.5], vec![0.5]);
    let begin = if folder.exists() { Begin::Resume } else { Begin::New };
    let run = Run {
        config: &config,
        dataset: digits.clone(),
        parameters,
        meta: Meta::new(arch.clone(), preprocess),
        folder,
        begin,
        stop: &AtomicBool::new(false),
    };
    let report = fit(run, &mut |event| {
        if let Event::Epoch(record) = event {
            eprintln!("{}: epoch {}, error {:.2} %", folder.display(), record.epoch + 1, error(&record));
        }
    })?;
    Ok(report.records)
}

/// Reads the 2,000 digits of the repository, all for training.
fn digits(path: &Path) -> anyhow::Result<Dataset> {
    let contents = safetensors::open(path)?;
    let read = |wanted: &str| {
        let found = contents.tensors.iter().find(|(name, _)| name == wanted);
        let (_, tensor) = found.with_context(|| format!("{}: no tensor `{wanted}`", path.display()))?;
        anyhow::Ok(tensor.read()?)
    };
    let (levels, labels) = (read("images")?, read("labels")?);
    let image = |levels: &[u8]| {
        let image =
            GrayImage::from_raw(SIDE as u32, SIDE as u32, levels.to_vec()).context("invalid image size")?;
        anyhow::Ok(Arc::new(DynamicImage::from(image).into_rgb8()))
    };
    let images = levels.chunks_exact(SIDE * SIDE).zip(labels);
    let images = images.map(|(levels, label)| Ok((image(levels)?, usize::from(label))));
    let classes = (0..10).map(|digit| digit.to_string()).collect();
    Ok(Dataset::from_images(classes, images.collect::<anyhow::Result<_>>()?, 0.0, 0)?)
}
