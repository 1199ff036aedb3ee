//! Naming schemes. Each is a table of anchor names that identify it and rules that rename its tensors to torchvision's
//! names.
//!
//! The prefix of the network's names (`state_dict.model.`, `module.encoder_q.`, …) needs no table: it is found with the
//! anchors.

mod order;
mod pattern;
mod pixel_stats;
pub(crate) mod structure;
mod tables;
mod transpose;

use std::collections::{BTreeMap, HashSet};

use resnet_image::preprocess::Channels;
use resnet_model::arch::{Arch, Block, StrideIn};
use resnet_model::{Preprocess, RawTensor, escape};

use self::pattern::Pattern;
use self::pixel_stats::PixelStats;
pub(crate) use self::tables::Traits;
use self::tables::{AS_TORCH, DIALECTS, Dialect, InputNorm, SIBLINGS, TRAINING, WRAPPERS, WeightLayout};
use crate::report::{Dropped, Identified, Renamed, Reshaped, Synthesized};

/// Network tensors under torchvision's names, and a record of the changes.
#[derive(Debug)]
pub(crate) struct Translation {
    pub(crate) dialect: &'static str,
    /// The prefix of the network's names in the file, e.g. `state_dict.model.`; may be empty.
    pub(crate) root: String,
    pub(crate) tensors: BTreeMap<String, RawTensor>,
    pub(crate) renamed: Vec<Renamed>,
    pub(crate) dropped: Vec<Dropped>,
    /// Tensors outside the network, of unknown purpose.
    pub(crate) leftover: Vec<String>,
    pub(crate) notes: Vec<String>,
    pub(crate) reshaped: Vec<Reshaped>,
    pub(crate) transposed: Vec<String>,
    pub(crate) synthesized: Vec<Synthesized>,
    pub(crate) unset: Vec<String>,
    pub(crate) traits: Traits,
    norm: InputNorm,
    /// Detectron2's `pixel_mean` and `pixel_std`, where the file has them.
    pixel_stats: Option<PixelStats>,
}

/// Result of [`translate`].
pub(crate) enum Recognition {
    Translated(Box<Translation>),
    /// Two tensors translate to this name.
    Duplicate(String),
    /// No dialect has these names.
    Unknown,
}

impl Translation {
    /// Returns a translation that keeps all names.
    pub(crate) fn identity(tensors: &[(String, RawTensor)]) -> Translation {
        Translation {
            dialect: "resnet",
            root: String::new(),
            tensors: tensors.iter().cloned().collect(),
            renamed: vec![],
            dropped: vec![],
            leftover: vec![],
            notes: vec![],
            reshaped: vec![],
            transposed: vec![],
            synthesized: vec![],
            unset: vec![],
            traits: AS_TORCH,
            norm: InputNorm::Default,
            pixel_stats: None,
        }
    }

    /// Returns the translation of a network that was identified by its graph.
    pub(crate) fn graph(found: &mut resnet_onnx::Network) -> Translation {
        Translation {
            dialect: "by structure",
            tensors: std::mem::take(&mut found.tensors),
            renamed: std::mem::take(&mut found.renamed)
                .into_iter()
                .map(|(from, to)| Renamed { from, to })
                .collect(),
            leftover: std::mem::take(&mut found.unused),
            notes: std::mem::take(&mut found.notes),
            ..Translation::identity(&[])
        }
    }

    pub(crate) fn drop(&mut self, name: &str, reason: &str) {
        self.dropped.push(Dropped { name: name.to_owned(), reason: reason.into() });
    }

    /// Records a tensor outside the root as dropped, or as leftover if its purpose is unknown. `roots` are the copies of
    /// the network.
    fn outside(&mut self, name: &str, roots: &[&str]) {
        match drop_reason(name, &self.root, roots) {
            Some(reason) => self.drop(name, reason),
            None => self.leftover.push(name.to_owned()),
        }
    }

