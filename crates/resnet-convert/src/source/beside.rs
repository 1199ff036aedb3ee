//! Files that a file refers to: only ever ones beside it.

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
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let file = folder.join(name);
    let unreadable = |e: std::io::Error| Fault::new(Code::Read, format!("`{}`: {e}", escape(name)));
    let target = file.canonicalize().map_err(unreadable)?;
    let folders =
        [folder.canonicalize().ok(), path.canonicalize().ok().and_then(|p| p.parent().map(Path::to_owned))];
    if !folders.iter().flatten().any(|folder| target.parent() == Some(folder)) {
        return Err(elsewhere("is a link out of the folder"));
    }
    let opened = SharedFile::open(&target).map_err(unreadable)?;
    Ok((file, opened))
}
