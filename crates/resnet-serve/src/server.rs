//! Connection loop: bounded connections, timeouts, graceful drain.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore};
use tokio_io_timeout::TimeoutStream;
use tower::ServiceExt;

use crate::state::App;

/// Limits of the connection loop.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Most open connections. Beyond it, the connection that has been idle for longest is closed.
    pub max_connections: usize,
    /// Longest time for a client to send the headers of a request.
    pub header_timeout: Duration,
    /// Longest time without any byte read or written on a connection.
    pub idle_timeout: Duration,
    /// Longest time to answer accepted requests after `shutdown`.
    pub grace: Duration,
}

impl Default for Limits {
    /// 1,024 connections, 10 s for headers, 75 s idle, 30 s grace.
    fn default() -> Limits {
        Limits {
            max_connections: 1024,
            header_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
            grace: Duration::from_secs(30),
        }
    }
}

/// Connections without a request in progress, the longest idle first.
#[derive(Debug, Default)]
struct Idle {
    next: AtomicU64,
    waiting: Mutex<BTreeMap<u64, Arc<Notify>>>,
}

impl Idle {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Notify>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn insert(&self, close: &Arc<Notify>) -> u64 {
        let key = self.next.fetch_add(1, Ordering::Relaxed);
        self.lock().insert(key, close.clone());
        key
    }

    /// Closes the connection that has been idle for longest.
    fn evict(&self) {
        if let Some((_, close)) = self.lock().pop_first() {
            close.notify_one();
        }
    }

    fn evict_all(&self) {
        for close in std::mem::take(&mut *self.lock()).into_values() {
            close.notify_one();
        }
    }
}

/// State of one connection: its key in `Idle`, and the number of requests in progress (several with HTTP/2).
struct Connection {
    idle: Arc<Idle>,
    close: Arc<Notify>,
    state: Mutex<(u64, usize)>,
}

impl Connection {
    fn new(idle: Arc<Idle>) -> Arc<Connection> {
        let close = Arc::new(Notify::new());
        let key = idle.insert(&close);
        Arc::new(Connection { idle, close, state: Mutex::new((key, 0)) })
    }

    fn state(&self) -> MutexGuard<'_, (u64, usize)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(self: &Arc<Connection>) -> InProgress {
        let mut state = self.state();
        if state.1 == 0 {
            self.idle.lock().remove(&state.0);
        }
        state.1 += 1;
        InProgress(self.clone())
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let key = self.state().0;
        self.idle.lock().remove(&key);
    }
}

/// A request in progress; its connection is idle again when the last one is dropped.
struct InProgress(Arc<Connection>);

impl Drop for InProgress {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.1 -= 1;
        if state.1 == 0 {
            state.0 = self.0.idle.insert(&self.0.close);
        }
    }
}

/// Serves `router` on `listener` until `shutdown` completes. Then new connections are rejected, readiness is withdrawn,
/// and accepted requests are answered within [`Limits::grace`].
///
/// # Errors
///
/// The listener's error if it cannot accept connections at all.
pub async fn serve(
    listener: TcpListener,
    app: App,
    router: Router,
    limits: Limits,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(limits.header_timeout);
    builder.http2().timer(TokioTimer::new()).keep_alive_interval(Some(limits.idle_timeout / 3));
    let idle = Arc::new(Idle::default());
    let permits = Arc::new(Semaphore::new(limits.max_connections));
    let graceful = GracefulShutdown::new();
    let mut shutdown = pin!(shutdown);
    loop {
        let permit = match permits.clone().try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => {
                idle.evict();
                tokio::select! {
                    permit = permits.clone().acquire_owned() => match permit {
                        Ok(permit) => permit,
                        Err(_) => break,
                    },
                    () = &mut shutdown => break,
                }
            }
        };
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of file descriptors, or a connection that was reset before it was accepted.
                    tracing::warn!(%error, "accept failed");
                    idle.evict();
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    continue;
                }
            },
            () = &mut shutdown => break,
        };
        let connection = Connection::new(idle.clone());
        let close = connection.close.clone();
        let router = router.clone();
        let service = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
            let (router, in_progress) = (router.clone(), connection.begin());
            async move {
                let response = router.oneshot(request.map(axum::body::Body::new)).await;
                drop(in_progress);
                response.map_err(|never: Infallible| match never {})
            }
        });
        let stream = Box::pin(with_timeouts(stream, limits.idle_timeout));
        let served = graceful.watch(builder.serve_connection(TokioIo::new(stream), service).into_owned());
        tokio::spawn(async move {
            let _permit = permit;
            tokio::select! {
                // Errors are those of the peer: resets, timeouts, invalid HTTP.
                _ = served => {}
                () = close.notified() => {}
            }
        });
    }
    drop(listener);
    app.begin_shutdown();
    idle.evict_all();
    if tokio::time::timeout(limits.grace, graceful.shutdown()).await.is_err() {
        tracing::warn!("connections were cut: the grace period is over");
    }
    let close = tokio::task::spawn_blocking(move || app.executor.close());
    // The workers finish the image that they are computing; queued ones have no receiver any more.
    let _ = tokio::time::timeout(Duration::from_secs(5), close).await;
    Ok(())
}

fn with_timeouts(stream: TcpStream, idle: Duration) -> TimeoutStream<TcpStream> {
    // Responses are written whole, so waiting for more to send only delays them.
    let _ = stream.set_nodelay(true);
    let mut stream = TimeoutStream::new(stream);
    stream.set_read_timeout(Some(idle));
    stream.set_write_timeout(Some(idle));
    stream
}
