//! `bench`: speed of the engine on this CPU.

use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use resnet_model::engine::{Engine, EngineOptions, Isa, Precision, fma_peak};
use resnet_model::{Checkpoint, synthetic, zoo};
use serde::Serialize;

use crate::exit::Outcome;
use crate::terminal;
use crate::weights::{Access, Selection, Subjects};

/// Measure the speed of the engine on this CPU
///
/// Times are per batch, from normalized images to logits; loading is not included. `peak` is the GFLOP/s of direct
/// convolution divided by the FMA throughput of the same number of threads, measured in the same run; because Winograd
/// needs fewer operations, it can exceed 100 %.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    selection: Selection,
    #[command(flatten)]
    access: Access,
    /// Batch sizes
    #[arg(long, value_delimiter = ',', default_value = "1", value_name = "N,...", value_parser = super::predict::positive)]
    batch: Vec<usize>,
    /// Numbers of threads; default: all cores
    #[arg(long, value_delimiter = ',', value_name = "N,...", value_parser = super::predict::positive)]
    threads: Vec<usize>,
    /// Instruction sets: avx512, avx2, neon, portable or all; default: the fastest available
    #[arg(long, value_delimiter = ',', value_name = "NAME,...")]
    isa: Vec<String>,
    /// Height and width of the input in pixels; default: that of the weights
    #[arg(long, value_name = "PIXELS", value_parser = super::predict::positive)]
    size: Option<usize>,
    /// Number of measured batches, after two for warm-up
    #[arg(long, default_value_t = 20, value_name = "N", value_parser = super::predict::positive)]
    iters: usize,
    /// Use direct convolution only, not Winograd
    #[arg(long)]
    exact: bool,
    /// Show the time of every layer
    #[arg(long)]
    layers: bool,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

/// One measurement.
#[derive(Debug, Serialize)]
struct Measurement {
    model: String,
    batch: usize,
    threads: usize,
    isa: &'static str,
    precision: &'static str,
    size: [usize; 2],
    iters: usize,
    median_ms: f64,
    p10_ms: f64,
    p90_ms: f64,
    images_per_s: f64,
    gflops: f64,
    peak_gflops: f64,
    share_of_peak: f64,
    load_ms: f64,
    weights_mib: f64,
    activations_mib: f64,
    peak_memory_mib: Option<f64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    layers: Vec<Layer>,
}

/// One step of the compiled network.
#[derive(Debug, Serialize)]
struct Layer {
    name: String,
    kernel: String,
    median_ms: f64,
    gflops: f64,
    share_of_peak: f64,
}

/// Runs the command.
pub fn run(args: Args, out: &mut dyn Write) -> anyhow::Result<Outcome> {
    let checkpoint = args.checkpoint()?;
    let isas = args.isas()?;
    let threads = match args.threads.as_slice() {
        [] => vec![EngineOptions::default().threads],
        given => given.to_vec(),
    };
    let mut rows = Vec::new();
    for &isa in &isas {
        for &threads in &threads {
            for &batch in &args.batch {
                let row = measure(&args, &checkpoint, isa, threads, batch)?;
                if !args.json {
                    text(out, &row, rows.is_empty())?;
                    out.flush()?;
                }
                rows.push(row);
            }
        }
    }
    if args.json {
        serde_json::to_writer_pretty(&mut *out, &rows)?;
        writeln!(out)?;
    }
    Ok(Outcome::Success)
}

impl Args {
    /// Opens the weights, or makes them up for a model name, because speed does not depend on their values.
    fn checkpoint(&self) -> anyhow::Result<Checkpoint> {
        if self.selection.weights.is_some() {
            return self.access.open(self.selection.options()?, Subjects::Arch);
        }
        let name = self.selection.arch_name()?.context("expected --depth, --model or --weights")?;
        Ok(synthetic::checkpoint(&zoo::arch(&name)?)?)
    }

    fn isas(&self) -> anyhow::Result<Vec<Isa>> {
        if self.isa.is_empty() {
            return Ok(vec![Isa::best()]);
        }
        let mut isas = Vec::new();
        for name in &self.isa {
            match name.as_str() {
                "all" => isas.extend(Isa::available()),
                name => isas.push(name.parse::<Isa>().with_context(|| format!("--isa {name}"))?),
            }
        }
        Ok(isas)
    }
}

