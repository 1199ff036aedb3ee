//! A training step without candle's graph: forward and backward passes over tensors in blocked layout, in reused buffers.
//!
//! Activations are freed as soon as their gradient is known, gradients accumulate in place, and each parameter gradient is
//! passed on as soon as it is complete. Operations without a kernel here run as small candle graphs.
//!
//! It is separate from the candle graph of [`ModuleT::forward_t`](candle_core::ModuleT), which keeps all activations in
//! planar layout and cannot fuse or accumulate in place: a step of ResNet-18 takes half the time here (`ops.rs` has the
//! numbers). It is separate from the engine because the backward pass reads activations that inference overwrites.

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

/// Buffers that all steps of a network reuse.
pub(super) type SharedBuffers = Arc<Mutex<BufferPool>>;

/// The processes that train one network together, each on its own part of a batch. The loss is the sum of the losses of all
/// processes.
pub trait ProcessGroup {
    /// Returns the number of processes.
    fn world_size(&self) -> usize {
        1
    }

    /// Replaces `values` with their sums over all processes. All processes make the same calls in the same order.
    ///
    /// # Errors
    ///
    /// Returns [`Error::ProcessGroup`] if other processes cannot be reached.
    fn all_reduce(&self, values: &mut [f64]) -> Result<()>;
}

/// The group of a single process.
#[derive(Debug, Clone, Copy)]
pub struct SingleProcess;

impl ProcessGroup for SingleProcess {
    fn all_reduce(&self, _: &mut [f64]) -> Result<()> {
        Ok(())
    }
}

/// A recorded forward pass, ready for the backward pass; returned by [`Network::train_forward`].
pub struct Tape<'a> {
    network: &'a Network,
    workers: &'a dyn ProcessGroup,
    logits: Var,
    recorded: Recorded,
}

enum Recorded {
    /// The output of a candle graph.
    Candle(Tensor),
    Steps(Vec<Saved>),
}

impl Network {
    /// Runs the forward pass of a training step. Compute the loss from [`Tape::logits`] `[N, K]`. Batch norms use the
    /// statistics over all `workers`.
    ///
    /// In `f32` on the CPU this is faster and needs less memory than [`ModuleT::forward_t`](candle_core::ModuleT), with the
    /// same results up to rounding; elsewhere it is the same candle graph.
    ///
    /// # Errors
    ///
    /// Returns an error for invalid inputs and probabilities, for a batch norm with one value per channel, and for a network
    /// without the layers to drop.
    pub fn train_forward<'a>(
        &'a self,
        x: &Tensor,
        dropping: DropConfig,
        workers: &'a dyn ProcessGroup,
    ) -> Result<Tape<'a>> {
        if !ops::is_cpu_f32(x) || self.dtype != DType::F32 {
            if workers.world_size() > 1 {
                return Err(Error::UnsupportedSyncBatchNorm);
            }
            let logits = self.candle_train_forward(x, dropping)?;
            let recorded = Recorded::Candle(logits.clone());
            return Ok(Tape {
                network: self,
                workers,
                logits: Var::from_tensor(&logits.detach())?,
                recorded,
            });
        }
        self.check(x)?;
        let plan = dropping.plan(&self.graph)?;
        let (logits, saved) = forward::run(self, x, plan.as_ref(), workers)?;
        Ok(Tape {
            network: self,
            workers,
            logits: Var::from_tensor(&logits)?,
            recorded: Recorded::Steps(saved),
        })
    }

    /// Returns every trained tensor.
    fn variables(&self) -> impl Iterator<Item = &Tensor> {
        self.layers.iter().flat_map(Layer::trainable).filter(|tensor| tensor.track_op())
    }
}

