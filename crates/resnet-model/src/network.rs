//! A graph with candle tensors: differentiable, on any device.

use crate::fold::fold;
use crate::graph::{Graph, Node, NodeId, Op, StdConv};
use crate::{Arch, Checkpoint, Error, Result, ops};
use candle_core::{DType, Device, Module, ModuleT, Tensor};
use candle_nn::{GroupNorm, Init, VarBuilder};

mod dropping;
mod norm;
mod source;
mod steps;
mod tape;

pub use dropping::DropConfig;
use dropping::Plan;
pub use norm::Statistics;
use norm::{After, Norm};
pub(crate) use source::var_builder;
use steps::{Step, steps};
pub use tape::{ProcessGroup, SingleProcess, Tape};

/// A network of candle tensors, for any device, for training and for evaluation.
///
/// The input is `[N, C, H, W]`, normalised as the checkpoint's `Preprocess` says; the result is `[N, K]` logits, or
/// `[N, C]` pooled features for an architecture without head. Parameters have PyTorch's names.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use candle_nn::{VarBuilder, VarMap};
/// use resnet_model::{Network, zoo};
///
/// let weights = VarMap::new();
/// let vb = VarBuilder::from_varmap(&weights, DType::F32, &Device::Cpu);
/// let network = Network::new(&zoo::arch("resnet20_cifar")?, vb)?;
/// let logits = network.forward(&Tensor::zeros((2, 3, 32, 32), DType::F32, &Device::Cpu)?)?;
/// assert_eq!(logits.dims(), [2, 10]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct Network {
    graph: Graph,
    layers: Vec<Layer>,
    steps: Vec<Step>,
    /// How often each result is taken.
    uses: Vec<usize>,
    dtype: DType,
    device: Device,
    /// What training steps compute in.
    memory: tape::Shared,
}

/// The tensors of one operation.
#[derive(Debug, Clone)]
pub(crate) enum Layer {
    Without,
    Conv {
        weight: Tensor,
        bias: Option<Tensor>,
    },
    BatchNorm(Norm),
    GroupNorm {
        norm: GroupNorm,
        weight: Tensor,
        bias: Tensor,
    },
    /// A norm that activates: with EvoNorm's `v` or filter response normalisation's `tau`.
    Activated {
        weight: Tensor,
        bias: Tensor,
        third: Tensor,
    },
    Linear {
        weight: Tensor,
        bias: Tensor,
    },
    ChannelConv(Tensor),
    AttentionPool(Box<ops::AttentionWeights>),
}

impl Network {
    /// A network whose tensors are taken from `vb` by PyTorch's names. With a `VarMap` behind it, missing tensors are
    /// initialised as torchvision does: convolutions Kaiming normal by fan-out, norms one and zero.
    pub fn new(arch: &Arch, vb: VarBuilder) -> Result<Network> {
        Network::of(arch.graph()?, vb)
    }

    /// The network of a checkpoint with its batch norms, in `dtype` on `device`.
    pub fn load(checkpoint: &Checkpoint, dtype: DType, device: &Device) -> Result<Network> {
        Network::of(checkpoint.graph().clone(), var_builder(checkpoint, None, dtype, device))
    }

    /// The network of a checkpoint for inference: batch norms folded into the convolutions.
    pub fn load_folded(checkpoint: &Checkpoint, dtype: DType, device: &Device) -> Result<Network> {
        let folded = fold(checkpoint.graph());
        let graph = folded.graph().clone();
        Network::of(graph, var_builder(checkpoint, Some(folded), dtype, device))
    }

    fn of(graph: Graph, vb: VarBuilder) -> Result<Network> {
        let layers =
            graph.nodes().iter().map(|node| layer(node, vb.pp(&node.name))).collect::<Result<_>>()?;
        let (steps, uses) = steps(&graph);
        Ok(Network {
            layers,
            steps,
            uses,
            dtype: vb.dtype(),
            device: vb.device().clone(),
            graph,
            memory: Default::default(),
        })
    }

