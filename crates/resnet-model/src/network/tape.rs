//! A training step without candle's graph: forward and backward over blocked tensors in memory that is used again.
//!
//! What candle would keep until the end is given back as soon as its gradient is known, gradients are added in place,
//! and each parameter's gradient leaves as soon as it is whole. Operations that have no kernel of their own here are
//! small candle graphs between the others.

use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Tensor, Var};
use resnet_kernels::{AlignedVec, Blocked, BufferPool, View};

use super::steps::Step;
use super::{DropConfig, Layer, Network, Statistics};
use crate::graph::NodeId;
use crate::{Error, Result, ops};

mod backward;
mod forward;

/// Memory that the steps of a network share.
pub(super) type Shared = Arc<Mutex<BufferPool>>;

/// The workers that train one network together, each on its own part of a batch. What each differentiates is its part of
/// a loss that is the sum of these parts.
pub trait ProcessGroup {
    /// How many there are.
    fn count(&self) -> usize {
        1
    }

    /// Replaces `values` by their sums over all workers, the same on each; called by all of them in the same order.
    /// Error: [`Error::ProcessGroup`] where others cannot be reached.
    fn sum(&self, values: &mut [f64]) -> Result<()>;
}

/// A process that trains by itself.
#[derive(Debug, Clone, Copy)]
pub struct SingleProcess;

impl ProcessGroup for SingleProcess {
    fn sum(&self, _: &mut [f64]) -> Result<()> {
        Ok(())
    }
}

/// What a forward pass left for the backward pass; made by [`Network::train_forward`].
pub struct Tape<'a> {
    network: &'a Network,
    workers: &'a dyn ProcessGroup,
    logits: Var,
    kind: Kind,
}

enum Kind {
    /// candle's own graph, whose end this is.
    Candle(Tensor),
    Tape(Vec<Saved>),
}

impl Network {
    /// [`Network::forward_train`] for a step of training: the logits `[N, K]`, as a variable that a loss is computed from,
    /// are [`Tape::logits`]. Batch norms take their statistics over all `workers`.
    ///
    /// On the CPU in `f32` this is faster and takes less memory than candle's graph, whose results it has up to rounding.
    /// Errors: those of [`Network::forward_dropping`].
    pub fn train_forward<'a>(
        &'a self,
        x: &Tensor,
        dropping: DropConfig,
        workers: &'a dyn ProcessGroup,
    ) -> Result<Tape<'a>> {
        if !ops::is_ours(x) || x.dtype() != DType::F32 || self.dtype != DType::F32 {
            if workers.count() > 1 {
                return Err(Error::Arch("batch norms are synchronised on the CPU in f32 only".into()));
            }
            let logits = self.forward_dropping(x, dropping)?;
            let kind = Kind::Candle(logits.clone());
            return Ok(Tape { network: self, workers, logits: Var::from_tensor(&logits.detach())?, kind });
        }
        self.check(x)?;
        let plan = dropping.plan(&self.graph)?;
        let (logits, saved) = forward::run(self, x, plan.as_ref(), workers)?;
        Ok(Tape { network: self, workers, logits: Var::from_tensor(&logits)?, kind: Kind::Tape(saved) })
    }

    /// Every tensor that has gradients.
    fn variables(&self) -> impl Iterator<Item = &Tensor> {
        self.layers.iter().flat_map(tensors).filter(|tensor| tensor.track_op())
    }
}

/// The parameters of an operation.
fn tensors(layer: &Layer) -> Vec<&Tensor> {
    match layer {
        Layer::Without => vec![],
        Layer::Conv { weight, bias } => [Some(weight), bias.as_ref()].into_iter().flatten().collect(),
        Layer::BatchNorm(norm) => vec![&norm.weight, &norm.bias],
        Layer::GroupNorm { weight, bias, .. } => vec![weight, bias],
        Layer::Activated { weight, bias, third } => vec![weight, bias, third],
        Layer::Linear { weight, bias } => vec![weight, bias],
        Layer::ChannelConv(weight) => vec![weight],
        Layer::AttentionPool(pool) => {
            let projections = [&pool.query, &pool.key, &pool.value];
            let each = projections.into_iter().flat_map(|projection| [&projection.weight, &projection.bias]);
            [&pool.position].into_iter().chain(each).collect()
        }
    }
}

