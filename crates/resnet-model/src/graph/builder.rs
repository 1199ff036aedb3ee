//! Construction of a graph, used by the families.

use super::{
    AdaptiveAvgPool, AvgPool, BatchNorm, Blur, ChannelConv, Conv, Flatten, Graph, GroupNorm, Linear,
    LinearForm, Multiply, Node, NodeId, Op, Pad, PadChannels, PoolSpec, Subsample, Tap,
};

/// Builds a [`Graph`] node by node.
#[derive(Debug)]
pub(crate) struct Builder {
    nodes: Vec<Node>,
    taps: Vec<Tap>,
    strides: Vec<usize>,
    /// By node: position in the registration order of PyTorch's modules.
    positions: Vec<usize>,
    next_position: usize,
}

/// A reserved position in the registration order of PyTorch's modules.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Position(usize);

impl Builder {
    pub(crate) fn new(in_channels: usize) -> (Builder, NodeId) {
        let input = Node { name: "input".into(), op: Op::Input, inputs: vec![], channels: in_channels };
        let builder = Builder {
            nodes: vec![input],
            taps: vec![],
            strides: vec![1],
            positions: vec![0],
            next_position: 1,
        };
        (builder, NodeId(0))
    }

    pub(crate) fn channels(&self, id: NodeId) -> usize {
        self.nodes[id.0].channels
    }

    /// Adds an operation.
    pub(crate) fn push(&mut self, name: impl Into<String>, op: Op, inputs: &[NodeId]) -> NodeId {
        let in_channels: Vec<usize> = inputs.iter().map(|&id| self.channels(id)).collect();
        let channels = op.out_channels(&in_channels);
        let stride = self.strides[inputs[0].0] * op.stride();
        self.nodes.push(Node { name: name.into(), op, inputs: inputs.to_vec(), channels });
        self.strides.push(stride);
        self.positions.push(self.next_position);
        self.next_position += 1;
        NodeId(self.nodes.len() - 1)
    }

    /// Reserves a position in the registration order of PyTorch's modules for an operation that is executed later.
    pub(crate) fn reserve(&mut self) -> Position {
        self.next_position += 1;
        Position(self.next_position - 1)
    }

    /// Moves `node` to a reserved position in the registration order.
    pub(crate) fn register_at(&mut self, node: NodeId, position: Position) {
        self.positions[node.0] = position.0;
    }

    /// Adds a convolution.
    pub(crate) fn conv(&mut self, name: impl Into<String>, x: NodeId, conv: Conv) -> NodeId {
        self.push(name, Op::Conv(conv), &[x])
    }

    pub(crate) fn batch_norm(&mut self, name: impl Into<String>, x: NodeId, eps: f64) -> NodeId {
        self.push(name, Op::BatchNorm(BatchNorm { eps }), &[x])
    }

    pub(crate) fn group_norm(&mut self, name: impl Into<String>, x: NodeId, norm: GroupNorm) -> NodeId {
        self.push(name, Op::GroupNorm(norm), &[x])
    }

    pub(crate) fn relu(&mut self, name: impl Into<String>, x: NodeId) -> NodeId {
        self.push(name, Op::Relu, &[x])
    }

    pub(crate) fn sigmoid(&mut self, name: impl Into<String>, x: NodeId) -> NodeId {
        self.push(name, Op::Sigmoid, &[x])
    }

    pub(crate) fn max_pool(&mut self, name: impl Into<String>, x: NodeId, pool: PoolSpec) -> NodeId {
        self.push(name, Op::MaxPool(pool), &[x])
    }

    pub(crate) fn avg_pool(&mut self, name: impl Into<String>, x: NodeId, pool: AvgPool) -> NodeId {
        self.push(name, Op::AvgPool(pool), &[x])
    }

    pub(crate) fn adaptive_avg_pool(
        &mut self,
        name: impl Into<String>,
        x: NodeId,
        pool: AdaptiveAvgPool,
    ) -> NodeId {
        self.push(name, Op::AdaptiveAvgPool(pool), &[x])
    }

    pub(crate) fn blur(&mut self, name: impl Into<String>, x: NodeId, stride: usize) -> NodeId {
        self.push(name, Op::Blur(Blur { stride }), &[x])
    }

    pub(crate) fn subsample(&mut self, name: impl Into<String>, x: NodeId, stride: usize) -> NodeId {
        self.push(name, Op::Subsample(Subsample { stride }), &[x])
    }

    pub(crate) fn pad_channels(&mut self, name: impl Into<String>, x: NodeId, pad: PadChannels) -> NodeId {
        self.push(name, Op::PadChannels(pad), &[x])
    }

    pub(crate) fn pad(&mut self, name: impl Into<String>, x: NodeId, pad: Pad) -> NodeId {
        self.push(name, Op::Pad(pad), &[x])
    }

    pub(crate) fn add(&mut self, name: impl Into<String>, x: NodeId, y: NodeId) -> NodeId {
        self.push(name, Op::Add, &[x, y])
    }

    pub(crate) fn concat(&mut self, name: impl Into<String>, inputs: &[NodeId]) -> NodeId {
        self.push(name, Op::Concat, inputs)
    }

    /// Multiplies `x` `[N, C, H, W]` by `gate` `[N, C]`.
    pub(crate) fn scale(&mut self, name: impl Into<String>, x: NodeId, gate: NodeId) -> NodeId {
        self.push(name, Op::Scale, &[x, gate])
    }

    pub(crate) fn multiply(&mut self, name: impl Into<String>, x: NodeId, factor: f64) -> NodeId {
        self.push(name, Op::Multiply(Multiply { factor }), &[x])
    }

    pub(crate) fn global_avg_pool(&mut self, name: impl Into<String>, x: NodeId) -> NodeId {
        self.push(name, Op::GlobalAvgPool, &[x])
    }

    pub(crate) fn global_max_pool(&mut self, name: impl Into<String>, x: NodeId) -> NodeId {
        self.push(name, Op::GlobalMaxPool, &[x])
    }

    pub(crate) fn flatten(&mut self, name: impl Into<String>, x: NodeId, pixels: [usize; 2]) -> NodeId {
        self.push(name, Op::Flatten(Flatten { pixels }), &[x])
    }

    pub(crate) fn linear(&mut self, name: impl Into<String>, x: NodeId, out_features: usize) -> NodeId {
        let in_features = self.channels(x);
        self.push(name, Op::Linear(Linear { in_features, out_features, form: LinearForm::Matrix }), &[x])
    }

    /// Adds a fully connected layer with the weight of a 1×1 convolution.
    pub(crate) fn pointwise(&mut self, name: impl Into<String>, x: NodeId, out_features: usize) -> NodeId {
        let in_features = self.channels(x);
        self.push(name, Op::Linear(Linear { in_features, out_features, form: LinearForm::Pointwise }), &[x])
    }

    pub(crate) fn channel_conv(&mut self, name: impl Into<String>, x: NodeId, kernel: usize) -> NodeId {
        self.push(name, Op::ChannelConv(ChannelConv { kernel }), &[x])
    }

    /// Adds a tap.
    pub(crate) fn tap(&mut self, name: impl Into<String>, node: NodeId) {
        self.taps.push(Tap { name: name.into(), node, stride: self.strides[node.0] });
    }

    pub(crate) fn finish(self) -> Graph {
        let mut registered: Vec<NodeId> = (0..self.nodes.len()).map(NodeId).collect();
        registered.sort_by_key(|id| self.positions[id.0]);
        Graph { nodes: self.nodes, taps: self.taps, registered }
    }
}
