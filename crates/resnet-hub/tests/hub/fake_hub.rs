//! A Hub on the loopback interface with the protocol of the real one, and with faults on demand.
//!
//! A small file (its ETag is a git blob id) is redirected on the same host, a large one (by its extension; its ETag is
//! a sha256) to an absolute URL that represents the CDN. The server stops when it is dropped.

#![cfg(test)]

use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use sha1::Sha1;
use sha2::{Digest, Sha256};

/// A fault of the server. Faults of bytes apply to GET, those of headers to HEAD and GET of the URL of the file.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Fault {
    /// Bytes: half of the file, then the connection ends. Range is ignored.
    Truncate,
    /// Bytes: half of the requested ones, then the connection ends.
    Cut,
    /// Bytes: a chunked body that ends properly after 1000 bytes.
    ChunkCut,
    /// Bytes: the last one is wrong.
    Wrong,
    /// Bytes: Range is ignored.
    NoRange,
    /// Bytes: a partial response with a wrong Content-Range.
    BadRange,
    /// Bytes: 416 for a request with Range.
    Unsatisfiable,
    /// Bytes: this status and `oops`.
    Get(u16),
    /// Headers: this status and `X-Error-Code`.
    Head(u16, &'static str),
    /// Bytes: 429 with this `Retry-After`.
    TooMany(u64),
    /// Bytes: the login page of a captive portal.
    Portal,
    /// Bytes: 1000 of them, then silence.
    Stall,
    /// Bytes: one every 20 ms.
    Drip,
    /// Bytes: a twentieth every 10 ms.
    Slow,
    /// Bytes: compressed, although the client does not accept it.
    Gzip,
    /// Headers: silence.
    Silent,
    /// Headers: another ETag.
    Etag(String),
    /// Headers: another commit, or none.
    Commit(Option<String>),
    /// Headers: another size, or none.
    Size(Option<String>),
    /// Headers: a redirect to here.
    Redirect(String),
    /// Headers: no redirect to the CDN; the bytes come from the URL of the file.
    Direct,
    /// Headers: none of a Hub, like a mirror that only redirects.
    Bare,
}

impl Fault {
    fn is_of_bytes(&self) -> bool {
        use Fault::*;
        !matches!(self, Head(..) | Silent | Etag(_) | Commit(_) | Size(_) | Redirect(_) | Direct | Bare)
    }
}

/// A request that was served.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    /// By lower-case name.
    pub(crate) headers: HashMap<String, String>,
}

#[derive(Default)]
struct Repo {
    /// Of `main`.
    commit: String,
    /// By commit and name.
    files: BTreeMap<(String, String), Content>,
}

#[derive(Clone)]
struct Content {
    bytes: Arc<Vec<u8>>,
    etag: String,
}

#[derive(Default)]
struct State {
    url: String,
    cdn: String,
    repos: Mutex<HashMap<String, Repo>>,
    /// With the number of times that they still apply.
    faults: Mutex<Vec<(Fault, usize)>>,
    requests: Mutex<Vec<Request>>,
    accepted: AtomicUsize,
    stop: AtomicBool,
}

/// The server.
pub(crate) struct FakeHub {
    addresses: [SocketAddr; 2],
    state: Arc<State>,
    threads: Vec<JoinHandle<()>>,
}

