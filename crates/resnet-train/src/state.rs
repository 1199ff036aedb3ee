//! State of a run on disk: one file per state, so that all its parts are of the same step.
//!
//! A state is written to a temporary file, renamed, and synced together with its folder before older states are removed.
//! If a state has a wrong checksum, the one before it is loaded.

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use resnet_model::file::Existing;
use resnet_model::{RawTensor, safetensors};
use serde::{Deserialize, Serialize};

use crate::event::EpochMetrics;
use crate::{Error, Result};

/// Key in the safetensors `__metadata__` map.
const KEY: &str = "resnet_train";

/// Version of this format.
const VERSION: u32 = 2;

/// Number of states kept.
const KEPT: usize = 2;

/// Progress of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Progress {
    version: u32,
    /// Checksum of the tensors' names and bytes.
    #[serde(default)]
    checksum: u32,
    /// Steps done.
    pub(crate) step: u64,
    /// Epoch, from 0.
    pub(crate) epoch: usize,
    /// Batches done in the epoch.
    pub(crate) batch: usize,
    /// Bits of the sum of losses in the epoch: JSON does not preserve the last bit.
    pub(crate) loss_sum: u64,
    /// Images of the epoch so far.
    pub(crate) seen: usize,
    /// Correctly classified images of the epoch so far.
    pub(crate) correct: usize,
    /// Unreadable images so far.
    pub(crate) unreadable: usize,
    /// Correct validation images and bits of the validation loss of the best epoch.
    pub(crate) best: Option<(usize, u64)>,
    /// Epochs since the best one.
    pub(crate) since_best: usize,
    /// Metrics of the epochs done.
    pub(crate) records: Vec<EpochMetrics>,
    /// Settings that must be equal to resume the run.
    pub(crate) settings: serde_json::Value,
}

impl Progress {
    pub(crate) fn new(settings: serde_json::Value) -> Progress {
        Progress {
            version: VERSION,
            checksum: 0,
            step: 0,
            epoch: 0,
            batch: 0,
            loss_sum: 0f64.to_bits(),
            seen: 0,
            correct: 0,
            unreadable: 0,
            best: None,
            since_best: 0,
            records: Vec::new(),
            settings,
        }
    }
}

/// Folder of a run, locked by this process until dropped.
#[derive(Debug)]
pub(crate) struct Folder {
    path: PathBuf,
    /// File lock, which the operating system releases when the process ends.
    _lock: File,
}