    /// Returns the preprocessing of the dialect's weights for `arch`, based on `default`.
    pub(crate) fn preprocess(&self, default: Preprocess, arch: &Arch) -> Preprocess {
        let grouped = matches!(arch, Arch::ResNet(net) if net.groups > 1);
        match (&self.pixel_stats, default.channels) {
            (_, Channels::Gray) => default,
            (Some(stats), _) => stats.preprocess(default),
            (None, _) => self.norm.preprocess(default, grouped),
        }
    }

    /// Applies the architecture properties that the dialect implies and no tensor shows.
    pub(crate) fn adjust(&self, arch: Arch, mut identified: Identified) -> (Arch, Identified) {
        let Arch::ResNet(mut net) = arch else { return (arch, identified) };
        let Traits { affine, stride_first, norm_eps } = self.traits;
        if affine {
            net.norm = resnet_model::arch::Norm::Batch;
        }
        if let Some(eps) = norm_eps {
            net.norm_eps = eps;
            identified.assumed.retain(|a| !a.starts_with("norm epsilon"));
        }
        if stride_first && net.groups == 1 && net.stages.iter().any(|s| s.block == Block::Bottleneck) {
            net.stride_in = StrideIn::Conv1x1;
            identified.assumed.retain(|a| !a.starts_with("strides"));
            identified.evidence.push_str(&format!(
                " and the names of {}, which strides in the first 1×1 convolution",
                self.dialect
            ));
        }
        (Arch::ResNet(net), identified)
    }

    /// Applies the `__author__` of a Detectron2 file: torchvision's weights keep their preprocessing and strides.
    pub(crate) fn with_author(mut self, author: &str) -> Translation {
        if self.norm == InputNorm::Detectron && author == "torchvision" {
            (self.norm, self.traits.stride_first) = (InputNorm::Default, false);
            self.notes
                .push("the file names torchvision as its author: its preprocessing and strides apply".into());
        }
        self
    }

    /// Applies `pixel_mean` and `pixel_std` of a Detectron2 file. RGB order means weights from torchvision, whose strides
    /// are in the 3×3 convolutions.
    fn with_pixel_stats(mut self, tensors: &[(String, RawTensor)]) -> Translation {
        self.pixel_stats = PixelStats::find(tensors);
        if let Some(stats) = &self.pixel_stats {
            let order = if stats.is_rgb() { "RGB" } else { "BGR" };
            self.notes.push(format!(
                "preprocessing from the file's `pixel_mean` and `pixel_std`, in {order} order"
            ));
            self.traits.stride_first &= !stats.is_rgb();
        }
        self
    }
}

/// Finds the network among `tensors` and translates its names.
pub(crate) fn translate(tensors: &[(String, RawTensor)]) -> Recognition {
    let names: HashSet<&str> = tensors.iter().map(|(n, _)| without_index(n)).collect();
    let matching = DIALECTS.iter().find_map(|dialect| {
        let roots = roots(dialect, tensors, &names);
        let root = *roots.iter().min_by_key(|root| rank(root))?;
        Some((dialect, roots, root))
    });
    let Some((dialect, roots, root)) = matching else { return Recognition::Unknown };
    let mut out = Translation {
        dialect: dialect.name,
        root: root.to_owned(),
        norm: dialect.norm,
        traits: dialect.traits,
        ..Translation::identity(&[])
    };
    if roots.len() > 1 {
        let others: Vec<String> =
            roots.iter().filter(|r| **r != root).map(|r| format!("`{}`", escape(r))).collect();
        out.notes.push(format!("used the network under `{}`, not {}", escape(root), others.join(", ")));
    }
    for (name, tensor) in tensors {
        let Some(inner) = name.strip_prefix(root) else {
            out.outside(name, &roots);
            continue;
        };
        if dialect.drop.iter().any(|p| Pattern(p).matches(inner).is_some()) {
            out.drop(name, "not part of the network");
            continue;
        }
        let to = dialect.rename(inner);
        if to != *name {
            out.renamed.push(Renamed { from: name.clone(), to: to.clone() });
        }
        let transposed = match dialect.layout {
            WeightLayout::Torch => None,
            WeightLayout::Tensorflow => transpose::to_torch(tensor),
        };
        if transposed.is_some() {
            out.transposed.push(to.clone());
        }
        if out.tensors.insert(to.clone(), transposed.unwrap_or_else(|| tensor.clone())).is_some() {
            return Recognition::Duplicate(to);
        }
    }
    let out = if dialect.norm == InputNorm::Detectron { out.with_pixel_stats(tensors) } else { out };
    Recognition::Translated(Box::new(out))
}

