//! A graph compiled for inference on the CPU: fused kernels, packed weights, planned memory.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use candle_core::{DType, Device, Tensor};
use resnet_kernels::ThreadPool;
pub use resnet_kernels::{Isa, Precision, fma_peak};

use crate::graph::{Graph, NodeId};
use crate::{Checkpoint, Error, Result};

mod batch;
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
pub struct EngineOptions {
    /// Threads that compute, the caller's included.
    pub threads: usize,
    /// The instruction set.
    pub isa: Isa,
    /// Whether Winograd may be used.
    pub precision: Precision,
    /// Images per call that the kernels are chosen for; others work too.
    pub batch: usize,
    /// Height and width in pixels that the kernels are chosen for; `None` is the checkpoint's own crop.
    pub input: Option<[usize; 2]>,
}

impl Default for EngineOptions {
    /// All cores, the best instruction set, Winograd, one image of the checkpoint's size.
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
/// Batch norms are folded, additions, ReLUs and the stem's pooling are computed with the convolutions, weights are
/// packed once, memory is planned by lifetime. Takes any batch and any image size that the network allows, from several
/// threads at once; results do not depend on the number of threads.
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
    /// For threads that compute an image each.
    solo: ThreadPool,
    /// Memory of past calls, to be used again.
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

impl Engine {
    /// Compiles a checkpoint's network.
    pub fn new(checkpoint: &Checkpoint, options: EngineOptions) -> Result<Engine> {
        let pool = ThreadPool::new(options.threads)?;
        let program = Program::new(checkpoint, &options, &pool)?;
        let solo = ThreadPool::new(1)?;
        Ok(Engine { program, options, pool, solo, sessions: Mutex::default(), plans: Mutex::default() })
    }

    /// How it was compiled.
    pub fn options(&self) -> &EngineOptions {
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
    pub fn arena_bytes(&self, dims: [usize; 4]) -> Result<usize> {
        Ok(self.arena_len(dims)? * size_of::<f32>())
    }

    /// The results named `taps`, e.g. `logits` or `layer3`, of the normalised images `x` of shape `dims` `[N, C, H, W]`.
    pub fn run(&self, x: &[f32], dims: [usize; 4], taps: &[&str]) -> Result<Vec<Output>> {
        self.run_nodes(x, dims, &self.graph().tapped(taps)?, &mut |_, _| {})
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
        let mut outputs = self.run_nodes(x, dims, &[self.graph().output()], on)?;
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
        let outputs = self.run_nodes(&x, dims, &nodes, &mut |_, _| {})?;
        outputs.into_iter().map(|o| Ok(Tensor::from_vec(o.values, o.shape, &Device::Cpu)?)).collect()
    }

    fn bad_input(&self, found: &[usize]) -> Error {
        let channels = self.graph().in_channels();
        Error::Input { found: found.to_vec(), expected: format!("[N, {channels}, H, W]") }
    }
}

#[cfg(test)]
mod tests;
