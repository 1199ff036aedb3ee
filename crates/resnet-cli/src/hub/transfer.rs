//! The bytes of one file, into a temporary file of the cache: resumed, bounded, hashed while they pass.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::path::Path;
use std::time::Instant;

use tempfile::NamedTempFile;
use ureq::Body;
use ureq::http::{Response, header};

use super::Event;
use super::config::Limits;
use super::error::{HubError, Result, Target, printable};
use super::hash::Hasher;
use super::net::{Again, Announced, Fault, Net, text};

/// Fewer new bytes than this are no progress: a server that cuts after each byte must not keep us forever.
const LEAST_PROGRESS: u64 = 1 << 16;
const BUFFER: usize = 1 << 17;

/// Counts attempts, waits between them, and knows when to give up.
pub(super) struct Patience<'a> {
    limits: &'a Limits,
    attempt: u32,
    since: Instant,
}

impl<'a> Patience<'a> {
    pub(super) fn new(limits: &'a Limits) -> Self {
        Self { limits, attempt: 0, since: Instant::now() }
    }

    fn progress(&mut self) {
        (self.attempt, self.since) = (0, Instant::now());
    }

    /// Waits for the next attempt, or gives the error back.
    pub(super) fn again(&mut self, fault: Fault, progress: &mut dyn FnMut(Event<'_>)) -> Result<()> {
        let Fault { error, again } = fault;
        let retries = if again == Again::Connect { self.limits.retries.min(2) } else { self.limits.retries };
        let wait = match again {
            Again::After(wait) => wait,
            _ => self.limits.backoff * (1 << self.attempt.min(4)),
        };
        let late = self.since.elapsed() + wait + self.limits.stall > self.limits.give_up;
        if again == Again::Never || self.attempt >= retries || late {
            return Err(error);
        }
        self.attempt += 1;
        progress(Event::Retry { reason: &error, attempt: self.attempt, wait });
        std::thread::sleep(wait);
        Ok(())
    }
}

/// A file on its way.
pub(super) struct Transfer<'a> {
    pub(super) net: &'a Net,
    pub(super) limits: &'a Limits,
    pub(super) target: &'a Target,
    pub(super) url: &'a str,
    pub(super) announced: &'a Announced,
}

