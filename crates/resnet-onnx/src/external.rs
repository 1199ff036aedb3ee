//! External data: tensors in other files of the model's folder. Paths outside the folder are rejected.

use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use resnet_model::escape;
use resnet_model::file::SharedFile;
use resnet_model::raw::{ByteRange, Bytes};

use super::proto::StringEntry;
use crate::error::{Code, Fault};

/// External files of a model.
#[derive(Debug)]
pub(crate) struct External {
    /// The path of the model; without one, external data is an error.
    model: Option<PathBuf>,
    open: HashMap<String, Arc<SharedFile>>,
    /// Bytes of all tensors; they may overlap, up to four times `present`.
    taken: u64,
    /// Bytes of all open files.
    present: u64,
}

/// Location of a tensor in an external file.
struct Location<'a> {
    path: &'a str,
    offset: u64,
    len: Option<u64>,
}

impl External {
    pub(crate) fn new(model: Option<&Path>) -> External {
        External { model: model.map(Path::to_owned), open: HashMap::new(), taken: 0, present: 0 }
    }

    /// Returns the bytes of a tensor with the external data `entries`; `needed` is the size from its dtype and shape.
    pub(crate) fn part(&mut self, entries: &[StringEntry], needed: u64) -> Result<Arc<dyn Bytes>, Fault> {
        let location = location(entries)?;
        let shown = escape(location.path);
        let file = match self.open.get(location.path) {
            Some(file) => file.clone(),
            None => {
                let file = Arc::new(self.open_file(location.path)?);
                self.present = self.present.saturating_add(file.len());
                self.open.insert(location.path.to_owned(), file.clone());
                file
            }
        };
        let len = location.len.unwrap_or(needed);
        let bounds = |detail: String| Fault::new(Code::ExternalBounds, detail);
        if len != needed {
            return Err(bounds(format!(
                "`{shown}`: expected {needed} bytes from dtype and shape, found length {len}"
            )));
        }
        self.taken = self.taken.saturating_add(len);
        if self.taken > self.present.saturating_mul(4) {
            let detail =
                format!("external tensors exceed four times the {} bytes of their files", self.present);
            return Err(Fault::new(Code::TensorBytes, detail));
        }
        let size = file.len();
        match ByteRange::new(file, location.offset, len) {
            Some(part) => Ok(Arc::new(part)),
            None => Err(bounds(format!(
                "`{shown}`: offset {} and length {len} exceed its {size} bytes",
                location.offset
            ))),
        }
    }

    fn open_file(&self, location: &str) -> Result<SharedFile, Fault> {
        let shown = escape(location);
        let rejected = |what: &str| Fault::new(Code::ExternalPath, format!("external file `{shown}` {what}"));
        // Backslashes and colons are separators on Windows.
        let invalid = location.is_empty() || location.contains(['\\', ':', '\0']);
        if invalid || !Path::new(location).components().all(|c| matches!(c, Component::Normal(_))) {
            return Err(rejected("is not a relative path inside the model's folder"));
        }
        let Some(model) = &self.model else {
            return Err(rejected("cannot be found: the model was not read from a file"));
        };
        let found = resnet_model::file::companion(model, Path::new(location))
            .map_err(|e| Fault::new(Code::Read, format!("external file `{shown}`: {e}")))?;
        if !found.folders.iter().any(|folder| found.target.starts_with(folder)) {
            return Err(rejected("is outside the model's folder"));
        }
        let file = SharedFile::open(&found.target).map_err(|e| rejected(&format!("cannot be read: {e}")))?;
        #[cfg(unix)]
        {
            use std::os::unix::fs::MetadataExt;
            if std::fs::metadata(&found.target).is_ok_and(|m| m.nlink() > 1) {
                return Err(rejected("has more than one hard link"));
            }
        }
        Ok(file)
    }
}

fn location(entries: &[StringEntry]) -> Result<Location<'_>, Fault> {
    let value = |key: &str| -> Result<Option<&str>, Fault> {
        let mut values = entries.iter().filter(|e| e.key == key);
        let first = values.next();
        match values.next() {
            Some(_) => Err(Fault::new(Code::ExternalKey, format!("duplicate key `{key}` in external data"))),
            None => Ok(first.map(|e| e.value.as_str())),
        }
    };
    let number = |key: &str| -> Result<Option<u64>, Fault> {
        let Some(text) = value(key)? else { return Ok(None) };
        // `parse` accepts a sign.
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        let number = if digits { text.parse::<u64>().ok() } else { None };
        let invalid = || {
            let shown: String = text.chars().take(32).collect();
            Fault::new(
                Code::ExternalBounds,
                format!("invalid external data {key} `{}`, expected a number of bytes", escape(&shown)),
            )
        };
        number.map(Some).ok_or_else(invalid)
    };
    let path = value("location")?;
    let path = path.ok_or_else(|| Fault::new(Code::ExternalPath, "external data has no location"))?;
    Ok(Location { path, offset: number("offset")?.unwrap_or(0), len: number("length")? })
}
