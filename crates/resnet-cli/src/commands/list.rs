//! `list`: models with their accuracy and cost.

use std::cmp::Ordering;
use std::io::Write;
use std::path::PathBuf;

use clap::ValueEnum;
use resnet_model::file::{Existing, write_atomically};
use serde::Serialize;

use crate::exit::Outcome;
use crate::models::{self, Model};
use crate::{scatter, terminal};

/// List models with their accuracy and cost
///
/// Accuracies are published results on the ImageNet-1k validation set; `-` if the weights have other classes or none are
/// published. GMACs are at the input size shown. `*` marks models on the Pareto front: no listed model of equal or lower cost
/// is more accurate.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Names of models or architectures; `*` matches any characters (quote it)
    #[arg(value_name = "PATTERN")]
    patterns: Vec<String>,
    /// Sort by accuracy or cost
    #[arg(long, value_enum)]
    sort: Option<Sort>,
    /// Write JSON
    #[arg(long, conflicts_with = "plot")]
    json: bool,
    /// Write a scatter plot of accuracy against GMACs to this file instead
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
    /// Replace the file of --plot if it exists
    #[arg(long, requires = "plot")]
    force: bool,
}

/// Sort key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Sort {
    /// Top-1 accuracy, best first
    Top1,
    /// Parameters, fewest first
    Params,
    /// GMACs, fewest first
    Gmacs,
}

#[derive(Serialize)]
struct ModelRow<'a> {
    name: &'a str,
    arch: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    hub: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    license: Option<&'a str>,
    default: bool,
    parameters: u64,
    gmacs: f64,
    size: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    top1: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top5: Option<f64>,
}

/// Runs the command.
pub fn run(args: Args, out: &mut dyn Write) -> anyhow::Result<Outcome> {
    let mut models = match args.patterns.as_slice() {
        [] => models::all()?,
        patterns => {
            let mut found: Vec<Model> = Vec::new();
            for pattern in patterns {
                let new = models::matching(pattern)?;
                found.extend(
                    new.into_iter()
                        .filter(|m| !found.iter().any(|f| f.name() == m.name()))
                        .collect::<Vec<_>>(),
                );
            }
            found
        }
    };
    let cheaper = |a: &Model, b: &Model| a.macs.cmp(&b.macs);
    match args.sort {
        None => {}
        Some(Sort::Top1) => {
            let accuracy = |m: &Model| m.top1().unwrap_or(-1.0);
            models.sort_by(|a, b| accuracy(b).total_cmp(&accuracy(a)).then(cheaper(a, b)));
        }
        Some(Sort::Params) => models.sort_by_key(|m| m.params),
        Some(Sort::Gmacs) => models.sort_by(cheaper),
    }
    if let Some(path) = &args.plot {
        super::require_extension("--plot", path, "svg")?;
        let plot = scatter::svg(&models, &frontier(&models))?;
        let existing = Existing::replace_if(args.force);
        write_atomically(path, existing, |file| Ok(file.write_all(plot.as_bytes())?))?;
    } else if args.json {
        serde_json::to_writer_pretty(&mut *out, &models.iter().map(row).collect::<Vec<_>>())?;
        writeln!(out)?;
    } else {
        table(out, &models, terminal::width())?;
    }
    Ok(Outcome::Success)
}

fn row(model: &Model) -> ModelRow<'_> {
    let weights = model.published;
    ModelRow {
        name: model.name(),
        arch: model.arch_name,
        hub: weights.map(|w| w.hub.as_str()),
        license: weights.and_then(|w| w.license.as_deref()),
        default: weights.is_some_and(|w| w.default),
        parameters: model.params,
        gmacs: (model.gmacs() * 1e3).round() / 1e3,
        size: model.size,
        top1: model.top1(),
        top5: weights.and_then(|w| w.top5),
    }
}

/// Returns, for each model, whether it is on the Pareto front of accuracy and MACs.
fn frontier(models: &[Model]) -> Vec<bool> {
    let mut order: Vec<usize> = (0..models.len()).collect();
    let accuracy = |i: usize| models[i].top1().unwrap_or(f64::NEG_INFINITY);
    order.sort_by(|&a, &b| match models[a].macs.cmp(&models[b].macs) {
        Ordering::Equal => accuracy(b).total_cmp(&accuracy(a)),
        other => other,
    });
    let mut best = f64::NEG_INFINITY;
    let mut on = vec![false; models.len()];
    for i in order {
        if accuracy(i) > best {
            best = accuracy(i);
            on[i] = true;
        }
    }
    on
}

/// Width of the columns between name and license.
const FIGURES: usize = 36;

pub(super) fn table(out: &mut dyn Write, models: &[Model], width: Option<usize>) -> anyhow::Result<()> {
    let on = frontier(models);
    let licenses = models.iter().filter_map(|m| m.published?.license.as_deref()).map(str::len).max();
    let longest = models.iter().map(|m| m.name().len()).max().unwrap_or(0).max("model".len());
    let name = width.map_or(longest, |width| longest.min(width.saturating_sub(FIGURES + 2).max(12)));
    let license = licenses.filter(|len| width.is_none_or(|width| 2 + name + FIGURES + 2 + len <= width));
    let head = ["model", "top-1", "top-5", "params", "GMACs", "size", "license"];
    let mut line = |mark: char, cells: [&str; 7]| {
        let [model, top1, top5, params, gmacs, size, last] = cells;
        let model = terminal::fit(model, name);
        let last = if license.is_some() { format!("  {last}") } else { String::new() };
        let text =
            format!("{mark} {model:<name$} {top1:>6} {top5:>6} {params:>7} {gmacs:>7} {size:>5}{last}");
        writeln!(out, "{}", text.trim_end())
    };
    line(' ', head)?;
    for (model, on) in models.iter().zip(on) {
        let weights = model.published;
        let percent = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |v| format!("{v:.2}"));
        let gmacs = model.gmacs();
        let cells = [
            model.name(),
            &percent(model.top1()),
            &percent(weights.and_then(|w| w.top5)),
            &terminal::short(model.params),
            &(if gmacs < 0.1 { format!("{gmacs:.3}") } else { format!("{gmacs:.2}") }),
            &model.size.to_string(),
            weights.and_then(|w| w.license.as_deref()).unwrap_or("-"),
        ];
        line(if on { '*' } else { ' ' }, cells)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_model_beats_the_pareto_front() {
        let models = models::matching("resnet*").unwrap();
        let on = frontier(&models);
        for (i, model) in models.iter().enumerate() {
            let beats = |other: &Model| other.macs <= model.macs && other.top1() > model.top1();
            assert_eq!(
                on[i],
                model.top1().is_some() && !models.iter().any(beats) && on[i],
                "{}",
                model.name()
            );
            assert!(
                on[i]
                    || model.top1().is_none()
                    || models.iter().any(|m| m.macs <= model.macs && m.top1() >= model.top1())
            );
        }
        assert!(on.iter().filter(|on| **on).count() > 3);
    }

    #[test]
    fn tables_fit_the_terminal() {
        let models = models::all().unwrap();
        for width in [60, 80, 100, 200] {
            let mut out = Vec::new();
            table(&mut out, &models, Some(width)).unwrap();
            let text = String::from_utf8(out).unwrap();
            let longest = text.lines().map(|line| line.chars().count()).max().unwrap();
            assert!(longest <= width, "{longest} of {width}");
            assert_eq!(text.lines().count(), models.len() + 1);
            assert_eq!(text.contains("apache-2.0"), width > 100, "{width}");
        }
    }
}
