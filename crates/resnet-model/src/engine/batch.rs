//! How a batch is computed: in which parts, on which threads.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use resnet_kernels::ThreadPool;

use super::pack::MOST_IMAGES;
use super::session::{Layout, Session, Wanted};
use super::{Engine, Output, run};
use crate::graph::NodeId;
use crate::{Error, Result};

/// Sizes and wishes for which memory and memory plans are kept.
const KEPT: usize = 8;

/// A batch in two parts: the early steps on each image by itself, the late ones on all images together.
struct Parts {
    early: Wanted,
    late: Wanted,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Engine {
    /// The results `nodes` of all images.
    pub(super) fn run_nodes(
        &self,
        x: &[f32],
        dims: [usize; 4],
        nodes: &[NodeId],
        on: &mut dyn FnMut(usize, Duration),
    ) -> Result<Vec<Output>> {
        let elements = dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        if dims[0] == 0 || dims[1] != self.graph().in_channels() || elements != Some(x.len()) {
            return Err(self.bad_input(&dims));
        }
        let image = x.len() / dims[0];
        let mut whole: Vec<Output> = Vec::new();
        let mut times = vec![Duration::ZERO; self.program.steps.len()];
        for start in (0..dims[0]).step_by(MOST_IMAGES) {
            let n = MOST_IMAGES.min(dims[0] - start);
            let x = &x[start * image..][..n * image];
            let parts = self.parts([n, dims[1], dims[2], dims[3]], nodes);
            let mut on = |step: usize, time| times[step] += time;
            let outputs = match parts.early.steps.is_empty() {
                true => self.run_late(x, &parts.late, self.session(&parts.late)?, &mut on)?,
                false => self.run_parts(x, &parts, nodes, &mut on)?,
            };
            match whole.as_mut_slice() {
                [] => whole = outputs,
                whole => whole.iter_mut().zip(outputs).for_each(|(all, part)| all.append(part)),
            }
        }
        times.into_iter().enumerate().for_each(|(step, time)| on(step, time));
        Ok(whole)
    }

    /// Elements of activation memory that a batch occupies.
    pub(super) fn arena_len(&self, [n, c, h, w]: [usize; 4]) -> Result<usize> {
        let parts = self.parts([n.min(MOST_IMAGES), c, h, w], &[self.graph().output()]);
        let late = self.layout(&parts.late)?.arena_len();
        if parts.early.steps.is_empty() {
            return Ok(late);
        }
        let at_once = if n < self.pool.threads() { 1 } else { self.pool.threads() };
        Ok(late + at_once * self.layout(&parts.early)?.arena_len())
    }

    fn parts(&self, dims: [usize; 4], nodes: &[NodeId]) -> Parts {
        let steps = &self.program.steps;
        let last = nodes.iter().max().copied().unwrap_or_else(|| self.graph().output());
        let end = steps.iter().take_while(|s| s.step.node <= last).count();
        let middle = if dims[0] == 1 { 0 } else { self.program.late.min(end) };
        let (before, after) = steps[..end].split_at(middle);
        let is_early = |node: &NodeId| before.last().is_some_and(|s| *node <= s.step.node);
        let read: Vec<NodeId> = after.iter().flat_map(|s| &s.step.inputs).copied().collect();
        // The network's input needs no giving: all have it.
        let given: Vec<NodeId> =
            before.iter().map(|s| s.step.node).filter(|node| read.contains(node)).collect();
        let (mut early, late): (Vec<NodeId>, Vec<NodeId>) = nodes.iter().partition(|node| is_early(node));
        early.extend(&given);
        let [_, c, h, w] = dims;
        let threads = if dims[0] < self.pool.threads() { self.pool.threads() } else { 1 };
        Parts {
            early: Wanted { dims: [1, c, h, w], steps: 0..middle, nodes: early, given: vec![], threads },
            late: Wanted { dims, steps: middle..end, nodes: late, given, threads: self.pool.threads() },
        }
    }

    fn run_parts(
        &self,
        x: &[f32],
        parts: &Parts,
        nodes: &[NodeId],
        on: &mut dyn FnMut(usize, Duration),
    ) -> Result<Vec<Output>> {
        let Parts { early, late } = parts;
        let n = late.dims[0];
        let mut session = self.session(late)?;
        let layout = session.layout().clone();
        let wanted_early: Vec<NodeId> = early.nodes[..early.nodes.len() - late.given.len()].to_vec();
        let found: Vec<Mutex<Result<Vec<Output>>>> = (0..n).map(|_| Mutex::new(Ok(vec![]))).collect();
        let times = Mutex::new(vec![Duration::ZERO; self.program.steps.len()]);
        let memory = Mutex::new(&mut session.arena[..]);
        let compute = |index: usize, pool: &ThreadPool| -> Result<Vec<Output>> {
            let mut session = self.session(&Wanted { threads: pool.threads(), ..early.clone() })?;
            let from = session.layout().clone();
            let image = &x[index * x.len() / n..][..x.len() / n];
            // Images side by side share the time that passes.
            let share = (self.pool.threads() / pool.threads()) as u32;
            let mut taken = vec![];
            run::run(&self.program, &mut session, image, pool, &mut |step, time| taken.push((step, time)))?;
            taken.into_iter().for_each(|(step, time)| lock(&times)[step] += time / share);
            for &node in &late.given {
                let ((_, from), (_, to)) = (from.place(node)?, layout.place(node)?);
                let len = from.len();
                lock(&memory)[to][index * len..][..len].copy_from_slice(&session.arena[from]);
            }
            let outputs = wanted_early.iter().map(|&node| run::output(&from, node, &session.arena, pool));
            let outputs = outputs.collect::<Result<_>>()?;
            self.keep(session);
            Ok(outputs)
        };
        // Threads with an image each do not wait for each other; what is left over is computed by all.
        let alone = n / self.pool.threads() * self.pool.threads();
        self.pool.run(alone, |_, index| *lock(&found[index]) = compute(index, &self.solo));
        for (index, found) in found.iter().enumerate().skip(alone) {
            *lock(found) = compute(index, &self.pool);
        }
        let mut early_outputs: Vec<Output> = Vec::new();
        for found in found {
            let found = found.into_inner().unwrap_or_else(PoisonError::into_inner)?;
            match early_outputs.as_mut_slice() {
                [] => early_outputs = found,
                all => all.iter_mut().zip(found).for_each(|(all, one)| all.append(one)),
            }
        }
        lock(&times).iter().enumerate().for_each(|(step, time)| on(step, *time));
        let late_outputs = self.run_late(x, late, session, on)?;
        let mut outputs = (early_outputs.into_iter(), late_outputs.into_iter());
        let next = |node: &NodeId| match wanted_early.contains(node) {
            true => outputs.0.next(),
            false => outputs.1.next(),
        };
        let missing = || Error::Missing("output".into());
        nodes.iter().map(next).collect::<Option<_>>().ok_or_else(missing)
    }

    fn run_late(
        &self,
        x: &[f32],
        late: &Wanted,
        mut session: Session,
        on: &mut dyn FnMut(usize, Duration),
    ) -> Result<Vec<Output>> {
        run::run(&self.program, &mut session, x, &self.pool, on)?;
        let output = |&node: &NodeId| run::output(session.layout(), node, &session.arena, &self.pool);
        let outputs = late.nodes.iter().map(output).collect::<Result<_>>()?;
        self.keep(session);
        Ok(outputs)
    }

    /// Memory for `wanted`: that of an earlier call of the same kind if nobody uses it now.
    fn session(&self, wanted: &Wanted) -> Result<Session> {
        let mut sessions = lock(&self.sessions);
        if let Some(position) = sessions.iter().rposition(|s| s.layout().wanted() == wanted) {
            return Ok(sessions.remove(position));
        }
        drop(sessions);
        Session::new(self.layout(wanted)?)
    }

    fn keep(&self, session: Session) {
        let mut sessions = lock(&self.sessions);
        sessions.push(session);
        if sessions.len() > KEPT + self.options.threads {
            sessions.remove(0);
        }
    }

    fn layout(&self, wanted: &Wanted) -> Result<Arc<Layout>> {
        let mut plans = lock(&self.plans);
        if let Some(layout) = plans.get(wanted) {
            return Ok(layout.clone());
        }
        let layout = Arc::new(Layout::new(&self.program, wanted.clone())?);
        if plans.len() >= KEPT {
            plans.clear();
        }
        plans.insert(wanted.clone(), layout.clone());
        Ok(layout)
    }
}
