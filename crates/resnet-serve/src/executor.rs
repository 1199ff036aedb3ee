//! Worker threads and their bounded queue.
//!
//! Every image holds a permit from admission to its answer, so the permits bound both queues. Workers prefer images that
//! are ready for the network over images to decode: finished work frees permits.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::config::{Config, ThreadsPerImage};
use crate::error::ApiError;
use crate::metrics::Metrics;
use crate::model::{Answer, Input, Prepared, ServedModel};

/// Receiver of one image's answer.
pub(crate) type Pending = oneshot::Receiver<Result<Answer, ApiError>>;

/// Worker threads and their queue.
#[derive(Debug)]
pub(crate) struct Executor {
    shared: Arc<Shared>,
    workers: Mutex<Vec<JoinHandle<()>>>,
}

#[derive(Debug)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
    permits: Arc<Semaphore>,
    config: Config,
    metrics: Arc<Metrics>,
}

#[derive(Debug, Default)]
struct Queue {
    encoded: VecDeque<Job<Input>>,
    prepared: VecDeque<Job<Prepared>>,
    /// Images that a worker is decoding or computing.
    running: usize,
    closed: bool,
}

/// One image on its way.
#[derive(Debug)]
struct Job<T> {
    item: T,
    model: Arc<ServedModel>,
    taps: Arc<[String]>,
    /// When the image entered the queue that it is in.
    queued: Instant,
    deadline: Instant,
    answer: oneshot::Sender<Result<Answer, ApiError>>,
    _permit: OwnedSemaphorePermit,
}

impl Executor {
    /// Starts the worker threads.
    pub(crate) fn new(config: &Config, metrics: Arc<Metrics>) -> std::io::Result<Executor> {
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            changed: Condvar::new(),
            permits: Arc::new(Semaphore::new(config.max_in_flight)),
            config: config.clone(),
            metrics,
        });
        let spawn = |index: usize| {
            let shared = shared.clone();
            thread::Builder::new().name(format!("resnet-{index}")).spawn(move || shared.work())
        };
        let count = match config.threads_per_image {
            ThreadsPerImage::All => 1,
            ThreadsPerImage::Auto | ThreadsPerImage::One => config.threads.max(1),
        };
        let workers = Mutex::new((0..count).map(spawn).collect::<Result<_, _>>()?);
        Ok(Executor { shared, workers })
    }

    /// Admits the images of one request, all or none, and returns a receiver for each.
    ///
    /// # Errors
    ///
    /// [`ApiError::Overloaded`] if there are not as many free permits, [`ApiError::ShuttingDown`] after
    /// [`Executor::close`].
    pub(crate) fn submit(
        &self,
        model: &Arc<ServedModel>,
        inputs: Vec<Input>,
        taps: &[String],
        deadline: Option<Instant>,
    ) -> Result<Vec<Pending>, ApiError> {
        let limit = self.shared.config.max_in_flight;
        let overloaded = || ApiError::Overloaded { in_flight: self.in_flight(), limit };
        let count = u32::try_from(inputs.len()).map_err(|_| overloaded())?;
        let mut permits =
            self.shared.permits.clone().try_acquire_many_owned(count).map_err(|_| overloaded())?;
        let now = Instant::now();
        let latest = now + self.shared.config.queue_timeout;
        let deadline = deadline.map_or(latest, |wanted| wanted.min(latest));
        let taps: Arc<[String]> = taps.into();
        let mut pending = Vec::with_capacity(inputs.len());
        let mut queue = self.shared.lock();
        if queue.closed {
            return Err(ApiError::ShuttingDown);
        }
        for item in inputs {
            let Some(permit) = permits.split(1) else { return Err(overloaded()) };
            let (answer, receiver) = oneshot::channel();
            let (model, taps) = (model.clone(), taps.clone());
            queue.encoded.push_back(Job {
                item,
                model,
                taps,
                queued: now,
                deadline,
                answer,
                _permit: permit,
            });
            pending.push(receiver);
        }
        drop(queue);
        self.shared.changed.notify_all();
        Ok(pending)
    }

    /// Images that are queued or being processed.
    pub(crate) fn in_flight(&self) -> usize {
        self.shared.config.max_in_flight.saturating_sub(self.shared.permits.available_permits())
    }

    /// Images that wait for a worker thread.
    pub(crate) fn queued(&self) -> usize {
        let queue = self.shared.lock();
        queue.encoded.len() + queue.prepared.len()
    }

    /// Rejects new images; admitted ones are still answered. Returns when the workers have finished.
    pub(crate) fn close(&self) {
        self.shared.lock().closed = true;
        self.shared.changed.notify_all();
        let workers = std::mem::take(&mut *self.workers.lock().unwrap_or_else(PoisonError::into_inner));
        for worker in workers {
            // A worker catches the panics of its jobs, so joining it does not fail.
            let _ = worker.join();
        }
    }
}

