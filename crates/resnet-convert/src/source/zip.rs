//! Strict reader of zip archives.
//!
//! The `zip` crate reads the central directory only, so it cannot detect what hostile archives consist of: entries that
//! differ from the directory, bytes outside entries, or overlapping entries. Here every byte of the file must belong to
//! exactly one entry or to the directory.

pub(crate) mod inflate;

use std::collections::HashMap;
use std::sync::Arc;

use resnet_model::escape;
use resnet_model::raw::{ByteRange, Bytes};

use super::lazy::{Checked, checksum};
use super::tensors::Blob;
use crate::error::{Code, Fault};
use inflate::Deflated;

const MAX_ENTRIES: u64 = 100_000;
const MAX_DIRECTORY: u64 = 64 << 20;
/// Limits on inflation: this ratio, and the larger of this size and four times the file size.
const MAX_RATIO: u64 = 100;
const MAX_INFLATED: u64 = 1 << 30;
const SMALL: u64 = 1 << 20;

const END: u64 = 22;
const END64: u64 = 56;
const LOCATOR64: u64 = 20;
const CENTRAL: u64 = 46;
const LOCAL: u64 = 30;

/// Flag bits: data descriptor, UTF-8 names, compression level hints.
const DESCRIPTOR: u16 = 1 << 3;
const KNOWN_FLAGS: u16 = DESCRIPTOR | 1 << 11 | 1 << 1 | 1 << 2;
const ENCRYPTED: u16 = 1 | 1 << 6;

#[derive(Debug)]
pub(crate) struct ZipEntry {
    pub(crate) name: Vec<u8>,
    flags: u16,
    method: u16,
    crc: u32,
    compressed: u64,
    pub(crate) size: u64,
    header: u64,
    data: u64,
}

/// An archive whose directory and entries agree.
#[derive(Debug)]
pub(crate) struct ZipReader {
    bytes: Arc<dyn Bytes>,
    pub(crate) entries: Vec<ZipEntry>,
    index: HashMap<Vec<u8>, usize>,
}

/// Little-endian fields of a record.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(n)?;
        self.0 = tail;
        Some(head)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }
}

fn cut() -> Fault {
    Fault::new(Code::ZipBounds, "truncated zip archive")
}

fn read(bytes: &dyn Bytes, offset: u64, len: u64) -> Result<Vec<u8>, Fault> {
    if offset.checked_add(len).is_none_or(|end| end > bytes.len()) {
        return Err(cut().at(offset));
    }
    let mut out = vec![0; len as usize];
    bytes.read_at(offset, &mut out)?;
    Ok(out)
}

/// Location of the central directory.
struct Directory {
    offset: u64,
    size: u64,
    entries: u64,
}

impl ZipReader {
    pub(crate) fn open(bytes: Arc<dyn Bytes>) -> Result<ZipReader, Fault> {
        let directory = find_directory(&*bytes)?;
        let mut entries = read_directory(&*bytes, &directory)?;
        let mut order: Vec<usize> = (0..entries.len()).collect();
        order.sort_by_key(|&i| entries.get(i).map_or(0, |e| e.header));
        check_extents(&entries, &order, directory.offset)?;
        let ends = order.iter().skip(1).map(|&i| entries.get(i).map_or(0, |e| e.header));
        let ends: Vec<u64> = ends.chain([directory.offset]).collect();
        for (&i, end) in order.iter().zip(ends) {
            if let Some(entry) = entries.get_mut(i) {
                check_local(&*bytes, entry, end)
                    .map_err(|f| f.within(&String::from_utf8_lossy(&entry.name)))?;
            }
        }
        let mut index = HashMap::new();
        for (i, entry) in entries.iter().enumerate() {
            if index.insert(entry.name.clone(), i).is_some() {
                return Err(Fault::new(Code::ZipDuplicate, format!("duplicate entry `{}`", entry.shown())));
            }
        }
        Ok(ZipReader { bytes, entries, index })
    }

    pub(crate) fn get(&self, name: &str) -> Option<&ZipEntry> {
        self.index.get(name.as_bytes()).and_then(|&i| self.entries.get(i))
    }

