//! `inspect`: contents of a checkpoint file, convertible or not.

use std::collections::{HashMap, HashSet};
use std::io::Write;
use std::path::Path;

use anyhow::{Context, bail};
use resnet_convert::source;
use resnet_model::text::{bytes, thousands};
use resnet_model::{RawTensor, escape};
use resnet_weights::{Error, Options, Report};
use serde::Serialize;

use crate::exit::Outcome;
use crate::page::{Page, longest};
use crate::weights::{Access, Overrides};

/// Show the contents of a checkpoint file
///
/// Shows the format, the network and how it was identified, its preprocessing and labels and where they come from, and the name, dtype and shape of every tensor, with its name after
/// conversion. If the file is not a known network, the reason is shown.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A checkpoint file in any format that resnet-convert reads, a folder with one, or a Hub id
    #[arg(value_name = "FILE|DIR|HUB-ID")]
    file: String,
    #[command(flatten)]
    overrides: Overrides,
    #[command(flatten)]
    access: Access,
    /// Show the minimum, mean and maximum of every tensor, and the number of NaN and infinite values
    #[arg(long)]
    stats: bool,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Inspection {
    file: String,
    bytes: u64,
    container: source::Format,
    /// The conversion report.
    #[serde(skip_serializing_if = "Option::is_none")]
    report: Option<Report>,
    /// The error of the conversion.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    /// A remedy for `error`.
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<&'static str>,
    tensors: Vec<TensorRow>,
    unsupported: Vec<Unsupported>,
    opaque: Vec<String>,
    notes: Vec<String>,
}

#[derive(Serialize)]
struct TensorRow {
    name: String,
    dtype: String,
    shape: Vec<usize>,
    bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    becomes: Option<String>,
    /// The reason why conversion drops the tensor.
    #[serde(skip_serializing_if = "Option::is_none")]
    dropped: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stats: Option<Stats>,
}

#[derive(Serialize)]
struct Unsupported {
    name: String,
    kind: String,
}

/// Statistics of the finite values; `None` if there are none.
#[derive(Debug, PartialEq, Serialize)]
struct Stats {
    min: Option<f32>,
    mean: Option<f64>,
    max: Option<f32>,
    nan: u64,
    infinite: u64,
}

/// Runs the command.
pub fn run(args: Args, out: &mut dyn Write) -> anyhow::Result<Outcome> {
    let inspection = inspect(&args)?;
    if args.json {
        serde_json::to_writer_pretty(&mut *out, &inspection)?;
        writeln!(out)?;
    } else {
        print(&inspection, &mut Page::new(out))?;
    }
    Ok(Outcome::Success)
}

fn inspect(args: &Args) -> anyhow::Result<Inspection> {
    let path = crate::weights::locate(&args.file, args.access.refresh)?;
    let state = source::read(&path)?;
    let (container, own) = (state.container, state.tensors.clone());
    let unsupported: Vec<Unsupported> =
        state.unsupported.iter().cloned().map(|(name, kind)| Unsupported { name, kind }).collect();
    let (opaque, notes) = (state.opaque.clone(), state.notes.clone());
    drop(state);
    let options = args.overrides.apply(Options { weights: Some(args.file.clone()), ..Options::default() });
    let (report, error, hint) = match args.access.open_with_report(options) {
        Ok((_, report)) => (Some(report), None, None),
        Err(Error::Convert(e)) => (None, Some(e.to_string()), e.hint()),
        Err(e @ (Error::ConfigKey { .. } | Error::Json { .. })) => (None, Some(e.to_string()), None),
        Err(e) => return Err(e.into()),
    };
    if let Some(assumption) =
        report.iter().flat_map(Report::assumptions).next().filter(|_| args.access.strict)
    {
        bail!("--strict: {assumption}");
    }
    let tensors = rows(&own, report.as_ref().map(|report| &report.file), args.stats, &path)?;
    Ok(Inspection {
        file: args.file.clone(),
        bytes: std::fs::metadata(&path).map_or(0, |m| m.len()),
        container,
        report,
        error,
        hint,
        tensors,
        unsupported,
        opaque,
        notes,
    })
}

