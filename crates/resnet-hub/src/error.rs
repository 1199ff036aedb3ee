//! The error of this crate.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::RepoId;

/// A result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The file that an error is about, and the host that answered.
///
/// Holds no URL, so no token, signed link or password reaches a message through it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The repository and revision.
    pub repo: RepoId,
    /// The name of the file in the repository.
    pub file: String,
    /// The host that answered: the endpoint, or the host that it redirected to.
    pub host: String,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` of {} from {}", self.file, self.repo, self.host)
    }
}

/// The thing that an endpoint reports as missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// The repository, or a private repository that the token cannot read.
    Repo,
    /// The branch, tag or commit.
    Revision,
    /// The file.
    File,
    /// The response does not specify it.
    Unknown,
}

/// The reason why a file could not be fetched.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An invalid setting. Its value is not shown: it may contain a password or the token.
    #[error("{name}: {reason}")]
    Setting {
        /// The environment variable of the setting.
        name: &'static str,
        /// The problem and its remedy.
        reason: String,
    },
    /// An invalid repository id, revision or file name.
    #[error("invalid {what} `{found}`: {reason}")]
    Name {
        /// `repository id`, `revision` or `file name`.
        what: &'static str,
        /// The name, in printable characters.
        found: String,
        /// The rule that it breaks.
        reason: &'static str,
    },
    /// The file is not in the cache and the client is offline.
    #[error("{target}: not in the cache ({reason}), and offline mode (HF_HUB_OFFLINE) prevents the download")]
    Offline {
        /// The file.
        target: Box<Target>,
        /// The reason why the cache cannot provide it.
        reason: String,
    },
    /// No connection could be established.
    #[error("{target}: cannot connect: {reason}")]
    Connect {
        /// The file.
        target: Box<Target>,
        /// The error of the network.
        reason: String,
    },
    /// A redirect that is not followed.
    #[error("{target}: rejected redirect: {reason}")]
    Redirect {
        /// The file.
        target: Box<Target>,
        /// The rule that it breaks.
        reason: String,
    },
    /// HTTP status 401 or 403.
    #[error("{target}: access denied (HTTP {status}); {}", denied_hint(*gated, *token))]
    Denied {
        /// The file.
        target: Box<Target>,
        /// The HTTP status.
        status: u16,
        /// `true` if users have to accept the terms of the repository first.
        gated: bool,
        /// `true` if a token was sent.
        token: bool,
    },
    /// HTTP status 404, or a cached record of one.
    #[error("{target}: {}", missing_hint(*missing, *token))]
    NotFound {
        /// The file.
        target: Box<Target>,
        /// The thing that is missing.
        missing: Missing,
        /// `true` if a token was sent.
        token: bool,
    },
    /// HTTP status 429.
    #[error("{target}: too many requests (HTTP 429){}; a token (HF_TOKEN) raises the limit", wait_hint(*retry_after))]
    RateLimited {
        /// The file.
        target: Box<Target>,
        /// The time to wait that the server asked for.
        retry_after: Option<Duration>,
    },
    /// Any other HTTP status that is not success.
    #[error("{target}: HTTP status {status}, expected 200")]
    Status {
        /// The file.
        target: Box<Target>,
        /// The HTTP status.
        status: u16,
    },
    /// A missing or invalid header.
    #[error("{target}: header {header} is {}, expected {expected}; is HF_ENDPOINT a Hub?",
        found.as_ref().map_or_else(|| "missing".into(), |v| format!("`{v}`")))]
    Header {
        /// The file.
        target: Box<Target>,
        /// The name of the header.
        header: &'static str,
        /// Its value, in printable characters, truncated.
        found: Option<String>,
        /// The expected value.
        expected: String,
    },
    /// The transfer stopped, stalled or was too slow. The next call resumes it.
    #[error("{target}: {reason} after {found}{} bytes; run again to resume",
        expected.map_or_else(String::new, |n| format!(" of {n}")))]
    Interrupted {
        /// The file.
        target: Box<Target>,
        /// Bytes received.
        found: u64,
        /// Size of the file in bytes, if known.
        expected: Option<u64>,
        /// The error of the network.
        reason: String,
    },
    /// The size differs from the announced one.
    #[error("{target}: received {found} bytes, expected {expected}")]
    Size {
        /// The file.
        target: Box<Target>,
        /// Size of the response in bytes.
        found: u64,
        /// Announced size of the file in bytes.
        expected: u64,
    },
    /// The content does not have the hash that is its ETag. Nothing was kept.
    #[error("{target}: content has hash {found}, expected {expected}; nothing was kept")]
    Hash {
        /// The file.
        target: Box<Target>,
        /// SHA-256 or git blob id of the content.
        found: String,
        /// The ETag.
        expected: String,
    },
    /// The cache cannot be written, or contains something that must not be used.
    #[error("cache: `{}`: {source}; HF_HUB_CACHE or HF_HOME selects another folder", path.display())]
    Cache {
        /// The file or folder.
        path: PathBuf,
        /// The reason.
        source: std::io::Error,
    },
}

/// Returns the first characters of untrusted text, with control characters escaped.
pub(crate) fn printable(text: &[u8]) -> String {
    const MAX: usize = 80;
    let text = String::from_utf8_lossy(&text[..text.len().min(4 * MAX)]);
    let mut out = String::new();
    for c in text.chars().take(MAX) {
        // Escapes control characters and those that reorder or hide text.
        if matches!(c, '"' | '\'' | '\\') { out.push(c) } else { out.extend(c.escape_debug()) }
    }
    if text.chars().count() > MAX {
        out.push('…');
    }
    out
}

fn denied_hint(gated: bool, token: bool) -> &'static str {
    match (gated, token) {
        (true, true) => "the repository is gated: accept its terms on its page with the account of the token",
        (true, false) => "the repository is gated: accept its terms on its page, then set HF_TOKEN",
        (false, true) => "the token cannot read it, or the id is misspelled",
        (false, false) => "the id is misspelled, or the repository is private: set HF_TOKEN",
    }
}

fn missing_hint(missing: Missing, token: bool) -> String {
    let what = match missing {
        Missing::File => return "the repository has no such file".into(),
        Missing::Repo => "no such repository",
        Missing::Revision => "no such revision",
        Missing::Unknown => "no such repository, revision or file",
    };
    let hint = if token { "this token has no access" } else { "it is private: set HF_TOKEN" };
    format!("{what}, or {hint}; check the spelling")
}

fn wait_hint(retry_after: Option<Duration>) -> String {
    retry_after.map_or_else(String::new, |t| format!("; the server asks to wait {} s", t.as_secs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn untrusted_text_is_escaped() {
        assert_eq!(printable(b"\"a/b\\c\""), "\"a/b\\c\"");
        assert_eq!(printable("ü\u{1b}[31m\n\0\u{202e}".as_bytes()), "ü\\u{1b}[31m\\n\\0\\u{202e}");
        assert!(printable(&[b'a'; 5000]).chars().count() == 81);
        assert_eq!(printable(b"\xff"), "\u{fffd}");
    }
}
