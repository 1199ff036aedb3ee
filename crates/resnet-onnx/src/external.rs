//! Tensors in files beside the model. A model names such files, so that the folder must not be left.

use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use resnet_model::escape;
use resnet_model::file::SharedFile;
use resnet_model::raw::{ByteRange, Bytes};

use super::proto::StringEntry;
use crate::error::{Code, Fault};

/// The files beside a model.
#[derive(Debug)]
pub(crate) struct External {
    /// The model's path; without one there is nothing beside it.
    model: Option<PathBuf>,
    open: HashMap<String, Arc<SharedFile>>,
    /// Parts may overlap, but not to become far more than the files.
    taken: u64,
    present: u64,
}

/// What a tensor says about its place.
struct Place<'a> {
    location: &'a str,
    offset: u64,
    len: Option<u64>,
}

impl External {
    pub(crate) fn new(model: Option<&Path>) -> External {
        External { model: model.map(Path::to_owned), open: HashMap::new(), taken: 0, present: 0 }
    }

    /// The `needed` bytes of a tensor that `entries` tell of.
    pub(crate) fn part(&mut self, entries: &[StringEntry], needed: u64) -> Result<Arc<dyn Bytes>, Fault> {
        let place = place(entries)?;
        let shown = escape(place.location);
        let file = match self.open.get(place.location) {
            Some(file) => file.clone(),
            None => {
                let file = Arc::new(self.open_file(place.location)?);
                self.present = self.present.saturating_add(file.len());
                self.open.insert(place.location.to_owned(), file.clone());
                file
            }
        };
        let len = place.len.unwrap_or(needed);
        let bounds = |detail: String| Fault::new(Code::ExternalBounds, detail);
        if len != needed {
            return Err(bounds(format!("{len} bytes in `{shown}`, but type and shape need {needed}")));
        }
        self.taken = self.taken.saturating_add(len);
        if self.taken > self.present.saturating_mul(4) {
            let detail =
                format!("tensors of more than four times the {} bytes beside the model", self.present);
            return Err(Fault::new(Code::TensorBytes, detail));
        }
        let size = file.len();
        match ByteRange::new(file, place.offset, len) {
            Some(part) => Ok(Arc::new(part)),
            None => Err(bounds(format!("{len} bytes at {} of `{shown}`, which has {size}", place.offset))),
        }
    }

    fn open_file(&self, location: &str) -> Result<SharedFile, Fault> {
        let shown = escape(location);
        let refused =
            |what: &str| Fault::new(Code::ExternalPath, format!("the external file `{shown}` {what}"));
        // Backslashes and colons are separators elsewhere.
        let odd = location.is_empty() || location.contains(['\\', ':', '\0']);
        if odd || !Path::new(location).components().all(|c| matches!(c, Component::Normal(_))) {
            return Err(refused("is not a plain path below the model's folder"));
        }
        let Some(model) = &self.model else {
            return Err(refused("cannot be found: the model has no folder"));
        };
        let found = resnet_model::file::companion(model, Path::new(location))
            .map_err(|e| Fault::new(Code::Read, format!("the external file `{shown}`: {e}")))?;
        if !found.folders.iter().any(|folder| found.target.starts_with(folder)) {
            return Err(refused("leads out of the model's folder"));
        }
        let file = SharedFile::open(&found.target).map_err(|e| refused(&format!("cannot be read: {e}")))?;
        #[cfg(unix)]
        {
            use std::os::unix::fs::MetadataExt;
            if std::fs::metadata(&found.target).is_ok_and(|m| m.nlink() > 1) {
                return Err(refused("has a second name elsewhere (a hard link)"));
            }
        }
        Ok(file)
    }
}

fn place(entries: &[StringEntry]) -> Result<Place<'_>, Fault> {
    let value = |key: &str| -> Result<Option<&str>, Fault> {
        let mut values = entries.iter().filter(|e| e.key == key);
        let first = values.next();
        match values.next() {
            Some(_) => Err(Fault::new(
                Code::ExternalKey,
                format!("the key `{key}` of an external file occurs twice"),
            )),
            None => Ok(first.map(|e| e.value.as_str())),
        }
    };
    let number = |key: &str| -> Result<Option<u64>, Fault> {
        let Some(text) = value(key)? else { return Ok(None) };
        // `parse` takes a sign.
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        let number = if digits { text.parse::<u64>().ok() } else { None };
        let bad = || {
            let shown: String = text.chars().take(32).collect();
            Fault::new(Code::ExternalBounds, format!("the {key} `{}` is no number of bytes", escape(&shown)))
        };
        number.map(Some).ok_or_else(bad)
    };
    let location = value("location")?;
    let location =
        location.ok_or_else(|| Fault::new(Code::ExternalPath, "external data without a location"))?;
    Ok(Place { location, offset: number("offset")?.unwrap_or(0), len: number("length")? })
}