    /// The operations.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// The element type of the tensors.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The device of the tensors.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The logits `[N, K]` of `x` `[N, C, H, W]`, in evaluation mode; training is [`ModuleT::forward_t`].
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut results = self.run(x, &[self.graph.output()], false)?;
        results.pop().ok_or_else(|| Error::Missing("output".into()))
    }

    /// The logits in training mode: batch norms as [`Network::set_statistics`] says, by default with the batch's
    /// statistics, updating the running ones. Error: a batch norm is given one value per channel.
    pub fn forward_train(&self, x: &Tensor) -> Result<Tensor> {
        let mut results = self.run(x, &[self.graph.output()], true)?;
        results.pop().ok_or_else(|| Error::Missing("output".into()))
    }

    /// As [`Network::forward_train`], with parts of the network left out at random. Errors also: probabilities that are
    /// none, a network without what is to be left out.
    pub fn forward_dropping(&self, x: &Tensor, dropping: DropConfig) -> Result<Tensor> {
        let plan = dropping.plan(&self.graph)?;
        let mut results = self.pass(x, &[self.graph.output()], true, plan.as_ref())?;
        results.pop().ok_or_else(|| Error::Missing("output".into()))
    }

    /// Which statistics each batch norm uses in training mode.
    pub fn set_statistics(&mut self, choose: impl Fn(&Node) -> Statistics) {
        for (node, layer) in self.graph.nodes().iter().zip(&mut self.layers) {
            if let Layer::BatchNorm(norm) = layer {
                norm.statistics = choose(node);
            }
        }
    }

    /// This network in evaluation mode, for what takes a candle [`Module`].
    pub fn eval(&self) -> Eval<'_> {
        Eval(self)
    }

    /// The results named `taps`, e.g. `layer1`, in the order asked for; evaluation mode.
    pub fn features(&self, x: &Tensor, taps: &[&str]) -> Result<Vec<Tensor>> {
        self.run(x, &self.graph.tapped(taps)?, false)
    }

    /// Refuses inputs that are not `[N, C, H, W]` of the right channels, or too small.
    fn check(&self, x: &Tensor) -> Result<()> {
        let channels = self.graph.in_channels();
        match *x.dims() {
            [n, c, h, w] if n > 0 && c == channels => self.graph.costs(h, w).map(|_| ()),
            _ => Err(Error::Input { found: x.dims().to_vec(), expected: format!("[N, {channels}, H, W]") }),
        }
    }

    fn run(&self, x: &Tensor, wanted: &[NodeId], train: bool) -> Result<Vec<Tensor>> {
        self.pass(x, wanted, train, None)
    }

    /// Runs the operations up to the last of `wanted`; results are forgotten after their last use.
    fn pass(&self, x: &Tensor, wanted: &[NodeId], train: bool, plan: Option<&Plan>) -> Result<Vec<Tensor>> {
        self.check(x)?;
        let Some(last) = wanted.iter().max() else { return Ok(vec![]) };
        let mut uses = self.uses.clone();
        let mut results: Vec<Option<Tensor>> = vec![None; self.graph.nodes().len()];
        for step in self.steps.iter().take_while(|step| step.node <= *last) {
            let inputs: Vec<Tensor> = step
                .inputs
                .iter()
                .map(|input| {
                    let index = input.index();
                    uses[index] -= 1;
                    let result =
                        if uses[index] == 0 { results[index].take() } else { results[index].clone() };
                    result.ok_or_else(|| Error::Missing(self.graph.node(*input).name.clone()))
                })
                .collect::<Result<_>>()?;
            results[step.node.index()] = Some(match inputs.as_slice() {
                [] => x.clone(),
                inputs => match plan {
                    Some(plan) => self.step_dropping(step, inputs, train, plan)?,
                    None => self.step(step, inputs, train)?,
                },
            });
        }
        let missing = |id: &NodeId| Error::Missing(self.graph.node(*id).name.clone());
        wanted.iter().map(|id| results[id.index()].clone().ok_or_else(|| missing(id))).collect()
    }

    fn step(&self, step: &Step, inputs: &[Tensor], train: bool) -> Result<Tensor> {
        match step.norm.map(|norm| &self.layers[norm.index()]) {
            Some(Layer::BatchNorm(norm)) => {
                norm.forward(&inputs[0], train, After { residual: inputs.get(1), relu: true })
            }
            _ => apply(self.graph.node(step.node), &self.layers[step.node.index()], inputs, train),
        }
    }
}

