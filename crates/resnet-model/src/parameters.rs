//! Trainable variables of a network: initialization, transfer from a checkpoint, freezing.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{DType, Device, Shape, Tensor, Var};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};

use crate::graph::{Graph, Node, NodeId, Op};
use crate::network::Statistics;
use crate::param_specs::{ParamSpec, Role};
use crate::{Arch, Checkpoint, Error, Meta, Network, RawTensor, Result, random};

/// The part of a network that is trained; the rest keeps its parameters and running statistics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trainable {
    /// The fully connected layer that computes the logits.
    Head,
    /// Everything from this tap on: `From("layer3")` trains `layer3`, `layer4` and the head.
    From(String),
    /// Everything.
    All,
}

impl Trainable {
    /// Returns for each node of `graph` whether it is trained, or an error if there is no head or no such tap.
    fn nodes(&self, graph: &Graph) -> Result<Vec<bool>> {
        let first = match self {
            Trainable::All => 0,
            Trainable::Head => {
                let is_linear = |id: &NodeId| matches!(graph.node(*id).op, Op::Linear(_));
                let head = graph.ids().filter(is_linear).last();
                head.ok_or_else(|| Error::NoHead)?.index()
            }
            Trainable::From(tap) => {
                let node = graph.tap(tap)?.node;
                let before = graph.taps().iter().map(|tap| tap.node).filter(|other| *other < node).max();
                before.map_or(0, |before| before.index() + 1)
            }
        };
        Ok((0..graph.nodes().len()).map(|index| index >= first).collect())
    }
}

/// The initialization of a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Initialization {
    /// Seed of the random numbers, which depend on the seed and the tensors' names only.
    pub seed: u64,
    /// Initializes the scale of the last norm in each residual branch to 0, so that a block starts as its shortcut
    /// (torchvision's `zero_init_residual`).
    pub zero_last_norms: bool,
}

/// The differences between a network and the checkpoint that its parameters were transferred from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TransferReport {
    /// Tensors that are missing in the checkpoint or have another shape there, and are initialized.
    pub initialized: Vec<String>,
    /// Tensors of the checkpoint that are not used.
    pub unused: Vec<String>,
}

/// The parameters and running statistics of a network as variables, by their PyTorch names.
///
/// Like candle's `VarMap`, but bound to an architecture, in a fixed order, and able to freeze a part of the network.
#[derive(Debug, Clone)]
pub struct Parameters {
    arch: Arch,
    graph: Graph,
    params: Vec<ParamSpec>,
    vars: BTreeMap<String, Var>,
    device: Device,
}

impl Parameters {
    /// Initializes parameters like torchvision: Kaiming normal (fan-out) convolutions, norms with scale 1 and shift 0, and a
    /// head uniform in ±1/√C.
    ///
    /// # Errors
    ///
    /// An error if `arch` is invalid, or a candle error.
    pub fn new(arch: &Arch, initialization: Initialization, device: &Device) -> Result<Parameters> {
        let graph = arch.graph()?;
        let zero: BTreeSet<String> = match initialization.zero_last_norms {
            true => last_norms(&graph).map(|node| format!("{}.weight", node.name)).collect(),
            false => BTreeSet::new(),
        };
        let params = graph.param_specs();
        let vars = params
            .iter()
            .map(|param| {
                let tensor = match (param.role, zero.contains(&param.name)) {
                    (Role::BatchesTracked, _) => Tensor::zeros((), DType::I64, device)?,
                    (_, true) => Tensor::zeros(param.shape.as_slice(), DType::F32, device)?,
                    _ => {
                        Tensor::from_vec(initial(param, initialization.seed), param.shape.as_slice(), device)?
                    }
                };
                Ok((param.name.clone(), Var::from_tensor(&tensor)?))
            })
            .collect::<Result<_>>()?;
        Ok(Parameters { arch: arch.clone(), graph, params, vars, device: device.clone() })
    }

    /// Copies the parameters of a checkpoint, in f32.
    ///
    /// # Errors
    ///
    /// An error if the tensors cannot be read, or a candle error.
    pub fn from_checkpoint(checkpoint: &Checkpoint, device: &Device) -> Result<Parameters> {
        let classes = checkpoint.meta().arch.classes().unwrap_or(0);
        Ok(Parameters::transfer(checkpoint, classes, Initialization::default(), device)?.0)
    }

