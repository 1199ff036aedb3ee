//! Bytes that are computed on first access.

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use super::Bytes;

/// Bytes that are computed as a whole on first access: decoded or gathered by strides. Kept until they have been read to
/// the end, or permanently.
pub struct Computed {
    len: u64,
    compute: Box<dyn Fn() -> io::Result<Vec<u8>> + Send + Sync>,
    kept: Mutex<Option<Arc<Vec<u8>>>>,
    permanent: bool,
}

impl Computed {
    /// Creates bytes of length `len` that `compute` returns. They are computed again after they have been read to the end.
    pub fn new(len: u64, compute: impl Fn() -> io::Result<Vec<u8>> + Send + Sync + 'static) -> Computed {
        Computed { len, compute: Box::new(compute), kept: Mutex::new(None), permanent: false }
    }

    /// Like [`Computed::new`], but computed only once.
    pub fn kept(len: u64, compute: impl Fn() -> io::Result<Vec<u8>> + Send + Sync + 'static) -> Computed {
        Computed { permanent: true, ..Computed::new(len, compute) }
    }
}

impl fmt::Debug for Computed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Computed").field("len", &self.len).finish_non_exhaustive()
    }
}

impl Bytes for Computed {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let end = offset.checked_add(out.len() as u64).filter(|&e| e <= self.len);
        let end = end.ok_or(io::ErrorKind::UnexpectedEof)?;
        if out.is_empty() {
            return Ok(());
        }
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let all = match &*kept {
            Some(all) => all.clone(),
            None => {
                let all = Arc::new((self.compute)()?);
                *kept = Some(all.clone());
                all
            }
        };
        if end == self.len && !self.permanent {
            *kept = None;
        }
        drop(kept);
        let part = all.get(offset as usize..end as usize).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(part);
        Ok(())
    }
}
