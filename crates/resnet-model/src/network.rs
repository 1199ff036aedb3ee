//! A graph with candle tensors: differentiable, on any device.

use candle_core::{DType, Device, ModuleT, Tensor};
use candle_nn::VarBuilder;

use crate::fold::fold;
use crate::graph::{Graph, Node, NodeId};
use crate::{Arch, Checkpoint, Error, Result, ops};

mod batch_norm;
mod dropout;
mod layer;
mod steps;
mod tape;
mod var_builder;

use batch_norm::FusedOps;
pub use batch_norm::Statistics;
pub use dropout::DropConfig;
use dropout::DropPlan;
pub(crate) use layer::Layer;
use steps::{Step, steps};
pub use tape::{ProcessGroup, SingleProcess, Tape};
pub(crate) use var_builder::var_builder;

/// A network of candle tensors on any device, for training and evaluation.
///
/// The input is `[N, C, H, W]`, normalized according to the checkpoint's `Preprocess`; the output is logits `[N, K]`, or
/// pooled features `[N, C]` for an architecture without head. Parameters have the names of PyTorch.
///
/// | to compute | call |
/// |---|---|
/// | logits in evaluation mode | [`Network::forward`] |
/// | intermediate results in evaluation mode | [`Network::features`] |
/// | logits and all parameter gradients of a training step (the fast one) | [`Network::train_forward`] |
/// | logits as part of a candle graph, e.g. for gradients of the input | [`ModuleT::forward_t`] |
///
/// For inference on the CPU, [`Engine`](crate::engine::Engine) is faster.
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
    /// Number of reads of each result.
    reads: Vec<usize>,
    dtype: DType,
    device: Device,
    /// Buffers that the training steps reuse.
    buffers: tape::SharedBuffers,
}

impl Network {
    /// Builds a network with tensors from `vb`, by their names in PyTorch. If `vb` wraps a `VarMap`, missing tensors are
    /// initialized as in torchvision: convolutions Kaiming normal with fan-out, norm weights 1 and biases 0.
    pub fn new(arch: &Arch, vb: VarBuilder) -> Result<Network> {
        Network::from_graph(arch.graph()?, vb)
    }

    /// Builds the network of a checkpoint in `dtype` on `device`, with its batch norms.
    pub fn load(checkpoint: &Checkpoint, dtype: DType, device: &Device) -> Result<Network> {
        Network::from_graph(checkpoint.graph().clone(), var_builder(checkpoint, None, dtype, device))
    }

    /// Builds the network of a checkpoint for inference, with batch norms folded into the convolutions.
    pub fn load_folded(checkpoint: &Checkpoint, dtype: DType, device: &Device) -> Result<Network> {
        let folded = fold(checkpoint.graph());
        let graph = folded.graph().clone();
        Network::from_graph(graph, var_builder(checkpoint, Some(folded), dtype, device))
    }

    fn from_graph(graph: Graph, vb: VarBuilder) -> Result<Network> {
        let layers =
            graph.nodes().iter().map(|node| Layer::new(node, vb.pp(&node.name))).collect::<Result<_>>()?;
        let (steps, reads) = steps(&graph);
        Ok(Network {
            layers,
            steps,
            reads,
            dtype: vb.dtype(),
            device: vb.device().clone(),
            graph,
            buffers: Default::default(),
        })
    }

