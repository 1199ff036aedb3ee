//! Decoding of the blocks of a scan.

use super::huffman::{Bits, Table};
use super::idct::{Block, idct};
use super::{Component, Frame, JpegError, invalid};

/// Natural-order index of each coefficient in zigzag order.
#[rustfmt::skip]
pub(super) const ZIGZAG: [u8; 64] = [
     0,  1,  8, 16,  9,  2,  3, 10, 17, 24, 32, 25, 18, 11,  4,  5,
    12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13,  6,  7, 14, 21, 28,
    35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51,
    58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63,
];

/// A scan header.
pub(super) struct Scan {
    pub(super) members: Vec<Member>,
    /// First and last coefficient in zigzag order.
    pub(super) band: (usize, usize),
    /// Successive approximation: lowest bit of the previous scan, 0 if this is the first.
    pub(super) high: u32,
    /// Successive approximation: lowest bit of this scan.
    pub(super) low: u32,
    /// MCUs between restart markers, 0 if there are none.
    pub(super) restart: usize,
}

/// A component of a scan.
pub(super) struct Member {
    /// Index into the frame's components.
    pub(super) component: usize,
    pub(super) dc: Option<Table>,
    pub(super) ac: Option<Table>,
}

/// Entropy decoder state, which a restart marker resets.
#[derive(Default)]
struct EntropyState {
    /// Previous DC value of each member.
    dc: [i32; 4],
    /// Remaining blocks without further nonzero coefficients, including the current one.
    end_of_band: u32,
}

impl Scan {
    /// Decodes the scan at `start` into the frame and returns the position of the next marker's code.
    pub(super) fn read(&self, frame: &mut Frame, data: &[u8], start: usize) -> Result<usize, JpegError> {
        let mut bits = Bits::new(data, start);
        let mut state = EntropyState::default();
        let grid = self.grid(frame);
        let mut restarts = (0..8u8).cycle();
        let mut until_restart = self.restart;
        for y in 0..self.needed_rows(frame).min(grid.1) {
            for x in 0..grid.0 {
                if self.restart > 0 {
                    if until_restart == 0 {
                        bits.restart(restarts.next().unwrap_or(0))?;
                        state = EntropyState::default();
                        until_restart = self.restart;
                    }
                    until_restart -= 1;
                }
                self.mcu(frame, &mut bits, &mut state, (x, y))?;
            }
        }
        bits.next_marker()
    }

    /// Returns the number of MCU rows needed for the region. Progressive scans are read whole, as refinement depends on
    /// all earlier blocks.
    fn needed_rows(&self, frame: &Frame) -> usize {
        let rows = |member: &Member| {
            let component = &frame.components[member.component];
            match self.members.len() {
                1 => component.needed.rows.end,
                _ => component.needed.rows.end.div_ceil(component.plane.sampling.1),
            }
        };
        if frame.progressive { usize::MAX } else { self.members.iter().map(rows).max().unwrap_or(0) }
    }

    /// Returns the number of MCUs per row and per column of the scan.
    pub(super) fn grid(&self, frame: &Frame) -> (usize, usize) {
        match self.members[..] {
            [Member { component, .. }] => {
                let plane = &frame.components[component].plane;
                (plane.width.div_ceil(8), plane.height.div_ceil(8))
            }
            _ => frame.mcus,
        }
    }