    /// Copies the parameters of a checkpoint, in f32, for another number of classes; 0 removes the head. Tensors of other
    /// shapes are initialized.
    ///
    /// # Errors
    ///
    /// As [`Parameters::from_checkpoint`].
    pub fn transfer(
        checkpoint: &Checkpoint,
        classes: usize,
        initialization: Initialization,
        device: &Device,
    ) -> Result<(Parameters, TransferReport)> {
        let arch = checkpoint.meta().arch.clone().with_classes(classes);
        let parameters = Parameters::new(&arch, initialization, device)?;
        let mut report = TransferReport::default();
        for param in &parameters.params {
            match checkpoint.tensors().get(&param.name) {
                Some(tensor) if tensor.shape() == param.shape => parameters.set(&param.name, tensor)?,
                None if param.role.is_optional() => {}
                _ => report.initialized.push(param.name.clone()),
            }
        }
        let unused = |name: &&String| {
            let known = parameters.vars.contains_key(*name);
            !known || report.initialized.contains(*name)
        };
        report.unused = checkpoint.tensors().keys().filter(unused).cloned().collect();
        Ok((parameters, report))
    }

    /// Sets the value of a parameter.
    ///
    /// # Errors
    ///
    /// [`Error::Missing`] for an unknown name, [`Error::Shape`] for an unexpected shape.
    pub fn set(&self, name: &str, tensor: &RawTensor) -> Result<()> {
        let var = self.var(name)?;
        if tensor.shape() != var.dims() {
            return Err(Error::Shape {
                name: name.to_owned(),
                found: tensor.shape().to_vec(),
                expected: var.dims().to_vec(),
            });
        }
        let value = match (var.dtype(), tensor.scalar()) {
            (DType::I64, Some(value)) => Tensor::new(value, &self.device)?,
            (dtype, _) => tensor.to_candle(name, dtype, &self.device)?,
        };
        Ok(var.set(&value)?)
    }

    /// Returns the architecture.
    pub fn arch(&self) -> &Arch {
        &self.arch
    }

    /// Returns the architecture's graph.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// Returns the device of the tensors.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Returns the specifications of all tensors in PyTorch's order, including running statistics.
    pub fn list(&self) -> &[ParamSpec] {
        &self.params
    }

    /// Returns the variable `name`.
    ///
    /// # Errors
    ///
    /// [`Error::Missing`].
    pub fn var(&self, name: &str) -> Result<&Var> {
        self.vars.get(name).ok_or_else(|| Error::Missing(name.to_owned()))
    }

    /// Returns the trained parameters in PyTorch's order, without running statistics.
    ///
    /// # Errors
    ///
    /// An error if the network has no head or no such tap.
    pub fn trained(&self, trained: &Trainable) -> Result<Vec<(&ParamSpec, &Var)>> {
        let modules = self.modules(trained)?;
        let is_trained =
            |param: &&ParamSpec| param.role.is_trainable() && modules.contains(module(&param.name));
        self.params.iter().filter(is_trained).map(|param| Ok((param, self.var(&param.name)?))).collect()
    }

    /// Creates a network over these variables: changing a variable changes the network. Only trained parameters have
    /// gradients; frozen batch norms use their running statistics, the others `statistics`.
    ///
    /// # Errors
    ///
    /// As [`Parameters::trained`].
    pub fn network(&self, trained: &Trainable, statistics: Statistics) -> Result<Network> {
        let modules = self.modules(trained)?;
        let frozen: BTreeSet<String> = self
            .params
            .iter()
            .filter(|param| param.role.is_trainable() && !modules.contains(module(&param.name)))
            .map(|param| param.name.clone())
            .collect();
        let backend = Backend { vars: self.vars.clone(), frozen };
        let vb = VarBuilder::from_backend(Box::new(backend), DType::F32, self.device.clone());
        let mut network = Network::new(&self.arch, vb)?;
        network.set_statistics(|node| match modules.contains(&node.name) {
            true => statistics,
            false => Statistics::Running,
        });
        Ok(network)
    }

    /// Returns a deep copy.
    ///
    /// # Errors
    ///
    /// A candle error.
    pub fn copy(&self) -> Result<Parameters> {
        let copy = |(name, var): (&String, &Var)| {
            Ok((name.clone(), Var::from_tensor(&var.as_detached_tensor().copy()?)?))
        };
        let vars = self.vars.iter().map(copy).collect::<Result<_>>()?;
        Ok(Parameters { vars, ..self.clone() })
    }

