//! Downloads files of Hugging Face Hub repositories, verifies them, and keeps them in the cache that Python's
//! `huggingface_hub` uses.
//!
//! ```no_run
//! use resnet_hub::{Client, Config, RepoId};
//!
//! let client = Client::new(Config::from_env(|name| std::env::var(name).ok())?)?;
//! let repo = RepoId::parse("timm/resnet18.tv_in1k")?;
//! let path = client.file(&repo, "model.safetensors", &mut |_event| {})?;
//! # Ok::<(), resnet_hub::Error>(())
//! ```
//!
//! A file is used only after its content had the hash that is its ETag (SHA-256 of a large file, git blob id of a small
//! one). Failed transfers are retried and resumed. Errors name file, host and bytes. A cached file costs no request.
//!
//! # Why the transfer is not hf-hub's
//!
//! Read and built in November 2026, `--release`, one job, on a busy machine with two cores:
//!
//! | | hf-hub 0.5.0 `ureq` | hf-hub 1.0.0 `blocking`, `rustls-tls` | this: hf-hub 0.5.0 without features, ureq 3, sha2 |
//! |---|---|---|---|
//! | packages | 58 | 236 (tokio, reqwest, hf-xet, aws-lc: needs a C compiler) | 38 |
//! | CPU time of a build | 99 s | 531 s | 62 s |
//! | resume | yes; the response to a Range request is appended even if it is the whole file | no, `.incomplete` is truncated | yes, 206 and Content-Range are checked |
//! | size, hash | neither | neither | both |
//! | ETag and commit as path | as sent, `../` too | as sent, `../` too | 40 or 64 hexadecimal digits |
//! | timeouts, minimum speed | none | none | connect, stall, speed, total |
//! | cached file | no request | a HEAD each time, unless the revision is a commit | no request |
//! | partial file, two processes | one name for all, lock | one name for all, lock | unique name and rename; the lock only saves the second download |
//!
//! Neither verifies anything, and neither has a hook for it: the check would come after the file has its trusted name in
//! a cache that other programs read. hf-hub names the folders of the cache ([`hf_hub::Repo`], [`hf_hub::Cache`]); the
//! transfer uses `ureq`, which is blocking and small. `Cache::get` is not used because it trusts the target of a link,
//! and `Cache::from_env` because it panics without a home folder.
//!
//! # Not supported
//!
//! The Xet protocol (the Hub serves every file over plain HTTP, too), listing repositories, and uploads.

mod cache;
mod config;
mod error;
mod hash;
pub mod inventory;
mod names;
mod origin;
mod request;
mod transfer;

use std::path::PathBuf;
use std::time::Duration;

use cache::RepoCache;
pub use config::{Config, DEFAULT_ENDPOINT, Limits, Proxies, Token};
pub use error::{Error, Missing, Result, Target};
pub use names::RepoId;
use request::{Announced, Endpoint, Head, header_error};
use transfer::{Retries, Transfer};

/// An event of [`Client::file`]. A cached file emits none, except [`Verifying`](Event::Verifying) the first time.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// The client waits for another process that downloads the same file.
    Waiting,
    /// The transfer starts.
    Start {
        /// The name of the file in the repository.
        file: &'a str,
        /// Its size in bytes.
        total: u64,
        /// Bytes of `total` that an earlier run has left.
        resumed: u64,
    },
    /// More bytes arrived, or the transfer started over with fewer.
    Progress {
        /// Bytes so far.
        bytes: u64,
    },
    /// An attempt failed; the next one starts after `wait`.
    Retry {
        /// The error of the attempt.
        reason: &'a Error,
        /// Number of the next attempt without progress, from 1.
        attempt: u32,
        /// Time until the next attempt.
        wait: Duration,
    },
    /// A hash is compared.
    Verifying,
    /// The downloaded file is in the cache.
    Done,
}

/// Downloads files from one endpoint into one cache.
#[derive(Debug)]
pub struct Client {
    config: Config,
    cache: PathBuf,
    endpoint: Endpoint,
}

impl Client {
    /// Returns a client. Opens no socket and writes no file.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] if the URL of the endpoint or of a proxy is invalid, if certificates cannot be read, or if
    /// there is no cache folder.
    pub fn new(config: Config) -> Result<Self> {
        let endpoint = Endpoint::new(&config)?;
        let setting = |reason: &str| Error::Setting { name: "HF_HOME", reason: reason.into() };
        let cache = config
            .cache_dir
            .as_ref()
            .ok_or_else(|| setting("the home folder is unknown; set HF_HOME to a folder for downloads"))?;
        let cache = std::path::absolute(cache).map_err(|e| setting(&e.to_string()))?;
        Ok(Self { config, cache, endpoint })
    }

