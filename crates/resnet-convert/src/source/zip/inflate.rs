//! Deflated entries, inflated lazily.

use std::fmt;
use std::io::{self, Read};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use flate2::read::DeflateDecoder;
use resnet_model::raw::{ByteRange, Bytes};

use crate::error::{Code, Fault};
use resnet_model::raw::Computed;

/// Chunk size for skipping to an offset.
const STEP: usize = 1 << 16;

/// Directory fields of a deflated entry.
#[derive(Debug, Clone)]
pub(super) struct DeflatedEntry {
    pub(super) part: ByteRange,
    pub(super) size: u64,
    /// `None` if the archive has no checksum for it.
    pub(super) crc: Option<u32>,
    /// The name, safe to print.
    pub(super) shown: String,
}

impl DeflatedEntry {
    fn bad(&self, error: io::Error) -> Fault {
        match error.get_ref().is_some_and(|e| e.is::<Fault>()) {
            true => error.into(),
            false => Fault::new(Code::ZipMismatch, format!("deflated data: {error}")).within(&self.shown),
        }
    }

    /// Returns at most `max` bytes from the start, unverified.
    pub(super) fn start(&self, max: u64) -> Result<Vec<u8>, Fault> {
        let mut out = Vec::new();
        let reader = DeflateDecoder::new(Sequential { bytes: self.part.clone(), offset: 0 });
        reader.take(max).read_to_end(&mut out).map_err(|e| self.bad(e))?;
        Ok(out)
    }
}

/// Bytes of a deflated entry, streamed for whole tensors and kept in memory for views.
#[derive(Debug)]
pub(crate) struct Deflated {
    entry: DeflatedEntry,
    kept: OnceLock<Arc<Computed>>,
}

impl Deflated {
    pub(super) fn new(entry: DeflatedEntry) -> Deflated {
        Deflated { entry, kept: OnceLock::new() }
    }

    pub(crate) fn len(&self) -> u64 {
        self.entry.size
    }

    /// Returns bytes for sequential reads.
    pub(crate) fn stream(&self) -> Arc<dyn Bytes> {
        Arc::new(Inflated::new(self.entry.clone()))
    }

    /// Returns bytes for reads in any order, kept in memory from the first read on. `allow` checks the budget once.
    pub(crate) fn kept(&self, allow: impl FnOnce() -> Result<(), Fault>) -> Result<Arc<dyn Bytes>, Fault> {
        if self.kept.get().is_none() {
            allow().map_err(|f| f.within(&self.entry.shown))?;
        }
        let kept = self.kept.get_or_init(|| {
            let stream = Inflated::new(self.entry.clone());
            Arc::new(Computed::kept(stream.len(), move || {
                let mut all = vec![0; stream.len() as usize];
                stream.read_at(0, &mut all)?;
                Ok(all)
            }))
        });
        Ok(kept.clone())
    }
}

/// Bytes of a deflated entry that are not kept in memory. A sequential read inflates once, and the last read fails on a
/// wrong size or checksum. Another order of reads verifies everything first; a backward read restarts.
struct Inflated {
    entry: DeflatedEntry,
    state: Mutex<InflateState>,
}

#[derive(Default)]
struct InflateState {
    stream: Option<Box<Stream>>,
    /// The entry was verified.
    good: bool,
}

struct Stream {
    reader: DeflateDecoder<Sequential>,
    /// `crc` covers the bytes before it.
    next: u64,
    crc: crc32fast::Hasher,
}

impl Inflated {
    fn new(entry: DeflatedEntry) -> Inflated {
        Inflated { entry, state: Mutex::default() }
    }

    fn begin(&self) -> Box<Stream> {
        let reader = DeflateDecoder::new(Sequential { bytes: self.entry.part.clone(), offset: 0 });
        Box::new(Stream { reader, next: 0, crc: crc32fast::Hasher::new() })
    }

    fn fill(&self, stream: &mut Stream, out: &mut [u8]) -> Result<(), Fault> {
        stream.reader.read_exact(out).map_err(|e| self.entry.bad(e))?;
        stream.crc.update(out);
        stream.next = stream.next.saturating_add(out.len() as u64);
        Ok(())
    }

    fn pass(&self, stream: &mut Stream, to: u64) -> Result<(), Fault> {
        let mut buffer = vec![0; to.saturating_sub(stream.next).min(STEP as u64) as usize];
        while stream.next < to {
            let n = to.saturating_sub(stream.next).min(STEP as u64);
            self.fill(stream, buffer.get_mut(..n as usize).unwrap_or(&mut []))?;
        }
        Ok(())
    }

