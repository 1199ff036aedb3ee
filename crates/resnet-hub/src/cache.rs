//! The folders of the cache, shared with Python's `huggingface_hub`, and which of their files are trusted.
//!
//! ```text
//! models--owner--name/refs/main                       the commit of `main`
//! models--owner--name/snapshots/<commit>/<file>       a link to the blob (a copy without symlinks)
//! models--owner--name/blobs/<etag>                    the content; since huggingface_hub 2.4 possibly a link to
//! blobs/<2 digits>/<xet hash>                         content that several repositories share
//! models--owner--name/.no_exist/<commit>/<file>       an empty file: the commit does not have <file>
//! models--owner--name/.verified/<commit>/<file>       ours: size and time of content that has the hash of its etag
//! .locks/models--owner--name/<etag>.lock              locked while <etag> is downloaded
//! ```
//!
//! Nothing in it is trusted: a link must stay inside the cache, and content is used only after its hash was compared
//! with the name of the blob. The record in `.verified` avoids the hash while size and modification time are unchanged.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use hf_hub::{Cache, Repo, RepoType};
use tempfile::{Builder, NamedTempFile};

use crate::config::Config;
use crate::error::{Error, Result};
use crate::hash;
use crate::names::{Commit, Etag, RepoId};
use crate::request::Announced;

const BLOBS: &str = "blobs";
const INCOMPLETE: &str = ".incomplete";
/// The interval at which a process checks a lock.
const POLL: Duration = Duration::from_millis(20);

/// The cache of one repository.
pub(crate) struct RepoCache {
    root: PathBuf,
    folder: PathBuf,
    folder_name: String,
    layout: hf_hub::CacheRepo,
}

impl RepoCache {
    /// Returns the cache of a repository.
    ///
    /// # Errors
    ///
    /// [`Error::Cache`] if the file system ignores case and the folder is that of a repository whose name differs only
    /// in case.
    pub(crate) fn new(root: &Path, repo: &RepoId) -> Result<Self> {
        let repo = Repo::new(repo.name().into(), RepoType::Model);
        let folder_name = repo.folder_name();
        let layout = Cache::new(root.to_owned()).repo(repo);
        let folder = root.join(&folder_name);
        if let Ok(path) = fs::canonicalize(&folder)
            && let Some(found) = path.file_name().and_then(|name| name.to_str())
            && found != folder_name
            && found.eq_ignore_ascii_case(&folder_name)
        {
            return Err(invalid(&folder, &format!("the folder of another repository, `{found}`; remove it")));
        }
        Ok(Self { root: root.to_owned(), folder, folder_name, layout })
    }

    /// Returns the cached file if it is valid, `None` if the repository does not have it, and otherwise the reason why
    /// the cache cannot provide it. `hashing` is called before a file is hashed.
    pub(crate) fn find(
        &self,
        repo: &RepoId,
        file: &str,
        config: &Config,
        hashing: &mut dyn FnMut(),
    ) -> Result<Option<PathBuf>, String> {
        let commit = match repo.commit() {
            Some(commit) => commit,
            None => self.read_ref(repo.revision())?,
        };
        let entry = self.entry(&commit, file);
        let meta = match fs::symlink_metadata(&entry) {
            Ok(meta) => meta,
            Err(_) if self.missing(&commit, file).is_file() => return Ok(None),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err("no such file".into()),
            Err(e) => return Err(e.to_string()),
        };
        let (etag, content) = if meta.is_symlink() {
            let (etag, content) = self.link_target(&entry)?;
            (Some(etag), content)
        } else if meta.is_file() {
            (self.read_record(&commit, file).map(|(etag, _)| etag), entry.clone())
        } else {
            return Err("the entry is neither a file nor a link".into());
        };
        // On Windows a link may resolve by our rules and yet not be followed.
        let len = File::open(&entry).and_then(|f| f.metadata()).map_err(|e| e.to_string())?.len();
        match etag {
            Some(etag) => self.verify(&commit, file, &etag, &content, config.verify, hashing)?,
            // A copy that Python made where there are no symlinks. Its hash is unknown offline.
            None if config.offline && len > 0 => {}
            None => return Err("its hash is unknown".into()),
        }
        Ok(Some(entry))
    }

