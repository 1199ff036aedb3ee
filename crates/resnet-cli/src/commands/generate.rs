//! `completions` and `man`: files generated from the definition of the command line.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Context;
use clap_complete::Shell;

use crate::cli::definition;
use crate::exit::Outcome;

/// Print the completion script of a shell
///
/// For bash: resnet-cli completions bash > ~/.local/share/bash-completion/completions/resnet-cli
#[derive(Debug, clap::Args)]
pub struct Completions {
    /// The shell to complete for
    shell: Shell,
}

/// Write the manual pages
#[derive(Debug, clap::Args)]
pub struct Man {
    /// The folder to write to
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

/// Prints a completion script.
pub fn completions(args: Completions, out: &mut dyn Write) -> anyhow::Result<Outcome> {
    // The generator panics if it cannot write, which a closed pipe must not cause.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut definition(), "resnet-cli", &mut script);
    out.write_all(&script)?;
    Ok(Outcome::Success)
}

/// Writes one manual page per command.
pub fn man(args: Man) -> anyhow::Result<Outcome> {
    let write = || {
        std::fs::create_dir_all(&args.folder)?;
        clap_mangen::generate_to(definition(), &args.folder)
    };
    write().with_context(|| format!("`{}`", args.folder.display()))?;
    Ok(Outcome::Success)
}