    /// Verifies size and checksum at the end of the stream.
    fn judge(&self, stream: &mut Stream) -> Result<(), Fault> {
        let fault = |code, detail: String| Err(Fault::new(code, detail).within(&self.entry.shown));
        let more = stream.reader.read(&mut [0]).map_err(|e| self.entry.bad(e))?;
        if more != 0 || stream.reader.total_in() != self.entry.part.len() {
            return fault(Code::ZipMismatch, "deflated data exceeds its declared size".into());
        }
        let found = stream.crc.clone().finalize();
        match self.entry.crc {
            Some(crc) if crc != found => {
                fault(Code::Crc, format!("checksum mismatch: expected {crc:08x}, found {found:08x}"))
            }
            _ => Ok(()),
        }
    }

    fn read(&self, state: &mut InflateState, offset: u64, out: &mut [u8]) -> Result<(), Fault> {
        // A failed read leaves no stream in `state`: the next one restarts.
        let mut stream = state.stream.take().unwrap_or_else(|| self.begin());
        let ahead = offset.checked_sub(stream.next);
        if !state.good && ahead.is_none_or(|n| n > STEP as u64) {
            stream = self.begin();
            self.pass(&mut stream, self.entry.size)?;
            self.judge(&mut stream)?;
            state.good = true;
            stream = self.begin();
        } else if ahead.is_none() {
            stream = self.begin();
        }
        self.pass(&mut stream, offset)?;
        self.fill(&mut stream, out)?;
        if stream.next < self.entry.size {
            state.stream = Some(stream);
        } else if !state.good {
            self.judge(&mut stream)?;
            state.good = true;
        }
        Ok(())
    }
}

impl fmt::Debug for Inflated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inflated").field("entry", &self.entry).finish_non_exhaustive()
    }
}

impl Bytes for Inflated {
    fn len(&self) -> u64 {
        self.entry.size
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        if offset.checked_add(out.len() as u64).is_none_or(|end| end > self.entry.size) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if out.is_empty() {
            return Ok(());
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(self.read(&mut state, offset, out)?)
    }
}

struct Sequential {
    bytes: ByteRange,
    offset: u64,
}

impl Read for Sequential {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = (out.len() as u64).min(self.bytes.len().saturating_sub(self.offset));
        let part = out.get_mut(..n as usize).unwrap_or(&mut []);
        self.bytes.read_at(self.offset, part)?;
        self.offset = self.offset.saturating_add(n);
        Ok(n as usize)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn deflated(crc: Option<u32>, size: u64) -> Inflated {
        let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(&content()).unwrap();
        let packed = encoder.finish().unwrap();
        let len = packed.len() as u64;
        let part = ByteRange::new(Arc::new(packed), 0, len).unwrap();
        Inflated::new(DeflatedEntry { part, size, crc, shown: "entry".into() })
    }

    fn content() -> Vec<u8> {
        (0..300_000u32).map(|i| (i.wrapping_mul(i) >> 7) as u8).collect()
    }

    #[test]
    fn reads_in_any_order_are_verified() {
        let content = content();
        let (size, crc) = (content.len() as u64, crc32fast::hash(&content));
        let half = content.len() / 2;
        for order in [[0, half], [half, 0]] {
            let good = deflated(Some(crc), size);
            let bad = [deflated(Some(!crc), size), deflated(Some(crc), size - 1), deflated(None, size + 1)];
            let mut errors = [0; 3];
            for offset in order {
                let mut out = vec![0; half];
                good.read_at(offset as u64, &mut out).unwrap();
                assert!(out == content[offset..offset + half], "{order:?}");
                for (bad, errors) in bad.iter().zip(&mut errors) {
                    let end = if offset == 0 { half as u64 } else { bad.len() };
                    let read = bad.read_at(offset as u64, &mut vec![0; (end - offset as u64) as usize]);
                    *errors += usize::from(read.is_err());
                }
            }
            assert!(errors.iter().all(|&n| n > 0), "{order:?}: {errors:?}");
            assert!(good.read_at(size - 1, &mut [0; 2]).is_err());
            let mut last = [0];
            good.read_at(size - 1, &mut last).unwrap();
            assert_eq!(last[0], content[content.len() - 1]);
        }
    }
}
