//! From operations to steps: what follows a convolution is computed with it.

use std::collections::BTreeSet;

use resnet_kernels::LANES;

use crate::graph::{Graph, NodeId, Op, PoolSpec};

/// One step of the program. Its result is that of `node`, the last operation it takes in.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Step {
    pub(super) node: NodeId,
    pub(super) kind: Kind,
    /// Results that are read: the operation's own inputs, then the residual if another than these is added.
    pub(super) inputs: Vec<NodeId>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Kind {
    /// A convolution and what is computed on its results before they are written.
    Conv(Fused),
    /// An operation on each value by itself, and what follows.
    Map(Fused),
    /// The operation of the step's node alone.
    Plain,
}

/// An operation and what it has taken in.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Fused {
    pub(super) first: NodeId,
    pub(super) residual: bool,
    pub(super) relu: bool,
    /// For convolutions that read the network's input only.
    pub(super) pool: Option<PoolSpec>,
}

/// The steps in an order in which every result is there before it is read.
///
/// A convolution takes in the addition, the ReLU and, at the stem, the max-pool that follow, as long as nobody else
/// uses what lies between. It then runs where the last of them stood, so that the other summand has been computed.
pub(super) fn fuse(graph: &Graph) -> Vec<Step> {
    let mut users: Vec<Vec<NodeId>> = vec![vec![]; graph.nodes().len()];
    for id in graph.ids() {
        for input in &graph.node(id).inputs {
            users[input.index()].push(id);
        }
    }
    let mut pixels = Vec::with_capacity(graph.nodes().len());
    for id in graph.ids() {
        let node = graph.node(id);
        pixels.push(match node.op {
            Op::GlobalAvgPool
            | Op::GlobalMaxPool
            | Op::AttentionPool(_)
            | Op::Flatten(_)
            | Op::Linear(_)
            | Op::ChannelConv(_) => false,
            _ => node.inputs.first().is_none_or(|input: &NodeId| pixels[input.index()]),
        });
    }
    let tapped: BTreeSet<NodeId> = graph.taps().iter().map(|t| t.node).collect();
    let mut taken = BTreeSet::new();
    let mut steps = Vec::new();
    for id in graph.ids() {
        let node = graph.node(id);
        let (kind, pools): (fn(Fused) -> Kind, bool) = match &node.op {
            Op::Input => continue,
            _ if taken.contains(&id) => continue,
            // Few channels are read as they are, not in blocks; a pooling can follow such a convolution.
            Op::Conv(conv) => {
                let planar = conv.groups == 1 && conv.in_channels < LANES;
                (Kind::Conv, planar && matches!(graph.node(node.inputs[0]).op, Op::Input))
            }
            Op::BatchNorm(_) | Op::GroupNorm(_) | Op::Scale | Op::Multiply(_) | Op::Add | Op::Relu
                if pixels[id.index()] =>
            {
                (Kind::Map, false)
            }
            _ => {
                steps.push(Step { node: id, kind: Kind::Plain, inputs: node.inputs.clone() });
                continue;
            }
        };
        let mut last = id;
        let mut fused = Fused {
            first: id,
            residual: matches!(node.op, Op::Add),
            relu: matches!(node.op, Op::Relu),
            pool: None,
        };
        let mut inputs = node.inputs.clone();
        // The one operation that uses the last result, if it may be taken in; nothing follows a pooling.
        while let ([user], None, false) = (users[last.index()].as_slice(), fused.pool, tapped.contains(&last))
        {
            if taken.contains(user) {
                break;
            }
            let user_node = graph.node(*user);
            match &user_node.op {
                Op::Add if !fused.residual && !fused.relu => {
                    let other = user_node.inputs.iter().find(|&&input| input != last);
                    let Some(&other) = other else { break };
                    fused.residual = true;
                    inputs.push(other);
                }
                Op::Relu if !fused.relu => fused.relu = true,
                Op::MaxPool(pool) if pools && fused.relu && !fused.residual => fused.pool = Some(*pool),
                _ => break,
            }
            taken.insert(*user);
            last = *user;
        }
        steps.push(Step { node: last, kind: kind(fused), inputs });
    }
    steps.sort_by_key(|step| step.node);
    steps
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fold::fold;
    use crate::zoo;

    fn steps(name: &str) -> (Graph, Vec<Step>) {
        let graph = fold(&zoo::arch(name).unwrap().graph().unwrap()).graph().clone();
        let steps = fuse(&graph);
        (graph, steps)
    }

    #[test]
    fn a_resnet_is_convolutions_and_a_head() {
        for (name, convs) in [("resnet18", 20), ("resnet50", 53), ("plain34", 33)] {
            let (graph, steps) = steps(name);
            let plain: Vec<_> = steps
                .iter()
                .filter(|s| s.kind == Kind::Plain)
                .map(|s| graph.node(s.node).name.as_str())
                .collect();
            assert_eq!(plain, ["avgpool", "fc"], "{name}");
            assert_eq!(steps.len(), convs + 2, "{name}");
        }
    }

    #[test]
    fn summands_are_computed_before_they_are_added() {
        for (name, _) in zoo::all() {
            let (graph, steps) = steps(name);
            let mut known: BTreeSet<NodeId> =
                graph.ids().filter(|&id| graph.node(id).op == Op::Input).collect();
            for step in &steps {
                assert!(
                    step.inputs.iter().all(|i| known.contains(i)),
                    "{name}: {}",
                    graph.node(step.node).name
                );
                known.insert(step.node);
            }
            assert!(graph.taps().iter().all(|t| known.contains(&t.node)), "{name}");
        }
    }
}
