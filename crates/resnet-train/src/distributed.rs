//! Data-parallel training by several processes: each rank takes its shard of every batch, gradients are summed over all
//! ranks.
//!
//! A run talks to the other ranks through a [`Communicator`]. [`TransportGroup`] makes one of any [`Transport`]: MPI
//! (feature `mpi`), NCCL (feature `nccl`), channels in the tests. [`launch`] reads rank and world size from the
//! environment variables of a launcher.

use candle_core::Tensor;
use candle_core::backprop::GradStore;
use resnet_model::network::{ProcessGroup, SingleProcess, Tape};
use resnet_model::{Error, Result};

pub mod launch;

mod group;
#[cfg(feature = "mpi")]
mod mpi;
#[cfg(feature = "nccl")]
mod nccl;

pub use group::{Limits, Transport, TransportGroup};
#[cfg(feature = "mpi")]
pub use mpi::Mpi;
#[cfg(feature = "nccl")]
pub use nccl::Nccl;

/// An all-reduce in progress; calling it waits for the result.
pub type Pending<'a> = Box<dyn FnOnce() -> Result<Tensor> + 'a>;

/// Collective operations of a training run. All ranks must call the same methods in the same order.
///
/// # Errors
/// Every collective returns [`Error::ProcessGroup`] if another rank cannot be reached.
pub trait Communicator: ProcessGroup {
    /// Rank of this process, from 0. Only rank 0 writes files.
    fn rank(&self) -> usize;

    /// Starts to sum `bucket` `[V]`, `f32`, over all ranks and returns at once.
    fn all_reduce_async(&self, bucket: Tensor) -> Result<Pending<'_>>;

    /// Replaces `bytes` by those of rank `root`.
    fn broadcast(&self, root: usize, bytes: &mut Vec<u8>) -> Result<()>;
}

impl Communicator for SingleProcess {
    fn rank(&self) -> usize {
        0
    }

    fn all_reduce_async(&self, bucket: Tensor) -> Result<Pending<'_>> {
        Ok(Box::new(|| Ok(bucket)))
    }

    fn broadcast(&self, _: usize, _: &mut Vec<u8>) -> Result<()> {
        Ok(())
    }
}

/// The shard of every batch that one rank computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    /// Rank, from 0.
    pub rank: usize,
    /// Number of processes.
    pub world_size: usize,
}

impl Shard {
    /// The whole batch.
    pub const WHOLE: Shard = Shard { rank: 0, world_size: 1 };

    /// Returns this rank's items of a batch, in order. Item `i` stays with item `n − 1 − i`, its mixup partner.
    pub fn select(&self, items: &[usize]) -> Vec<usize> {
        let n = items.len();
        let pairs = (0..n.div_ceil(2)).flat_map(|i| [i, n - 1 - i]).take(n);
        let bound = |rank: usize| rank * n / self.world_size.max(1);
        let own = bound(self.rank)..bound(self.rank + 1);
        let mut positions: Vec<usize> = pairs.skip(own.start).take(own.len()).collect();
        positions.sort_unstable();
        positions.into_iter().map(|position| items[position]).collect()
    }
}

/// Values in a gradient bucket: large enough to amortize a message, small enough to overlap with the backward pass.
const BUCKET: usize = 1 << 20;

/// Gradients that are all-reduced in buckets while the backward pass runs, in the order in which they become known.
pub(crate) struct Buckets<'a> {
    group: &'a dyn Communicator,
    /// Values per bucket.
    size: usize,
    /// Variables and gradients of the bucket being filled.
    waiting: Vec<(Tensor, Tensor)>,
    values: usize,
    sent: Vec<(Vec<Tensor>, Pending<'a>)>,
}

impl<'a> Buckets<'a> {
    pub(crate) fn new(group: &'a dyn Communicator) -> Buckets<'a> {
        Buckets { group, size: BUCKET, waiting: Vec::new(), values: 0, sent: Vec::new() }
    }

    pub(crate) fn add(&mut self, variable: &Tensor, gradient: Tensor) -> Result<()> {
        self.values += gradient.elem_count();
        self.waiting.push((variable.clone(), gradient));
        if self.values < self.size { Ok(()) } else { self.send() }
    }

    fn send(&mut self) -> Result<()> {
        self.values = 0;
        let (variables, gradients): (Vec<Tensor>, Vec<Tensor>) =
            std::mem::take(&mut self.waiting).into_iter().unzip();
        if gradients.is_empty() {
            return Ok(());
        }
        let flat = gradients.iter().map(Tensor::flatten_all).collect::<candle_core::Result<Vec<_>>>()?;
        self.sent.push((variables, self.group.all_reduce_async(Tensor::cat(&flat, 0)?)?));
        Ok(())
    }

    /// Sends the last bucket, waits for all, and passes each variable's sum to `take`.
    pub(crate) fn finish(mut self, mut take: impl FnMut(&Tensor, Tensor) -> Result<()>) -> Result<()> {
        self.send()?;
        for (variables, pending) in self.sent {
            let sums = pending()?;
            let mut start = 0;
            for variable in variables {
                let len = variable.elem_count();
                take(&variable, sums.narrow(0, start, len)?.reshape(variable.shape())?)?;
                start += len;
            }
        }
        Ok(())
    }
}

/// Returns the gradients of `loss` plus the `accumulated` ones, all-reduced over `group` while they are computed.
pub(crate) fn gradients(
    tape: Tape,
    loss: &Tensor,
    accumulated: Option<&GradStore>,
    group: &dyn Communicator,
) -> Result<GradStore> {
    let mut store = loss.backward()?;
    let grad = store.remove(tape.logits());
    let grad = grad.ok_or_else(|| Error::Missing("gradient of the logits".into()))?;
    let mut buckets = Buckets::new(group);
    tape.run(&grad, &mut |variable, gradient| match accumulated.and_then(|store| store.get(variable)) {
        Some(accumulated) => buckets.add(variable, (gradient + accumulated)?),
        None => buckets.add(variable, gradient),
    })?;
    buckets.finish(|variable, sum| {
        store.insert(variable, sum);
        Ok(())
    })?;
    Ok(store)
}

#[cfg(test)]
mod tests;
