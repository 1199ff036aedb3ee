//! A process group over any transport.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};
use resnet_model::network::ProcessGroup;
use resnet_model::{Error, Result};

use super::{Communicator, Pending};

/// A connection between ranks. Every collective blocks until all ranks have called it; errors are messages.
pub trait Transport {
    /// Rank of this process, from 0.
    fn rank(&self) -> usize;

    /// Number of processes.
    fn world_size(&self) -> usize;

    /// Replaces `values` by their sums over all ranks.
    fn all_reduce_f64(&mut self, values: &mut [f64]) -> Result<(), String>;

    /// Replaces `values` by their sums over all ranks.
    fn all_reduce_f32(&mut self, values: &mut [f32]) -> Result<(), String>;

    /// Replaces `bytes` by those of rank `root`.
    fn broadcast(&mut self, root: usize, bytes: &mut Vec<u8>) -> Result<(), String>;

    /// Returns the sum of `bucket` `[V]` over all ranks, on its device. The default goes through the CPU.
    fn all_reduce_tensor(&mut self, bucket: &Tensor) -> Result<Tensor, String> {
        let message = |e: candle_core::Error| e.to_string();
        let mut values = bucket.to_device(&Device::Cpu).and_then(|t| t.to_vec1::<f32>()).map_err(message)?;
        self.all_reduce_f32(&mut values)?;
        let len = values.len();
        Tensor::from_vec(values, len, bucket.device()).map_err(message)
    }
}

/// Limits on the wait for other ranks.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Time without an answer after which the other ranks count as lost.
    pub timeout: Duration,
    /// Once `true`, waits end almost at once: a launcher that has seen a rank die signals the others, and soon kills them.
    pub stop: Arc<AtomicBool>,
}

/// Time that a wait goes on after a stop signal.
const GRACE: Duration = Duration::from_millis(100);

/// Interval at which a wait checks for a stop signal.
const TICK: Duration = Duration::from_millis(20);

/// A process group whose messages are sent by a separate thread, while the network computes.
///
/// Only that thread touches the [`Transport`], so the transport need not be thread-safe, and the caller can stop waiting
/// for a transport that blocks forever.
#[derive(Debug)]
pub struct TransportGroup {
    rank: usize,
    world_size: usize,
    limits: Limits,
    requests: Sender<Request>,
    /// Signals that the transport was shut down.
    closed: Receiver<()>,
    /// `true` once another rank was lost; then the transport is not used any more.
    lost: AtomicBool,
}

type Answer<T> = Result<T, String>;

enum Request {
    AllReduce(Vec<f64>, Sender<Answer<Vec<f64>>>),
    Bucket(Tensor, Sender<Answer<Tensor>>),
    Broadcast(usize, Vec<u8>, Sender<Answer<Vec<u8>>>),
    Shutdown,
}

impl TransportGroup {
    /// Connects to the other ranks by `open`, which runs on the thread that will use the transport.
    ///
    /// # Errors
    /// `open` fails or takes longer than `limits` allow, or the transport reports another rank or world size than the
    /// launcher.
    pub fn new<T: Transport>(
        rank: usize,
        world_size: usize,
        open: impl FnOnce() -> Result<T, String> + Send + 'static,
        limits: Limits,
    ) -> Result<TransportGroup> {
        let (requests, receiver) = channel();
        let (closed_sender, closed) = channel();
        let (opened_sender, opened) = channel();
        let work = move || {
            let transport = open();
            let place = transport.as_ref().map(|t| (t.rank(), t.world_size())).map_err(String::clone);
            let abandoned = opened_sender.send(place).is_err();
            match transport {
                Ok(transport) if !abandoned => serve(transport, &receiver, &closed_sender),
                // Dropping a transport may block on the other ranks.
                transport => std::mem::forget(transport),
            }
        };
        std::thread::Builder::new().name("resnet-distributed".into()).spawn(work)?;
        let lost = AtomicBool::new(false);
        let group = TransportGroup { rank, world_size, limits, requests, closed, lost };
        match group.wait(&opened)? {
            found if found == (rank, world_size) => Ok(group),
            (rank, world_size) => {
                Err(group.error(format!("the transport reports rank {rank} of {world_size}")))
            }
        }
    }

