//! The cache's folders, shared with Python's `huggingface_hub`, and what of them is trusted.
//!
//! ```text
//! models--owner--name/refs/main                       the commit that `main` was
//! models--owner--name/snapshots/<commit>/<file>       a link to the blob (a copy where there are no links)
//! models--owner--name/blobs/<etag>                    the content; since huggingface_hub 2.4 perhaps a link to
//! blobs/<2 digits>/<xet hash>                         content that several repositories share
//! models--owner--name/.verified/<commit>/<file>       ours: size and time of a content that has the etag's hash
//! .locks/models--owner--name/<etag>.lock              taken while <etag> is downloaded
//! ```
//!
//! Nothing here is believed: a link must stay where it belongs, and content is used only after its hash was compared
//! with the blob's name. The record in `.verified` spares the hash as long as size and modification time stand.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use hf_hub::{Cache, Repo, RepoType};
use tempfile::{Builder, NamedTempFile};

use super::error::{HubError, Result};
use super::hash;
use super::names::{Commit, Etag, RepoId, Revision};
use super::net::Announced;

const BLOBS: &str = "blobs";
const INCOMPLETE: &str = ".incomplete";
/// How often a process looks whether another one still downloads.
const POLL: Duration = Duration::from_millis(20);

/// The cache of one repository.
pub(super) struct RepoCache {
    root: PathBuf,
    folder: PathBuf,
    folder_name: String,
    layout: hf_hub::CacheRepo,
}

/// How a cached file is looked at.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Trust {
    /// Hash again what is recorded as verified.
    pub(super) verify: bool,
    /// Take a plain file that nothing is known of: there is nobody to ask.
    pub(super) unknown: bool,
}

impl RepoCache {
    pub(super) fn new(root: &Path, repo: &RepoId) -> Self {
        let repo = Repo::new(repo.as_str().into(), RepoType::Model);
        let folder_name = repo.folder_name();
        let layout = Cache::new(root.to_owned()).repo(repo);
        Self { root: root.to_owned(), folder: root.join(&folder_name), folder_name, layout }
    }