    /// Returns the announced file if its content is already in the cache, and creates its entry if necessary.
    pub(crate) fn adopt(
        &self,
        announced: &Announced,
        file: &str,
        verify: bool,
        hashing: &mut dyn FnMut(),
    ) -> Option<PathBuf> {
        let Announced { etag, commit, size } = announced;
        let entry = self.entry(commit, file);
        let plain = fs::symlink_metadata(&entry).is_ok_and(|m| m.is_file());
        let content = if plain { entry.clone() } else { self.content(etag.as_str()).ok()? };
        if fs::metadata(&content).ok()?.len() != *size {
            return None;
        }
        self.verify(commit, file, etag, &content, verify, hashing).ok()?;
        if !plain {
            self.link(announced, file).ok()?;
        }
        Some(entry)
    }

    /// Checks that content has the hash `etag`, unless a record says so and `again` is false.
    fn verify(
        &self,
        commit: &Commit,
        file: &str,
        etag: &Etag,
        content: &Path,
        again: bool,
        hashing: &mut dyn FnMut(),
    ) -> Result<(), String> {
        let now = Fingerprint::read(content).map_err(|e| e.to_string())?;
        if again || self.read_record(commit, file) != Some((etag.clone(), now)) {
            hashing();
            compare(content, etag)?;
            self.write_record(commit, file, etag, now);
        }
        Ok(())
    }

    /// Stores downloaded and verified content as the announced file.
    pub(crate) fn store(&self, temp: NamedTempFile, announced: &Announced, file: &str) -> Result<PathBuf> {
        let blob = self.blob(announced.etag.as_str());
        // On Windows a blob that another process has open cannot be replaced. If it is valid, it need not be.
        if let Err(e) = temp.persist(&blob)
            && compare(&blob, &announced.etag).is_err()
        {
            return Err(failed(&blob, e.error));
        }
        sync_folder(blob.parent());
        let entry = self.link(announced, file)?;
        if let Ok(now) = Fingerprint::read(&entry) {
            self.write_record(&announced.commit, file, &announced.etag, now);
        }
        Ok(entry)
    }

    /// Records the commit of a branch or tag. On failure the next run asks the endpoint again, so it is ignored.
    pub(crate) fn write_ref(&self, repo: &RepoId, commit: &Commit) {
        if repo.commit().is_none() && self.read_ref(repo.revision()).as_ref() != Ok(commit) {
            let _ = self.write(&self.folder.join("refs").join(repo.revision()), commit.as_str());
        }
    }

    /// Records that a commit does not have a file. On failure the next run asks the endpoint again.
    pub(crate) fn write_missing(&self, commit: &Commit, file: &str) {
        let _ = self.write(&self.missing(commit, file), "");
    }

    /// Creates a file next to the blobs that is removed when dropped.
    pub(crate) fn temp(&self, etag: &Etag) -> Result<NamedTempFile> {
        let folder = self.make_folder(&self.folder.join(BLOBS))?;
        let mut builder = Builder::new();
        let prefix = format!("{}.", etag.as_str());
        builder.prefix(&prefix).suffix(INCOMPLETE).rand_bytes(8);
        // Blobs are readable as the umask allows, like Python's.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        builder.tempfile_in(&folder).map_err(|e| failed(&folder, e))
    }

    /// Opens the longest partial file of an earlier download. With `remove` (there is no other download) all partial files
    /// are removed; the open one exists until it is closed.
    pub(crate) fn partial(&self, etag: &Etag, remove: bool) -> Option<File> {
        let all = self.partial_files(Some(etag));
        let longest = all.iter().max_by_key(|(_, meta)| meta.len());
        let file = longest.filter(|(_, meta)| meta.len() > 0).and_then(|(path, _)| File::open(path).ok());
        if remove {
            all.iter().for_each(|(path, _)| drop(fs::remove_file(path)));
        }
        file
    }

    /// Removes partial files that were not modified for `age`.
    pub(crate) fn prune(&self, age: Duration) {
        let now = SystemTime::now();
        for (path, meta) in self.partial_files(None) {
            let modified = meta.modified().unwrap_or(now);
            if now.duration_since(modified).is_ok_and(|old| old > age) {
                let _ = fs::remove_file(path);
            }
        }
    }

    /// Waits while another process downloads `etag` and its partial file grows, and returns the lock. Returns `None` if
    /// the file system has no locks or the other process stalls; then both download.
    pub(crate) fn lock(&self, etag: &Etag, stall: Duration, waiting: &mut dyn FnMut()) -> Option<File> {
        let folder = self.root.join(".locks").join(&self.folder_name);
        fs::create_dir_all(&folder).ok()?;
        let path = folder.join(format!("{}.lock", etag.as_str()));
        let file = File::options().create(true).append(true).open(path).ok()?;
        let (mut size, mut since, mut reported) = (None, Instant::now(), false);
        loop {
            match file.try_lock() {
                Ok(()) => return Some(file),
                Err(TryLockError::Error(_)) => return None,
                Err(TryLockError::WouldBlock) => {}
            }
            if !reported {
                waiting();
                reported = true;
            }
            let partial = self.partial_files(Some(etag));
            let found = Some(partial.iter().map(|(_, meta)| meta.len()).sum::<u64>());
            if found != size {
                (size, since) = (found, Instant::now());
            } else if since.elapsed() > stall {
                return None;
            }
            std::thread::sleep(POLL);
        }
    }

