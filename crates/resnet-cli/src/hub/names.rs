//! Names that become paths or parts of URLs: checked once, here, by the same rules on every operating system.

use std::fmt;

use super::error::{HubError, Result, printable};

/// The name of a model repository, `owner/name`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RepoId(String);

impl RepoId {
    /// Reads `owner/name` or `owner/name@revision`; without a revision it is [`Revision::main`].
    ///
    /// # Errors
    ///
    /// [`HubError::RepoId`] where the name breaks the Hub's rules, [`HubError::Revision`] for the part after `@`.
    pub fn parse(text: &str) -> Result<(Self, Revision)> {
        let (id, revision) = match text.split_once('@') {
            Some((id, revision)) => (id, Revision::parse(revision)?),
            None => (text, Revision::main()),
        };
        let broken = |reason| HubError::RepoId { found: printable(text.as_bytes()), reason };
        let (owner, name) = id.split_once('/').ok_or_else(|| broken("it has no `/`"))?;
        for part in [owner, name] {
            if part.is_empty() {
                return Err(broken("a part is empty"));
            }
            if !part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)) {
                return Err(broken("it may hold letters, digits, `-`, `_` and `.`"));
            }
            if part.starts_with(['-', '.']) || part.ends_with(['-', '.']) {
                return Err(broken("a part starts or ends with `-` or `.`"));
            }
            // `--` is the cache's separator: two ids must never share a folder.
            if part.contains("--") || part.contains("..") {
                return Err(broken("it holds `--` or `..`"));
            }
        }
        if id.len() > 96 || id.ends_with(".git") {
            return Err(broken("it is longer than 96 characters or ends with `.git`"));
        }
        Ok((Self(id.into()), revision))
    }

    /// `owner/name`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RepoId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A branch, a tag or a commit.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Revision(String);

impl Revision {
    /// Reads a branch (`main`, `refs/pr/1`), a tag or a commit.
    ///
    /// # Errors
    ///
    /// [`HubError::Revision`] where git would not take the name or where it is no safe path.
    pub fn parse(text: &str) -> Result<Self> {
        let broken = |reason| HubError::Revision { found: printable(text.as_bytes()), reason };
        if text.len() > 200 {
            return Err(broken("it is longer than 200 bytes"));
        }
        unsafe_path(text).map_or(Ok(()), |reason| Err(broken(reason)))?;
        if text.starts_with('-') || text.contains([' ', '~', '^', '?', '*', '[', '@']) {
            return Err(broken("it holds a character that git refuses"));
        }
        Ok(Self(text.into()))
    }

    /// The branch `main`, where a Hub keeps the current files.
    pub fn main() -> Self {
        Self("main".into())
    }

    /// The text that was read.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The commit, where the revision is one: it needs no request to be resolved.
    pub(super) fn as_commit(&self) -> Option<Commit> {
        Commit::parse(self.0.as_bytes())
    }
}

