//! The bytes of one file, written to a temporary file of the cache: resumed, bounded, and hashed as they arrive.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::time::{Duration, Instant};

use tempfile::NamedTempFile;
use ureq::Body;
use ureq::http::{Response, header};

use crate::Event;
use crate::config::Limits;
use crate::error::{Error, Result, Target};
use crate::hash::Hasher;
use crate::request::{Announced, Endpoint, header_error, text};

/// Fewer new bytes than this are not progress: a server that closes after each byte must not keep the client forever.
const MIN_PROGRESS: u64 = 1 << 16;
const BUFFER: usize = 1 << 17;

/// Counts attempts and waits between them.
pub(crate) struct Retries<'a> {
    limits: &'a Limits,
    attempt: u32,
    since: Instant,
}

impl<'a> Retries<'a> {
    pub(crate) fn new(limits: &'a Limits) -> Self {
        Self { limits, attempt: 0, since: Instant::now() }
    }

    /// Waits before the next attempt, or returns the error if there is none.
    pub(crate) fn wait(&mut self, error: Error, progress: &mut dyn FnMut(Event<'_>)) -> Result<()> {
        let limits = self.limits;
        let backoff = limits.backoff * (1 << self.attempt.min(4));
        let (retries, wait) = match &error {
            Error::RateLimited { retry_after: Some(wait), .. } if *wait > limits.max_wait => {
                return Err(error);
            }
            Error::RateLimited { retry_after: Some(wait), .. } => (limits.retries, *wait),
            // No server answers.
            Error::Connect { .. } => (limits.retries.min(2), backoff),
            error if is_transient(error) => (limits.retries, backoff),
            _ => return Err(error),
        };
        let late = self.since.elapsed() + wait + limits.stall > limits.give_up;
        if self.attempt >= retries || late {
            return Err(error);
        }
        self.attempt += 1;
        progress(Event::Retry { reason: &error, attempt: self.attempt, wait });
        std::thread::sleep(wait);
        Ok(())
    }
}

/// Returns `true` if another attempt may succeed.
fn is_transient(error: &Error) -> bool {
    match error {
        Error::Interrupted { .. } | Error::RateLimited { .. } => true,
        Error::Status { status, .. } => matches!(status, 408 | 416 | 500 | 502 | 503 | 504),
        // After it the transfer starts over.
        Error::Header { header, .. } => *header == "Content-Range",
        _ => false,
    }
}

/// Returns `true` if the bytes received so far are still valid after this error.
fn is_resumable(error: &Error) -> bool {
    use Error::{Connect, Interrupted, RateLimited, Status};
    matches!(error, Interrupted { .. } | Connect { .. } | RateLimited { .. } | Status { .. })
}

/// The download of one file.
pub(crate) struct Transfer<'a> {
    pub(crate) endpoint: &'a Endpoint,
    pub(crate) limits: &'a Limits,
    pub(crate) target: &'a Target,
    pub(crate) url: &'a str,
    pub(crate) announced: &'a Announced,
}