impl Network {
    /// A step of which parts may be left out: a sum of which the branch is, or the last layer.
    fn step_dropping(&self, step: &Step, inputs: &[Tensor], train: bool, plan: &Plan) -> Result<Tensor> {
        if let Some(features) = plan.drop_features(&inputs[0], step.node)? {
            return self.step(step, &[features], train);
        }
        let Some((sum, branch)) = self.branch(step, plan) else {
            return self.step(step, inputs, train);
        };
        let mut terms = [inputs[0].clone(), inputs[1].clone()];
        if let Some(Layer::BatchNorm(norm)) = step.norm.map(|norm| &self.layers[norm.index()]) {
            terms[0] = norm.forward(&inputs[0], train, After { residual: None, relu: false })?;
        }
        terms[branch] = plan.drop_branch(&terms[branch], sum)?;
        let y = (&terms[0] + &terms[1])?;
        Ok(if step.norm.is_some() { ops::relu(&y)? } else { y })
    }

    /// The sum in `step` of which a branch may be left out, and which term that is: the first is the norm's result, if a
    /// norm is part of the step.
    fn branch(&self, step: &Step, plan: &Plan) -> Option<(NodeId, usize)> {
        // With a norm, the step ends with the rectifier behind the sum.
        let (sum, branch) = match step.norm {
            Some(norm) => {
                let sum = self.graph.node(step.node).inputs[0];
                (sum, usize::from(self.graph.node(sum).inputs[0] != norm))
            }
            None => (step.node, 0),
        };
        (plan.branch(sum) > 0.0).then_some((sum, branch))
    }
}

pub(crate) fn layer(node: &Node, vb: VarBuilder) -> Result<Layer> {
    Ok(match node.op {
        Op::Conv(conv) | Op::StdConv(StdConv { conv, .. }) => {
            let [out, _, kh, kw] = conv.weight_shape();
            let stdev = (2.0 / (out * kh * kw) as f64).sqrt();
            let weight =
                vb.get_with_hints(&conv.weight_shape(), "weight", Init::Randn { mean: 0.0, stdev })?;
            let bias = match conv.bias {
                true => Some(vb.get_with_hints(out, "bias", Init::Const(0.0))?),
                false => None,
            };
            Layer::Conv { weight, bias }
        }
        Op::BatchNorm(norm) => Layer::BatchNorm(Norm::new(&node.name, node.channels, norm.eps, vb)?),
        Op::GroupNorm(norm) => {
            let tensor = |name, value| vb.get_with_hints(node.channels, name, Init::Const(value));
            let (weight, bias) = (tensor("weight", 1.0)?, tensor("bias", 0.0)?);
            let norm = GroupNorm::new(weight.clone(), bias.clone(), node.channels, norm.groups, norm.eps)?;
            Layer::GroupNorm { norm, weight, bias }
        }
        Op::EvoNorm(_) | Op::FilterResponseNorm(_) => {
            let tensor = |name, value| vb.get_with_hints(node.channels, name, Init::Const(value));
            let (weight, bias) = (tensor("weight", 1.0)?, tensor("bias", 0.0)?);
            let third = match node.op {
                Op::EvoNorm(_) => tensor("v", 1.0)?,
                _ => tensor("tau", 0.0)?,
            };
            Layer::Activated { weight, bias, third }
        }
        Op::Linear(linear) => {
            // PyTorch's default: uniform in ±1/√C, weight and bias.
            let bound = 1.0 / (linear.in_features as f64).sqrt();
            let init = Init::Uniform { lo: -bound, up: bound };
            let weight = vb.get_with_hints(linear.weight_shape(), "weight", init)?;
            Layer::Linear { weight, bias: vb.get_with_hints(linear.out_features, "bias", init)? }
        }
        Op::ChannelConv(conv) => {
            let bound = 1.0 / (conv.kernel as f64).sqrt();
            let init = Init::Uniform { lo: -bound, up: bound };
            Layer::ChannelConv(vb.get_with_hints((1, 1, conv.kernel), "weight", init)?)
        }
        Op::AttentionPool(pool) => {
            let c = node.channels;
            let stdev = 1.0 / (c as f64).sqrt();
            let projection = |part: &str| -> Result<ops::Projection> {
                let (vb, init) = (vb.pp(part), Init::Uniform { lo: -stdev, up: stdev });
                let weight = vb.get_with_hints((c, c), "weight", init)?;
                Ok(ops::Projection { weight, bias: vb.get_with_hints(c, "bias", init)? })
            };
            Layer::AttentionPool(Box::new(ops::AttentionWeights {
                position: vb.get_with_hints(
                    &pool.position_shape(c),
                    "pos_embed",
                    Init::Randn { mean: 0.0, stdev },
                )?,
                query: projection("q")?,
                key: projection("k")?,
                value: projection("v")?,
            }))
        }
        _ => Layer::Without,
    })
}