impl FakeHub {
    /// Starts on two free ports, for the Hub and the CDN.
    pub(crate) fn start() -> Self {
        let listeners = [(); 2].map(|()| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
        let addresses = [&listeners[0], &listeners[1]].map(|l| l.local_addr().unwrap());
        let [url, cdn] = addresses.map(|a| format!("http://{a}"));
        let state = Arc::new(State { url, cdn, ..State::default() });
        let threads = listeners.map(|listener| {
            let state = state.clone();
            std::thread::spawn(move || accept(&listener, &state))
        });
        Self { addresses, state, threads: threads.into() }
    }

    /// The endpoint, for `HF_ENDPOINT`.
    pub(crate) fn url(&self) -> String {
        self.state.url.clone()
    }

    /// Adds a file to the current commit of a repository, which is created if it is new.
    pub(crate) fn add_file(&self, repo: &str, file: &str, bytes: impl Into<Vec<u8>>) {
        let mut repos = self.state.repos.lock().unwrap();
        let entry = repos.entry(repo.into()).or_default();
        if entry.commit.is_empty() {
            entry.commit = hex(&Sha1::digest(repo));
        }
        let (key, bytes) = ((entry.commit.clone(), file.into()), bytes.into());
        let etag = etag(file, &bytes);
        entry.files.insert(key, Content { bytes: Arc::new(bytes), etag });
    }

    /// Moves `main` of a repository to a new, empty commit. The old one can still be requested.
    pub(crate) fn new_commit(&self, repo: &str) -> String {
        let mut repos = self.state.repos.lock().unwrap();
        let entry = repos.get_mut(repo).unwrap();
        entry.commit = hex(&Sha1::digest(&entry.commit));
        entry.commit.clone()
    }

    /// The commit of `main`.
    pub(crate) fn commit(&self, repo: &str) -> String {
        self.state.repos.lock().unwrap()[repo].commit.clone()
    }

    /// Adds a permanent fault.
    pub(crate) fn fault(&self, fault: Fault) {
        self.fault_times(fault, usize::MAX);
    }

    /// Adds a fault that applies `times` times.
    pub(crate) fn fault_times(&self, fault: Fault, times: usize) {
        self.state.faults.lock().unwrap().push((fault, times));
    }

    /// Removes all faults.
    pub(crate) fn heal(&self) {
        self.state.faults.lock().unwrap().clear();
    }

    /// The requests so far.
    pub(crate) fn requests(&self) -> Vec<Request> {
        self.state.requests.lock().unwrap().clone()
    }

    /// The requests so far for bytes that were not redirected.
    pub(crate) fn gets(&self) -> Vec<Request> {
        let bytes = |r: &Request| r.method == "GET" && !r.path.contains("/resolve/");
        self.requests().into_iter().filter(bytes).collect()
    }

    /// The connections so far.
    pub(crate) fn connections(&self) -> usize {
        self.state.accepted.load(Ordering::SeqCst)
    }
}

impl Drop for FakeHub {
    fn drop(&mut self) {
        self.state.stop.store(true, Ordering::SeqCst);
        for address in self.addresses {
            // Wakes the accepting thread.
            let _ = TcpStream::connect(address);
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn accept(listener: &TcpListener, state: &Arc<State>) {
    for stream in listener.incoming().flatten() {
        if state.stop.load(Ordering::SeqCst) {
            return;
        }
        state.accepted.fetch_add(1, Ordering::SeqCst);
        // Responses are written in pieces; without this each would wait for the delayed acknowledgement of the client.
        let _ = stream.set_nodelay(true);
        let state = state.clone();
        std::thread::spawn(move || state.serve(stream));
    }
}

/// The ETag of a file.
pub(crate) fn etag(file: &str, bytes: &[u8]) -> String {
    if is_large(file) {
        hex(&Sha256::digest(bytes))
    } else {
        hex(&Sha1::new().chain_update(format!("blob {}\0", bytes.len())).chain_update(bytes).finalize())
    }
}

fn is_large(file: &str) -> bool {
    [".safetensors", ".bin", ".pth", ".pt", ".onnx"].iter().any(|e| file.ends_with(e))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// The file of a request.
struct Found {
    etag: String,
    commit: String,
    file: String,
    repo: String,
    bytes: Arc<Vec<u8>>,
}

impl State {
    fn serve(&self, stream: TcpStream) {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        while let Some(request) = read_request(&mut reader) {
            if self.stop.load(Ordering::SeqCst) {
                return;
            }
            self.requests.lock().unwrap().push(request.clone());
            if self.answer(&stream, &request).is_none() {
                let _ = stream.shutdown(Shutdown::Both);
                return;
            }
        }
    }

    /// Returns `None` to close the connection.
    fn answer(&self, stream: &TcpStream, request: &Request) -> Option<()> {
        let head = request.method == "HEAD";
        let path = request.path.split('?').next()?;
        let Some(found) = self.find(path) else {
            return respond(stream, 404, &self.missing(path), b"", head);
        };
        if path.starts_with("/cdn/") {
            return if head {
                respond(stream, 403, &[], b"", true)
            } else {
                self.answer_bytes(stream, request, &found)
            };
        }
        let mut headers = self.headers(&found);
        let mut location = None;
        if path.contains("/resolve/") {
            let Found { repo, commit, file, .. } = &found;
            location = Some(if is_large(file) {
                format!("{}/cdn/{repo}/{commit}/{file}?Signature=x", self.cdn)
            } else {
                format!("/api/resolve-cache/models/{repo}/{commit}/{file}")
            });
        }
        for fault in self.take(false) {
            match fault {
                Fault::Head(status, code) => {
                    return respond(stream, status, &[("X-Error-Code", code.into())], b"", head);
                }
                Fault::Silent => return self.wait(stream),
                Fault::Etag(value) => {
                    replace(&mut headers, "X-Linked-ETag", None);
                    replace(&mut headers, "ETag", Some(value));
                }
                Fault::Commit(value) => replace(&mut headers, "X-Repo-Commit", value),
                Fault::Size(value) => replace(&mut headers, "X-Linked-Size", value),
                Fault::Redirect(value) => location = Some(value),
                Fault::Bare => headers.clear(),
                _ => location = None,
            }
        }
        match location {
            Some(location) => {
                headers.push(("Location", location));
                respond(stream, 302, &headers, b"", head)
            }
            None if head => respond(stream, 200, &headers, &found.bytes, true),
            None => self.answer_bytes(stream, request, &found),
        }
    }

    fn answer_bytes(&self, stream: &TcpStream, request: &Request, found: &Found) -> Option<()> {
        let mut bytes = found.bytes.to_vec();
        let range = request.headers.get("range").and_then(|r| r.strip_prefix("bytes="));
        let mut from: usize = range.and_then(|r| r.strip_suffix('-')).map_or(0, |n| n.parse().unwrap());
        let fault = self.take(true).into_iter().next();
        let total = bytes.len();
        if matches!(fault, Some(Fault::NoRange | Fault::Truncate | Fault::Stall | Fault::Drip)) {
            from = 0;
        }
        let mut headers = vec![];
        let status = if from > 0 { 206 } else { 200 };
        if from > 0 {
            let shift = usize::from(fault == Some(Fault::BadRange));
            headers.push(("Content-Range", format!("bytes {}-{}/{total}", from - shift, total - 1)));
        }
        match fault {
            Some(Fault::Get(status)) => return respond(stream, status, &[], b"oops", false),
            Some(Fault::TooMany(after)) => {
                return respond(stream, 429, &[("Retry-After", after.to_string())], b"", false);
            }
            Some(Fault::Portal) => return respond(stream, 200, &[], b"<html>login</html>", false),
            Some(Fault::Unsatisfiable) if from > 0 => return respond(stream, 416, &[], b"", false),
            Some(Fault::Gzip) => {
                headers.push(("Content-Encoding", "gzip".into()));
                return respond(stream, 200, &headers, &[0x1f; 1000], false);
            }
            Some(Fault::ChunkCut) => {
                headers.push(("Transfer-Encoding", "chunked".into()));
                start(stream, status, &headers)?;
                return send(stream, &[b"3e8\r\n", &bytes[..1000], b"\r\n0\r\n\r\n"].concat());
            }
            Some(Fault::Wrong) => *bytes.last_mut()? ^= 1,
            _ => {}
        }
        headers.push(("Content-Length", (total - from).to_string()));
        start(stream, status, &headers)?;
        let body = &bytes[from..];
        let pieces = |size: usize, pause| {
            for piece in body.chunks(size.max(1)) {
                send(stream, piece)?;
                self.pause(pause)?;
            }
            Some(())
        };
        match fault {
            Some(Fault::Truncate | Fault::Cut) => {
                send(stream, &body[..body.len() / 2])?;
                None
            }
            Some(Fault::Stall) => {
                send(stream, &body[..1000])?;
                self.wait(stream)
            }
            Some(Fault::Drip) => pieces(1, 20),
            Some(Fault::Slow) => pieces(total / 20, 10),
            _ => send(stream, body),
        }
    }

    /// Returns the faults that apply: the first of bytes, or all of headers.
    fn take(&self, of_bytes: bool) -> Vec<Fault> {
        let mut faults = self.faults.lock().unwrap();
        let fits = faults.iter_mut().filter(|(f, left)| f.is_of_bytes() == of_bytes && *left > 0);
        let take = |(fault, left): &mut (Fault, usize)| {
            *left = if *left == usize::MAX { *left } else { *left - 1 };
            fault.clone()
        };
        if of_bytes { fits.take(1).map(take).collect() } else { fits.map(take).collect() }
    }

    fn headers(&self, found: &Found) -> Vec<(&'static str, String)> {
        let quoted = format!("\"{}\"", found.etag);
        let mut headers = vec![("X-Repo-Commit", found.commit.clone())];
        if is_large(&found.file) {
            headers.push(("ETag", quoted.clone()));
            headers.push(("X-Linked-ETag", quoted));
            headers.push(("X-Linked-Size", found.bytes.len().to_string()));
        } else {
            headers.push(("ETag", quoted));
        }
        headers
    }

    /// Parses `/owner/name/resolve/REVISION/file` and the two forms that it redirects to.
    fn find(&self, path: &str) -> Option<Found> {
        let path = path.trim_start_matches('/');
        let path =
            path.strip_prefix("api/resolve-cache/models/").or(path.strip_prefix("cdn/")).unwrap_or(path);
        let mut parts = path.splitn(3, '/');
        let repo = format!("{}/{}", parts.next()?, parts.next()?);
        let rest = parts.next()?;
        let (revision, file) = rest.strip_prefix("resolve/").unwrap_or(rest).split_once('/')?;
        let repos = self.repos.lock().unwrap();
        let entry = repos.get(&repo)?;
        let commit = if revision.len() == 40 { revision.to_owned() } else { entry.commit.clone() };
        let Content { bytes, etag } = entry.files.get(&(commit.clone(), file.to_owned()))?.clone();
        Some(Found { etag, commit, file: file.into(), repo, bytes })
    }

    fn missing(&self, path: &str) -> Vec<(&'static str, String)> {
        let repo: Vec<&str> = path.trim_start_matches('/').splitn(3, '/').take(2).collect();
        match self.repos.lock().unwrap().get(&repo.join("/")) {
            Some(repo) => {
                vec![("X-Error-Code", "EntryNotFound".into()), ("X-Repo-Commit", repo.commit.clone())]
            }
            None => vec![("X-Error-Code", "RepoNotFound".into())],
        }
    }

    /// Sends nothing until the client disconnects or the server stops.
    fn wait(&self, stream: &TcpStream) -> Option<()> {
        stream.set_read_timeout(Some(Duration::from_millis(10))).ok()?;
        while !self.stop.load(Ordering::SeqCst) && stream.peek(&mut [0]).map_or(true, |n| n > 0) {
            self.pause(10)?;
        }
        None
    }

    fn pause(&self, ms: u64) -> Option<()> {
        std::thread::sleep(Duration::from_millis(ms));
        (!self.stop.load(Ordering::SeqCst)).then_some(())
    }
}

fn replace(headers: &mut Vec<(&'static str, String)>, name: &'static str, value: Option<String>) {
    headers.retain(|(n, _)| *n != name);
    headers.extend(value.map(|v| (name, v)));
}

fn read_request(reader: &mut BufReader<TcpStream>) -> Option<Request> {
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split_whitespace().map(String::from);
    let (method, path) = (words.next()?, words.next()?);
    let mut headers = HashMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        match line.trim_end().split_once(": ") {
            Some((name, value)) => headers.insert(name.to_ascii_lowercase(), value.to_owned()),
            None => return Some(Request { method, path, headers }),
        };
    }
}

fn respond(
    stream: &TcpStream,
    status: u16,
    headers: &[(&'static str, String)],
    body: &[u8],
    head: bool,
) -> Option<()> {
    let mut headers = headers.to_vec();
    headers.push(("Content-Length", body.len().to_string()));
    start(stream, status, &headers)?;
    if head { Some(()) } else { send(stream, body) }
}

fn start(stream: &TcpStream, status: u16, headers: &[(&'static str, String)]) -> Option<()> {
    let mut text = format!("HTTP/1.1 {status} Status\r\n");
    for (name, value) in headers {
        text += &format!("{name}: {value}\r\n");
    }
    send(stream, (text + "\r\n").as_bytes())
}

fn send(mut stream: &TcpStream, bytes: &[u8]) -> Option<()> {
    stream.write_all(bytes).ok()
}
