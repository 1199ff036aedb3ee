#![doc = include_str!("../README.md")]

mod assign;
mod canonical;
mod cells;
mod compare;
mod constant;
mod error;
mod export;
mod external;
mod infer;
mod node;
mod proto;
mod protobuf;
mod simplify;
mod tensor;
mod translate;
mod window;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use resnet_model::arch::{Arch, Norm, ResNetV2};
use resnet_model::graph::Op;
use resnet_model::meta::KEY;
use resnet_model::raw::Bytes;
use resnet_model::text::plural;
use resnet_model::{Checkpoint, Existing, Meta, RawTensor, escape, zoo};

use self::assign::Assigned;
use self::canonical::CanonicalNode;
use self::cells::CellGraph;
pub use self::export::Export;
use self::external::External;
use self::infer::Foreign;
use self::proto::ModelProto;
pub use self::simplify::Prelude;
pub use crate::error::{Code, Error, Fault, Result};

/// Longest name of an initializer, in bytes.
const MAX_NAME: usize = 1024;

/// The first operator set whose operators broadcast as today's do.
const MIN_OPSET: i64 = 7;

/// A computation graph that has not been identified yet.
#[derive(Debug)]
pub struct Graph {
    model: ModelProto,
    file: Arc<dyn Bytes>,
    folder: External,
}

/// A model file: its initializers and its graph.
#[derive(Debug)]
pub struct OnnxModel {
    /// Initializers in file order. Their bytes stay in the file until they are needed.
    pub tensors: Vec<(String, RawTensor)>,
    /// Initializers of unsupported types as (name, type).
    pub unsupported: Vec<(String, String)>,
    /// The graph.
    pub graph: Graph,
}

/// A network of the zoo that matches a graph.
#[derive(Debug)]
pub struct Network {
    /// The architecture.
    pub arch: Arch,
    /// The tensors, with the names of the architecture.
    pub tensors: BTreeMap<String, RawTensor>,
    /// Names in the file and in the architecture.
    pub renamed: Vec<(String, String)>,
    /// Initializers that the graph does not use.
    pub unused: Vec<String>,
    /// Notes for the user.
    pub notes: Vec<String>,
    /// The metadata of a file that this crate wrote.
    pub meta: Option<Meta>,
    /// Preprocessing in the graph.
    pub prelude: Option<Prelude>,
}

/// Result of [`identify`].
#[derive(Debug)]
pub enum Match {
    /// The graph is this network.
    Network(Box<Network>),
    /// The graph matches no network of the zoo, for this reason.
    Unknown(String),
}

/// Writes `checkpoint` as an ONNX model to `path`. `progress` receives the number of bytes of each written tensor.
///
/// # Errors
///
/// [`Error::Export`] for an operation without an ONNX equivalent, [`Error::TooLarge`] beyond 2 GiB, or an error of reading
/// or writing.
pub fn write(
    checkpoint: &Checkpoint,
    path: &Path,
    existing: Existing,
    options: &Export,
    progress: &mut dyn FnMut(u64),
) -> Result<()> {
    export::write(checkpoint, path, existing, options, progress)
}

/// Returns `true` for the first bytes of a model: field 1 is the IR version, from 3, followed by another field of
/// `ModelProto`.
pub fn is_onnx(head: &[u8]) -> bool {
    matches!(head, [0x08, 3..=0x7f, 0x12 | 0x1a | 0x22 | 0x28 | 0x32 | 0x3a | 0x42 | 0x72, ..])
}