    fn entry(&self, commit: &Commit, file: &str) -> PathBuf {
        self.layout.pointer_path(commit.as_str()).join(file)
    }

    fn blob(&self, etag: &str) -> PathBuf {
        self.folder.join(BLOBS).join(etag)
    }

    fn missing(&self, commit: &Commit, file: &str) -> PathBuf {
        self.folder.join(".no_exist").join(commit.as_str()).join(file)
    }

    fn read_ref(&self, revision: &str) -> Result<Commit, String> {
        let path = self.folder.join("refs").join(revision);
        let meta = fs::symlink_metadata(&path).map_err(|_| format!("`{revision}` was never downloaded"))?;
        let text = if meta.is_file() && meta.len() == 40 { fs::read_to_string(&path).ok() } else { None };
        text.and_then(|t| Commit::parse(&t))
            .ok_or_else(|| format!("`{}` does not contain a commit", path.display()))
    }

    /// Returns the name of the blob that an entry links to, and its content.
    fn link_target(&self, entry: &Path) -> Result<(Etag, PathBuf), String> {
        let text = |e: io::Error| e.to_string();
        let folder = entry.parent().unwrap_or(entry);
        let link = folder.join(fs::read_link(entry).map_err(text)?);
        let name = link.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        let etag = Etag::parse(name).ok_or("the entry does not link to a blob")?;
        let blobs = fs::canonicalize(self.folder.join(BLOBS)).map_err(text)?;
        let parent = fs::canonicalize(link.parent().unwrap_or(&link)).map_err(text)?;
        if parent != blobs {
            return Err("the entry links to a file outside of the repository".into());
        }
        let content = self.content(name)?;
        Ok((etag, content))
    }

    /// Returns the regular file with the content of a blob: the blob, or its link target in the store that repositories
    /// share.
    fn content(&self, etag: &str) -> Result<PathBuf, String> {
        let blob = self.blob(etag);
        let meta = fs::symlink_metadata(&blob).map_err(|e| format!("blob: {e}"))?;
        if meta.is_file() {
            return Ok(blob);
        }
        if !meta.is_symlink() {
            return Err("the blob is not a regular file".into());
        }
        let shared = fs::canonicalize(self.root.join(BLOBS))
            .map_err(|_| "the blob links to a file outside of the cache")?;
        let content = fs::canonicalize(&blob).map_err(|e| format!("blob: {e}"))?;
        if !content.starts_with(&shared) {
            return Err("the blob links to a file outside of the cache".into());
        }
        if fs::symlink_metadata(&content).is_ok_and(|m| m.is_file()) {
            Ok(content)
        } else {
            Err("the blob is not a regular file".into())
        }
    }

    fn link(&self, announced: &Announced, file: &str) -> Result<PathBuf> {
        let (entry, blob) = (self.entry(&announced.commit, file), self.blob(announced.etag.as_str()));
        let folder = self.make_folder(entry.parent().unwrap_or(&self.folder))?;
        let target = blob_link(file, announced.etag.as_str());
        if fs::read_link(&entry).is_ok_and(|now| now == target) && File::open(&entry).is_ok() {
            return Ok(entry);
        }
        let make =
            |make: &dyn Fn(&Path) -> io::Result<()>| Builder::new().prefix(".link").make_in(&folder, make);
        make(&|path| symlink(&target, path))
            .or_else(|_| make(&|path| fs::hard_link(&blob, path)))
            .or_else(|_| make(&|path| fs::copy(&blob, path).map(drop)))
            .and_then(|temp| temp.persist(&entry).map_err(|e| e.error))
            .map_err(|e| failed(&entry, e))?;
        sync_folder(Some(&folder));
        Ok(entry)
    }

