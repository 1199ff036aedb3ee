//! A team over anything that sums numbers over processes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};
use resnet_model::network::ProcessGroup;
use resnet_model::{Error, Result};

use super::{Part, Pending, Team};

/// What connects workers. Every method waits for all of them; errors say in words what happened.
pub trait Wire {
    /// Which worker this one is, from 0.
    fn rank(&self) -> usize;

    /// How many there are.
    fn count(&self) -> usize;

    /// Replaces `values` by their sums over all workers.
    fn sum_f64(&mut self, values: &mut [f64]) -> Result<(), String>;

    /// Replaces `values` by their sums over all workers.
    fn sum_f32(&mut self, values: &mut [f32]) -> Result<(), String>;

    /// Gives the bytes of worker `root` to all.
    fn share(&mut self, root: usize, bytes: &mut Vec<u8>) -> Result<(), String>;

    /// The sum of `bucket` `[V]` over all workers, on its device. A wire between devices spares the way over the CPU.
    fn sum_tensor(&mut self, bucket: &Tensor) -> Result<Tensor, String> {
        let told = |e: candle_core::Error| e.to_string();
        let mut values = bucket.to_device(&Device::Cpu).and_then(|t| t.to_vec1::<f32>()).map_err(told)?;
        self.sum_f32(&mut values)?;
        let len = values.len();
        Tensor::from_vec(values, len, bucket.device()).map_err(told)
    }
}

/// How long others are waited for.
#[derive(Debug, Clone)]
pub struct Limits {
    /// After this time without an answer the others count as lost.
    pub timeout: Duration,
    /// Once it is true, they are waited for no longer than a moment: a launcher that has seen a worker die tells the
    /// others to stop, and soon kills them.
    pub stop: Arc<AtomicBool>,
}

/// How long others are waited for after this worker was told to stop.
const GRACE: Duration = Duration::from_millis(100);

/// How often a wait looks whether it was told to stop.
const TICK: Duration = Duration::from_millis(20);

/// A team whose messages are carried by a thread of their own, while the network computes.
///
/// It is the only one that touches the [`Wire`], so that this need not be safe for threads, and when it waits in vain the
/// caller does not.
#[derive(Debug)]
pub struct Joint {
    rank: usize,
    count: usize,
    limits: Limits,
    requests: Sender<Request>,
    /// Tells that the wire was closed.
    closed: Receiver<()>,
    /// Whether others were lost; then nothing is asked of the wire any more.
    lost: AtomicBool,
}

type Answer<T> = Result<T, String>;

enum Request {
    Sum(Vec<f64>, Sender<Answer<Vec<f64>>>),
    Bucket(Tensor, Sender<Answer<Tensor>>),
    Share(usize, Vec<u8>, Sender<Answer<Vec<u8>>>),
    Close,
}

impl Joint {
    /// Connects to the others by `open`, called on the thread that will use the wire. Errors: that failed, takes longer
    /// than `limits` allow, or leads to another place than `part`, which the launcher gave.
    pub fn new<W: Wire>(
        part: Part,
        open: impl FnOnce() -> Result<W, String> + Send + 'static,
        limits: Limits,
    ) -> Result<Joint> {
        let (requests, receiver) = channel();
        let (tell_closed, closed) = channel();
        let (tell_opened, opened) = channel();
        let work = move || {
            let wire = open();
            let place = wire.as_ref().map(|wire| (wire.rank(), wire.count())).map_err(String::clone);
            let gone = tell_opened.send(place).is_err();
            match wire {
                Ok(wire) if !gone => serve(wire, &receiver, &tell_closed),
                // Closing may mean to wait for the others, whom nobody waits for any more.
                wire => std::mem::forget(wire),
            }
        };
        std::thread::Builder::new().name("resnet-workers".into()).spawn(work)?;
        let Part { rank, count } = part;
        let joint = Joint { rank, count, limits, requests, closed, lost: AtomicBool::new(false) };
        match joint.wait(&opened)? {
            found if found == (rank, count) => Ok(joint),
            (rank, count) => Err(joint.error(format!("the connection makes it worker {rank} of {count}"))),
        }
    }

    /// Takes leave of the others, who do the same; waits for them for at most `limit`. A team that is dropped instead
    /// leaves them to notice.
    pub fn close(self, limit: Duration) {
        if !self.lost.load(Ordering::Relaxed) && self.requests.send(Request::Close).is_ok() {
            let _ = self.closed.recv_timeout(limit);
        }
    }

    fn ask<T>(&self, request: impl FnOnce(Sender<Answer<T>>) -> Request) -> Result<Receiver<Answer<T>>> {
        let (sender, receiver) = channel();
        match self.lost.load(Ordering::Relaxed) || self.requests.send(request(sender)).is_err() {
            true => Err(self.error("the connection is closed".into())),
            false => Ok(receiver),
        }
    }

    fn wait<T>(&self, answer: &Receiver<Answer<T>>) -> Result<T> {
        let (begun, mut told) = (Instant::now(), None);
        let why = loop {
            match answer.recv_timeout(TICK) {
                Ok(Ok(value)) => return Ok(value),
                Ok(Err(why)) => break why,
                Err(RecvTimeoutError::Disconnected) => break "the connection is closed".into(),
                Err(RecvTimeoutError::Timeout) => {}
            }
            if told.is_none() && self.limits.stop.load(Ordering::Relaxed) {
                told = Some(Instant::now());
            }
            if told.is_some_and(|told| told.elapsed() > GRACE) {
                break "told to stop while waiting for them".into();
            }
            if begun.elapsed() > self.limits.timeout {
                break format!("no answer within {} s", self.limits.timeout.as_secs_f64());
            }
        };
        self.lost.store(true, Ordering::Relaxed);
        Err(self.error(why))
    }

    fn error(&self, why: String) -> Error {
        Error::ProcessGroup { rank: self.rank, count: self.count, why }
    }
}

fn serve(mut wire: impl Wire, requests: &Receiver<Request>, closed: &Sender<()>) {
    // Who asked may have given up: then nobody takes the answer.
    while let Ok(request) = requests.recv() {
        match request {
            Request::Sum(mut values, to) => {
                let done = wire.sum_f64(&mut values);
                let _ = to.send(done.map(|()| values));
            }
            Request::Bucket(bucket, to) => {
                let _ = to.send(wire.sum_tensor(&bucket));
            }
            Request::Share(root, mut bytes, to) => {
                let done = wire.share(root, &mut bytes);
                let _ = to.send(done.map(|()| bytes));
            }
            Request::Close => {
                drop(wire);
                let _ = closed.send(());
                return;
            }
        }
    }
    std::mem::forget(wire);
}

impl ProcessGroup for Joint {
    fn count(&self) -> usize {
        self.count
    }

    fn sum(&self, values: &mut [f64]) -> Result<()> {
        let sums = self.wait(&self.ask(|to| Request::Sum(values.to_vec(), to))?)?;
        values.copy_from_slice(&sums);
        Ok(())
    }
}

impl Team for Joint {
    fn rank(&self) -> usize {
        self.rank
    }

    fn begin(&self, bucket: Tensor) -> Result<Pending<'_>> {
        let answer = self.ask(|to| Request::Bucket(bucket, to))?;
        Ok(Box::new(move || self.wait(&answer)))
    }

    fn share(&self, root: usize, bytes: &mut Vec<u8>) -> Result<()> {
        *bytes = self.wait(&self.ask(|to| Request::Share(root, std::mem::take(bytes), to))?)?;
        Ok(())
    }
}
