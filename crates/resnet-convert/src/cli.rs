//! The command line of `resnet-convert`, which is also the subcommand `resnet-cli convert`.

use std::collections::HashMap;
use std::ffi::OsString;
use std::io::{ErrorKind, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail};
use clap::{Parser, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use resnet_model::file::{Existing, SharedFile};
use resnet_model::{Arch, Labels, Preprocess, zoo};

use crate::{Conversion, ConvertOptions, Error, Export, Float, Report};

const ABOUT: &str = "Convert checkpoints to safetensors files that describe themselves";
const LONG_ABOUT: &str = "\
Convert checkpoints to safetensors files that describe themselves

Reads every torch.save format (zip, legacy stream, tar), TorchScript archives,
pickled numpy arrays, .npy and .npz, safetensors and ONNX. The format is
detected from the file's content; an index (*.index.json) reads its shards.
The architecture is identified from tensor shapes or from the ONNX graph.
No code in a file is executed. Tensors keep their bytes unless --dtype is set.

Exit status: 0 on success, 1 if an input failed (nothing is written for it),
2 on invalid usage, 130 if interrupted.";

#[derive(Debug, Parser)]
#[command(name = "resnet-convert", version, about = ABOUT, long_about = LONG_ABOUT, max_term_width = 80)]
struct Cli {
    #[command(flatten)]
    args: Args,
}

/// The flags.
#[derive(Debug, clap::Args)]
#[command(about = ABOUT, long_about = LONG_ABOUT)]
pub struct Args {
    /// Checkpoints to convert.
    #[arg(required = true, value_name = "FILE")]
    inputs: Vec<PathBuf>,
    /// Output file [default: the input with extension .safetensors]. The extension
    /// selects the format: .onnx writes ONNX; .pth, .pt or .bin a PyTorch state dict.
    #[arg(short, long, value_name = "FILE", conflicts_with = "output_dir")]
    output: Option<PathBuf>,
    /// Output folder, for several inputs; created if missing.
    #[arg(long, value_name = "DIR")]
    output_dir: Option<PathBuf>,
    /// Overwrite existing files.
    #[arg(short, long)]
    force: bool,
    /// Cast floating-point tensors, rounding to nearest even.
    #[arg(long, value_name = "TYPE")]
    dtype: Option<Dtype>,
    /// Class names: one per line, or a JSON array or object.
    #[arg(long, value_name = "FILE")]
    labels: Option<PathBuf>,
    /// Preprocessing: JSON, as in the metadata of a converted file.
    #[arg(long, value_name = "FILE")]
    preprocess: Option<PathBuf>,
    /// Use this architecture instead of identifying it: a name, e.g. resnet50, or
    /// JSON, as in the metadata of a converted file.
    #[arg(long, value_name = "NAME|JSON")]
    arch: Option<String>,
    /// Omit unexpected tensors, and a classification head that does not fit.
    #[arg(long)]
    partial: bool,
    /// ONNX: keep BatchNormalization nodes instead of folding them into the
    /// convolutions.
    #[arg(long)]
    keep_norms: bool,
    /// ONNX: fixed batch size [default: dynamic].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    batch: Option<u32>,
    /// Print a JSON array with a report or an error for each input.
    #[arg(long)]
    json: bool,
}

/// Exit status after SIGINT: 128 plus the signal.
const INTERRUPTED: u8 = 130;

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Dtype {
    F32,
    F16,
    Bf16,
}

/// An input that is not converted from the path that the user named, such as a repository of the Hub.
#[derive(Debug, Clone, Default)]
pub struct Located {
    /// The checkpoint.
    pub path: PathBuf,
    /// The default output file.
    pub output: Option<PathBuf>,
    /// The architecture, unless a flag specifies it.
    pub arch: Option<Arch>,
    /// The preprocessing, unless a flag specifies it.
    pub preprocess: Option<Preprocess>,
    /// The labels, unless a flag specifies them.
    pub labels: Option<Labels>,
}

/// Finds the checkpoint of an input; the second argument is `--arch`.
pub type Locate<'a> = &'a dyn Fn(&Path, Option<&str>) -> Result<Located>;

/// Parses the arguments and runs the command. The report is written to `out`, everything else to `err`.
pub fn run(args: impl Iterator<Item = OsString>, out: &mut dyn Write, err: &mut dyn Write) -> ExitCode {
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
    let locate = |path: &Path, _: Option<&str>| Ok(Located { path: path.to_owned(), ..Located::default() });
    execute(&cli.args, &locate, out, err)
}

/// Runs the command on the inputs that `locate` finds.
pub fn execute(cli: &Args, locate: Locate<'_>, out: &mut dyn Write, err: &mut dyn Write) -> ExitCode {
    if cli.output.is_some() && cli.inputs.len() > 1 {
        drop(writeln!(err, "error: --output accepts one input; use --output-dir for several"));
        return ExitCode::from(2);
    }
    if let Some((first, second)) = same_output(cli) {
        let (first, second) = (first.display(), second.display());
        drop(writeln!(
            err,
            "error: `{first}` and `{second}` have the same output file; convert them to different folders"
        ));
        return ExitCode::from(2);
    }
    let cancel = cancel_on_signal();
    match convert_all(cli, &cancel, locate, out, err) {
        _ if cancel.load(Ordering::Relaxed) => ExitCode::from(INTERRUPTED),
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            print_error(err, &e);
            ExitCode::FAILURE
        }
    }
}

/// Returns a flag that Ctrl-C sets, so that no temporary file is left behind.
fn cancel_on_signal() -> Arc<AtomicBool> {
    let cancel = Arc::new(AtomicBool::new(false));
    let flag = cancel.clone();
    // Without a handler, the default action of the signal applies.
    drop(ctrlc::set_handler(move || flag.store(true, Ordering::Relaxed)));
    cancel
}

