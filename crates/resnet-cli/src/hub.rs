//! Files of model repositories on a Hub, downloaded once, verified, and kept in the cache that Python shares.
//!
//! A file is used only after its content had the hash that is its ETag (sha256 of a large file, git blob id of a small
//! one). What fails on the way is tried again, continued where it stopped, and told with file, host and bytes.
//!
//! # Why the transfer is not hf-hub's
//!
//! Read and built in November 2026, `--release`, one job, on a busy machine with two cores:
//!
//! | | hf-hub 0.5.0 `ureq` | hf-hub 1.0.0 `blocking`, `rustls-tls` | this: hf-hub 0.5.0 without features, ureq 3, sha2 |
//! |---|---|---|---|
//! | packages | 58 | 236 (tokio, reqwest, hf-xet, aws-lc: needs a C compiler) | 38 |
//! | CPU time of a build | 99 s | 531 s | 62 s |
//! | resume after a cut | yes; the answer to a Range request is appended even if it is the whole file | no, `.incomplete` is truncated | yes, 206 and Content-Range checked |
//! | size, hash | neither | neither | both |
//! | ETag and commit as path | as sent, `../` too | as sent, `../` too | 40 or 64 hexadecimal digits |
//! | timeouts, least rate | none | none of its own | connect, stall, rate, total |
//! | cached file | no request | a HEAD each time, unless the revision is a commit | no request |
//! | partial file, two processes | one name for all, lock | one name for all, lock | unique name and rename; lock only spares the second download |
//!
//! Neither verifies anything, and neither has a hook where we could: the checks would have to come after the file
//! already has its trusted name, in a cache that other programs read. So hf-hub gives the names of the cache's folders
//! ([`hf_hub::Repo`], [`hf_hub::Cache`]; with `dirs` four small packages), and the transfer is a few hundred lines here over `ureq`, which
//! is blocking, small, speaks TLS by rustls and to proxies. `Cache::get` is not used: it trusts what a link leads to;
//! neither is `Cache::from_env`: it panics without a home folder.
//!
//! # What is not done
//!
//! No Xet protocol (the Hub serves every file over plain HTTP, too), no root certificates but Mozilla's, no listing of
//! repositories, no upload. A redirect's host is looked up before it is asked, to refuse addresses of private networks;
//! a name that changes its address in between is not noticed: such a request carries no token, and its answer is
//! dropped unless it has the hash.

mod cache;
mod config;
mod error;
mod hash;
mod names;
mod net;
mod transfer;
mod url;

use std::path::PathBuf;
use std::time::Duration;

use cache::{RepoCache, Trust};
pub use config::{Config, DEFAULT_ENDPOINT, Limits, Proxies, Token};
pub use error::{HubError, Missing, Result, Target};
use names::Etag;
pub use names::{RepoId, Revision};
use net::{Announced, Net};
use transfer::{Patience, Transfer};

/// What happens while a file is fetched. A cached file gives no event but perhaps [`Verifying`](Event::Verifying).
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// Another process downloads the same file; we wait for it.
    Waiting,
    /// The transfer begins.
    Start {
        /// The file's name in the repository.
        file: &'a str,
        /// Its size in bytes.
        total: u64,
        /// Bytes that an earlier run has left, part of `total`.
        resumed: u64,
    },
    /// More bytes arrived, or the transfer began again with fewer.
    Progress {
        /// Bytes so far.
        bytes: u64,
    },
    /// An attempt failed; the next one begins after `wait`.
    Retry {
        /// What went wrong.
        reason: &'a HubError,
        /// Number of the next attempt that follows on no progress, from 1.
        attempt: u32,
        /// Time until then.
        wait: Duration,
    },
    /// A hash is compared.
    Verifying,
    /// The downloaded file is in the cache.
    Done,
}

/// Fetches files of one endpoint into one cache.
#[derive(Debug)]
pub struct Client {
    config: Config,
    cache: PathBuf,
    net: Net,
}

