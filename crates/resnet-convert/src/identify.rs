//! Identification of the architecture from tensor names and shapes. Properties that no tensor shows come from a name hint
//! or from a default, which is reported.

mod ambiguity;
mod clip;
mod inception;
mod resnet;
mod resnet_v2;
mod vgg;

use std::collections::{BTreeMap, HashMap};

use resnet_model::arch::{Arch, GlobalPool};
use resnet_model::graph::{Graph, Op};
use resnet_model::{RawTensor, escape, zoo};

use crate::report::{Identified, IdentifiedBy};

/// Limits on stages and blocks, because a file's names control the loops.
const MAX_STAGES: usize = 16;
const MAX_BLOCKS: usize = 1000;

/// Tensor shapes by the zoo's names.
pub(crate) struct Shapes<'a>(HashMap<&'a str, &'a [usize]>);

impl<'a> Shapes<'a> {
    pub(crate) fn from_tensors(tensors: &'a BTreeMap<String, RawTensor>) -> Shapes<'a> {
        Shapes(tensors.iter().map(|(name, t)| (name.as_str(), t.shape())).collect())
    }

    fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    fn get(&self, name: &str) -> Option<&'a [usize]> {
        self.0.get(name).copied()
    }

    /// Returns the shape of a convolution's weight: `[out, in / groups, height, width]`.
    fn conv(&self, name: &str) -> Option<[usize; 4]> {
        self.get(name)?.try_into().ok()
    }

    /// Returns the shape of a required convolution weight.
    fn need(&self, name: &str) -> Result<[usize; 4], String> {
        match self.get(name) {
            Some(shape) => shape
                .try_into()
                .map_err(|_| format!("`{name}` has shape {shape:?}, expected four dimensions")),
            None => Err(format!("missing tensor `{name}`")),
        }
    }

    /// Returns `[out, in]` of a linear layer's weight, stored as a matrix or as a 1×1 convolution.
    fn linear(&self, name: &str) -> Result<Option<[usize; 2]>, String> {
        match self.get(name) {
            None => Ok(None),
            Some(&[rows, columns] | &[rows, columns, 1, 1]) => Ok(Some([rows, columns])),
            Some(other) => Err(format!("`{name}` has shape {other:?}, expected [classes, features]")),
        }
    }
}

/// Name hint for the architecture, and its source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NameHint {
    /// The name, possibly with timm's tag: `resnetblur50.bt_in1k`.
    pub(crate) name: String,
    /// The source, for the report.
    pub(crate) place: String,
}

type Identify = fn(&Shapes) -> Result<Arch, String>;

/// Tensor names that identify a family, and the function that identifies its members.
const FAMILIES: &[(&[&str], Identify)] = &[
    (&["layer1.0.conv1.weight"], resnet::identify),
    (&["stages.0.blocks.0.norm1.weight"], resnet_v2::identify),
    (&["stages.0.0.conv1_1x1.conv.weight"], clip::identify),
    (&["Conv2d_1a_3x3.conv.weight"], inception::v3),
    (&["conv2d_1a.conv.weight"], inception::resnet_v2),
    (&["features.0.conv.weight"], inception::v4),
    (&["features.0.weight", "classifier.0.weight"], vgg::identify),
];

/// Identifies the architecture of tensors under the zoo's names. Returns the mismatch as the error.
pub(crate) fn identify(shapes: &Shapes, hints: &[NameHint]) -> Result<(Arch, Identified), String> {
    let family = FAMILIES.iter().find(|(names, _)| names.iter().all(|n| shapes.has(n)));
    let (_, identify) = family.ok_or("the tensor names match no known network family")?;
    Ok(choose(identify(shapes)?, hints))
}

/// Chooses among the architectures with the same tensors as `arch`.
fn choose(arch: Arch, hints: &[NameHint]) -> (Arch, Identified) {
    let equivalents = ambiguity::equivalents(&arch);
    for hint in hints {
        // timm's tag names the training recipe, not the architecture.
        let name = hint.name.split('.').next().unwrap_or_default();
        let named = std::iter::once(&arch).chain(&equivalents).find(|a| zoo::name_of(a) == Some(name));
        if let Some(named) = named {
            let evidence = format!("the shapes and the name `{}` {}", escape(name), hint.place);
            let named = named.clone();
            return (named, Identified { by: IdentifiedBy::Named, evidence, ..Identified::default() });
        }
    }
    // A named network is more likely than an unnamed one.
    let mut published = equivalents.iter().filter(|a| zoo::name_of(a).is_some());
    let arch = match (zoo::name_of(&arch), published.next(), published.next()) {
        (None, Some(only), None) => only.clone(),
        _ => arch,
    };
    let own = zoo::name_of(&arch);
    let mut alternatives: Vec<String> =
        equivalents.iter().filter_map(zoo::name_of).filter(|n| Some(*n) != own).map(str::to_owned).collect();
    alternatives.sort();
    alternatives.dedup();
    let assumed = ambiguity::assumptions(&arch);
    let by = if assumed.is_empty() { IdentifiedBy::Shapes } else { IdentifiedBy::Assumed };
    let mut evidence = "the shapes".to_owned();
    if let Some(hint) = hints.first() {
        evidence.push_str(&format!(", which contradict the name `{}` {}", escape(&hint.name), hint.place));
    }
    (arch, Identified { by, evidence, assumed, alternatives })
}

/// Returns `arch` with the file's numbers of classes and input channels.
pub(crate) fn adapt(arch: &Arch, shapes: &Shapes) -> Arch {
    let Ok(graph) = arch.clone().with_classes(1).graph() else { return arch.clone() };
    let head = graph.tap("logits").ok().map(|tap| &graph.node(tap.node).name);
    let head = head.and_then(|name| shapes.get(&format!("{name}.weight")));
    let arch = arch.clone().with_classes(head.and_then(|s| s.first()).copied().unwrap_or(0));
    match first_conv(&graph).and_then(|name| shapes.conv(&format!("{name}.weight"))) {
        Some([_, channels, _, _]) => arch.with_in_channels(channels),
        None => arch,
    }
}

/// Returns the name of the first convolution.
fn first_conv(graph: &Graph) -> Option<&str> {
    let conv = graph.nodes().iter().find(|n| matches!(n.op, Op::Conv(_) | Op::StdConv(_)))?;
    Some(&conv.name)
}

/// Returns the number of classes of the head `name`, and the global pool: a head with twice the features concatenates
/// average and max pooling.
fn head(shapes: &Shapes, name: &str, features: usize) -> Result<(usize, GlobalPool), String> {
    Ok(match shapes.linear(name)? {
        None => (0, GlobalPool::Avg),
        Some([classes, columns]) if features.checked_mul(2) == Some(columns) => {
            (classes, GlobalPool::CatAvgMax)
        }
        Some([classes, _]) => (classes, GlobalPool::Avg),
    })
}

/// Counts consecutive indices from 0 for which `has` returns `true`.
fn count(max: usize, has: impl Fn(usize) -> bool) -> usize {
    (0..max).take_while(|&i| has(i)).count()
}

/// Formats the first names and shapes for error messages.
pub(crate) fn some_names(tensors: &[(String, RawTensor)]) -> String {
    let names: Vec<String> =
        tensors.iter().take(4).map(|(n, t)| format!("`{}` {:?}", escape(n), t.shape())).collect();
    let more = if tensors.len() > names.len() { ", …" } else { "" };
    format!("{}{more}", names.join(", "))
}

#[cfg(test)]
mod tests;
