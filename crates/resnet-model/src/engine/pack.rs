//! The program: steps with their kernels and packed weights.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use candle_core::{DType, Device};
use resnet_kernels::{
    Activation, Algorithm, AvgPoolSpec, ConvShape, ConvWeights, Epilogue, InputHint, LANES, PackedConv,
    PackedLinear, Plan, PoolSpec, Precision, ThreadPool,
};

use super::fuse::{Fused, Kind, Step, fuse};
use super::map::{Affine, First, Map};
use super::{EngineOptions, StepInfo};
use crate::cost::{self, Cost};
use crate::fold::{Folded, fold};
use crate::graph::{Graph, NodeId, Op};
use crate::network::{self, Layer};
use crate::ops::{average_of, shape_of, window_of};
use crate::{Checkpoint, Error, Result};

/// Steps in execution order, and what their results must look like.
#[derive(Debug)]
pub(super) struct Program {
    pub(super) graph: Graph,
    pub(super) steps: Vec<Compiled>,
    /// The first of the steps that compute several images at once; those before compute one after the other.
    pub(super) late: usize,
    /// The zero border that readers of a node's result need around it, in pixels; by node.
    pub(super) halos: Vec<[usize; 2]>,
    /// Whether a step reads the network's input in blocks of channels, so that it must be repacked first.
    pub(super) packs_input: bool,
    pub(super) isa: resnet_kernels::Isa,
}

/// A step with its kernel.
#[derive(Debug)]
pub(super) struct Compiled {
    pub(super) step: Step,
    pub(super) kernel: Kernel,
}

#[derive(Debug)]
pub(super) enum Kernel {
    Conv(Box<PackedConv>),
    Linear(Box<PackedLinear>),
    MaxPool(PoolSpec),
    AvgPool(AvgPoolSpec),
    GlobalAvgPool,
    Map(Map),
    Concat,
    /// Relu and sigmoid on `[N, C]`.
    Dense(fn(f32) -> f32),
    /// Whatever has no kernel of its own is computed by candle.
    Candle(Box<Layer>),
}

impl Kernel {
    pub(super) fn name(&self) -> String {
        match self {
            Kernel::Conv(conv) => conv.kernel_name(),
            Kernel::Linear(linear) => linear.kernel_name(),
            Kernel::MaxPool(_) => "max-pool".into(),
            Kernel::GlobalAvgPool => "global-avg-pool".into(),
            Kernel::AvgPool(_) => "avg-pool".into(),
            Kernel::Map(_) => "map".into(),
            Kernel::Concat => "concat".into(),
            Kernel::Dense(_) => "dense".into(),
            Kernel::Candle(_) => "candle".into(),
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Kernel::Conv(conv) => conv.bytes(),
            Kernel::Linear(linear) => linear.bytes(),
            _ => 0,
        }
    }
}

impl Program {
    pub(super) fn new(
        checkpoint: &Checkpoint,
        options: &EngineOptions,
        pool: &ThreadPool,
    ) -> Result<Program> {
        let folded = fold(checkpoint.graph());
        let graph = folded.graph().clone();
        let [height, width] = options.input.unwrap_or(checkpoint.meta().preprocess.crop);
        let costs = cost::list(&graph, height, width)?;
        let steps = fuse(&graph);
        let late = late(&steps, &costs);
        let packer = Packer { checkpoint, folded: &folded, graph: &graph, options, costs };
        let packed: Vec<Mutex<Option<Result<Kernel>>>> = steps.iter().map(|_| Mutex::new(None)).collect();
        // The largest first: they are read as a whole, which takes memory beside what is packed, and threads that end
        // with small ones end together.
        let mut order: Vec<usize> = (0..steps.len()).collect();
        order.sort_by_key(|&i| std::cmp::Reverse(weights(&steps[i], &packer.costs)));
        let next = AtomicUsize::new(0);
        // What each thread reads weights into.
        let memory: Vec<Mutex<Vec<f32>>> = (0..pool.threads()).map(|_| Mutex::default()).collect();
        pool.run(steps.len(), |thread, _| {
            let mut memory = memory[thread].lock().unwrap_or_else(PoisonError::into_inner);
            // Not by the task's number: each thread starts in a place of its own.
            let i = order[next.fetch_add(1, Ordering::Relaxed)];
            // All packed weights are there when the last and smallest are read.
            if memory.capacity() as u64 > weights(&steps[i], &packer.costs) / 2 {
                *memory = Vec::new();
            }
            let images = if i < late { 1 } else { options.batch.clamp(1, MOST_IMAGES) };
            *packed[i].lock().unwrap_or_else(PoisonError::into_inner) =
                Some(packer.kernel(&steps[i], images, &mut memory));
        });
        let kernels = packed.into_iter().zip(&steps).map(|(kernel, step)| {
            let kernel = kernel.into_inner().unwrap_or_else(PoisonError::into_inner);
            kernel.unwrap_or_else(|| Err(Error::Missing(graph.node(step.node).name.clone())))
        });
        let kernels = kernels.collect::<Result<Vec<_>>>()?;
        let steps: Vec<Compiled> =
            steps.into_iter().zip(kernels).map(|(step, kernel)| Compiled { step, kernel }).collect();

        let mut halos = vec![[0; 2]; graph.nodes().len()];
        let mut packs_input = false;
        for Compiled { step, kernel } in &steps {
            let reads_input = step.inputs.iter().any(|i| i.index() == 0);
            match kernel {
                Kernel::Conv(conv) => {
                    let halo = &mut halos[step.inputs[0].index()];
                    let needed = conv.input_halo();
                    *halo = [halo[0].max(needed[0]), halo[1].max(needed[1])];
                    packs_input |= reads_input && conv.plan().algorithm != Algorithm::Planar;
                }
                Kernel::Candle(_) => {}
                _ => packs_input |= reads_input,
            }
        }
        Ok(Program { graph, steps, late, halos, packs_input, isa: options.isa })
    }

