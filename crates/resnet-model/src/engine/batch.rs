//! Execution of a batch: chunks, threads and reuse of buffers.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use resnet_kernels::ThreadPool;

use super::pack::MAX_IMAGES;
use super::session::{MemoryPlan, Request, Session};
use super::{Engine, Output, run};
use crate::graph::NodeId;
use crate::{Error, Result};

/// Number of sessions and memory plans that are cached.
const CACHED: usize = 8;

/// The two phases of a batch: the first steps run on one image at a time, the others on the whole batch.
struct Phases {
    per_image: Request,
    batched: Request,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Engine {
    /// Returns the results of `nodes` for all images.
    pub(super) fn run_nodes(
        &self,
        x: &[f32],
        dims: [usize; 4],
        nodes: &[NodeId],
        on: &mut dyn FnMut(usize, Duration),
    ) -> Result<Vec<Output>> {
        let image = self.image_len(x, dims)?;
        let mut whole: Vec<Output> = Vec::new();
        let mut times = vec![Duration::ZERO; self.program.steps.len()];
        for start in (0..dims[0]).step_by(MAX_IMAGES) {
            let n = MAX_IMAGES.min(dims[0] - start);
            let x = &x[start * image..][..n * image];
            let phases = self.phases([n, dims[1], dims[2], dims[3]], nodes);
            let mut on = |step: usize, time| times[step] += time;
            let outputs = match phases.per_image.steps.is_empty() {
                true => {
                    let session = self.session(&phases.batched)?;
                    self.run_batched(x, &phases.batched, session, &self.pool, &mut on)?
                }
                false => self.run_phases(x, &phases, nodes, &mut on)?,
            };
            match whole.as_mut_slice() {
                [] => whole = outputs,
                whole => whole.iter_mut().zip(outputs).for_each(|(all, chunk)| all.append(chunk)),
            }
        }
        times.into_iter().enumerate().for_each(|(step, time)| on(step, time));
        Ok(whole)
    }

    /// Returns the results of `nodes` for all images, one after another on the calling thread.
    pub(super) fn run_nodes_single_threaded(
        &self,
        x: &[f32],
        dims: [usize; 4],
        nodes: &[NodeId],
    ) -> Result<Vec<Output>> {
        let image = self.image_len(x, dims)?;
        let one = self.phases([1, dims[1], dims[2], dims[3]], nodes).batched;
        let request = Request { threads: 1, ..one };
        let mut whole: Vec<Output> = Vec::new();
        // An invalid image size is an error of the plan.
        self.memory_plan(&request)?;
        for x in x.chunks(image.max(1)) {
            let session = self.session(&request)?;
            let outputs = self.run_batched(x, &request, session, &self.single_thread, &mut |_, _| {})?;
            match whole.as_mut_slice() {
                [] => whole = outputs,
                whole => whole.iter_mut().zip(outputs).for_each(|(all, one)| all.append(one)),
            }
        }
        Ok(whole)
    }

    /// Returns the number of elements of one image of `x`, whose shape is `dims`.
    fn image_len(&self, x: &[f32], dims: [usize; 4]) -> Result<usize> {
        let elements = dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        if dims[0] == 0 || dims[1] != self.graph().in_channels() || elements != Some(x.len()) {
            return Err(self.input_error(&dims));
        }
        Ok(x.len() / dims[0])
    }

    /// Returns the number of elements of activation memory for a batch.
    pub(super) fn arena_len(&self, [n, c, h, w]: [usize; 4]) -> Result<usize> {
        let phases = self.phases([n.min(MAX_IMAGES), c, h, w], &[self.graph().output()]);
        let batched = self.memory_plan(&phases.batched)?.arena_len();
        if phases.per_image.steps.is_empty() {
            return Ok(batched);
        }
        let concurrent = if n < self.pool.threads() { 1 } else { self.pool.threads() };
        Ok(batched + concurrent * self.memory_plan(&phases.per_image)?.arena_len())
    }

    fn phases(&self, dims: [usize; 4], nodes: &[NodeId]) -> Phases {
        let steps = &self.program.steps;
        let last = nodes.iter().max().copied().unwrap_or_else(|| self.graph().output());
        let end = steps.iter().take_while(|s| s.step.node <= last).count();
        let middle = if dims[0] == 1 { 0 } else { self.program.batched_from.min(end) };
        let (before, after) = steps[..end].split_at(middle);
        let is_per_image = |node: &NodeId| before.last().is_some_and(|s| *node <= s.step.node);
        let read: Vec<NodeId> = after.iter().flat_map(|s| &s.step.inputs).copied().collect();
        // All steps can read the input of the network.
        let passed_on: Vec<NodeId> =
            before.iter().map(|s| s.step.node).filter(|node| read.contains(node)).collect();
        let (mut per_image, batched): (Vec<NodeId>, Vec<NodeId>) =
            nodes.iter().partition(|node| is_per_image(node));
        per_image.extend(&passed_on);
        let [_, c, h, w] = dims;
        let threads = if dims[0] < self.pool.threads() { self.pool.threads() } else { 1 };
        let all_threads = self.pool.threads();
        Phases {
            per_image: Request {
                dims: [1, c, h, w],
                steps: 0..middle,
                outputs: per_image,
                inputs: vec![],
                threads,
            },
            batched: Request {
                dims,
                steps: middle..end,
                outputs: batched,
                inputs: passed_on,
                threads: all_threads,
            },
        }
    }

    fn run_phases(
        &self,
        x: &[f32],
        phases: &Phases,
        nodes: &[NodeId],
        on: &mut dyn FnMut(usize, Duration),
    ) -> Result<Vec<Output>> {
        let Phases { per_image, batched } = phases;
        let n = batched.dims[0];
        let mut session = self.session(batched)?;
        let plan = session.plan().clone();
        let requested: Vec<NodeId> =
            per_image.outputs[..per_image.outputs.len() - batched.inputs.len()].to_vec();
        let found: Vec<Mutex<Result<Vec<Output>>>> = (0..n).map(|_| Mutex::new(Ok(vec![]))).collect();
        let times = Mutex::new(vec![Duration::ZERO; self.program.steps.len()]);
        let arena = Mutex::new(&mut session.arena[..]);
        let compute = |index: usize, pool: &ThreadPool| -> Result<Vec<Output>> {
            let mut session = self.session(&Request { threads: pool.threads(), ..per_image.clone() })?;
            let image_plan = session.plan().clone();
            let image = &x[index * x.len() / n..][..x.len() / n];
            // Images that run concurrently share the wall time.
            let concurrent = (self.pool.threads() / pool.threads()) as u32;
            let mut durations = vec![];
            run::run(&self.program, &mut session, image, pool, &mut |step, time| {
                durations.push((step, time))
            })?;
            durations.into_iter().for_each(|(step, time)| lock(&times)[step] += time / concurrent);
            for &node in &batched.inputs {
                let ((_, from), (_, to)) = (image_plan.place(node)?, plan.place(node)?);
                let len = from.len();
                lock(&arena)[to][index * len..][..len].copy_from_slice(&session.arena[from]);
            }
            let outputs = requested.iter().map(|&node| run::output(&image_plan, node, &session.arena, pool));
            let outputs = outputs.collect::<Result<_>>()?;
            self.cache(session);
            Ok(outputs)
        };
        // Threads that each compute an image need not wait for each other; all threads share each remaining image.
        let independent = n / self.pool.threads() * self.pool.threads();
        self.pool.run(independent, |_, index| *lock(&found[index]) = compute(index, &self.single_thread));
        for (index, found) in found.iter().enumerate().skip(independent) {
            *lock(found) = compute(index, &self.pool);
        }
        let mut image_outputs: Vec<Output> = Vec::new();
        for found in found {
            let found = found.into_inner().unwrap_or_else(PoisonError::into_inner)?;
            match image_outputs.as_mut_slice() {
                [] => image_outputs = found,
                all => all.iter_mut().zip(found).for_each(|(all, one)| all.append(one)),
            }
        }
        lock(&times).iter().enumerate().for_each(|(step, time)| on(step, *time));
        let batched_outputs = self.run_batched(x, batched, session, &self.pool, on)?;
        let mut outputs = (image_outputs.into_iter(), batched_outputs.into_iter());
        let next = |node: &NodeId| match requested.contains(node) {
            true => outputs.0.next(),
            false => outputs.1.next(),
        };
        let missing = || Error::Missing("output".into());
        nodes.iter().map(next).collect::<Option<_>>().ok_or_else(missing)
    }

    fn run_batched(
        &self,
        x: &[f32],
        request: &Request,
        mut session: Session,
        pool: &ThreadPool,
        on: &mut dyn FnMut(usize, Duration),
    ) -> Result<Vec<Output>> {
        run::run(&self.program, &mut session, x, pool, on)?;
        let output = |&node: &NodeId| run::output(session.plan(), node, &session.arena, pool);
        let outputs = request.outputs.iter().map(output).collect::<Result<_>>()?;
        self.cache(session);
        Ok(outputs)
    }

    /// Returns a session for `request`, reusing an idle one of a previous call.
    fn session(&self, request: &Request) -> Result<Session> {
        let mut sessions = lock(&self.sessions);
        if let Some(position) = sessions.iter().rposition(|s| s.plan().request() == request) {
            return Ok(sessions.remove(position));
        }
        drop(sessions);
        Session::new(self.memory_plan(request)?)
    }

    fn cache(&self, session: Session) {
        let mut sessions = lock(&self.sessions);
        sessions.push(session);
        if sessions.len() > CACHED + self.options.threads {
            sessions.remove(0);
        }
    }

    fn memory_plan(&self, request: &Request) -> Result<Arc<MemoryPlan>> {
        let mut plans = lock(&self.memory_plans);
        if let Some(plan) = plans.get(request) {
            return Ok(plan.clone());
        }
        let plan = Arc::new(MemoryPlan::new(&self.program, request.clone())?);
        if plans.len() >= CACHED {
            plans.clear();
        }
        plans.insert(request.clone(), plan.clone());
        Ok(plan)
    }
}
