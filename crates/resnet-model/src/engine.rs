//! A graph compiled for inference on the CPU: fused kernels, packed weights, planned memory.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use candle_core::{DType, Device, Tensor};
use resnet_kernels::Pool;
pub use resnet_kernels::{Isa, Precision, fma_peak};

use crate::graph::{Graph, NodeId};
use crate::{Checkpoint, Error, Result};

mod fuse;
mod map;
mod memory;
mod pack;
mod run;
mod session;

use pack::Program;
use session::{Session, Wanted};

/// How an engine is compiled.
#[derive(Debug, Clone)]
pub struct Options {
    /// Threads that compute, the caller's included.
    pub threads: usize,
    /// The instruction set.
    pub isa: Isa,
    /// Whether Winograd may be used.
    pub precision: Precision,
    /// Images per call that the kernels are chosen for; others work too. Batches are computed in parts that fit the
    /// cache.
    pub batch: usize,
    /// Height and width in pixels that the kernels are chosen for; `None` is the checkpoint's own crop.
    pub input: Option<[usize; 2]>,
}

impl Default for Options {
    /// All cores, the best instruction set, Winograd, one image of the checkpoint's size.
    fn default() -> Options {
        Options {
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            isa: Isa::best(),
            precision: Precision::F32,
            batch: 1,
            input: None,
        }
    }
}

/// A network compiled for inference on the CPU.
///
/// Batch norms are folded, additions, ReLUs and the stem's pooling are computed with the convolutions, weights are
/// packed once, memory is planned by lifetime. Takes any batch and any image size that the network allows, from several
/// threads at once; results do not depend on the number of threads.
///
/// ```no_run
/// use resnet_model::engine::{Engine, Options};
/// use resnet_model::Checkpoint;
///
/// let checkpoint = Checkpoint::open("resnet50.safetensors".as_ref())?;
/// let engine = Engine::new(&checkpoint, Options { threads: 2, ..Options::default() })?;
/// let logits = engine.run(&vec![0.0; 3 * 224 * 224], [1, 3, 224, 224], &["logits"])?;
/// assert_eq!(logits[0].shape, [1, 1000]);
/// # Ok::<(), resnet_model::Error>(())
/// ```
#[derive(Debug)]
pub struct Engine {
    program: Program,
    options: Options,
    pool: Pool,
    /// Memory of past calls, to be used again; at most one per size and simultaneous caller.
    sessions: Mutex<Vec<Session>>,
    plans: Mutex<HashMap<Wanted, Arc<session::Layout>>>,
}

/// A result of [`Engine::run`].
#[derive(Debug, Clone, PartialEq)]
pub struct Output {
    /// `[N, C, H, W]`, or `[N, C]` where there are no pixels.
    pub shape: Vec<usize>,
    /// The values in row-major order.
    pub values: Vec<f32>,
}

impl Output {
    /// Adds the images of another part of the batch.
    fn append(&mut self, part: Output) {
        self.values.extend(part.values);
        if let (Some(n), Some(more)) = (self.shape.first_mut(), part.shape.first()) {
            *n += more;
        }
    }
}

/// One step of the program: what it computes and with which kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepInfo {
    /// The operation's name, e.g. `layer1.0.conv2`.
    pub name: String,
    /// The kernel's name, e.g. `winograd4-f32-64x6-avx512`.
    pub kernel: String,
    /// Multiply-adds per image, as a direct convolution counts them.
    pub macs: u64,
    /// `[C, H, W]` or `[C]` of the result.
    pub shape: Vec<usize>,
}

/// Sizes and wishes for which memory plans are kept.
const KEPT: usize = 8;

impl Engine {
    /// Compiles a checkpoint's network.
    pub fn new(checkpoint: &Checkpoint, options: Options) -> Result<Engine> {
        let pool = Pool::new(options.threads)?;
        let program = Program::new(checkpoint, &options, &pool)?;
        Ok(Engine { program, options, pool, sessions: Mutex::default(), plans: Mutex::default() })
    }

    /// How it was compiled.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// The folded graph.
    pub fn graph(&self) -> &Graph {
        &self.program.graph
    }

    /// Bytes of packed weights.
    pub fn weight_bytes(&self) -> usize {
        self.program.weight_bytes()
    }

    /// Bytes of activation memory for a batch `dims` `[N, C, H, W]`.
    pub fn arena_bytes(&self, [n, c, h, w]: [usize; 4]) -> Result<usize> {
        let wanted =
            Wanted { dims: [n.min(self.program.images), c, h, w], nodes: vec![self.graph().output()] };
        Ok(self.layout(&wanted)?.arena_len() * size_of::<f32>())
    }

    /// The results named `taps`, e.g. `logits` or `layer3`, of the normalised images `x` of shape `dims` `[N, C, H, W]`.
    pub fn run(&self, x: &[f32], dims: [usize; 4], taps: &[&str]) -> Result<Vec<Output>> {
        self.run_nodes(x, dims, self.graph().tapped(taps)?, &mut |_, _| {})
    }

