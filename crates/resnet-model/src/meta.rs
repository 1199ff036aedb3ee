//! What a checkpoint says about itself.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Arch, Error, Labels, Preprocess, Result};

/// The one key of the safetensors `__metadata__` map that is ours. One key, so that equal checkpoints are equal bytes.
pub const KEY: &str = "resnet";

/// The version of this description; a file with a later one is refused instead of misread.
pub const VERSION: u32 = 1;

/// The longest description that is read, in bytes.
const MAX_LEN: usize = 16 << 20;

/// What a checkpoint says about itself: architecture, preprocessing, labels, origin. Stored as JSON under [`KEY`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Meta {
    /// The version of this description, [`VERSION`].
    pub version: u32,
    /// Which network the tensors belong to.
    pub arch: Arch,
    /// How an image becomes the network's input.
    pub preprocess: Preprocess,
    /// What the network's outputs mean.
    #[serde(default, skip_serializing_if = "Labels::is_none")]
    pub labels: Labels,
    /// Where the tensors come from.
    #[serde(default)]
    pub origin: Origin,
    /// Figures measured with these weights, e.g. `top1` in per cent.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metrics: BTreeMap<String, f64>,
}

/// Where a checkpoint's tensors come from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Origin {
    /// The name of the file it was converted from, without its folders.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// The container of that file, e.g. `torch zip`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// The naming scheme of that file, e.g. `torchvision`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dialect: Option<String>,
}

impl Meta {
    /// A description of weights for `arch`: `preprocess` as given, no labels, origin unknown.
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

    /// The JSON that is stored.
    pub fn to_json(&self) -> Result<String> {
        serde_json::to_string(self).map_err(|e| Error::Meta(e.to_string()))
    }

    /// Parses stored JSON.
    pub fn from_json(json: &str) -> Result<Meta> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        if json.len() > MAX_LEN {
            return Err(Error::Meta(format!("{} bytes, more than {MAX_LEN}", json.len())));
        }
        // Messages may quote the file.
        let invalid = |e: serde_json::Error| Error::Meta(crate::escape(&e.to_string()));
        let Version { version } = serde_json::from_str(json).map_err(invalid)?;
        if version != VERSION {
            return Err(Error::Meta(format!("version {version}; this program reads version {VERSION}")));
        }
        let meta: Meta = serde_json::from_str(json).map_err(invalid)?;
        meta.preprocess.validate()?;
        if let (Some(labels), Some(classes)) = (meta.labels.len(), meta.arch.classes())
            && labels != classes
        {
            return Err(Error::Meta(format!("{labels} labels for {classes} classes")));
        }
        Ok(meta)
    }
}
