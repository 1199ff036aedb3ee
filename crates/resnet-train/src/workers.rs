//! Several workers that train one network: each takes its part of every batch, gradients are summed over all.
//!
//! A [`Team`] is what a run needs of them. [`Joint`] makes one of any [`Wire`] that sums numbers over processes: MPI
//! (feature `mpi`), NCCL (feature `nccl`), channels in the tests. [`launch`] tells from a launcher's variables which worker
//! a process is.

use candle_core::Tensor;
use candle_core::backprop::GradStore;
use resnet_model::network::{ProcessGroup, SingleProcess, Tape};
use resnet_model::{Error, Result};

pub mod launch;

mod joint;
#[cfg(feature = "mpi")]
mod mpi;
#[cfg(feature = "nccl")]
mod nccl;

pub use joint::{Joint, Limits, Wire};
#[cfg(feature = "mpi")]
pub use mpi::Mpi;
#[cfg(feature = "nccl")]
pub use nccl::Nccl;

/// A sum that is under way; called, it waits for the result.
pub type Pending<'a> = Box<dyn FnOnce() -> Result<Tensor> + 'a>;

/// The workers of a run. All of them call the same methods in the same order; every method that communicates gives
/// [`Error::ProcessGroup`] when others cannot be reached.
pub trait Team: ProcessGroup {
    /// Which of them this one is, from 0. The first one alone writes files.
    fn rank(&self) -> usize;

    /// Begins to sum `bucket` `[V]`, `f32`, over all workers, while the caller goes on.
    fn begin(&self, bucket: Tensor) -> Result<Pending<'_>>;

    /// Gives the bytes of worker `root` to all.
    fn share(&self, root: usize, bytes: &mut Vec<u8>) -> Result<()>;
}

impl Team for SingleProcess {
    fn rank(&self) -> usize {
        0
    }

    fn begin(&self, bucket: Tensor) -> Result<Pending<'_>> {
        Ok(Box::new(|| Ok(bucket)))
    }

    fn share(&self, _: usize, _: &mut Vec<u8>) -> Result<()> {
        Ok(())
    }
}

/// Which part of every batch is a worker's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// Which worker, from 0.
    pub rank: usize,
    /// How many there are.
    pub count: usize,
}

impl Part {
    /// All of it.
    pub const WHOLE: Part = Part { rank: 0, count: 1 };

    /// This worker's part of a batch's `items`, in their order. Item `i` goes with item `n − 1 − i`, with which it may be
    /// mixed.
    pub fn of(&self, items: &[usize]) -> Vec<usize> {
        let n = items.len();
        let pairs = (0..n.div_ceil(2)).flat_map(|i| [i, n - 1 - i]).take(n);
        let bound = |rank: usize| rank * n / self.count.max(1);
        let own = bound(self.rank)..bound(self.rank + 1);
        let mut places: Vec<usize> = pairs.skip(own.start).take(own.len()).collect();
        places.sort_unstable();
        places.into_iter().map(|place| items[place]).collect()
    }
}

/// Values in a bucket of gradients: large enough to be worth a message, small enough that the first leave early.
const BUCKET: usize = 1 << 20;

/// Gradients on their way to the other workers, in the order in which they become known.
pub(crate) struct Buckets<'a> {
    team: &'a dyn Team,
    /// Values that are sent together.
    size: usize,
    /// Variables and gradients that are not sent yet.
    waiting: Vec<(Tensor, Tensor)>,
    values: usize,
    sent: Vec<(Vec<Tensor>, Pending<'a>)>,
}

impl<'a> Buckets<'a> {
    pub(crate) fn new(team: &'a dyn Team) -> Buckets<'a> {
        Buckets { team, size: BUCKET, waiting: Vec::new(), values: 0, sent: Vec::new() }
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
        self.sent.push((variables, self.team.begin(Tensor::cat(&flat, 0)?)?));
        Ok(())
    }

    /// Sends what is left, waits for all, and gives each variable's sum to `take`.
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

/// The gradients of `loss`, and `earlier` ones, summed over the workers of `team` while they are computed.
pub(crate) fn gradients(
    backward: Tape,
    loss: &Tensor,
    earlier: Option<&GradStore>,
    team: &dyn Team,
) -> Result<GradStore> {
    let mut store = loss.backward()?;
    let grad = store.remove(backward.logits());
    let grad = grad.ok_or_else(|| Error::Missing("gradient of the logits".into()))?;
    let mut buckets = Buckets::new(team);
    backward.run(&grad, &mut |variable, gradient| match earlier.and_then(|store| store.get(variable)) {
        Some(earlier) => buckets.add(variable, (gradient + earlier)?),
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
