//! Thread pool, and partitioning of an output buffer among its threads.
//!
//! Each layer is one call of [`ThreadPool::run`] with one barrier at its end. Every thread starts with a contiguous
//! range of the task indices and, once that is empty, steals from the end of another thread's range. Neighboring tasks
//! compute neighboring rows, so a thread mostly reads what it wrote in the previous layer from its own cache. The
//! result of a task does not depend on the thread that runs it, so results do not depend on the number of threads.
//!
//! Rayon is not used because waking its threads takes as long as a small layer. On a 2-core Zen 4, two tasks of 9 µs
//! take 9 µs with this pool and 15 µs with `rayon::scope` on a Rayon thread; from any other thread, even an empty job
//! takes 12 to 15 µs with `rayon::ThreadPool::install`, and 0.4 µs with this pool.
#![allow(unsafe_code)]

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::error::Error;

mod partition;
mod queue;

pub(crate) use partition::{Axis, Chunk, Partition, TaskOrder, TileOutput};
use queue::TaskQueue;

/// Maximum number of threads of a pool; a larger number is almost certainly a typo.
pub const MAX_THREADS: usize = 1024;

/// Time that an idle worker spins before it sleeps: longer than the gap between two layers, short enough not to waste
/// power.
const SPIN: Duration = Duration::from_micros(50);

/// Thread pool for data-parallel loops: the calling thread and `threads − 1` workers, which spin briefly and then
/// sleep.
///
/// A pool can be used from several threads at once. A call that finds the pool busy, such as one from inside a task,
/// runs all its tasks on the calling thread instead of waiting.
pub struct ThreadPool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Tasks of the current job. The thread that submitted the job holds the lock.
    queue: Mutex<TaskQueue>,
}

impl std::fmt::Debug for ThreadPool {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.debug_struct("ThreadPool").field("threads", &self.threads()).finish()
    }
}

/// Job as seen by a worker: called once with the worker's index, returns when no task is left.
type Job<'a> = dyn Fn(usize) + Sync + 'a;

struct Shared {
    /// `epoch << 32 | open << 31 | active workers`. A worker joins an open job by adding 1 and leaves by subtracting 1;
    /// the caller closes the job and waits for 0.
    state: AtomicU64,
    /// Job of the current epoch; written only while the state is closed and no worker is active.
    job: UnsafeCell<Option<&'static Job<'static>>>,
    /// Number of workers that sleep or are about to.
    sleepers: AtomicUsize,
    control: Mutex<Control>,
    wake: Condvar,
}

#[derive(Default)]
struct Control {
    stop: bool,
    panic: Option<Box<dyn Any + Send>>,
}

const OPEN: u64 = 1 << 31;
const ACTIVE: u64 = OPEN - 1;
const EPOCH: u32 = 32;

// SAFETY: `job` is the only field that is not already `Sync`. The holder of `ThreadPool::queue` writes it while the
// state is closed and no worker is active; workers that joined an open state read it. Joining (acquire) follows opening
// (release), and the next write follows the last worker's exit (release, read with acquire).
unsafe impl Sync for Shared {}
// SAFETY: the reference in `job` points to a `Sync` closure, which may be called from any thread.
unsafe impl Send for Shared {}

thread_local! {
    static IN_TASK: Cell<bool> = const { Cell::new(false) };
}

impl ThreadPool {
    /// Creates a pool of `threads` threads, including the calling thread.
    ///
    /// # Errors
    ///
    /// `threads` is 0 or more than [`MAX_THREADS`], or the operating system fails to start a thread.
    pub fn new(threads: usize) -> Result<Self, Error> {
        if threads == 0 || threads > MAX_THREADS {
            return Err(Error::Threads { found: threads, max: MAX_THREADS });
        }
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            job: UnsafeCell::new(None),
            sleepers: AtomicUsize::new(0),
            control: Mutex::default(),
            wake: Condvar::new(),
        });
        // Created before the workers, so that `drop` stops those already started if a later one fails.
        let mut pool = Self { shared, workers: Vec::new(), queue: Mutex::new(TaskQueue::new(threads)) };
        for number in 1..threads {
            let shared = Arc::clone(&pool.shared);
            let builder = std::thread::Builder::new().name(format!("resnet-{number}"));
            pool.workers.push(builder.spawn(move || shared.worker_loop(number)).map_err(Error::Spawn)?);
        }
        Ok(pool)
    }

    /// Returns the number of threads, including the calling thread.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `task(worker, index)` once for every `index` in `0..tasks`, in any order and on any thread, and returns
    /// when all have finished. `worker` is less than [`ThreadPool::threads`] and unique among the running tasks of this
    /// call.
    ///
    /// # Panics
    ///
    /// Propagates a panic of a task after the other threads have stopped.
    pub fn run(&self, tasks: usize, task: impl Fn(usize, usize) + Sync) {
        let run_inline = || {
            let _guard = InTask::set();
            (0..tasks).for_each(|index| task(0, index));
        };
        if tasks <= 1 || tasks > TaskQueue::MAX_TASKS || self.workers.is_empty() || IN_TASK.get() {
            return run_inline();
        }
        let queue = match self.queue.try_lock() {
            Ok(queue) => queue,
            Err(TryLockError::Poisoned(queue)) => queue.into_inner(),
            Err(TryLockError::WouldBlock) => return run_inline(),
        };
        queue.reset(tasks);
        let job = |worker: usize| {
            let _guard = InTask::set();
            while let Some(index) = queue.take(worker) {
                task(worker, index);
            }
        };
        self.shared.start_job(&job);
        let own_result = catch_unwind(AssertUnwindSafe(|| job(0)));
        if own_result.is_err() {
            queue.reset(0);
        }
        let worker_panic = self.shared.finish_job();
        if let Err(panic) = own_result {
            resume_unwind(panic);
        }
        if let Some(panic) = worker_panic {
            resume_unwind(panic);
        }
    }

    /// Splits `data` into chunks of `len` elements (the last may be shorter) and runs `task(index, chunk)` for each.
    pub fn for_each_chunk<T: Send>(&self, data: &mut [T], len: usize, task: impl Fn(usize, &mut [T]) + Sync) {
        let len = len.max(1);
        let total = data.len();
        let data = partition::Pointer(data.as_mut_ptr());
        self.run(total.div_ceil(len), |_, index| {
            let start = index * len;
            // SAFETY: `run` passes every index to one task only and `index * len < total`; chunks of different indices
            // do not overlap, all are inside the borrowed slice, and the borrow outlives `run`.
            let chunk =
                unsafe { std::slice::from_raw_parts_mut(data.get().add(start), len.min(total - start)) };
            task(index, chunk);
        });
    }
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.wake.notify_all();
        for worker in self.workers.drain(..) {
            // Workers catch the panics of their tasks, so there is no result to report.
            let _ = worker.join();
        }
    }
}