    /// Returns the bytes of an entry, verified when they are read.
    pub(crate) fn blob(&self, entry: &ZipEntry) -> Result<Blob, Fault> {
        self.limited(entry, 0)
    }

    /// Like [`ZipReader::blob`], but entries of at most `small` bytes may have any compression ratio.
    fn limited(&self, entry: &ZipEntry, small: u64) -> Result<Blob, Fault> {
        let part = ByteRange::new(self.bytes.clone(), entry.data, entry.compressed).ok_or_else(cut)?;
        if entry.method == 0 {
            return Ok(match entry.has_checksum() {
                true => Blob::Checked(Arc::new(Checked::new(Arc::new(part), entry.crc, entry.shown()))),
                false => Blob::Plain(Arc::new(part)),
            });
        }
        let most = entry.compressed.saturating_mul(MAX_RATIO).max(small);
        let largest = self.bytes.len().saturating_mul(4).max(MAX_INFLATED);
        if entry.size > largest || entry.size > most {
            let detail = format!("{} bytes inflate to {}", entry.compressed, entry.size);
            return Err(Fault::new(Code::ZipRatio, detail).within(&entry.shown()));
        }
        Ok(Blob::Deflated(Arc::new(Deflated::new(self.deflated(entry)?))))
    }

    fn deflated(&self, entry: &ZipEntry) -> Result<inflate::DeflatedEntry, Fault> {
        Ok(inflate::DeflatedEntry {
            part: ByteRange::new(self.bytes.clone(), entry.data, entry.compressed).ok_or_else(cut)?,
            size: entry.size,
            crc: entry.has_checksum().then_some(entry.crc),
            shown: entry.shown(),
        })
    }

    /// Returns the bytes of an array's entry, verified when they are read. Constant arrays exceed the ratio limit, so small
    /// entries may have any ratio; the tensor builder limits their sum.
    pub(crate) fn array(&self, entry: &ZipEntry) -> Result<Arc<dyn Bytes>, Fault> {
        Ok(match self.limited(entry, SMALL)? {
            Blob::Plain(bytes) => bytes,
            Blob::Checked(bytes) => bytes,
            Blob::Deflated(entry) => entry.stream(),
        })
    }

    /// Returns at most `max` bytes from the start of a deflated entry, unverified.
    pub(crate) fn start_of(&self, entry: &ZipEntry, max: u64) -> Result<Vec<u8>, Fault> {
        self.deflated(entry)?.start(max.min(entry.size))
    }

    /// Returns all bytes of an entry of at most `max` bytes, verified.
    pub(crate) fn verified(&self, entry: &ZipEntry, max: u64) -> Result<Arc<dyn Bytes>, Fault> {
        let fault = |f: Fault| f.within(&entry.shown());
        if entry.size > max {
            return Err(fault(Fault::new(Code::Limit, format!("{} bytes, more than {max}", entry.size))));
        }
        match self.blob(entry)? {
            Blob::Plain(bytes) => Ok(bytes),
            Blob::Deflated(deflated) => {
                let mut all = vec![0; deflated.len() as usize];
                deflated.stream().read_at(0, &mut all)?;
                Ok(Arc::new(all))
            }
            Blob::Checked(checked) => {
                checksum(&*checked).map_err(|e| fault(e.into()))?;
                Ok(checked)
            }
        }
    }
}

impl ZipEntry {
    /// The name, safe to print.
    pub(crate) fn shown(&self) -> String {
        escape(&String::from_utf8_lossy(&self.name))
    }

    pub(crate) fn is_deflated(&self) -> bool {
        self.method != 0
    }

    /// Returns `false` if PyTorch was configured not to compute checksums: the field is 0.
    pub(crate) fn has_checksum(&self) -> bool {
        self.crc != 0 || self.size == 0
    }
}

