//! The place of weights and the files there.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use resnet_hub::{Client, Config, Error as HubError, Event, Missing, RepoId};
use serde_json::Value;

use crate::{Error, Result, manifest};

/// The names of weights in a repository, in the order of preference.
const WEIGHTS: [&str; 4] = [
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
];
const EXTENSIONS: [&str; 13] =
    ["safetensors", "pth", "pt", "bin", "ckpt", "pkl", "pickle", "onnx", "npz", "npy", "tar", "json", "toml"];

/// The place of weights.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Location {
    File(PathBuf),
    Folder(PathBuf),
    Hub(RepoId),
}

impl Location {
    /// Returns an existing file or folder, else the repository of published weights, else that of a Hub id or URL.
    pub(crate) fn find(weights: &str) -> Result<Location> {
        let path = Path::new(weights);
        if path.is_dir() {
            return Ok(Location::Folder(path.to_owned()));
        }
        if path.exists() {
            return Ok(Location::File(path.to_owned()));
        }
        if let Some(published) = manifest::published()?.iter().find(|p| p.name == weights) {
            return Ok(Location::Hub(RepoId::parse(&published.hub)?));
        }
        if let Some(id) = weights.strip_prefix("https://huggingface.co/") {
            let id = id.trim_end_matches('/').replacen("/tree/", "@", 1);
            return Ok(Location::Hub(RepoId::parse(&id)?));
        }
        let lower = weights.to_ascii_lowercase();
        let is_file = lower.rsplit_once('.').is_some_and(|(_, extension)| EXTENSIONS.contains(&extension));
        let name = weights.split_once('@').map_or(weights, |(name, _)| name);
        if name.split('/').count() == 2 && !weights.starts_with(['.', '/', '~']) && !is_file {
            return Ok(Location::Hub(RepoId::parse(weights)?));
        }
        Err(Error::NotFound { weights: weights.to_owned() })
    }

    /// Returns the names under which the manifest may know the weights.
    fn names(&self) -> Vec<String> {
        let text = |name: Option<&std::ffi::OsStr>| name.and_then(|n| n.to_str()).map(str::to_owned);
        match self {
            Location::Hub(repo) => vec![repo.name().to_owned()],
            Location::Folder(path) => text(path.file_name()).into_iter().collect(),
            Location::File(path) => {
                let parent = path.parent().and_then(Path::file_name);
                [text(path.file_stem()), text(parent)].into_iter().flatten().collect()
            }
        }
    }

