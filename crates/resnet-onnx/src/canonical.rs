//! Two graphs in one form, to be compared: ours and a foreign one as lists of items.
//!
//! A convolution and the batch norm after it are one item, since exporters fold the one into the other or leave a bias
//! between them; how a layer stores its weight is left out.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

use resnet_model::graph::{
    AvgPool, BatchNorm, Conv, Divisor, Graph, Linear, LinearForm, Multiply, Op, StdConv,
};

use super::cells::{CellGraph, CellKind};

/// A part of a graph.
#[derive(Debug, Clone)]
pub(crate) struct CanonicalNode {
    /// What is computed, without what may differ.
    pub(crate) op: Op,
    pub(crate) inputs: Vec<usize>,
    /// The nodes or cells that it is made of, by position.
    pub(crate) members: Vec<usize>,
    pub(crate) channels: usize,
    /// Equal for equal parts: of the operation and of everything before it.
    pub(crate) hash: u64,
}

/// One operation before it becomes an item.
struct Part<'a> {
    op: &'a Op,
    inputs: Vec<usize>,
    channels: usize,
}

/// Our graph.
pub(crate) fn ours(graph: &Graph) -> Vec<CanonicalNode> {
    let parts: Vec<Part> = graph
        .nodes()
        .iter()
        .map(|node| Part {
            op: &node.op,
            inputs: node.inputs.iter().map(|i| i.index()).collect(),
            channels: node.channels,
        })
        .collect();
    items(parts)
}

/// A foreign graph; `Err` holds the label of a cell that is no operation of ours.
pub(crate) fn theirs(net: &CellGraph) -> Result<Vec<CanonicalNode>, String> {
    const AFFINE: Op = Op::BatchNorm(BatchNorm { eps: 0.0 });
    let mut parts = Vec::with_capacity(net.cells.len());
    for cell in &net.cells {
        let op = match &cell.kind {
            CellKind::Op(op, _) => op,
            CellKind::Affine(_) => &AFFINE,
            CellKind::StridedSlice(_) | CellKind::ReflectPad(_) => return Err(cell.label.clone()),
        };
        parts.push(Part { op, inputs: cell.inputs.clone(), channels: cell.channels });
    }
    Ok(items(parts))
}

fn items(parts: Vec<Part>) -> Vec<CanonicalNode> {
    let mut uses = vec![0usize; parts.len()];
    for &input in parts.iter().flat_map(|p| &p.inputs) {
        if let Some(n) = uses.get_mut(input) {
            *n = n.saturating_add(1);
        }
    }
    let mut items: Vec<CanonicalNode> = Vec::with_capacity(parts.len());
    let mut place: Vec<usize> = Vec::with_capacity(parts.len());
    for (i, part) in parts.iter().enumerate() {
        let inputs: Vec<usize> = part.inputs.iter().filter_map(|&i| place.get(i).copied()).collect();
        let alone = matches!(part.inputs.as_slice(), [i] if uses.get(*i) == Some(&1));
        let first = inputs.first().copied();
        if let (Op::BatchNorm(_), true, Some(first)) = (part.op, alone, first)
            && let Some(CanonicalNode { op: Op::Conv(_), members, .. }) = items.get_mut(first)
        {
            members.push(i);
            place.push(first);
            continue;
        }
        // A mean over as many windows as the next layer expects pixels, on images of the usual size.
        if let (Op::AdaptiveAvgPool(_), Some(first)) = (part.op, first) {
            place.push(first);
            continue;
        }
        let inputs = if let Op::Concat = part.op { flat(inputs, &items) } else { inputs };
        let op = canonical(part.op);
        let hash = hash(&op, &inputs, &items);
        place.push(items.len());
        items.push(CanonicalNode { op, inputs, members: vec![i], channels: part.channels, hash });
    }
    items
}

/// The inputs of a concatenation, those of a concatenation among them in its place, since exporters join the two.
fn flat(inputs: Vec<usize>, items: &[CanonicalNode]) -> Vec<usize> {
    // A chain of them that each take the last one twice would grow without bounds.
    const MOST: usize = 64;
    let flat = inputs.iter().flat_map(|i| match items.get(*i) {
        Some(CanonicalNode { op: Op::Concat, inputs, .. }) => inputs.clone(),
        _ => vec![*i],
    });
    let flat: Vec<usize> = flat.take(MOST + 1).collect();
    if flat.len() > MOST { inputs } else { flat }
}

/// The operation without what may differ between equal networks.
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
    let mut before: Vec<u64> = inputs.iter().filter_map(|&i| Some(items.get(i)?.hash)).collect();
    if let Op::Add = op {
        before.sort_unstable();
    }
    let mut hasher = DefaultHasher::new();
    format!("{op:?}").hash(&mut hasher);
    before.hash(&mut hasher);
    hasher.finish()
}

/// An operation in words.
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
            format!("{} max-pool, stride {}, padding {}", pair(p.kernel), pair(p.stride), pair(p.padding))
        }
        Op::Pad(p) => format!("padding of {} before and {} after", pair(p.before), pair(p.after)),
        Op::AvgPool(p) => format!("{} mean, stride {}", pair(p.window.kernel), pair(p.window.stride)),
        Op::Linear(l) => format!("fully connected, {} → {} features", l.in_features, l.out_features),
        Op::Input => format!("input of {} channels", item.channels),
        other => {
            let name = format!("{other:?}");
            name.split(['(', ' ']).next().unwrap_or_default().to_owned()
        }
    }
}