/// Reads a model. `path` is the path of the file, for tensors in external files of its folder.
///
/// # Errors
///
/// A [`Fault`] for malformed protobuf, sparse initializers, invalid names and invalid external data.
pub fn read(bytes: Arc<dyn Bytes>, path: Option<&Path>) -> Result<OnnxModel, Fault> {
    let model = proto::read(bytes.clone())?;
    let mut external = External::new(path);
    if model.graph.sparse {
        return Err(Fault::new(Code::Unsupported, "sparse initializers"));
    }
    let (mut tensors, mut unsupported) = (vec![], vec![]);
    let mut names = HashSet::new();
    for found in &model.graph.tensors {
        let name = &found.name;
        if name.is_empty() || name.len() > MAX_NAME {
            return Err(Fault::new(Code::Name, "an initializer without a name"));
        }
        if !names.insert(name.as_str()) {
            return Err(Fault::new(
                Code::DuplicateName,
                format!("two initializers have the name `{}`", escape(name)),
            ));
        }
        match tensor::raw(found, &bytes, &mut external)? {
            Ok(tensor) => tensors.push((name.clone(), tensor)),
            Err(what) => unsupported.push((name.clone(), format!("a tensor {what}"))),
        }
    }
    if tensors.is_empty() && unsupported.is_empty() && model.graph.nodes.is_empty() {
        return Err(Fault::new(Code::Empty, "a model without initializers or nodes"));
    }
    Ok(OnnxModel { tensors, unsupported, graph: Graph { model, file: bytes, folder: external } })
}

/// Identifies the network that `graph` computes, with `tensors` as its initializers. With `arch`, only that architecture is
/// compared (its numbers of classes and input channels are those of the graph).
///
/// # Errors
///
/// A [`Fault`] for unsupported nodes, broken links, and operator sets before 7.
pub fn identify(graph: Graph, tensors: &[(String, RawTensor)], arch: Option<&Arch>) -> Result<Match, Fault> {
    let Graph { model, file, folder } = graph;
    let opset = model.opsets.iter().find(|o| matches!(o.domain.as_str(), "" | "ai.onnx")).map(|o| o.version);
    match opset {
        Some(opset) if opset >= MIN_OPSET => {}
        Some(opset) => {
            let detail =
                format!("operator set {opset}, expected {MIN_OPSET} or later; export with a newer opset");
            return Err(Fault::new(Code::Version, detail));
        }
        None => return Err(Fault::new(Code::Version, "missing operator set of ONNX")),
    }
    let own = model.metadata.iter().find(|e| e.key == KEY);
    let meta = match own.map(|e| Meta::from_json(&e.value)).transpose() {
        Ok(meta) => meta,
        Err(e) => return Err(Fault::new(Code::Text, e.to_string()).within(&format!("metadata `{KEY}`"))),
    };
    let initializers: HashMap<&str, &RawTensor> = tensors.iter().map(|(n, t)| (n.as_str(), t)).collect();
    let context = translate::Context { file: &file, initializers, external: folder };
    let translated = translate::translate(&model.graph, context)?;
    let (net, prelude) = simplify::simplify(translated.net);
    let theirs = match canonical::theirs(&net) {
        Ok(theirs) => theirs,
        Err(label) => {
            return Ok(Match::Unknown(format!("no network of the zoo contains `{}`", escape(&label))));
        }
    };
    let matched = find(&net, &theirs, arch.or(meta.as_ref().map(|m| &m.arch)), arch.is_some());
    let (arch, assigned) = match matched {
        Ok(matched) => matched,
        Err(reason) => return Ok(Match::Unknown(reason)),
    };
    let arch = standardized(arch, &assigned.tensors);
    let mut notes = translated.notes;
    if assigned.synthesized_norms > 0 {
        let norms = plural(assigned.synthesized_norms, "batch norm");
        notes.push(format!("{norms} had been folded: the converted ones only add the bias"));
    }
    let unused = tensors.iter().filter(|(name, tensor)| {
        resnet_model::raw::is_float(tensor.dtype())
            && tensor.elements() > 1
            && !translated.seen.contains(name.as_str())
    });
    let unused = unused.map(|(name, _)| name.clone()).collect();
    let Assigned { tensors, renamed, .. } = assigned;
    Ok(Match::Network(Box::new(Network { arch, tensors, renamed, unused, notes, meta, prelude })))
}