    /// Returns the published weights that the file, folder or repository is named after.
    pub(crate) fn published(&self) -> Result<Option<&'static manifest::Published>> {
        for name in self.names() {
            // The name of an architecture alone does not identify weights.
            if let Some(found) = manifest::find(&name)?.filter(|p| p.arch != name) {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }
}

/// The files of weights on this machine.
#[derive(Debug)]
pub(crate) struct Files {
    /// The checkpoint, or the index of its shards.
    pub(crate) weights: PathBuf,
    /// `config.json`.
    pub(crate) config: Option<(PathBuf, Value)>,
    /// `preprocessor_config.json`.
    pub(crate) preprocessor: Option<(PathBuf, Value)>,
}

impl Files {
    /// Finds the files, downloading them if necessary.
    pub(crate) fn find(
        location: &Location,
        hub: &Config,
        progress: &mut dyn FnMut(Event<'_>),
    ) -> Result<Files> {
        match location {
            Location::File(path) => {
                let folder = path.parent().unwrap_or(Path::new(""));
                let mut find = |name: &str| Ok(Some(folder.join(name)).filter(|p| p.is_file()));
                Files::read(&mut find, path.clone())
            }
            Location::Folder(path) => {
                let mut find = |name: &str| Ok(Some(path.join(name)).filter(|p| p.is_file()));
                let weights = match first(&mut find)? {
                    Some((weights, _)) => weights,
                    None => only_checkpoint(path)?,
                };
                Files::read(&mut find, weights)
            }
            Location::Hub(repo) => {
                let client = Client::new(hub.clone())?;
                let offline = client.is_offline();
                let mut find = |name: &str| match client.file(repo, name, progress) {
                    Ok(path) => Ok(Some(path)),
                    Err(HubError::NotFound { missing: Missing::File | Missing::Unknown, .. }) => Ok(None),
                    // A cache that another program filled does not record the absence of a file.
                    Err(HubError::Offline { .. }) if offline => Ok(None),
                    Err(error) => Err(error.into()),
                };
                let Some((weights, name)) = first(&mut find)? else {
                    if offline {
                        // Reports the reason.
                        client.file(repo, WEIGHTS[0], progress)?;
                    }
                    let (place, expected) = (repo.to_string(), WEIGHTS.join(", "));
                    return Err(Error::NoWeights { place, expected });
                };
                if name.ends_with(".index.json") {
                    for shard in shards(&read_json(&weights)?) {
                        client.file(repo, &shard, progress)?;
                    }
                }
                let mut find = |name: &str| match client.file(repo, name, progress) {
                    Ok(path) => Ok(Some(path)),
                    Err(HubError::NotFound { .. } | HubError::Offline { .. }) => Ok(None),
                    Err(error) => Err(error.into()),
                };
                Files::read(&mut find, weights)
            }
        }
    }

    fn read(find: &mut dyn FnMut(&str) -> Result<Option<PathBuf>>, weights: PathBuf) -> Result<Files> {
        let mut json = |name: &str| -> Result<Option<(PathBuf, Value)>> {
            Ok(match find(name)? {
                Some(path) => Some((path.clone(), read_json(&path)?)),
                None => None,
            })
        };
        // Other programs write a `config.json`, too.
        let is_model = |config: &Value| {
            ["architecture", "architectures", "model_type", "pretrained_cfg"]
                .iter()
                .any(|k| config.get(k).is_some())
        };
        let config = json("config.json")?.filter(|(_, config)| is_model(config));
        let transformers = config.as_ref().is_none_or(|(_, c)| c.get("model_type").is_some());
        let preprocessor = if transformers { json("preprocessor_config.json")? } else { None };
        Ok(Files { weights, config, preprocessor })
    }
}

/// Returns the first of the usual names that exists.
fn first(find: &mut dyn FnMut(&str) -> Result<Option<PathBuf>>) -> Result<Option<(PathBuf, &'static str)>> {
    for name in WEIGHTS {
        if let Some(path) = find(name)? {
            return Ok(Some((path, name)));
        }
    }
    Ok(None)
}

/// Returns the only checkpoint of a folder.
fn only_checkpoint(folder: &Path) -> Result<PathBuf> {
    let read = |source| Error::Read { path: folder.to_owned(), source };
    let mut found = vec![];
    for entry in std::fs::read_dir(folder).map_err(read)? {
        let path = entry.map_err(read)?.path();
        let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
        if ["safetensors", "bin", "pth", "pt", "onnx"].contains(&extension.as_str()) {
            found.push(path);
        }
    }
    match found.pop() {
        Some(path) if found.is_empty() => Ok(path),
        _ => {
            let place = format!("folder `{}`", folder.display());
            Err(Error::NoWeights {
                place,
                expected: format!("{} or a single checkpoint", WEIGHTS.join(", ")),
            })
        }
    }
}

/// Returns the names of the shards in an index.
fn shards(index: &Value) -> BTreeSet<String> {
    let map = index.get("weight_map").and_then(Value::as_object);
    map.into_iter().flatten().filter_map(|(_, shard)| shard.as_str().map(str::to_owned)).collect()
}

/// Reads a text file of bounded size.
pub(crate) fn read_text(path: &Path) -> Result<String> {
    const MAX_LEN: u64 = 32 << 20;
    let read = |source| Error::Read { path: path.to_owned(), source };
    let len = std::fs::metadata(path).map_err(read)?.len();
    if len > MAX_LEN {
        let reason = format!("{len} bytes, expected at most {MAX_LEN}");
        return Err(read(std::io::Error::other(reason)));
    }
    std::fs::read_to_string(path).map_err(read)
}

pub(crate) fn read_json(path: &Path) -> Result<Value> {
    let text = read_text(path)?;
    serde_json::from_str(&text).map_err(|source| Error::Json { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_locations() {
        let hub = |id| Location::Hub(RepoId::parse(id).unwrap());
        for (text, id) in [
            ("timm/resnet50.a1_in1k", "timm/resnet50.a1_in1k"),
            ("timm/resnet50.a1_in1k@main", "timm/resnet50.a1_in1k@main"),
            ("a/b@refs/pr/1", "a/b@refs/pr/1"),
            ("https://huggingface.co/timm/resnet18.tv_in1k", "timm/resnet18.tv_in1k"),
            ("https://huggingface.co/a/b/tree/v1", "a/b@v1"),
            ("resnet18.tv_in1k", "timm/resnet18.tv_in1k"),
        ] {
            assert_eq!(Location::find(text).unwrap(), hub(id), "{text}");
        }
        for missing in ["nothing.pth", "models/nothing.pth", "models/x.tar", "m/x.npy", "./a/b", "/a/b", "x"]
        {
            let error = Location::find(missing).unwrap_err();
            assert!(matches!(error, Error::NotFound { .. }), "{missing}: {error}");
        }
    }
}