fn measure(
    args: &Args,
    checkpoint: &Checkpoint,
    isa: Isa,
    threads: usize,
    batch: usize,
) -> anyhow::Result<Measurement> {
    let size = args.size.map_or(checkpoint.meta().preprocess.crop, |side| [side; 2]);
    let precision = if args.exact { Precision::Exact } else { Precision::F32 };
    let start = Instant::now();
    let engine =
        Engine::new(checkpoint, EngineOptions { threads, isa, precision, batch, input: Some(size) })?;
    let load = start.elapsed();

    let dims = [batch, engine.graph().in_channels(), size[0], size[1]];
    let Some(elements) = dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).filter(|&n| n < 1 << 32)
    else {
        bail!("--batch {batch}: the input has too many values at {}×{} pixels", size[0], size[1]);
    };
    let x = synthetic::input(elements);
    let steps = engine.steps(size)?;
    let mut step_times = vec![Vec::with_capacity(args.iters); steps.len()];
    let mut times = Vec::with_capacity(args.iters);
    let mut peaks = Vec::new();
    for i in 0..args.iters + 2 {
        let start = Instant::now();
        engine.profile(&x, dims, &mut |step, time| {
            if i >= 2 {
                step_times[step].push(time);
            }
        })?;
        if i >= 2 {
            times.push(start.elapsed());
        }
        // Interleaved with the batches, so that both see the same load.
        if i % 8 == 0 {
            peaks.push(fma_peak(isa, Duration::from_millis(20)) / 1e9 * threads as f64);
        }
    }
    let peak_gflops = peaks.iter().copied().fold(0.0, f64::max);
    let ms = |q: f64| quantile(&mut times.clone(), q);
    let macs = engine.graph().macs(size[0], size[1])? as f64 * batch as f64;
    let rate = |macs: f64, ms: f64| if ms > 0.0 { 2.0 * macs / ms / 1e6 } else { 0.0 };
    let gflops = rate(macs, ms(0.5));
    let layers = match args.layers {
        false => vec![],
        true => steps
            .into_iter()
            .zip(&mut step_times)
            .map(|(step, times)| {
                let median_ms = quantile(times, 0.5);
                let gflops = rate(step.macs as f64 * batch as f64, median_ms);
                let share_of_peak = gflops / peak_gflops;
                Layer { name: step.name, kernel: step.kernel, median_ms, gflops, share_of_peak }
            })
            .collect(),
    };
    Ok(Measurement {
        model: checkpoint.meta().arch.to_string(),
        batch,
        threads,
        isa: isa.name(),
        precision: if args.exact { "exact" } else { "f32" },
        size,
        iters: args.iters,
        median_ms: ms(0.5),
        p10_ms: ms(0.1),
        p90_ms: ms(0.9),
        images_per_s: batch as f64 * 1e3 / ms(0.5),
        gflops,
        peak_gflops,
        share_of_peak: gflops / peak_gflops,
        load_ms: load.as_secs_f64() * 1e3,
        weights_mib: terminal::mib(engine.weight_bytes() as u64),
        activations_mib: terminal::mib(engine.arena_bytes(dims)? as u64),
        peak_memory_mib: peak_memory().map(terminal::mib),
        layers,
    })
}

/// Returns the quantile `q` of the times in milliseconds.
fn quantile(times: &mut [Duration], q: f64) -> f64 {
    times.sort();
    let index = ((times.len().saturating_sub(1)) as f64 * q).round() as usize;
    times.get(index).map_or(0.0, |t| t.as_secs_f64() * 1e3)
}

/// Returns the peak resident memory of this process in bytes; `None` where `/proc` does not exist.
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

fn text(out: &mut dyn Write, row: &Measurement, first: bool) -> anyhow::Result<()> {
    let mut line = |cells: [&str; 11]| {
        let [model, batch, threads, isa, median, p10, p90, speed, gflops, peak, memory] = cells;
        writeln!(
            out,
            "{model:<18} {batch:>5} {threads:>7} {isa:<8} {median:>9} {p10:>8} {p90:>8} {speed:>7} {gflops:>7} \
             {peak:>5} {memory:>7}"
        )
    };
    if first {
        line(["", "", "", "", "median", "p10", "p90", "", "", "of", "memory"])?;
        line(["model", "batch", "threads", "isa", "ms", "ms", "ms", "img/s", "GFLOP/s", "peak", "MiB"])?;
    }
    let fixed = |value: f64, digits: usize| format!("{value:.digits$}");
    line([
        &row.model,
        &row.batch.to_string(),
        &row.threads.to_string(),
        row.isa,
        &fixed(row.median_ms, 2),
        &fixed(row.p10_ms, 2),
        &fixed(row.p90_ms, 2),
        &fixed(row.images_per_s, 1),
        &fixed(row.gflops, 1),
        &format!("{:.0}%", row.share_of_peak * 100.0),
        &row.peak_memory_mib.map_or_else(|| "-".into(), |mib| fixed(mib, 0)),
    ])?;
    for layer in &row.layers {
        writeln!(
            out,
            "  {:<26} {:<30} {:>8.3} ms {:>7.1} GFLOP/s {:>4.0}%",
            layer.name,
            layer.kernel,
            layer.median_ms,
            layer.gflops,
            layer.share_of_peak * 100.0
        )?;
    }
    Ok(())
}