impl Drop for Executor {
    fn drop(&mut self) {
        self.close();
    }
}

enum Task {
    Prepare(Job<Input>),
    Compute { job: Job<Prepared>, alone: bool },
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        while let Some(task) = self.next() {
            let prepared = match task {
                Task::Prepare(job) => self.prepare(job),
                Task::Compute { job, alone } => {
                    self.compute(job, alone);
                    None
                }
            };
            // Under one lock, so that a lone image is seen as alone. No other thread is woken: this one continues.
            let mut queue = self.lock();
            queue.running -= 1;
            queue.prepared.extend(prepared);
        }
    }

    /// Waits for the next task; `None` when the queue is closed and empty.
    fn next(&self) -> Option<Task> {
        let mut queue = self.lock();
        loop {
            let task = match queue.prepared.pop_front() {
                Some(job) => {
                    let alone = queue.running == 0 && queue.encoded.is_empty() && queue.prepared.is_empty();
                    Some(Task::Compute { job, alone })
                }
                None => queue.encoded.pop_front().map(Task::Prepare),
            };
            if let Some(task) = task {
                queue.running += 1;
                return Some(task);
            }
            // A running `prepare` may still push to the queue.
            if queue.closed && queue.running == 0 {
                self.changed.notify_all();
                return None;
            }
            queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Decodes and preprocesses; `None` if the job has been answered.
    fn prepare(&self, job: Job<Input>) -> Option<Job<Prepared>> {
        let Job { item, model, taps, queued, deadline, answer, _permit } = self.due(job)?;
        let waited = queued.elapsed();
        match guarded(|| model.prepare(item)) {
            Ok(mut item) => {
                item.times.queue = waited;
                if item.size.is_some() {
                    self.metrics.decoded(item.times.decode, item.times.preprocess);
                }
                Some(Job { item, model, taps, queued: Instant::now(), deadline, answer, _permit })
            }
            Err(error) => {
                self.metrics.failed(model.name(), &error);
                model.stats().add_failure();
                // The send fails if the client has disconnected, which is not an error here.
                let _ = answer.send(Err(error));
                None
            }
        }
    }

    fn compute(&self, job: Job<Prepared>, alone: bool) {
        let Some(job) = self.due(job) else { return };
        let mut times = job.item.times;
        times.queue += job.queued.elapsed();
        let all = match self.config.threads_per_image {
            ThreadsPerImage::All => true,
            ThreadsPerImage::Auto => alone,
            ThreadsPerImage::One => false,
        };
        let start = Instant::now();
        let outputs = guarded(|| job.model.compute(&job.item, &job.taps, all));
        times.compute = start.elapsed();
        let answer = match outputs {
            Ok(outputs) => {
                self.metrics.computed(job.model.name(), times.queue, times.compute);
                job.model.stats().add(&times);
                Ok(Answer { outputs, times, size: job.item.size })
            }
            Err(error) => {
                self.metrics.failed(job.model.name(), &error);
                job.model.stats().add_failure();
                Err(error)
            }
        };
        let _ = job.answer.send(answer);
    }

    /// The job, unless its client disconnected or its deadline passed.
    fn due<T>(&self, job: Job<T>) -> Option<Job<T>> {
        if job.answer.is_closed() {
            self.metrics.cancelled(job.model.name());
            return None;
        }
        if Instant::now() > job.deadline {
            self.metrics.failed(job.model.name(), &ApiError::Timeout);
            let _ = job.answer.send(Err(ApiError::Timeout));
            return None;
        }
        Some(job)
    }
}

/// Turns a panic into an error: one request must not end a worker.
fn guarded<T>(f: impl FnOnce() -> Result<T, ApiError>) -> Result<T, ApiError> {
    catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|_| Err(ApiError::Internal("a worker panicked".into())))
}
