//! Deflated entries.

use std::io::Read;

use resnet_model::raw::{Bytes, Part};

use crate::error::{Code, Fault};

fn bad(error: std::io::Error) -> Fault {
    match error.get_ref().is_some_and(|e| e.is::<Fault>()) {
        true => error.into(),
        false => Fault::new(Code::ZipMismatch, format!("deflated data: {error}")),
    }
}

/// At most `max` bytes from the start of deflated ones.
pub(super) fn start(part: &Part, max: u64) -> Result<Vec<u8>, Fault> {
    let mut out = Vec::new();
    let reader = flate2::read::DeflateDecoder::new(Sequential { bytes: part, offset: 0 });
    reader.take(max).read_to_end(&mut out).map_err(bad)?;
    Ok(out)
}

/// Exactly `size` bytes from deflated ones.
pub(super) fn inflate(part: &Part, size: u64, crc: Option<u32>) -> Result<Vec<u8>, Fault> {
    let mut reader = flate2::read::DeflateDecoder::new(Sequential { bytes: part, offset: 0 });
    let mut out = vec![0; size as usize];
    reader.read_exact(&mut out).map_err(bad)?;
    if reader.read(&mut [0]).map_err(bad)? != 0 || reader.total_in() != part.len() {
        return Err(Fault::new(Code::ZipMismatch, "deflated data that goes on after its size"));
    }
    let found = crc32fast::hash(&out);
    match crc {
        Some(crc) if crc != found => {
            Err(Fault::new(Code::Crc, format!("checksum {found:08x}, the archive says {crc:08x}")))
        }
        _ => Ok(out),
    }
}

struct Sequential<'a> {
    bytes: &'a Part,
    offset: u64,
}

impl Read for Sequential<'_> {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let n = (out.len() as u64).min(self.bytes.len().saturating_sub(self.offset));
        let part = out.get_mut(..n as usize).unwrap_or(&mut []);
        self.bytes.read_at(self.offset, part)?;
        self.offset = self.offset.saturating_add(n);
        Ok(n as usize)
    }
}