impl Dialect {
    /// Returns the zoo's name for a name under the root.
    fn rename(&self, inner: &str) -> String {
        let inner = without_index(inner);
        let end = self.ends.iter().find_map(|(from, to)| Some(format!("{}{to}", inner.strip_suffix(from)?)));
        let inner = end.as_deref().unwrap_or(inner);
        let to = self.rules.iter().find_map(|(from, to)| Pattern(from).rewrite(inner, to));
        to.unwrap_or_else(|| inner.to_owned())
    }
}

/// Strips the output index of a TensorFlow variable name.
fn without_index(name: &str) -> &str {
    name.strip_suffix(":0").unwrap_or(name)
}

/// Returns the prefixes under which all anchors of the dialect exist, in file order.
fn roots<'a>(dialect: &Dialect, tensors: &'a [(String, RawTensor)], names: &HashSet<&str>) -> Vec<&'a str> {
    let Some((first, others)) = dialect.anchors.split_first() else { return vec![] };
    let root = |name: &'a str| {
        let root = without_index(name).strip_suffix(first)?;
        let whole = root.is_empty() || root.ends_with(['.', '/']);
        (whole && root.ends_with(dialect.root_ends)).then_some(root)
    };
    let complete = |root: &&str| others.iter().all(|other| names.contains(format!("{root}{other}").as_str()));
    tensors.iter().filter_map(|(name, _)| root(name)).filter(complete).collect()
}

/// Prefixes of momentum copies of the network in self-supervised training.
const MOMENTUM: &[&str] = &[
    "encoder_k",
    "momentum_encoder",
    "momentum_backbone",
    "target_encoder",
    "target_network_state_dict",
    "student",
];

/// Returns the preference among copies of a network, lowest first: averaged weights before momentum copies.
fn rank(root: &str) -> usize {
    let has = |words: &[&str]| root.split('.').any(|part| words.contains(&part));
    match () {
        () if has(&["state_dict_ema", "model_ema", "ema_state_dict", "ema", "ema_model", "module_ema"]) => 0,
        () if has(&["teacher"]) => 1,
        () if has(MOMENTUM) => 3,
        () => 2,
    }
}

/// Returns the reason to drop a tensor outside `root`; `None` if its purpose is unknown.
fn drop_reason(name: &str, root: &str, roots: &[&str]) -> Option<&'static str> {
    let first = |s: &str| s.split('.').next().unwrap_or_default().to_owned();
    if TRAINING.contains(&first(name).as_str()) {
        return Some("training state");
    }
    if roots.iter().any(|other| *other != root && name.starts_with(other)) {
        return Some("another copy of the network");
    }
    if first(name) != first(root) && WRAPPERS.contains(&first(root).as_str()) {
        return Some("outside the state dict");
    }
    // Siblings of the network or of one of its parent modules.
    let mut parents = root.match_indices('.').map(|(i, _)| root.get(..i).unwrap_or_default());
    let mut inner = vec![name];
    inner.extend(parents.by_ref().filter_map(|p| name.strip_prefix(p)?.strip_prefix('.')));
    let known = |n: &&str| SIBLINGS.iter().any(|p| Pattern(p).matches(n).is_some());
    inner.iter().any(known).then_some("not part of the network")
}
