//! Files that a checkpoint refers to.

use std::io;
use std::path::{Path, PathBuf};

/// A file that a checkpoint refers to.
pub struct CompanionFile {
    /// The path in the checkpoint's folder.
    pub file: PathBuf,
    /// The path with links resolved.
    pub target: PathBuf,
    /// The allowed folders: the checkpoint's, before and after resolving links.
    pub folders: Vec<PathBuf>,
}

/// Finds the file `name` in the folder of `path`. The caller checks `folders` before opening it.
pub fn companion(path: &Path, name: &Path) -> io::Result<CompanionFile> {
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let file = folder.join(name);
    let target = file.canonicalize()?;
    let real = path.canonicalize().ok().and_then(|path| Some(path.parent()?.to_owned()));
    Ok(CompanionFile { file, target, folders: folder.canonicalize().ok().into_iter().chain(real).collect() })
}
