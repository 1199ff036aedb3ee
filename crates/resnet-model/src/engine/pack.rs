//! The compiled program: steps with their kernels and packed weights.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use candle_core::{DType, Device};
use resnet_kernels::{
    Activation, Algorithm, AvgPoolSpec, ConvShape, ConvWeights, Epilogue, InputHint, LANES, PackedConv,
    PackedLinear, Plan, PoolSpec, Precision, ThreadPool,
};

use super::elementwise::{Coefficients, Elementwise, ScaleShift};
use super::fuse::{Fused, FusedStep, StepKind, fuse};
use super::{EngineOptions, StepInfo};
use crate::cost::Cost;
use crate::fold::{Folded, fold};
use crate::graph::{Graph, NodeId, Op};
use crate::network::{Layer, var_builder};
use crate::ops::{avg_pool_spec, conv_shape, pool_spec};
use crate::{Checkpoint, Error, Result};

/// Steps in execution order, and the layout that their results need.
#[derive(Debug)]
pub(super) struct Program {
    pub(super) graph: Graph,
    pub(super) steps: Vec<CompiledStep>,
    /// The first step that computes several images at once; earlier steps compute one image at a time.
    pub(super) batched_from: usize,
    /// By node: the halo of zeros that readers of the result need, in pixels.
    pub(super) halos: Vec<[usize; 2]>,
    /// If `true`, a step reads the network's input in blocked layout, so that it must be packed first.
    pub(super) packs_input: bool,
    pub(super) isa: resnet_kernels::Isa,
}

/// A step with its kernel.
#[derive(Debug)]
pub(super) struct CompiledStep {
    pub(super) step: FusedStep,
    pub(super) kernel: Kernel,
}

#[derive(Debug)]
pub(super) enum Kernel {
    Conv(Box<PackedConv>),
    Linear(Box<PackedLinear>),
    MaxPool(PoolSpec),
    AvgPool(AvgPoolSpec),
    GlobalAvgPool,
    Elementwise(Elementwise),
    Concat,
    /// ReLU and sigmoid on `[N, C]`.
    Dense(fn(f32) -> f32),
    /// An operation without a kernel, computed by candle.
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
            Kernel::Elementwise(_) => "elementwise".into(),
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
        let costs = graph.costs(height, width)?;
        let steps = fuse(&graph);
        let batched_from = batched_from(&steps, &costs);
        let packer = Packer { checkpoint, folded: &folded, graph: &graph, options, costs };
        let packed: Vec<Mutex<Option<Result<Kernel>>>> = steps.iter().map(|_| Mutex::new(None)).collect();
        // Largest first: reading them needs the most additional memory, and small ones at the end balance the threads.
        let mut order: Vec<usize> = (0..steps.len()).collect();
        order.sort_by_key(|&i| std::cmp::Reverse(weight_bytes(&steps[i], &packer.costs)));
        let next = AtomicUsize::new(0);
        // One buffer per thread for reading weights.
        let buffers: Vec<Mutex<Vec<f32>>> = (0..pool.threads()).map(|_| Mutex::default()).collect();
        pool.run(steps.len(), |thread, _| {
            let mut buffer = buffers[thread].lock().unwrap_or_else(PoisonError::into_inner);
            // By size, not by task index: the pool assigns each thread a contiguous range of indices.
            let i = order[next.fetch_add(1, Ordering::Relaxed)];
            // Free large buffers early: memory peaks when the last weights are read.
            if buffer.capacity() as u64 > weight_bytes(&steps[i], &packer.costs) / 2 {
                *buffer = Vec::new();
            }
            let images = if i < batched_from { 1 } else { options.batch.clamp(1, MAX_IMAGES) };
            *packed[i].lock().unwrap_or_else(PoisonError::into_inner) =
                Some(packer.kernel(&steps[i], images, &mut buffer));
        });
        let kernels = packed.into_iter().zip(&steps).map(|(kernel, step)| {
            let kernel = kernel.into_inner().unwrap_or_else(PoisonError::into_inner);
            kernel.unwrap_or_else(|| Err(Error::Missing(graph.node(step.node).name.clone())))
        });
        let kernels = kernels.collect::<Result<Vec<_>>>()?;
        let steps: Vec<CompiledStep> =
            steps.into_iter().zip(kernels).map(|(step, kernel)| CompiledStep { step, kernel }).collect();

