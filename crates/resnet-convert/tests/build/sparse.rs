//! Sparse files of many gigabytes: a few pieces with zeros between them.

use std::io;

use resnet_model::raw::Bytes;

use super::zip::Entry;

/// Bytes of a sparse file.
#[derive(Debug, Default)]
pub(crate) struct Sparse {
    pieces: Vec<Piece>,
    len: u64,
}

/// Bytes at an offset, repeated up to an end.
#[derive(Debug)]
struct Piece {
    bytes: Vec<u8>,
    at: u64,
    end: u64,
}

impl Sparse {
    pub(crate) fn put(&mut self, bytes: impl AsRef<[u8]>) {
        self.repeat(bytes, 1);
    }

    pub(crate) fn repeat(&mut self, bytes: impl AsRef<[u8]>, times: u64) {
        let bytes = bytes.as_ref().to_vec();
        let at = self.len;
        self.len += bytes.len() as u64 * times;
        self.pieces.push(Piece { bytes, at, end: self.len });
    }

    pub(crate) fn skip(&mut self, n: u64) {
        self.len += n;
    }
}

impl Bytes for Sparse {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        if offset.checked_add(out.len() as u64).is_none_or(|end| end > self.len) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        out.fill(0);
        for piece in &self.pieces {
            let (mut from, to) = (offset.max(piece.at), piece.end.min(offset + out.len() as u64));
            while from < to {
                let skip = (from - piece.at) as usize % piece.bytes.len();
                let n = (piece.bytes.len() - skip).min((to - from) as usize);
                let at = (from - offset) as usize;
                out[at..at + n].copy_from_slice(&piece.bytes[skip..skip + n]);
                from += n as u64;
            }
        }
        Ok(())
    }
}

/// A zip entry with declared compressed and uncompressed sizes, which may exceed its data.
#[derive(Clone)]
pub(crate) struct Wide {
    pub(crate) entry: Entry,
    /// Number of repetitions of the data.
    pub(crate) times: u64,
    /// Bytes after the repeated data; zeros follow.
    pub(crate) tail: Vec<u8>,
    pub(crate) packed: u64,
    pub(crate) size: u64,
}

impl Wide {
    /// Returns an entry with its data followed by zeros.
    pub(crate) fn new(entry: Entry, packed: u64, size: u64) -> Wide {
        Wide { entry, times: 1, tail: vec![], packed, size }
    }

    /// Returns a stored entry.
    pub(crate) fn stored(name: &str, data: Vec<u8>) -> Wide {
        let len = data.len() as u64;
        Wide::new(Entry::new(name, data), len, len)
    }
}

/// Returns a zip64 archive without checksums.
pub(crate) fn archive64(entries: &[Wide]) -> Sparse {
    let (mut out, mut directory) = (Sparse::default(), Vec::new());
    let extra = |numbers: &[u64]| {
        let body: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
        [&[1, 0, body.len() as u8, 0], &body[..]].concat()
    };
    for Wide { entry, times, tail, packed, size } in entries {
        let header = out.len();
        let common = [&[0; 2][..], &entry.method.to_le_bytes(), &[0; 8], &[0xff; 8]].concat();
        let name_len = (entry.name.len() as u16).to_le_bytes();
        out.put([b"PK\x03\x04\x2d\0", &common[..], &name_len, &[20, 0]].concat());
        out.put([&entry.name[..], &extra(&[*size, *packed])].concat());
        let start = out.len();
        out.repeat(&entry.data, *times);
        out.put(tail);
        out.skip(start + packed - out.len());
        directory.extend([b"PK\x01\x02\x2d\0\x2d\0", &common[..], &name_len, &[28, 0], &[0; 10]].concat());
        directory.extend([&[0xff; 4], &entry.name[..], &extra(&[*size, *packed, header])].concat());
    }
    let (at, size, count) = (out.len(), directory.len() as u64, entries.len() as u64);
    out.put(directory);
    let end = out.len();
    out.put([b"PK\x06\x06", &44u64.to_le_bytes()[..], &[45, 0, 45, 0], &[0; 8]].concat());
    out.put([count, count, size, at].map(u64::to_le_bytes).concat());
    out.put([b"PK\x06\x07\0\0\0\0", &end.to_le_bytes()[..], &[1, 0, 0, 0]].concat());
    out.put([b"PK\x05\x06\0\0\0\0", &[0xff; 12][..], &[0, 0]].concat());
    out
}