impl Transfer<'_> {
    /// Downloads the file into `temp`, starting with the bytes of `partial`, which an earlier run has left.
    ///
    /// If the network fails, `temp` is kept on disk for the next run. If the content is wrong, it is removed.
    pub(crate) fn run(
        &self,
        temp: NamedTempFile,
        partial: Option<File>,
        progress: &mut dyn FnMut(Event<'_>),
    ) -> Result<NamedTempFile> {
        let mut sink = Sink { hasher: self.hasher(), temp, len: 0 };
        if let Some(file) = partial {
            self.copy(&mut sink, file)?;
        }
        progress(Event::Start { file: &self.target.file, total: self.announced.size, resumed: sink.len });
        let mut retries = Retries::new(self.limits);
        let mut mark = sink.len;
        while let Err(error) = self.attempt(&mut sink, progress) {
            if sink.len >= mark + MIN_PROGRESS {
                mark = sink.len;
                retries = Retries::new(self.limits);
            }
            if let Err(error) = retries.wait(error, progress) {
                if sink.len > 0 && is_resumable(&error) {
                    // If it cannot be kept, the next run starts from the beginning.
                    let _ = sink.temp.keep();
                }
                return Err(error);
            }
        }
        progress(Event::Verifying);
        let (found, expected) = (sink.hasher.hex(), self.announced.etag.as_str().to_owned());
        if found != expected {
            return Err(Error::Hash { target: Box::new(self.target.clone()), found, expected });
        }
        sink.temp.as_file().sync_all().map_err(|e| disk_error(e, &sink.temp))?;
        Ok(sink.temp)
    }

    fn hasher(&self) -> Hasher {
        Hasher::new(&self.announced.etag, self.announced.size)
    }

    /// Copies a partial file: another process may still write to the original.
    fn copy(&self, sink: &mut Sink, file: File) -> Result<()> {
        let mut file = file.take(self.announced.size);
        let mut buffer = vec![0; BUFFER];
        loop {
            match file.read(&mut buffer) {
                // What was read before an error is as good as any.
                Ok(0) | Err(_) => return Ok(()),
                Ok(n) => sink.write(&buffer[..n])?,
            }
        }
    }

    fn attempt(&self, sink: &mut Sink, progress: &mut dyn FnMut(Event<'_>)) -> Result<()> {
        let expected = self.announced.size;
        if sink.len == expected {
            return Ok(());
        }
        let (target, response) = self.endpoint.get(self.target, self.url, sink.len)?;
        let header = |name: &str| text(response.headers(), name);
        if let Some(found) = header("content-encoding").filter(|e| !e.eq_ignore_ascii_case("identity")) {
            return Err(header_error(&target, "Content-Encoding", Some(found), "none"));
        }
        match response.status().as_u16() {
            206 if content_range(&response) == Some((sink.len, expected)) => {}
            206 => {
                let found = header("content-range");
                let range = format!("bytes {}-{}/{expected}", sink.len, expected.saturating_sub(1));
                self.restart(sink)?;
                return Err(header_error(&target, "Content-Range", found, &range));
            }
            // The server ignores Range and sends the file from its start.
            200 => self.restart(sink)?,
            status => {
                self.restart(sink)?;
                return Err(Error::Status { target: Box::new(target), status });
            }
        }
        let length = header("content-length").and_then(|v| v.parse::<u64>().ok());
        if let Some(length) = length.filter(|n| *n != expected - sink.len) {
            let (target, found) = (Box::new(target), sink.len.saturating_add(length));
            return Err(Error::Size { target, found, expected });
        }
        self.receive(&target, sink, response.into_body(), progress)
    }

    fn receive(
        &self,
        target: &Target,
        sink: &mut Sink,
        body: Body,
        progress: &mut dyn FnMut(Event<'_>),
    ) -> Result<()> {
        let Limits { min_rate, rate_window, .. } = *self.limits;
        let expected = self.announced.size;
        let interrupted = |found, reason| {
            let (target, expected) = (Box::new(target.clone()), Some(expected));
            Error::Interrupted { target, found, expected, reason }
        };
        let mut reader = body.into_reader();
        let mut buffer = vec![0; BUFFER];
        let (mut window, mut in_window) = (Instant::now(), 0);
        progress(Event::Progress { bytes: sink.len });
        while sink.len < expected {
            let n = match reader.read(&mut buffer) {
                Ok(0) => return Err(interrupted(sink.len, "the body ended".into())),
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(self.endpoint.error(target, e.into(), sink.len, Some(expected))),
            };
            if n as u64 > expected - sink.len {
                let (target, found) = (Box::new(target.clone()), sink.len + n as u64);
                return Err(Error::Size { target, found, expected });
            }
            sink.write(&buffer[..n])?;
            progress(Event::Progress { bytes: sink.len });
            in_window += n as u64;
            let elapsed: Duration = window.elapsed();
            if elapsed >= rate_window {
                if (in_window as f64) < min_rate as f64 * elapsed.as_secs_f64() {
                    let over = rate_window.as_secs_f64();
                    return Err(interrupted(
                        sink.len,
                        format!("slower than {min_rate} bytes/s over {over} s"),
                    ));
                }
                (window, in_window) = (Instant::now(), 0);
            }
        }
        Ok(())
    }

    fn restart(&self, sink: &mut Sink) -> Result<()> {
        if sink.len > 0 {
            let file = sink.temp.as_file_mut();
            file.set_len(0).and_then(|()| file.rewind()).map_err(|e| disk_error(e, &sink.temp))?;
            (sink.hasher, sink.len) = (self.hasher(), 0);
        }
        Ok(())
    }
}

struct Sink {
    temp: NamedTempFile,
    hasher: Hasher,
    /// Bytes written and hashed.
    len: u64,
}

impl Sink {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.temp.as_file_mut().write_all(bytes).map_err(|e| disk_error(e, &self.temp))?;
        self.hasher.update(bytes);
        self.len += bytes.len() as u64;
        Ok(())
    }
}

/// Returns the error for a failed write. The message of a full disk is that of the operating system.
fn disk_error(source: io::Error, temp: &NamedTempFile) -> Error {
    Error::Cache { path: temp.path().to_owned(), source }
}

/// Returns the first byte and the full size of a `Content-Range`.
fn content_range(response: &Response<Body>) -> Option<(u64, u64)> {
    let value = text(response.headers(), header::CONTENT_RANGE.as_str())?;
    let (range, total) = value.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last, total): (u64, u64, u64) =
        (first.trim().parse().ok()?, last.trim().parse().ok()?, total.trim().parse().ok()?);
    (last.checked_add(1)? == total).then_some((first, total))
}
