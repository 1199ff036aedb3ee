//! A graph compiled for inference on the CPU: fused kernels, packed weights, planned memory.
//!
//! It is separate from the training tape (`network/tape.rs`): inference folds batch norms, packs weights once, overwrites
//! activations and places them in one arena, which training cannot do because the backward pass reads them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use candle_core::{DType, Device, Tensor};
use resnet_kernels::ThreadPool;
pub use resnet_kernels::{Isa, Precision, fma_peak};

use crate::graph::{Graph, NodeId};
use crate::{Checkpoint, Error, Result};

mod batch;
mod elementwise;
mod fuse;
mod memory;
mod pack;
mod run;
mod session;

use pack::Program;
use session::{Request, Session};

/// Options of [`Engine::new`].
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// Number of threads, including the calling one.
    pub threads: usize,
    /// The instruction set.
    pub isa: Isa,
    /// The precision; [`Precision::F32`] permits Winograd.
    pub precision: Precision,
    /// Batch size that the kernels are chosen for; other sizes work too.
    pub batch: usize,
    /// Height and width in pixels that the kernels are chosen for; `None` is the crop of the checkpoint.
    pub input: Option<[usize; 2]>,
}

impl Default for EngineOptions {
    /// All cores, the best instruction set, Winograd, batch size 1, the crop of the checkpoint.
    fn default() -> EngineOptions {
        EngineOptions {
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
/// Batch norms are folded; residual adds, ReLUs and the pooling of the stem are fused with the convolutions; weights are
/// packed once; memory is planned by lifetime. Accepts any batch size and image size that the network supports, from
/// several threads at once; results do not depend on the number of threads.
///
/// ```no_run
/// use resnet_model::engine::{Engine, EngineOptions};
/// use resnet_model::Checkpoint;
///
/// let checkpoint = Checkpoint::open("resnet50.safetensors".as_ref())?;
/// let engine = Engine::new(&checkpoint, EngineOptions { threads: 2, ..EngineOptions::default() })?;
/// let logits = engine.run(&vec![0.0; 3 * 224 * 224], [1, 3, 224, 224], &["logits"])?;
/// assert_eq!(logits[0].shape, [1, 1000]);
/// # Ok::<(), resnet_model::Error>(())
/// ```
#[derive(Debug)]
pub struct Engine {
    program: Program,
    options: EngineOptions,
    pool: ThreadPool,
    /// For threads that each compute an image.
    single_thread: ThreadPool,
    /// Buffers of previous calls, for reuse.
    sessions: Mutex<Vec<Session>>,
    memory_plans: Mutex<HashMap<Request, Arc<session::MemoryPlan>>>,
}

/// A result of [`Engine::run`].
#[derive(Debug, Clone, PartialEq)]
pub struct Output {
    /// `[N, C, H, W]`, or `[N, C]` after global pooling.
    pub shape: Vec<usize>,
    /// The values in row-major order.
    pub values: Vec<f32>,
}

impl Output {
    /// Appends the images of another part of the batch.
    fn append(&mut self, other: Output) {
        self.values.extend(other.values);
        if let (Some(n), Some(more)) = (self.shape.first_mut(), other.shape.first()) {
            *n += more;
        }
    }
}

/// A step of the compiled program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepInfo {
    /// The name of the operation, e.g. `layer1.0.conv2`.
    pub name: String,
    /// The name of the kernel, e.g. `winograd4-f32-64x6-avx512`.
    pub kernel: String,
    /// Multiply-adds per image of a direct computation.
    pub macs: u64,
    /// The shape of the result, `[C, H, W]` or `[C]`.
    pub shape: Vec<usize>,
}

impl Engine {
    /// Compiles the network of a checkpoint.
    pub fn new(checkpoint: &Checkpoint, options: EngineOptions) -> Result<Engine> {
        let pool = ThreadPool::new(options.threads)?;
        let program = Program::new(checkpoint, &options, &pool)?;
        let single_thread = ThreadPool::new(1)?;
        let (sessions, memory_plans) = Default::default();
        Ok(Engine { program, options, pool, single_thread, sessions, memory_plans })
    }

    /// Returns the options that the engine was compiled with.
    pub fn options(&self) -> &EngineOptions {
        &self.options
    }

    /// Returns the graph with batch norms folded.
    pub fn graph(&self) -> &Graph {
        &self.program.graph
    }

    /// Returns the bytes of packed weights.
    pub fn weight_bytes(&self) -> usize {
        self.program.weight_bytes()
    }

    /// Returns the bytes of activation memory for a batch `dims` `[N, C, H, W]`.
    pub fn arena_bytes(&self, dims: [usize; 4]) -> Result<usize> {
        Ok(self.arena_len(dims)? * size_of::<f32>())
    }

    /// Returns the results named `taps`, e.g. `logits` or `layer3`, of normalized images `x` of shape `dims` `[N, C, H, W]`.
    pub fn run(&self, x: &[f32], dims: [usize; 4], taps: &[&str]) -> Result<Vec<Output>> {
        self.run_nodes(x, dims, &self.graph().tapped(taps)?, &mut |_, _| {})
    }

    /// Like [`Engine::run`], on the calling thread only: the images of concurrent callers do not compete for the threads of
    /// the engine. The results are bit-equal to those of [`Engine::run`].
    ///
    /// # Errors
    ///
    /// Those of [`Engine::run`].
    pub fn run_single_threaded(&self, x: &[f32], dims: [usize; 4], taps: &[&str]) -> Result<Vec<Output>> {
        self.run_nodes_single_threaded(x, dims, &self.graph().tapped(taps)?)
    }

    /// Returns the output of the network for normalized images `x` of shape `dims` `[N, C, H, W]`.
    pub fn output(&self, x: &[f32], dims: [usize; 4]) -> Result<Output> {
        self.profile(x, dims, &mut |_, _| {})
    }

    /// Returns the output of the network, and calls `on` with the index of each step in [`Engine::steps`] and its duration.
    pub fn profile(
        &self,
        x: &[f32],
        dims: [usize; 4],
        on: &mut dyn FnMut(usize, Duration),
    ) -> Result<Output> {
        let mut outputs = self.run_nodes(x, dims, &[self.graph().output()], on)?;
        outputs.pop().ok_or_else(|| Error::Missing("output".into()))
    }

    /// Returns the steps of the program for images of `[height, width]` pixels.
    pub fn steps(&self, [height, width]: [usize; 2]) -> Result<Vec<StepInfo>> {
        self.program.steps(height, width)
    }

    /// Returns the logits `[N, K]` of normalized images `x` `[N, C, H, W]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let last = self.graph().output();
        let mut results = self.tensors(x, vec![last])?;
        results.pop().ok_or_else(|| Error::Missing("output".into()))
    }

    /// Returns the results named `taps` of normalized images `x` `[N, C, H, W]`.
    pub fn features(&self, x: &Tensor, taps: &[&str]) -> Result<Vec<Tensor>> {
        self.tensors(x, self.graph().tapped(taps)?)
    }

    fn tensors(&self, x: &Tensor, nodes: Vec<NodeId>) -> Result<Vec<Tensor>> {
        let dims: [usize; 4] = x.dims().try_into().map_err(|_| self.input_error(x.dims()))?;
        let x = x.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        let outputs = self.run_nodes(&x, dims, &nodes, &mut |_, _| {})?;
        outputs.into_iter().map(|o| Ok(Tensor::from_vec(o.values, o.shape, &Device::Cpu)?)).collect()
    }

    fn input_error(&self, found: &[usize]) -> Error {
        let channels = self.graph().in_channels();
        Error::Input { found: found.to_vec(), expected: format!("[N, {channels}, H, W]") }
    }
}

#[cfg(test)]
mod tests;