fn find_directory(bytes: &dyn Bytes) -> Result<Directory, Fault> {
    let len = bytes.len();
    let end_at = len.checked_sub(END).ok_or_else(cut)?;
    let end = read(bytes, end_at, END)?;
    let parse = |record: &[u8]| {
        let mut f = Fields(record);
        let signature = f.u32()?;
        Some((signature, [f.u16()?, f.u16()?, f.u16()?, f.u16()?], f.u32()?, f.u32()?, f.u16()?))
    };
    let (signature, counts, size, offset, comment) = parse(&end).ok_or_else(cut)?;
    if signature != 0x0605_4b50 || comment != 0 {
        // The end record is missing or followed by a comment or another file.
        let tail_len = len.min(0xffff + END);
        let tail = read(bytes, len.saturating_sub(tail_len), tail_len)?;
        let found = tail.windows(4).any(|w| w == b"PK\x05\x06");
        return Err(match found {
            true => Fault::new(Code::ZipTrailing, "data after the end of the archive"),
            false => Fault::new(Code::ZipBounds, "truncated zip archive: no central directory"),
        });
    }
    let [disk, first_disk, here, entries] = counts;
    let mut directory =
        Directory { offset: u64::from(offset), size: u64::from(size), entries: u64::from(entries) };
    let mut directory_end = end_at;
    let locator_at = end_at.checked_sub(LOCATOR64);
    let locator = locator_at.map(|at| read(bytes, at, LOCATOR64)).transpose()?.unwrap_or_default();
    if locator.starts_with(b"PK\x06\x07") {
        let (at, wide) = read_end64(bytes, &locator, end_at)
            .ok_or_else(|| Fault::new(Code::ZipBounds, "malformed zip64 end record").at(end_at))?;
        let agree = |narrow: u64, wide: u64, max: u64| narrow == wide || narrow == max;
        if !agree(directory.offset, wide.offset, 0xffff_ffff)
            || !agree(directory.size, wide.size, 0xffff_ffff)
            || !agree(directory.entries, wide.entries, 0xffff)
        {
            return Err(Fault::new(Code::ZipMismatch, "zip64 and zip end records differ").at(end_at));
        }
        directory = wide;
        directory_end = at;
    } else if disk != 0 || first_disk != 0 || here != entries {
        return Err(Fault::new(Code::ZipBounds, "unsupported multi-part archive").at(end_at));
    }
    match directory.offset.checked_add(directory.size) {
        Some(end) if end == directory_end => {}
        Some(end) if end < directory_end => {
            return Err(
                Fault::new(Code::ZipTrailing, "data between the directory and the end record").at(end)
            );
        }
        _ => return Err(Fault::new(Code::ZipBounds, "the directory exceeds the file").at(end_at)),
    }
    if directory.entries > MAX_ENTRIES {
        let detail = format!("{} entries, more than {MAX_ENTRIES}", directory.entries);
        return Err(Fault::new(Code::ZipEntries, detail));
    }
    if directory.entries.saturating_mul(CENTRAL) > directory.size || directory.size > MAX_DIRECTORY {
        let detail = format!("{} entries in a directory of {} bytes", directory.entries, directory.size);
        return Err(Fault::new(Code::ZipBounds, detail));
    }
    Ok(directory)
}

/// Reads the zip64 end record, which must directly precede its locator.
fn read_end64(bytes: &dyn Bytes, locator: &[u8], end_at: u64) -> Option<(u64, Directory)> {
    let mut f = Fields(locator.get(4..)?);
    let (disk, at, disks) = (f.u32()?, f.u64()?, f.u32()?);
    if disk != 0 || disks > 1 || at.checked_add(END64)?.checked_add(LOCATOR64)? != end_at {
        return None;
    }
    let record = read(bytes, at, END64).ok()?;
    let mut f = Fields(&record);
    let (signature, size) = (f.u32()?, f.u64()?);
    let (_, _, disk, first_disk) = (f.u16()?, f.u16()?, f.u32()?, f.u32()?);
    let (here, entries, size_of_directory, offset) = (f.u64()?, f.u64()?, f.u64()?, f.u64()?);
    let valid =
        signature == 0x0606_4b50 && size == END64 - 12 && disk == 0 && first_disk == 0 && here == entries;
    valid.then_some((at, Directory { offset, size: size_of_directory, entries }))
}