impl Client {
    /// A client; opens no socket and touches no file.
    ///
    /// # Errors
    ///
    /// [`HubError::Setting`] where the endpoint or a proxy is no URL, no cache folder is known, or a token would be
    /// sent over plain http.
    pub fn new(config: Config) -> Result<Self> {
        let net = Net::new(&config)?;
        let setting = |reason: &str| HubError::Setting { name: "HF_HOME", reason: reason.into() };
        let cache = config
            .cache_dir
            .as_ref()
            .ok_or_else(|| setting("no home folder is known; set it to a folder for downloads"))?;
        let cache = std::path::absolute(cache).map_err(|e| setting(&e.to_string()))?;
        Ok(Self { config, cache, net })
    }

    /// The path of a repository's file in the cache, downloaded if it is not there.
    ///
    /// A cached file costs no request: a branch stays at the commit where it was first seen.
    ///
    /// # Errors
    ///
    /// [`HubError`]; what was downloaded but is not verified never has a blob's name.
    pub fn file(
        &self,
        repo: &RepoId,
        revision: &Revision,
        file: &str,
        progress: &mut dyn FnMut(Event<'_>),
    ) -> Result<PathBuf> {
        names::check_file_name(file)?;
        let cache = RepoCache::new(&self.cache, repo);
        let trust = Trust { verify: self.config.verify, unknown: self.config.offline };
        let reason = match cache.find(revision, file, trust, &mut || progress(Event::Verifying)) {
            Ok(path) => return Ok(path),
            Err(reason) => reason,
        };
        let target = Target {
            repo: repo.to_string(),
            revision: revision.to_string(),
            file: file.into(),
            host: self.net.host(),
        };
        if self.config.offline {
            return Err(HubError::Offline { target: Box::new(target), reason });
        }
        let fetch = Fetch { client: self, cache, revision, target };
        let url = url::of_file(&self.config.endpoint, repo, revision, file);
        let path = match fetch.once(&url, true, progress) {
            // The branch may have moved between the two requests, or a partial file was bad: once more from the start.
            Err(reason @ HubError::Hash { .. }) => {
                progress(Event::Retry { reason: &reason, attempt: 1, wait: Duration::ZERO });
                fetch.once(&url, false, progress)?
            }
            other => other?,
        };
        progress(Event::Done);
        Ok(path)
    }
}

/// One file being fetched.
struct Fetch<'a> {
    client: &'a Client,
    cache: RepoCache,
    revision: &'a Revision,
    target: Target,
}

impl Fetch<'_> {
    fn once(&self, url: &str, resume: bool, progress: &mut dyn FnMut(Event<'_>)) -> Result<PathBuf> {
        let (client, cache, file) = (self.client, &self.cache, self.target.file.as_str());
        let announced = self.announced(url, progress)?;
        // Held until the blob has its name.
        let lock = client.config.locks.then(|| self.lock(&announced.etag, progress)).flatten();
        // Of another revision, or finished meanwhile by another process.
        if let Some(path) = cache.adopt(&announced, file, &mut || progress(Event::Verifying)) {
            cache.write_ref(self.revision, &announced.commit);
            return Ok(path);
        }
        cache.prune(client.config.limits.stale);
        let leftover = if resume { cache.leftover(&announced.etag, lock.is_some()) } else { None };
        let temp = cache.temp(&announced.etag)?;
        let transfer = Transfer {
            net: &client.net,
            limits: &client.config.limits,
            target: &self.target,
            url,
            announced: &announced,
        };
        let temp = transfer.run(temp, leftover, progress)?;
        let path = cache.store(temp, &announced, file)?;
        cache.write_ref(self.revision, &announced.commit);
        Ok(path)
    }

    fn announced(&self, url: &str, progress: &mut dyn FnMut(Event<'_>)) -> Result<Announced> {
        let mut patience = Patience::new(&self.client.config.limits);
        let announced = loop {
            match self.client.net.head(&self.target, url) {
                Ok(announced) => break announced,
                Err(fault) => patience.again(fault, progress)?,
            }
        };
        match self.revision.as_commit() {
            Some(asked) if asked != announced.commit => Err(HubError::Header {
                target: Box::new(self.target.clone()),
                header: "X-Repo-Commit",
                found: Some(announced.commit.as_str().into()),
                expected: format!("`{}`", asked.as_str()),
            }),
            _ => Ok(announced),
        }
    }

    fn lock(&self, etag: &Etag, progress: &mut dyn FnMut(Event<'_>)) -> Option<std::fs::File> {
        self.cache.lock(etag, self.client.config.limits.stall, &mut || progress(Event::Waiting))
    }
}
