//! `download`: weights into the cache of the Hub.

use std::io::Write;

use crate::exit::Outcome;
use crate::weights::locate;

/// Download weights from the Hugging Face Hub
///
/// Downloads the weights and configuration files of each repository into the cache that Python's huggingface_hub uses,
/// verifies them, and prints the path of the checkpoint, or of the index of its shards. Later commands with the same
/// name need no network.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Ask the Hub for the current commit of a branch that is cached
    #[arg(long)]
    refresh: bool,
    /// Hub ids (owner/name, owner/name@revision) or names of published weights (resnet50.a1_in1k)
    #[arg(required = true, value_name = "HUB-ID")]
    ids: Vec<String>,
}

/// Runs the command.
pub fn run(args: Args, out: &mut dyn Write) -> anyhow::Result<Outcome> {
    for id in &args.ids {
        writeln!(out, "{}", locate(id, args.refresh)?.display())?;
        out.flush()?;
    }
    Ok(Outcome::Success)
}
