//! `cache`: the cache of the Hub.

use std::io::Write;
use std::path::PathBuf;

use resnet_hub::inventory::{CachedRepo, repositories};
use resnet_model::escape;
use resnet_model::text::bytes;

use crate::exit::{Outcome, UsageError};
use crate::weights::hub_config;

/// List, verify or prune downloaded repositories
///
/// The cache is that of Python's huggingface_hub (HF_HUB_CACHE, HF_HOME), so it also contains repositories that other
/// programs have downloaded. The exit status of `verify` is 1 if a file is damaged.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// List repositories with their size, branches and commits
    List {
        /// Write JSON
        #[arg(long)]
        json: bool,
    },
    /// Hash all files and compare them with the hashes that the Hub announced
    Verify {
        /// Repositories (owner/name); default: all
        #[arg(value_name = "REPO")]
        repos: Vec<String>,
    },
    /// Remove commits that no branch or tag refers to, files that no commit uses, and abandoned partial downloads
    ///
    /// Files that are less than an hour old are kept.
    Prune {
        /// Repositories (owner/name)
        #[arg(required_unless_present = "all", value_name = "REPO")]
        repos: Vec<String>,
        /// All repositories, including those that other programs have downloaded
        #[arg(long, conflicts_with = "repos")]
        all: bool,
    },
}

/// Runs the command.
pub fn run(args: Args, out: &mut dyn Write) -> anyhow::Result<Outcome> {
    let cache: PathBuf = hub_config(false)?.cache_dir.ok_or_else(|| {
        UsageError("the home folder is unknown; set HF_HOME to the folder of the cache".into())
    })?;
    let found = repositories(&cache)?;
    match args.action {
        Action::List { json } => list(&found, json, out)?,
        Action::Verify { repos } => return verify(&select(found, &repos)?, out),
        Action::Prune { repos, .. } => {
            for repo in select(found, &repos)? {
                writeln!(out, "{}: removed {}", repo.name, bytes(repo.prune()?))?;
            }
        }
    }
    Ok(Outcome::Success)
}

/// Returns the repositories with these names, or all if there are none.
fn select(mut found: Vec<CachedRepo>, names: &[String]) -> Result<Vec<CachedRepo>, UsageError> {
    if let Some(name) = names.iter().find(|&name| found.iter().all(|repo| repo.name != *name)) {
        let name = escape(name);
        return Err(UsageError(format!(
            "`{name}` is not in the cache; `resnet-cli cache list` shows what is"
        )));
    }
    found.retain(|repo| names.is_empty() || names.contains(&repo.name));
    Ok(found)
}

fn list(found: &[CachedRepo], json: bool, out: &mut dyn Write) -> anyhow::Result<()> {
    if json {
        let row = |repo: &CachedRepo| {
            serde_json::json!({
                "name": repo.name, "bytes": repo.bytes, "refs": repo.refs, "commits": repo.commits,
            })
        };
        let rows: Vec<_> = found.iter().map(row).collect();
        serde_json::to_writer_pretty(&mut *out, &rows)?;
        writeln!(out)?;
        return Ok(());
    }
    for repo in found {
        let (name, size) = (escape(&repo.name), bytes(repo.bytes));
        let refs: Vec<String> = repo.refs.iter().map(|name| escape(name)).collect();
        writeln!(out, "{size:>10}  {name}  {} commits  {}", repo.commits.len(), refs.join(", "))?;
    }
    Ok(())
}

fn verify(found: &[CachedRepo], out: &mut dyn Write) -> anyhow::Result<Outcome> {
    let mut intact = true;
    for repo in found {
        let damaged = repo.damaged()?;
        let verdict = if damaged.is_empty() { "ok" } else { "DAMAGED" };
        writeln!(out, "{}: {verdict}", escape(&repo.name))?;
        for (path, reason) in &damaged {
            writeln!(out, "  `{}`: {reason}; remove it and download it again", path.display())?;
        }
        intact &= damaged.is_empty();
    }
    Ok(Outcome::from_success(intact))
}
