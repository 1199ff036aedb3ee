//! Names that become paths or parts of URLs. The same rules hold on every operating system.

use std::fmt;

use crate::error::{Error, Result, printable};

/// A model repository and a revision: `owner/name` or `owner/name@revision`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RepoId {
    name: String,
    revision: String,
}

impl RepoId {
    /// Parses `owner/name` or `owner/name@revision`. The default revision is the branch `main`.
    ///
    /// # Errors
    ///
    /// [`Error::Name`] if the name breaks the rules of the Hub or the revision those of git.
    pub fn parse(text: &str) -> Result<Self> {
        let (name, revision) = text.split_once('@').unwrap_or((text, "main"));
        let invalid = |what, reason| Error::Name { what, found: printable(text.as_bytes()), reason };
        let segment = |s: &str| {
            let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
            // `--` separates owner and name in the cache: two repositories must never share a folder.
            s.bytes().all(allowed)
                && !(s.is_empty() || s.contains("--") || s.contains(".."))
                && !(s.starts_with(['-', '.']) || s.ends_with(['-', '.']))
        };
        let segments = name.split_once('/').is_some_and(|(owner, name)| segment(owner) && segment(name));
        if !segments || name.len() > 96 || name.ends_with(".git") {
            return Err(invalid("repository id", "expected `owner/name` or `owner/name@revision`"));
        }
        let git = !revision.starts_with('-') && !revision.contains([' ', '~', '^', '?', '*', '[', '@']);
        if revision.len() > 200 || !git {
            return Err(invalid("revision", "expected a branch, a tag or a commit"));
        }
        check_path(revision).map_err(|reason| invalid("revision", reason))?;
        Ok(Self { name: name.into(), revision: revision.into() })
    }

    /// The repository, `owner/name`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The branch, tag or commit.
    pub fn revision(&self) -> &str {
        &self.revision
    }

    /// The commit, if the revision is one.
    pub(crate) fn commit(&self) -> Option<Commit> {
        Commit::parse(&self.revision)
    }
}

impl fmt::Display for RepoId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        if self.revision != "main" { write!(f, "@{}", self.revision) } else { Ok(()) }
    }
}

/// A commit: 40 lower-case hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Commit(String);

impl Commit {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        is_hex(text, &[40]).then(|| Self(text.into()))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

/// The ETag of a file, which is the hash of its content and the name of its blob in the cache: SHA-256 (64 digits) of a
/// file in LFS or Xet, the git blob id (40 digits) of any other file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Etag(String);

impl Etag {
    /// Parses the name of a blob.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        is_hex(text, &[40, 64]).then(|| Self(text.into()))
    }

    /// Parses the value of a header, which is usually quoted.
    pub(crate) fn from_header(text: &str) -> Option<Self> {
        let text = text.strip_prefix("W/").unwrap_or(text);
        Self::parse(text.strip_prefix('"').and_then(|t| t.strip_suffix('"')).unwrap_or(text))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

fn is_hex(text: &str, lengths: &[usize]) -> bool {
    lengths.contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// Checks the name of a file in a repository.
pub(crate) fn check_file_name(name: &str) -> Result<()> {
    check_path(name).map_err(|reason| {
        let found = printable(name.as_bytes());
        Error::Name { what: "file name", found, reason }
    })
}

/// Checks that a name appended to a folder is a plain file in that folder on every operating system.
fn check_path(name: &str) -> Result<(), &'static str> {
    if name.len() > 1024 || name.contains(['\\', ':']) || name.contains(char::is_control) {
        return Err("expected at most 1024 bytes without `\\`, `:` and control characters");
    }
    for segment in name.split('/') {
        if matches!(segment, "" | "." | "..") || segment.len() > 255 {
            return Err("expected a relative path with `/` and without `..`");
        }
        // Windows drops a final dot or space, so two names would be one, and reserves the names of devices.
        let stem = segment.split('.').next().unwrap_or(segment).trim_end().to_ascii_uppercase();
        let numbered = |device| {
            let number = stem.strip_prefix(device);
            number.is_some_and(|n| n.chars().count() == 1 && !n.starts_with(char::is_alphabetic))
        };
        let device = matches!(&*stem, "CON" | "PRN" | "AUX" | "NUL") || numbered("COM") || numbered("LPT");
        if device || segment.ends_with(['.', ' ']) {
            return Err("the name is reserved on Windows");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repository_ids() {
        let id = RepoId::parse("timm/resnet50.a1_in1k@refs/pr/1").unwrap();
        assert_eq!((id.name(), id.revision()), ("timm/resnet50.a1_in1k", "refs/pr/1"));
        assert_eq!(RepoId::parse("timm/resnet18.tv_in1k").unwrap().to_string(), "timm/resnet18.tv_in1k");
        let long = format!("a/{}", "b".repeat(95));
        for invalid in [
            "", "a", "a/", "/a", "a/b/c", "../a", "a/..", "a/.b", "a/b.", "-a/b", "a--b/c", "a/b--c",
            "a/b c", "a/b\0", "a\\b/c", "a/b@", "a/b@../c", "ä/b", "a/b.git", "a/b%2e", "a?/b", &long,
        ] {
            assert!(RepoId::parse(invalid).is_err(), "{invalid:?}");
        }
    }

    #[test]
    fn revisions() {
        let parse = |revision: &str| RepoId::parse(&format!("a/b@{revision}"));
        for valid in ["main", "v1.0", "refs/pr/3", "feature/x-1", &"a".repeat(40)] {
            assert!(parse(valid).is_ok(), "{valid:?}");
        }
        let long = "a".repeat(201);
        for invalid in
            ["", "/a", "a/", "a//b", "..", "a/../b", "-x", "a b", "a\nb", "a:b", "a\\b", "a@b", "x.", &long]
        {
            assert!(parse(invalid).is_err(), "{invalid:?}");
        }
        assert!(parse(&"a".repeat(40)).unwrap().commit().is_some());
        assert!(parse(&"A".repeat(40)).unwrap().commit().is_none());
    }

    #[test]
    fn etags() {
        let (sha, git) = ("a1".repeat(32), "0f".repeat(20));
        for text in [format!("\"{sha}\""), format!("W/\"{sha}\""), sha.clone()] {
            assert_eq!(Etag::from_header(&text), Some(Etag(sha.clone())), "{text}");
        }
        assert_eq!(Etag::from_header(&format!("\"{git}\"")), Some(Etag(git)));
        let unclosed = format!("\"{sha}");
        for invalid in ["", "\"\"", "\"../../x\"", "/etc/passwd", &sha.to_uppercase(), &sha[1..], &unclosed] {
            assert_eq!(Etag::from_header(invalid), None, "{invalid:?}");
        }
    }

    #[test]
    fn windows_devices() {
        for invalid in ["NUL", "con.json", "a/COM1", "lpt9.txt", "aux", "NUL .x", "a/b. /c", "c "] {
            assert!(check_file_name(invalid).is_err(), "{invalid:?}");
        }
        for valid in ["a/b/config.json", "console.json", "COM10", "COMA", "...x", ".gitattributes"] {
            assert!(check_file_name(valid).is_ok(), "{valid:?}");
        }
    }
}