fn read_directory(bytes: &dyn Bytes, directory: &Directory) -> Result<Vec<ZipEntry>, Fault> {
    let all = read(bytes, directory.offset, directory.size)?;
    let mut rest = Fields(&all);
    let mut entries = Vec::new();
    for _ in 0..directory.entries {
        entries.push(central(&mut rest)?);
    }
    match rest.0.is_empty() {
        true => Ok(entries),
        false => Err(Fault::new(Code::ZipMismatch, "data after the last record of the directory")),
    }
}

/// Parses one record of the central directory.
fn central(f: &mut Fields) -> Result<ZipEntry, Fault> {
    let short = || Fault::new(Code::ZipMismatch, "truncated central directory");
    let mut record = Fields(f.take(CENTRAL as usize).ok_or_else(short)?);
    let mut parse = || {
        let signature = record.u32()?;
        let (_, _, flags, method, _, _) =
            (record.u16()?, record.u16()?, record.u16()?, record.u16()?, record.u16()?, record.u16()?);
        let (crc, compressed, size) = (record.u32()?, record.u32()?, record.u32()?);
        let lens = (record.u16()?, record.u16()?, record.u16()?);
        let (disk, _, _, header) = (record.u16()?, record.u16()?, record.u32()?, record.u32()?);
        Some((signature, flags, method, crc, compressed, size, lens, disk, header))
    };
    let (signature, flags, method, crc, compressed, size, lens, disk, header) = parse().ok_or_else(short)?;
    if signature != 0x0201_4b50 {
        return Err(Fault::new(Code::ZipMismatch, "malformed record in the directory"));
    }
    let name = f.take(usize::from(lens.0)).ok_or_else(short)?.to_vec();
    let extra = f.take(usize::from(lens.1)).ok_or_else(short)?;
    f.take(usize::from(lens.2)).ok_or_else(short)?;
    let mut entry = ZipEntry {
        name,
        flags,
        method,
        crc,
        compressed: u64::from(compressed),
        size: u64::from(size),
        header: u64::from(header),
        data: 0,
    };
    let wide = widen(extra, &mut [&mut entry.size, &mut entry.compressed, &mut entry.header]);
    let fault = |code, detail: String| Err(Fault::new(code, detail).within(&entry.shown()));
    if wide.is_none() || disk != 0 {
        return fault(Code::ZipBounds, "malformed zip64 size or offset".into());
    }
    if flags & ENCRYPTED != 0 {
        return fault(Code::ZipEncrypted, "the entry is encrypted".into());
    }
    if flags & !KNOWN_FLAGS != 0 {
        return fault(Code::ZipFlags, format!("unsupported flags 0x{flags:04x}"));
    }
    match method {
        0 if entry.size != entry.compressed => {
            fault(Code::ZipMismatch, format!("{} stored bytes for {}", entry.compressed, entry.size))
        }
        0 | 8 => Ok(entry),
        _ => fault(
            Code::ZipMethod,
            format!("unsupported compression method {method}, expected stored or deflate"),
        ),
    }
}

/// Replaces saturated fields by those of the zip64 extra field.
fn widen(extra: &[u8], fields: &mut [&mut u64]) -> Option<()> {
    let mut all = Fields(extra);
    let mut wide = None;
    while all.0.len() >= 4 {
        let (id, len) = (all.u16()?, all.u16()?);
        let body = all.take(usize::from(len))?;
        if id == 1 && wide.replace(Fields(body)).is_some() {
            return None;
        }
    }
    for field in fields.iter_mut().filter(|f| ***f == 0xffff_ffff) {
        **field = wide.as_mut()?.u64()?;
    }
    Some(())
}

