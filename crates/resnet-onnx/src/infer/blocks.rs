//! Finds residual blocks from the last feature map back to the stem.

use std::collections::HashMap;

use resnet_model::arch::AntiAlias;
use resnet_model::graph::{Conv, Op};

use super::{Foreign, MAX_BLOCKS};

/// Maximum number of nodes in a branch of a block.
const MAX_BRANCH: usize = 64;

/// All blocks of a network, and the node before the first block.
pub(super) struct Body {
    pub(super) units: Vec<Unit>,
    pub(super) start: usize,
}

/// Channel attention of a block.
#[derive(Debug, Clone, Copy)]
pub(super) enum Gate {
    /// Squeeze-and-excitation: two linear layers.
    Linear,
    /// Efficient channel attention: a convolution over the channels.
    ChannelConv,
}

/// One block.
#[derive(Debug)]
pub(super) struct Unit {
    /// The convolutions of the main branch, in order.
    pub(super) convs: Vec<Conv>,
    /// The operations of the main branch, in order.
    main: Vec<Op>,
    /// The operations of the shortcut, in order.
    pub(super) shortcut: Vec<Op>,
    pub(super) attention: Option<Gate>,
}

impl Body {
    /// Returns the anti-aliasing of the blocks.
    pub(super) fn anti_alias(&self) -> Option<AntiAlias> {
        self.units.iter().flat_map(|u| &u.main).find_map(|op| match op {
            Op::AvgPool(_) => Some(AntiAlias::Avg),
            Op::Blur(_) => Some(AntiAlias::Blur),
            _ => None,
        })
    }
}

impl Unit {
    /// Returns `true` if the main branch has an explicit padding operation.
    pub(super) fn pads(&self) -> bool {
        self.main.iter().any(|op| matches!(op, Op::Pad(_)))
    }

    /// Returns a block without shortcut.
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

    /// Returns the stride of the main branch.
    pub(super) fn stride(&self) -> usize {
        let strides = self.main.iter().map(|op| match op {
            Op::Conv(c) => c.stride[0],
            Op::AvgPool(p) => p.window.stride[0],
            Op::Blur(b) => b.stride,
            _ => 1,
        });
        strides.fold(1, usize::saturating_mul)
    }

    /// Returns the dilation of the first convolution larger than 1×1.
    pub(super) fn first_dilation(&self) -> usize {
        self.convs.iter().find(|c| c.kernel != [1; 2]).map_or(1, |c| c.dilation[0])
    }

    /// Returns the dilation of the last convolution larger than 1×1.
    pub(super) fn last_dilation(&self) -> usize {
        self.convs.iter().rev().find(|c| c.kernel != [1; 2]).map_or(1, |c| c.dilation[0])
    }

    pub(super) fn projects(&self) -> bool {
        self.shortcut.iter().any(|op| matches!(op, Op::Conv(_)))
    }
}

/// Returns the path from a node back along first inputs, starting with the node.
fn back(net: Foreign, from: usize) -> Vec<usize> {
    std::iter::successors(Some(from), |&i| net.input(i)).take(MAX_BRANCH).collect()
}

/// Returns the block that ends with the residual add `add`, and the node where its branches start.
fn unit(net: Foreign, add: usize) -> Option<(Unit, usize)> {
    let item = net.item(add)?;
    let (Op::Add, &[a, b]) = (&item.op, item.inputs.as_slice()) else { return None };
    let (a, b) = (back(net, a), back(net, b));
    let positions: HashMap<usize, usize> = a.iter().enumerate().map(|(position, &i)| (i, position)).collect();
    let (in_b, in_a) = b.iter().enumerate().find_map(|(position, i)| Some((position, *positions.get(i)?)))?;
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
            Op::Linear(_) => Some(Gate::Linear),
            Op::ChannelConv(_) => Some(Gate::ChannelConv),
            _ => None,
        })
    });
    let convs =
        main.iter().filter_map(|op| if let Op::Conv(conv) = op { Some(*conv) } else { None }).collect();
    Some((Unit { convs, main, shortcut, attention }, start))
}

/// Returns post-activation blocks: a ReLU follows the residual add.
pub(super) fn post_activation(net: Foreign, features: usize) -> Option<Body> {
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

/// Returns pre-activation blocks: the main branch starts with a norm and a ReLU.
pub(super) fn pre_activation(net: Foreign, features: usize) -> Option<Body> {
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

/// Returns the convolutions of a network without shortcuts, and the node before them.
pub(super) fn plain_convs(net: Foreign, features: usize) -> Option<(Vec<Conv>, usize)> {
    if net.items.iter().any(|i| i.op == Op::Add) {
        return None;
    }
    let path: Vec<usize> = std::iter::successors(Some(features), |&i| net.input(i)).collect();
    // The stem ends with the max pool, or with the ReLU of the first convolution.
    let is_pool = |&i: &usize| net.item(i).is_some_and(|item| matches!(item.op, Op::MaxPool(_)));
    let end = match path.iter().position(is_pool) {
        Some(end) => end,
        None => path.len().checked_sub(3)?,
    };
    let conv = |&i: &usize| match net.item(i)?.op {
        Op::Conv(conv) => Some(conv),
        _ => None,
    };
    let convs: Vec<Conv> = path.get(..end)?.iter().rev().filter_map(conv).collect();
    Some((convs, *path.get(end)?))
}

/// Returns the convolutions of [`plain_convs`] as one block.
pub(super) fn plain(net: Foreign, features: usize) -> Option<Body> {
    let (convs, start) = plain_convs(net, features)?;
    (!convs.is_empty()).then(|| Body { units: vec![Unit::plain(convs)], start })
}