impl Tape<'_> {
    /// The logits `[N, K]`; what they came from is not candle's to know.
    pub fn logits(&self) -> &Tensor {
        &self.logits
    }

    /// The gradients of all trained parameters from the gradient to the logits, `[N, K]`. Each is handed to `sink`
    /// with its parameter as soon as it is known, those of the last layers first.
    pub fn run(self, grad: &Tensor, sink: &mut dyn FnMut(&Tensor, Tensor) -> Result<()>) -> Result<()> {
        let network = self.network;
        match self.kind {
            Kind::Tape(saved) => backward::run(network, self.workers, saved, grad, sink),
            Kind::Candle(logits) => {
                let mut gradients = (logits * grad.detach())?.sum_all()?.backward()?;
                for variable in network.variables() {
                    if let Some(gradient) = gradients.remove(variable) {
                        sink(variable, gradient)?;
                    }
                }
                Ok(())
            }
        }
    }

    /// [`Tape::run`] for a loss computed from [`Tape::logits`], into a store.
    pub fn gradients(self, loss: &Tensor) -> Result<GradStore> {
        let mut store = loss.backward()?;
        let grad = match store.remove(&self.logits) {
            Some(grad) => grad,
            None => return Err(Error::Missing("gradient of the logits".into())),
        };
        self.run(&grad, &mut |variable, gradient| {
            store.insert(variable, gradient);
            Ok(())
        })?;
        Ok(store)
    }
}

impl std::fmt::Debug for Tape<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.debug_struct("Tape").field("logits", &self.logits).finish_non_exhaustive()
    }
}

/// A blocked tensor without a halo; its memory goes back when it is dropped.
struct Act {
    layout: Blocked,
    data: AlignedVec,
    home: Shared,
}

impl Act {
    fn new(home: &Shared, layout: Blocked, data: AlignedVec) -> Act {
        Act { layout, data, home: home.clone() }
    }

    /// A tensor with any content.
    fn empty(home: &Shared, layout: Blocked) -> Act {
        let data = lock(home).take(layout.len());
        Act::new(home, layout, data)
    }

    fn slice(&self) -> &[f32] {
        &self.data[..self.layout.len()]
    }

    fn slice_mut(&mut self) -> &mut [f32] {
        &mut self.data[..self.layout.len()]
    }

    fn view(&self) -> View<'_> {
        View { layout: self.layout, data: self.slice() }
    }

    /// The memory without the tensor.
    fn into_data(mut self) -> AlignedVec {
        std::mem::take(&mut self.data)
    }

    /// The tensor itself, or a copy if others need it.
    fn owned(act: Rc<Act>) -> Act {
        Rc::try_unwrap(act).unwrap_or_else(|act| Act::copy(&act))
    }

    fn copy(act: &Act) -> Act {
        let mut copy = Act::empty(&act.home, act.layout);
        copy.slice_mut().copy_from_slice(act.slice());
        copy
    }

    fn of_planar(home: &Shared, x: &Tensor) -> Result<Act> {
        let x = x.contiguous()?;
        let mut act = Act::empty(home, Blocked::new(x.dims4()?.into()).map_err(kernel)?);
        let layout = act.layout;
        let (storage, from) = x.storage_and_layout();
        layout.pack(ops::values(&storage, from)?, act.slice_mut(), ops::threads()?).map_err(kernel)?;
        drop(storage);
        Ok(act)
    }

    fn to_planar(&self) -> Result<Tensor> {
        let dims = self.layout.dims();
        let mut out = vec![0.0; dims.iter().product()];
        self.layout.unpack(self.slice(), &mut out, ops::threads()?).map_err(kernel)?;
        Ok(Tensor::from_vec(out, &dims, &Device::Cpu)?)
    }
}

impl Drop for Act {
    fn drop(&mut self) {
        lock(&self.home).put(std::mem::take(&mut self.data));
    }
}

fn lock(memory: &Shared) -> MutexGuard<'_, BufferPool> {
    memory.lock().unwrap_or_else(PoisonError::into_inner)
}

fn kernel(error: resnet_kernels::Error) -> Error {
    Error::Candle(candle_core::Error::Msg(error.to_string()))
}

/// A result or the gradient to one.
#[derive(Clone)]
enum Value {
    Planar(Tensor),
    Blocked(Rc<Act>),
}

