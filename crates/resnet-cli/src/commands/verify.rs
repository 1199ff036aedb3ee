//! `verify`: outputs of a checkpoint compared with outputs saved from PyTorch.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, bail};
use candle_core::{DType, Device, Tensor};
use resnet_model::engine::{EngineOptions, Precision};
use resnet_model::{RawTensor, Runtime, safetensors};
use serde::Serialize;

use crate::device::Choice;
use crate::exit::Outcome;
use crate::weights::{Access, Subjects};
use resnet_weights::Options;

/// Compare a checkpoint's outputs with outputs saved from PyTorch
///
/// FILE.safetensors contains `input` [N, C, H, W], already normalized, and PyTorch's outputs for it: `logits` [N, K] and
/// optionally intermediate outputs: `layer1` to `layer4`, `pooled`. Prints the largest absolute and relative difference of
/// each; the relative difference is the largest difference divided by the largest expected magnitude. The exit status is 1
/// if one exceeds --tolerance.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A checkpoint file, a folder with one, or a Hub id
    #[arg(value_name = "CHECKPOINT")]
    checkpoint: String,
    #[command(flatten)]
    access: Access,
    /// File with the input and the expected outputs
    #[arg(long, value_name = "FILE.safetensors")]
    against: PathBuf,
    /// Maximum relative difference
    #[arg(long, default_value_t = 1e-4, value_name = "X", value_parser = super::predict::number::<f64>)]
    tolerance: f64,
    /// Device to compute on: auto, cpu, cuda, cuda:INDEX or metal
    #[arg(long, default_value_t)]
    device: Choice,
    /// Use direct convolution only, not Winograd (CPU)
    #[arg(long)]
    exact: bool,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

/// The comparison of one output.
#[derive(Debug, Serialize)]
struct Difference {
    name: String,
    shape: Vec<usize>,
    max_abs: f64,
    relative: f64,
    pass: bool,
}

/// Runs the command.
pub fn run(args: Args, out: &mut dyn Write) -> anyhow::Result<Outcome> {
    let expected: BTreeMap<String, RawTensor> =
        safetensors::open(&args.against)?.tensors.into_iter().collect();
    let against = args.against.display();
    let Some(input) = expected.get("input") else { bail!("`{against}`: no tensor `input`") };
    let names: Vec<&str> = expected.keys().map(String::as_str).filter(|&n| n != "input").collect();
    if names.is_empty() {
        bail!("`{against}`: no expected outputs; expected `logits` or others next to `input`");
    }
    let device = args.device.open()?;
    let weights = Some(args.checkpoint.clone());
    let checkpoint = args.access.open(Options { weights, ..Options::default() }, Subjects::Arch)?;
    let input = input.to_candle("input", DType::F32, &Device::Cpu)?;
    let size = match *input.dims() {
        [_, _, height, width] => Some([height, width]),
        _ => None,
    };
    let precision = if args.exact { Precision::Exact } else { Precision::F32 };
    let options = EngineOptions { precision, input: size, ..EngineOptions::default() };
    let runtime = Runtime::new(&checkpoint, &device, options).with_context(|| format!("`{against}`"))?;
    let results = runtime.features(&input, &names).with_context(|| format!("`{against}`"))?;

    let mut differences = Vec::new();
    for (name, found) in names.iter().zip(&results) {
        let wanted = expected[*name].to_candle(name, DType::F32, &Device::Cpu)?;
        differences
            .push(compare(name, found, &wanted, args.tolerance).with_context(|| format!("`{against}`"))?);
    }
    let pass = differences.iter().all(|d| d.pass);
    if args.json {
        serde_json::to_writer_pretty(&mut *out, &differences)?;
        writeln!(out)?;
    } else {
        writeln!(out, "{}: {}", args.checkpoint, checkpoint.meta().arch)?;
        for d in &differences {
            let verdict = if d.pass { "ok" } else { "DIFFERS" };
            let shape = format!("{:?}", d.shape);
            writeln!(
                out,
                "  {:<8} {shape:<20} max abs {:.3e}  relative {:.3e}  {verdict}",
                d.name, d.max_abs, d.relative
            )?;
        }
    }
    Ok(Outcome::from_success(pass))
}

fn compare(name: &str, found: &Tensor, wanted: &Tensor, tolerance: f64) -> anyhow::Result<Difference> {
    let shape = found.dims().to_vec();
    // Pooled features are often saved as [N, C, 1, 1].
    let squeezed: Vec<usize> = wanted.dims().iter().rev().skip_while(|&&d| d == 1).copied().collect();
    let trimmed: Vec<usize> = shape.iter().rev().skip_while(|&&d| d == 1).copied().collect();
    if squeezed != trimmed {
        bail!("`{name}` has shape {:?}, the network's output has {shape:?}", wanted.dims());
    }
    let values = |t: &Tensor| -> candle_core::Result<Vec<f32>> {
        t.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1()
    };
    let (found, wanted) = (values(found)?, values(wanted)?);
    // NaN is never within the tolerance.
    let worst = |a: f64, b: f64| if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) };
    let max_abs =
        found.iter().zip(&wanted).map(|(&a, &b)| (f64::from(a) - f64::from(b)).abs()).fold(0.0, worst);
    let magnitude = wanted.iter().map(|&v| f64::from(v).abs()).fold(0.0, worst);
    let relative = if max_abs == 0.0 { 0.0 } else { max_abs / magnitude };
    Ok(Difference { name: name.to_owned(), shape, max_abs, relative, pass: relative <= tolerance })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nan_never_passes() {
        let t = |values: &[f32]| Tensor::new(values, &Device::Cpu).unwrap();
        assert!(compare("x", &t(&[1.0, 2.0]), &t(&[1.0, 2.0]), 0.0).unwrap().pass);
        assert!(!compare("x", &t(&[1.0, f32::NAN]), &t(&[1.0, 2.0]), 1.0).unwrap().pass);
        assert!(!compare("x", &t(&[1.0, 2.0]), &t(&[f32::NAN, 2.0]), 1.0).unwrap().pass);
        assert!(!compare("x", &t(&[1.0]), &t(&[0.0]), 1.0).unwrap().pass);
        assert!(compare("x", &t(&[1.0]), &t(&[1.0, 2.0]), 1.0).is_err());
    }
}