    /// Returns the operations.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// Returns the dtype of the tensors.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Returns the device of the tensors.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Returns the logits `[N, K]` of `x` `[N, C, H, W]` in evaluation mode.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.run_output(x, false, None)
    }

    /// Runs the network in training mode as a candle graph.
    fn candle_train_forward(&self, x: &Tensor, config: DropConfig) -> Result<Tensor> {
        self.run_output(x, true, config.plan(&self.graph)?.as_ref())
    }

    fn run_output(&self, x: &Tensor, train: bool, plan: Option<&DropPlan>) -> Result<Tensor> {
        let mut results = self.run(x, &[self.graph.output()], train, plan)?;
        results.pop().ok_or_else(|| Error::Missing("output".into()))
    }

    /// Sets the statistics that each batch norm uses in training mode.
    pub fn set_statistics(&mut self, choose: impl Fn(&Node) -> Statistics) {
        for (node, layer) in self.graph.nodes().iter().zip(&mut self.layers) {
            if let Layer::BatchNorm(norm) = layer {
                norm.statistics = choose(node);
            }
        }
    }

    /// Returns the results named `taps`, e.g. `layer1`, in the given order, in evaluation mode.
    pub fn features(&self, x: &Tensor, taps: &[&str]) -> Result<Vec<Tensor>> {
        self.run(x, &self.graph.tapped(taps)?, false, None)
    }

    /// Returns an error if the input is not `[N, C, H, W]` with the expected channels, or is too small.
    fn check(&self, x: &Tensor) -> Result<()> {
        let channels = self.graph.in_channels();
        match *x.dims() {
            [n, c, h, w] if n > 0 && c == channels => self.graph.costs(h, w).map(|_| ()),
            _ => Err(Error::Input { found: x.dims().to_vec(), expected: format!("[N, {channels}, H, W]") }),
        }
    }

    /// Runs the operations up to the last of `outputs`, and drops each result after its last use.
    fn run(
        &self,
        x: &Tensor,
        outputs: &[NodeId],
        train: bool,
        plan: Option<&DropPlan>,
    ) -> Result<Vec<Tensor>> {
        self.check(x)?;
        let Some(last) = outputs.iter().max() else { return Ok(vec![]) };
        let mut reads = self.reads.clone();
        let mut results: Vec<Option<Tensor>> = vec![None; self.graph.nodes().len()];
        for step in self.steps.iter().take_while(|step| step.node <= *last) {
            let inputs: Vec<Tensor> = step
                .inputs
                .iter()
                .map(|input| {
                    let index = input.index();
                    reads[index] -= 1;
                    let result =
                        if reads[index] == 0 { results[index].take() } else { results[index].clone() };
                    result.ok_or_else(|| Error::Missing(self.graph.node(*input).name.clone()))
                })
                .collect::<Result<_>>()?;
            results[step.node.index()] = Some(match inputs.as_slice() {
                [] => x.clone(),
                inputs => self.step(step, inputs, train, plan)?,
            });
        }
        let missing = |id: &NodeId| Error::Missing(self.graph.node(*id).name.clone());
        outputs.iter().map(|id| results[id.index()].clone().ok_or_else(|| missing(id))).collect()
    }

    fn step(&self, step: &Step, inputs: &[Tensor], train: bool, plan: Option<&DropPlan>) -> Result<Tensor> {
        if let Some(plan) = plan {
            if let Some(features) = plan.drop_features(&inputs[0], step.node)? {
                return self.step(step, &[features], train, None);
            }
            if let Some((add, branch)) = self.drop_path_branch(step, plan) {
                return self.step_with_drop_path(step, inputs, train, plan, add, branch);
            }
        }
        match step.norm.map(|norm| &self.layers[norm.index()]) {
            Some(Layer::BatchNorm(norm)) => {
                norm.forward(&inputs[0], train, FusedOps { residual: inputs.get(1), relu: true })
            }
            _ => self.layers[step.node.index()].apply(self.graph.node(step.node), inputs, train),
        }
    }

    /// Computes a step with a residual add `add` whose input number `branch` is dropped for some images.
    fn step_with_drop_path(
        &self,
        step: &Step,
        inputs: &[Tensor],
        train: bool,
        plan: &DropPlan,
        add: NodeId,
        branch: usize,
    ) -> Result<Tensor> {
        let mut terms = [inputs[0].clone(), inputs[1].clone()];
        if let Some(Layer::BatchNorm(norm)) = step.norm.map(|norm| &self.layers[norm.index()]) {
            terms[0] = norm.forward(&inputs[0], train, FusedOps::default())?;
        }
        terms[branch] = plan.drop_branch(&terms[branch], add)?;
        let y = (&terms[0] + &terms[1])?;
        Ok(if step.norm.is_some() { ops::relu(&y)? } else { y })
    }

    /// Returns the residual add of `step` if its branch may be dropped, and the branch's position among the inputs of the
    /// step. If a norm is part of the step, its result is the first input of the add.
    fn drop_path_branch(&self, step: &Step, plan: &DropPlan) -> Option<(NodeId, usize)> {
        // A step with a norm ends with the ReLU after the residual add.
        let (add, branch) = match step.norm {
            Some(norm) => {
                let add = self.graph.node(step.node).inputs[0];
                (add, usize::from(self.graph.node(add).inputs[0] != norm))
            }
            None => (step.node, 0),
        };
        (plan.branch(add) > 0.0).then_some((add, branch))
    }
}

/// Converts an error for a candle trait.
fn into_candle(error: Error) -> candle_core::Error {
    match error {
        Error::Candle(error) => error,
        other => candle_core::Error::wrap(other),
    }
}

/// Builds an ordinary candle graph. With `train`, batch norms follow [`Network::set_statistics`]; by default they use the
/// statistics of the batch and update the running ones.
impl ModuleT for Network {
    fn forward_t(&self, x: &Tensor, train: bool) -> candle_core::Result<Tensor> {
        self.run_output(x, train, None).map_err(into_candle)
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
    fn folding_keeps_the_logits() {
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
    fn features_have_the_expected_shapes() {
        let checkpoint = synthetic::checkpoint(&zoo::arch("resnet18").unwrap()).unwrap();
        let network = Network::load_folded(&checkpoint, DType::F32, &Device::Cpu).unwrap();
        let taps = network.features(&input(1, 3, 64), &["layer4", "stem", "pooled", "layer4"]).unwrap();
        let shapes: Vec<_> = taps.iter().map(|t| t.dims().to_vec()).collect();
        assert_eq!(shapes, [vec![1, 512, 2, 2], vec![1, 64, 16, 16], vec![1, 512], vec![1, 512, 2, 2]]);
        let error = network.features(&input(1, 3, 64), &["layer5"]).unwrap_err().to_string();
        assert!(error.contains("unknown tap `layer5`; this network has stem, layer1"), "{error}");
    }

    #[test]
    fn wrong_inputs_are_rejected_with_both_shapes() {
        let checkpoint = synthetic::checkpoint(&zoo::arch("resnet20_cifar").unwrap()).unwrap();
        let network = Network::load(&checkpoint, DType::F32, &Device::Cpu).unwrap();
        let error = network.forward(&input(1, 1, 32)).unwrap_err().to_string();
        assert!(error.contains("input has shape [1, 1, 32, 32], expected [N, 3, H, W]"), "{error}");
    }
}
