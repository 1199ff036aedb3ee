//! Bytes that are verified, byte-swapped or computed when they are read.

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use resnet_model::raw::Bytes;

use crate::error::{Code, Fault};

/// Chunk size of checksum passes.
const CHUNK: usize = 1 << 20;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Bytes with a checksum. A sequential read computes it on the way, and the last read fails on a mismatch; another order of
/// reads verifies all bytes first.
pub(crate) struct Checked {
    bytes: Arc<dyn Bytes>,
    crc: u32,
    entry: String,
    state: Mutex<ChecksumState>,
}

enum ChecksumState {
    /// `crc` covers the bytes before `next`.
    Reading {
        next: u64,
        crc: crc32fast::Hasher,
    },
    Good,
    Bad(u32),
}

impl Checked {
    /// `entry` is the name in errors.
    pub(crate) fn new(bytes: Arc<dyn Bytes>, crc: u32, entry: String) -> Checked {
        Checked {
            bytes,
            crc,
            entry,
            state: Mutex::new(ChecksumState::Reading { next: 0, crc: crc32fast::Hasher::new() }),
        }
    }

    fn bad(&self, found: u32) -> io::Error {
        let detail = format!("checksum mismatch: expected {:08x}, found {found:08x}", self.crc);
        Fault::new(Code::Crc, detail).within(&self.entry).into()
    }

    fn judge(&self, state: &mut ChecksumState, found: u32) -> io::Result<()> {
        if found == self.crc {
            *state = ChecksumState::Good;
            return Ok(());
        }
        *state = ChecksumState::Bad(found);
        Err(self.bad(found))
    }

    /// Verifies all bytes, once.
    fn verify(&self) -> io::Result<()> {
        let mut state = lock(&self.state);
        match *state {
            ChecksumState::Good => Ok(()),
            ChecksumState::Bad(found) => Err(self.bad(found)),
            ChecksumState::Reading { .. } => {
                let found = checksum(&*self.bytes)?;
                self.judge(&mut state, found)
            }
        }
    }
}

/// Computes the CRC-32 of all bytes.
pub(crate) fn checksum(bytes: &dyn Bytes) -> io::Result<u32> {
    let mut crc = crc32fast::Hasher::new();
    let mut buffer = vec![0; bytes.len().min(CHUNK as u64) as usize];
    let mut offset = 0u64;
    while offset < bytes.len() {
        let n = bytes.len().saturating_sub(offset).min(CHUNK as u64);
        let piece = buffer.get_mut(..n as usize).unwrap_or(&mut []);
        bytes.read_at(offset, piece)?;
        crc.update(piece);
        offset = offset.saturating_add(n);
    }
    Ok(crc.finalize())
}

impl fmt::Debug for Checked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Checked").field("entry", &self.entry).finish_non_exhaustive()
    }
}

impl Bytes for Checked {
    fn len(&self) -> u64 {
        self.bytes.len()
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let mut state = lock(&self.state);
        match &mut *state {
            ChecksumState::Reading { next, crc } if *next == offset => {
                self.bytes.read_at(offset, out)?;
                crc.update(out);
                *next = next.saturating_add(out.len() as u64);
                if *next == self.bytes.len() {
                    let found = crc.clone().finalize();
                    return self.judge(&mut state, found);
                }
                return Ok(());
            }
            _ => drop(state),
        }
        self.verify()?;
        self.bytes.read_at(offset, out)
    }
}

/// The same bytes, all of them checked before the first is given out: for views of a part.
#[derive(Debug)]
pub(crate) struct Verified(pub(crate) Arc<Checked>);

impl Bytes for Verified {
    fn len(&self) -> u64 {
        self.0.len()
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.verify()?;
        self.0.bytes.read_at(offset, out)
    }
}

/// Byte-swapped elements of `item` bytes.
#[derive(Debug)]
pub(crate) struct Swapped {
    pub(crate) bytes: Arc<dyn Bytes>,
    pub(crate) item: u64,
}

impl Bytes for Swapped {
    fn len(&self) -> u64 {
        self.bytes.len()
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let end = offset.checked_add(out.len() as u64).filter(|&e| e <= self.len());
        let end = end.ok_or(io::ErrorKind::UnexpectedEof)?;
        let item = self.item.max(1);
        let first = offset.saturating_sub(offset.checked_rem(item).unwrap_or(0));
        let last = end.checked_next_multiple_of(item).unwrap_or(end).min(self.len());
        let mut whole = vec![0; last.saturating_sub(first) as usize];
        self.bytes.read_at(first, &mut whole)?;
        whole.chunks_exact_mut(item as usize).for_each(<[u8]>::reverse);
        let start = offset.saturating_sub(first) as usize;
        let part = whole.get(start..start.saturating_add(out.len())).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(part);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(crc: u32) -> Checked {
        Checked::new(Arc::new(b"123456789".to_vec()), crc, "entry".into())
    }

    #[test]
    fn checksums_are_checked_in_any_order() {
        const CRC: u32 = 0xcbf4_3926;
        let mut out = [0; 3];
        for order in [[0u64, 3, 6], [6, 0, 3], [0, 6, 3], [3, 6, 0]] {
            let good = checked(CRC);
            let bad = checked(!CRC);
            let mut errors = 0;
            for offset in order {
                good.read_at(offset, &mut out).unwrap();
                assert_eq!(out, b"123456789"[offset as usize..offset as usize + 3]);
                errors += usize::from(bad.read_at(offset, &mut out).is_err());
            }
            assert!(errors > 0, "{order:?}");
        }
        let first = Verified(Arc::new(checked(!CRC))).read_at(0, &mut out).unwrap_err();
        assert!(
            first.to_string().contains("entry: checksum mismatch: expected 340bc6d9, found cbf43926"),
            "{first}"
        );
    }

    #[test]
    fn swapped_elements_are_read_at_any_offset() {
        let swapped = Swapped { bytes: Arc::new((0..8).collect::<Vec<u8>>()), item: 4 };
        let mut out = [0; 3];
        swapped.read_at(2, &mut out).unwrap();
        assert_eq!(out, [1, 0, 7]);
        assert!(swapped.read_at(6, &mut out).is_err());
    }
}
