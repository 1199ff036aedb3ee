//! `eval`: measure how many images of a folder a checkpoint gets right.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::ValueEnum;
use resnet_model::Labels;
use resnet_train::Dataset;
use resnet_train::eval::{Evaluation, Model, Views, evaluate};

use crate::device::Choice;
use crate::terminal;
use crate::weights::Selection;

/// Measure how many images of a folder a checkpoint gets right.
///
/// Several checkpoints are an ensemble: their probabilities are averaged. DATA is as for train; of a folder with `train` and
/// `val` folders, or of a list with splits, the images held out are taken, of others all.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Average over the four corners and the centre and their mirror images
    #[arg(long)]
    ten_crop: bool,
    /// Average over these lengths of the shorter side
    #[arg(long, value_name = "PIXELS,…", value_delimiter = ',', value_parser = super::predict::positive)]
    sizes: Vec<usize>,
    /// Also every class
    #[arg(long)]
    per_class: bool,
    /// Also who was taken for whom, most frequent first
    #[arg(long)]
    confusion: bool,
    /// How figures are written
    #[arg(long, value_enum, default_value_t = Form::Text)]
    format: Form,
    /// Where to compute: auto, cpu, cuda, cuda:NUMBER, metal
    #[arg(long, default_value_t)]
    device: Choice,
    /// Images computed at once
    #[arg(long, default_value_t = 32, value_name = "N", value_parser = super::predict::positive)]
    batch_size: usize,
    /// Checkpoints (files or Hub ids) and, last, the images
    #[arg(required = true, num_args = 2.., value_names = ["CHECKPOINT", "DATA"])]
    paths: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Form {
    /// A short table
    Text,
    /// One JSON object
    Json,
}

/// Runs the command; `false` if an image could not be read.
pub fn run(args: Args, out: &mut dyn Write) -> anyhow::Result<bool> {
    let Some((data, checkpoints)) = args.paths.split_last() else { bail!("name checkpoints and images") };
    let device = args.device.open()?;
    let mut models = Vec::new();
    let mut labels = Labels::None;
    for name in checkpoints {
        let selection = Selection { weights: Some(name.clone()), ..Selection::default() };
        let checkpoint = selection.open().with_context(|| format!("`{name}`"))?;
        if labels.is_none() {
            labels = checkpoint.meta().labels.clone();
        }
        models.push(Model::new(&checkpoint, &device, args.batch_size)?);
    }
    let data = PathBuf::from(data);
    let (dataset, indices) = dataset(&data)?;
    let dataset = dataset.numbered(&labels, models.first().map_or(0, Model::classes))?;
    let bar = terminal::progress(indices.len() as u64, terminal::COUNT);
    let views = Views { ten_crop: args.ten_crop, sizes: args.sizes.clone() };
    let result = evaluate(&models, &dataset, &indices, &views, args.batch_size, &mut |n| bar.inc(n as u64))?;
    bar.finish_and_clear();
    for why in &result.skipped {
        let _ = writeln!(io::stderr(), "skipped: {why}");
    }
    match args.format {
        Form::Text => text(&args, &result, &dataset, out)?,
        Form::Json => json(&args, &result, &dataset, out)?,
    }
    Ok(result.skipped.is_empty())
}

/// The images and the numbers of those that are evaluated.
fn dataset(path: &Path) -> anyhow::Result<(Dataset, Vec<usize>)> {
    let dataset = match path.is_dir() {
        true => Dataset::folder(path, 0.0, 0)?,
        false => Dataset::csv(path, 0.0, 0)?,
    };
    let indices = match dataset.held_out() {
        [] => dataset.all(),
        held_out => held_out.to_vec(),
    };
    Ok((dataset, indices))
}

/// Pairs of different classes, most frequent first: number of images, class, answer.
fn mistakes(result: &Evaluation) -> Vec<(u32, usize, usize)> {
    let rows = result.confusion.iter().enumerate();
    let pairs = rows.flat_map(|(class, row)| row.iter().enumerate().map(move |(k, &n)| (n, class, k)));
    let mut pairs: Vec<_> = pairs.filter(|(n, class, answer)| *n > 0 && class != answer).collect();
    pairs.sort_by(|a, b| b.0.cmp(&a.0).then(a.cmp(b)));
    pairs
}

fn text(args: &Args, result: &Evaluation, dataset: &Dataset, out: &mut dyn Write) -> io::Result<()> {
    let images = result.images;
    writeln!(out, "images  {images}")?;
    writeln!(out, "top-1   {:.2} %  ({} right)", 100.0 * result.top1_share(), result.top1)?;
    writeln!(out, "top-5   {:.2} %  ({} right)", 100.0 * result.top5_share(), result.top5)?;
    writeln!(out, "loss    {:.4}", result.loss)?;
    let names = dataset.classes();
    if args.per_class {
        for ([right, all], name) in result.per_class().into_iter().zip(names).filter(|([_, all], _)| *all > 0)
        {
            writeln!(out, "{:>7.2} %  {right}/{all}  {name}", 100.0 * right as f64 / all as f64)?;
        }
    }
    if args.confusion {
        for (n, class, answer) in mistakes(result) {
            writeln!(out, "{n:>5}  {} taken for {}", names[class], names[answer])?;
        }
    }
    Ok(())
}

fn json(args: &Args, result: &Evaluation, dataset: &Dataset, out: &mut dyn Write) -> anyhow::Result<()> {
    let names = dataset.classes();
    let mut value = serde_json::json!({
        "images": result.images,
        "top1": 100.0 * result.top1_share(),
        "top5": 100.0 * result.top5_share(),
        "loss": result.loss,
        "skipped": result.skipped,
    });
    if args.per_class {
        let classes = result.per_class().into_iter().zip(names).filter(|([_, all], _)| *all > 0);
        let row = |([right, images], class): ([usize; 2], &String)| serde_json::json!({"class": class, "right": right, "images": images});
        value["classes"] = classes.map(row).collect();
    }
    if args.confusion {
        let row = |(images, class, answer): (u32, usize, usize)| serde_json::json!({"class": names[class], "answer": names[answer], "images": images});
        value["mistakes"] = mistakes(result).into_iter().map(row).collect();
    }
    writeln!(out, "{value:#}")?;
    Ok(())
}
