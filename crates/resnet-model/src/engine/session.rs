//! Where results lie for one input size, and the memory of one call.

use std::ops::Range;
use std::sync::Arc;

use resnet_kernels::{AlignedVec, Blocked};

use super::memory::{Lifetime, place};
use super::pack::{Compiled, Kernel, Program};
use crate::cost;
use crate::graph::NodeId;
use crate::{Error, Result};

/// A batch's shape, the steps to run on it and the results asked for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Wanted {
    /// `[N, C, H, W]` of the network's input.
    pub(super) dims: [usize; 4],
    pub(super) steps: Range<usize>,
    /// Results that are kept to the end.
    pub(super) nodes: Vec<NodeId>,
    /// Results of earlier steps, which the caller writes before.
    pub(super) given: Vec<NodeId>,
    /// Threads that share each step.
    pub(super) threads: usize,
}

/// How a result is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// Blocks of 16 channels with a zero border.
    Blocked(Blocked),
    /// `[N, C]`.
    Dense { n: usize, c: usize },
}

impl Form {
    pub(super) fn len(&self) -> usize {
        match self {
            Form::Blocked(layout) => layout.len(),
            Form::Dense { n, c } => n * c,
        }
    }
}

/// Forms and places of all results for one [`Wanted`].
#[derive(Debug)]
pub(super) struct Layout {
    wanted: Wanted,
    /// Whether the network's input is repacked, for a step that reads blocks of channels.
    pub(super) packs_input: bool,
    /// By node; `None` for nodes that a step has taken in or that belong to other steps.
    pub(super) forms: Vec<Option<Form>>,
    places: Vec<Range<usize>>,
    /// By step, from the first of those that are run on.
    pub(super) scratch: Vec<Range<usize>>,
    /// By step: whether the result overwrites the residual.
    pub(super) in_place: Vec<bool>,
    arena: usize,
}

impl Layout {
    pub(super) fn new(program: &Program, wanted: Wanted) -> Result<Layout> {
        let graph = &program.graph;
        let [n, _, height, width] = wanted.dims;
        let costs = cost::list(graph, height, width)?;
        let running = &program.steps[wanted.steps.clone()];
        let end = running.len();

        let form = |node: NodeId| -> Result<Form> {
            match *costs[node.index()].shape {
                [c, h, w] => {
                    let layout = Blocked::new([n, c, h, w])?.with_halo(program.halos[node.index()])?;
                    Ok(Form::Blocked(layout))
                }
                _ => Ok(Form::Dense { n, c: graph.node(node).channels }),
            }
        };
        let mut last_use: Vec<usize> = vec![0; graph.nodes().len()];
        for (i, s) in running.iter().enumerate() {
            for input in &s.step.inputs {
                last_use[input.index()] = i;
            }
        }
        for node in &wanted.nodes {
            last_use[node.index()] = end;
        }
        let packs_input =
            program.packs_input && running.iter().any(|s| s.step.inputs.iter().any(|i| i.index() == 0));

        // One buffer per result; a result that overwrites its residual has the residual's.
        let mut forms = vec![None; graph.nodes().len()];
        let mut buffers: Vec<Lifetime> = Vec::new();
        let mut buffer_of: Vec<usize> = vec![usize::MAX; graph.nodes().len()];
        let input = graph.ids().next().filter(|_| packs_input);
        for &node in wanted.given.iter().chain(&input) {
            let form = form(node)?;
            forms[node.index()] = Some(form);
            buffer_of[node.index()] = buffers.len();
            buffers.push(Lifetime { len: form.len(), steps: 0..last_use[node.index()] + 1 });
        }
        for s in running {
            forms[s.step.node.index()] = Some(form(s.step.node)?);
        }
        let in_place: Vec<bool> =
            running.iter().enumerate().map(|(i, s)| overwrites(s, i, &forms, &last_use)).collect();
        let mut scratch_buffer = Vec::with_capacity(end);
        for (i, s) in running.iter().enumerate() {
            let node = s.step.node;
            if in_place[i] {
                let shared = buffer_of[s.step.inputs[1].index()];
                buffer_of[node.index()] = shared;
                buffers[shared].steps.end = last_use[node.index()].max(i) + 1;
            } else {
                buffer_of[node.index()] = buffers.len();
                let len = forms[node.index()].map_or(0, |f: Form| f.len());
                buffers.push(Lifetime { len, steps: i..last_use[node.index()].max(i) + 1 });
            }
            let len = scratch_len(s, &costs, n, wanted.threads)?;
            scratch_buffer.push(buffers.len());
            buffers.push(Lifetime { len, steps: i..i + 1 });
        }
        let (starts, arena) = place(&buffers);
        let range = |b: usize| buffers.get(b).map_or(0..0, |buffer| starts[b]..starts[b] + buffer.len);
        let places = buffer_of.iter().map(|&b| range(b)).collect();
        let scratch = scratch_buffer.iter().map(|&b| range(b)).collect();
        Ok(Layout { wanted, packs_input, forms, places, scratch, in_place, arena })
    }

    pub(super) fn wanted(&self) -> &Wanted {
        &self.wanted
    }

    pub(super) fn arena_len(&self) -> usize {
        self.arena
    }

    /// Where the result of `node` lies and how.
    pub(super) fn place(&self, node: NodeId) -> Result<(Form, Range<usize>)> {
        let form =
            self.forms[node.index()].ok_or_else(|| Error::Missing(format!("result {}", node.index())))?;
        Ok((form, self.places[node.index()].clone()))
    }
}

/// Whether a convolution may write its result over the residual that it adds: nobody reads that one later, and both
/// lie the same way.
fn overwrites(s: &Compiled, step: usize, forms: &[Option<Form>], last_use: &[usize]) -> bool {
    let (Kernel::Conv(_), [input, residual]) = (&s.kernel, s.step.inputs.as_slice()) else { return false };
    let same = forms[residual.index()].is_some() && forms[residual.index()] == forms[s.step.node.index()];
    same && input != residual && last_use[residual.index()] == step
}

fn scratch_len(s: &Compiled, costs: &[cost::Cost], n: usize, threads: usize) -> Result<usize> {
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
    layout: Arc<Layout>,
    pub(super) arena: AlignedVec,
}

impl Session {
    pub(super) fn new(layout: Arc<Layout>) -> Result<Session> {
        Ok(Session { arena: AlignedVec::zeroed(layout.arena)?, layout })
    }

    pub(super) fn layout(&self) -> &Arc<Layout> {
        &self.layout
    }
}