/// Converts every input. Returns `false` if one failed.
fn convert_all(
    cli: &Args,
    cancel: &Arc<AtomicBool>,
    locate: Locate<'_>,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> Result<bool> {
    let options = ConvertOptions {
        arch: cli.arch.as_deref().map(parse_arch).transpose().context("--arch")?,
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
        cancel: Some(cancel.clone()),
    };
    if let Some(dir) = &cli.output_dir {
        std::fs::create_dir_all(dir).with_context(|| format!("--output-dir: `{}`", dir.display()))?;
    }
    let mut results = Vec::new();
    let mut ok = true;
    // A closed stdout does not stop the remaining conversions.
    let mut printed = Ok(());
    for input in &cli.inputs {
        match convert(cli, input, &options, locate) {
            Ok(report) if cli.json => results.push(serde_json::to_value(report)?),
            Ok(report) => printed = printed.and_then(|()| writeln!(out, "{report}")),
            Err(e) => {
                ok = false;
                print_error(err, &e);
                results.push(error_json(input, &e));
            }
        }
        if cancel.load(Ordering::Relaxed) {
            break;
        }
    }
    if cli.json {
        printed = writeln!(out, "{}", serde_json::to_string_pretty(&results)?);
    }
    match printed {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => Err(e).context("cannot write the report"),
        _ => Ok(ok),
    }
}

/// Output path for `input`.
fn output(cli: &Args, input: &Path) -> PathBuf {
    let sibling = input.with_extension("safetensors");
    match (&cli.output, &cli.output_dir) {
        (Some(output), _) => output.clone(),
        (None, Some(dir)) => sibling.file_name().map_or_else(|| sibling.clone(), |name| dir.join(name)),
        (None, None) => sibling,
    }
}

/// Returns the first two inputs with the same output path.
fn same_output(cli: &Args) -> Option<(&PathBuf, &PathBuf)> {
    let mut seen = HashMap::new();
    cli.inputs.iter().find_map(|input| Some((seen.insert(output(cli, input), input)?, input)))
}

fn convert(cli: &Args, input: &Path, options: &ConvertOptions, locate: Locate<'_>) -> Result<Report> {
    let located = locate(input, cli.arch.as_deref())?;
    let output = match (&located.output, &cli.output, &cli.output_dir) {
        (Some(output), None, None) => output.clone(),
        (Some(output), None, Some(dir)) => dir.join(output),
        _ => output(cli, input),
    };
    let options = &ConvertOptions {
        arch: options.arch.clone().or(located.arch),
        preprocess: options.preprocess.clone().or(located.preprocess),
        labels: options.labels.clone().or(located.labels),
        ..options.clone()
    };
    let existing = Existing::replace_if(cli.force);
    let job = Conversion { input: &located.path, output: &output, existing, options };
    let bar = Bar::default();
    Ok(crate::convert(job, &mut |progress| bar.show(progress.done, progress.total))?)
}

/// Progress bar, shown on a terminal for large files only.
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

/// Prints the error and, if there is one, a hint.
fn print_error(err: &mut dyn Write, error: &anyhow::Error) {
    if let Some(Error::Labels(reason)) = error.downcast_ref() {
        return drop(writeln!(err, "error: --labels: {reason}"));
    }
    // The library's messages include their causes.
    let Some(known) = error.downcast_ref::<Error>() else {
        return drop(writeln!(err, "error: {error:#}"));
    };
    drop(writeln!(err, "error: {known}"));
    if let Some(hint) = known.hint() {
        drop(writeln!(err, "hint: {hint}"));
    }
}

/// Returns the JSON object of a failed input.
fn error_json(input: &Path, error: &anyhow::Error) -> serde_json::Value {
    let known = error.downcast_ref::<Error>();
    let code = known.and_then(Error::code).map(|code| code.as_str());
    let message = known.map_or_else(|| format!("{error:#}"), Error::to_string);
    serde_json::json!({
        "file": input.display().to_string(),
        "error": message,
        "code": code,
        "hint": known.and_then(Error::hint),
    })
}

/// Parses the name or the JSON description of an architecture.
fn parse_arch(text: &str) -> Result<Arch> {
    if !text.trim_start().starts_with('{') {
        return Ok(zoo::arch(text)?);
    }
    let arch: Arch = serde_json::from_str(text).context("invalid JSON")?;
    arch.graph()?;
    Ok(arch)
}

/// Reads a small text file.
fn read_text(path: &Path) -> Result<String> {
    const MAX: u64 = 16 << 20;
    let read = || -> Result<String> {
        let file = SharedFile::open(path)?;
        if file.len() > MAX {
            bail!("{} bytes, the limit is {MAX}", file.len());
        }
        let mut bytes = vec![0; file.len() as usize];
        file.read_at(0, &mut bytes)?;
        Ok(String::from_utf8(bytes)?)
    };
    read().with_context(|| format!("`{}`", path.display()))
}

/// Reads class names: lines, a JSON array, or a JSON object from index to name.
fn read_labels(path: &Path) -> Result<Labels> {
    let text = read_text(path)?;
    let names = match text.trim_start().chars().next() {
        Some('[') => serde_json::from_str(&text).with_context(|| format!("`{}`", path.display()))?,
        Some('{') => {
            let map: std::collections::BTreeMap<usize, String> =
                serde_json::from_str(&text).with_context(|| format!("`{}`", path.display()))?;
            if let Some((expected, (found, _))) = map.iter().enumerate().find(|(i, (k, _))| i != *k) {
                bail!("`{}`: expected class index {expected}, found {found}", path.display());
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
