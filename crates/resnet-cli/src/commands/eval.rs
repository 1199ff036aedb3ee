//! `eval`: measure the accuracy of checkpoints.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::ValueEnum;
use resnet_model::engine::EngineOptions;
use resnet_model::{Checkpoint, Classifier, Labels, escape};
use resnet_train::Dataset;
use resnet_train::eval::{Evaluation, Views, evaluate};

use crate::device::Choice;
use crate::exit::Outcome;
use crate::terminal;
use crate::weights::{Access, Overrides, Subjects};
use resnet_weights::Options;

/// Measure the accuracy of a checkpoint on labeled images
///
/// DATA is a folder or CSV file as in `train`; if it has a validation split, only that is used. The probabilities of several
/// checkpoints are averaged (an ensemble); classes are matched by their labels. Flags about checkpoints apply to all of
/// them. Images that cannot be read are reported and skipped: the exit status is then 3.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    overrides: Overrides,
    #[command(flatten)]
    access: Access,
    /// Average over four corner crops, the center crop and their mirror images
    #[arg(long)]
    ten_crop: bool,
    /// Average over these lengths of the shorter side in pixels
    #[arg(long, value_name = "PIXELS,…", value_delimiter = ',', value_parser = super::predict::positive)]
    sizes: Vec<usize>,
    /// Also show the accuracy of every class
    #[arg(long)]
    per_class: bool,
    /// Also show the confusion matrix: pairs of true and predicted class, most frequent first
    #[arg(long)]
    confusion: bool,
    /// Output format
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    /// Device: auto, cpu, cuda, cuda:NUMBER, metal
    #[arg(long, default_value_t)]
    device: Choice,
    /// Batch size
    #[arg(long, default_value_t = 32, value_name = "N", value_parser = super::predict::positive)]
    batch_size: usize,
    /// Checkpoints (files, folders or Hub ids), then labeled images
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
    let Some((data, checkpoints)) = args.paths.split_last() else {
        bail!("expected a checkpoint and images")
    };
    let device = args.device.open()?;
    let mut models = Vec::new();
    let mut labels = Labels::None;
    for name in checkpoints {
        let options = args.overrides.apply(Options { weights: Some(name.clone()), ..Options::default() });
        let mut checkpoint = args.access.open(options, Subjects::All)?;
        match (&labels, &checkpoint.meta().labels) {
            (_, Labels::None) => {}
            (Labels::None, own) => labels = own.clone(),
            (first, _) => {
                checkpoint =
                    match_classes(checkpoint, first).with_context(|| format!("`{}`", escape(name)))?;
            }
        }
        let options = EngineOptions { batch: args.batch_size, ..EngineOptions::default() };
        models.push(Classifier::with_options(&checkpoint, &device, options)?);
    }
    let data = PathBuf::from(data);
    let (dataset, indices) = dataset(&data)?;
    let dataset = dataset
        .with_labels(&labels, models.first().and_then(|model| model.meta().arch.classes()).unwrap_or(0))?;
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

/// Reorders the classes of a checkpoint of an ensemble to match `labels`, those of the first checkpoint.
fn match_classes(checkpoint: Checkpoint, labels: &Labels) -> anyhow::Result<Checkpoint> {
    let own = &checkpoint.meta().labels;
    let names = |labels: &Labels| -> Vec<String> {
        (0..).map_while(|class| labels.get(class).map(|label| label.name.to_owned())).collect()
    };
    let (own, first) = (names(own), names(labels));
    if own == first {
        return Ok(checkpoint);
    }
    let mut indices: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (index, name) in own.iter().enumerate().rev() {
        indices.entry(name).or_default().push(index);
    }
    let mut order = Vec::with_capacity(first.len());
    for name in &first {
        match indices.get_mut(name.as_str()).and_then(Vec::pop) {
            Some(index) => order.push(index),
            None => bail!("no class `{}`, which the first checkpoint of the ensemble has", escape(name)),
        }
    }
    match checkpoint.with_class_order(&order)? {
        Some(checkpoint) => Ok(checkpoint),
        None => bail!("{} classes, but the first checkpoint of the ensemble has {}", own.len(), first.len()),
    }
}