    fn mcu(
        &self,
        frame: &mut Frame,
        bits: &mut Bits,
        state: &mut EntropyState,
        at: (usize, usize),
    ) -> Result<(), JpegError> {
        let interleaved = self.members.len() > 1;
        let progressive = frame.progressive;
        for (index, member) in self.members.iter().enumerate() {
            let component = &mut frame.components[member.component];
            let (across, down) = if interleaved { component.plane.sampling } else { (1, 1) };
            for v in 0..down {
                for h in 0..across {
                    let (x, y) = (at.0 * across + h, at.1 * down + v);
                    let last = &mut state.dc[index];
                    if progressive {
                        let block = component.block(x, y)?;
                        match (self.band.0, self.high) {
                            (0, 0) => {
                                let dc = member.dc_value(bits, last)?;
                                block[0] = (dc << self.low) as i16;
                            }
                            (0, _) => block[0] |= (bits.take(1)? << self.low) as i16,
                            (_, 0) => self.first_ac(member, bits, &mut state.end_of_band, block)?,
                            _ => self.refine_ac(member, bits, &mut state.end_of_band, block)?,
                        }
                    } else if component.needs(x, y) {
                        let mut block = [0; 64];
                        member.sequential(bits, last, &mut block)?;
                        component.put(x, y, &block);
                    } else {
                        member.skip(bits, last)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn first_ac(
        &self,
        member: &Member,
        bits: &mut Bits,
        end: &mut u32,
        block: &mut Block,
    ) -> Result<(), JpegError> {
        if *end > 0 {
            *end -= 1;
            return Ok(());
        }
        let table = member.ac()?;
        let mut k = self.band.0;
        while k <= self.band.1 {
            let (run, size) = split(bits.symbol(table)?);
            if size == 0 {
                if run < 15 {
                    *end = (1 << run) + bits.take(run)? - 1;
                    break;
                }
                k += 16;
                continue;
            }
            k += run as usize;
            if k > self.band.1 {
                return invalid("a run of zeros exceeds its block");
            }
            block[usize::from(ZIGZAG[k])] = (bits.signed(size)? << self.low) as i16;
            k += 1;
        }
        Ok(())
    }

    fn refine_ac(
        &self,
        member: &Member,
        bits: &mut Bits,
        end: &mut u32,
        block: &mut Block,
    ) -> Result<(), JpegError> {
        let table = member.ac()?;
        let one = 1i16 << self.low;
        // A nonzero coefficient is refined by one more bit.
        let refine = |bits: &mut Bits, c: &mut i16| -> Result<(), JpegError> {
            if bits.take(1)? == 1 && *c & one == 0 {
                *c = if *c > 0 { c.wrapping_add(one) } else { c.wrapping_sub(one) };
            }
            Ok(())
        };
        let mut k = self.band.0;
        if *end == 0 {
            while k <= self.band.1 {
                let (mut run, size) = split(bits.symbol(table)?);
                let value = match size {
                    0 if run < 15 => {
                        *end = (1 << run) + bits.take(run)?;
                        break;
                    }
                    0 => 0,
                    1 if bits.take(1)? == 1 => one,
                    1 => -one,
                    _ => return invalid("a refinement scan has an invalid coefficient size"),
                };
                while k <= self.band.1 {
                    let c = &mut block[usize::from(ZIGZAG[k])];
                    if *c != 0 {
                        refine(bits, c)?;
                    } else if run == 0 {
                        *c = value;
                        break;
                    } else {
                        run -= 1;
                    }
                    k += 1;
                }
                k += 1;
            }
        }
        if *end > 0 {
            while k <= self.band.1 {
                let c = &mut block[usize::from(ZIGZAG[k])];
                if *c != 0 {
                    refine(bits, c)?;
                }
                k += 1;
            }
            *end -= 1;
        }
        Ok(())
    }
}

impl Member {
    fn ac(&self) -> Result<&Table, JpegError> {
        self.ac.as_ref().ok_or(JpegError("a scan refers to a missing Huffman table"))
    }

    #[inline]
    fn dc_value(&self, bits: &mut Bits, last: &mut i32) -> Result<i32, JpegError> {
        let table = self.dc.as_ref().ok_or(JpegError("a scan refers to a missing Huffman table"))?;
        let size = bits.symbol(table)?;
        *last = last.wrapping_add(bits.signed(u32::from(size))?);
        Ok(*last)
    }

    fn sequential(&self, bits: &mut Bits, last: &mut i32, block: &mut Block) -> Result<(), JpegError> {
        block[0] = self.dc_value(bits, last)? as i16;
        let table = self.ac()?;
        let mut k = 1;
        while k < 64 {
            let (run, size) = split(bits.symbol(table)?);
            if size == 0 {
                if run < 15 {
                    break;
                }
                k += 16;
                continue;
            }
            k += run as usize;
            let Some(&natural) = ZIGZAG.get(k) else {
                return invalid("a run of zeros exceeds its block");
            };
            block[usize::from(natural)] = bits.signed(size)? as i16;
            k += 1;
        }
        Ok(())
    }

    /// Reads past a block without storing its coefficients.
    fn skip(&self, bits: &mut Bits, last: &mut i32) -> Result<(), JpegError> {
        self.dc_value(bits, last)?;
        let table = self.ac()?;
        let mut k = 1;
        while k < 64 {
            let (run, size) = split(bits.symbol(table)?);
            match size {
                0 if run < 15 => return Ok(()),
                0 => k += 16,
                _ => {
                    k += run as usize + 1;
                    if k > 64 {
                        return invalid("a run of zeros exceeds its block");
                    }
                    bits.take(size)?;
                }
            }
        }
        Ok(())
    }
}

/// Splits a symbol into the run of zeros and the size of the following coefficient.
#[inline(always)]
fn split(symbol: u8) -> (u32, u32) {
    (u32::from(symbol >> 4), u32::from(symbol & 15))
}

impl Component {
    /// Returns the stored coefficients of the block at column `x` and row `y`.
    fn block(&mut self, x: usize, y: usize) -> Result<&mut Block, JpegError> {
        self.blocks.get_mut(y * self.blocks_per_row + x).ok_or(JpegError("a scan exceeds the image"))
    }

    /// Returns `true` if the samples of a block are needed.
    fn needs(&self, x: usize, y: usize) -> bool {
        self.needed.columns.contains(&x) && self.needed.rows.contains(&y)
    }

    /// Writes the samples of a block.
    fn put(&mut self, x: usize, y: usize, block: &Block) {
        let stride = self.plane.stride;
        let start = 8 * (y * stride + x);
        if let Some(out) = self.plane.samples.get_mut(start..) {
            idct(block, &self.quantization, out, stride);
        }
    }

    /// Writes the samples of all stored blocks.
    pub(super) fn finish(&mut self) {
        let blocks = std::mem::take(&mut self.blocks);
        for (i, block) in blocks.iter().enumerate() {
            let (x, y) = (i % self.blocks_per_row, i / self.blocks_per_row);
            if self.needs(x, y) {
                self.put(x, y, block);
            }
        }
    }
}
