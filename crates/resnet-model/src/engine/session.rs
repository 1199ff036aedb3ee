//! The memory plan for one input size, and the memory of one call.

use std::ops::Range;
use std::sync::Arc;

use resnet_kernels::{AlignedVec, Blocked};

use super::memory::{Lifetime, place};
use super::pack::{CompiledStep, Kernel, Program};
use crate::cost;
use crate::graph::NodeId;
use crate::{Error, Result};

/// The shape of a batch, the steps to run and the requested results.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Request {
    /// `[N, C, H, W]` of the network's input.
    pub(super) dims: [usize; 4],
    pub(super) steps: Range<usize>,
    /// Results that stay live until the end.
    pub(super) outputs: Vec<NodeId>,
    /// Results of earlier steps, written by the caller.
    pub(super) inputs: Vec<NodeId>,
    /// Threads per step.
    pub(super) threads: usize,
}

/// The memory layout of a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ResultLayout {
    /// Blocks of 16 channels with a halo of zeros.
    Blocked(Blocked),
    /// `[N, C]`.
    Dense { n: usize, c: usize },
}

impl ResultLayout {
    pub(super) fn len(&self) -> usize {
        match self {
            ResultLayout::Blocked(layout) => layout.len(),
            ResultLayout::Dense { n, c } => n * c,
        }
    }
}

/// Layouts and offsets of all results for one [`Request`].
#[derive(Debug)]
pub(super) struct MemoryPlan {
    request: Request,
    /// If `true`, the network's input is packed for a step that reads blocked layout.
    pub(super) packs_input: bool,
    /// By node; `None` for fused nodes and for nodes of other steps.
    layouts: Vec<Option<ResultLayout>>,
    places: Vec<Range<usize>>,
    /// By step, from the first step of the request.
    pub(super) scratch: Vec<Range<usize>>,
    /// By step: if `true`, the result overwrites the residual.
    pub(super) in_place: Vec<bool>,
    arena: usize,
}

impl MemoryPlan {
    pub(super) fn new(program: &Program, request: Request) -> Result<MemoryPlan> {
        let graph = &program.graph;
        let [n, _, height, width] = request.dims;
        let costs = graph.costs(height, width)?;
        let running = &program.steps[request.steps.clone()];
        let end = running.len();

        let layout_of = |node: NodeId| -> Result<ResultLayout> {
            match *costs[node.index()].shape {
                [c, h, w] => {
                    let layout = Blocked::new([n, c, h, w])?.with_halo(program.halos[node.index()])?;
                    Ok(ResultLayout::Blocked(layout))
                }
                _ => Ok(ResultLayout::Dense { n, c: graph.node(node).channels }),
            }
        };
        let mut last_use: Vec<usize> = vec![0; graph.nodes().len()];
        for (i, s) in running.iter().enumerate() {
            for input in &s.step.inputs {
                last_use[input.index()] = i;
            }
        }
        for node in &request.outputs {
            last_use[node.index()] = end;
        }
        let packs_input =
            program.packs_input && running.iter().any(|s| s.step.inputs.iter().any(|i| i.index() == 0));

        // One buffer per result; a result that overwrites its residual shares the buffer of the residual.
        let mut layouts = vec![None; graph.nodes().len()];
        let mut buffers: Vec<Lifetime> = Vec::new();
        let mut buffer_of: Vec<usize> = vec![usize::MAX; graph.nodes().len()];
        let input = graph.ids().next().filter(|_| packs_input);
        for &node in request.inputs.iter().chain(&input) {
            let layout = layout_of(node)?;
            layouts[node.index()] = Some(layout);
            buffer_of[node.index()] = buffers.len();
            buffers.push(Lifetime { len: layout.len(), steps: 0..last_use[node.index()] + 1 });
        }
        for s in running {
            layouts[s.step.node.index()] = Some(layout_of(s.step.node)?);
        }
        let in_place: Vec<bool> =
            running.iter().enumerate().map(|(i, s)| overwrites(s, i, &layouts, &last_use)).collect();
        let mut scratch_buffer = Vec::with_capacity(end);
        for (i, s) in running.iter().enumerate() {
            let node = s.step.node;
            if in_place[i] {
                let shared = buffer_of[s.step.inputs[1].index()];
                buffer_of[node.index()] = shared;
                buffers[shared].steps.end = last_use[node.index()].max(i) + 1;
            } else {
                buffer_of[node.index()] = buffers.len();
                let len = layouts[node.index()].map_or(0, |layout: ResultLayout| layout.len());
                buffers.push(Lifetime { len, steps: i..last_use[node.index()].max(i) + 1 });
            }
            let len = scratch_len(s, &costs, n, request.threads)?;
            scratch_buffer.push(buffers.len());
            buffers.push(Lifetime { len, steps: i..i + 1 });
        }
        let (starts, arena) = place(&buffers);
        let range = |b: usize| buffers.get(b).map_or(0..0, |buffer| starts[b]..starts[b] + buffer.len);
        let places = buffer_of.iter().map(|&b| range(b)).collect();
        let scratch = scratch_buffer.iter().map(|&b| range(b)).collect();
        Ok(MemoryPlan { request, packs_input, layouts, places, scratch, in_place, arena })
    }

    pub(super) fn request(&self) -> &Request {
        &self.request
    }

    pub(super) fn arena_len(&self) -> usize {
        self.arena
    }

    /// Returns the layout of the result of `node` and its range in the arena.
    pub(super) fn place(&self, node: NodeId) -> Result<(ResultLayout, Range<usize>)> {
        let layout =
            self.layouts[node.index()].ok_or_else(|| Error::Missing(format!("result {}", node.index())))?;
        Ok((layout, self.places[node.index()].clone()))
    }
}

/// Returns `true` if a convolution may overwrite the residual that it adds: nothing reads the residual later, and both have
/// the same layout.
fn overwrites(s: &CompiledStep, step: usize, layouts: &[Option<ResultLayout>], last_use: &[usize]) -> bool {
    let (Kernel::Conv(_), [input, residual]) = (&s.kernel, s.step.inputs.as_slice()) else { return false };
    let residual_layout = layouts[residual.index()];
    let same = residual_layout.is_some() && residual_layout == layouts[s.step.node.index()];
    same && input != residual && last_use[residual.index()] == step
}

fn scratch_len(s: &CompiledStep, costs: &[cost::Cost], n: usize, threads: usize) -> Result<usize> {
    match &s.kernel {
        Kernel::Conv(conv) => match *costs[s.step.inputs[0].index()].shape {
            [c, h, w] => Ok(conv.scratch_len([n, c, h, w], threads)?),
            _ => Ok(0),
        },
        Kernel::Linear(linear) => Ok(linear.scratch_len(n)?),
        _ => Ok(0),
    }
}

/// The memory of one call.
#[derive(Debug)]
pub(super) struct Session {
    plan: Arc<MemoryPlan>,
    pub(super) arena: AlignedVec,
}

impl Session {
    pub(super) fn new(plan: Arc<MemoryPlan>) -> Result<Session> {
        Ok(Session { arena: AlignedVec::zeroed(plan.arena)?, plan })
    }

    pub(super) fn plan(&self) -> &Arc<MemoryPlan> {
        &self.plan
    }
}