impl Transfer<'_> {
    /// Fetches the file into `temp`, beginning with the bytes of `leftover`, a partial file of an earlier run.
    ///
    /// Where the network fails, `temp` is kept on disk for the next run; where the content is wrong, it is not.
    pub(super) fn run(
        &self,
        temp: NamedTempFile,
        leftover: Option<File>,
        progress: &mut dyn FnMut(Event<'_>),
    ) -> Result<NamedTempFile> {
        let mut sink = Sink { hasher: self.hasher(), temp, at: 0 };
        if let Some(file) = leftover {
            self.adopt(&mut sink, file)?;
        }
        progress(Event::Start { file: &self.target.file, total: self.announced.size, resumed: sink.at });
        let mut patience = Patience::new(self.limits);
        let mut mark = sink.at;
        while let Err(fault) = self.attempt(&mut sink, progress) {
            if sink.at >= mark + LEAST_PROGRESS {
                mark = sink.at;
                patience.progress();
            }
            if let Err(error) = patience.again(fault, progress) {
                if sink.at > 0 && is_resumable(&error) {
                    // What arrived is still good; if it can't be kept, the next run starts afresh.
                    let _ = sink.temp.keep();
                }
                return Err(error);
            }
        }
        progress(Event::Verifying);
        let (found, expected) = (sink.hasher.hex(), self.announced.etag.as_str().to_owned());
        if found != expected {
            return Err(HubError::Hash { target: Box::new(self.target.clone()), found, expected });
        }
        sink.temp.as_file().sync_all().map_err(|e| self.disk(e, sink.temp.path(), 0))?;
        Ok(sink.temp)
    }

    fn hasher(&self) -> Hasher {
        Hasher::new(&self.announced.etag, self.announced.size)
    }

    /// Copies a partial file: another process may still hold the original open.
    fn adopt(&self, sink: &mut Sink, file: File) -> Result<()> {
        let mut file = file.take(self.announced.size);
        let mut buffer = vec![0; BUFFER];
        loop {
            match file.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(n) => self.write(sink, &buffer[..n])?,
                // The part that could be read is as good as any.
                Err(_) => return Ok(()),
            }
        }
    }

    fn attempt(&self, sink: &mut Sink, progress: &mut dyn FnMut(Event<'_>)) -> Result<(), Fault> {
        let expected = self.announced.size;
        if sink.at == expected {
            return Ok(());
        }
        let (target, answer) = self.net.get(self.target, self.url, sink.at)?;
        self.check_encoding(&target, &answer)?;
        match answer.status().as_u16() {
            206 => {
                if content_range(&answer) != Some((sink.at, expected)) {
                    let found = text(answer.headers(), "content-range").map(|v| printable(v.as_bytes()));
                    let expected = format!("bytes {}-{}/{expected}", sink.at, expected.saturating_sub(1));
                    let (target, header) = (Box::new(target), "Content-Range");
                    self.restart(sink)?;
                    return Err(Fault::later(HubError::Header { target, header, found, expected }));
                }
            }
            // The server ignores Range: it sends the file from its start.
            200 => self.restart(sink)?,
            status => {
                self.restart(sink)?;
                return Err(Fault::later(HubError::Status { target: Box::new(target), status }));
            }
        }
        let length = text(answer.headers(), "content-length").and_then(|v| v.parse::<u64>().ok());
        if let Some(length) = length.filter(|n| *n != expected - sink.at) {
            let (target, found) = (Box::new(target), sink.at.saturating_add(length));
            return Err(HubError::Size { target, found, expected }.into());
        }
        self.receive(&target, sink, answer.into_body(), progress)
    }

    fn receive(
        &self,
        target: &Target,
        sink: &mut Sink,
        body: Body,
        progress: &mut dyn FnMut(Event<'_>),
    ) -> Result<(), Fault> {
        let expected = self.announced.size;
        let mut reader = body.into_reader();
        let mut buffer = vec![0; BUFFER];
        let (mut window, mut in_window) = (Instant::now(), 0);
        progress(Event::Progress { bytes: sink.at });
        while sink.at < expected {
            let n = match reader.read(&mut buffer) {
                Ok(0) => {
                    let target = Box::new(target.clone());
                    return Err(Fault::later(HubError::Size { target, found: sink.at, expected }));
                }
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(self.net.fault(target, e.into(), sink.at, Some(expected))),
            };
            if n as u64 > expected - sink.at {
                let found = sink.at + n as u64;
                return Err(HubError::Size { target: Box::new(target.clone()), found, expected }.into());
            }
            self.write(sink, &buffer[..n])?;
            progress(Event::Progress { bytes: sink.at });
            in_window += n as u64;
            let over = window.elapsed();
            if over >= self.limits.rate_window {
                if (in_window as f64) < self.limits.min_rate as f64 * over.as_secs_f64() {
                    let (target, found, minimum) = (Box::new(target.clone()), sink.at, self.limits.min_rate);
                    let over = self.limits.rate_window;
                    return Err(Fault::later(HubError::TooSlow { target, found, expected, minimum, over }));
                }
                (window, in_window) = (Instant::now(), 0);
            }
        }
        Ok(())
    }

    fn check_encoding(&self, target: &Target, answer: &Response<Body>) -> Result<(), HubError> {
        match text(answer.headers(), header::CONTENT_ENCODING.as_str()) {
            Some(found) if !found.eq_ignore_ascii_case("identity") => {
                let found = printable(found.as_bytes());
                Err(HubError::Encoding { target: Box::new(target.clone()), found })
            }
            _ => Ok(()),
        }
    }

    fn write(&self, sink: &mut Sink, bytes: &[u8]) -> Result<()> {
        if let Err(e) = sink.temp.as_file_mut().write_all(bytes) {
            return Err(self.disk(e, sink.temp.path(), self.announced.size - sink.at));
        }
        sink.hasher.update(bytes);
        sink.at += bytes.len() as u64;
        Ok(())
    }

    fn restart(&self, sink: &mut Sink) -> Result<()> {
        if sink.at > 0 {
            let file = sink.temp.as_file_mut();
            let rewound = file.set_len(0).and_then(|()| file.rewind());
            rewound.map_err(|e| self.disk(e, sink.temp.path(), self.announced.size))?;
            (sink.hasher, sink.at) = (self.hasher(), 0);
        }
        Ok(())
    }

    /// What an error of the file system means, with `needed` bytes still to be written.
    fn disk(&self, source: io::Error, path: &Path, needed: u64) -> HubError {
        disk(self.target, source, path, needed)
    }
}

/// What an error of the file system means, with `needed` bytes still to be written.
pub(super) fn disk(target: &Target, source: io::Error, path: &Path, needed: u64) -> HubError {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    match source.kind() {
        StorageFull | QuotaExceeded | FileTooLarge => {
            let path = path.parent().unwrap_or(path).to_owned();
            HubError::DiskFull { target: Box::new(target.clone()), path, needed }
        }
        _ => HubError::Cache { path: path.to_owned(), source },
    }
}

struct Sink {
    temp: NamedTempFile,
    hasher: Hasher,
    /// Bytes written and hashed.
    at: u64,
}

/// Whether what has arrived is still good after this error.
fn is_resumable(error: &HubError) -> bool {
    use HubError::{Broken, Connect, RateLimited, Size, Stalled, Status, TooSlow};
    match error {
        Size { found, expected, .. } => found < expected,
        Broken { .. }
        | Connect { .. }
        | RateLimited { .. }
        | Stalled { .. }
        | Status { .. }
        | TooSlow { .. } => true,
        _ => false,
    }
}

/// First byte and full size of a `Content-Range`.
fn content_range(answer: &Response<Body>) -> Option<(u64, u64)> {
    let value = text(answer.headers(), header::CONTENT_RANGE.as_str())?;
    let (range, total) = value.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last, total): (u64, u64, u64) =
        (first.trim().parse().ok()?, last.trim().parse().ok()?, total.trim().parse().ok()?);
    (last.checked_add(1)? == total).then_some((first, total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_disks() {
        let target =
            Target { repo: "a/b".into(), revision: "main".into(), file: "c".into(), host: "h".into() };
        for kind in [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded, io::ErrorKind::FileTooLarge] {
            let error = disk(&target, kind.into(), Path::new("/cache/blobs/x"), 1234);
            let text = error.to_string();
            assert!(text.contains("1234") && text.contains("/cache/blobs`"), "{text}");
        }
        assert!(matches!(
            disk(&target, io::ErrorKind::Other.into(), Path::new("/x"), 1),
            HubError::Cache { .. }
        ));
    }
}
