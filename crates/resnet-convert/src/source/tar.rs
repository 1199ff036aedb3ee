//! Reader of `torch.save` files before PyTorch 0.1.10: a tar of `sys_info`, `pickle`, `tensors` and `storages`.
//!
//! Nothing is extracted. Regular members and PAX headers are supported: Python's `tarfile` writes the latter for fractional
//! timestamps. They must not change a member's name or size.

use std::collections::HashMap;
use std::sync::Arc;

use resnet_model::raw::{ByteRange, Bytes};

use super::input::Input;
use super::legacy::{check_machine, simple};
use super::pickle::specs::{Specs, StorageRef, TensorSpec};
use super::pickle::storage_class_dtype;
use super::pickle::value::Value;
use super::pickle::{self, PersistentIds, Pickle};
use super::pickled_tensors::{self, Storages};
use super::tensors::{Blob, TensorBuilder};
use super::{Format, StateDict};
use crate::error::{Code, Fault};

const BLOCK: u64 = 512;
const MAX_MEMBERS: usize = 100_000;
const MAX_PAX: u64 = 64 << 10;
const NAMES: [&str; 4] = ["sys_info", "pickle", "tensors", "storages"];

pub(super) fn read(bytes: Arc<dyn Bytes>) -> Result<StateDict, Fault> {
    let mut maker = TensorBuilder::new(bytes.len());
    let mut into = StateDict::new(Format::TorchTar);
    let members = members(&bytes)?;
    let member = |name: &str| {
        let part = members.get(name).cloned();
        let part = part.ok_or_else(|| Fault::new(Code::TarLayout, format!("missing member `{name}`")));
        part.map(|part| Input::new(part, 0))
    };
    check_machine(&simple(&mut member("sys_info")?).map_err(|f| f.within("sys_info"))?)?;
    let mut tables = Tables::default();
    tables.storages(&mut member("storages")?).map_err(|f| f.within("storages"))?;
    tables.tensors(&mut member("tensors")?).map_err(|f| f.within("tensors"))?;

    let mut input = member("pickle")?;
    let bytes = input.bytes().clone();
    let within = |fault: Fault| fault.within("pickle");
    let pickle = pickle::read(&mut input, &PersistentIds::Tar(tables.ids), tables.specs).map_err(within)?;
    if input.left() > 0 {
        return Err(within(Fault::new(Code::Trailing, "data after the end of the pickle").at(input.pos())));
    }
    let storages = Storages { blobs: tables.blobs, big_endian: false };
    pickled_tensors::collect(&pickle, &bytes, &storages, &mut maker, &mut into).map_err(within)?;
    Ok(into)
}

/// Returns the four members.
fn members(bytes: &Arc<dyn Bytes>) -> Result<HashMap<&'static str, Arc<dyn Bytes>>, Fault> {
    let mut found = HashMap::new();
    let mut at = 0u64;
    // Values of the extension headers before a member.
    let mut renamed = false;
    let mut pax_size = None;
    for _ in 0..MAX_MEMBERS {
        let fault = |code, detail: String| Fault::new(code, detail).at(at);
        let mut block = [0; BLOCK as usize];
        if at == bytes.len() {
            break;
        }
        bytes
            .read_at(at, &mut block)
            .map_err(|_| fault(Code::Eof, "unexpected end of file in a header".into()))?;
        if block.iter().all(|&b| b == 0) {
            break;
        }
        let header =
            Header::parse(&block).ok_or_else(|| fault(Code::TarHeader, "malformed header".into()))?;
        let data = at.saturating_add(BLOCK);
        let part = ByteRange::new(bytes.clone(), data, header.size).ok_or_else(|| {
            fault(Code::Eof, format!("member of {} bytes in a file of {}", header.size, bytes.len()))
        })?;
        let name = NAMES.into_iter().find(|n| header.name == n.as_bytes() && !renamed);
        match header.kind {
            b'x' => pax_size = pax(&part, &mut renamed).map_err(|f| f.at(at))?.or(pax_size),
            b'L' | b'K' => renamed = true,
            b'0' | 0 => {
                if pax_size.is_some_and(|size| size != header.size) {
                    return Err(fault(Code::TarSize, "member with two sizes".into()));
                }
                if let Some(name) = name
                    && found.insert(name, Arc::new(part) as Arc<dyn Bytes>).is_some()
                {
                    return Err(fault(Code::TarLayout, format!("two members `{name}`")));
                }
                (renamed, pax_size) = (false, None);
            }
            kind => {
                if let Some(name) = name {
                    let detail = format!(
                        "`{name}` is not a regular file but of type `{}`",
                        char::from(kind).escape_default()
                    );
                    return Err(fault(Code::TarLink, detail));
                }
                if matches!(kind, b'S' | b'g' | b'M') {
                    return Err(fault(Code::TarHeader, "unsupported sparse file or global header".into()));
                }
                (renamed, pax_size) = (false, None);
            }
        }
        let padded = header.size.checked_next_multiple_of(BLOCK);
        at = padded
            .and_then(|p| data.checked_add(p))
            .ok_or_else(|| fault(Code::TarHeader, "member size out of range".into()))?;
        at = at.min(bytes.len());
    }
    Ok(found)
}

