//! Naming schemes. Each is a table: which names prove it, and how its names become torchvision's.
//!
//! Where in a file the network is (under `state_dict.model.`, `module.encoder_q.`, …) needs no table: it is wherever
//! the proving names are found.

mod pattern;
pub(crate) mod structure;
mod tables;
mod transpose;

use std::collections::{BTreeMap, HashSet};

use resnet_model::arch::{Arch, Block, StrideIn};
use resnet_model::preprocess::Channels;
use resnet_model::{Preprocess, RawTensor, escape};

use self::pattern::Pattern;
pub(crate) use self::tables::Traits;
use self::tables::{AS_TORCH, DIALECTS, Dialect, InputNorm, SIBLINGS, TRAINING, WRAPPERS, WeightLayout};
use crate::onnx;
use crate::report::{Dropped, Identified, Renamed, Reshaped, Synthesized};

/// A network's tensors under torchvision's names, and how they came to it.
#[derive(Debug)]
pub(crate) struct Translation {
    pub(crate) dialect: &'static str,
    /// Where the network was, e.g. `state_dict.model.`; empty at the top.
    pub(crate) root: String,
    pub(crate) tensors: BTreeMap<String, RawTensor>,
    pub(crate) renamed: Vec<Renamed>,
    pub(crate) dropped: Vec<Dropped>,
    /// Tensors beside the network that nothing is known about.
    pub(crate) leftover: Vec<String>,
    pub(crate) notes: Vec<String>,
    pub(crate) reshaped: Vec<Reshaped>,
    pub(crate) transposed: Vec<String>,
    pub(crate) synthesized: Vec<Synthesized>,
    pub(crate) unset: Vec<String>,
    pub(crate) traits: Traits,
    norm: InputNorm,
}

impl Translation {
    /// Names that need no translation: those of a file that describes itself.
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
            norm: InputNorm::Usual,
        }
    }

    /// A network that was found by its graph, so that its names mean nothing.
    pub(crate) fn graph(found: &mut onnx::Found) -> Translation {
        Translation {
            dialect: "by structure",
            tensors: std::mem::take(&mut found.tensors),
            renamed: std::mem::take(&mut found.renamed),
            leftover: std::mem::take(&mut found.unused),
            notes: std::mem::take(&mut found.notes),
            ..Translation::identity(&[])
        }
    }

    fn drop(&mut self, name: &str, reason: &str) {
        self.dropped.push(Dropped { name: name.to_owned(), reason: reason.into() });
    }

    /// Leaves out a tensor that is not under the root, for a reason that is known or for none. `roots` are the copies of
    /// the network.
    fn outside(&mut self, name: &str, roots: &[&str]) {
        match outside(name, &self.root, roots) {
            Some(reason) => self.drop(name, reason),
            None => self.leftover.push(name.to_owned()),
        }
    }

    /// What the dialect's weights for `arch` were trained with where it differs from `usual`.
    pub(crate) fn preprocess(&self, usual: Preprocess, arch: &Arch) -> Preprocess {
        let grouped = matches!(arch, Arch::ResNet(net) if net.groups > 1);
        match usual.channels {
            Channels::Grey => usual,
            _ => self.norm.preprocess(usual, grouped),
        }
    }

    /// `arch` with what the dialect tells and no tensor shows, and how that is told.
    pub(crate) fn adjust(&self, arch: Arch, identified: &mut Identified) -> Arch {
        let Arch::ResNet(mut net) = arch else { return arch };
        let Traits { affine, stride_first, norm_eps } = self.traits;
        if affine {
            net.norm = resnet_model::arch::Norm::Batch;
        }
        if let Some(eps) = norm_eps {
            net.norm_eps = eps;
        }
        if stride_first && net.groups == 1 && net.stages.iter().any(|s| s.block == Block::Bottleneck) {
            net.stride_in = StrideIn::Conv1x1;
            identified.assumed.retain(|a| !a.starts_with("strides"));
            identified.evidence.push_str(&format!(
                " and the names of {}, whose strides are in the first 1×1 convolutions",
                self.dialect
            ));
        }
        Arch::ResNet(net)
    }

    /// Detectron2's names on the weights of somebody else, who has torchvision's ways.
    pub(crate) fn by_author(&mut self, author: &str) {
        if self.norm == InputNorm::Detectron && author == "torchvision" {
            (self.norm, self.traits.stride_first) = (InputNorm::Usual, false);
            self.notes.push(
                "the file names torchvision as its author, whose preprocessing and strides are taken".into(),
            );
        }
    }
}