    /// Creates a folder of the repository; none of its parents may be a link.
    fn make_folder(&self, folder: &Path) -> Result<PathBuf> {
        fs::create_dir_all(&self.folder).map_err(|e| failed(&self.folder, e))?;
        let mut path = self.folder.clone();
        for part in folder.strip_prefix(&self.folder).unwrap_or(Path::new("")) {
            path.push(part);
            match fs::create_dir(&path) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(failed(&path, e)),
                _ => {}
            }
            if !fs::symlink_metadata(&path).is_ok_and(|m| m.is_dir()) {
                return Err(invalid(&path, "not a folder; remove it"));
            }
        }
        Ok(path)
    }

    fn write(&self, path: &Path, text: &str) -> Result<()> {
        let folder = self.make_folder(path.parent().unwrap_or(&self.folder))?;
        let temp = NamedTempFile::new_in(folder).map_err(|e| failed(path, e))?;
        fs::write(temp.path(), text).map_err(|e| failed(path, e))?;
        temp.persist(path).map(drop).map_err(|e| failed(path, e.error))
    }

    fn record_path(&self, commit: &Commit, file: &str) -> PathBuf {
        self.folder.join(".verified").join(commit.as_str()).join(file)
    }

    /// Records that content was verified. On failure the next run hashes again, so it is ignored.
    fn write_record(&self, commit: &Commit, file: &str, etag: &Etag, now: Fingerprint) {
        let text = format!("{} {} {}", etag.as_str(), now.size, now.modified);
        let _ = self.write(&self.record_path(commit, file), &text);
    }

    fn read_record(&self, commit: &Commit, file: &str) -> Option<(Etag, Fingerprint)> {
        let path = self.record_path(commit, file);
        fs::symlink_metadata(&path).ok().filter(|m| m.is_file() && m.len() < 200)?;
        let text = fs::read_to_string(path).ok()?;
        let mut words = text.split(' ');
        let etag = Etag::parse(words.next()?)?;
        let now = Fingerprint { size: words.next()?.parse().ok()?, modified: words.next()?.parse().ok()? };
        Some((etag, now))
    }

    /// Returns the partial files of one blob or of all.
    fn partial_files(&self, etag: Option<&Etag>) -> Vec<(PathBuf, fs::Metadata)> {
        let prefix = etag.map(|e| format!("{}.", e.as_str())).unwrap_or_default();
        let entries = fs::read_dir(self.folder.join(BLOBS)).into_iter().flatten().flatten();
        entries
            .filter(|e| {
                e.file_name().to_str().is_some_and(|n| n.ends_with(INCOMPLETE) && n.starts_with(&prefix))
            })
            .filter_map(|e| Some((e.path(), e.metadata().ok().filter(fs::Metadata::is_file)?)))
            .collect()
    }
}

/// Size and modification time, which change with the content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Fingerprint {
    size: u64,
    /// Nanoseconds since 1970.
    modified: u128,
}

impl Fingerprint {
    fn read(path: &Path) -> io::Result<Self> {
        let meta = fs::metadata(path)?;
        let modified = meta.modified()?.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos();
        Ok(Self { size: meta.len(), modified })
    }
}

/// Returns the relative target of an entry's link, built from components: Windows does not follow one with `/`.
fn blob_link(file: &str, etag: &str) -> PathBuf {
    // One `..` for `snapshots`, one for the commit, and one for each folder in the name of the file.
    let up = std::iter::repeat_n("..", 2 + file.matches('/').count());
    up.chain([BLOBS, etag]).collect()
}

/// Compares the hash of a file with the name of its blob.
pub(crate) fn compare(content: &Path, etag: &Etag) -> Result<(), String> {
    let found = File::open(content).and_then(|f| hash::hash_file(f, etag)).map_err(|e| e.to_string())?;
    if found == etag.as_str() {
        Ok(())
    } else {
        Err(format!("content has hash {found}, expected {}", etag.as_str()))
    }
}

pub(crate) fn failed(path: &Path, source: io::Error) -> Error {
    Error::Cache { path: path.to_owned(), source }
}

fn invalid(path: &Path, reason: &str) -> Error {
    failed(path, io::Error::other(reason))
}

/// Flushes a folder, which makes a rename durable. Windows cannot open folders and needs no flush.
fn sync_folder(folder: Option<&Path>) {
    if let Some(folder) = folder.and_then(|f| File::open(f).ok()) {
        let _ = folder.sync_all();
    }
}

#[cfg(unix)]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

#[cfg(windows)]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    std::os::windows::fs::symlink_file(target, link)
}

#[cfg(not(any(unix, windows)))]
fn symlink(_: &Path, _: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn link_targets_use_the_separator_of_the_platform() {
        let link = blob_link("a/b/config.json", "abc");
        let expected = ["..", "..", "..", "..", BLOBS, "abc"].join(std::path::MAIN_SEPARATOR_STR);
        assert_eq!(link.to_str(), Some(expected.as_str()));
    }
}
