//! Operations in execution order, each with the name that PyTorch gives its module.

use std::collections::BTreeMap;

use crate::{Error, Result};

mod builder;
mod facts;
mod op;

pub(crate) use builder::Builder;
pub(crate) use facts::ShapeError;
pub use op::*;

/// A network as a list of operations; every operation comes after its inputs.
///
/// Names are those of PyTorch's modules (`layer1.0.conv2`), so that the names of parameters follow from the graph
/// alone, in the order of PyTorch's `state_dict()` ([`Graph::registered`]).
#[derive(Debug, Clone, PartialEq)]
pub struct Graph {
    nodes: Vec<Node>,
    taps: Vec<Tap>,
    /// All nodes in the order in which PyTorch's modules are registered.
    registered: Vec<NodeId>,
}

/// The position of an operation in its graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(usize);

impl NodeId {
    /// The position in [`Graph::nodes`].
    pub fn index(self) -> usize {
        self.0
    }
}

/// One operation.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// The module's path, e.g. `layer1.0.conv2`. Unique in the graph.
    pub name: String,
    /// What is computed.
    pub op: Op,
    /// Whose results it is computed from.
    pub inputs: Vec<NodeId>,
    /// Channels of the result.
    pub channels: usize,
}

/// A result with a name that users can ask for, e.g. `layer3`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tap {
    /// The name.
    pub name: String,
    /// The operation whose result it is.
    pub node: NodeId,
    /// Input pixels per pixel of the result along each axis; 0 where the result has no pixels.
    pub stride: usize,
}

impl Graph {
    /// The operations in execution order; the first is the input.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The positions of all operations, in execution order.
    pub fn ids(&self) -> impl Iterator<Item = NodeId> + use<> {
        (0..self.nodes.len()).map(NodeId)
    }

    /// The operation at `id`.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0]
    }

    /// The operations in the order in which PyTorch's modules are registered, which is that of `state_dict()`. It
    /// differs from the order of execution where a module is made before those whose results it takes.
    pub fn registered(&self) -> impl Iterator<Item = &Node> {
        self.registered.iter().map(|id| &self.nodes[id.0])
    }

    /// The operation whose result is the network's.
    pub fn output(&self) -> NodeId {
        NodeId(self.nodes.len() - 1)
    }

    /// Channels of the input.
    pub fn in_channels(&self) -> usize {
        self.nodes[0].channels
    }

    /// The named results, in execution order.
    pub fn taps(&self) -> &[Tap] {
        &self.taps
    }

    /// The tap of this name.
    pub fn tap(&self, name: &str) -> Result<&Tap> {
        self.taps.iter().find(|t| t.name == name).ok_or_else(|| Error::UnknownTap {
            name: name.to_owned(),
            known: self.taps.iter().map(|t| t.name.as_str()).collect::<Vec<_>>().join(", "),
        })
    }

    /// The operations behind the taps of these names, in the order asked for.
    pub(crate) fn tapped(&self, names: &[&str]) -> Result<Vec<NodeId>> {
        names.iter().map(|&name| Ok(self.tap(name)?.node)).collect()
    }

    /// The sums of a residual branch, their first input, and a shortcut, in execution order: one per block.
    pub fn residual_sums(&self) -> impl Iterator<Item = NodeId> + '_ {
        // Heads add a mean and a maximum of all pixels; everything else that is added is a branch.
        let pooled = |id: &NodeId| matches!(self.node(*id).op, Op::GlobalAvgPool | Op::GlobalMaxPool);
        self.ids().filter(move |id| {
            let node = self.node(*id);
            node.op == Op::Add && !node.inputs.iter().all(pooled)
        })
    }

    /// How many operations take each result, the network's own output counted as one more.
    pub fn uses(&self) -> Vec<usize> {
        let mut uses = vec![0; self.nodes.len()];
        for node in &self.nodes {
            for input in &node.inputs {
                uses[input.0] += 1;
            }
        }
        uses[self.output().0] += 1;
        uses
    }

    /// The graph without the nodes for which `remove` holds: whoever used such a node uses its first input instead.
    /// Nodes that stay are first handed to `change`.
    pub(crate) fn without(
        &self,
        remove: impl Fn(NodeId) -> bool,
        mut change: impl FnMut(NodeId, &mut Node),
    ) -> Graph {
        let mut moved: BTreeMap<NodeId, NodeId> = BTreeMap::new();
        let mut nodes = Vec::with_capacity(self.nodes.len());
        for (index, node) in self.nodes.iter().enumerate() {
            let id = NodeId(index);
            if remove(id) {
                moved.insert(id, moved[&node.inputs[0]]);
                continue;
            }
            let mut node = node.clone();
            for input in &mut node.inputs {
                *input = moved[input];
            }
            change(id, &mut node);
            moved.insert(id, NodeId(nodes.len()));
            nodes.push(node);
        }
        let taps = self.taps.iter().map(|t| Tap { node: moved[&t.node], ..t.clone() }).collect();
        let registered = self.registered.iter().filter(|&&id| !remove(id)).map(|id| moved[id]).collect();
        Graph { nodes, taps, registered }
    }
}