pub(crate) fn apply(node: &Node, layer: &Layer, inputs: &[Tensor], train: bool) -> Result<Tensor> {
    let x = &inputs[0];
    let y = match (&node.op, layer) {
        (Op::Conv(conv), Layer::Conv { weight, bias }) => ops::conv(x, weight, bias.as_ref(), conv)?,
        (Op::StdConv(std), Layer::Conv { weight, bias }) => ops::std_conv(x, weight, bias.as_ref(), std)?,
        (Op::BatchNorm(_), Layer::BatchNorm(norm)) => {
            norm.forward(x, train, After { residual: None, relu: false })?
        }
        (Op::GroupNorm(_), Layer::GroupNorm { norm, .. }) => norm.forward(x)?,
        (Op::EvoNorm(norm), Layer::Activated { weight, bias, third: v }) => {
            ops::evo_norm(x, norm, weight, bias, v)?
        }
        (Op::FilterResponseNorm(norm), Layer::Activated { weight, bias, third: tau }) => {
            ops::filter_response_norm(x, norm, weight, bias, tau)?
        }
        (Op::Linear(_), Layer::Linear { weight, bias }) => {
            x.matmul(&weight.flatten_from(1)?.t()?)?.broadcast_add(bias)?
        }
        (Op::ChannelConv(conv), Layer::ChannelConv(weight)) => ops::channel_conv(x, weight, conv)?,
        (Op::AttentionPool(pool), Layer::AttentionPool(weights)) => ops::attention_pool(x, weights, pool)?,
        (Op::Relu, _) => ops::relu(x)?,
        (Op::Sigmoid, _) => candle_nn::ops::sigmoid(x)?,
        (Op::MaxPool(pool), _) => ops::max_pool(x, pool)?,
        (Op::AvgPool(pool), _) => ops::avg_pool(x, pool)?,
        (Op::AdaptiveAvgPool(pool), _) => ops::adaptive_avg_pool(x, pool)?,
        (Op::Blur(blur), _) => ops::blur(x, blur)?,
        (Op::GlobalAvgPool, _) => x.flatten_from(2)?.mean(2)?,
        (Op::GlobalMaxPool, _) => x.flatten_from(2)?.max(2)?,
        (Op::Add, _) => (x + &inputs[1])?,
        (Op::Concat, _) => Tensor::cat(inputs, 1)?,
        (Op::Scale, _) => ops::scale(x, &inputs[1])?,
        (Op::Multiply(m), _) => (x * m.factor)?,
        (Op::Subsample(s), _) => ops::subsample(x, s)?,
        (Op::PadChannels(p), _) => ops::pad_channels(x, p)?,
        (Op::Pad(p), _) => ops::pad(x, p)?,
        (Op::Flatten(_), _) => x.flatten_from(1)?,
        (Op::Input, _) => x.clone(),
        (
            Op::Conv(_)
            | Op::StdConv(_)
            | Op::BatchNorm(_)
            | Op::GroupNorm(_)
            | Op::EvoNorm(_)
            | Op::FilterResponseNorm(_)
            | Op::Linear(_)
            | Op::ChannelConv(_)
            | Op::AttentionPool(_),
            _,
        ) => return Err(Error::Missing(node.name.clone())),
    };
    Ok(y)
}

