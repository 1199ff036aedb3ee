//! `diff`: comparison of the tensors of two checkpoint files.

use std::collections::HashMap;
use std::io::Write;

use anyhow::Context;
use resnet_convert::{ConvertOptions, source};
use resnet_model::{RawTensor, escape};
use serde::Serialize;

use crate::exit::Outcome;
use crate::page::{Page, longest};
use resnet_model::text::thousands;

/// Compare the tensors of two checkpoint files
///
/// Tensors are compared under their names after conversion, so that the format and naming scheme of the files do not matter;
/// if a file is not a known network, under the names in the files. Values are equal if they compare equal or if both are
/// NaN. The exit status is 0 if the files are the same, 1 if they differ, 2 on failure.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// First checkpoint: a file in any format that resnet-convert reads, a folder with one, or a Hub id
    #[arg(value_name = "A")]
    a: String,
    /// Second checkpoint
    #[arg(value_name = "B")]
    b: String,
    /// Ask the Hub for the current commit of a branch that is cached
    #[arg(long)]
    refresh: bool,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Comparison {
    a: Side,
    b: Side,
    /// If `true`, tensors were compared under their names after conversion.
    renamed: bool,
    same: bool,
    equal: usize,
    only_in_a: Vec<Only>,
    only_in_b: Vec<Only>,
    reshaped: Vec<Reshaped>,
    differing: Vec<Differing>,
}

#[derive(Serialize)]
struct Side {
    file: String,
    model: Option<String>,
    container: source::Format,
    tensors: usize,
}

#[derive(Serialize)]
struct Only {
    name: String,
    dtype: String,
    shape: Vec<usize>,
}

#[derive(Serialize)]
struct Reshaped {
    name: String,
    a: Vec<usize>,
    b: Vec<usize>,
}

#[derive(Serialize)]
struct Differing {
    name: String,
    shape: Vec<usize>,
    /// The dtypes, if they differ.
    #[serde(skip_serializing_if = "Option::is_none")]
    dtypes: Option<[String; 2]>,
    /// Number of differing values.
    values: u64,
    /// Largest difference of two finite values.
    largest: f64,
    /// `largest` divided by the largest magnitude in A.
    relative: f64,
    /// Number of values that are finite in one file only, or are different infinities.
    not_finite: u64,
}

/// A file and its tensors, under the names in the file and after conversion.
struct File {
    side: Side,
    own: Vec<(String, RawTensor)>,
    canonical: Option<Vec<(String, RawTensor)>>,
}

impl File {
    fn open(weights: &str, refresh: bool) -> anyhow::Result<File> {
        let path = &crate::weights::locate(weights, refresh)?;
        let state = source::read(path)?;
        let (container, own) = (state.container, state.tensors.clone());
        // Only if every tensor is recognized: a dropped one could be the difference.
        let understood = resnet_convert::build_checkpoint(state, path, &ConvertOptions::default()).ok();
        let model = understood.as_ref().map(|(_, report)| report.model.clone());
        let canonical =
            understood.map(|(c, _)| c.tensors().iter().map(|(n, t)| (n.clone(), t.clone())).collect());
        let side = Side { file: weights.to_owned(), model, container, tensors: 0 };
        Ok(File { side, own, canonical })
    }
}

/// Runs the command.
pub fn run(args: Args, out: &mut dyn Write) -> anyhow::Result<Outcome> {
    let compared = compare(File::open(&args.a, args.refresh)?, File::open(&args.b, args.refresh)?)?;
    if args.json {
        serde_json::to_writer_pretty(&mut *out, &compared)?;
        writeln!(out)?;
    } else {
        print(&compared, &mut Page::new(out))?;
    }
    Ok(Outcome::from_success(compared.same))
}