fn rows(
    tensors: &[(String, RawTensor)],
    report: Option<&resnet_convert::Report>,
    stats: bool,
    file: &Path,
) -> anyhow::Result<Vec<TensorRow>> {
    let (mut becomes, mut dropped) = (HashMap::new(), HashMap::new());
    if let Some(report) = report {
        becomes.extend(report.renamed.iter().map(|r| (r.from.as_str(), r.to.clone())));
        dropped.extend(report.dropped.iter().map(|d| (d.name.as_str(), d.reason.clone())));
    }
    let row = |(name, tensor): &(String, RawTensor)| {
        let row = TensorRow {
            name: name.clone(),
            dtype: format!("{:?}", tensor.dtype()),
            shape: tensor.shape().to_vec(),
            bytes: tensor.byte_len(),
            becomes: becomes.get(name.as_str()).cloned(),
            dropped: dropped.get(name.as_str()).cloned(),
            stats: match stats {
                true => Stats::from_tensor(tensor)
                    .with_context(|| format!("`{}`: `{}`", file.display(), escape(name)))?,
                false => None,
            },
        };
        Ok(row)
    };
    tensors.iter().map(row).collect()
}

impl Stats {
    /// Computes statistics of the values as f32; `None` for dtypes that are not numeric.
    fn from_tensor(tensor: &RawTensor) -> resnet_model::Result<Option<Stats>> {
        let mut stats = Stats { min: None, mean: None, max: None, nan: 0, infinite: 0 };
        let (mut sum, mut count) = (0.0, 0u64);
        let read = tensor.for_each_f32("", |values| {
            for &v in values {
                match v {
                    _ if v.is_nan() => stats.nan += 1,
                    _ if v.is_infinite() => stats.infinite += 1,
                    _ => {
                        stats.min = Some(stats.min.map_or(v, |m| m.min(v)));
                        stats.max = Some(stats.max.map_or(v, |m| m.max(v)));
                        sum += f64::from(v);
                        count += 1;
                    }
                }
            }
            Ok(())
        });
        match read {
            Err(resnet_model::Error::Dtype { .. }) => return Ok(None),
            other => other?,
        }
        stats.mean = (count > 0).then(|| sum / count as f64);
        Ok(Some(stats))
    }
}

