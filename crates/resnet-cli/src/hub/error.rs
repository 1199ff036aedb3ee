//! What can go wrong on the way from a Hub to a file.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// A result with this module's [`HubError`].
pub type Result<T, E = HubError> = std::result::Result<T, E>;

/// The file that an error is about, and the host that was asked for it.
///
/// Holds no URL, so neither a token nor a signed link nor a password can reach a message through it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The repository, `owner/name`.
    pub repo: String,
    /// The branch, tag or commit.
    pub revision: String,
    /// The file's name in the repository.
    pub file: String,
    /// The host that gave the answer: the endpoint's, or the one it redirected to.
    pub host: String,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { repo, revision, file, host } = self;
        write!(f, "`{file}` of {repo}")?;
        if revision != "main" {
            write!(f, "@{revision}")?;
        }
        write!(f, " from {host}")
    }
}

/// What an endpoint says does not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// The repository (or one that the token may not see).
    Repo,
    /// The branch, tag or commit.
    Revision,
    /// The file.
    File,
    /// The answer does not say which.
    Unknown,
}

/// Why a file of a Hub could not be had: which file, from which host, what was found and what was expected.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// A setting that cannot be used. The value is not shown: it may hold a password or the token.
    #[error("{name}: {reason}")]
    Setting {
        /// The environment variable behind the setting.
        name: &'static str,
        /// What is wrong with it, and what to do.
        reason: String,
    },
    /// Not a repository's name.
    #[error("`{found}` is no Hub id ({reason}); expected `owner/name` or `owner/name@revision`")]
    RepoId {
        /// The name, made printable.
        found: String,
        /// The rule that it breaks.
        reason: &'static str,
    },
    /// Not a branch, tag or commit.
    #[error("`{found}` is no revision ({reason}); expected a branch, a tag or a commit")]
    Revision {
        /// The revision, made printable.
        found: String,
        /// The rule that it breaks.
        reason: &'static str,
    },
    /// A file name that could leave its folder on some operating system.
    #[error("file name `{found}` is not safe ({reason}); expected a relative path with `/` and without `..`")]
    FileName {
        /// The name, made printable.
        found: String,
        /// The rule that it breaks.
        reason: &'static str,
    },
    /// The file is not in the cache and no request may be made.
    #[error("{target}: not in the cache ({reason}) and HF_HUB_OFFLINE forbids to download it")]
    Offline {
        /// The file.
        target: Box<Target>,
        /// Why the cache does not give it.
        reason: String,
    },
    /// No connection, or none that is secure.
    #[error("{target}: cannot connect: {reason}")]
    Connect {
        /// The file.
        target: Box<Target>,
        /// What the network says.
        reason: String,
    },
    /// A redirect that must not be followed.
    #[error("{target}: refused to follow a redirect: {reason}")]
    Redirect {
        /// The file.
        target: Box<Target>,
        /// The rule that it breaks.
        reason: String,
    },
    /// 401 or 403.
    #[error("{target}: access denied (HTTP {status}); {}", hint_denied(*gated, *token))]
    Denied {
        /// The file.
        target: Box<Target>,
        /// The HTTP status.
        status: u16,
        /// Whether the repository asks its users to accept terms first.
        gated: bool,
        /// Whether a token was at hand.
        token: bool,
    },
    /// 404.
    #[error("{target}: {}", hint_missing(*missing, *token))]
    NotFound {
        /// The file.
        target: Box<Target>,
        /// What does not exist.
        missing: Missing,
        /// Whether a token was at hand.
        token: bool,
    },
    /// 429, and the server wants us to wait longer than we do.
    #[error("{target}: too many requests (HTTP 429){}; a token (HF_TOKEN) raises the limit", hint_wait(*retry_after))]
    RateLimited {
        /// The file.
        target: Box<Target>,
        /// How long the server asks to wait.
        retry_after: Option<Duration>,
    },
    /// Any other status that is not success.
    #[error("{target}: HTTP status {status}, expected 200")]
    Status {
        /// The file.
        target: Box<Target>,
        /// The HTTP status.
        status: u16,
    },
    /// A header that is missing or that must not be trusted.
    #[error("{target}: header {header} is {}, expected {expected}; is HF_ENDPOINT a Hub?", shown(found.as_deref()))]
    Header {
        /// The file.
        target: Box<Target>,
        /// The header's name.
        header: &'static str,
        /// Its value, made printable and shortened.
        found: Option<String>,
        /// What it should be.
        expected: String,
    },
    /// The body is compressed though that was ruled out.
    #[error("{target}: body has Content-Encoding `{found}`, expected none")]
    Encoding {
        /// The file.
        target: Box<Target>,
        /// The encoding.
        found: String,
    },
    /// Another size than announced.
    #[error("{target}: got {found} bytes, expected {expected}")]
    Size {
        /// The file.
        target: Box<Target>,
        /// Size of the answer in bytes.
        found: u64,
        /// Announced size of the file in bytes.
        expected: u64,
    },
    /// The connection broke again and again.
    #[error("{target}: connection broke after {found} of {expected} bytes ({reason}); run again to continue")]
    Broken {
        /// The file.
        target: Box<Target>,
        /// Bytes received.
        found: u64,
        /// Size of the file in bytes.
        expected: u64,
        /// What the network says.
        reason: String,
    },
    /// No byte for too long.
    #[error(
        "{target}: no data for {}, after {found}{} bytes; run again to continue",
        seconds(*after),
        of(*expected)
    )]
    Stalled {
        /// The file.
        target: Box<Target>,
        /// Bytes received.
        found: u64,
        /// Size of the file in bytes, where known.
        expected: Option<u64>,
        /// How long no byte came.
        after: Duration,
    },
    /// Bytes come, but too few.
    #[error(
        "{target}: slower than {minimum} bytes/s over {}, after {found} of {expected} bytes; run again to continue",
        seconds(*over)
    )]
    TooSlow {
        /// The file.
        target: Box<Target>,
        /// Bytes received.
        found: u64,
        /// Size of the file in bytes.
        expected: u64,
        /// Least accepted rate in bytes per second.
        minimum: u64,
        /// Time over which the rate was measured.
        over: Duration,
    },
    /// The bytes are not the ones that the ETag promises. Nothing was kept.
    #[error("{target}: content has hash {found}, expected {expected}; nothing was kept")]
    Hash {
        /// The file.
        target: Box<Target>,
        /// The content's sha256 or git blob id.
        found: String,
        /// The ETag.
        expected: String,
    },
    /// No room for the file. The partial file was removed.
    #[error("`{}`: no space left, {needed} more bytes needed for {target}", path.display())]
    DiskFull {
        /// The file.
        target: Box<Target>,
        /// The folder that is full.
        path: PathBuf,
        /// Bytes that were still to be written.
        needed: u64,
    },
    /// The cache cannot be written.
    #[error("cache folder `{}`: {source}; HF_HUB_CACHE or HF_HOME may name another one", path.display())]
    Cache {
        /// The file or folder that cannot be written.
        path: PathBuf,
        /// The reason.
        source: std::io::Error,
    },
    /// The cache holds something that must not be used.
    #[error("cache entry `{}`: {reason}", path.display())]
    CacheEntry {
        /// The entry.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// The first characters of text that came from outside, printable only.
pub(super) fn printable(text: &[u8]) -> String {
    const LONGEST: usize = 80;
    let text = String::from_utf8_lossy(&text[..text.len().min(4 * LONGEST)]);
    let mut out = String::new();
    for c in text.chars().take(LONGEST) {
        // Controls, and what reorders or hides text.
        if matches!(c, '"' | '\'' | '\\') { out.push(c) } else { out.extend(c.escape_debug()) }
    }
    if text.chars().count() > LONGEST {
        out.push('…');
    }
    out
}

fn shown(value: Option<&str>) -> String {
    value.map_or_else(|| "missing".into(), |v| format!("`{v}`"))
}

fn seconds(time: Duration) -> String {
    format!("{} s", time.as_millis() as f64 / 1000.0)
}

fn of(expected: Option<u64>) -> String {
    expected.map_or_else(String::new, |n| format!(" of {n}"))
}

fn hint_denied(gated: bool, token: bool) -> &'static str {
    match (gated, token) {
        (true, _) => "the repository is gated: accept its terms on its page, then set HF_TOKEN",
        (false, true) => "the token of HF_TOKEN or the token file may not read it, or the id is misspelt",
        (false, false) => "the id is misspelt, or the repository is private: set HF_TOKEN",
    }
}

fn hint_missing(missing: Missing, token: bool) -> String {
    let what = match missing {
        Missing::Repo => "no such repository",
        Missing::Revision => "no such revision",
        Missing::File => return "the repository has no such file".into(),
        Missing::Unknown => "no such repository, revision or file",
    };
    let hint = if token { "" } else { " (or it is private and needs HF_TOKEN)" };
    format!("{what}{hint}; check the spelling")
}

fn hint_wait(retry_after: Option<Duration>) -> String {
    retry_after.map_or_else(String::new, |t| format!("; the server asks to wait {}", seconds(t)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_text_is_made_printable() {
        assert_eq!(printable(b"\"a/b\\c\""), "\"a/b\\c\"");
        assert_eq!(printable("ü\u{1b}[31m\n\0\u{202e}".as_bytes()), "ü\\u{1b}[31m\\n\\0\\u{202e}");
        assert!(printable(&[b'a'; 5000]).chars().count() == 81);
        assert_eq!(printable(b"\xff"), "\u{fffd}");
    }
}