    /// Returns `true` if the client opens no socket.
    pub fn is_offline(&self) -> bool {
        self.config.offline
    }

    /// Returns the path of a file in the cache, after downloading it if necessary.
    ///
    /// A branch stays at the commit of its first download unless [`Config::refresh`] is set. The absence of a file is
    /// cached, too.
    ///
    /// # Errors
    ///
    /// See [`Error`]. Bytes that were not verified never have the name of a blob.
    pub fn file(&self, repo: &RepoId, file: &str, progress: &mut dyn FnMut(Event<'_>)) -> Result<PathBuf> {
        names::check_file_name(file)?;
        let cache = RepoCache::new(&self.cache, repo)?;
        let target = || Target { repo: repo.clone(), file: file.into(), host: self.endpoint.host() };
        let offline = self.config.offline;
        let reason = match self.config.refresh && !offline && repo.commit().is_none() {
            true => String::new(),
            false => match cache.find(repo, file, &self.config, &mut || progress(Event::Verifying)) {
                Ok(Some(path)) => return Ok(path),
                Ok(None) => {
                    let (target, token) = (Box::new(target()), self.config.token.is_some());
                    return Err(Error::NotFound { target, missing: Missing::File, token });
                }
                Err(reason) => reason,
            },
        };
        if offline {
            return Err(Error::Offline { target: Box::new(target()), reason });
        }
        let url = origin::file_url(&self.config.endpoint, repo, file);
        let download = Download { client: self, cache, url, target: target() };
        let path = match download.run(true, progress) {
            // The branch moved between the two requests, or a partial file was damaged: once more from the start.
            Err(reason @ Error::Hash { .. }) => {
                progress(Event::Retry { reason: &reason, attempt: 1, wait: Duration::ZERO });
                download.run(false, progress)?
            }
            other => other?,
        };
        progress(Event::Done);
        Ok(path)
    }
}

/// The download of one file.
struct Download<'a> {
    client: &'a Client,
    cache: RepoCache,
    url: String,
    target: Target,
}

impl Download<'_> {
    fn run(&self, resume: bool, progress: &mut dyn FnMut(Event<'_>)) -> Result<PathBuf> {
        let (config, cache, file) = (&self.client.config, &self.cache, self.target.file.as_str());
        let announced = self.announced(progress)?;
        // Held until the blob has its name.
        let lock = config
            .locks
            .then(|| cache.lock(&announced.etag, config.limits.stall, &mut || progress(Event::Waiting)));
        let lock = lock.flatten();
        // The blob of another revision, or one that another process finished in the meantime.
        let adopted = cache.adopt(&announced, file, config.verify, &mut || progress(Event::Verifying));
        let path = match adopted {
            Some(path) => path,
            None => {
                cache.prune(config.limits.stale);
                let partial = if resume { cache.partial(&announced.etag, lock.is_some()) } else { None };
                let temp = cache.temp(&announced.etag)?;
                let transfer = Transfer {
                    endpoint: &self.client.endpoint,
                    limits: &config.limits,
                    target: &self.target,
                    url: &self.url,
                    announced: &announced,
                };
                cache.store(transfer.run(temp, partial, progress)?, &announced, file)?
            }
        };
        cache.write_ref(&self.target.repo, &announced.commit);
        Ok(path)
    }

    fn announced(&self, progress: &mut dyn FnMut(Event<'_>)) -> Result<Announced> {
        let Target { repo, file, .. } = &self.target;
        let mut retries = Retries::new(&self.client.config.limits);
        let head = loop {
            match self.client.endpoint.head(&self.target, &self.url) {
                Ok(head) => break head,
                Err(error) => retries.wait(error, progress)?,
            }
        };
        match head {
            Head::NoFile { commit, error } => {
                if let Some(commit) = commit.filter(|c| repo.commit().is_none_or(|requested| requested == *c))
                {
                    self.cache.write_missing(&commit, file);
                    self.cache.write_ref(repo, &commit);
                }
                Err(error)
            }
            Head::File(announced) => match repo.commit() {
                Some(requested) if requested != announced.commit => {
                    let (found, expected) = (announced.commit.as_str().into(), requested.as_str());
                    Err(header_error(&self.target, "X-Repo-Commit", Some(found), &format!("`{expected}`")))
                }
                _ => Ok(announced),
            },
        }
    }
}

/// Compiles the examples of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