impl Folder {
    /// Creates the folder if needed and locks it.
    ///
    /// # Errors
    /// [`Error::Locked`] if another process is training there.
    pub(crate) fn open(path: &Path) -> Result<Folder> {
        std::fs::create_dir_all(path).map_err(Error::io(path))?;
        let name = path.join("lock");
        let lock = File::options().create(true).truncate(false).write(true).open(&name);
        let lock = lock.map_err(Error::io(&name))?;
        match lock.try_lock() {
            Ok(()) => Ok(Folder { path: path.to_owned(), _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(Error::Locked(path.to_owned())),
            Err(TryLockError::Error(error)) => Err(Error::io(&name)(error)),
        }
    }

    /// Returns the states by step, latest first.
    pub(crate) fn states(&self) -> Result<Vec<(u64, PathBuf)>> {
        let mut states = Vec::new();
        for entry in std::fs::read_dir(&self.path).map_err(Error::io(&self.path))? {
            let path = entry.map_err(Error::io(&self.path))?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let step = name.strip_prefix("state-").and_then(|rest| rest.strip_suffix(".safetensors"));
            if let Some(step) = step.and_then(|step| step.parse().ok()) {
                states.push((step, path));
            }
        }
        states.sort_by(|a, b| b.cmp(a));
        Ok(states)
    }

    /// Saves a state and removes all but the last two.
    pub(crate) fn save(&self, progress: &Progress, tensors: &BTreeMap<String, RawTensor>) -> Result<PathBuf> {
        let path = self.path.join(format!("state-{:012}.safetensors", progress.step));
        let progress = Progress { checksum: checksum(tensors)?, ..progress.clone() };
        let json = serde_json::to_string(&progress).map_err(|e| Error::Syntax(e.to_string()))?;
        let metadata = BTreeMap::from([(KEY.to_owned(), json)]);
        safetensors::write(&path, Existing::Replace, &metadata, tensors, &mut |_| {})?;
        sync(&path)?;
        sync_folder(&self.path)?;
        for (_, old) in self.states()?.into_iter().skip(KEPT) {
            std::fs::remove_file(&old).map_err(Error::io(&old))?;
        }
        Ok(path)
    }

    /// Loads the latest undamaged state; also returns why later ones were skipped.
    #[allow(clippy::type_complexity, reason = "private")]
    pub(crate) fn load(&self) -> Result<(Progress, BTreeMap<String, RawTensor>, Vec<String>)> {
        let mut skipped = Vec::new();
        for (step, path) in self.states()? {
            match read(&path) {
                Ok((progress, tensors)) if progress.step == step => return Ok((progress, tensors, skipped)),
                Ok((progress, _)) => {
                    skipped.push(format!("`{}` contains step {}", path.display(), progress.step));
                }
                Err(why) => skipped.push(format!("`{}`: {why}", path.display())),
            }
        }
        Err(Error::NoState { path: self.path.clone(), skipped })
    }
}

fn read(path: &Path) -> Result<(Progress, BTreeMap<String, RawTensor>), String> {
    let contents = safetensors::open(path).map_err(|e| match e {
        resnet_model::Error::At { error, .. } => error.to_string(),
        other => other.to_string(),
    })?;
    let json = contents.metadata.get(KEY).ok_or_else(|| format!("metadata key `{KEY}` is missing"))?;
    let progress: Progress = serde_json::from_str(json).map_err(|e| e.to_string())?;
    if progress.version != VERSION {
        return Err(format!("unsupported version {}, expected {VERSION}", progress.version));
    }
    let tensors: BTreeMap<String, RawTensor> = contents.tensors.into_iter().collect();
    match checksum(&tensors).map_err(|e| e.to_string())? {
        found if found == progress.checksum => Ok((progress, tensors)),
        found => Err(format!("checksum mismatch: found {found:08x}, expected {:08x}", progress.checksum)),
    }
}

fn checksum(tensors: &BTreeMap<String, RawTensor>) -> Result<u32> {
    let mut hash = crc32fast::Hasher::new();
    for (name, tensor) in tensors {
        hash.update(name.as_bytes());
        tensor.for_each_chunk(|bytes| {
            hash.update(bytes);
            Ok(())
        })?;
    }
    Ok(hash.finalize())
}

/// Syncs a file to disk. Windows can flush writable handles only.
pub(crate) fn sync(path: &Path) -> Result<()> {
    File::options().write(true).open(path).and_then(|file| file.sync_all()).map_err(Error::io(path))
}

/// Syncs the entries of a folder to disk, on Unix.
pub(crate) fn sync_folder(path: &Path) -> Result<()> {
    match cfg!(unix) {
        true => File::open(path).and_then(|folder| folder.sync_all()).map_err(Error::io(path)),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(step: u64) -> (Progress, BTreeMap<String, RawTensor>) {
        let mut progress = Progress::new(serde_json::json!({"epochs": 3}));
        progress.step = step;
        progress.loss_sum = 0.1f64.to_bits();
        let tensor = RawTensor::from_f32(vec![3], &[step as f32, 2.0, 3.0]).unwrap();
        (progress, BTreeMap::from([("model/fc.weight".to_owned(), tensor)]))
    }

    fn save(folder: &Folder, step: u64) -> PathBuf {
        let (progress, tensors) = state(step);
        folder.save(&progress, &tensors).unwrap()
    }

    #[test]
    fn the_latest_undamaged_state_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        assert!(matches!(folder.load(), Err(Error::NoState { .. })));
        std::fs::write(dir.path().join("state-x.safetensors"), b"other").unwrap();
        let paths: Vec<PathBuf> = [9, 10, 200].map(|step| save(&folder, step)).to_vec();
        assert!(!paths[0].exists() && paths[1].exists() && dir.path().join("state-x.safetensors").exists());
        let (progress, tensors, skipped) = folder.load().unwrap();
        assert_eq!((progress.step, f64::from_bits(progress.loss_sum), skipped.len()), (200, 0.1, 0));
        assert_eq!(tensors["model/fc.weight"].to_f32("w").unwrap(), [200.0, 2.0, 3.0]);

        let whole = std::fs::read(&paths[2]).unwrap();
        for (damage, message) in [
            ([&whole[..whole.len() - 1], &[0xff]].concat(), "checksum mismatch: found"),
            (whole[..whole.len() - 2].to_vec(), "safetensors"),
            (Vec::new(), "too short"),
        ] {
            std::fs::write(&paths[2], damage).unwrap();
            let (progress, _, skipped) = folder.load().unwrap();
            assert_eq!(progress.step, 10);
            assert!(skipped.len() == 1 && skipped[0].contains(message), "{skipped:?}");
        }
        std::fs::copy(&paths[1], &paths[2]).unwrap();
        assert!(folder.load().unwrap().2[0].contains("contains step 10"));
    }

    #[test]
    fn a_folder_is_locked_by_one_process() {
        let dir = tempfile::tempdir().unwrap();
        let held = Folder::open(dir.path()).unwrap();
        assert!(matches!(Folder::open(dir.path()), Err(Error::Locked(_))));
        drop(held);
        assert!(Folder::open(dir.path()).is_ok());
    }
}
