//! Execution steps: batch norm, residual add and ReLU are fused into one step.

use crate::graph::{Graph, NodeId, Op};

/// One operation, or a batch norm fused with the operations that follow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Step {
    /// The node whose result the step computes.
    pub(super) node: NodeId,
    /// The nodes that the step reads: for a fused step the input of the norm, then the residual.
    pub(super) inputs: Vec<NodeId>,
    /// The batch norm of a fused step, whose `node` is a ReLU.
    pub(super) norm: Option<NodeId>,
}

/// Returns the steps of a graph in order, and the number of reads of each result; taps and output count as reads.
pub(super) fn steps(graph: &Graph) -> (Vec<Step>, Vec<usize>) {
    let only_readers = graph.only_readers();
    let has_one_reader = |id: NodeId| only_readers[id.index()].is_some();
    let fusible_norm = |id: NodeId| {
        let is_norm = matches!(graph.node(id).op, Op::BatchNorm(_));
        (is_norm && has_one_reader(id)).then_some(id)
    };
    let mut fused = vec![false; graph.nodes().len()];
    let mut steps: Vec<Step> = Vec::with_capacity(graph.nodes().len());
    for id in graph.ids() {
        let node = graph.node(id);
        let mut step = Step { node: id, inputs: node.inputs.clone(), norm: None };
        if let (Op::Relu, [before]) = (&node.op, node.inputs.as_slice()) {
            let add = graph.node(*before);
            let norm = match (&add.op, add.inputs.as_slice()) {
                (Op::Add, [a, b]) if a != b && has_one_reader(*before) => {
                    let first = fusible_norm(*a).map(|norm| (norm, Some(*b)));
                    first.or(fusible_norm(*b).map(|norm| (norm, Some(*a))))
                }
                _ => fusible_norm(*before).map(|norm| (norm, None)),
            };
            if let Some((norm, residual)) = norm {
                fused[norm.index()] = true;
                fused[before.index()] = true;
                step.inputs = graph.node(norm).inputs.iter().copied().chain(residual).collect();
                step.norm = Some(norm);
            }
        }
        steps.push(step);
    }
    steps.retain(|step| !fused[step.node.index()]);
    let mut reads = vec![0; graph.nodes().len()];
    for input in steps.iter().flat_map(|step| &step.inputs) {
        reads[input.index()] += 1;
    }
    for id in graph.taps().iter().map(|tap| tap.node).chain([graph.output()]) {
        reads[id.index()] += 1;
    }
    (steps, reads)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::zoo;

    #[test]
    fn norms_are_fused_with_residual_add_and_relu() {
        let check = |name: &str, fused: usize, with_add: usize| {
            let graph = zoo::arch(name).unwrap().graph().unwrap();
            let (steps, reads) = steps(&graph);
            let norms = steps.iter().filter(|step| step.norm.is_some()).count();
            let adds = steps.iter().filter(|step| step.norm.is_some() && step.inputs.len() == 2).count();
            assert_eq!((norms, adds), (fused, with_add), "{name}");
            for step in &steps {
                let known = |id: &NodeId| steps.iter().any(|s| s.node == *id && s.node < step.node);
                assert!(step.inputs.iter().all(known) && reads[step.node.index()] > 0, "{name} {step:?}");
            }
        };
        // ResNet-18 fuses the norm of the stem and two per block; the norms of the three projections are separate steps.
        check("resnet18", 17, 8);
        check("resnet50", 49, 16);
        check("plain20_cifar", 19, 0);
    }
}