impl Default for Revision {
    fn default() -> Self {
        Self::main()
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A commit: 40 lower-case hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Commit(String);

impl Commit {
    pub(super) fn parse(text: &[u8]) -> Option<Self> {
        (text.len() == 40).then(|| hex(text)).flatten().map(Self)
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

/// The ETag of a file, which is the hash of its content and the name of its blob in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Etag {
    /// sha256 of a file in LFS or Xet: 64 digits.
    Sha256(String),
    /// The git blob id of any other file: 40 digits.
    GitSha1(String),
}

impl Etag {
    pub(super) const EXPECTED: &'static str = "40 or 64 hexadecimal digits";

    /// Reads a blob's name in the cache.
    pub(super) fn parse(text: &[u8]) -> Option<Self> {
        match text.len() {
            40 => hex(text).map(Self::GitSha1),
            64 => hex(text).map(Self::Sha256),
            _ => None,
        }
    }

    /// Reads the header's value: quoted, perhaps weak.
    pub(super) fn from_header(text: &[u8]) -> Option<Self> {
        let text = text.strip_prefix(b"W/").unwrap_or(text);
        let inner = text.strip_prefix(b"\"").and_then(|t| t.strip_suffix(b"\""));
        Self::parse(inner.unwrap_or(text))
    }

    pub(super) fn as_str(&self) -> &str {
        match self {
            Self::Sha256(text) | Self::GitSha1(text) => text,
        }
    }
}

fn hex(text: &[u8]) -> Option<String> {
    let digit = |b: &u8| b.is_ascii_digit() || (b'a'..=b'f').contains(b);
    text.iter().all(digit).then(|| String::from_utf8_lossy(text).into_owned())
}

/// Checks the name of a file in a repository.
pub(super) fn check_file_name(name: &str) -> Result<()> {
    match unsafe_path(name) {
        Some(reason) => Err(HubError::FileName { found: printable(name.as_bytes()), reason }),
        None => Ok(()),
    }
}

/// Why a name, put behind a folder, might not lie in it or not be a plain file there, on any operating system.
fn unsafe_path(name: &str) -> Option<&'static str> {
    if name.is_empty() {
        return Some("it is empty");
    }
    if name.len() > 1024 {
        return Some("it is longer than 1024 bytes");
    }
    if name.chars().any(|c| c.is_control()) {
        return Some("it holds a control character");
    }
    if name.contains('\\') {
        return Some("it holds a backslash");
    }
    if name.contains(':') {
        return Some("it holds a colon, as drives and streams do");
    }
    for part in name.split('/') {
        match part {
            "" => return Some("it is absolute or has an empty part"),
            "." | ".." => return Some("it holds `.` or `..`"),
            _ => {}
        }
        if part.len() > 255 {
            return Some("a part is longer than 255 bytes");
        }
        // Windows drops these, so two names would be one.
        if part.ends_with(['.', ' ']) {
            return Some("a part ends with a dot or a space");
        }
        let stem = part.split('.').next().unwrap_or(part).trim_end().to_ascii_uppercase();
        let numbered = ["COM", "LPT"].iter().any(|d| {
            stem.strip_prefix(d)
                .is_some_and(|n| n.chars().count() == 1 && !n.starts_with(char::is_alphabetic))
        });
        if numbered || ["CON", "PRN", "AUX", "NUL"].contains(&stem.as_str()) {
            return Some("a part is the name of a device");
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids() {
        let (id, revision) = RepoId::parse("timm/resnet50.a1_in1k@refs/pr/1").unwrap();
        assert_eq!((id.as_str(), revision.as_str()), ("timm/resnet50.a1_in1k", "refs/pr/1"));
        assert_eq!(RepoId::parse("timm/resnet18.tv_in1k").unwrap().1, Revision::main());
        let long = format!("a/{}", "b".repeat(95));
        for bad in [
            "", "a", "a/", "/a", "a/b/c", "../a", "a/..", "a/.b", "a/b.", "-a/b", "a--b/c", "a/b--c",
            "a/b c", "a/b\0", "a\\b/c", "a/b@", "a/b@../c", "ä/b", "a/b.git", "a/b%2e", "a?/b", &long,
        ] {
            assert!(RepoId::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn revisions() {
        for good in ["main", "v1.0", "refs/pr/3", "feature/x-1", &"a".repeat(40)] {
            assert!(Revision::parse(good).is_ok(), "{good:?}");
        }
        for bad in [
            "",
            "/a",
            "a/",
            "a//b",
            "..",
            "a/../b",
            "-x",
            "a b",
            "a\nb",
            "a:b",
            "a\\b",
            "a@b",
            "x.",
            &"a".repeat(201),
        ] {
            assert!(Revision::parse(bad).is_err(), "{bad:?}");
        }
        assert!(Revision::parse(&"a".repeat(40)).unwrap().as_commit().is_some());
        assert!(Revision::parse(&"A".repeat(40)).unwrap().as_commit().is_none());
    }

    #[test]
    fn etags() {
        let (sha, git) = ("a1".repeat(32), "0f".repeat(20));
        for text in [format!("\"{sha}\""), format!("W/\"{sha}\""), sha.clone()] {
            assert_eq!(Etag::from_header(text.as_bytes()), Some(Etag::Sha256(sha.clone())), "{text}");
        }
        assert_eq!(Etag::from_header(format!("\"{git}\"").as_bytes()), Some(Etag::GitSha1(git)));
        for bad in [
            "",
            "\"\"",
            "\"../../x\"",
            "/etc/passwd",
            &sha.to_uppercase(),
            &sha[1..],
            &format!("\"{sha}"),
            &"a".repeat(4096),
        ] {
            assert_eq!(Etag::from_header(bad.as_bytes()), None, "{bad:?}");
        }
    }

    #[test]
    fn windows_devices() {
        for bad in ["NUL", "con.json", "a/COM1", "lpt9.txt", "aux", "NUL .x", "a/b. /c", "c "] {
            assert!(check_file_name(bad).is_err(), "{bad:?}");
        }
        for good in [
            "model.safetensors",
            "a/b/config.json",
            "console.json",
            "COM10",
            "COMA",
            "...x",
            ".gitattributes",
        ] {
            assert!(check_file_name(good).is_ok(), "{good:?}");
        }
    }
}
