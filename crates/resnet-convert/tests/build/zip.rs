//! Zip archives as `torch.save` and Python's `zipfile` write them.

use std::io::Write;

/// A zip entry to write.
#[derive(Clone)]
pub(crate) struct Entry {
    pub(crate) name: Vec<u8>,
    pub(crate) data: Vec<u8>,
    pub(crate) method: u16,
    pub(crate) extra: Vec<u8>,
    /// If `true`, the checksum is 0.
    pub(crate) unchecked: bool,
    /// Sizes follow the data, as PyTorch writes them.
    pub(crate) descriptor: bool,
}

impl Entry {
    pub(crate) fn new(name: &str, data: impl AsRef<[u8]>) -> Entry {
        let (name, data) = (name.as_bytes().to_vec(), data.as_ref().to_vec());
        Entry { name, data, method: 0, extra: vec![], unchecked: false, descriptor: false }
    }
}

/// An archive of these entries.
pub(crate) fn archive(entries: &[Entry]) -> Vec<u8> {
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    for entry in entries {
        let header = out.len() as u32;
        let packed = match entry.method {
            8 => deflate(&entry.data),
            _ => entry.data.clone(),
        };
        let crc = if entry.unchecked { 0 } else { crc32fast::hash(&entry.data) };
        let sizes: Vec<u8> = [crc, packed.len() as u32, entry.data.len() as u32]
            .iter()
            .flat_map(|n| n.to_le_bytes())
            .collect();
        let flags: u16 = if entry.descriptor { 0x808 } else { 0 };
        let common = [&flags.to_le_bytes()[..], &entry.method.to_le_bytes(), &[0; 4]].concat();
        let local_sizes = if entry.descriptor { vec![0; 12] } else { sizes.clone() };
        out.extend(b"PK\x03\x04\x14\0");
        out.extend([&common[..], &local_sizes].concat());
        out.extend((entry.name.len() as u16).to_le_bytes());
        out.extend((entry.extra.len() as u16).to_le_bytes());
        out.extend([&entry.name[..], &entry.extra, &packed].concat());
        if entry.descriptor {
            out.extend([b"PK\x07\x08", &sizes[..]].concat());
        }
        directory.extend(b"PK\x01\x02\x14\0\x14\0");
        directory.extend([&common[..], &sizes].concat());
        directory.extend((entry.name.len() as u16).to_le_bytes());
        directory.extend((entry.extra.len() as u16).to_le_bytes());
        directory.extend([0; 10]);
        directory.extend(header.to_le_bytes());
        directory.extend([&entry.name[..], &entry.extra].concat());
    }
    end(out, directory, entries.len())
}

fn end(mut out: Vec<u8>, directory: Vec<u8>, entries: usize) -> Vec<u8> {
    let (at, size) = (out.len() as u32, directory.len() as u32);
    out.extend(directory);
    if entries > 0xfffe {
        let at64 = out.len() as u64;
        out.extend(b"PK\x06\x06");
        out.extend(44u64.to_le_bytes());
        out.extend([45, 0, 45, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        for n in [entries as u64, entries as u64, u64::from(size), u64::from(at)] {
            out.extend(n.to_le_bytes());
        }
        out.extend(b"PK\x06\x07\0\0\0\0");
        out.extend(at64.to_le_bytes());
        out.extend(1u32.to_le_bytes());
    }
    let count = (entries.min(0xffff) as u16).to_le_bytes();
    out.extend(b"PK\x05\x06\0\0\0\0");
    out.extend([count, count].concat());
    out.extend(size.to_le_bytes());
    out.extend(at.to_le_bytes());
    out.extend([0, 0]);
    out
}

fn deflate(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

/// A checkpoint in a zip.
#[derive(Clone)]
pub(crate) struct Pth {
    pub(crate) top: &'static str,
    pub(crate) pickle: Vec<u8>,
    pub(crate) storages: Vec<(&'static str, Vec<u8>)>,
    pub(crate) order: Option<Vec<u8>>,
    pub(crate) method: u16,
    pub(crate) extra: Vec<Entry>,
}

impl Default for Pth {
    fn default() -> Self {
        Pth {
            top: "archive",
            pickle: super::pickle::ok(),
            storages: vec![("0", vec![0; 16])],
            order: Some(b"little".to_vec()),
            method: 0,
            extra: vec![],
        }
    }
}

impl Pth {
    pub(crate) fn entries(&self) -> Vec<Entry> {
        let top = self.top;
        let mut entries = vec![Entry::new(&format!("{top}/data.pkl"), &self.pickle)];
        entries.extend(self.order.iter().map(|o| Entry::new(&format!("{top}/byteorder"), o)));
        let storages = self.storages.iter();
        entries.extend(storages.map(|(key, data)| Entry::new(&format!("{top}/data/{key}"), data)));
        entries.push(Entry::new(&format!("{top}/version"), "3\n"));
        entries.iter_mut().for_each(|e| e.method = self.method);
        entries.extend(self.extra.clone());
        entries
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        archive(&self.entries())
    }

    /// Returns a checkpoint with additional entries.
    pub(crate) fn with(extra: &[(&str, Vec<u8>)]) -> Vec<u8> {
        let extra = extra.iter().map(|(name, data)| Entry::new(name, data)).collect();
        Pth { extra, ..Pth::default() }.bytes()
    }
}

/// A checkpoint of this pickle and the usual storage.
pub(crate) fn pth(pickle: Vec<u8>) -> Vec<u8> {
    Pth { pickle, ..Pth::default() }.bytes()
}

fn find(bytes: &[u8], signature: &[u8; 4], name: &str, header: usize) -> usize {
    let at = |w: &[u8]| w.starts_with(signature) && w[header..].starts_with(name.as_bytes());
    bytes.windows(header + name.len()).position(at).expect("no such entry")
}

/// Overwrites a field of the local header of an entry.
pub(crate) fn set_local(bytes: &[u8], name: &str, field: usize, value: &[u8]) -> Vec<u8> {
    super::overwrite(bytes, find(bytes, b"PK\x03\x04", name, 30) + field, value)
}

/// Overwrites a field of an entry's record in the directory.
pub(crate) fn set_central(bytes: &[u8], name: &str, field: usize, value: &[u8]) -> Vec<u8> {
    super::overwrite(bytes, find(bytes, b"PK\x01\x02", name, 46) + field, value)
}

/// Overwrites a field of the end of the directory.
pub(crate) fn set_end(bytes: &[u8], field: usize, value: &[u8]) -> Vec<u8> {
    super::overwrite(bytes, bytes.len() - 22 + field, value)
}

/// Returns the offset of the local header of an entry.
pub(crate) fn header_of(bytes: &[u8], name: &str) -> u32 {
    find(bytes, b"PK\x03\x04", name, 30) as u32
}
