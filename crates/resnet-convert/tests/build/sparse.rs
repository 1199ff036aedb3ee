//! Files of many gigabytes of which only a few pieces are there: between them all bytes are 0.

use std::io;

use resnet_model::raw::Bytes;

use super::zip::Entry;

/// Bytes that are 0 but for some pieces.
#[derive(Debug, Default)]
pub(crate) struct Sparse {
    pieces: Vec<(u64, Vec<u8>)>,
    len: u64,
}

impl Sparse {
    pub(crate) fn put(&mut self, bytes: impl AsRef<[u8]>) {
        let bytes = bytes.as_ref().to_vec();
        let at = self.len;
        self.len += bytes.len() as u64;
        self.pieces.push((at, bytes));
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
        for (at, piece) in &self.pieces {
            let from = offset.max(*at);
            let to = (offset + out.len() as u64).min(at + piece.len() as u64);
            if from < to {
                let part = &piece[(from - at) as usize..(to - at) as usize];
                out[(from - offset) as usize..(to - offset) as usize].copy_from_slice(part);
            }
        }
        Ok(())
    }
}

/// An entry and how many bytes it says it has, in the archive and by itself: more than its data may be.
pub(crate) type Wide = (Entry, u64, u64);

/// An archive whose sizes and offsets all are in fields of 64 bits, without checksums.
pub(crate) fn archive64(entries: &[Wide]) -> Sparse {
    let (mut out, mut directory) = (Sparse::default(), Vec::new());
    let extra = |numbers: &[u64]| {
        let body: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
        [&[1, 0, body.len() as u8, 0], &body[..]].concat()
    };
    for (entry, packed, size) in entries {
        let header = out.len();
        let common = [&[0; 2][..], &entry.method.to_le_bytes(), &[0; 8], &[0xff; 8]].concat();
        let name_len = (entry.name.len() as u16).to_le_bytes();
        out.put([b"PK\x03\x04\x2d\0", &common[..], &name_len, &[20, 0]].concat());
        out.put([&entry.name[..], &extra(&[*size, *packed])].concat());
        out.put(&entry.data);
        out.skip(packed - entry.data.len() as u64);
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
