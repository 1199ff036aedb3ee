//! Flags, output and exit codes.

use std::collections::HashMap;
use std::ffi::OsString;
use std::io::{ErrorKind, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Parser, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use resnet_convert::{Conversion, ConvertOptions, Error, Export, Float, Report};
use resnet_model::file::{Existing, SharedFile};
use resnet_model::{Labels, Preprocess, zoo};

/// Converts ResNet checkpoints to safetensors files that describe themselves.
///
/// Reads what torch.save has ever written (zip, legacy stream, tar), TorchScript
/// archives, pickles of numpy arrays, .npy and .npz, safetensors and ONNX, found
/// by their content; an index (*.index.json) stands for its shards.
/// The architecture is found from the shapes, or from the graph. Nothing in a
/// file is executed; every tensor keeps its bytes unless --dtype is given.
///
/// Exit status: 0 converted, 1 something failed and nothing was written for it,
/// 2 wrong usage.
#[derive(Debug, Parser)]
#[command(name = "resnet-convert", version, verbatim_doc_comment, max_term_width = 80)]
struct Cli {
    /// Checkpoints to convert.
    #[arg(required = true, value_name = "FILE")]
    inputs: Vec<PathBuf>,
    /// Where to write; by default beside the input, named *.safetensors. A name
    /// in .onnx makes ONNX, one in .pth, .pt or .bin a state dict for torch.load.
    #[arg(short, long, value_name = "FILE", conflicts_with = "output_dir")]
    output: Option<PathBuf>,
    /// The folder to write to, for several inputs; it is made if need be.
    #[arg(long, value_name = "DIR")]
    output_dir: Option<PathBuf>,
    /// Replace files that exist.
    #[arg(short, long)]
    force: bool,
    /// Cast floating-point tensors, rounding to nearest.
    #[arg(long, value_name = "TYPE")]
    dtype: Option<Dtype>,
    /// Names of the classes: one per line, or a JSON list or object.
    #[arg(long, value_name = "FILE")]
    labels: Option<PathBuf>,
    /// How images are prepared: JSON, as in the metadata of a converted file.
    #[arg(long, value_name = "FILE")]
    preprocess: Option<PathBuf>,
    /// Insist on an architecture, e.g. resnet50 or plain34.
    #[arg(long, value_name = "NAME")]
    arch: Option<String>,
    /// Leave out tensors that nothing is known about, and a head that does not fit.
    #[arg(long)]
    partial: bool,
    /// ONNX: keep batch norms as operators, instead of folding them into the
    /// convolutions.
    #[arg(long)]
    keep_norms: bool,
    /// ONNX: images in a batch; any number by default.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    batch: Option<u32>,
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Dtype {
    F32,
    F16,
    Bf16,
}

/// Runs the command: the report goes to `out`, everything else to `err`.
pub(crate) fn run(
    args: impl Iterator<Item = OsString>,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(e) => {
            match e.use_stderr() {
                true => drop(write!(err, "{}", e.render())),
                false => drop(write!(out, "{}", e.render())),
            }
            return ExitCode::from(u8::try_from(e.exit_code()).unwrap_or(2));
        }
    };
    if cli.output.is_some() && cli.inputs.len() > 1 {
        drop(writeln!(err, "error: --output takes one input; --output-dir takes several"));
        return ExitCode::from(2);
    }
    if let Some((first, second)) = same_output(&cli) {
        let (first, second) = (first.display(), second.display());
        drop(writeln!(err, "error: `{first}` and `{second}` would be written to one file"));
        return ExitCode::from(2);
    }
    match convert_all(&cli, out, err) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            complain(err, &e);
            ExitCode::FAILURE
        }
    }
}

/// Converts every input; whether all went well.
fn convert_all(cli: &Cli, out: &mut dyn Write, err: &mut dyn Write) -> Result<bool> {
    let options = ConvertOptions {
        arch: cli.arch.as_deref().map(zoo::arch).transpose().context("--arch")?,
        name: None,
        labels: cli.labels.as_deref().map(read_labels).transpose().context("--labels")?,
        preprocess: cli.preprocess.as_deref().map(read_preprocess).transpose().context("--preprocess")?,
        dtype: cli.dtype.map(|d| match d {
            Dtype::F32 => Float::F32,
            Dtype::F16 => Float::F16,
            Dtype::Bf16 => Float::BF16,
        }),
        partial: cli.partial,
        onnx: Export { keep_norms: cli.keep_norms, batch: cli.batch.map(|n| n as usize) },
    };
    if let Some(dir) = &cli.output_dir {
        std::fs::create_dir_all(dir).with_context(|| format!("--output-dir: `{}`", dir.display()))?;
    }
    let mut reports = Vec::new();
    let mut good = true;
    // Reports that nobody reads are no reason to leave the other inputs.
    let mut printed = Ok(());
    for input in &cli.inputs {
        match convert(cli, input, &options) {
            Ok(report) if cli.json => reports.push(report),
            Ok(report) => printed = printed.and_then(|()| writeln!(out, "{report}")),
            Err(e) => {
                good = false;
                complain(err, &e);
            }
        }
    }
    let json = match (cli.json, reports.as_slice()) {
        (false, _) => None,
        (true, []) if !good => None,
        (true, [report]) if cli.inputs.len() == 1 => Some(serde_json::to_string_pretty(report)?),
        (true, reports) => Some(serde_json::to_string_pretty(reports)?),
    };
    if let Some(json) = json {
        printed = writeln!(out, "{json}");
    }
    match printed {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => Err(e).context("the report cannot be written"),
        _ => Ok(good),
    }
}

