//! Operations in execution order, named as the modules of PyTorch.

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
/// Names are those of PyTorch's modules (`layer1.0.conv2`), so that the graph determines the names of the parameters, in
/// the order of PyTorch's `state_dict()` ([`Graph::registered`]).
#[derive(Debug, Clone, PartialEq)]
pub struct Graph {
    nodes: Vec<Node>,
    taps: Vec<Tap>,
    /// All nodes in the registration order of PyTorch's modules.
    registered: Vec<NodeId>,
}

/// The position of an operation in its graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(usize);

impl NodeId {
    /// Returns the position in [`Graph::nodes`].
    pub fn index(self) -> usize {
        self.0
    }
}

/// One operation.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// The path of the module, e.g. `layer1.0.conv2`; unique in the graph.
    pub name: String,
    /// The operation.
    pub op: Op,
    /// The nodes whose results it reads.
    pub inputs: Vec<NodeId>,
    /// Output channels.
    pub channels: usize,
}

/// A named result that users can request, e.g. `layer3`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tap {
    /// The name.
    pub name: String,
    /// The node that computes it.
    pub node: NodeId,
    /// Stride in input pixels along each axis; 0 for a result without pixels.
    pub stride: usize,
}

impl Graph {
    /// Returns the operations in execution order; the first is the input.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Returns the positions of all operations, in execution order.
    pub fn ids(&self) -> impl Iterator<Item = NodeId> + use<> {
        (0..self.nodes.len()).map(NodeId)
    }

    /// Returns the operation at `id`.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0]
    }

    /// Returns the operations in the registration order of PyTorch's modules, which is that of `state_dict()`. It differs
    /// from the execution order where a module is registered before the ones that it reads from.
    pub fn registered(&self) -> impl Iterator<Item = &Node> {
        self.registered.iter().map(|id| &self.nodes[id.0])
    }

    /// Returns the operation that computes the output of the network.
    pub fn output(&self) -> NodeId {
        NodeId(self.nodes.len() - 1)
    }

    /// Returns the number of input channels.
    pub fn in_channels(&self) -> usize {
        self.nodes[0].channels
    }

    /// Returns the named results, in execution order.
    pub fn taps(&self) -> &[Tap] {
        &self.taps
    }

    /// Returns the tap with this name.
    pub fn tap(&self, name: &str) -> Result<&Tap> {
        self.taps.iter().find(|t| t.name == name).ok_or_else(|| Error::UnknownTap {
            name: name.to_owned(),
            known: self.taps.iter().map(|t| t.name.as_str()).collect::<Vec<_>>().join(", "),
        })
    }

    /// Returns the nodes of the taps with these names, in the given order.
    pub(crate) fn tapped(&self, names: &[&str]) -> Result<Vec<NodeId>> {
        names.iter().map(|&name| Ok(self.tap(name)?.node)).collect()
    }

    /// Returns the residual adds in execution order, one per block; the first input is the branch, the second the shortcut.
    pub fn residual_adds(&self) -> impl Iterator<Item = NodeId> + '_ {
        // The AvgMax head adds mean and maximum; every other add is a residual add.
        let pooled = |id: &NodeId| matches!(self.node(*id).op, Op::GlobalAvgPool | Op::GlobalMaxPool);
        self.ids().filter(move |id| {
            let node = self.node(*id);
            node.op == Op::Add && !node.inputs.iter().all(pooled)
        })
    }

    /// Returns, for each node, the only operation that reads its result. `None` if several operations read it, or if it is
    /// a tap or the output: then it cannot be fused with the operation that follows.
    pub fn only_readers(&self) -> Vec<Option<NodeId>> {
        let mut readers: Vec<Vec<NodeId>> = vec![vec![]; self.nodes.len()];
        for id in self.ids() {
            for input in &self.node(id).inputs {
                readers[input.0].push(id);
            }
        }
        let mut only: Vec<Option<NodeId>> = readers
            .iter()
            .map(|readers| if let [reader] = readers[..] { Some(reader) } else { None })
            .collect();
        self.taps.iter().for_each(|tap| only[tap.node.0] = None);
        only
    }

    /// Returns the graph without the nodes for which `remove` returns `true`: their readers read their first input
    /// instead. `change` is applied to the other nodes.
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
