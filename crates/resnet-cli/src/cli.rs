//! The command line.

use clap::{Parser, Subcommand};

use crate::commands::{bench, diff, eval, info, inspect, list, predict, summary, train, verify};

/// Classify images with any ResNet.
#[derive(Debug, Parser)]
#[command(version, about, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// One command, one file: its flags and its body.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Name what images show
    Predict(predict::Args),
    /// List models: accuracy against cost
    List(list::Args),
    /// Tell all that is known about a model
    Info(info::Args),
    /// Show or draw the layers of a network
    Summary(summary::Args),
    /// Show what a checkpoint file holds
    Inspect(inspect::Args),
    /// Compare the tensors of two checkpoint files
    Diff(diff::Args),
    /// Train or fine-tune a network on a folder of images
    Train(train::Args),
    /// Measure how many images of a folder a checkpoint gets right
    Eval(eval::Args),
    /// Compare a checkpoint's results with those saved from PyTorch
    Verify(verify::Args),
    /// Measure how fast the engine is on this CPU
    Bench(bench::Args),
}
