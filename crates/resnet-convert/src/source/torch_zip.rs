//! Reader of `torch.save` files since PyTorch 1.6 and TorchScript archives: a zip of `<root>/data.pkl` and
//! `<root>/data/<key>`.

use resnet_model::escape;

use super::input::Input;
use super::pickle::specs::{DeclaredStorage, Specs};
use super::pickle::{self, MAX_PICKLE, PersistentIds};
use super::pickled_tensors::{self, Storages};
use super::tensors::TensorBuilder;
use super::zip::{ZipEntry, ZipReader};
use super::{Format, META_ENTRY, StateDict};
use crate::error::{Code, Fault};

/// Maximum archive version that PyTorch defines.
const MAX_VERSION: u64 = 10;

/// Returns `true` if the entry names are those of a PyTorch archive.
pub(super) fn is_archive(archive: &ZipReader) -> bool {
    named(archive, "data.pkl").next().is_some()
}

pub(super) fn read(archive: &ZipReader, file_len: u64) -> Result<StateDict, Fault> {
    let mut maker = TensorBuilder::new(file_len);
    let (root, data) = find_pickle(archive)?;
    let script = archive.get(&format!("{root}constants.pkl")).is_some();
    let mut into = StateDict::new(if script { Format::TorchScript } else { Format::TorchZip });
    check_version(archive, &root)?;
    let big_endian = is_big_endian(archive, &root)?;

    let name = data.shown();
    let bytes = archive.verified(data, MAX_PICKLE)?;
    let mut input = Input::new(bytes.clone(), 0);
    let within = |fault: Fault| fault.within(&name);
    let pickle = pickle::read(&mut input, &PersistentIds::Zip, Specs::default()).map_err(within)?;
    if input.left() > 0 {
        let detail = format!("{} bytes after the end of the pickle", input.left());
        return Err(within(Fault::new(Code::Trailing, detail).at(input.pos())));
    }
    let mut blobs = Vec::new();
    let mut unchecked = usize::from(!data.has_checksum());
    for storage in &pickle.specs.roots {
        let entry = storage_entry(archive, &root, storage)?;
        unchecked = unchecked.saturating_add(usize::from(!entry.has_checksum()));
        blobs.push(archive.blob(entry)?);
    }
    pickled_tensors::collect(&pickle, &bytes, &Storages { blobs, big_endian }, &mut maker, &mut into)
        .map_err(within)?;

    if let Some(entry) = archive.get(&format!("{root}{META_ENTRY}")) {
        let json = description(archive, entry)?;
        into.metadata.insert(resnet_model::meta::KEY.to_owned(), json);
    }
    if script {
        into.notes.push("TorchScript archive: weights were read, code was ignored".into());
    }
    if big_endian {
        into.notes.push("big-endian values were byte-swapped".into());
    }
    if unchecked > 0 {
        into.notes.push(format!("{unchecked} entries without a checksum could not be verified"));
    }
    let unused = archive.entries.iter().filter(|e| is_unused(e, &root, &pickle.specs)).count();
    if unused > 0 {
        into.notes.push(format!("{unused} unused storages were ignored"));
    }
    Ok(into)
}

/// Returns the entries with this file name, in any folder.
fn named<'a>(archive: &'a ZipReader, file: &'static str) -> impl Iterator<Item = &'a ZipEntry> {
    let in_folder = format!("/{file}").into_bytes();
    archive.entries.iter().filter(move |e| e.name == file.as_bytes() || e.name.ends_with(&in_folder))
}

