//! `bench`: how fast the engine is on this CPU.

use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use resnet_model::engine::{Engine, EngineOptions, Isa, Precision, fma_peak};
use resnet_model::{Checkpoint, cost, synthetic, zoo};
use serde::Serialize;

use crate::weights::Selection;

/// Measure how fast the engine is on this CPU.
///
/// Times are of whole batches, from normalised images to results, weights loaded and packed before. The share of the
/// peak compares the multiply-adds of direct convolution with the fused multiply-adds that the same threads reach in
/// registers (one thread's peak times their number), measured in the same run: Winograd can exceed 100 %.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    selection: Selection,
    /// Images per batch
    #[arg(long, value_delimiter = ',', default_value = "1", value_name = "N,…", value_parser = super::predict::positive)]
    batch: Vec<usize>,
    /// Threads; default: all cores
    #[arg(long, value_delimiter = ',', value_name = "N,…", value_parser = super::predict::positive)]
    threads: Vec<usize>,
    /// Instruction sets: avx512, avx2, neon, portable, or all that this machine has; default: the best
    #[arg(long, value_delimiter = ',', value_name = "NAME,…")]
    isa: Vec<String>,
    /// Height and width in pixels; default: the weights' own
    #[arg(long, value_name = "PIXELS", value_parser = super::predict::positive)]
    size: Option<usize>,
    /// Batches measured, after two that are not
    #[arg(long, default_value_t = 20, value_name = "N", value_parser = super::predict::positive)]
    iters: usize,
    /// Direct convolutions only, no Winograd
    #[arg(long)]
    exact: bool,
    /// Also the time of every step
    #[arg(long)]
    layers: bool,
    /// Write JSON: an array of rows
    #[arg(long)]
    json: bool,
}

/// One measurement.
#[derive(Debug, Serialize)]
struct Row {
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

/// One step of the program.
#[derive(Debug, Serialize)]
struct Layer {
    name: String,
    kernel: String,
    median_ms: f64,
    gflops: f64,
    share_of_peak: f64,
}

/// Runs the command.
pub fn run(args: Args, out: &mut dyn Write) -> anyhow::Result<bool> {
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
    Ok(true)
}

impl Args {
    /// The weights that the flags name; a model of the zoo needs none, since speed does not depend on their values.
    fn checkpoint(&self) -> anyhow::Result<Checkpoint> {
        if self.selection.weights.is_some() {
            return self.selection.open();
        }
        let name = self.selection.arch_name()?.context("name the network: --depth, --model or --weights")?;
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
) -> anyhow::Result<Row> {
    let size = args.size.map_or(checkpoint.meta().preprocess.crop, |side| [side; 2]);
    let precision = if args.exact { Precision::Exact } else { Precision::F32 };
    let start = Instant::now();
    let engine =
        Engine::new(checkpoint, EngineOptions { threads, isa, precision, batch, input: Some(size) })?;
    let load = start.elapsed();

    let dims = [batch, engine.graph().in_channels(), size[0], size[1]];
    let Some(elements) = dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).filter(|&n| n < 1 << 32)
    else {
        bail!("--batch {batch}: too many images of {}×{} pixels", size[0], size[1]);
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
        // In between, so that both see the same machine.
        if i % 8 == 0 {
            peaks.push(fma_peak(isa, Duration::from_millis(20)) / 1e9 * threads as f64);
        }
    }
    let peak_gflops = peaks.iter().copied().fold(0.0, f64::max);
    let ms = |q: f64| quantile(&mut times.clone(), q);
    let macs = cost::macs(engine.graph(), size[0], size[1])? as f64 * batch as f64;
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
    const MIB: f64 = (1 << 20) as f64;
    Ok(Row {
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
        weights_mib: engine.weight_bytes() as f64 / MIB,
        activations_mib: engine.arena_bytes(dims)? as f64 / MIB,
        peak_memory_mib: peak_memory().map(|bytes| bytes as f64 / MIB),
        layers,
    })
}

/// The value below which a share `q` of the times lies, in milliseconds.
fn quantile(times: &mut [Duration], q: f64) -> f64 {
    times.sort();
    let index = ((times.len().saturating_sub(1)) as f64 * q).round() as usize;
    times.get(index).map_or(0.0, |t| t.as_secs_f64() * 1e3)
}

/// The most memory this process has had resident, in bytes; where the system tells.
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

fn text(out: &mut dyn Write, row: &Row, first: bool) -> anyhow::Result<()> {
    if first {
        let header =
            ["model", "batch", "thr", "isa", "median", "p10", "p90 ms", "img/s", "GFLOP/s", "peak", "MiB"];
        let [model, batch, threads, isa, median, p10, p90, rate, gflops, peak, memory] = header;
        writeln!(
            out,
            "{model:<18} {batch:>5} {threads:>3} {isa:<8} {median:>8} {p10:>7} {p90:>7} {rate:>7} {gflops:>7} {peak:>5} {memory:>5}"
        )?;
    }
    let share = format!("{:.0}%", row.share_of_peak * 100.0);
    writeln!(
        out,
        "{:<18} {:>5} {:>3} {:<8} {:>8.2} {:>7.2} {:>7.2} {:>7.1} {:>7.1} {share:>5} {:>5.0}",
        row.model,
        row.batch,
        row.threads,
        row.isa,
        row.median_ms,
        row.p10_ms,
        row.p90_ms,
        row.images_per_s,
        row.gflops,
        row.peak_memory_mib.unwrap_or(0.0),
    )?;
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
