//! Files that a file refers to: only ever ones beside it.

use std::io;
use std::path::{Path, PathBuf};

use resnet_model::escape;
use resnet_model::file::SharedFile;

use crate::error::{Code, Fault};

/// The longest file name.
const MAX: usize = 255;

/// Opens the file `name` in the folder of the file at `path`, which refers to it; `code` is for a name that leads
/// elsewhere.
///
/// A link is followed if its target lies in that folder too, or in the folder where `path` itself leads: in the Hugging
/// Face cache a snapshot is a folder of links into `blobs`.
pub(super) fn open(path: &Path, name: &str, code: Code) -> Result<(PathBuf, SharedFile), Fault> {
    let elsewhere = |what: &str| Fault::new(code, format!("`{}` {what}", escape(name)));
    let plain = !name.is_empty()
        && name.len() <= MAX
        && !matches!(name, "." | "..")
        && !name.contains(|c: char| matches!(c, '/' | '\\' | ':') || c.is_control());
    if !plain {
        return Err(elsewhere("is no plain file name"));
    }
    let unreadable = |e: io::Error| Fault::new(Code::Read, format!("`{}`: {e}", escape(name)));
    let found = find(path, Path::new(name)).map_err(unreadable)?;
    if !found.folders.iter().any(|folder| found.target.parent() == Some(folder)) {
        return Err(elsewhere("is a link out of the folder"));
    }
    let opened = SharedFile::open(&found.target).map_err(unreadable)?;
    Ok((found.file, opened))
}

/// A file that another one refers to.
pub(crate) struct CompanionFile {
    /// Its path beside the other one.
    pub(crate) file: PathBuf,
    /// Where that leads, links followed.
    pub(crate) target: PathBuf,
    /// Where it may lead: the folder that the other file is named in, and the one that it really lies in.
    pub(crate) folders: Vec<PathBuf>,
}

/// Finds the file `name` in the folder of the file at `path`; whether it may be opened is for the caller to say.
pub(crate) fn find(path: &Path, name: &Path) -> io::Result<CompanionFile> {
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let file = folder.join(name);
    let target = file.canonicalize()?;
    let real = path.canonicalize().ok().and_then(|path| Some(path.parent()?.to_owned()));
    Ok(CompanionFile { file, target, folders: folder.canonicalize().ok().into_iter().chain(real).collect() })
}