/// Returns the dataset and the indices to evaluate.
fn dataset(path: &Path) -> anyhow::Result<(Dataset, Vec<usize>)> {
    let dataset = match path.is_dir() {
        true => Dataset::from_folder(path, 0.0, 0)?,
        false => Dataset::from_csv(path, 0.0, 0)?,
    };
    let indices = match dataset.val() {
        [] => dataset.all(),
        val => val.to_vec(),
    };
    Ok((dataset, indices))
}

/// Returns the off-diagonal entries of the confusion matrix, largest first: number of images, class, predicted class.
fn mistakes(result: &Evaluation) -> Vec<(usize, usize, usize)> {
    let entries = result.confusion.iter().map(|(&(class, predicted), &count)| (count, class, predicted));
    let mut entries: Vec<_> = entries.filter(|(_, class, predicted)| class != predicted).collect();
    entries.sort_by(|a, b| b.0.cmp(&a.0).then(a.cmp(b)));
    entries
}

fn text(args: &Args, result: &Evaluation, dataset: &Dataset, out: &mut dyn Write) -> io::Result<()> {
    let images = result.images;
    writeln!(out, "images  {images}")?;
    writeln!(out, "top-1   {:.2} %  ({} correct)", 100.0 * result.top1_accuracy(), result.top1)?;
    writeln!(out, "top-5   {:.2} %  ({} correct)", 100.0 * result.top5_accuracy(), result.top5)?;
    writeln!(out, "loss    {:.4}", result.loss)?;
    let names = dataset.classes();
    if args.per_class {
        for (class, [correct, images]) in result.per_class() {
            let accuracy = 100.0 * correct as f64 / images as f64;
            writeln!(out, "{accuracy:>7.2} %  {correct}/{images}  {}", names[class])?;
        }
    }
    if args.confusion {
        for (n, class, predicted) in mistakes(result) {
            writeln!(out, "{n:>5}  {} predicted as {}", names[class], names[predicted])?;
        }
    }
    Ok(())
}

fn json(args: &Args, result: &Evaluation, dataset: &Dataset, out: &mut dyn Write) -> anyhow::Result<()> {
    let names = dataset.classes();
    let mut value = serde_json::json!({
        "images": result.images,
        "top1": 100.0 * result.top1_accuracy(),
        "top5": 100.0 * result.top5_accuracy(),
        "loss": result.loss,
        "skipped": result.skipped,
    });
    if args.per_class {
        let row = |(class, [correct, images]): (usize, [usize; 2])| serde_json::json!({"class": names[class], "correct": correct, "images": images});
        value["classes"] = result.per_class().into_iter().map(row).collect();
    }
    if args.confusion {
        let row = |(images, class, predicted): (usize, usize, usize)| serde_json::json!({"class": names[class], "predicted": names[predicted], "images": images});
        value["confusion"] = mistakes(result).into_iter().map(row).collect();
    }
    writeln!(out, "{value:#}")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_of_an_ensemble_are_matched_by_label() {
        let labels = |names: &[&str]| Labels::Names(names.iter().map(|&n| n.to_owned()).collect());
        let checkpoint = |names: &[&str]| {
            let arch = resnet_model::zoo::arch("resnet20_cifar").unwrap().with_classes(names.len());
            let checkpoint = resnet_model::synthetic::checkpoint(&arch).unwrap();
            let meta = resnet_model::Meta { labels: labels(names), ..checkpoint.meta().clone() };
            checkpoint.with_meta(meta).unwrap()
        };
        let first = labels(&["cat", "dog"]);
        for names in [["cat", "dog"], ["dog", "cat"]] {
            assert_eq!(match_classes(checkpoint(&names), &first).unwrap().meta().labels, first);
        }
        for names in [&["cat"][..], &["cat", "cow"], &["cat", "dog", "cow"]] {
            let error = match_classes(checkpoint(names), &first).unwrap_err().to_string();
            assert!(error.contains("the first checkpoint of the ensemble has"), "{error}");
        }
    }
}