/// Guard that marks the thread as inside a task, so that a nested call does not wait for the pool that it occupies.
struct InTask(bool);

impl InTask {
    fn set() -> Self {
        Self(IN_TASK.replace(true))
    }
}

impl Drop for InTask {
    fn drop(&mut self) {
        IN_TASK.set(self.0);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Control> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens `job` to the workers. The caller holds `ThreadPool::queue` and calls `finish_job` before `job` goes out of
    /// scope.
    fn start_job(&self, job: &Job) {
        // SAFETY: only the lifetime changes. Workers call the reference only while active in an open state, and
        // `finish_job`, which follows on every path (`run` catches panics), returns after the last of them has left.
        let job: &'static Job<'static> = unsafe { std::mem::transmute(job) };
        // SAFETY: the state is closed without active workers (initially, and after every `finish_job`), so no thread
        // reads the cell, and the holder of `ThreadPool::queue` is the only writer.
        unsafe { *self.job.get() = Some(job) };
        let epoch = (self.state.load(Ordering::Relaxed) >> EPOCH).wrapping_add(1);
        // Sequentially consistent, as in `sleep`: either the sleeper sees the new state or this thread sees the
        // sleeper.
        self.state.store(epoch << EPOCH | OPEN, Ordering::SeqCst);
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            drop(self.lock());
            self.wake.notify_all();
        }
    }

    /// Closes the job, waits for the active workers and returns the panic of one of them, if any.
    fn finish_job(&self) -> Option<Box<dyn Any + Send>> {
        let mut state = self.state.fetch_and(!OPEN, Ordering::AcqRel);
        let mut spins = 0u32;
        while state & ACTIVE != 0 {
            spins += 1;
            if spins.is_multiple_of(1 << 12) {
                // The worker may need this core.
                std::thread::yield_now();
            }
            std::hint::spin_loop();
            state = self.state.load(Ordering::Acquire);
        }
        // An uncontended lock costs as much as a check that would avoid it.
        self.lock().panic.take()
    }

    fn worker_loop(&self, number: usize) {
        let mut seen = 0;
        while let Some(epoch) = self.join_job(seen) {
            seen = epoch;
            // SAFETY: this worker is active in an open state, so the cell has been written and is not being written.
            let job = unsafe { *self.job.get() };
            if let Some(job) = job
                && let Err(panic) = catch_unwind(AssertUnwindSafe(|| job(number)))
            {
                self.lock().panic = Some(panic);
            }
            self.state.fetch_sub(1, Ordering::Release);
        }
    }

    /// Waits for a job newer than epoch `seen`, joins it and returns its epoch; returns `None` when the pool is
    /// dropped.
    fn join_job(&self, seen: u64) -> Option<u64> {
        let mut since = Instant::now();
        let mut spins = 0u32;
        loop {
            let state = self.state.load(Ordering::Acquire);
            if state & OPEN != 0 && state >> EPOCH != seen {
                let joined =
                    self.state.compare_exchange_weak(state, state + 1, Ordering::AcqRel, Ordering::Relaxed);
                if joined.is_ok() {
                    return Some(state >> EPOCH);
                }
                continue;
            }
            spins += 1;
            if spins.is_multiple_of(64) && since.elapsed() > SPIN {
                self.sleep(seen)?;
                since = Instant::now();
            }
            std::hint::spin_loop();
        }
    }

    /// Sleeps until a job newer than epoch `seen` is open; returns `None` when the pool is dropped.
    fn sleep(&self, seen: u64) -> Option<()> {
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        let mut control = self.lock();
        let is_new = |state: u64| state & OPEN != 0 && state >> EPOCH != seen;
        while !control.stop && !is_new(self.state.load(Ordering::SeqCst)) {
            control = self.wake.wait(control).unwrap_or_else(PoisonError::into_inner);
        }
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
        (!control.stop).then_some(())
    }
}

#[cfg(test)]
mod tests;