/// Entries must start at the first byte, follow one another, and end at the directory.
fn check_extents(entries: &[ZipEntry], order: &[usize], directory: u64) -> Result<(), Fault> {
    let mut end = 0u64;
    for (n, entry) in order.iter().filter_map(|&i| entries.get(i)).enumerate() {
        let fault =
            |code, detail: &str| Err(Fault::new(code, detail).at(entry.header).within(&entry.shown()));
        if n == 0 && entry.header > 0 {
            return fault(Code::ZipPrefix, "data before the first entry");
        }
        if entry.header < end {
            return fault(Code::ZipOverlap, "overlapping entries");
        }
        let least = LOCAL.saturating_add(entry.name.len() as u64);
        match entry.header.checked_add(least).and_then(|e| e.checked_add(entry.compressed)) {
            Some(e) if e <= directory => end = e,
            _ => return fault(Code::ZipBounds, "entry exceeds the start of the directory"),
        }
    }
    match entries.is_empty() && directory > 0 {
        true => Err(Fault::new(Code::ZipPrefix, "data in an archive without entries")),
        false => Ok(()),
    }
}

/// Compares an entry's local header with the directory, sets the offset of its data, and checks that nothing is between
/// the data and `end`, the start of the next entry.
fn check_local(bytes: &dyn Bytes, entry: &mut ZipEntry, end: u64) -> Result<(), Fault> {
    let mismatch = |what: &str| Fault::new(Code::ZipMismatch, format!("{what} than in the directory"));
    let record = read(bytes, entry.header, LOCAL)?;
    let mut f = Fields(&record);
    let mut parse = || {
        let signature = f.u32()?;
        let (_, flags, method, _, _) = (f.u16()?, f.u16()?, f.u16()?, f.u16()?, f.u16()?);
        Some((signature, flags, method, f.u32()?, f.u32()?, f.u32()?, f.u16()?, f.u16()?))
    };
    let (signature, flags, method, crc, compressed, size, name_len, extra_len) = parse().ok_or_else(cut)?;
    if signature != 0x0403_4b50 {
        return Err(Fault::new(Code::ZipMismatch, "no entry where the directory says").at(entry.header));
    }
    let names = entry.header.saturating_add(LOCAL);
    let tail = read(bytes, names, u64::from(name_len).saturating_add(u64::from(extra_len)))?;
    let (name, extra) = tail.split_at_checked(usize::from(name_len)).ok_or_else(cut)?;
    if name != entry.name {
        return Err(mismatch(&format!("another name (`{}`)", escape(&String::from_utf8_lossy(name)))));
    }
    if flags != entry.flags || method != entry.method {
        return Err(mismatch("other flags or another compression"));
    }
    let (mut size, mut compressed) = (u64::from(size), u64::from(compressed));
    widen(extra, &mut [&mut size, &mut compressed]).ok_or_else(|| mismatch("another 64-bit size"))?;
    let later = flags & DESCRIPTOR != 0;
    let same = |local: u64, central: u64| local == central || (later && local == 0);
    if !same(size, entry.size)
        || !same(compressed, entry.compressed)
        || !same(u64::from(crc), u64::from(entry.crc))
    {
        return Err(mismatch("other sizes or another checksum"));
    }
    entry.data = names.saturating_add(tail.len() as u64);
    let data_end = entry.data.checked_add(entry.compressed).ok_or_else(cut)?;
    let gap = end.checked_sub(data_end).ok_or_else(|| Fault::new(Code::ZipOverlap, "overlapping entries"))?;
    match (later, gap) {
        (false, 0) => Ok(()),
        (true, 12 | 16 | 20 | 24) => {
            let record = read(bytes, data_end, gap)?;
            let described = descriptor(&record, gap);
            match described == Some((entry.crc, entry.compressed, entry.size)) {
                true => Ok(()),
                false => Err(mismatch("other sizes or another checksum after the data")),
            }
        }
        _ => Err(Fault::new(Code::ZipMismatch, format!("{gap} bytes after the data belong to no entry"))
            .at(data_end)),
    }
}

/// Parses checksum and sizes of a data descriptor: 12 or 20 bytes, plus 4 with a signature.
fn descriptor(record: &[u8], len: u64) -> Option<(u32, u64, u64)> {
    let mut f = Fields(record);
    if matches!(len, 16 | 24) && f.u32()? != 0x0807_4b50 {
        return None;
    }
    let crc = f.u32()?;
    match len {
        12 | 16 => Some((crc, u64::from(f.u32()?), u64::from(f.u32()?))),
        _ => Some((crc, f.u64()?, f.u64()?)),
    }
}