fn compare(a: File, b: File) -> anyhow::Result<Comparison> {
    let (mut side_a, mut side_b) = (a.side, b.side);
    let (renamed, a, b) = match (a.canonical, b.canonical) {
        (Some(x), Some(y)) => (true, x, y),
        _ => (false, a.own, b.own),
    };
    (side_a.tensors, side_b.tensors) = (a.len(), b.len());
    let mut out = Comparison {
        a: side_a,
        b: side_b,
        renamed,
        same: false,
        equal: 0,
        only_in_a: vec![],
        only_in_b: vec![],
        reshaped: vec![],
        differing: vec![],
    };
    let mut others: HashMap<&str, &RawTensor> = b.iter().map(|(n, t)| (n.as_str(), t)).collect();
    for (name, x) in &a {
        let Some(y) = others.remove(name.as_str()) else {
            out.only_in_a.push(only(name, x));
            continue;
        };
        if x.shape() != y.shape() {
            let (a, b) = (x.shape().to_vec(), y.shape().to_vec());
            out.reshaped.push(Reshaped { name: name.clone(), a, b });
            continue;
        }
        match difference(name, x, y).with_context(|| format!("`{}`", escape(name)))? {
            Some(found) => out.differing.push(found),
            None => out.equal += 1,
        }
    }
    out.only_in_b =
        b.iter().filter(|(n, _)| others.contains_key(n.as_str())).map(|(n, t)| only(n, t)).collect();
    out.same = out.only_in_a.is_empty()
        && out.only_in_b.is_empty()
        && out.reshaped.is_empty()
        && out.differing.is_empty();
    Ok(out)
}

fn only(name: &str, tensor: &RawTensor) -> Only {
    Only { name: name.to_owned(), dtype: format!("{:?}", tensor.dtype()), shape: tensor.shape().to_vec() }
}

/// Compares two tensors of one shape; `None` if they are equal.
fn difference(name: &str, a: &RawTensor, b: &RawTensor) -> anyhow::Result<Option<Differing>> {
    let retyped = a.dtype() != b.dtype();
    if !retyped && equal_bytes(a, b)? {
        return Ok(None);
    }
    let mut found = Differing {
        name: name.to_owned(),
        shape: a.shape().to_vec(),
        dtypes: retyped.then(|| [format!("{:?}", a.dtype()), format!("{:?}", b.dtype())]),
        values: 0,
        largest: 0.0,
        relative: 0.0,
        not_finite: 0,
    };
    let (Ok(left), Ok(right)) = (a.to_f32(name), b.to_f32(name)) else {
        // Not numeric: only the bytes can be compared.
        found.values = a.elements() as u64;
        return Ok(Some(found));
    };
    let mut magnitude = 0f64;
    for (&x, &y) in left.iter().zip(&right) {
        if x.is_finite() {
            magnitude = magnitude.max(f64::from(x).abs());
        }
        if x == y || x.is_nan() && y.is_nan() {
            continue;
        }
        found.values += 1;
        match x.is_finite() && y.is_finite() {
            true => found.largest = found.largest.max((f64::from(x) - f64::from(y)).abs()),
            false => found.not_finite += 1,
        }
    }
    found.relative = if found.largest == 0.0 { 0.0 } else { found.largest / magnitude };
    // Zeros of different sign and different NaNs have other bytes, but equal values.
    Ok((retyped || found.values > 0).then_some(found))
}

fn equal_bytes(a: &RawTensor, b: &RawTensor) -> anyhow::Result<bool> {
    let mut equal = true;
    let (mut at, mut other) = (0, vec![]);
    a.for_each_chunk(|bytes| {
        if equal {
            other.resize(bytes.len(), 0);
            b.bytes().read_at(at, &mut other)?;
            equal = other == bytes;
            at += bytes.len() as u64;
        }
        Ok(())
    })?;
    Ok(equal)
}

