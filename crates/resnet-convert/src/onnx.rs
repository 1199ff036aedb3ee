//! ONNX: a graph and its weights, matched to ours by structure, whatever the names and the order of the nodes.
//!
//! A foreign graph is translated to cells of our operations (`translate`), what exporters split is joined (`simplify`), an
//! architecture is read off (`guess`), and its graph compared with the foreign one part by part (`compare`). Then every
//! tensor has its name (`assign`).

mod assign;
mod compare;
mod constant;
mod export;
mod external;
mod guess;
mod items;
mod net;
mod node;
mod proto;
mod simplify;
mod tensor;
mod translate;
mod window;
mod wire;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use resnet_model::arch::{Arch, Norm, ResNetV2};
use resnet_model::graph::Op;
use resnet_model::meta::KEY;
use resnet_model::raw::Bytes;
use resnet_model::{Checkpoint, Meta, RawTensor, escape, zoo};

use self::assign::Assigned;
pub use self::export::Export;
use self::external::External;
use self::guess::Foreign;
use self::items::Item;
use self::net::Net;
use self::proto::Model;
pub(crate) use self::simplify::Prelude;
use crate::convert::Conversion;
use crate::error::{Code, Error, Fault};
use crate::report::{Renamed, plural};
use crate::source::{Format, MAX_NAME, StateDict};

/// The first operator set whose operators broadcast as today's do.
const MIN_OPSET: i64 = 7;

/// A graph that has been read and not been understood yet.
#[derive(Debug)]
pub(crate) struct Graph {
    model: Model,
    file: Arc<dyn Bytes>,
    folder: External,
}

/// A network found in a foreign graph.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) arch: Arch,
    pub(crate) tensors: BTreeMap<String, RawTensor>,
    pub(crate) renamed: Vec<Renamed>,
    /// Weights that the graph does not use.
    pub(crate) unused: Vec<String>,
    pub(crate) notes: Vec<String>,
    /// What the file says about itself, if we wrote it.
    pub(crate) meta: Option<Meta>,
    pub(crate) prelude: Option<Prelude>,
}

/// Writes `checkpoint` as the ONNX model that `job` asks for.
pub(crate) fn write(
    checkpoint: &Checkpoint,
    job: &Conversion,
    progress: &mut dyn FnMut(u64),
) -> Result<(), Error> {
    export::write(checkpoint, job.output, job.existing, &job.options.onnx, progress)
}

/// Whether these are the first bytes of a model: its first field is the format's version, from 3 on, and the second
/// another of the model's.
pub(crate) fn magic(head: &[u8]) -> bool {
    matches!(head, [0x08, 3..=0x7f, 0x12 | 0x1a | 0x22 | 0x28 | 0x32 | 0x3a | 0x42 | 0x72, ..])
}

/// Reads a model. `path` is where it lies: tensors may be in files beside it.
pub(crate) fn read(bytes: Arc<dyn Bytes>, path: Option<&Path>) -> Result<StateDict, Fault> {
    let model = proto::read(bytes.clone())?;
    let mut external = External::new(path);
    if model.graph.sparse {
        return Err(Fault::new(Code::Unsupported, "sparse weights"));
    }
    let mut state = StateDict::new(Format::Onnx);
    let mut names = HashSet::new();
    for found in &model.graph.tensors {
        let name = &found.name;
        if name.is_empty() || name.len() > MAX_NAME {
            return Err(Fault::new(Code::Name, "an initializer without a name"));
        }
        if !names.insert(name.as_str()) {
            return Err(Fault::new(
                Code::DuplicateName,
                format!("two initializers are called `{}`", escape(name)),
            ));
        }
        match tensor::raw(found, &bytes, &mut external)? {
            Ok(tensor) => state.tensors.push((name.clone(), tensor)),
            Err(what) => state.unsupported.push((name.clone(), format!("a tensor {what}"))),
        }
    }
    if state.tensors.is_empty() && state.unsupported.is_empty() && model.graph.nodes.is_empty() {
        return Err(Fault::new(Code::Empty, "a model without weights or nodes"));
    }
    state.graph = Some(Box::new(Graph { model, file: bytes, folder: external }));
    Ok(state)
}

/// Finds the network that a graph is; `Err` says why it is none, or what is wrong with it.
pub(crate) fn understand(
    graph: Graph,
    tensors: &[(String, RawTensor)],
    insist: Option<&Arch>,
) -> Result<Result<Found, String>, Fault> {
    let Graph { model, file, folder } = graph;
    let opset = model.opsets.iter().find(|o| matches!(o.domain.as_str(), "" | "ai.onnx")).map(|o| o.version);
    match opset {
        Some(opset) if opset >= MIN_OPSET => {}
        Some(opset) => {
            let detail = format!("operator set {opset}; {MIN_OPSET} is the first that is read");
            return Err(Fault::new(Code::Version, detail));
        }
        None => return Err(Fault::new(Code::Version, "no operator set of ONNX is named")),
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
    let theirs = match items::theirs(&net) {
        Ok(theirs) => theirs,
        Err(label) => {
            let what = format!("`{}` is nothing that a network of the zoo has", escape(&label));
            return Ok(Err(what));
        }
    };
    let matched = find(&net, &theirs, insist.or(meta.as_ref().map(|m| &m.arch)), insist.is_some());
    let (arch, assigned) = match matched {
        Ok(matched) => matched,
        Err(why) => return Ok(Err(why)),
    };
    let arch = standardized(arch, &assigned.tensors);
    let mut notes = translated.notes;
    if assigned.unfolded > 0 {
        let norms = plural(assigned.unfolded, "batch norm");
        notes.push(format!("{norms} had been folded: the converted ones change nothing but add the bias"));
    }
    let unused = tensors.iter().filter(|(name, tensor)| {
        crate::cast::is_float(tensor.dtype())
            && tensor.elements() > 1
            && !translated.seen.contains(name.as_str())
    });
    let unused = unused.map(|(name, _)| name.clone()).collect();
    let Assigned { tensors, renamed, .. } = assigned;
    Ok(Ok(Found { arch, tensors, renamed, unused, notes, meta, prelude }))
}

/// The architecture whose graph equals the foreign one, and its tensors; else where the likeliest one differs.
fn find(net: &Net, theirs: &[Item], first: Option<&Arch>, only: bool) -> Result<(Arch, Assigned), String> {
    let norms = || theirs.iter().flat_map(|i| i.members.iter().skip(1)).filter_map(|&i| net.cells.get(i));
    let eps = net.cells.iter().find_map(|c| match c.op()? {
        Op::BatchNorm(norm) => Some(norm.eps),
        Op::GroupNorm(norm) => Some(norm.eps),
        _ => None,
    });
    let foreign = Foreign { items: theirs, eps, norms: norms().next().is_some() };
    let ends = Ends::of(theirs);
    let mut closest: Option<(usize, String)> = None;
    let mut attempt = |arch: &Arch| -> Option<Result<(Arch, Assigned), String>> {
        let graph = arch.graph().ok()?;
        let ours = items::ours(&graph);
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
        for arch in guess::candidates(foreign) {
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
    fn of(items: &[Item]) -> Ends {
        let classes = match items.last().map(|i| &i.op) {
            Some(Op::Linear(linear)) => linear.out_features,
            _ => 0,
        };
        Ends { channels: items.first().map_or(0, |i| i.channels), classes }
    }
}