struct Header {
    name: Vec<u8>,
    size: u64,
    kind: u8,
}

impl Header {
    fn parse(block: &[u8]) -> Option<Header> {
        let octal = |range: std::ops::Range<usize>| {
            let text = std::str::from_utf8(block.get(range)?).ok()?;
            u64::from_str_radix(text.trim_matches([' ', '\0']), 8).ok()
        };
        let text =
            |range: std::ops::Range<usize>| block.get(range)?.split(|&b| b == 0).next().map(<[u8]>::to_vec);
        let sum =
            block.iter().enumerate().map(|(i, &b)| if (148..156).contains(&i) { 32 } else { u64::from(b) });
        if block.get(257..262)? != b"ustar" || octal(148..156)? != sum.sum::<u64>() {
            return None;
        }
        let mut name = text(345..500)?;
        if !name.is_empty() {
            name.push(b'/');
        }
        name.extend(text(0..100)?);
        Some(Header { name, size: octal(124..136)?, kind: *block.get(156)? })
    }
}

/// Parses a PAX header and returns its size record; sets `renamed` for a path record.
fn pax(part: &ByteRange, renamed: &mut bool) -> Result<Option<u64>, Fault> {
    let bad = || Fault::new(Code::TarHeader, "malformed PAX header");
    if part.len() > MAX_PAX {
        return Err(bad());
    }
    let mut all = vec![0; part.len() as usize];
    part.read_at(0, &mut all)?;
    let mut rest = all.as_slice();
    let mut size = None;
    while !rest.is_empty() {
        let digits = rest.iter().position(|&b| b == b' ').and_then(|n| rest.get(..n)).ok_or_else(bad)?;
        let len: usize = std::str::from_utf8(digits).ok().and_then(|d| d.parse().ok()).ok_or_else(bad)?;
        let (record, tail) = rest.split_at_checked(len).ok_or_else(bad)?;
        let body = record
            .get(digits.len().saturating_add(1)..)
            .and_then(|b| b.strip_suffix(b"\n"))
            .ok_or_else(bad)?;
        let equals = body.iter().position(|&b| b == b'=').ok_or_else(bad)?;
        match body.split_at_checked(equals).ok_or_else(bad)? {
            (b"size", value) => {
                let value =
                    value.get(1..).and_then(|v| std::str::from_utf8(v).ok()).and_then(|v| v.parse().ok());
                size = Some(value.ok_or_else(bad)?);
            }
            (b"path" | b"linkpath", _) => *renamed = true,
            (key, _) if key.starts_with(b"GNU.sparse") => return Err(bad()),
            _ => {}
        }
        rest = tail;
    }
    Ok(size)
}

/// Storages and tensors by the ids that the pickle uses.
#[derive(Default)]
struct Tables {
    specs: Specs,
    ids: HashMap<i64, Value>,
    refs: HashMap<i64, StorageRef>,
    blobs: Vec<Blob>,
}