/// The file that becomes of `input`.
fn output(cli: &Cli, input: &Path) -> PathBuf {
    let beside = input.with_extension("safetensors");
    match (&cli.output, &cli.output_dir) {
        (Some(output), _) => output.clone(),
        (None, Some(dir)) => beside.file_name().map_or_else(|| beside.clone(), |name| dir.join(name)),
        (None, None) => beside,
    }
}

/// Two inputs of which the second would take the place of what became of the first.
fn same_output(cli: &Cli) -> Option<(&PathBuf, &PathBuf)> {
    let mut seen = HashMap::new();
    cli.inputs.iter().find_map(|input| Some((seen.insert(output(cli, input), input)?, input)))
}

fn convert(cli: &Cli, input: &Path, options: &ConvertOptions) -> Result<Report> {
    let output = output(cli, input);
    let existing = Existing::replace_if(cli.force);
    let job = Conversion { input, output: &output, existing, options };
    let bar = Bar::default();
    Ok(resnet_convert::convert(job, &mut |progress| bar.show(progress.done, progress.total))?)
}

/// A progress bar, on a terminal and for large files only.
#[derive(Default)]
struct Bar(std::cell::OnceCell<ProgressBar>);

impl Bar {
    fn show(&self, done: u64, total: u64) {
        const LARGE: u64 = 100_000_000;
        if total < LARGE || !std::io::stderr().is_terminal() {
            return;
        }
        let bar = self.0.get_or_init(|| {
            let style = ProgressStyle::with_template("{bar:30} {bytes}/{total_bytes} {bytes_per_sec}");
            ProgressBar::new(total).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        bar.set_position(done);
        if done == total {
            bar.finish_and_clear();
        }
    }
}

/// One line for the error, one for what to do about it.
fn complain(err: &mut dyn Write, error: &anyhow::Error) {
    if let Some(Error::Labels(reason)) = error.downcast_ref() {
        return drop(writeln!(err, "error: --labels: {reason}"));
    }
    // The library's errors tell their causes themselves.
    let Some(known) = error.downcast_ref::<Error>() else {
        return drop(writeln!(err, "error: {error:#}"));
    };
    drop(writeln!(err, "error: {known}"));
    if let Some(hint) = known.hint() {
        drop(writeln!(err, "hint: {hint}"));
    }
}

/// A small text file.
fn read_text(path: &Path) -> Result<String> {
    const MAX: u64 = 16 << 20;
    let read = || -> Result<String> {
        let file = SharedFile::open(path)?;
        if file.len() > MAX {
            bail!("{} bytes, more than {MAX}", file.len());
        }
        let mut bytes = vec![0; file.len() as usize];
        file.read_at(0, &mut bytes)?;
        Ok(String::from_utf8(bytes)?)
    };
    read().with_context(|| format!("`{}`", path.display()))
}

/// Class names: lines, a JSON list, or a JSON object from index to name.
fn read_labels(path: &Path) -> Result<Labels> {
    let text = read_text(path)?;
    let names = match text.trim_start().chars().next() {
        Some('[') => serde_json::from_str(&text).with_context(|| format!("`{}`", path.display()))?,
        Some('{') => {
            let map: std::collections::BTreeMap<usize, String> =
                serde_json::from_str(&text).with_context(|| format!("`{}`", path.display()))?;
            if let Some((expected, (found, _))) = map.iter().enumerate().find(|(i, (k, _))| i != *k) {
                bail!("`{}`: index {expected} is missing, {found} is next", path.display());
            }
            map.into_values().collect()
        }
        _ => text.lines().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty()).collect(),
    };
    Ok(Labels::Names(names))
}

fn read_preprocess(path: &Path) -> Result<Preprocess> {
    let preprocess: Preprocess =
        serde_json::from_str(&read_text(path)?).with_context(|| format!("`{}`", path.display()))?;
    preprocess.validate()?;
    Ok(preprocess)
}