    /// Returns a checkpoint of the current values.
    ///
    /// # Errors
    ///
    /// [`Error::Mismatch`] if `meta` is for another architecture.
    pub fn checkpoint(&self, meta: Meta) -> Result<Checkpoint> {
        let raw = |(name, var): (&String, &Var)| {
            let tensor = var.as_detached_tensor().to_device(&Device::Cpu)?;
            Ok((name.clone(), RawTensor::from_candle(&tensor)?))
        };
        Checkpoint::new(meta, self.vars.iter().map(raw).collect::<Result<_>>()?)
    }

    /// Returns the names of the trained modules.
    fn modules(&self, trained: &Trainable) -> Result<BTreeSet<String>> {
        let nodes = trained.nodes(&self.graph)?;
        let names = self.graph.nodes().iter().zip(nodes).filter(|(_, trained)| *trained);
        Ok(names.map(|(node, _)| node.name.clone()).collect())
    }
}

/// Returns the module of a parameter.
fn module(name: &str) -> &str {
    name.rsplit_once('.').map_or(name, |(module, _)| module)
}

/// Returns the norms whose outputs are added to a shortcut. The branch is the first input; attention may follow the norm.
fn last_norms(graph: &Graph) -> impl Iterator<Item = &Node> {
    graph.nodes().iter().filter(|node| node.op == Op::Add).filter_map(|node| {
        let mut before = graph.node(*node.inputs.first()?);
        while before.op == Op::Scale {
            before = graph.node(*before.inputs.first()?);
        }
        matches!(before.op, Op::BatchNorm(_)).then_some(before)
    })
}

/// Returns the initial values of a parameter.
fn initial(param: &ParamSpec, seed: u64) -> Vec<f32> {
    let elements: usize = param.shape.iter().product();
    let random = random::sequence(&format!("{seed}/{}", param.name));
    let receptive: usize = param.shape.iter().skip(2).product();
    match param.role {
        Role::NormScale | Role::RunningVar => vec![1.0; elements],
        Role::NormShift | Role::RunningMean | Role::BatchesTracked | Role::ConvBias => vec![0.0; elements],
        // A convolution over channels, `[1, 1, kernel]`: PyTorch's default, uniform in ±1/√kernel.
        Role::ConvWeight if param.shape.len() == 3 => {
            let bound = 1.0 / (receptive as f64).sqrt();
            (0..elements).map(|i| ((2.0 * random(i) - 1.0) * bound) as f32).collect()
        }
        Role::ConvWeight => {
            let std = (2.0 / (param.shape[0] * receptive) as f64).sqrt();
            // Box–Muller; the uniform numbers are multiples of 2⁻²⁴, shifted to exclude 0.
            let normal = |i: usize| {
                let (a, b) = (random(2 * i) + f64::powi(2.0, -25), random(2 * i + 1));
                (-2.0 * a.ln()).sqrt() * (std::f64::consts::TAU * b).cos()
            };
            (0..elements).map(|i| (normal(i) * std) as f32).collect()
        }
        Role::LinearWeight | Role::LinearBias | Role::Position => {
            // The number of inputs is not in the shape of a bias, so it is 0, where PyTorch has uniform in ±1/√C.
            let bound = match param.shape.get(1) {
                Some(&features) => 1.0 / (features as f64).sqrt(),
                None => 0.0,
            };
            (0..elements).map(|i| ((2.0 * random(i) - 1.0) * bound) as f32).collect()
        }
    }
}

/// A `VarBuilder` backend over variables; frozen ones are detached.
struct Backend {
    vars: BTreeMap<String, Var>,
    frozen: BTreeSet<String>,
}