impl Value {
    fn blocked(&self, home: &Shared) -> Result<Rc<Act>> {
        match self {
            Value::Planar(tensor) => Ok(Rc::new(Act::of_planar(home, tensor)?)),
            Value::Blocked(act) => Ok(act.clone()),
        }
    }

    /// [`Value::blocked`] of a value that nobody else needs, so that its memory may be [`Act::owned`].
    fn into_blocked(self, home: &Shared) -> Result<Rc<Act>> {
        match self {
            Value::Planar(tensor) => Ok(Rc::new(Act::of_planar(home, &tensor)?)),
            Value::Blocked(act) => Ok(act),
        }
    }

    /// `[N, C, H, W]`.
    fn dims(&self) -> Result<[usize; 4]> {
        match self {
            Value::Planar(x) => Ok(x.dims4()?.into()),
            Value::Blocked(act) => Ok(act.layout.dims()),
        }
    }

    fn planar(&self) -> Result<Tensor> {
        match self {
            Value::Planar(tensor) => Ok(tensor.clone()),
            Value::Blocked(act) => act.to_planar(),
        }
    }

    /// Whether it has height and width.
    fn is_image(&self) -> bool {
        match self {
            Value::Planar(tensor) => tensor.rank() == 4,
            Value::Blocked(_) => true,
        }
    }
}

/// What the gradient of a step is computed from.
enum Saved {
    /// Nothing before it is trained.
    Untracked,
    Conv {
        input: Value,
    },
    Norm(Normed),
    MaxPool {
        x: Rc<Act>,
        y: Rc<Act>,
    },
    AvgPool(Blocked),
    GlobalAvgPool(Blocked),
    Scale {
        x: Rc<Act>,
        /// `[N, C]`.
        gate: Tensor,
    },
    Relu(Rc<Act>),
    Add(Option<Dropped>),
    /// A candle graph of its own, with the variables that stand for the step's inputs, if those have gradients.
    Candle {
        inputs: Vec<Option<Var>>,
        output: Tensor,
    },
}

/// What the gradients of a batch norm are computed from.
struct Normed {
    norm: NodeId,
    x: Rc<Act>,
    /// If a rectifier follows.
    y: Option<Rc<Act>>,
    mean: Vec<f64>,
    scale: Vec<f64>,
    of_batch: bool,
    /// Of all workers' values, the share that is this one's.
    share: f64,
    /// If a sum follows of which a branch is left out.
    dropped: Option<Dropped>,
}

/// A sum of two terms of which one, a branch, is left out for some images.
struct Dropped {
    /// What the branch is multiplied by, for each image.
    kept: Vec<f32>,
    /// Which term it is.
    branch: usize,
}

impl Dropped {
    fn factors(&self, term: usize) -> Option<&[f32]> {
        (term == self.branch).then_some(&self.kept)
    }

    /// The sum in place of its first term, rectified if `relu`.
    fn add(&self, first: &mut Act, second: &Act, relu: bool) -> Result<()> {
        let layout = first.layout;
        let second = second.slice();
        ops::threads()?.for_each_chunk(first.slice_mut(), layout.plane_len(), |index, first| {
            let second = &second[index * layout.plane_len()..][..first.len()];
            let [a, b] = [0, 1].map(|term| self.factors(term).map_or(1.0, |f| f[index / layout.blocks()]));
            let least = if relu { 0.0 } else { f32::NEG_INFINITY };
            for (x, y) in first.iter_mut().zip(second) {
                let sum = a * *x + b * *y;
                *x = if sum < least { least } else { sum };
            }
        });
        Ok(())
    }

    /// The gradient to `term` from that to the sum, in place.
    fn grad(&self, term: usize, grad: &mut Act) -> Result<()> {
        let Some(factors) = self.factors(term) else { return Ok(()) };
        let layout = grad.layout;
        ops::threads()?.for_each_chunk(grad.slice_mut(), layout.plane_len(), |index, grad| {
            let factor = factors[index / layout.blocks()];
            grad.iter_mut().for_each(|g| *g *= factor);
        });
        Ok(())
    }
}

/// The values of a contiguous `f32` tensor on the CPU.
fn with_values<R>(tensor: &Tensor, f: impl FnOnce(&[f32]) -> Result<R>) -> Result<R> {
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    f(ops::values(&storage, layout)?)
}

#[cfg(test)]
mod tests;