        let mut halos = vec![[0; 2]; graph.nodes().len()];
        let mut packs_input = false;
        for CompiledStep { step, kernel } in &steps {
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
        Ok(Program { graph, steps, batched_from, halos, packs_input, isa: options.isa })
    }

    pub(super) fn weight_bytes(&self) -> usize {
        self.steps.iter().map(|s| s.kernel.bytes()).sum()
    }

    pub(super) fn steps(&self, height: usize, width: usize) -> Result<Vec<StepInfo>> {
        let costs = self.graph.costs(height, width)?;
        let info = |CompiledStep { step, kernel }: &CompiledStep| {
            let main = match &step.kind {
                StepKind::Conv(fused) | StepKind::Elementwise(fused) => fused.first,
                StepKind::Single => step.node,
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

/// Maximum number of images per batched step: larger batches hardly reduce the memory traffic of weights.
pub(super) const MAX_IMAGES: usize = 16;

/// Returns the first step that runs on the whole batch: where a network changes from large activations with few weights to
/// small activations with many.
///
/// Earlier steps run on one image at a time, which keeps its activations in the cache but reads the weights for every
/// image. Later steps read each weight once, but write and read the activations of all images. The cost is taken as
/// proportional to the bytes moved.
fn batched_from(steps: &[FusedStep], costs: &[Cost]) -> usize {
    let activations = |step: &FusedStep| {
        let nodes = step.inputs.iter().chain([&step.node]);
        2 * nodes.map(|node| costs[node.index()].bytes).sum::<u64>()
    };
    let mut cost: u64 = steps.iter().map(activations).sum();
    let mut best = (cost, 0);
    for (i, step) in steps.iter().enumerate() {
        cost = cost - activations(step) + weight_bytes(step, costs);
        best = best.min((cost, i + 1));
    }
    best.1
}

/// Returns the bytes of the weights of a step.
fn weight_bytes(step: &FusedStep, costs: &[Cost]) -> u64 {
    match &step.kind {
        StepKind::Conv(Fused { first, .. }) => {
            let cost = &costs[first.index()];
            let pixels = cost.shape.iter().skip(1).map(|&d| d as u64).product::<u64>();
            4 * cost.macs / pixels.max(1)
        }
        _ => 4 * costs[step.node.index()].macs,
    }
}

/// The inputs of packing.
struct Packer<'a> {
    checkpoint: &'a Checkpoint,
    folded: &'a Folded,
    graph: &'a Graph,
    options: &'a EngineOptions,
    /// Costs at the image size that the kernels are chosen for.
    costs: Vec<Cost>,
}

impl Packer<'_> {
    fn kernel(&self, step: &FusedStep, images: usize, buffer: &mut Vec<f32>) -> Result<Kernel> {
        let node = self.graph.node(step.node);
        let pixels = self.costs[step.inputs[0].index()].shape.len() == 3;
        match (&step.kind, &node.op) {
            (StepKind::Conv(fused), _) => self.conv(fused, images, buffer),
            (StepKind::Single, Op::Linear(linear)) => {
                let name = format!("{}.weight", node.name);
                self.checkpoint.tensor(&name)?.read_f32(&name, buffer)?;
                let bias = self.checkpoint.values(&format!("{}.bias", node.name))?;
                let params = ConvWeights { weights: buffer, bias: Some(&bias) };
                let features = [linear.out_features, linear.in_features];
                Ok(Kernel::Linear(Box::new(PackedLinear::new(self.options.isa, features, params)?)))
            }
            (StepKind::Single, Op::MaxPool(pool)) => Ok(Kernel::MaxPool(pool_spec(pool))),
            (StepKind::Single, Op::GlobalAvgPool) => Ok(Kernel::GlobalAvgPool),
            (StepKind::Elementwise(fused), _) => self.elementwise(fused),
            (StepKind::Single, Op::AvgPool(pool)) => Ok(Kernel::AvgPool(avg_pool_spec(pool))),
            (StepKind::Single, Op::Concat) if pixels => Ok(Kernel::Concat),
            (StepKind::Single, Op::Relu) => Ok(Kernel::Dense(|v| if v < 0.0 { 0.0 } else { v })),
            (StepKind::Single, Op::Sigmoid) if !pixels => Ok(Kernel::Dense(|v| 1.0 / (1.0 + (-v).exp()))),
            (StepKind::Single, _) => {
                let vb = var_builder(self.checkpoint, None, DType::F32, &Device::Cpu);
                Ok(Kernel::Candle(Box::new(Layer::new(node, vb.pp(&node.name))?)))
            }
        }
    }

    fn conv(&self, fused: &Fused, images: usize, buffer: &mut Vec<f32>) -> Result<Kernel> {
        let node = self.graph.node(fused.first);
        let Op::Conv(conv) = &node.op else { return Err(Error::Missing(node.name.clone())) };
        let shape = conv_shape(conv);
        let plan = self.plan(fused.first, &shape, images);
        let epilogue = Epilogue {
            activation: if fused.relu { Activation::Relu } else { Activation::None },
            max_pool: fused.pool.as_ref().map(pool_spec),
        };
        let values = self.folded.conv(node, self.checkpoint, std::mem::take(buffer))?;
        let params = ConvWeights { weights: &values.weight, bias: conv.bias.then_some(&values.bias) };
        let packed = PackedConv::new(shape, plan, params, epilogue)?;
        *buffer = values.weight;
        let packed = if self.folded.standardizes(node) { packed.with_chunked_sums() } else { packed };
        Ok(Kernel::Conv(Box::new(packed)))
    }

    fn elementwise(&self, fused: &Fused) -> Result<Kernel> {
        let node = self.graph.node(fused.first);
        let tensor = |suffix: &str| self.checkpoint.values(&format!("{}.{suffix}", node.name));
        let coefficients = match node.op {
            Op::BatchNorm(norm) => {
                let (weight, bias, mean, var) =
                    (tensor("weight")?, tensor("bias")?, tensor("running_mean")?, tensor("running_var")?);
                let coefficient = |c: usize| {
                    let scale = f64::from(weight[c]) / (f64::from(var[c]) + norm.eps).sqrt();
                    (scale as f32, (f64::from(bias[c]) - f64::from(mean[c]) * scale) as f32)
                };
                let (scale, shift) = (0..node.channels).map(coefficient).unzip();
                Coefficients::PerChannel(ScaleShift { scale, shift })
            }
            Op::GroupNorm(norm) => {
                let affine = ScaleShift { scale: tensor("weight")?, shift: tensor("bias")? };
                Coefficients::Group { groups: norm.groups, eps: norm.eps, affine }
            }
            Op::Scale => Coefficients::Gate,
            Op::Multiply(m) => Coefficients::Factor(m.factor as f32),
            _ => Coefficients::Identity,
        };
        Ok(Kernel::Elementwise(Elementwise { coefficients, residual: fused.residual, relu: fused.relu }))
    }

    /// Returns the plan chosen by the kernels, except that only a convolution of the network's input may be planar.
    fn plan(&self, conv: NodeId, shape: &ConvShape, images: usize) -> Plan {
        let input = self.graph.node(conv).inputs[0];
        let size = &self.costs[input.index()].shape;
        let hint = InputHint { batch: images, input: [size[1], size[2]] };
        // BiT's networks amplify rounding errors about 40 times, most of all those of the stem.
        let precision = match self.folded.standardizes(self.graph.node(conv)) {
            true => Precision::Exact,
            false => self.options.precision,
        };
        let choose = |shape: &ConvShape| Plan::choose(shape, hint, self.options.isa, precision);
        let plan = choose(shape);
        if plan.algorithm == Algorithm::Planar && self.graph.node(input).op != Op::Input {
            return choose(&ConvShape { c_in: shape.c_in.max(LANES), ..*shape });
        }
        plan
    }
}