impl SimpleBackend for Backend {
    fn get(&self, s: Shape, name: &str, _: Init, dtype: DType, dev: &Device) -> candle_core::Result<Tensor> {
        let tensor = self.get_unchecked(name, dtype, dev)?;
        match tensor.shape() == &s {
            true => Ok(tensor),
            false => candle_core::bail!("tensor `{name}` has shape {:?}, expected {s:?}", tensor.dims()),
        }
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> candle_core::Result<Tensor> {
        match self.vars.get(name) {
            Some(var) if self.frozen.contains(name) => Ok(var.as_detached_tensor()),
            Some(var) => Ok(var.as_tensor().clone()),
            None => candle_core::bail!("missing tensor `{name}`"),
        }
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.vars.contains_key(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{synthetic, zoo};
    use candle_core::ModuleT;

    fn small() -> Arch {
        zoo::arch("resnet20_cifar").unwrap()
    }

    fn seeded(seed: u64) -> Initialization {
        Initialization { seed, ..Initialization::default() }
    }

    #[test]
    fn only_trained_parameters_have_gradients() {
        let parameters = Parameters::new(&small(), seeded(1), &Device::Cpu).unwrap();
        let x = Tensor::from_vec(synthetic::input(2 * 3 * 16 * 16), (2, 3, 16, 16), &Device::Cpu).unwrap();
        let check = |trained: Trainable, count: usize, first: &str| {
            let before = parameters.copy().unwrap();
            let network = before.network(&trained, Statistics::default()).unwrap();
            let loss = network.forward_t(&x, true).unwrap().sqr().unwrap().sum_all().unwrap();
            let gradients = loss.backward().unwrap();
            let with: Vec<&str> = before
                .list()
                .iter()
                .filter(|p| gradients.get(before.var(&p.name).unwrap()).is_some())
                .map(|p| p.name.as_str())
                .collect();
            let listed: Vec<&str> =
                before.trained(&trained).unwrap().iter().map(|(p, _)| p.name.as_str()).collect();
            assert_eq!(with, listed, "{trained:?}");
            assert_eq!((with.len(), with[0]), (count, first), "{trained:?}");
            // Frozen norms keep their statistics.
            for param in before.list().iter().filter(|p| p.role == Role::RunningMean) {
                let value = before.var(&param.name).unwrap().to_vec1::<f32>().unwrap();
                let moved = value.iter().any(|v| *v != 0.0);
                assert_eq!(
                    moved,
                    with.contains(&format!("{}.weight", module(&param.name)).as_str()),
                    "{}",
                    param.name
                );
            }
        };
        check(Trainable::All, 59, "conv1.weight");
        check(Trainable::From("layer3".into()), 20, "layer3.0.conv1.weight");
        check(Trainable::Head, 2, "fc.weight");
        let error = parameters.network(&Trainable::From("layer9".into()), Statistics::Running).unwrap_err();
        assert!(error.to_string().contains("unknown tap `layer9`"), "{error}");
    }

    #[test]
    fn transfer_keeps_all_but_a_new_head() {
        let checkpoint = synthetic::checkpoint(&small()).unwrap();
        let (parameters, report) = Parameters::transfer(&checkpoint, 3, seeded(1), &Device::Cpu).unwrap();
        let names = ["fc.weight".to_owned(), "fc.bias".to_owned()];
        assert_eq!(report.initialized, names);
        assert_eq!(report.unused, ["fc.bias", "fc.weight"]);
        let meta = Meta::new(small().with_classes(3), checkpoint.meta().preprocess.clone());
        let back = parameters.checkpoint(meta).unwrap();
        for name in checkpoint.tensors().keys().filter(|name| !names.contains(name)) {
            assert_eq!(back.values(name).unwrap(), checkpoint.values(name).unwrap(), "{name}");
        }
        let same = Parameters::from_checkpoint(&checkpoint, &Device::Cpu).unwrap();
        assert!(same.checkpoint(checkpoint.meta().clone()).is_ok());
    }

    #[test]
    fn initialization_matches_torchvision() {
        let values = |initialization: Initialization, name: &str| -> Vec<f32> {
            let parameters =
                Parameters::new(&zoo::arch("resnet18").unwrap(), initialization, &Device::Cpu).unwrap();
            parameters.var(name).unwrap().flatten_all().unwrap().to_vec1().unwrap()
        };
        let conv = values(seeded(1), "layer2.0.conv1.weight");
        let mean = conv.iter().sum::<f32>() / conv.len() as f32;
        let std = (conv.iter().map(|v| v * v).sum::<f32>() / conv.len() as f32).sqrt();
        let expected = (2.0f32 / (128.0 * 9.0)).sqrt();
        assert!(mean.abs() < 0.01 * expected && (std / expected - 1.0).abs() < 0.01, "{mean} {std}");
        assert_ne!(values(seeded(2), "layer2.0.conv1.weight"), conv);
        let zero = Initialization { zero_last_norms: true, ..seeded(1) };
        for (name, expected) in [
            ("layer2.0.bn2.weight", 0.0),
            ("layer2.0.bn1.weight", 1.0),
            ("layer2.0.downsample.1.weight", 1.0),
        ] {
            assert!(values(zero, name).iter().all(|v| *v == expected), "{name}");
        }
    }
}
