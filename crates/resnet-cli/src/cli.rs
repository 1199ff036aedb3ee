//! The command line.

use clap::{CommandFactory, Parser, Subcommand};

use crate::commands::{
    bench, cache, convert, diff, doctor, download, eval, generate, info, inspect, list, predict, serve,
    summary, train, verify,
};

/// Classify images with any ResNet.
///
/// Runs ResNets and related networks with pretrained weights from the Hugging Face Hub or a checkpoint file of your own,
/// on CUDA, Metal or CPU.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100, after_long_help = EXIT_STATUS)]
pub struct Cli {
    /// Show errors only: no progress bars, notes or warnings
    #[arg(short, long, global = true, display_order = 900, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Show which device, architecture and preprocessing are used
    #[arg(short, long, global = true, display_order = 901)]
    pub verbose: bool,
    /// The command to run.
    #[command(subcommand)]
    pub command: Command,
}

const EXIT_STATUS: &str = "Exit status:
  0  success
  1  failure; `diff`: the files differ; `verify`: a difference exceeds the tolerance
  2  invalid usage, such as an unknown flag or model name; `diff`: any failure
  3  some images could not be read; the results of the others were written";

/// Commands, each documented on its arguments.
// A doc comment on a variant would replace the long help of its arguments.
#[allow(missing_docs, reason = "see above")]
#[derive(Debug, Subcommand)]
pub enum Command {
    Predict(predict::Args),
    List(list::Args),
    Info(info::Args),
    Summary(summary::Args),
    Inspect(inspect::Args),
    Diff(diff::Args),
    Convert(convert::Args),
    Download(download::Args),
    Cache(cache::Args),
    Train(train::Args),
    Eval(eval::Args),
    Verify(verify::Args),
    Serve(serve::Args),
    Bench(bench::Args),
    Doctor(doctor::Args),
    Completions(generate::Completions),
    #[command(hide = true)]
    Man(generate::Man),
}

/// The definition of the command line, from which completions and manual pages are generated.
pub fn definition() -> clap::Command {
    Cli::command()
}
