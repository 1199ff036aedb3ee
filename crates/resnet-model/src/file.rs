//! Reading of files at offsets and atomic writing.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

mod companion;

pub use companion::{CompanionFile, companion};

use crate::{Error, Result, escape};

/// An open regular file, read at offsets from any thread.
///
/// The file is not memory-mapped: if another process truncated a mapped file, the program would end with a bus error, and
/// mapped pages count as memory in use. Reading cached bytes costs one copy.
#[derive(Debug)]
pub struct SharedFile {
    file: File,
    len: u64,
    #[cfg(not(unix))]
    cursor: std::sync::Mutex<()>,
}

impl SharedFile {
    /// Opens the regular file at `path`.
    ///
    /// # Errors
    ///
    /// An error if `path` is a directory, a pipe or a device, which is not opened, or if it cannot be read.
    pub fn open(path: &Path) -> io::Result<SharedFile> {
        let kind = std::fs::metadata(path)?;
        if kind.is_dir() {
            return Err(io::Error::new(io::ErrorKind::IsADirectory, "is a directory, not a file"));
        }
        if !kind.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        let file = File::open(path)?;
        let len = file.metadata()?.len();
        Ok(SharedFile {
            file,
            len,
            #[cfg(not(unix))]
            cursor: std::sync::Mutex::new(()),
        })
    }

    /// Returns the length in bytes when the file was opened.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Returns `true` if the file was empty when opened.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Fills `out` with the bytes from `offset`.
    ///
    /// # Errors
    ///
    /// `UnexpectedEof` if the file is shorter, or another error of the operating system.
    pub fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        #[cfg(unix)]
        {
            std::os::unix::fs::FileExt::read_exact_at(&self.file, out, offset)
        }
        #[cfg(not(unix))]
        {
            use std::io::{Read, Seek, SeekFrom};
            let _held = self.cursor.lock().map_err(|_| io::Error::other("a reader panicked"))?;
            let mut file = &self.file;
            file.seek(SeekFrom::Start(offset))?;
            file.read_exact(out)
        }
    }
}

/// The behavior if the file to be written exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// Keep it and return [`Error::Exists`].
    Keep,
    /// Replace it atomically.
    Replace,
}

impl Existing {
    /// Returns [`Existing::Replace`] if `force` is set, otherwise [`Existing::Keep`].
    pub fn replace_if(force: bool) -> Existing {
        if force { Existing::Replace } else { Existing::Keep }
    }
}

/// Writes the file at `path` with `write`, to a temporary sibling that is then renamed. Readers see the old file or the new
/// one, and a failure leaves no file.
///
/// If a file is replaced, the new one is synced to disk first, so that one of them survives a power failure. A new file is
/// not synced, like `cp`: its source still exists, readers reject it if it is truncated, and syncing makes a conversion 1.6 to
/// 1.9 times as slow (2.4 times the time of `cp`, otherwise 1.4).
///
/// # Errors
///
/// [`Error::Exists`], or [`Error::At`] with an error of the operating system or of `write`.
pub fn write_atomically(
    path: &Path,
    existing: Existing,
    write: impl FnOnce(&mut BufWriter<&mut File>) -> Result<()>,
) -> Result<()> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    if existing == Existing::Keep && path.symlink_metadata().is_ok() {
        return Err(Error::Exists(path.to_owned()));
    }
    let mut options = tempfile::Builder::new();
    options.prefix(".resnet-");
    // Temporary files are private by default; this one becomes an ordinary file.
    #[cfg(unix)]
    options.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut temporary = options.tempfile_in(parent).map_err(|e| in_directory(&e, parent).at(path))?;
    let mut writer = BufWriter::with_capacity(1 << 20, temporary.as_file_mut());
    write(&mut writer).map_err(|e| e.at(path))?;
    writer.flush().map_err(|e| Error::from(e).at(path))?;
    drop(writer);
    if existing == Existing::Replace && path.exists() {
        temporary.as_file().sync_all().map_err(|e| Error::from(e).at(path))?;
    }
    let persisted = match existing {
        Existing::Keep => temporary.persist_noclobber(path),
        Existing::Replace => temporary.persist(path),
    };
    match persisted {
        Ok(_) => Ok(()),
        Err(e) if e.error.kind() == io::ErrorKind::AlreadyExists => Err(Error::Exists(path.to_owned())),
        Err(e) => Err(Error::from(e.error).at(path)),
    }
}

/// The error of creating a file in `directory`; the original error names the temporary file, which the user does not know.
fn in_directory(error: &io::Error, directory: &Path) -> Error {
    let reason = match error.kind() {
        io::ErrorKind::NotFound => "no such directory:",
        io::ErrorKind::PermissionDenied => "permission denied in directory",
        io::ErrorKind::NotADirectory => "not a directory:",
        _ => "cannot create a file in",
    };
    io::Error::new(error.kind(), format!("{reason} `{}`", escape(&directory.display().to_string()))).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.bin");
        let failed = write_atomically(&path, Existing::Keep, |w| {
            w.write_all(b"half")?;
            Err(Error::NoMeta)
        });
        assert!(matches!(failed, Err(Error::At { .. })));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn an_existing_file_is_replaced_only_on_request() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.bin");
        let put = |existing, bytes: &'static [u8]| {
            write_atomically(&path, existing, |w| Ok(w.write_all(bytes)?)).map_err(|e| e.to_string())
        };
        put(Existing::Keep, b"one").unwrap();
        assert!(put(Existing::Keep, b"two").unwrap_err().contains("already exists"));
        assert_eq!(std::fs::read(&path).unwrap(), b"one");
        put(Existing::Replace, b"three").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"three");
    }

    #[test]
    fn a_missing_directory_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nowhere/out.bin");
        let error = write_atomically(&path, Existing::Keep, |_| Ok(())).unwrap_err().to_string();
        assert!(error.contains("no such directory: `") && !error.contains(".resnet-"), "{error}");
        std::fs::write(dir.path().join("nowhere"), b"").unwrap();
        let error = write_atomically(&path, Existing::Keep, |_| Ok(())).unwrap_err().to_string();
        assert!(error.contains("not a directory: `"), "{error}");
    }

    #[test]
    fn only_regular_files_are_opened() {
        let error = SharedFile::open(Path::new("/dev/null")).unwrap_err();
        assert!(error.to_string().contains("not a regular file"), "{error}");
        assert!(SharedFile::open(&std::env::temp_dir()).unwrap_err().to_string().contains("directory"));
    }
}
