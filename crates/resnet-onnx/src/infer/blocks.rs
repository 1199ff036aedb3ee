//! Blocks found backwards, from the last features to the stem.

use std::collections::HashMap;

use resnet_model::arch::AntiAlias;
use resnet_model::graph::{Conv, Op};

use super::{Foreign, MAX_BLOCKS};

/// The longest branch of a block.
const MAX_BRANCH: usize = 64;

/// All blocks of a network, and the item that the first starts from.
pub(super) struct Body {
    pub(super) units: Vec<Unit>,
    pub(super) start: usize,
}

/// What weights the channels of a block's result.
#[derive(Debug, Clone, Copy)]
pub(super) enum Gate {
    /// Two fully connected layers.
    Layers,
    /// A convolution over the channels.
    Channels,
}

/// One block.
#[derive(Debug)]
pub(super) struct Unit {
    /// The convolutions of the main branch, in order.
    pub(super) convs: Vec<Conv>,
    /// All operations of the main branch and of the shortcut, in order.
    main: Vec<Op>,
    pub(super) shortcut: Vec<Op>,
    pub(super) attention: Option<Gate>,
}

impl Body {
    /// What smooths the image in the blocks.
    pub(super) fn anti_alias(&self) -> Option<AntiAlias> {
        self.units.iter().flat_map(|u| &u.main).find_map(|op| match op {
            Op::AvgPool(_) => Some(AntiAlias::Avg),
            Op::Blur(_) => Some(AntiAlias::Blur),
            _ => None,
        })
    }
}

impl Unit {
    /// Whether a convolution has its padding before it.
    pub(super) fn pads(&self) -> bool {
        self.main.iter().any(|op| matches!(op, Op::Pad(_)))
    }

    /// A block without shortcut.
    pub(super) fn plain(convs: Vec<Conv>) -> Unit {
        let main = convs.iter().copied().map(Op::Conv).collect();
        Unit { convs, main, shortcut: vec![], attention: None }
    }

    pub(super) fn out(&self) -> usize {
        self.convs.last().map_or(0, |c| c.out_channels)
    }

    pub(super) fn input(&self) -> usize {
        self.convs.first().map_or(0, |c| c.in_channels)
    }

    /// Input pixels per pixel of the result.
    pub(super) fn stride(&self) -> usize {
        let strides = self.main.iter().map(|op| match op {
            Op::Conv(c) => c.stride[0],
            Op::AvgPool(p) => p.window.stride[0],
            Op::Blur(b) => b.stride,
            _ => 1,
        });
        strides.fold(1, usize::saturating_mul)
    }

    /// The dilation of the 3×3 convolutions: of the first, and of the last.
    pub(super) fn first_dilation(&self) -> usize {
        self.convs.iter().find(|c| c.kernel != [1; 2]).map_or(1, |c| c.dilation[0])
    }

    pub(super) fn last_dilation(&self) -> usize {
        self.convs.iter().rev().find(|c| c.kernel != [1; 2]).map_or(1, |c| c.dilation[0])
    }

    pub(super) fn projects(&self) -> bool {
        self.shortcut.iter().any(|op| matches!(op, Op::Conv(_)))
    }
}

/// The way back from an item along first inputs, itself first.
fn back(net: Foreign, from: usize) -> Vec<usize> {
    std::iter::successors(Some(from), |&i| net.input(i)).take(MAX_BRANCH).collect()
}

