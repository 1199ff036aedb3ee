//! Naming schemes. Each is a table: which names prove it, and how its names become torchvision's.
//!
//! Where in a file the network is (under `state_dict.model.`, `module.encoder_q.`, …) needs no table: it is wherever
//! the proving names are found.

mod pattern;
mod tables;

use std::collections::{BTreeMap, HashSet};

use resnet_model::{Preprocess, RawTensor, escape};

use self::pattern::Pattern;
use self::tables::{DIALECTS, Dialect, Norm, SIBLINGS, TRAINING, WRAPPERS};
use crate::onnx;
use crate::report::{Dropped, Renamed, Reshaped, Synthesised};

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
    pub(crate) synthesised: Vec<Synthesised>,
    pub(crate) unset: Vec<String>,
    /// Whether batch norms are a factor and an addend, without statistics.
    pub(crate) affine: bool,
    norm: Norm,
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
            synthesised: vec![],
            unset: vec![],
            affine: false,
            norm: Norm::ImageNet,
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

    /// What the dialect's weights were trained with where it differs from `usual`.
    pub(crate) fn preprocess(&self, usual: Preprocess) -> Preprocess {
        match self.norm {
            Norm::ImageNet => usual,
            Norm::Swav => Preprocess { std: vec![0.228, 0.224, 0.225], ..usual },
        }
    }
}

/// Finds the network among `tensors` and translates its names; `None` if no dialect is proved.
/// Two names that become one are an error, told as that name.
pub(crate) fn translate(tensors: &[(String, RawTensor)]) -> Option<Result<Translation, String>> {
    let names: HashSet<&str> = tensors.iter().map(|(n, _)| n.as_str()).collect();
    let (dialect, roots) = DIALECTS.iter().find_map(|dialect| {
        let roots = roots(dialect, tensors, &names);
        (!roots.is_empty()).then_some((dialect, roots))
    })?;
    let root = *roots.iter().min_by_key(|root| rank(root))?;
    let mut out = Translation {
        dialect: dialect.name,
        root: root.to_owned(),
        norm: dialect.norm,
        ..Translation::identity(&[])
    };
    if roots.len() > 1 {
        let others: Vec<String> =
            roots.iter().filter(|r| **r != root).map(|r| format!("`{}`", escape(r))).collect();
        out.notes.push(format!("the network under `{}` was taken, not {}", escape(root), others.join(", ")));
    }
    for (name, tensor) in tensors {
        let Some(inner) = name.strip_prefix(root) else {
            match outside(name, root, &roots) {
                Some(reason) => out.dropped.push(Dropped { name: name.clone(), reason: reason.into() }),
                None => out.leftover.push(name.clone()),
            }
            continue;
        };
        if dialect.drop.iter().any(|p| Pattern(p).matches(inner).is_some()) {
            out.dropped.push(Dropped { name: name.clone(), reason: "no part of the network".into() });
            continue;
        }
        let to = dialect.rules.iter().find_map(|(from, to)| Pattern(from).rewrite(inner, to));
        let to = to.unwrap_or_else(|| inner.to_owned());
        if to != *name {
            out.renamed.push(Renamed { from: name.clone(), to: to.clone() });
        }
        if out.tensors.insert(to.clone(), tensor.clone()).is_some() {
            return Some(Err(to));
        }
    }
    Some(Ok(out))
}

/// The prefixes under which all proving names of the dialect exist, in the order of the file.
fn roots<'a>(dialect: &Dialect, tensors: &'a [(String, RawTensor)], names: &HashSet<&str>) -> Vec<&'a str> {
    let Some((first, others)) = dialect.anchors.split_first() else { return vec![] };
    let root = |name: &'a str| {
        let root = name.strip_suffix(first)?;
        let whole = root.is_empty() || root.ends_with('.');
        (whole && root.ends_with(dialect.root_ends)).then_some(root)
    };
    let proved = |root: &&str| others.iter().all(|other| names.contains(format!("{root}{other}").as_str()));
    tensors.iter().filter_map(|(name, _)| root(name)).filter(proved).collect()
}

/// Which of several copies of a network is wanted: averaged weights first, momentum copies last.
fn rank(root: &str) -> usize {
    let has = |words: &[&str]| root.split('.').any(|part| words.contains(&part));
    match () {
        () if has(&["state_dict_ema", "model_ema", "ema_state_dict", "ema", "ema_model", "module_ema"]) => 0,
        () if has(&["teacher"]) => 1,
        () if has(&["encoder_k", "momentum_encoder", "target_encoder", "student"]) => 3,
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