    /// The cached file, if it is there and good; otherwise why not. `hashing` is called before a file is hashed.
    pub(super) fn find(
        &self,
        revision: &Revision,
        file: &str,
        trust: Trust,
        hashing: &mut dyn FnMut(),
    ) -> Result<PathBuf, String> {
        let commit = match revision.as_commit() {
            Some(commit) => commit,
            None => self.read_ref(revision)?,
        };
        let entry = self.entry(&commit, file);
        let meta = fs::symlink_metadata(&entry).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => "no such file".into(),
            _ => e.to_string(),
        })?;
        let known = self.recorded(&commit, file);
        let (etag, content) = if meta.is_symlink() {
            let (etag, content) = self.blob_behind(&entry)?;
            (Some(etag), content)
        } else if meta.is_file() {
            (known.as_ref().map(|k| k.etag.clone()), entry.clone())
        } else {
            return Err("the entry is neither a file nor a link".into());
        };
        let now = State::of(&content).map_err(|e| e.to_string())?;
        let Some(etag) = etag else {
            // A copy that Python made where there are no links.
            return if trust.unknown && now.size > 0 {
                Ok(entry)
            } else {
                Err("its hash is not known".into())
            };
        };
        let stands = known.is_some_and(|k| k.etag == etag && k.state == now);
        if trust.verify || !stands {
            hashing();
            compare(&content, &etag)?;
            self.record(&commit, file, &etag, now);
        }
        Ok(entry)
    }

    /// The file that was announced, if its content is in the cache already; its entry is made where it is missing.
    pub(super) fn adopt(
        &self,
        announced: &Announced,
        file: &str,
        hashing: &mut dyn FnMut(),
    ) -> Option<PathBuf> {
        let entry = self.entry(&announced.commit, file);
        let plain = fs::symlink_metadata(&entry).is_ok_and(|m| m.is_file());
        let content = if plain { entry.clone() } else { self.content(announced.etag.as_str()).ok()? };
        let state = State::of(&content).ok().filter(|s| s.size == announced.size)?;
        hashing();
        compare(&content, &announced.etag).ok()?;
        if !plain {
            self.link(announced, file).ok()?;
        }
        self.record(&announced.commit, file, &announced.etag, state);
        Some(entry)
    }

    /// Makes downloaded and verified content the file that was announced.
    pub(super) fn store(&self, temp: NamedTempFile, announced: &Announced, file: &str) -> Result<PathBuf> {
        let blob = self.blob(announced.etag.as_str());
        temp.persist(&blob).map_err(|e| failed(&blob, e.error))?;
        sync_folder(blob.parent());
        let entry = self.link(announced, file)?;
        if let Ok(state) = State::of(&entry) {
            self.record(&announced.commit, file, &announced.etag, state);
        }
        Ok(entry)
    }

    /// Remembers which commit a revision is. Without it the next run asks the Hub again, so failure is no error.
    pub(super) fn write_ref(&self, revision: &Revision, commit: &Commit) {
        if revision.as_commit().is_none() && self.read_ref(revision).as_ref() != Ok(commit) {
            let _ = self.write(&self.folder.join("refs").join(revision.as_str()), commit.as_str());
        }
    }

    /// A new file beside the blobs, removed when dropped.
    pub(super) fn temp(&self, etag: &Etag) -> Result<NamedTempFile> {
        let folder = self.make_folder(&self.folder.join(BLOBS))?;
        let mut builder = Builder::new();
        let prefix = format!("{}.", etag.as_str());
        builder.prefix(&prefix).suffix(INCOMPLETE).rand_bytes(8);
        // Blobs are readable for those that the umask lets read, as Python's are.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        builder.tempfile_in(&folder).map_err(|e| failed(&folder, e))
    }

    /// Opens the longest partial file of an earlier download. With `remove` (nobody else is downloading) all of them
    /// are removed; the open one lives on until it is closed.
    pub(super) fn leftover(&self, etag: &Etag, remove: bool) -> Option<File> {
        let all = self.partial(Some(etag));
        let longest = all.iter().max_by_key(|(_, meta)| meta.len());
        let file = longest.filter(|(_, meta)| meta.len() > 0).and_then(|(path, _)| File::open(path).ok());
        if remove {
            all.iter().for_each(|(path, _)| drop(fs::remove_file(path)));
        }
        file
    }

    /// Removes partial files that nobody has written to for `age`.
    pub(super) fn prune(&self, age: Duration) {
        let now = SystemTime::now();
        for (path, meta) in self.partial(None) {
            let modified = meta.modified().unwrap_or(now);
            if now.duration_since(modified).is_ok_and(|old| old > age) {
                let _ = fs::remove_file(path);
            }
        }
    }

    /// Waits until no other process downloads `etag`, for as long as its partial file grows, and returns the lock.
    /// `None` where the file system has no locks or the other one stands still: then we download beside it.
    pub(super) fn lock(&self, etag: &Etag, stall: Duration, waiting: &mut dyn FnMut()) -> Option<File> {
        let folder = self.root.join(".locks").join(&self.folder_name);
        fs::create_dir_all(&folder).ok()?;
        let path = folder.join(format!("{}.lock", etag.as_str()));
        let file = File::options().create(true).append(true).open(path).ok()?;
        let (mut size, mut since, mut told) = (None, Instant::now(), false);
        loop {
            match file.try_lock() {
                Ok(()) => return Some(file),
                Err(TryLockError::Error(_)) => return None,
                Err(TryLockError::WouldBlock) => {}
            }
            if !told {
                waiting();
                told = true;
            }
            let partial = self.partial(Some(etag));
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

    fn read_ref(&self, revision: &Revision) -> Result<Commit, String> {
        let path = self.folder.join("refs").join(revision.as_str());
        let meta = fs::symlink_metadata(&path).map_err(|_| format!("`{revision}` was never downloaded"))?;
        let text = if meta.is_file() && meta.len() == 40 { fs::read(&path).ok() } else { None };
        text.and_then(|t| Commit::parse(&t))
            .ok_or_else(|| format!("`{}` does not hold a commit", path.display()))
    }

    /// The blob's name and content that an entry links to.
    fn blob_behind(&self, entry: &Path) -> Result<(Etag, PathBuf), String> {
        let text = |e: io::Error| e.to_string();
        let folder = entry.parent().unwrap_or(entry);
        let link = folder.join(fs::read_link(entry).map_err(text)?);
        let name = link.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        let etag = Etag::parse(name.as_bytes()).ok_or("the entry's link does not lead to a blob")?;
        let blobs = fs::canonicalize(self.folder.join(BLOBS)).map_err(text)?;
        let behind = fs::canonicalize(link.parent().unwrap_or(&link)).map_err(text)?;
        if behind != blobs {
            return Err("the entry's link leads out of the repository's blobs".into());
        }
        let content = self.content(name)?;
        Ok((etag, content))
    }

    /// The regular file that is a blob's content: the blob, or what it links to in the store that repositories share.
    fn content(&self, etag: &str) -> Result<PathBuf, String> {
        let blob = self.blob(etag);
        let meta = fs::symlink_metadata(&blob).map_err(|e| format!("blob: {e}"))?;
        if meta.is_file() {
            return Ok(blob);
        }
        if !meta.is_symlink() {
            return Err("the blob is not a regular file".into());
        }
        let shared =
            fs::canonicalize(self.root.join(BLOBS)).map_err(|_| "the blob is a link out of the cache")?;
        let content = fs::canonicalize(&blob).map_err(|e| format!("blob: {e}"))?;
        if !content.starts_with(&shared) {
            return Err("the blob is a link out of the cache".into());
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
        // `snapshots/<commit>` and one more for each folder in the file's name.
        let up = "../".repeat(2 + file.matches('/').count());
        let target = format!("{up}{BLOBS}/{}", announced.etag.as_str());
        if fs::read_link(&entry).is_ok_and(|now| now == Path::new(&target)) {
            return Ok(entry);
        }
        let make =
            |make: &dyn Fn(&Path) -> io::Result<()>| Builder::new().prefix(".link").make_in(&folder, make);
        make(&|path| symlink(Path::new(&target), path))
            .or_else(|_| make(&|path| fs::hard_link(&blob, path)))
            .or_else(|_| make(&|path| fs::copy(&blob, path).map(drop)))
            .and_then(|temp| temp.persist(&entry).map_err(|e| e.error))
            .map_err(|e| failed(&entry, e))?;
        sync_folder(Some(&folder));
        Ok(entry)
    }

    /// Creates a folder of the repository; none of its parents may lead elsewhere.
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
                return Err(HubError::CacheEntry { path, reason: "not a folder; remove it".into() });
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

    /// Remembers what was verified. Without it the next run hashes again, so failure is no error.
    fn record(&self, commit: &Commit, file: &str, etag: &Etag, state: State) {
        let text = format!("{} {} {}", etag.as_str(), state.size, state.modified);
        let _ = self.write(&self.record_path(commit, file), &text);
    }

    fn recorded(&self, commit: &Commit, file: &str) -> Option<Recorded> {
        let path = self.record_path(commit, file);
        fs::symlink_metadata(&path).ok().filter(|m| m.is_file() && m.len() < 200)?;
        let text = fs::read_to_string(path).ok()?;
        let mut words = text.split(' ');
        let etag = Etag::parse(words.next()?.as_bytes())?;
        let state = State { size: words.next()?.parse().ok()?, modified: words.next()?.parse().ok()? };
        Some(Recorded { etag, state })
    }

    /// The partial files, of one blob or of all.
    fn partial(&self, etag: Option<&Etag>) -> Vec<(PathBuf, fs::Metadata)> {
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

struct Recorded {
    etag: Etag,
    state: State,
}

/// What changes when content does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct State {
    size: u64,
    /// Nanoseconds since 1970.
    modified: u128,
}

impl State {
    fn of(path: &Path) -> io::Result<Self> {
        let meta = fs::metadata(path)?;
        let modified = meta.modified()?.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos();
        Ok(Self { size: meta.len(), modified })
    }
}

fn compare(content: &Path, etag: &Etag) -> Result<(), String> {
    let found = File::open(content).and_then(|f| hash::of_file(f, etag)).map_err(|e| e.to_string())?;
    if found == etag.as_str() {
        Ok(())
    } else {
        Err(format!("content has hash {found}, expected {}", etag.as_str()))
    }
}

fn failed(path: &Path, source: io::Error) -> HubError {
    HubError::Cache { path: path.to_owned(), source }
}

/// A rename is on disk only when its folder is. Where folders cannot be opened there is nothing to do.
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
