//! Buffered cursor over bytes, for the stream formats.

use std::sync::Arc;

use resnet_model::raw::Bytes;

use crate::error::{Code, Fault};

/// Buffer size, and the maximum of [`Input::take`].
pub(crate) const BUFFER: usize = 1 << 16;

#[derive(Debug)]
pub(crate) struct Input {
    bytes: Arc<dyn Bytes>,
    len: u64,
    buffer: Vec<u8>,
    /// The offset of the buffer.
    start: u64,
    /// The cursor, in the buffer.
    at: usize,
}

impl Input {
    pub(crate) fn new(bytes: Arc<dyn Bytes>, offset: u64) -> Input {
        let len = bytes.len();
        Input { bytes, len, buffer: Vec::new(), start: offset, at: 0 }
    }

    pub(crate) fn bytes(&self) -> &Arc<dyn Bytes> {
        &self.bytes
    }

    pub(crate) fn pos(&self) -> u64 {
        self.start.saturating_add(self.at as u64)
    }

    /// Returns the number of bytes left.
    pub(crate) fn left(&self) -> u64 {
        self.len.saturating_sub(self.pos())
    }

    fn eof(&self) -> Fault {
        Fault::new(Code::Eof, "unexpected end of data").at(self.pos())
    }

    #[inline]
    pub(crate) fn u8(&mut self) -> Result<u8, Fault> {
        if let Some(&byte) = self.buffer.get(self.at) {
            self.at = self.at.saturating_add(1);
            return Ok(byte);
        }
        Ok(self.array::<1>()?[0])
    }

    /// Returns the next `n` bytes, at most [`BUFFER`].
    pub(crate) fn take(&mut self, n: usize) -> Result<&[u8], Fault> {
        let end = self.at.checked_add(n).ok_or_else(|| self.eof())?;
        if end > self.buffer.len() {
            self.fill(n)?;
        }
        let end = self.at.saturating_add(n);
        let start = std::mem::replace(&mut self.at, end);
        self.buffer.get(start..end).ok_or_else(|| Fault::new(Code::Eof, "unexpected end of data"))
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Fault> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Fault> {
        self.array().map(u64::from_le_bytes)
    }

    pub(crate) fn i64(&mut self) -> Result<i64, Fault> {
        self.array().map(i64::from_le_bytes)
    }

    /// Returns an error if fewer than `n` bytes are left.
    pub(crate) fn check(&self, n: u64) -> Result<(), Fault> {
        match n <= self.left() {
            true => Ok(()),
            false => {
                Err(Fault::new(Code::Length, format!("length of {n} bytes, {} left", self.left()))
                    .at(self.pos()))
            }
        }
    }

    /// Skips `n` bytes.
    pub(crate) fn skip(&mut self, n: u64) -> Result<(), Fault> {
        self.check(n)?;
        match usize::try_from(n).ok().and_then(|n| self.at.checked_add(n)) {
            Some(at) if at <= self.buffer.len() => self.at = at,
            _ => {
                self.start = self.pos().saturating_add(n);
                self.buffer.clear();
                self.at = 0;
            }
        }
        Ok(())
    }

    /// Returns the bytes up to the next line feed, which is consumed; at most `max` bytes.
    pub(crate) fn line(&mut self, max: usize) -> Result<&[u8], Fault> {
        let ahead = (max as u64).saturating_add(1).min(self.left()).min(BUFFER as u64) as usize;
        if self.buffer.len().saturating_sub(self.at) < ahead {
            self.fill(ahead)?;
        }
        let seen = self.buffer.get(self.at..self.at.saturating_add(ahead)).unwrap_or(&[]);
        let Some(n) = seen.iter().position(|&b| b == b'\n') else {
            return Err(match ahead > max {
                true => Fault::new(Code::Line, format!("line of more than {max} bytes")).at(self.pos()),
                false => self.eof(),
            });
        };
        let start = self.at;
        self.at = start.saturating_add(n).saturating_add(1);
        Ok(self.buffer.get(start..start.saturating_add(n)).unwrap_or(&[]))
    }

    /// Fills the buffer with at least `n` bytes from the cursor.
    fn fill(&mut self, n: usize) -> Result<(), Fault> {
        if n > BUFFER || n as u64 > self.left() {
            return Err(self.eof());
        }
        let start = self.pos();
        let size = self.left().min(BUFFER as u64) as usize;
        self.buffer.resize(size, 0);
        self.bytes.read_at(start, &mut self.buffer).map_err(|e| Fault::from(e).at(start))?;
        self.start = start;
        self.at = 0;
        Ok(())
    }
}
