//! Diagrams of a graph: shapes, blocks, and their output as SVG or Graphviz.

use std::collections::BTreeMap;

use resnet_model::cost::Cost;
use resnet_model::graph::{Conv, Graph, Node, NodeId, Op, StdConv};

mod dot;
mod layout;
mod svg;

pub use dot::dot;
pub use svg::svg;

/// The shapes of a graph in the order of execution.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagram {
    shapes: Vec<Shape>,
    blocks: Vec<Block>,
}

/// An operation, with the norm and ReLU after it if no other operation uses the intermediate results.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Shape {
    name: String,
    kind: ShapeKind,
    label: String,
    /// Operations that are merged into the shape.
    notes: Vec<&'static str>,
    /// Height and width of the output, if they differ from those of the input.
    resized: Option<[usize; 2]>,
    inputs: Vec<usize>,
}

/// The kind of a shape, which determines its style.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ShapeKind {
    Input,
    Conv,
    Pool,
    Linear,
    /// Norms, gates, padding.
    Other,
    /// Add and multiply.
    Merge,
}

/// The shapes of one block of the network.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Block {
    name: String,
    shapes: Vec<usize>,
}

impl Diagram {
    /// Creates the diagram of `graph`, whose operations have the given costs. With `only`, it is restricted to operations under
    /// that name (`layer1.0`) and their inputs; `None` if there are none.
    pub fn new(graph: &Graph, costs: &[Cost], only: Option<&str>) -> Option<Diagram> {
        let readers = graph.only_readers();
        let wanted = |name: &str| only.is_none_or(|only| is_under(name, only));
        let mut shapes: Vec<Shape> = Vec::new();
        let mut shape_of: BTreeMap<NodeId, usize> = BTreeMap::new();
        let mut drawn = false;
        for id in graph.ids() {
            let node = graph.node(id);
            if !wanted(&node.name) {
                continue;
            }
            drawn = true;
            if let (Some(note), [before]) = (note(&node.op), node.inputs.as_slice())
                && readers[before.index()].is_some()
                && let Some(&shape) = shape_of.get(before)
                && shapes[shape].takes(note)
            {
                shapes[shape].notes.push(note);
                shape_of.insert(id, shape);
                continue;
            }
            let mut inputs = Vec::with_capacity(node.inputs.len());
            for input in &node.inputs {
                let shape = *shape_of.entry(*input).or_insert_with(|| {
                    let shape = &costs[input.index()].shape;
                    shapes.push(Shape {
                        name: graph.node(*input).name.clone(),
                        kind: ShapeKind::Input,
                        label: dims(shape),
                        notes: vec![],
                        resized: None,
                        inputs: vec![],
                    });
                    shapes.len() - 1
                });
                inputs.push(shape);
            }
            let pixels = |id: NodeId| match costs[id.index()].shape[..] {
                [_, h, w] => Some([h, w]),
                _ => None,
            };
            let (kind, label) = describe(node, &costs[id.index()]);
            let resized = pixels(id).filter(|_| node.inputs.first().is_none_or(|i| pixels(*i) != pixels(id)));
            shape_of.insert(id, shapes.len());
            shapes.push(Shape { name: node.name.clone(), kind, label, notes: vec![], resized, inputs });
        }
        let blocks = blocks(graph, &shapes, only);
        drawn.then_some(Diagram { shapes, blocks })
    }
}

impl Shape {
    /// Returns `true` if the operation `note` can be merged into this shape.
    fn takes(&self, note: &str) -> bool {
        match self.kind {
            ShapeKind::Conv | ShapeKind::Linear => note == "ReLU" || self.notes.is_empty(),
            ShapeKind::Merge => note == "ReLU" && self.notes.is_empty(),
            ShapeKind::Other => note == "ReLU" && self.label.ends_with("norm") && self.notes.is_empty(),
            ShapeKind::Input | ShapeKind::Pool => false,
        }
    }
}