impl Tables {
    /// Reads a count, then each storage: (id, location, class), 64-bit count, elements; then views as
    /// (id, root, offset, elements).
    fn storages(&mut self, input: &mut Input) -> Result<(), Fault> {
        for _ in 0..count(input)? {
            let at = input.pos();
            let head = simple(input)?;
            let bad = || Fault::new(Code::TarLayout, "expected a storage (id, location, class)").at(at);
            let Some([Value::Int(id), _, class]) = head.arena.tuple(head.root) else { return Err(bad()) };
            let dtype = storage_class_dtype(&head, *class)?;
            let elements = input.i64()?;
            let storage =
                self.specs.declare(&id.to_string(), dtype, Value::Int(elements)).map_err(|f| f.at(at))?;
            let eof = || Fault::new(Code::Eof, format!("unexpected end of file in storage {id}")).at(at);
            let part = ByteRange::new(input.bytes().clone(), input.pos(), storage.bytes).ok_or_else(eof)?;
            input.skip(storage.bytes)?;
            self.blobs.push(Blob::Plain(Arc::new(part)));
            if self.blobs.len() != self.specs.roots.len() {
                return Err(Fault::new(Code::TarLayout, format!("two storages with id {id}")).at(at));
            }
            self.add_storage(*id, storage)?;
        }
        let at = input.pos();
        let views = simple(input)?;
        let bad = || Fault::new(Code::TarLayout, "expected a view (id, root, offset, elements)").at(at);
        for &view in views.arena.list(views.root).ok_or_else(bad)? {
            let parts = views.arena.tuple(view).ok_or_else(bad)?;
            let [Value::Int(id), Value::Int(root), Value::Int(offset), Value::Int(len)] = *parts else {
                return Err(bad());
            };
            let outside = || Fault::new(Code::Bounds, format!("view {id} exceeds storage {root}")).at(at);
            let root = self.refs.get(&root).copied().ok_or_else(outside)?;
            let (offset, len) =
                u64::try_from(offset).ok().zip(u64::try_from(len).ok()).ok_or_else(outside)?;
            self.add_storage(id, root.part(offset, len).map_err(|f| f.at(at))?)?;
        }
        end(input)
    }

    fn add_storage(&mut self, id: i64, storage: StorageRef) -> Result<(), Fault> {
        let value = self.specs.push_ref(storage)?;
        self.refs.insert(id, storage);
        self.add(id, value)
    }

    fn add(&mut self, id: i64, value: Value) -> Result<(), Fault> {
        match self.ids.insert(id, value) {
            None => Ok(()),
            Some(_) => Err(Fault::new(Code::Bounds, format!("two storages or tensors with id {id}"))),
        }
    }

    /// A count, then each tensor: (number, storage, class), dimensions, sizes, strides, offset.
    fn tensors(&mut self, input: &mut Input) -> Result<(), Fault> {
        for _ in 0..count(input)? {
            let at = input.pos();
            let head = simple(input)?;
            let bad = || Fault::new(Code::TarLayout, "a tensor that is not (number, storage, class)").at(at);
            let Some([Value::Int(id), Value::Int(storage), Value::Global(_)]) = head.arena.tuple(head.root)
            else {
                return Err(bad());
            };
            let bounds = |what: String| Fault::new(Code::Bounds, what).at(at);
            let storage = self.refs.get(storage).copied();
            let storage = storage.ok_or_else(|| bounds(format!("tensor {id} has no storage")))?;
            let ndim = i32::from_le_bytes(input.array()?);
            let dims = usize::try_from(ndim).ok().filter(|&n| n <= 16);
            let dims = dims.ok_or_else(|| bounds(format!("{ndim} dimensions, expected 0 to 16")))?;
            input.skip(4)?;
            let mut numbers = |n: usize| {
                let number = |_| {
                    let n = input.i64()?;
                    u64::try_from(n).map_err(|_| bounds(format!("negative size, stride or offset {n}")))
                };
                (0..n).map(number).collect::<Result<Box<[u64]>, Fault>>()
            };
            let (size, stride, offset) = (numbers(dims)?, numbers(dims)?, numbers(1)?);
            let offset = offset.first().copied().unwrap_or_default();
            let spec = TensorSpec { storage, dtype: storage.dtype, offset, size, stride };
            let value = self.specs.push_tensor(spec).map_err(|f| f.at(at))?;
            self.add(*id, value)?;
        }
        end(input)
    }
}

/// Reads a pickled count of items of at least one byte each.
fn count(input: &mut Input) -> Result<u64, Fault> {
    let at = input.pos();
    let Pickle { root, .. } = simple(input)?;
    let count = match root {
        Value::Int(n) => u64::try_from(n).ok(),
        _ => None,
    };
    let bad = || Fault::new(Code::Count, "invalid count").at(at);
    count.filter(|&n| n <= input.left()).ok_or_else(bad)
}

fn end(input: &Input) -> Result<(), Fault> {
    match input.left() {
        0 => Ok(()),
        n => Err(Fault::new(Code::Trailing, format!("{n} bytes after the last item")).at(input.pos())),
    }
}
