//! Writer of zip archives in `torch.save`'s layout: stored entries, aligned to 64 bytes by an extra field `FB`, with sizes
//! and checksums in local and central headers.
//!
//! The `zip` crate could replace this: it is in the build through candle, patches headers by seeking and takes an alignment
//! and a header id. Whether its extra fields and zip64 records satisfy `torch.load` has not been tested.

use std::io::{Seek, SeekFrom, Write};

use resnet_model::Result;

const ALIGNMENT: u64 = 64;
/// The 32-bit and 16-bit values that are reserved for zip64.
const WIDE: u64 = 0xffff_ffff;
const MANY: u64 = 0xffff;
/// January 1, 1980: the output is reproducible.
const DATE: u16 = 1 << 5 | 1;
/// Id of PyTorch's padding extra field.
const PADDING: u16 = 0x4246;
const LOCAL: u64 = 30;
/// Offset of the checksum in a local header.
const CRC: u64 = 14;

/// Archive being written.
pub(super) struct ZipWriter<'a, W> {
    out: &'a mut W,
    at: u64,
    entries: Vec<WrittenEntry>,
}

struct WrittenEntry {
    name: String,
    crc: u32,
    size: u64,
    header: u64,
}

/// Record of little-endian fields.
#[derive(Default)]
struct Record(Vec<u8>);

impl Record {
    fn new(signature: &[u8; 4]) -> Record {
        Record(signature.to_vec())
    }

    fn u16(mut self, n: u16) -> Record {
        self.0.extend(n.to_le_bytes());
        self
    }

    fn u32(mut self, n: u32) -> Record {
        self.0.extend(n.to_le_bytes());
        self
    }

    fn u64(mut self, n: u64) -> Record {
        self.0.extend(n.to_le_bytes());
        self
    }

    /// Appends a 32-bit field, saturated if the value is in the zip64 extra field.
    fn narrow(self, n: u64) -> Record {
        self.u32(u32::try_from(n).unwrap_or(u32::MAX))
    }

    fn bytes(mut self, bytes: &[u8]) -> Record {
        self.0.extend(bytes);
        self
    }

    fn len(&self) -> u64 {
        self.0.len() as u64
    }
}

/// Returns the zip version that a reader must support.
fn version(wide: bool) -> u16 {
    if wide { 45 } else { 20 }
}

/// Returns the zip64 extra field with these numbers.
fn wide(numbers: &[u64]) -> Record {
    if numbers.is_empty() {
        return Record::default();
    }
    let record = Record::default().u16(1).u16((numbers.len() as u16).saturating_mul(8));
    numbers.iter().fold(record, |record, &n| record.u64(n))
}

impl<'a, W: Write + Seek> ZipWriter<'a, W> {
    /// Creates an archive at the start of `out`.
    pub(super) fn new(out: &'a mut W) -> ZipWriter<'a, W> {
        ZipWriter { out, at: 0, entries: vec![] }
    }

    /// Adds an entry of `size` bytes, which `fill` passes in chunks. The name must be ASCII.
    pub(super) fn entry(
        &mut self,
        name: &str,
        size: u64,
        fill: impl FnOnce(&mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()>,
    ) -> Result<()> {
        let header = self.at;
        let is_wide = size >= WIDE;
        let extra = if is_wide { wide(&[size, size]) } else { Record::default() };
        let names = header.saturating_add(LOCAL).saturating_add(name.len() as u64);
        // The header of the padding field takes four bytes.
        let data = names.saturating_add(extra.len()).saturating_add(4);
        let padding = data.checked_next_multiple_of(ALIGNMENT).unwrap_or(data).saturating_sub(data) as u16;
        let extra = extra.u16(PADDING).u16(padding).bytes(&vec![b'Z'; usize::from(padding)]);
        let record = Record::new(b"PK\x03\x04").u16(version(is_wide)).u16(0).u16(0).u16(0).u16(DATE);
        let record = record.u32(0).narrow(size).narrow(size).u16(name.len() as u16).u16(extra.len() as u16);
        let record = record.bytes(name.as_bytes()).bytes(&extra.0);
        self.put(&record)?;

        let mut crc = crc32fast::Hasher::new();
        let mut left = size;
        let out = &mut *self.out;
        fill(&mut |bytes| {
            let short = || std::io::Error::other("zip entry exceeds its declared size");
            left = left.checked_sub(bytes.len() as u64).ok_or_else(short)?;
            crc.update(bytes);
            Ok(out.write_all(bytes)?)
        })?;
        if left > 0 {
            return Err(std::io::Error::other("zip entry is shorter than its declared size").into());
        }
        let crc = crc.finalize();
        self.at = self.at.saturating_add(size);
        self.out.seek(SeekFrom::Start(header.saturating_add(CRC)))?;
        self.out.write_all(&crc.to_le_bytes())?;
        self.out.seek(SeekFrom::Start(self.at))?;
        self.entries.push(WrittenEntry { name: name.to_owned(), crc, size, header });
        Ok(())
    }

    /// Writes the central directory.
    pub(super) fn finish(mut self) -> Result<()> {
        let start = self.at;
        for entry in std::mem::take(&mut self.entries) {
            let numbers: Vec<u64> =
                [entry.size, entry.size, entry.header].into_iter().filter(|&n| n >= WIDE).collect();
            let extra = wide(&numbers);
            let needed = version(!numbers.is_empty());
            let record = Record::new(b"PK\x01\x02").u16(needed).u16(needed).u16(0).u16(0).u16(0).u16(DATE);
            let record = record.u32(entry.crc).narrow(entry.size).narrow(entry.size);
            let record = record.u16(entry.name.len() as u16).u16(extra.len() as u16).u16(0).u16(0).u16(0);
            let record = record.u32(0).narrow(entry.header).bytes(entry.name.as_bytes()).bytes(&extra.0);
            self.put(&record)?;
            self.entries.push(entry);
        }
        let (end, count) = (self.at, self.entries.len() as u64);
        let size = end.saturating_sub(start);
        if count >= MANY || size >= WIDE || start >= WIDE {
            let needed = version(true);
            let record = Record::new(b"PK\x06\x06").u64(44).u16(needed).u16(needed).u32(0).u32(0);
            let record = record.u64(count).u64(count).u64(size).u64(start);
            self.put(&record.bytes(b"PK\x06\x07").u32(0).u64(end).u32(1))?;
        }
        let count = u16::try_from(count).unwrap_or(u16::MAX);
        let record = Record::new(b"PK\x05\x06").u16(0).u16(0).u16(count).u16(count);
        self.put(&record.narrow(size).narrow(start).u16(0))
    }

    fn put(&mut self, record: &Record) -> Result<()> {
        self.out.write_all(&record.0)?;
        self.at = self.at.saturating_add(record.len());
        Ok(())
    }
}

#[cfg(test)]
mod tests;