/// Returns `true` if `name` is `prefix` or nested in it.
pub(crate) fn is_under(name: &str, prefix: &str) -> bool {
    name.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// Finds the blocks: every add or concatenation ends one, named after the module that contains it. Of nested blocks, the outer
/// one counts.
fn blocks(graph: &Graph, shapes: &[Shape], only: Option<&str>) -> Vec<Block> {
    let closes = |node: &&Node| matches!(node.op, Op::Add | Op::Concat);
    let parent = |node: &'_ Node| node.name.rsplit_once('.').map(|(block, _)| block.to_owned());
    let mut names: Vec<String> = graph.nodes().iter().filter(closes).filter_map(parent).collect();
    names.dedup();
    let all = names.clone();
    let is_inner = |name: &String| all.iter().any(|other| other != name && is_under(name, other));
    names.retain(|name| !is_inner(name) && only != Some(name.as_str()));
    let block = |name: String| {
        let inside = |i: &usize| shapes[*i].kind != ShapeKind::Input && is_under(&shapes[*i].name, &name);
        let shapes: Vec<usize> = (0..shapes.len()).filter(inside).collect();
        (!shapes.is_empty()).then_some(Block { name, shapes })
    };
    names.into_iter().filter_map(block).collect()
}

/// Returns the text of an operation that can be merged into the previous shape.
fn note(op: &Op) -> Option<&'static str> {
    match op {
        Op::Relu => Some(op.name()),
        _ => op.is_norm().then(|| op.name()),
    }
}

fn describe(node: &Node, cost: &Cost) -> (ShapeKind, String) {
    let kind = match &node.op {
        Op::Input => ShapeKind::Input,
        Op::Conv(_) | Op::StdConv(_) => ShapeKind::Conv,
        Op::Linear(_) => ShapeKind::Linear,
        Op::Add | Op::Scale => ShapeKind::Merge,
        Op::MaxPool(_)
        | Op::AvgPool(_)
        | Op::AdaptiveAvgPool(_)
        | Op::GlobalAvgPool
        | Op::GlobalMaxPool
        | Op::AttentionPool(_) => ShapeKind::Pool,
        _ => ShapeKind::Other,
    };
    let label = match &node.op {
        Op::Input => dims(&cost.shape),
        Op::Add => "+".into(),
        Op::Scale => "×".into(),
        Op::Conv(conv) | Op::StdConv(StdConv { conv, .. }) => {
            format!("{}, {}{}", window(conv.kernel, "conv"), conv.out_channels, conv_rest(conv))
        }
        Op::Linear(linear) => format!("linear, {}", linear.out_features),
        _ => operation(&node.op),
    };
    (kind, label)
}

/// Returns a short description of an operation without its channels: `3×3 conv, /2`.
pub(crate) fn operation(op: &Op) -> String {
    let strided = |text: String, stride: usize| match stride {
        1 => text,
        stride => format!("{text}, /{stride}"),
    };
    match op {
        Op::Conv(conv) => format!("{}{}", window(conv.kernel, "conv"), conv_rest(conv)),
        Op::StdConv(StdConv { conv, .. }) => {
            format!("{}{}", window(conv.kernel, "std conv"), conv_rest(conv))
        }
        Op::MaxPool(pool) => strided(window(pool.kernel, "max pool"), pool.stride[0]),
        Op::AvgPool(pool) => strided(window(pool.window.kernel, "avg pool"), pool.window.stride[0]),
        Op::AdaptiveAvgPool(pool) => format!("avg pool to {}×{}", pool.output[0], pool.output[1]),
        Op::Blur(blur) => strided("3×3 blur".into(), blur.stride),
        Op::AttentionPool(pool) => format!("attention, {} heads", pool.heads),
        Op::Scale => "gate".into(),
        Op::Multiply(multiply) => format!("× {}", multiply.factor),
        Op::Subsample(subsample) => strided("subsample".into(), subsample.stride),
        Op::PadChannels(_) => "zero-pad channels".into(),
        Op::Pad(_) => "zero padding".into(),
        Op::ChannelConv(conv) => format!("channel conv {}", conv.kernel),
        _ => op.name().into(),
    }
}

fn window([height, width]: [usize; 2], what: &str) -> String {
    format!("{height}×{width} {what}")
}

fn conv_rest(conv: &Conv) -> String {
    let mut rest = String::new();
    if conv.stride != [1; 2] {
        rest.push_str(&format!(", /{}", conv.stride[0]));
    }
    if conv.groups > 1 {
        rest.push_str(&format!(", {} gr", conv.groups));
    }
    if conv.dilation != [1; 2] {
        rest.push_str(&format!(", dil {}", conv.dilation[0]));
    }
    rest
}

/// Formats a shape: `64×56×56`.
pub(crate) fn dims(shape: &[usize]) -> String {
    shape.iter().map(usize::to_string).collect::<Vec<_>>().join("×")
}

#[cfg(test)]
mod tests;