/// The architecture whose graph equals the foreign one, and its tensors; else where the likeliest one differs.
fn find(
    net: &CellGraph,
    theirs: &[CanonicalNode],
    first: Option<&Arch>,
    only: bool,
) -> Result<(Arch, Assigned), String> {
    let norms = || theirs.iter().flat_map(|i| i.members.iter().skip(1)).filter_map(|&i| net.cells.get(i));
    let eps = net.cells.iter().find_map(|c| match c.op()? {
        Op::BatchNorm(norm) => Some(norm.eps),
        Op::GroupNorm(norm) => Some(norm.eps),
        _ => None,
    });
    let foreign = Foreign { items: theirs, eps, norms: norms().next().is_some() };
    let ends = Ends::from_nodes(theirs);
    let mut closest: Option<(usize, String)> = None;
    let mut attempt = |arch: &Arch| -> Option<Result<(Arch, Assigned), String>> {
        let graph = arch.graph().ok()?;
        let ours = canonical::ours(&graph);
        let Some(pairs) = compare::pairs(&ours, theirs) else {
            let difference = compare::difference(&graph, &ours, net, theirs);
            if closest.as_ref().is_none_or(|(agree, _)| difference.agree > *agree) {
                closest = Some((difference.agree, format!("compared with {arch}: {}", difference.detail)));
            }
            return None;
        };
        let both =
            pairs.into_iter().filter_map(|(a, b)| Some((ours.get(a)?.clone(), theirs.get(b)?.clone())));
        Some(assign::assign(&graph, net, both).map(|assigned| (arch.clone(), assigned)))
    };
    if let Some(arch) = first {
        let arch = arch.clone().with_classes(ends.classes).with_in_channels(ends.channels);
        if let Some(found) = attempt(&arch) {
            return found;
        }
    }
    if !only {
        for arch in infer::candidates(foreign) {
            if let Some(found) = attempt(&arch) {
                return found;
            }
        }
        // What cannot be read off may still be a network of the zoo.
        for (_, arch) in zoo::all() {
            if let Some(found) = attempt(&arch.with_classes(ends.classes).with_in_channels(ends.channels)) {
                return found;
            }
        }
    }
    let why = closest.map_or_else(|| "it has no blocks that any has".into(), |(_, why)| why);
    Err(format!("a graph that is no network of the zoo; {why}"))
}

/// Exporters write BiT's weights standardised. To do it once more changes nothing, and is what training needs.
fn standardized(arch: Arch, tensors: &BTreeMap<String, RawTensor>) -> Arch {
    const EPS: f64 = 1e-8;
    let Arch::ResNetV2(net) = &arch else { return arch };
    let Ok(graph) = arch.graph() else { return arch };
    let is = |weight: &RawTensor| {
        let per_channel = weight.shape().iter().skip(1).product::<usize>().max(1);
        weight.to_f32("").is_ok_and(|values| {
            values.chunks(per_channel).all(|channel| {
                let mean = |f: &dyn Fn(f64) -> f64| {
                    channel.iter().map(|&v| f(f64::from(v))).sum::<f64>() / per_channel as f64
                };
                mean(&|v| v).abs() < 1e-4 && (mean(&|v| v * v) - 1.0).abs() < 1e-3
            })
        })
    };
    let mut convs = graph.nodes().iter().filter(|node| matches!(node.op, Op::Conv(_)));
    let all = convs.all(|node| tensors.get(&format!("{}.weight", node.name)).is_some_and(is));
    match net.norm == Norm::Group && all {
        true => Arch::ResNetV2(ResNetV2 { standardize: Some(EPS), ..net.clone() }),
        false => arch,
    }
}

/// What the first and the last layer tell.
struct Ends {
    channels: usize,
    classes: usize,
}

impl Ends {
    fn from_nodes(items: &[CanonicalNode]) -> Ends {
        let classes = match items.last().map(|i| &i.op) {
            Some(Op::Linear(linear)) => linear.out_features,
            _ => 0,
        };
        Ends { channels: items.first().map_or(0, |i| i.channels), classes }
    }
}