    /// Shuts the transport down together with the other ranks; waits for them for at most `limit`. A group that is
    /// dropped without it is noticed by the others as a lost rank.
    pub fn shutdown(self, limit: Duration) {
        if !self.lost.load(Ordering::Relaxed) && self.requests.send(Request::Shutdown).is_ok() {
            let _ = self.closed.recv_timeout(limit);
        }
    }

    fn send<T>(&self, request: impl FnOnce(Sender<Answer<T>>) -> Request) -> Result<Receiver<Answer<T>>> {
        let (sender, receiver) = channel();
        match self.lost.load(Ordering::Relaxed) || self.requests.send(request(sender)).is_err() {
            true => Err(self.error("the connection is closed".into())),
            false => Ok(receiver),
        }
    }

    fn wait<T>(&self, answer: &Receiver<Answer<T>>) -> Result<T> {
        let (start, mut stopped) = (Instant::now(), None);
        let why = loop {
            match answer.recv_timeout(TICK) {
                Ok(Ok(value)) => return Ok(value),
                Ok(Err(why)) => break why,
                Err(RecvTimeoutError::Disconnected) => break "the connection is closed".into(),
                Err(RecvTimeoutError::Timeout) => {}
            }
            if stopped.is_none() && self.limits.stop.load(Ordering::Relaxed) {
                stopped = Some(Instant::now());
            }
            if stopped.is_some_and(|stopped| stopped.elapsed() > GRACE) {
                break "stopped while waiting for the other ranks".into();
            }
            if start.elapsed() > self.limits.timeout {
                break format!("no answer within {} s", self.limits.timeout.as_secs_f64());
            }
        };
        self.lost.store(true, Ordering::Relaxed);
        Err(self.error(why))
    }

    fn error(&self, why: String) -> Error {
        Error::ProcessGroup { rank: self.rank, world_size: self.world_size, why }
    }
}

fn serve(mut transport: impl Transport, requests: &Receiver<Request>, closed: &Sender<()>) {
    // The caller may have given up; then the answer has no receiver.
    while let Ok(request) = requests.recv() {
        match request {
            Request::AllReduce(mut values, to) => {
                let done = transport.all_reduce_f64(&mut values);
                let _ = to.send(done.map(|()| values));
            }
            Request::Bucket(bucket, to) => {
                let _ = to.send(transport.all_reduce_tensor(&bucket));
            }
            Request::Broadcast(root, mut bytes, to) => {
                let done = transport.broadcast(root, &mut bytes);
                let _ = to.send(done.map(|()| bytes));
            }
            Request::Shutdown => {
                drop(transport);
                let _ = closed.send(());
                return;
            }
        }
    }
    std::mem::forget(transport);
}

impl ProcessGroup for TransportGroup {
    fn world_size(&self) -> usize {
        self.world_size
    }

    fn all_reduce(&self, values: &mut [f64]) -> Result<()> {
        let sums = self.wait(&self.send(|to| Request::AllReduce(values.to_vec(), to))?)?;
        values.copy_from_slice(&sums);
        Ok(())
    }
}

impl Communicator for TransportGroup {
    fn rank(&self) -> usize {
        self.rank
    }

    fn all_reduce_async(&self, bucket: Tensor) -> Result<Pending<'_>> {
        let answer = self.send(|to| Request::Bucket(bucket, to))?;
        Ok(Box::new(move || self.wait(&answer)))
    }

    fn broadcast(&self, root: usize, bytes: &mut Vec<u8>) -> Result<()> {
        *bytes = self.wait(&self.send(|to| Request::Broadcast(root, std::mem::take(bytes), to))?)?;
        Ok(())
    }
}
