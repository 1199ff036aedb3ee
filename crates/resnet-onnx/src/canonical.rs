//! Canonical form of a graph for comparison: architectures and foreign graphs as lists of nodes.
//!
//! A convolution and its batch norm are one node, because exporters fold them or keep a bias between them. Biases,
//! epsilons and weight layouts are ignored.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

use resnet_model::graph::{
    AvgPool, BatchNorm, Conv, Divisor, Graph, Linear, LinearForm, Multiply, Op, StdConv,
};

use super::cells::{CellGraph, CellKind};

/// A node in canonical form.
#[derive(Debug, Clone)]
pub(crate) struct CanonicalNode {
    /// The operation, with ignored attributes normalized.
    pub(crate) op: Op,
    pub(crate) inputs: Vec<usize>,
    /// Indices of its nodes or cells in the original graph.
    pub(crate) members: Vec<usize>,
    pub(crate) channels: usize,
    /// Hash of the operation and of all its ancestors.
    pub(crate) hash: u64,
}

/// An operation of the original graph.
struct SourceNode<'a> {
    op: &'a Op,
    inputs: Vec<usize>,
    channels: usize,
}

/// Returns the canonical form of an architecture.
pub(crate) fn ours(graph: &Graph) -> Vec<CanonicalNode> {
    let nodes: Vec<SourceNode> = graph
        .nodes()
        .iter()
        .map(|node| SourceNode {
            op: &node.op,
            inputs: node.inputs.iter().map(|i| i.index()).collect(),
            channels: node.channels,
        })
        .collect();
    canonicalize(nodes)
}

/// Returns the canonical form of a foreign graph, or the label of a cell that no architecture has.
pub(crate) fn theirs(net: &CellGraph) -> Result<Vec<CanonicalNode>, String> {
    const AFFINE: Op = Op::BatchNorm(BatchNorm { eps: 0.0 });
    let mut nodes = Vec::with_capacity(net.cells.len());
    for cell in &net.cells {
        let op = match &cell.kind {
            CellKind::Op(op, _) => op,
            CellKind::Affine(_) => &AFFINE,
            CellKind::StridedSlice(_) | CellKind::ReflectPad(_) => return Err(cell.label.clone()),
        };
        nodes.push(SourceNode { op, inputs: cell.inputs.clone(), channels: cell.channels });
    }
    Ok(canonicalize(nodes))
}

fn canonicalize(nodes: Vec<SourceNode>) -> Vec<CanonicalNode> {
    let mut uses = vec![0usize; nodes.len()];
    for &input in nodes.iter().flat_map(|p| &p.inputs) {
        if let Some(n) = uses.get_mut(input) {
            *n = n.saturating_add(1);
        }
    }
    let mut items: Vec<CanonicalNode> = Vec::with_capacity(nodes.len());
    let mut place: Vec<usize> = Vec::with_capacity(nodes.len());
    for (i, node) in nodes.iter().enumerate() {
        let inputs: Vec<usize> = node.inputs.iter().filter_map(|&i| place.get(i).copied()).collect();
        let is_only_use = matches!(node.inputs.as_slice(), [i] if uses.get(*i) == Some(&1));
        let first = inputs.first().copied();
        if let (Op::BatchNorm(_), true, Some(first)) = (node.op, is_only_use, first)
            && let Some(CanonicalNode { op: Op::Conv(_), members, .. }) = items.get_mut(first)
        {
            members.push(i);
            place.push(first);
            continue;
        }
        // At the default image size, adaptive pooling is the identity.
        if let (Op::AdaptiveAvgPool(_), Some(first)) = (node.op, first) {
            place.push(first);
            continue;
        }
        let inputs = if let Op::Concat = node.op { flatten_concat(inputs, &items) } else { inputs };
        let op = canonical(node.op);
        let hash = hash(&op, &inputs, &items);
        place.push(items.len());
        items.push(CanonicalNode { op, inputs, members: vec![i], channels: node.channels, hash });
    }
    items
}

/// Replaces nested concatenations by their inputs, because exporters join them.
fn flatten_concat(inputs: Vec<usize>, items: &[CanonicalNode]) -> Vec<usize> {
    // A chain that uses each concatenation twice would grow exponentially.
    const MAX: usize = 64;
    let flat = inputs.iter().flat_map(|i| match items.get(*i) {
        Some(CanonicalNode { op: Op::Concat, inputs, .. }) => inputs.clone(),
        _ => vec![*i],
    });
    let flat: Vec<usize> = flat.take(MAX + 1).collect();
    if flat.len() > MAX { inputs } else { flat }
}

/// Normalizes attributes that may differ between equal networks.
fn canonical(op: &Op) -> Op {
    match op {
        Op::Conv(conv) | Op::StdConv(StdConv { conv, .. }) => Op::Conv(Conv { bias: false, ..*conv }),
        Op::Linear(linear) => Op::Linear(Linear { form: LinearForm::Matrix, ..*linear }),
        Op::BatchNorm(_) => Op::BatchNorm(BatchNorm { eps: 0.0 }),
        Op::AvgPool(pool) if pool.window.padding == [0; 2] => {
            Op::AvgPool(AvgPool { divisor: Divisor::Pixels, ..*pool })
        }
        Op::Multiply(m) => Op::Multiply(Multiply { factor: f64::from(m.factor as f32) }),
        other => other.clone(),
    }
}

fn hash(op: &Op, inputs: &[usize], items: &[CanonicalNode]) -> u64 {
    let mut ancestors: Vec<u64> = inputs.iter().filter_map(|&i| Some(items.get(i)?.hash)).collect();
    if let Op::Add = op {
        ancestors.sort_unstable();
    }
    let mut hasher = DefaultHasher::new();
    format!("{op:?}").hash(&mut hasher);
    ancestors.hash(&mut hasher);
    hasher.finish()
}

/// Returns a description of a node for messages.
pub(crate) fn describe(item: &CanonicalNode) -> String {
    let pair = |[a, b]: [usize; 2]| format!("{a}×{b}");
    match &item.op {
        Op::Conv(c) => {
            let mut text =
                format!("{} convolution, {} → {} channels", pair(c.kernel), c.in_channels, c.out_channels);
            if c.stride != [1; 2] {
                text += &format!(", stride {}", pair(c.stride));
            }
            if c.padding != [c.kernel[0].div_euclid(2); 2] {
                text += &format!(", padding {}", pair(c.padding));
            }
            if c.dilation != [1; 2] {
                text += &format!(", dilation {}", pair(c.dilation));
            }
            if c.groups != 1 {
                text += &format!(", {} groups", c.groups);
            }
            text
        }
        Op::MaxPool(p) => {
            format!("{} max pool, stride {}, padding {}", pair(p.kernel), pair(p.stride), pair(p.padding))
        }
        Op::Pad(p) => format!("padding {} before, {} after", pair(p.before), pair(p.after)),
        Op::AvgPool(p) => format!("{} average pool, stride {}", pair(p.window.kernel), pair(p.window.stride)),
        Op::Linear(l) => format!("linear, {} → {} features", l.in_features, l.out_features),
        Op::Input => format!("input, {} channels", item.channels),
        other => op_name(other),
    }
}

/// Returns the variant name of an operation.
pub(crate) fn op_name(op: &Op) -> String {
    let name = format!("{op:?}");
    name.split(['(', ' ']).next().unwrap_or_default().to_owned()
}