/// candle's modules return candle's errors.
fn into_candle(error: Error) -> candle_core::Error {
    match error {
        Error::Candle(error) => error,
        other => candle_core::Error::wrap(other),
    }
}

/// A network in evaluation mode, as a candle [`Module`]; see [`Network::eval`].
///
/// Two types, since candle gives every `Module` a [`ModuleT`] that ignores whether it trains.
#[derive(Debug, Clone, Copy)]
pub struct Eval<'a>(&'a Network);

impl Module for Eval<'_> {
    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        self.0.forward_t(x, false)
    }
}

/// With `train`, batch norms use the batch's statistics and update the running ones.
impl ModuleT for Network {
    fn forward_t(&self, x: &Tensor, train: bool) -> candle_core::Result<Tensor> {
        let mut results = self.run(x, &[self.graph.output()], train).map_err(into_candle)?;
        results.pop().ok_or_else(|| candle_core::Error::Msg("the network has no operation".into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{synthetic, zoo};

    fn input(n: usize, c: usize, side: usize) -> Tensor {
        let values = synthetic::input(n * c * side * side);
        Tensor::from_vec(values, (n, c, side, side), &Device::Cpu).unwrap()
    }

    fn difference(a: &Tensor, b: &Tensor) -> f32 {
        let max = |t: &Tensor| t.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        max(&(a - b).unwrap()) / max(b)
    }

    #[test]
    fn folding_changes_nothing() {
        for (name, side) in
            [("resnet18", 64), ("resnext50_32x4d", 33), ("resnet20_cifar", 32), ("plain20_cifar", 28)]
        {
            let checkpoint = synthetic::checkpoint(&zoo::arch(name).unwrap()).unwrap();
            let x = input(2, 3, side);
            let whole = Network::load(&checkpoint, DType::F32, &Device::Cpu).unwrap().forward(&x).unwrap();
            let folded =
                Network::load_folded(&checkpoint, DType::F32, &Device::Cpu).unwrap().forward(&x).unwrap();
            assert!(difference(&folded, &whole) < 1e-5, "{name}: {}", difference(&folded, &whole));
        }
    }

    #[test]
    fn taps_have_their_shapes() {
        let checkpoint = synthetic::checkpoint(&zoo::arch("resnet18").unwrap()).unwrap();
        let network = Network::load_folded(&checkpoint, DType::F32, &Device::Cpu).unwrap();
        let taps = network.features(&input(1, 3, 64), &["layer4", "stem", "pooled", "layer4"]).unwrap();
        let shapes: Vec<_> = taps.iter().map(|t| t.dims().to_vec()).collect();
        assert_eq!(shapes, [vec![1, 512, 2, 2], vec![1, 64, 16, 16], vec![1, 512], vec![1, 512, 2, 2]]);
        let error = network.features(&input(1, 3, 64), &["layer5"]).unwrap_err().to_string();
        assert!(error.contains("unknown tap `layer5`; this network has stem, layer1"), "{error}");
    }

    #[test]
    fn wrong_inputs_are_refused_with_both_shapes() {
        let checkpoint = synthetic::checkpoint(&zoo::arch("resnet20_cifar").unwrap()).unwrap();
        let network = Network::load(&checkpoint, DType::F32, &Device::Cpu).unwrap();
        let error = network.forward(&input(1, 1, 32)).unwrap_err().to_string();
        assert!(error.contains("input has shape [1, 1, 32, 32], expected [N, 3, H, W]"), "{error}");
    }
}