/// The block that ends with the sum `add`, and where both of its branches start.
fn unit(net: Foreign, add: usize) -> Option<(Unit, usize)> {
    let item = net.item(add)?;
    let (Op::Add, &[a, b]) = (&item.op, item.inputs.as_slice()) else { return None };
    let (a, b) = (back(net, a), back(net, b));
    let places: HashMap<usize, usize> = a.iter().enumerate().map(|(place, &i)| (i, place)).collect();
    let (in_b, in_a) = b.iter().enumerate().find_map(|(place, i)| Some((place, *places.get(i)?)))?;
    let start = *b.get(in_b)?;
    let ops = |branch: &[usize], n: usize| -> Option<Vec<Op>> {
        branch.get(..n)?.iter().rev().map(|&i| net.item(i).map(|i| i.op.clone())).collect()
    };
    let (a_ops, b_ops) = (ops(&a, in_a)?, ops(&b, in_b)?);
    let convs = |ops: &[Op]| ops.iter().filter(|op| matches!(op, Op::Conv(_))).count();
    let a_is_main = convs(&a_ops) > convs(&b_ops);
    let ((main, shortcut), branch) = match a_is_main {
        true => ((a_ops, b_ops), a.get(..in_a)?),
        false => ((b_ops, a_ops), b.get(..in_b)?),
    };
    let gate = branch.iter().find_map(|&i| match net.item(i)? {
        item if item.op == Op::Scale => Some(item.inputs.last().map(|&gate| back(net, gate))),
        _ => None,
    });
    let attention = gate.flatten().and_then(|gate| {
        gate.iter().find_map(|&i| match net.item(i)?.op {
            Op::Linear(_) => Some(Gate::Layers),
            Op::ChannelConv(_) => Some(Gate::Channels),
            _ => None,
        })
    });
    let convs =
        main.iter().filter_map(|op| if let Op::Conv(conv) = op { Some(*conv) } else { None }).collect();
    Some((Unit { convs, main, shortcut, attention }, start))
}

/// Blocks whose sum goes through a ReLU.
pub(super) fn after(net: Foreign, features: usize) -> Option<Body> {
    let mut units = Vec::new();
    let mut start = features;
    while net.item(start)?.op == Op::Relu && units.len() < MAX_BLOCKS {
        let Some((unit, before)) = unit(net, net.input(start)?) else { break };
        units.push(unit);
        start = before;
    }
    units.reverse();
    (!units.is_empty()).then_some(Body { units, start })
}

fn is_norm(op: &Op) -> bool {
    matches!(op, Op::BatchNorm(_) | Op::GroupNorm(_))
}

/// Blocks that start with a norm and a ReLU, which the shortcut leaves out or shares.
pub(super) fn before(net: Foreign, features: usize) -> Option<Body> {
    let norm = net.input(features)?;
    if net.item(features)?.op != Op::Relu || !is_norm(&net.item(norm)?.op) {
        return None;
    }
    let mut units = Vec::new();
    let mut start = net.input(norm)?;
    while units.len() < MAX_BLOCKS {
        let Some((unit, fork)) = unit(net, start) else { break };
        units.push(unit);
        let before = net.input(fork).filter(|&i| net.item(i).is_some_and(|item| is_norm(&item.op)));
        start = match before {
            Some(norm) if net.item(fork)?.op == Op::Relu => net.input(norm)?,
            _ => fork,
        };
    }
    units.reverse();
    (!units.is_empty()).then_some(Body { units, start })
}

/// The convolutions of a network without shortcuts, and the item that they start from.
pub(super) fn plain_parts(net: Foreign, features: usize) -> Option<(Vec<Conv>, usize)> {
    if net.items.iter().any(|i| i.op == Op::Add) {
        return None;
    }
    let way: Vec<usize> = std::iter::successors(Some(features), |&i| net.input(i)).collect();
    // The stem: up to the max-pool, or the first convolution and its ReLU.
    let is_pool = |&i: &usize| net.item(i).is_some_and(|item| matches!(item.op, Op::MaxPool(_)));
    let end = match way.iter().position(is_pool) {
        Some(end) => end,
        None => way.len().checked_sub(3)?,
    };
    let conv = |&i: &usize| match net.item(i)?.op {
        Op::Conv(conv) => Some(conv),
        _ => None,
    };
    let convs: Vec<Conv> = way.get(..end)?.iter().rev().filter_map(conv).collect();
    Some((convs, *way.get(end)?))
}

/// As [`plain_parts`], all convolutions as one block.
pub(super) fn plain(net: Foreign, features: usize) -> Option<Body> {
    let (convs, start) = plain_parts(net, features)?;
    (!convs.is_empty()).then(|| Body { units: vec![Unit::plain(convs)], start })
}