    pub(super) fn weight_bytes(&self) -> usize {
        self.steps.iter().map(|s| s.kernel.bytes()).sum()
    }

    pub(super) fn steps(&self, height: usize, width: usize) -> Result<Vec<StepInfo>> {
        let costs = cost::list(&self.graph, height, width)?;
        let info = |Compiled { step, kernel }: &Compiled| {
            let main = match &step.kind {
                Kind::Conv(fused) | Kind::Map(fused) => fused.first,
                Kind::Plain => step.node,
            };
            StepInfo {
                name: self.graph.node(main).name.clone(),
                kernel: kernel.name(),
                macs: costs[main.index()].macs,
                shape: costs[step.node.index()].shape.clone(),
            }
        };
        Ok(self.steps.iter().map(info).collect())
    }
}

/// Images that the late steps compute at once at most: more would hardly read the weights less often.
pub(super) const MOST_IMAGES: usize = 16;

/// Where a network turns from large activations with few weights to small activations with many.
///
/// Before, each image is computed by itself, so that its activations stay in the cache: the weights are read for every
/// image. After, every weight is read once for all images, and the activations of all are written and read. (Moving one
/// byte of either costs about the same.)
fn late(steps: &[Step], costs: &[Cost]) -> usize {
    let activations = |step: &Step| {
        let nodes = step.inputs.iter().chain([&step.node]);
        2 * nodes.map(|node| costs[node.index()].bytes).sum::<u64>()
    };
    let mut cost: u64 = steps.iter().map(activations).sum();
    let mut best = (cost, 0);
    for (i, step) in steps.iter().enumerate() {
        cost = cost - activations(step) + weights(step, costs);
        best = best.min((cost, i + 1));
    }
    best.1
}

/// Bytes of a step's weights.
fn weights(step: &Step, costs: &[Cost]) -> u64 {
    match &step.kind {
        Kind::Conv(Fused { first, .. }) => {
            let cost = &costs[first.index()];
            let pixels = cost.shape.iter().skip(1).map(|&d| d as u64).product::<u64>();
            4 * cost.macs / pixels.max(1)
        }
        _ => 4 * costs[step.node.index()].macs,
    }
}

/// Everything that the packing of one step needs to know.
struct Packer<'a> {
    checkpoint: &'a Checkpoint,
    folded: &'a Folded,
    graph: &'a Graph,
    options: &'a EngineOptions,
    /// At the size that the kernels are chosen for.
    costs: Vec<Cost>,
}

