//! The order of work: a batch norm, the sum with the shortcut behind it and the rectifier behind that are one step.

use crate::graph::{Graph, NodeId, Op};

/// One step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Step {
    /// Whose result it gives.
    pub(super) node: NodeId,
    /// Whose results it takes: the norm's input first, then what is added.
    pub(super) inputs: Vec<NodeId>,
    /// The batch norm that is computed along with `node`, a rectifier.
    pub(super) norm: Option<NodeId>,
}

/// The steps of a graph in order, and how often each result is taken, taps and output counted as once more.
pub(super) fn steps(graph: &Graph) -> (Vec<Step>, Vec<usize>) {
    let mut uses = graph.uses();
    for tap in graph.taps() {
        uses[tap.node.index()] += 1;
    }
    let only_norm = |id: NodeId| {
        let is_norm = matches!(graph.node(id).op, Op::BatchNorm(_));
        (is_norm && uses[id.index()] == 1).then_some(id)
    };
    let mut inside = vec![false; graph.nodes().len()];
    let mut steps: Vec<Step> = Vec::with_capacity(graph.nodes().len());
    for id in graph.ids() {
        let node = graph.node(id);
        let mut step = Step { node: id, inputs: node.inputs.clone(), norm: None };
        if let (Op::Relu, [before]) = (&node.op, node.inputs.as_slice()) {
            let sum = graph.node(*before);
            let norm = match (&sum.op, sum.inputs.as_slice()) {
                (Op::Add, [a, b]) if a != b && uses[before.index()] == 1 => {
                    only_norm(*a).map(|norm| (norm, Some(*b))).or(only_norm(*b).map(|norm| (norm, Some(*a))))
                }
                _ => only_norm(*before).map(|norm| (norm, None)),
            };
            if let Some((norm, added)) = norm {
                inside[norm.index()] = true;
                inside[before.index()] = true;
                step.inputs = graph.node(norm).inputs.iter().copied().chain(added).collect();
                step.norm = Some(norm);
            }
        }
        steps.push(step);
    }
    steps.retain(|step| !inside[step.node.index()]);
    let mut taken = vec![0; graph.nodes().len()];
    for input in steps.iter().flat_map(|step| &step.inputs) {
        taken[input.index()] += 1;
    }
    for id in graph.taps().iter().map(|tap| tap.node).chain([graph.output()]) {
        taken[id.index()] += 1;
    }
    (steps, taken)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::zoo;

    #[test]
    fn norms_are_computed_with_what_follows() {
        let check = |name: &str, norms: usize, sums: usize| {
            let graph = zoo::arch(name).unwrap().graph().unwrap();
            let (steps, uses) = steps(&graph);
            let joined = steps.iter().filter(|step| step.norm.is_some()).count();
            let with_sum = steps.iter().filter(|step| step.norm.is_some() && step.inputs.len() == 2).count();
            assert_eq!((joined, with_sum), (norms, sums), "{name}");
            for step in &steps {
                let known = |id: &NodeId| steps.iter().any(|s| s.node == *id && s.node < step.node);
                assert!(step.inputs.iter().all(known) && uses[step.node.index()] > 0, "{name} {step:?}");
            }
        };
        // The norms of ResNet-18: the stem's, two in each of eight blocks, and three of shortcuts that stand alone.
        check("resnet18", 17, 8);
        check("resnet50", 49, 16);
        check("plain20_cifar", 19, 0);
    }
}