impl Tape<'_> {
    /// Returns the logits `[N, K]`, a variable without history.
    pub fn logits(&self) -> &Tensor {
        &self.logits
    }

    /// Runs the backward pass from the gradient of the logits `[N, K]`. Calls `sink` with each trained parameter and its
    /// gradient as soon as it is complete, starting with the last layers.
    pub fn run(self, grad: &Tensor, sink: &mut dyn FnMut(&Tensor, Tensor) -> Result<()>) -> Result<()> {
        let network = self.network;
        match self.recorded {
            Recorded::Steps(saved) => backward::run(network, self.workers, saved, grad, sink),
            Recorded::Candle(logits) => {
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

    /// Returns the gradients of a loss computed from [`Tape::logits`].
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

/// A tensor in blocked layout without a halo; its buffer is returned to the pool on drop.
struct BlockedTensor {
    layout: Blocked,
    data: AlignedVec,
    buffers: SharedBuffers,
}

impl BlockedTensor {
    fn new(buffers: &SharedBuffers, layout: Blocked, data: AlignedVec) -> BlockedTensor {
        BlockedTensor { layout, data, buffers: buffers.clone() }
    }

    /// Returns a tensor with unspecified values.
    fn empty(buffers: &SharedBuffers, layout: Blocked) -> BlockedTensor {
        let data = lock(buffers).take(layout.len());
        BlockedTensor::new(buffers, layout, data)
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

    /// Returns the buffer.
    fn into_data(mut self) -> AlignedVec {
        std::mem::take(&mut self.data)
    }

    /// Returns the tensor itself, or a copy if it is shared.
    fn owned(act: Rc<BlockedTensor>) -> BlockedTensor {
        Rc::try_unwrap(act).unwrap_or_else(|act| BlockedTensor::copy(&act))
    }

    fn copy(act: &BlockedTensor) -> BlockedTensor {
        let mut copy = BlockedTensor::empty(&act.buffers, act.layout);
        copy.slice_mut().copy_from_slice(act.slice());
        copy
    }

    fn from_planar(buffers: &SharedBuffers, x: &Tensor) -> Result<BlockedTensor> {
        let x = x.contiguous()?;
        let mut act = BlockedTensor::empty(buffers, Blocked::new(x.dims4()?.into()).map_err(kernel)?);
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

impl Drop for BlockedTensor {
    fn drop(&mut self) {
        lock(&self.buffers).put(std::mem::take(&mut self.data));
    }
}

fn lock(buffers: &SharedBuffers) -> MutexGuard<'_, BufferPool> {
    buffers.lock().unwrap_or_else(PoisonError::into_inner)
}

fn kernel(error: resnet_kernels::Error) -> Error {
    Error::Candle(candle_core::Error::Msg(error.to_string()))
}

/// A result or its gradient.
#[derive(Clone)]
enum Value {
    Planar(Tensor),
    Blocked(Rc<BlockedTensor>),
}

impl Value {
    fn blocked(&self, buffers: &SharedBuffers) -> Result<Rc<BlockedTensor>> {
        match self {
            Value::Planar(tensor) => Ok(Rc::new(BlockedTensor::from_planar(buffers, tensor)?)),
            Value::Blocked(act) => Ok(act.clone()),
        }
    }

    /// [`Value::blocked`] without keeping a reference, so that [`BlockedTensor::owned`] need not copy.
    fn into_blocked(self, buffers: &SharedBuffers) -> Result<Rc<BlockedTensor>> {
        match self {
            Value::Planar(tensor) => Ok(Rc::new(BlockedTensor::from_planar(buffers, &tensor)?)),
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

    /// Returns `true` if it is a feature map.
    fn is_image(&self) -> bool {
        match self {
            Value::Planar(tensor) => tensor.rank() == 4,
            Value::Blocked(_) => true,
        }
    }
}

/// The values that the gradient of a step needs.
enum Saved {
    /// No parameter before it is trained.
    Untracked,
    Conv {
        input: Value,
    },
    Norm(SavedNorm),
    MaxPool {
        x: Rc<BlockedTensor>,
        y: Rc<BlockedTensor>,
    },
    AvgPool(Blocked),
    GlobalAvgPool(Blocked),
    Scale {
        x: Rc<BlockedTensor>,
        /// `[N, C]`.
        gate: Tensor,
    },
    Relu(Rc<BlockedTensor>),
    Add(Option<DropPath>),
    /// A separate candle graph, and a variable for each input that needs a gradient.
    Candle {
        inputs: Vec<Option<Var>>,
        output: Tensor,
    },
}

/// The values that the gradients of a batch norm need.
struct SavedNorm {
    norm: NodeId,
    x: Rc<BlockedTensor>,
    /// The output, if a ReLU follows.
    y: Option<Rc<BlockedTensor>>,
    mean: Vec<f64>,
    scale: Vec<f64>,
    of_batch: bool,
    /// Fraction of the values of all processes that belong to this process.
    fraction: f64,
    /// The drop path of the residual add that follows.
    drop_path: Option<DropPath>,
}

/// A residual add whose branch is dropped for some images.
struct DropPath {
    /// The factor of the branch for each image.
    factors: Vec<f32>,
    /// The position of the branch among the two inputs.
    branch: usize,
}

impl DropPath {
    fn factors_of(&self, term: usize) -> Option<&[f32]> {
        (term == self.branch).then_some(&self.factors)
    }

    /// Replaces `first` with the sum, followed by a ReLU if `relu`.
    fn add(&self, first: &mut BlockedTensor, second: &BlockedTensor, relu: bool) -> Result<()> {
        let layout = first.layout;
        let second = second.slice();
        ops::threads()?.for_each_chunk(first.slice_mut(), layout.plane_len(), |index, first| {
            let second = &second[index * layout.plane_len()..][..first.len()];
            let [a, b] = [0, 1].map(|term| self.factors_of(term).map_or(1.0, |f| f[index / layout.blocks()]));
            let least = if relu { 0.0 } else { f32::NEG_INFINITY };
            for (x, y) in first.iter_mut().zip(second) {
                let sum = a * *x + b * *y;
                *x = if sum < least { least } else { sum };
            }
        });
        Ok(())
    }

    /// Turns the gradient of the sum into that of `term`, in place.
    fn grad(&self, term: usize, grad: &mut BlockedTensor) -> Result<()> {
        let Some(factors) = self.factors_of(term) else { return Ok(()) };
        let layout = grad.layout;
        ops::threads()?.for_each_chunk(grad.slice_mut(), layout.plane_len(), |index, grad| {
            let factor = factors[index / layout.blocks()];
            grad.iter_mut().for_each(|g| *g *= factor);
        });
        Ok(())
    }
}

/// Calls `f` with the values of an `f32` tensor on the CPU.
fn with_values<R>(tensor: &Tensor, f: impl FnOnce(&[f32]) -> Result<R>) -> Result<R> {
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    f(ops::values(&storage, layout)?)
}

#[cfg(test)]
mod tests;
