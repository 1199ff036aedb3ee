//! Reader of `torch.save` files from PyTorch 0.1.10 to 1.5: five pickles (magic number, protocol, machine, object, storage
//! keys), then each storage as a 64-bit element count and its elements.

use std::sync::Arc;

use resnet_model::escape;
use resnet_model::raw::{ByteRange, Bytes};

use super::input::Input;
use super::pickle::specs::Specs;
use super::pickle::value::Value;
use super::pickle::{self, PersistentIds, Pickle};
use super::pickled_tensors::{self, Storages};
use super::tensors::{Blob, TensorBuilder};
use super::{Format, StateDict};
use crate::error::{Code, Fault};

/// Magic bytes: a pickle of the integer 0x1950a86a20f9469cfc6c, without its protocol header.
const MAGIC: &[u8] = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";
const PROTOCOL: i64 = 1001;

/// Returns the end of the magic number, if the file starts with it: a pickle, framed from protocol 4 on.
pub(super) fn magic(head: &[u8]) -> Option<u64> {
    const FRAME: u8 = MAGIC.len() as u8;
    let start = match head {
        [0x80, 4 | 5, 0x95, FRAME, 0, 0, 0, 0, 0, 0, 0, ..] => 11,
        [0x80, 2..=5, ..] => 2usize,
        _ => return None,
    };
    let end = start.checked_add(MAGIC.len())?;
    (head.get(start..end)? == MAGIC).then_some(end as u64)
}

/// Reads the file from `start`, the end of the magic number.
pub(super) fn read(bytes: Arc<dyn Bytes>, start: u64) -> Result<StateDict, Fault> {
    let mut maker = TensorBuilder::new(bytes.len());
    let mut into = StateDict::new(Format::TorchLegacy);
    let mut input = Input::new(bytes.clone(), start);

    let protocol = simple(&mut input)?;
    if protocol.root != Value::Int(PROTOCOL) {
        let found = match protocol.root {
            Value::Int(n) => n.to_string(),
            other => protocol.arena.type_name(other).to_owned(),
        };
        let detail = format!("unsupported protocol {found}, expected {PROTOCOL}");
        return Err(Fault::new(Code::Version, detail).at(start));
    }
    check_machine(&simple(&mut input)?)?;
    let pickle = pickle::read(&mut input, &PersistentIds::Legacy, Specs::default())?;
    let at = input.pos();
    let keys = simple(&mut input)?;
    let order = storage_order(&keys, &pickle.specs).map_err(|f| f.at(at))?;

    let mut blobs: Vec<Option<Blob>> = vec![None; pickle.specs.roots.len()];
    for root in order {
        let blob = storage(&mut input, &bytes, &pickle.specs, root)?;
        if let Some(slot) = blobs.get_mut(root as usize) {
            *slot = Some(blob);
        }
    }
    if input.left() > 0 {
        let detail = format!("{} bytes after the last storage", input.left());
        return Err(Fault::new(Code::Trailing, detail).at(input.pos()));
    }
    let blobs: Option<Vec<Blob>> = blobs.into_iter().collect();
    let blobs =
        blobs.ok_or_else(|| Fault::new(Code::StorageKeys, "storage missing in the list of storages"))?;
    pickled_tensors::collect(&pickle, &bytes, &Storages { blobs, big_endian: false }, &mut maker, &mut into)?;
    Ok(into)
}

/// Reads a pickle without persistent ids.
pub(super) fn simple(input: &mut Input) -> Result<Pickle, Fault> {
    pickle::read(input, &PersistentIds::None, Specs::default())
}

/// Rejects checkpoints from big-endian machines. Storages should be little-endian regardless, but old versions differ.
pub(super) fn check_machine(info: &Pickle) -> Result<(), Fault> {
    match info.arena.get(info.root, "little_endian") {
        None | Some(Value::Bool(true)) => Ok(()),
        Some(_) => Err(Fault::new(Code::ByteOrder, "unsupported checkpoint from a big-endian machine")),
    }
}

/// Returns the indices of the storages in file order. Every storage must be listed once.
fn storage_order(keys: &Pickle, specs: &Specs) -> Result<Vec<u32>, Fault> {
    let bad = |what: String| Fault::new(Code::StorageKeys, what);
    let list = keys.arena.list(keys.root).ok_or_else(|| bad("expected a list of storage keys".into()))?;
    if list.len() != specs.roots.len() {
        return Err(bad(format!("{} storages listed, {} in use", list.len(), specs.roots.len())));
    }
    let mut seen = vec![false; list.len()];
    let root = |&key: &Value| {
        let key = keys.arena.str(key).ok_or_else(|| bad("storage key is not a string".into()))?;
        let root = specs.root(key).ok_or_else(|| bad(format!("no tensor uses storage `{}`", escape(key))))?;
        match seen.get_mut(root as usize).map(|s| std::mem::replace(s, true)) {
            Some(false) => Ok(root),
            _ => Err(bad(format!("storage `{}` is listed twice", escape(key)))),
        }
    };
    list.iter().map(root).collect()
}

/// Reads one storage: its element count, then the elements.
fn storage(input: &mut Input, bytes: &Arc<dyn Bytes>, specs: &Specs, root: u32) -> Result<Blob, Fault> {
    let at = input.pos();
    let missing = || Fault::new(Code::StorageKeys, "unknown storage");
    let root = specs.roots.get(root as usize).ok_or_else(missing)?;
    let count = input.i64()?;
    let found = u64::try_from(count).ok().and_then(|n| n.checked_mul(root.item));
    if found != Some(root.bytes) {
        let elements = root.bytes.checked_div(root.item).unwrap_or(0);
        let detail =
            format!("storage `{}` has {count} elements, the pickle declares {elements}", escape(&root.key));
        return Err(Fault::new(Code::StorageSize, detail).at(at));
    }
    let eof = || Fault::new(Code::Eof, format!("the file ends in storage `{}`", escape(&root.key))).at(at);
    let part = ByteRange::new(bytes.clone(), input.pos(), root.bytes).ok_or_else(eof)?;
    input.skip(root.bytes)?;
    Ok(Blob::Plain(Arc::new(part)))
}
