//! The repositories in the cache: their size, their integrity, and what of them is no longer used.

use std::collections::BTreeSet;
use std::fs::{self, Metadata};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::cache::{compare, failed};
use crate::error::Result;
use crate::names::{Commit, Etag};

/// Files that changed more recently may belong to a download in progress.
const RECENT: Duration = Duration::from_secs(3600);

/// A repository in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CachedRepo {
    /// `owner/name`.
    pub name: String,
    /// Bytes of its blobs.
    pub bytes: u64,
    /// The branches and tags whose commit is known.
    pub refs: Vec<String>,
    /// The commits with files.
    pub commits: Vec<String>,
    folder: PathBuf,
}

/// Returns the repositories of models in a cache folder, by name. A folder that does not exist has none.
///
/// # Errors
///
/// [`Error::Cache`](crate::Error::Cache) if the folder cannot be read.
pub fn repositories(cache: &Path) -> Result<Vec<CachedRepo>> {
    let mut found = Vec::new();
    for (name, folder, meta) in entries(cache)? {
        let Some(name) = name.strip_prefix("models--").filter(|_| meta.is_dir()) else { continue };
        let mut refs = Vec::new();
        files(&folder.join("refs"), "", &mut refs)?;
        let snapshots = entries(&folder.join("snapshots"))?;
        found.push(CachedRepo {
            name: name.replacen("--", "/", 1),
            bytes: blobs(&folder)?.iter().map(|(_, _, meta)| meta.len()).sum(),
            refs: refs.into_iter().map(|(name, _)| name).collect(),
            commits: snapshots.into_iter().map(|(name, _, _)| name).collect(),
            folder,
        });
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

impl CachedRepo {
    /// Hashes all blobs and returns those whose content does not match their name, each with the reason.
    ///
    /// # Errors
    ///
    /// [`Error::Cache`](crate::Error::Cache) if a folder cannot be read.
    pub fn damaged(&self) -> Result<Vec<(PathBuf, String)>> {
        let mut damaged = Vec::new();
        for (name, path, _) in blobs(&self.folder)? {
            if let Some(etag) = Etag::parse(&name)
                && let Err(reason) = compare(&path, &etag)
            {
                damaged.push((path, reason));
            }
        }
        Ok(damaged)
    }

    /// Removes the commits that no branch or tag refers to, blobs that no commit uses, and abandoned partial downloads.
    /// Returns the number of bytes removed. Files of the last hour are kept.
    ///
    /// # Errors
    ///
    /// [`Error::Cache`](crate::Error::Cache) if a file cannot be read or removed.
    pub fn prune(&self) -> Result<u64> {
        let mut refs = Vec::new();
        files(&self.folder.join("refs"), "", &mut refs)?;
        let read = |path: &PathBuf| fs::read_to_string(path).ok().map(|text| text.trim().to_owned());
        let current: BTreeSet<String> = refs.iter().filter_map(|(_, path)| read(path)).collect();
        let (mut used, mut copies) = (BTreeSet::new(), false);
        for (commit, path, meta) in entries(&self.folder.join("snapshots"))? {
            if Commit::parse(&commit).is_some() && !current.contains(&commit) && !is_recent(&meta) {
                for folder in ["snapshots", ".no_exist", ".verified"] {
                    let path = self.folder.join(folder).join(&commit);
                    match fs::remove_dir_all(&path) {
                        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed(&path, e)),
                        _ => {}
                    }
                }
                continue;
            }
            let mut entries = Vec::new();
            files(&path, "", &mut entries)?;
            for (_, entry) in entries {
                match fs::read_link(&entry) {
                    Ok(target) => used.extend(target.file_name().map(|name| name.to_owned())),
                    Err(_) => copies = true,
                }
            }
        }
        let mut bytes = 0;
        for (name, path, meta) in blobs(&self.folder)? {
            // An entry that is not a link does not show which blob it uses.
            let unused =
                Etag::parse(&name).is_some() && !copies && !used.contains(std::ffi::OsStr::new(&name));
            if (unused || name.ends_with(".incomplete")) && !is_recent(&meta) {
                fs::remove_file(&path).map_err(|e| failed(&path, e))?;
                bytes += meta.len();
            }
        }
        Ok(bytes)
    }
}

fn is_recent(meta: &Metadata) -> bool {
    let modified = meta.modified().unwrap_or_else(|_| SystemTime::now());
    SystemTime::now().duration_since(modified).unwrap_or_default() < RECENT
}

/// Returns the blobs of a repository that are files; others link to a store that repositories share.
fn blobs(folder: &Path) -> Result<Vec<(String, PathBuf, Metadata)>> {
    let mut blobs = entries(&folder.join("blobs"))?;
    blobs.retain(|(_, _, meta)| meta.is_file());
    Ok(blobs)
}

/// Returns the entries of a folder without following links; none if it does not exist.
fn entries(folder: &Path) -> Result<Vec<(String, PathBuf, Metadata)>> {
    let failed = |e| failed(folder, e);
    let mut found = Vec::new();
    // A link instead of a folder leads out of the cache.
    if !fs::symlink_metadata(folder).is_ok_and(|meta| meta.is_dir()) {
        return Ok(found);
    }
    for entry in fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if let Ok(name) = entry.file_name().into_string() {
            found.push((name, entry.path(), entry.metadata().map_err(failed)?));
        }
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(found)
}

/// Adds the files and links under a folder with their names relative to it.
fn files(folder: &Path, prefix: &str, found: &mut Vec<(String, PathBuf)>) -> Result<()> {
    for (name, path, meta) in entries(folder)? {
        let name = format!("{prefix}{name}");
        match meta.is_dir() {
            true => files(&path, &format!("{name}/"), found)?,
            false => found.push((name, path)),
        }
    }
    Ok(())
}