fn print(found: &Inspection, page: &mut Page) -> anyhow::Result<()> {
    page.line(&escape(&found.file))?;
    page.field("container", &format!("{}, {}", found.container, bytes(found.bytes)))?;
    if let Some(report) = found.report.as_ref().map(|report| &report.file) {
        let head = match report.classes {
            Some(classes) => format!("{} classes", thousands(classes as u64)),
            None => "no head".into(),
        };
        let parameters = thousands(report.parameters);
        page.field("architecture", &format!("{}, {parameters} parameters, {head}", report.model))?;
        page.field("known by", &report.identified.to_string())?;
        let root = match report.root.as_str() {
            "" => String::new(),
            root => format!(", under `{}`", escape(root)),
        };
        page.field("names", &format!("{}{root}", report.dialect))?;
    }
    if let Some(report) = &found.report {
        page.field("preprocess", &format!("{} (from {})", report.preprocess, report.preprocess_from))?;
        match report.labels.as_str() {
            "none" => page.field("labels", "none")?,
            labels => page.field("labels", &format!("{labels} (from {})", report.labels_from))?,
        }
    }
    if let Some(error) = &found.error {
        // The file name is printed above.
        let error = error.strip_prefix(&format!("`{}`: ", escape(&found.file))).unwrap_or(error);
        page.field("not a network", error)?;
        if let Some(hint) = found.hint {
            page.field("hint", hint)?;
        }
    }
    let mut types: Vec<(&str, u64)> = vec![];
    for row in &found.tensors {
        match types.iter_mut().find(|(dtype, _)| *dtype == row.dtype) {
            Some((_, count)) => *count += 1,
            None => types.push((&row.dtype, 1)),
        }
    }
    let types: Vec<String> = types.iter().map(|(dtype, n)| format!("{} {dtype}", thousands(*n))).collect();
    let total = bytes(found.tensors.iter().map(|row| row.bytes).sum());
    page.field(
        "tensors",
        &format!("{} ({}), {total}", thousands(found.tensors.len() as u64), types.join(", ")),
    )?;
    let count =
        |what: fn(&TensorRow) -> bool| thousands(found.tensors.iter().filter(|row| what(row)).count() as u64);
    if found.report.is_some() {
        let (renamed, dropped) = (count(|row| row.becomes.is_some()), count(|row| row.dropped.is_some()));
        page.field("converted", &format!("{renamed} would be renamed, {dropped} dropped"))?;
    }
    if let Some(report) = found.report.as_ref().map(|report| &report.file) {
        for t in &report.reshaped {
            page.field("reshaped", &format!("{} {:?} → {:?}", escape(&t.name), t.from, t.to))?;
        }
        for t in &report.synthesized {
            page.field("added", &format!("{}: {}", escape(&t.name), t.reason))?;
        }
        if !report.unset.is_empty() {
            page.field("missing", &format!("{}, which do not affect the output", report.unset.join(", ")))?;
        }
    }
    if !found.opaque.is_empty() {
        let names: Vec<String> = found.opaque.iter().map(|name| escape(name)).collect();
        page.field("not read", &format!("Python objects: {}", names.join(", ")))?;
    }
    let own = found.report.iter().flat_map(|report| &report.file.notes);
    let mut seen = HashSet::new();
    for note in found.notes.iter().chain(own).filter(|note| seen.insert(note.as_str())) {
        page.field("note", &escape(note))?;
    }
    page.line("")?;
    let column = longest(found.tensors.iter().map(|row| &*row.name));
    for row in &found.tensors {
        let mut after = Vec::new();
        if let Some(stats) = &row.stats {
            after.push(describe(stats));
        }
        if let Some(name) = &row.becomes {
            after.push(format!("→ {}", escape(name)));
        }
        if let Some(reason) = &row.dropped {
            after.push(format!("dropped: {reason}"));
        }
        page.row(&escape(&row.name), column, &format!("{:<5}{:?}", row.dtype, row.shape), &after)?;
    }
    for tensor in &found.unsupported {
        page.row(&escape(&tensor.name), column, "?", &[format!("not read: {}", escape(&tensor.kind))])?;
    }
    Ok(())
}

fn describe(stats: &Stats) -> String {
    let mut text = match (stats.min, stats.mean, stats.max) {
        (Some(min), Some(mean), Some(max)) => format!("min {min:.4e}  mean {mean:.4e}  max {max:.4e}"),
        _ => "no finite values".to_owned(),
    };
    for (count, what) in [(stats.nan, "NaN"), (stats.infinite, "infinite")] {
        if count > 0 {
            text.push_str(&format!("  {} {what}", thousands(count)));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_ignore_non_finite_values() {
        let of = |values: &[f32]| {
            Stats::from_tensor(&RawTensor::from_f32(vec![values.len()], values).unwrap()).unwrap().unwrap()
        };
        let stats = of(&[3.0, f32::NAN, -1.0, f32::INFINITY, f32::NEG_INFINITY, 1.0]);
        let expected = Stats { min: Some(-1.0), mean: Some(1.0), max: Some(3.0), nan: 1, infinite: 2 };
        assert_eq!(stats, expected);
        assert_eq!(describe(&stats), "min -1.0000e0  mean 1.0000e0  max 3.0000e0  1 NaN  2 infinite");
        assert_eq!(describe(&of(&[f32::NAN])), "no finite values  1 NaN");
        assert_eq!(of(&[]).min, None);
    }
}