fn print(found: &Comparison, page: &mut Page) -> anyhow::Result<()> {
    for (title, side) in [("A", &found.a), ("B", &found.b)] {
        let model = side.model.as_deref().unwrap_or("not a known network");
        let text = format!("{}: {model}, {} tensors, {}", escape(&side.file), side.tensors, side.container);
        page.field(title, &text)?;
    }
    let names =
        if found.renamed { "under their names after conversion" } else { "under their names in the files" };
    page.field("compared", &format!("{names}, {} equal", thousands(found.equal as u64)))?;
    for (title, tensors) in [("only in A", &found.only_in_a), ("only in B", &found.only_in_b)] {
        heading(page, title, tensors.len())?;
        let column = longest(tensors.iter().map(|t| &*t.name));
        for t in tensors {
            page.row(&escape(&t.name), column, &format!("{:<5}{:?}", t.dtype, t.shape), &[])?;
        }
    }
    heading(page, "different shapes", found.reshaped.len())?;
    let column = longest(found.reshaped.iter().map(|t| &*t.name));
    for t in &found.reshaped {
        page.row(&escape(&t.name), column, &format!("A {:?}, B {:?}", t.a, t.b), &[])?;
    }
    let retyped = found.differing.iter().filter(|t| t.values == 0).collect::<Vec<_>>();
    let changed = found.differing.iter().filter(|t| t.values > 0).collect::<Vec<_>>();
    heading(page, "different dtypes, equal values", retyped.len())?;
    let column = longest(retyped.iter().map(|t| &*t.name));
    for t in retyped {
        if let Some([a, b]) = &t.dtypes {
            page.row(&escape(&t.name), column, &format!("A {a}, B {b}"), &[])?;
        }
    }
    heading(page, "different values", changed.len())?;
    let column = longest(changed.iter().map(|t| &*t.name));
    for t in changed {
        let mut details = vec![];
        if let Some([a, b]) = &t.dtypes {
            details.push(format!("dtypes differ: A {a}, B {b}"));
        }
        let elements: usize = t.shape.iter().product();
        let mut text = format!("{} of {} values differ", thousands(t.values), thousands(elements as u64));
        if t.not_finite > 0 {
            text.push_str(&format!(", {} not finite", thousands(t.not_finite)));
        }
        details.push(text);
        page.row(
            &escape(&t.name),
            column,
            &format!("{:.3e} (rel. {:.1e})", t.largest, t.relative),
            &details,
        )?;
    }
    page.line(if found.same { "  no differences" } else { "  the files differ" })?;
    Ok(())
}

fn heading(page: &mut Page, title: &str, count: usize) -> anyhow::Result<()> {
    if count > 0 {
        page.line("")?;
        page.line(&format!("  {title}: {}", thousands(count as u64)))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use resnet_model::raw::Dtype;

    use super::*;

    fn f32s(values: &[f32]) -> RawTensor {
        RawTensor::from_f32(vec![values.len()], values).unwrap()
    }

    #[test]
    fn the_largest_difference_is_reported() {
        let check = |a: &[f32], b: &[f32], expected: Option<(u64, f64, u64)>| {
            let found = difference("t", &f32s(a), &f32s(b)).unwrap();
            assert_eq!(found.map(|d| (d.values, d.largest, d.not_finite)), expected, "{a:?} {b:?}");
        };
        check(&[1.0, 2.0], &[1.0, 2.0], None);
        check(&[1.0, 2.0, 4.0], &[1.5, 2.0, 3.0], Some((2, 1.0, 0)));
        check(&[0.0, f32::NAN], &[-0.0, -f32::NAN], None);
        check(&[1.0, f32::NAN], &[2.0, 0.0], Some((2, 1.0, 1)));
        check(&[f32::INFINITY], &[f32::NEG_INFINITY], Some((1, 0.0, 1)));
    }

    #[test]
    fn dtypes_can_differ_with_equal_values() {
        let half = RawTensor::new(Dtype::F16, vec![1], Arc::new(vec![0, 0x3c])).unwrap();
        let found = difference("t", &f32s(&[1.0]), &half).unwrap().unwrap();
        assert_eq!((found.values, found.dtypes.unwrap()), (0, ["F32".to_owned(), "F16".to_owned()]));
        let flag = |b| RawTensor::new(Dtype::BOOL, vec![1], Arc::new(vec![b])).unwrap();
        assert_eq!(difference("t", &flag(0), &flag(1)).unwrap().unwrap().values, 1);
        assert!(difference("t", &flag(1), &flag(1)).unwrap().is_none());
    }
}