impl Packer<'_> {
    fn kernel(&self, step: &Step, images: usize, memory: &mut Vec<f32>) -> Result<Kernel> {
        let node = self.graph.node(step.node);
        let pixels = self.costs[step.inputs[0].index()].shape.len() == 3;
        match (&step.kind, &node.op) {
            (Kind::Conv(fused), _) => self.conv(fused, images, memory),
            (Kind::Plain, Op::Linear(linear)) => {
                let name = format!("{}.weight", node.name);
                self.checkpoint.tensor(&name)?.read_f32(&name, memory)?;
                let bias = self.checkpoint.values(&format!("{}.bias", node.name))?;
                let params = ConvWeights { weights: memory, bias: Some(&bias) };
                let features = [linear.out_features, linear.in_features];
                Ok(Kernel::Linear(Box::new(PackedLinear::new(self.options.isa, features, params)?)))
            }
            (Kind::Plain, Op::MaxPool(pool)) => Ok(Kernel::MaxPool(window_of(pool))),
            (Kind::Plain, Op::GlobalAvgPool) => Ok(Kernel::GlobalAvgPool),
            (Kind::Map(fused), _) => self.map(fused),
            (Kind::Plain, Op::AvgPool(pool)) => Ok(Kernel::AvgPool(average_of(pool))),
            (Kind::Plain, Op::Concat) if pixels => Ok(Kernel::Concat),
            (Kind::Plain, Op::Relu) => Ok(Kernel::Dense(|v| if v < 0.0 { 0.0 } else { v })),
            (Kind::Plain, Op::Sigmoid) if !pixels => Ok(Kernel::Dense(|v| 1.0 / (1.0 + (-v).exp()))),
            (Kind::Plain, _) => {
                let vb = network::var_builder(self.checkpoint, None, DType::F32, &Device::Cpu);
                Ok(Kernel::Candle(Box::new(network::layer(node, vb.pp(&node.name))?)))
            }
        }
    }

    fn conv(&self, fused: &Fused, images: usize, memory: &mut Vec<f32>) -> Result<Kernel> {
        let node = self.graph.node(fused.first);
        let Op::Conv(conv) = &node.op else { return Err(Error::Missing(node.name.clone())) };
        let shape = shape_of(conv);
        let plan = self.plan(fused.first, &shape, images);
        let finish = Epilogue {
            activation: if fused.relu { Activation::Relu } else { Activation::None },
            max_pool: fused.pool.as_ref().map(window_of),
        };
        let values = self.folded.conv(node, self.checkpoint, std::mem::take(memory))?;
        let params = ConvWeights { weights: &values.weight, bias: conv.bias.then_some(&values.bias) };
        let packed = PackedConv::new(shape, plan, params, finish)?;
        *memory = values.weight;
        let packed = if self.folded.standardizes(node) { packed.with_chunked_sums() } else { packed };
        Ok(Kernel::Conv(Box::new(packed)))
    }

    fn map(&self, fused: &Fused) -> Result<Kernel> {
        let node = self.graph.node(fused.first);
        let part = |suffix: &str| self.checkpoint.values(&format!("{}.{suffix}", node.name));
        let first = match node.op {
            Op::BatchNorm(norm) => {
                let (weight, bias, mean, var) =
                    (part("weight")?, part("bias")?, part("running_mean")?, part("running_var")?);
                let coefficient = |c: usize| {
                    let scale = f64::from(weight[c]) / (f64::from(var[c]) + norm.eps).sqrt();
                    (scale as f32, (f64::from(bias[c]) - f64::from(mean[c]) * scale) as f32)
                };
                let (scale, shift) = (0..node.channels).map(coefficient).unzip();
                First::Affine(Affine { scale, shift })
            }
            Op::GroupNorm(norm) => {
                let affine = Affine { scale: part("weight")?, shift: part("bias")? };
                First::Group { groups: norm.groups, eps: norm.eps, affine }
            }
            Op::Scale => First::Gate,
            Op::Multiply(m) => First::Factor(m.factor as f32),
            _ => First::Identity,
        };
        Ok(Kernel::Map(Map { first, residual: fused.residual, relu: fused.relu }))
    }

    /// The kernels' choice, but for one thing that only the program knows: whether the input is planar.
    fn plan(&self, conv: NodeId, shape: &ConvShape, images: usize) -> Plan {
        let input = self.graph.node(conv).inputs[0];
        let size = &self.costs[input.index()].shape;
        let site = InputHint { batch: images, input: [size[1], size[2]] };
        // BiT's networks make rounding errors some forty times larger on their way, those of the stem most of all.
        let precision = match self.folded.standardizes(self.graph.node(conv)) {
            true => Precision::Exact,
            false => self.options.precision,
        };
        let choose = |shape: &ConvShape| Plan::choose(shape, site, self.options.isa, precision);
        let plan = choose(shape);
        if plan.algorithm == Algorithm::Planar && self.graph.node(input).op != Op::Input {
            return choose(&ConvShape { c_in: shape.c_in.max(LANES), ..*shape });
        }
        plan
    }
}