    /// The network's own result for the normalised images `x` of shape `dims` `[N, C, H, W]`.
    pub fn output(&self, x: &[f32], dims: [usize; 4]) -> Result<Output> {
        self.profile(x, dims, &mut |_, _| {})
    }

    /// The network's own result for one batch, told how long each step took, in the order of [`Engine::steps`].
    pub fn profile(
        &self,
        x: &[f32],
        dims: [usize; 4],
        on: &mut dyn FnMut(usize, Duration),
    ) -> Result<Output> {
        let mut outputs = self.run_nodes(x, dims, vec![self.graph().output()], on)?;
        outputs.pop().ok_or_else(|| Error::Missing("output".into()))
    }

    /// The steps of the program, for images of `[height, width]`.
    pub fn steps(&self, [height, width]: [usize; 2]) -> Result<Vec<StepInfo>> {
        self.program.steps(height, width)
    }

    /// The logits `[N, K]` of `x` `[N, C, H, W]`, normalised f32 on the CPU.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let last = self.graph().output();
        let mut results = self.tensors(x, vec![last])?;
        results.pop().ok_or_else(|| Error::Missing("output".into()))
    }

    /// The results named `taps` of `x` `[N, C, H, W]`, as tensors.
    pub fn features(&self, x: &Tensor, taps: &[&str]) -> Result<Vec<Tensor>> {
        self.tensors(x, self.graph().tapped(taps)?)
    }

    fn tensors(&self, x: &Tensor, nodes: Vec<NodeId>) -> Result<Vec<Tensor>> {
        let dims: [usize; 4] = x.dims().try_into().map_err(|_| self.bad_input(x.dims()))?;
        let x = x.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        let outputs = self.run_nodes(&x, dims, nodes, &mut |_, _| {})?;
        outputs.into_iter().map(|o| Ok(Tensor::from_vec(o.values, o.shape, &Device::Cpu)?)).collect()
    }

    fn bad_input(&self, found: &[usize]) -> Error {
        let channels = self.graph().in_channels();
        Error::Input { found: found.to_vec(), expected: format!("[N, {channels}, H, W]") }
    }

    fn run_nodes(
        &self,
        x: &[f32],
        dims: [usize; 4],
        nodes: Vec<NodeId>,
        on: &mut dyn FnMut(usize, Duration),
    ) -> Result<Vec<Output>> {
        let elements = dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        if dims[0] == 0 || dims[1] != self.graph().in_channels() || elements != Some(x.len()) {
            return Err(self.bad_input(&dims));
        }
        let image = x.len() / dims[0];
        let mut whole: Vec<Output> = Vec::new();
        let mut times = vec![Duration::ZERO; self.program.steps.len()];
        for start in (0..dims[0]).step_by(self.program.images) {
            let n = self.program.images.min(dims[0] - start);
            let part = &x[start * image..(start + n) * image];
            let wanted = Wanted { dims: [n, dims[1], dims[2], dims[3]], nodes: nodes.clone() };
            let outputs = self.run_at_once(part, wanted, &mut |step, time| times[step] += time)?;
            match whole.as_mut_slice() {
                [] => whole = outputs,
                whole => whole.iter_mut().zip(outputs).for_each(|(all, part)| all.append(part)),
            }
        }
        times.into_iter().enumerate().for_each(|(step, time)| on(step, time));
        Ok(whole)
    }

    fn run_at_once(
        &self,
        x: &[f32],
        wanted: Wanted,
        on: &mut dyn FnMut(usize, Duration),
    ) -> Result<Vec<Output>> {
        let mut session = match self.take(&wanted) {
            Some(session) => session,
            None => Session::new(self.layout(&wanted)?),
        };
        let outputs = run::run(&self.program, &mut session, x, &self.pool, on)?;
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.push(session);
        if sessions.len() > KEPT.max(self.options.threads) {
            sessions.remove(0);
        }
        Ok(outputs)
    }

    /// Memory of an earlier call of the same kind that nobody uses now.
    fn take(&self, wanted: &Wanted) -> Option<Session> {
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        let position = sessions.iter().rposition(|s| s.layout().wanted() == wanted)?;
        Some(sessions.remove(position))
    }

    fn layout(&self, wanted: &Wanted) -> Result<Arc<session::Layout>> {
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(layout) = plans.get(wanted) {
            return Ok(layout.clone());
        }
        let layout = Arc::new(session::Layout::new(&self.program, wanted.clone(), self.pool.threads())?);
        if plans.len() >= KEPT {
            plans.clear();
        }
        plans.insert(wanted.clone(), layout.clone());
        Ok(layout)
    }
}

#[cfg(test)]
mod tests;
