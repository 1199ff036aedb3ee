//! Fusion of operations into steps.

use std::collections::BTreeSet;

use resnet_kernels::LANES;

use crate::graph::{Graph, NodeId, Op, PoolSpec};

/// A step of the program. Its result is that of `node`, its last operation.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct FusedStep {
    pub(super) node: NodeId,
    pub(super) kind: StepKind,
    /// The nodes that the step reads: the inputs of its first operation, then the residual if it is another node.
    pub(super) inputs: Vec<NodeId>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum StepKind {
    /// A convolution with its epilogue.
    Conv(Fused),
    /// An elementwise operation with its epilogue.
    Elementwise(Fused),
    /// A single operation.
    Single,
}

/// An operation and its epilogue.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Fused {
    pub(super) first: NodeId,
    pub(super) residual: bool,
    pub(super) relu: bool,
    /// Only for convolutions that read the network's input.
    pub(super) pool: Option<PoolSpec>,
}

/// Returns the steps in an order in which every result is computed before it is read.
///
/// A convolution is fused with the residual add, the ReLU and, in the stem, the max pooling that follow, if nothing else
/// reads the results between them. The step runs at the position of the last operation, after the residual is computed.
pub(super) fn fuse(graph: &Graph) -> Vec<FusedStep> {
    let only_readers = graph.only_readers();
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
    let mut fused_nodes = BTreeSet::new();
    let mut steps = Vec::new();
    for id in graph.ids() {
        let node = graph.node(id);
        let (kind, pools): (fn(Fused) -> StepKind, bool) = match &node.op {
            Op::Input => continue,
            _ if fused_nodes.contains(&id) => continue,
            // Convolutions with few input channels read planar input, and can be fused with a pooling.
            Op::Conv(conv) => {
                let planar = conv.groups == 1 && conv.in_channels < LANES;
                (StepKind::Conv, planar && matches!(graph.node(node.inputs[0]).op, Op::Input))
            }
            Op::BatchNorm(_) | Op::GroupNorm(_) | Op::Scale | Op::Multiply(_) | Op::Add | Op::Relu
                if pixels[id.index()] =>
            {
                (StepKind::Elementwise, false)
            }
            _ => {
                steps.push(FusedStep { node: id, kind: StepKind::Single, inputs: node.inputs.clone() });
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
        // A pooling ends the epilogue.
        while let (Some(reader), None) = (only_readers[last.index()], fused.pool) {
            if fused_nodes.contains(&reader) {
                break;
            }
            let reader_node = graph.node(reader);
            match &reader_node.op {
                Op::Add if !fused.residual && !fused.relu => {
                    let other = reader_node.inputs.iter().find(|&&input| input != last);
                    let Some(&other) = other else { break };
                    fused.residual = true;
                    inputs.push(other);
                }
                Op::Relu if !fused.relu => fused.relu = true,
                Op::MaxPool(pool) if pools && fused.relu && !fused.residual => fused.pool = Some(*pool),
                _ => break,
            }
            fused_nodes.insert(reader);
            last = reader;
        }
        steps.push(FusedStep { node: last, kind: kind(fused), inputs });
    }
    steps.sort_by_key(|step| step.node);
    steps
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fold::fold;
    use crate::zoo;

    fn steps(name: &str) -> (Graph, Vec<FusedStep>) {
        let graph = fold(&zoo::arch(name).unwrap().graph().unwrap()).graph().clone();
        let steps = fuse(&graph);
        (graph, steps)
    }

    #[test]
    fn a_resnet_is_fused_into_convolutions_and_a_head() {
        for (name, convs) in [("resnet18", 20), ("resnet50", 53), ("plain34", 33)] {
            let (graph, steps) = steps(name);
            let single: Vec<_> = steps
                .iter()
                .filter(|s| s.kind == StepKind::Single)
                .map(|s| graph.node(s.node).name.as_str())
                .collect();
            assert_eq!(single, ["avgpool", "fc"], "{name}");
            assert_eq!(steps.len(), convs + 2, "{name}");
        }
    }

    #[test]
    fn inputs_are_computed_before_they_are_read() {
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
