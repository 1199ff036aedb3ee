//! Checkpoint metadata.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Arch, Error, Labels, Preprocess, Result};

/// The key of the metadata in the safetensors `__metadata__` map.
pub const KEY: &str = "resnet";

/// The version of the metadata format; other versions are rejected.
pub const VERSION: u32 = 1;

/// Maximum length of the metadata in bytes.
const MAX_LEN: usize = 16 << 20;

/// The metadata of a checkpoint: architecture, preprocessing, labels, origin. Stored as JSON under [`KEY`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Meta {
    /// The version of the metadata format, [`VERSION`].
    pub version: u32,
    /// The architecture of the network.
    pub arch: Arch,
    /// The evaluation transform.
    pub preprocess: Preprocess,
    /// The names of the classes.
    #[serde(default, skip_serializing_if = "Labels::is_none")]
    pub labels: Labels,
    /// The file that the tensors were converted from.
    #[serde(default)]
    pub origin: Origin,
    /// Metrics of these weights, e.g. `top1` in percent.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metrics: BTreeMap<String, f64>,
}

/// The file that a checkpoint was converted from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Origin {
    /// The name of the file, without its directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// The container format, e.g. `torch zip`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// The naming scheme of the tensors, e.g. `torchvision`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dialect: Option<String>,
}

impl Meta {
    /// Creates metadata without labels and origin.
    pub fn new(arch: Arch, preprocess: Preprocess) -> Meta {
        Meta {
            version: VERSION,
            arch,
            preprocess,
            labels: Labels::None,
            origin: Origin::default(),
            metrics: BTreeMap::new(),
        }
    }

    /// Serializes the metadata to JSON.
    ///
    /// # Errors
    ///
    /// [`Error::Meta`] if serialization fails.
    pub fn to_json(&self) -> Result<String> {
        serde_json::to_string(self).map_err(|e| Error::Meta(e.to_string()))
    }

    /// Parses and validates JSON.
    ///
    /// # Errors
    ///
    /// [`Error::Meta`] if the JSON is invalid, of another version, or has not one label per class; [`Error::Image`] if the
    /// preprocessing is invalid.
    pub fn from_json(json: &str) -> Result<Meta> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        if json.len() > MAX_LEN {
            return Err(Error::Meta(format!("{} bytes, expected at most {MAX_LEN}", json.len())));
        }
        // The message may quote the file.
        let invalid = |e: serde_json::Error| Error::Meta(crate::escape(&e.to_string()));
        let Version { version } = serde_json::from_str(json).map_err(invalid)?;
        if version != VERSION {
            return Err(Error::Meta(format!("version {version}, expected {VERSION}; update this program")));
        }
        let meta: Meta = serde_json::from_str(json).map_err(invalid)?;
        meta.preprocess.validate()?;
        if let (Some(labels), Some(classes)) = (meta.labels.len(), meta.arch.classes())
            && labels != classes
        {
            return Err(Error::Meta(format!("{labels} labels, expected {classes}, one per class")));
        }
        Ok(meta)
    }
}
