//! Files that a checkpoint refers to, restricted to its folder.

use std::io;
use std::path::{Path, PathBuf};

use resnet_model::escape;
use resnet_model::file::{self, SharedFile};

use crate::error::{Code, Fault};

/// Maximum length of a file name, in bytes.
const MAX: usize = 255;

/// Opens the file `name` in the folder of `path`. A name that leads elsewhere is a fault with `code`.
///
/// A link is followed if its target is in that folder or in the folder of the link target of `path`: a snapshot in the
/// Hugging Face cache is a folder of links into `blobs`.
pub(super) fn open(path: &Path, name: &str, code: Code) -> Result<(PathBuf, SharedFile), Fault> {
    let elsewhere = |what: &str| Fault::new(code, format!("`{}` {what}", escape(name)));
    let plain = !name.is_empty()
        && name.len() <= MAX
        && !matches!(name, "." | "..")
        && !name.contains(|c: char| matches!(c, '/' | '\\' | ':') || c.is_control());
    if !plain {
        return Err(elsewhere("is not a plain file name"));
    }
    let unreadable = |e: io::Error| Fault::new(Code::Read, format!("`{}`: {e}", escape(name)));
    let found = file::companion(path, Path::new(name)).map_err(unreadable)?;
    if !found.folders.iter().any(|folder| found.target.parent() == Some(folder)) {
        return Err(elsewhere("links outside the folder"));
    }
    let opened = SharedFile::open(&found.target).map_err(unreadable)?;
    Ok((found.file, opened))
}
