//! Buffered protobuf reader that skips tensor data without reading it.

use std::io;
use std::sync::Arc;

use prost::DecodeError;
use prost::bytes::Buf;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use resnet_model::raw::Bytes;

use crate::error::{Code, Fault};

/// Buffer size in bytes.
const BUFFER_LEN: u64 = 1 << 16;

/// Buffered cursor over the bytes of a file.
#[derive(Debug)]
pub(crate) struct Reader {
    bytes: Arc<dyn Bytes>,
    buffer: Vec<u8>,
    /// Offset of the buffer in the file.
    start: u64,
    /// Offset of the cursor in the buffer.
    at: usize,
    /// Deferred read error, because `Buf` cannot fail.
    failed: Option<io::Error>,
}

impl Reader {
    pub(crate) fn new(bytes: Arc<dyn Bytes>) -> Reader {
        let mut reader = Reader { bytes, buffer: vec![], start: 0, at: 0, failed: None };
        reader.fill();
        reader
    }

    pub(crate) fn bytes(&self) -> &Arc<dyn Bytes> {
        &self.bytes
    }

    /// Returns the offset of the cursor.
    pub(crate) fn pos(&self) -> u64 {
        self.start.saturating_add(self.at as u64)
    }

    fn left(&self) -> u64 {
        self.bytes.len().saturating_sub(self.pos())
    }

    fn fill(&mut self) {
        self.start = self.pos();
        self.at = 0;
        self.buffer.clear();
        self.buffer.resize(self.left().min(BUFFER_LEN) as usize, 0);
        if let Err(e) = self.bytes.read_at(self.start, &mut self.buffer) {
            self.buffer.fill(0);
            self.failed.get_or_insert(e);
        }
    }

    /// Returns a fault at the cursor, or the deferred read error.
    pub(crate) fn fault(&mut self, code: Code, detail: impl Into<String>) -> Fault {
        match self.failed.take() {
            Some(e) => Fault::from(e).at(self.pos()),
            None => Fault::new(code, detail).at(self.pos()),
        }
    }

    fn protobuf<T>(&mut self, result: Result<T, DecodeError>) -> Result<T, Fault> {
        match result {
            Ok(_) if self.failed.is_some() => Err(self.fault(Code::Read, "")),
            Ok(value) => Ok(value),
            Err(e) => {
                let text = e.to_string();
                let text = text.strip_prefix("failed to decode Protobuf message: ").unwrap_or(&text);
                Err(self.fault(Code::Protobuf, format!("malformed protobuf: {text}")))
            }
        }
    }

    /// Reads the tag and wire type of the next field.
    pub(crate) fn key(&mut self) -> Result<(u32, WireType), Fault> {
        let key = decode_key(self);
        self.protobuf(key)
    }

    pub(crate) fn skip(&mut self, (tag, kind): (u32, WireType)) -> Result<(), Fault> {
        let skipped = skip_field(kind, tag, self, DecodeContext::default());
        self.protobuf(skipped)
    }

    /// Reads the value of a field with one of prost's merge functions.
    pub(crate) fn value<T: Default>(
        &mut self,
        read: impl FnOnce(&mut T, &mut Self) -> Result<(), DecodeError>,
    ) -> Result<T, Fault> {
        let mut value = T::default();
        self.merge(&mut value, read)?;
        Ok(value)
    }

    /// Merges a field into `value`; repeated fields may occur in several pieces.
    pub(crate) fn merge<T>(
        &mut self,
        value: &mut T,
        read: impl FnOnce(&mut T, &mut Self) -> Result<(), DecodeError>,
    ) -> Result<(), Fault> {
        let result = read(value, self);
        self.protobuf(result)
    }

    /// Reads the length of a length-delimited field and returns the offset of its end.
    pub(crate) fn delimited(&mut self, kind: WireType) -> Result<u64, Fault> {
        if kind != WireType::LengthDelimited {
            return Err(self
                .fault(Code::Protobuf, format!("wire type {}, expected 2 (length-delimited)", kind as i32)));
        }
        let len = decode_varint(self);
        let len = self.protobuf(len)?;
        match self.pos().checked_add(len) {
            Some(end) if end <= self.bytes.len() => Ok(end),
            _ => {
                let left = self.left();
                Err(self
                    .fault(Code::Protobuf, format!("field length {len} exceeds the remaining {left} bytes")))
            }
        }
    }

    /// Calls `field` for every field of a message that ends at `end`.
    pub(crate) fn fields(
        &mut self,
        end: u64,
        mut field: impl FnMut(&mut Self, (u32, WireType)) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        while self.pos() < end {
            let key = self.key()?;
            field(self, key)?;
        }
        match self.pos() == end {
            true => Ok(()),
            false => Err(self.fault(Code::Protobuf, "field exceeds its message")),
        }
    }

    /// Skips a length-delimited field and returns its offset and length.
    pub(crate) fn span(&mut self, kind: WireType) -> Result<(u64, u64), Fault> {
        let end = self.delimited(kind)?;
        let start = self.pos();
        let len = end.saturating_sub(start);
        self.advance_by(len);
        Ok((start, len))
    }

    fn advance_by(&mut self, n: u64) {
        let at = (self.at as u64).saturating_add(n);
        match at < self.buffer.len() as u64 {
            true => self.at = at as usize,
            false => {
                self.start = self.start.saturating_add(at);
                self.at = 0;
                self.fill();
            }
        }
    }
}

impl Buf for Reader {
    fn remaining(&self) -> usize {
        usize::try_from(self.left()).unwrap_or(usize::MAX)
    }

    fn chunk(&self) -> &[u8] {
        self.buffer.get(self.at..).unwrap_or(&[])
    }

    fn advance(&mut self, n: usize) {
        self.advance_by(n as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn span_skips_fields_of_any_length() {
        for len in [0usize, 1, 100, 65_530, 65_536, 70_000, 200_000] {
            let mut bytes = vec![0x4a];
            prost::encoding::encode_varint(len as u64, &mut bytes);
            bytes.resize(bytes.len() + len, 7);
            bytes.extend([0x10, 42]);
            let mut reader = Reader::new(Arc::new(bytes.clone()));
            let (tag, kind) = reader.key().unwrap();
            assert_eq!((tag, reader.span(kind).unwrap().1), (9, len as u64));
            assert_eq!(reader.key().unwrap(), (2, WireType::Varint));
            assert_eq!(decode_varint(&mut reader).unwrap(), 42);
            assert_eq!((reader.pos(), reader.remaining()), (bytes.len() as u64, 0));
        }
    }
}
