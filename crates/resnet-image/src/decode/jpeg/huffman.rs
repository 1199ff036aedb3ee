//! Entropy-coded bits and Huffman codes of a JPEG scan.

use super::{JpegError, invalid};

/// Codes of up to this many bits are decoded by one table lookup.
const FAST_BITS: u32 = 9;

/// A Huffman table of a DHT segment.
#[derive(Clone)]
pub(super) struct Table {
    /// Indexed by the next [`FAST_BITS`] bits: length << 8 | symbol, 0 for longer codes.
    fast: Vec<u16>,
    /// Indexed by length: one past the last code, left-aligned in 16 bits; 0 if there is none.
    limit: [u32; 17],
    /// Indexed by length: index of the first symbol minus the first code.
    offset: [i32; 17],
    symbols: Vec<u8>,
}

impl Table {
    /// Creates a table from the number of codes of each length, 1 to 16, and the symbols in the order of their codes.
    pub(super) fn new(counts: &[u8; 16], symbols: &[u8]) -> Result<Table, JpegError> {
        let mut table = Table {
            fast: vec![0; 1 << FAST_BITS],
            limit: [0; 17],
            offset: [0; 17],
            symbols: symbols.to_vec(),
        };
        let (mut code, mut index) = (0u32, 0usize);
        for (length, &count) in (1u32..).zip(counts) {
            table.offset[length as usize] = index as i32 - code as i32;
            for _ in 0..count {
                let &symbol = symbols.get(index).ok_or(JpegError("a Huffman table has too few symbols"))?;
                if length <= FAST_BITS {
                    let shift = FAST_BITS - length;
                    let first = (code << shift) as usize;
                    let same = table
                        .fast
                        .get_mut(first..first + (1 << shift))
                        .ok_or(JpegError("a Huffman table has too many codes"))?;
                    same.fill((length as u16) << 8 | u16::from(symbol));
                }
                code += 1;
                index += 1;
            }
            if code > 1 << length {
                return invalid("a Huffman table has too many codes");
            }
            if count > 0 {
                table.limit[length as usize] = code << (16 - length);
            }
            code <<= 1;
        }
        Ok(table)
    }

    /// Returns `true` if all symbols are valid lengths of a DC difference.
    pub(super) fn is_dc(&self) -> bool {
        self.symbols.iter().all(|&s| s <= 15)
    }
}

/// A bit reader over a scan, up to the next marker.
pub(super) struct Bits<'a> {
    data: &'a [u8],
    /// Position of the next byte to load.
    position: usize,
    /// The next bits, left-aligned, padded with zeros.
    window: u64,
    /// Number of valid bits in `window`.
    count: u32,
    at_marker: bool,
}

impl<'a> Bits<'a> {
    pub(super) fn new(data: &'a [u8], position: usize) -> Bits<'a> {
        Bits { data, position, window: 0, count: 0, at_marker: false }
    }

    /// Loads bytes until at least 48 bits are available or a marker or the end is reached.
    #[inline]
    fn refill(&mut self) {
        if let Some(&bytes) = self.data.get(self.position..).and_then(|rest| rest.first_chunk::<8>()) {
            let word = u64::from_be_bytes(bytes);
            // No byte is 0xff if and only if no byte of the complement is zero.
            let complement = !word;
            let zeros = complement.wrapping_sub(0x0101_0101_0101_0101) & !complement & 0x8080_8080_8080_8080;
            if zeros == 0 {
                let bytes = (64 - self.count) / 8;
                if bytes == 0 {
                    return;
                }
                // The bits below the loaded bytes are loaded again later: clear them.
                let kept = word >> (64 - 8 * bytes) << (64 - 8 * bytes);
                self.window |= kept >> self.count;
                self.count += 8 * bytes;
                self.position += bytes as usize;
                return;
            }
        }
        self.refill_slowly();
    }

    #[cold]
    fn refill_slowly(&mut self) {
        while self.count <= 56 && !self.at_marker {
            let Some(&byte) = self.data.get(self.position) else {
                self.at_marker = true;
                break;
            };
            let mut length = 1;
            if byte == 0xff {
                // 0xff is followed by a stuffed zero; any number of 0xff may precede a marker.
                match self.data.get(self.position + 1) {
                    Some(0) => length = 2,
                    _ => {
                        self.at_marker = true;
                        break;
                    }
                }
            }
            self.window |= u64::from(byte) << (56 - self.count);
            self.count += 8;
            self.position += length;
        }
    }

    #[inline]
    fn consume(&mut self, length: u32) -> Result<(), JpegError> {
        if length > self.count {
            return invalid(if self.position >= self.data.len() {
                "the file is truncated"
            } else {
                "a scan is truncated"
            });
        }
        self.window <<= length;
        self.count -= length;
        Ok(())
    }

    /// Decodes the next symbol with `table`.
    #[inline]
    pub(super) fn symbol(&mut self, table: &Table) -> Result<u8, JpegError> {
        if self.count < 16 {
            self.refill();
        }
        let entry = table.fast[(self.window >> (64 - FAST_BITS)) as usize];
        if entry != 0 {
            self.consume(u32::from(entry >> 8))?;
            return Ok(entry as u8);
        }
        let next = (self.window >> 48) as u32;
        for length in FAST_BITS + 1..=16 {
            if next < table.limit[length as usize] {
                let index = table.offset[length as usize] + (next >> (16 - length)) as i32;
                let symbol = usize::try_from(index).ok().and_then(|i| table.symbols.get(i).copied());
                self.consume(length)?;
                return symbol.ok_or(JpegError("a scan has an invalid Huffman code"));
            }
        }
        self.consume(16)?;
        invalid("a scan has an invalid Huffman code")
    }

    /// Returns the next `length` bits, at most 16.
    #[inline]
    pub(super) fn take(&mut self, length: u32) -> Result<u32, JpegError> {
        if length == 0 {
            return Ok(0);
        }
        if self.count < length {
            self.refill();
        }
        let value = (self.window >> (64 - length)) as u32;
        self.consume(length)?;
        Ok(value)
    }

    /// Returns a signed number of `length` bits: the upper half is positive, the lower half negative.
    #[inline]
    pub(super) fn signed(&mut self, length: u32) -> Result<i32, JpegError> {
        if length == 0 {
            return Ok(0);
        }
        let value = self.take(length)? as i32;
        Ok(if value < 1 << (length - 1) { value - (1 << length) + 1 } else { value })
    }

    /// Expects the restart marker `number` (0 to 7) and continues after it.
    pub(super) fn restart(&mut self, number: u8) -> Result<(), JpegError> {
        let at = self.next_marker()?;
        if self.data[at] != 0xd0 + number {
            return invalid("a restart marker is missing");
        }
        *self = Bits::new(self.data, at + 1);
        Ok(())
    }

    /// Returns the position of the next marker's code, the byte after 0xff.
    pub(super) fn next_marker(&self) -> Result<usize, JpegError> {
        let mut at = self.position;
        // Loading stops at markers, so none is among the loaded bytes.
        while let Some(&byte) = self.data.get(at) {
            if byte == 0xff && self.data.get(at + 1).is_some_and(|&code| code != 0 && code != 0xff) {
                return Ok(at + 1);
            }
            at += 1;
        }
        invalid("the file is truncated")
    }
}