/// Returns the only `data.pkl` and its folder (empty or with a trailing slash).
fn find_pickle(archive: &ZipReader) -> Result<(String, &ZipEntry), Fault> {
    let layout = |what: &str| Fault::new(Code::ZipLayout, what);
    let mut pickles = named(archive, "data.pkl");
    let Some(data) = pickles.next() else {
        return Err(match named(archive, "model.json").next() {
            Some(_) => Fault::new(
                Code::TorchScriptV1,
                "unsupported TorchScript archive of PyTorch 1.0; save it again with a later version",
            ),
            None => layout("zip archive without data.pkl or arrays, not a checkpoint"),
        });
    };
    if pickles.next().is_some() {
        return Err(layout("zip archive with several data.pkl"));
    }
    let name = std::str::from_utf8(&data.name).map_err(|_| layout("the folder of data.pkl is not UTF-8"))?;
    let root = name.strip_suffix("data.pkl").unwrap_or_default();
    if root.trim_end_matches('/').contains('/') || root == "/" {
        return Err(layout(&format!("data.pkl is nested too deeply, in `{}`", escape(root))));
    }
    Ok((root.to_owned(), data))
}

/// Reads the text of a small entry.
fn text(archive: &ZipReader, name: &str) -> Result<Option<String>, Fault> {
    const MAX: u64 = 32;
    let Some(entry) = archive.get(name) else { return Ok(None) };
    if entry.size > MAX {
        return Ok(Some(format!("{} bytes", entry.size)));
    }
    let bytes = archive.verified(entry, MAX)?;
    let mut all = vec![0; bytes.len() as usize];
    bytes.read_at(0, &mut all).map_err(|e| Fault::from(e).within(name))?;
    Ok(Some(String::from_utf8_lossy(&all).trim().to_owned()))
}

/// Reads the metadata entry of a checkpoint written by this crate.
fn description(archive: &ZipReader, entry: &ZipEntry) -> Result<String, Fault> {
    const MAX: u64 = 16 << 20;
    let within = |fault: Fault| fault.within(&entry.shown());
    let bytes = archive.verified(entry, MAX)?;
    let mut all = vec![0; bytes.len() as usize];
    bytes.read_at(0, &mut all).map_err(|e| within(e.into()))?;
    String::from_utf8(all).map_err(|_| within(Fault::new(Code::Text, "invalid UTF-8")))
}

fn check_version(archive: &ZipReader, root: &str) -> Result<(), Fault> {
    let name = format!("{root}version");
    match text(archive, &name)? {
        Some(found) if found.parse().is_ok_and(|v: u64| v <= MAX_VERSION) => Ok(()),
        Some(found) => {
            let detail =
                format!("unsupported archive version `{}`, expected at most {MAX_VERSION}", escape(&found));
            Err(Fault::new(Code::Version, detail).within(&name))
        }
        None => Ok(()),
    }
}

fn is_big_endian(archive: &ZipReader, root: &str) -> Result<bool, Fault> {
    let name = format!("{root}byteorder");
    match text(archive, &name)?.as_deref() {
        None | Some("little") => Ok(false),
        Some("big") => Ok(true),
        Some(found) => {
            let detail = format!("invalid byte order `{}`, expected `little` or `big`", escape(found));
            Err(Fault::new(Code::ByteOrder, detail).within(&name))
        }
    }
}

fn storage_entry<'a>(
    archive: &'a ZipReader,
    root: &str,
    storage: &DeclaredStorage,
) -> Result<&'a ZipEntry, Fault> {
    let name = format!("{root}data/{}", storage.key);
    let missing = || Fault::new(Code::StorageMissing, format!("missing entry `{}`", escape(&name)));
    let entry = archive.get(&name).ok_or_else(missing)?;
    if entry.size != storage.bytes {
        let detail = format!("{} bytes, the pickle declares {}", entry.size, storage.bytes);
        return Err(Fault::new(Code::StorageSize, detail).within(&name));
    }
    Ok(entry)
}

fn is_unused(entry: &ZipEntry, root: &str, specs: &Specs) -> bool {
    let key = entry.name.strip_prefix(format!("{root}data/").as_bytes());
    key.is_some_and(|key| std::str::from_utf8(key).is_ok_and(|key| specs.root(key).is_none()))
}
