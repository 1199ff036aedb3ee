//! `eval`: accuracy of a checkpoint on labeled images.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::ValueEnum;
use resnet_model::{Labels, escape};
use resnet_train::Dataset;
use resnet_train::eval::{Evaluation, Model, Views, evaluate};

use crate::device::Choice;
use crate::exit::Outcome;
use crate::terminal;
use crate::weights::Selection;

/// Measure the accuracy of a checkpoint on labeled images
///
/// DATA is a folder or CSV file as in `train`; if it has a validation split, only that is used. The probabilities of several
/// checkpoints are averaged (an ensemble), which must have the same class labels in the same order. Images that cannot be
/// read are reported and skipped: the exit status is then 3.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Average over ten crops: four corners, center, and their mirror images
    #[arg(long)]
    ten_crop: bool,
    /// Average over several sizes: lengths of the shorter side after resizing
    #[arg(long, value_name = "PIXELS,...", value_delimiter = ',', value_parser = super::predict::positive)]
    sizes: Vec<usize>,
    /// Show the accuracy of every class
    #[arg(long)]
    per_class: bool,
    /// Show confused pairs of classes, most frequent first
    #[arg(long)]
    confusion: bool,
    /// Output format
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    /// Device to compute on: auto, cpu, cuda, cuda:INDEX or metal
    #[arg(long, default_value_t)]
    device: Choice,
    /// Number of images per batch
    #[arg(long, default_value_t = 32, value_name = "N", value_parser = super::predict::positive)]
    batch_size: usize,
    /// One or more checkpoints (files or Hub ids), then the images
    #[arg(required = true, num_args = 2.., value_names = ["CHECKPOINT", "DATA"])]
    paths: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A table
    Text,
    /// One JSON object
    Json,
}

/// Runs the command.
pub fn run(args: Args, out: &mut dyn Write) -> anyhow::Result<Outcome> {
    let Some((data, checkpoints)) = args.paths.split_last() else { bail!("expected checkpoints and images") };
    let device = args.device.open()?;
    let mut models = Vec::new();
    let mut labels = Labels::None;
    for name in checkpoints {
        let selection = Selection { weights: Some(name.clone()), ..Selection::default() };
        let checkpoint = selection.open().with_context(|| format!("`{name}`"))?;
        let own = &checkpoint.meta().labels;
        match (&labels, own) {
            (_, Labels::None) => {}
            (Labels::None, own) => labels = own.clone(),
            (first, own) => same_labels(first, own).with_context(|| format!("`{name}`"))?,
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
    result.skipped.iter().for_each(|why| terminal::warn(format_args!("skipped: {why}")));
    match args.format {
        Format::Text => text(&args, &result, &dataset, out)?,
        Format::Json => json(&args, &result, &dataset, out)?,
    }
    Ok(Outcome::from_failed(result.skipped.len(), result.images + result.skipped.len()))
}

/// Returns an error if the labels of two checkpoints differ: their outputs are averaged by class index.
fn same_labels(first: &Labels, other: &Labels) -> anyhow::Result<()> {
    let name = |labels: &Labels, class| labels.get(class).map(|label| label.name.to_owned());
    for class in 0.. {
        match (name(first, class), name(other, class)) {
            (None, None) => break,
            (a, b) if a == b => {}
            (a, b) => {
                let show = |name: Option<String>| {
                    name.map_or("missing".into(), |name| format!("`{}`", escape(&name)))
                };
                bail!(
                    "an ensemble needs the same class labels in the same order: class {class} is {}, but {} in the first \
                     checkpoint",
                    show(b),
                    show(a)
                );
            }
        }
    }
    Ok(())
}

/// Opens the dataset; returns it and the indices of the images to evaluate.
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

/// Returns the misclassified pairs, most frequent first: number of images, true class, predicted class.
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
    writeln!(out, "top-1   {:.2} %  ({} correct)", 100.0 * result.top1_share(), result.top1)?;
    writeln!(out, "top-5   {:.2} %  ({} correct)", 100.0 * result.top5_share(), result.top5)?;
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
            writeln!(out, "{n:>5}  {} predicted as {}", names[class], names[answer])?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ensembles_need_the_same_labels_in_the_same_order() {
        let labels = |names: &[&str]| Labels::Names(names.iter().map(|&n| n.to_owned()).collect());
        let first = labels(&["cat", "dog"]);
        assert!(same_labels(&first, &first).is_ok());
        for other in [labels(&["dog", "cat"]), labels(&["cat"]), labels(&["cat", "dog", "cow"])] {
            let error = same_labels(&first, &other).unwrap_err().to_string();
            assert!(error.contains("same class labels in the same order"), "{error}");
        }
    }
}