/// Finds the network among `tensors` and translates its names; `None` if no dialect is proved.
/// Two names that become one are an error, told as that name.
pub(crate) fn translate(tensors: &[(String, RawTensor)]) -> Option<Result<Translation, String>> {
    let names: HashSet<&str> = tensors.iter().map(|(n, _)| without_index(n)).collect();
    let (dialect, roots) = DIALECTS.iter().find_map(|dialect| {
        let roots = roots(dialect, tensors, &names);
        (!roots.is_empty()).then_some((dialect, roots))
    })?;
    let root = *roots.iter().min_by_key(|root| rank(root))?;
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
        out.notes.push(format!("the network under `{}` was taken, not {}", escape(root), others.join(", ")));
    }
    for (name, tensor) in tensors {
        let Some(inner) = name.strip_prefix(root) else {
            out.outside(name, &roots);
            continue;
        };
        if dialect.drop.iter().any(|p| Pattern(p).matches(inner).is_some()) {
            out.drop(name, "no part of the network");
            continue;
        }
        let to = dialect.rename(inner);
        if to != *name {
            out.renamed.push(Renamed { from: name.clone(), to: to.clone() });
        }
        let laid = match dialect.layout {
            WeightLayout::Torch => None,
            WeightLayout::Tensorflow => transpose::to_torch(tensor),
        };
        if laid.is_some() {
            out.transposed.push(to.clone());
        }
        if out.tensors.insert(to.clone(), laid.unwrap_or_else(|| tensor.clone())).is_some() {
            return Some(Err(to));
        }
    }
    Some(Ok(out))
}

impl Dialect {
    /// The name in the zoo.
    fn rename(&self, inner: &str) -> String {
        let inner = without_index(inner);
        let end = self.ends.iter().find_map(|(from, to)| Some(format!("{}{to}", inner.strip_suffix(from)?)));
        let inner = end.as_deref().unwrap_or(inner);
        let to = self.rules.iter().find_map(|(from, to)| Pattern(from).rewrite(inner, to));
        to.unwrap_or_else(|| inner.to_owned())
    }
}

/// TensorFlow's names of variables without the number of the output that they are.
fn without_index(name: &str) -> &str {
    name.strip_suffix(":0").unwrap_or(name)
}

/// The prefixes under which all proving names of the dialect exist, in the order of the file.
fn roots<'a>(dialect: &Dialect, tensors: &'a [(String, RawTensor)], names: &HashSet<&str>) -> Vec<&'a str> {
    let Some((first, others)) = dialect.anchors.split_first() else { return vec![] };
    let root = |name: &'a str| {
        let root = without_index(name).strip_suffix(first)?;
        let whole = root.is_empty() || root.ends_with(['.', '/']);
        (whole && root.ends_with(dialect.root_ends)).then_some(root)
    };
    let proved = |root: &&str| others.iter().all(|other| names.contains(format!("{root}{other}").as_str()));
    tensors.iter().filter_map(|(name, _)| root(name)).filter(proved).collect()
}

/// Copies that follow the network in self-supervised training.
const MOMENTUM: &[&str] = &[
    "encoder_k",
    "momentum_encoder",
    "momentum_backbone",
    "target_encoder",
    "target_network_state_dict",
    "student",
];

/// Which of several copies of a network is wanted: averaged weights first, momentum copies last.
fn rank(root: &str) -> usize {
    let has = |words: &[&str]| root.split('.').any(|part| words.contains(&part));
    match () {
        () if has(&["state_dict_ema", "model_ema", "ema_state_dict", "ema", "ema_model", "module_ema"]) => 0,
        () if has(&["teacher"]) => 1,
        () if has(MOMENTUM) => 3,
        () => 2,
    }
}

/// Why a tensor that is not under `root` may be left out; `None` if nothing is known about it.
fn outside(name: &str, root: &str, roots: &[&str]) -> Option<&'static str> {
    let first = |s: &str| s.split('.').next().unwrap_or_default().to_owned();
    if TRAINING.contains(&first(name).as_str()) {
        return Some("state of the training");
    }
    if roots.iter().any(|other| *other != root && name.starts_with(other)) {
        return Some("another copy of the network");
    }
    if first(name) != first(root) && WRAPPERS.contains(&first(root).as_str()) {
        return Some("beside the weights");
    }
    // Siblings of the network or of a module that it is in.
    let mut parents = root.match_indices('.').map(|(i, _)| root.get(..i).unwrap_or_default());
    let mut inner = vec![name];
    inner.extend(parents.by_ref().filter_map(|p| name.strip_prefix(p)?.strip_prefix('.')));
    let known = |n: &&str| SIBLINGS.iter().any(|p| Pattern(p).matches(n).is_some());
    inner.iter().any(known).then_some("no part of the network")
}
