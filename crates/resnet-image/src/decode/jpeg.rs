//! JPEG decoder, bit-identical to libjpeg-turbo and thus to Pillow.
//!
//! The standard leaves the rounding of the inverse DCT and all of the upsampling to the decoder. Decoders differ by up to
//! eight gray levels, too much for reproducing a network's results. This decoder uses libjpeg's integer `islow` DCT,
//! triangle ("fancy") upsampling and color conversion. It supports baseline, extended and progressive files of 8 bits
//! with Huffman coding. Arithmetic coding, 12 bits and lossless files are errors, and so are damaged files, which
//! libjpeg-turbo completes with gray.
//!
//! It does not panic on any input: the tests mutate files, and the fuzz target `image` covers it.

use std::ops::Range;

mod color;
mod huffman;
mod idct;
mod scan;

use color::ColorSpace;
use huffman::Table;
use idct::Block;
use scan::{Member, Scan, ZIGZAG};

/// The reason why a file cannot be decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct JpegError(pub(super) &'static str);

fn invalid<T>(reason: &'static str) -> Result<T, JpegError> {
    Err(JpegError(reason))
}

/// Maximum number of scans; an encoder writes at most one per coefficient and component, 4 × 63.
const MAX_SCANS: usize = 256;

/// The samples of one component.
struct Plane {
    samples: Vec<u8>,
    /// Samples from row to row.
    stride: usize,
    /// Samples per row, without the padding of the last block.
    width: usize,
    height: usize,
    /// Horizontal and vertical sampling factors: blocks per MCU.
    sampling: (usize, usize),
}

impl Plane {
    fn row(&self, y: usize) -> &[u8] {
        &self.samples[y * self.stride..][..self.width]
    }
}

/// A rectangle in pixels or blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Region {
    pub(super) columns: Range<usize>,
    pub(super) rows: Range<usize>,
}

struct Component {
    id: u8,
    plane: Plane,
    /// Blocks whose samples are needed.
    needed: Region,
    /// Index of the quantization table, 0 to 3.
    table: usize,
    /// Quantization table of the first scan with this component, in natural order.
    quantization: [u16; 64],
    /// `true` after the first scan with this component.
    seen: bool,
    /// Blocks per row, including the padding of the last MCU.
    blocks_per_row: usize,
    /// Coefficients of all blocks of a progressive file.
    blocks: Vec<Block>,
}

struct Frame {
    width: usize,
    height: usize,
    progressive: bool,
    components: Vec<Component>,
    /// Largest horizontal and vertical sampling factors.
    max: (usize, usize),
    /// MCUs per row and per column.
    mcus: (usize, usize),
}

impl Frame {
    /// Limits decoding to the blocks of `region`.
    fn restrict_to(&mut self, region: &Region) {
        // Upsampling uses the neighbors of a sample.
        let blocks = |pixels: &Range<usize>, max: usize, sampling: usize| {
            let first = (pixels.start * sampling / max).saturating_sub(1) / 8;
            first..((pixels.end * sampling).div_ceil(max) + 1).div_ceil(8)
        };
        for component in &mut self.components {
            let (h, v) = component.plane.sampling;
            component.needed = Region {
                columns: blocks(&region.columns, self.max.0, h),
                rows: blocks(&region.rows, self.max.1, v),
            };
        }
    }
}

/// The size of the image, known before pixels are decoded.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Header {
    pub(super) width: usize,
    pub(super) height: usize,
    /// Peak memory of decoding in bytes, including samples and pixels.
    pub(super) memory: usize,
}

/// A decoded file.
pub(super) struct Decoded<'a> {
    /// Pixels of the image or region, three bytes each.
    pub(super) rgb: Vec<u8>,
    /// TIFF structure of the Exif APP1 segment.
    pub(super) exif: Option<&'a [u8]>,
    pub(super) xmp: Option<&'a [u8]>,
}

/// A JPEG decoder.
pub(super) struct Decoder<'a> {
    data: &'a [u8],
    position: usize,
    header: Header,
    exif: Option<&'a [u8]>,
    xmp: Option<&'a [u8]>,
    frame: Option<Frame>,
    quantization: [Option<[u16; 64]>; 4],
    dc: [Option<Table>; 4],
    ac: [Option<Table>; 4],
    restart: usize,
    jfif: bool,
    /// The color transform in Adobe's APP14 segment.
    adobe: Option<u8>,
    scans: usize,
    /// Number of blocks in all scans so far.
    work: usize,
}

impl<'a> Decoder<'a> {
    /// Reads the file up to the frame header.
    pub(super) fn new(data: &'a [u8]) -> Result<Decoder<'a>, JpegError> {
        let mut decoder = Decoder {
            data,
            position: 2,
            header: Header::default(),
            exif: None,
            xmp: None,
            frame: None,
            quantization: [const { None }; 4],
            dc: [const { None }; 4],
            ac: [const { None }; 4],
            restart: 0,
            jfif: false,
            adobe: None,
            scans: 0,
            work: 0,
        };
        while decoder.frame.is_none() {
            match decoder.marker()? {
                0xd9 => return invalid("the file has no image"),
                0xda => return invalid("a scan precedes the frame header"),
                code => decoder.segment(code)?,
            }
        }
        Ok(decoder)
    }

    pub(super) fn header(&self) -> Header {
        self.header
    }

    /// Returns EXIF and XMP metadata, which the standards place before the first scan.
    pub(super) fn metadata(&mut self) -> Result<[Option<&'a [u8]>; 2], JpegError> {
        loop {
            let before = self.position;
            match self.marker()? {
                0xd9 | 0xda => {
                    self.position = before;
                    return Ok([self.exif, self.xmp]);
                }
                code => self.segment(code)?,
            }
        }
    }

    /// Decodes the image, or only `region`, which must not be empty.
    pub(super) fn decode(mut self, region: Option<Region>) -> Result<Decoded<'a>, JpegError> {
        if let (Some(region), Some(frame)) = (&region, &mut self.frame) {
            frame.restrict_to(region);
        }
        loop {
            match self.marker()? {
                0xd9 => break,
                0xda => self.scan()?,
                code => self.segment(code)?,
            }
        }
        let mut frame = self.frame.take().ok_or(JpegError("the file has no image"))?;
        if frame.components.iter().any(|c| !c.seen) {
            return invalid("a component is missing");
        }
        frame.components.iter_mut().for_each(Component::finish);
        let space = self.color_space(&frame);
        let planes: Vec<Plane> = frame.components.into_iter().map(|c| c.plane).collect();
        let whole = Region { columns: 0..frame.width, rows: 0..frame.height };
        let rgb = color::to_rgb(&planes, space, &region.unwrap_or(whole), frame.max);
        Ok(Decoded { rgb, exif: self.exif, xmp: self.xmp })
    }

    /// Returns the color space that libjpeg assumes.
    fn color_space(&self, frame: &Frame) -> ColorSpace {
        let ids: Vec<u8> = frame.components.iter().map(|c| c.id).collect();
        match (&ids[..], self.jfif, self.adobe) {
            ([_], ..) => ColorSpace::Gray,
            ([_, _, _], true, _) => ColorSpace::YCbCr,
            ([_, _, _], false, Some(0)) => ColorSpace::Rgb,
            ([b'R', b'G', b'B'], false, None) => ColorSpace::Rgb,
            ([_, _, _], ..) => ColorSpace::YCbCr,
            (_, _, None | Some(0)) => ColorSpace::Cmyk,
            _ => ColorSpace::Ycck,
        }
    }

    /// Advances to the next marker and returns its code. Like libjpeg, skips anything between segments.
    fn marker(&mut self) -> Result<u8, JpegError> {
        loop {
            let rest = self.data.get(self.position..).unwrap_or_default();
            let Some(at) = rest.iter().position(|&b| b == 0xff) else {
                return invalid("the file is truncated");
            };
            let Some(fill) = rest[at..].iter().position(|&b| b != 0xff) else {
                return invalid("the file is truncated");
            };
            self.position += at + fill + 1;
            match rest[at + fill] {
                // A stuffed zero byte, or a marker without a segment.
                0 | 0x01 | 0xd0..=0xd7 => {}
                code => return Ok(code),
            }
        }
    }

    /// Returns the body of the segment at the current position and advances past it.
    fn body(&mut self) -> Result<&'a [u8], JpegError> {
        let rest = self.data.get(self.position..).unwrap_or_default();
        let Some((length, _)) = rest.split_first_chunk::<2>() else {
            return invalid("the file is truncated");
        };
        let length = usize::from(u16::from_be_bytes(*length));
        if length < 2 {
            return invalid("a segment has an invalid length");
        }
        let Some(body) = rest.get(2..length) else { return invalid("the file is truncated") };
        self.position += length;
        Ok(body)
    }

    fn segment(&mut self, code: u8) -> Result<(), JpegError> {
        match code {
            0xd8 => invalid("the file contains a second start-of-image marker"),
            0xc4 => {
                let body = self.body()?;
                self.huffman(body)
            }
            0xdb => {
                let body = self.body()?;
                self.quantization(body)
            }
            0xdd => match *self.body()? {
                [high, low] => {
                    self.restart = usize::from(u16::from_be_bytes([high, low]));
                    Ok(())
                }
                _ => invalid("the restart interval segment has an invalid length"),
            },
            0xc0..=0xc2 => {
                let body = self.body()?;
                self.frame(body, code == 0xc2)
            }
            0xc3 | 0xc7 | 0xcb | 0xcf => invalid("lossless JPEG is not supported"),
            0xc5 | 0xc6 | 0xcd | 0xce => invalid("hierarchical JPEG is not supported"),
            0xc9 | 0xca => invalid("arithmetic coding is not supported"),
            _ => {
                let body = self.body()?;
                self.application(code, body);
                Ok(())
            }
        }
    }

    fn application(&mut self, code: u8, body: &'a [u8]) {
        match code {
            0xe0 if body.starts_with(b"JFIF\0") && body.len() >= 14 => self.jfif = true,
            0xe1 => {
                self.exif = self.exif.or(body.strip_prefix(b"Exif\0\0"));
                self.xmp = body.strip_prefix(b"http://ns.adobe.com/xap/1.0/\0").or(self.xmp);
            }
            0xee if body.starts_with(b"Adobe") => self.adobe = body.get(11).copied().or(self.adobe),
            _ => {}
        }
    }

    fn huffman(&mut self, mut body: &[u8]) -> Result<(), JpegError> {
        while let Some((&spec, rest)) = body.split_first() {
            let Some((counts, rest)) = rest.split_first_chunk::<16>() else {
                return invalid("a Huffman table is truncated");
            };
            let total: usize = counts.iter().map(|&c| usize::from(c)).sum();
            let (Some(symbols), true) = (rest.get(..total), total <= 256) else {
                return invalid("a Huffman table is truncated");
            };
            body = &rest[total..];
            let table = Table::new(counts, symbols)?;
            let (class, id) = (spec >> 4, usize::from(spec & 15));
            if class == 0 && !table.is_dc() {
                return invalid("a Huffman table for DC has a symbol above 15");
            }
            match (class, self.dc.get_mut(id), self.ac.get_mut(id)) {
                (0, Some(slot), _) | (1, _, Some(slot)) => *slot = Some(table),
                _ => return invalid("a Huffman table has an invalid class or index"),
            }
        }
        Ok(())
    }

    fn quantization(&mut self, mut body: &[u8]) -> Result<(), JpegError> {
        while let Some((&spec, rest)) = body.split_first() {
            let size = if spec >> 4 == 0 { 1 } else { 2 };
            let (Some(values), Some(slot)) =
                (rest.get(..64 * size), self.quantization.get_mut(usize::from(spec & 15)))
            else {
                return invalid("a quantization table is truncated or has an index above 3");
            };
            body = &rest[64 * size..];
            let mut table = [0; 64];
            for (value, &natural) in values.chunks(size).zip(&ZIGZAG) {
                table[usize::from(natural)] = value.iter().fold(0, |sum, &byte| sum << 8 | u16::from(byte));
            }
            *slot = Some(table);
        }
        Ok(())
    }

    fn frame(&mut self, body: &[u8], progressive: bool) -> Result<(), JpegError> {
        if self.frame.is_some() {
            return invalid("the file has two frames");
        }
        let Some((&[bits, h1, h0, w1, w0, count], components)) = body.split_first_chunk::<6>() else {
            return invalid("the frame header is truncated");
        };
        if bits != 8 {
            return invalid("only 8 bits per sample are supported");
        }
        let (width, height) =
            (usize::from(u16::from_be_bytes([w1, w0])), usize::from(u16::from_be_bytes([h1, h0])));
        let specs = components.as_chunks::<3>();
        if !matches!(count, 1 | 3 | 4) || specs.0.len() != usize::from(count) || !specs.1.is_empty() {
            return invalid("expected 1, 3 or 4 components");
        }
        let sampling = |[_, hv, _]: &[u8; 3]| (usize::from(hv >> 4), usize::from(hv & 15));
        let factors: Vec<_> = specs.0.iter().map(sampling).collect();
        let max = factors.iter().fold((0, 0), |max, s| (s.0.max(max.0), s.1.max(max.1)));
        if factors
            .iter()
            .any(|&(h, v)| !(1..=4).contains(&h) || !(1..=4).contains(&v) || max.0 % h != 0 || max.1 % v != 0)
        {
            return invalid("unsupported sampling factors");
        }
        let mcus = (width.div_ceil(8 * max.0), height.div_ceil(8 * max.1));
        let components: Vec<Component> = specs
            .0
            .iter()
            .zip(&factors)
            .map(|(&[id, _, table], &sampling)| Component {
                id,
                plane: Plane {
                    samples: Vec::new(),
                    stride: 8 * mcus.0 * sampling.0,
                    width: (width * sampling.0).div_ceil(max.0),
                    height: (height * sampling.1).div_ceil(max.1),
                    sampling,
                },
                needed: Region { columns: 0..usize::MAX, rows: 0..usize::MAX },
                table: usize::from(table),
                quantization: [0; 64],
                seen: false,
                blocks_per_row: mcus.0 * sampling.0,
                blocks: Vec::new(),
            })
            .collect();
        let blocks: usize = components.iter().map(|c| c.blocks_per_row * mcus.1 * c.plane.sampling.1).sum();
        let kept = if progressive { 64 * size_of::<i16>() } else { 0 };
        self.header.memory = blocks * (64 + kept) + 3 * width * height;
        (self.header.width, self.header.height) = (width, height);
        self.frame = Some(Frame { width, height, progressive, components, max, mcus });
        Ok(())
    }

    fn scan(&mut self) -> Result<(), JpegError> {
        let body = self.body()?;
        let Some(mut frame) = self.frame.take() else { return invalid("a scan precedes the frame header") };
        let scan = self.scan_header(body, &frame)?;
        let blocks = |c: &Component| c.blocks_per_row * frame.mcus.1 * c.plane.sampling.1;
        let total: usize = frame.components.iter().map(blocks).sum();
        // Every block takes at least one bit in the scan with its DC coefficient.
        if total > self.data.len() * 8 {
            return invalid("the file is truncated");
        }
        // A few bits can skip many blocks. Counting blocks bounds the time by the file size; real files stay far below.
        self.scans += 1;
        self.work += total;
        if self.scans > MAX_SCANS || self.work > (24 << 20) + 16 * self.data.len() {
            return invalid("the file has too many scans");
        }
        if self.scans == 1 {
            for component in &mut frame.components {
                let rows = frame.mcus.1 * component.plane.sampling.1;
                component.plane.samples = vec![0; rows * 8 * component.plane.stride];
                // A component of a sequential file comes in one scan, so its blocks are decoded to samples at once.
                let kept = if frame.progressive { rows * component.blocks_per_row } else { 0 };
                component.blocks = vec![[0; 64]; kept];
            }
        }
        for member in &scan.members {
            let component = &mut frame.components[member.component];
            if !component.seen {
                component.quantization = self
                    .quantization
                    .get(component.table)
                    .and_then(|table| *table)
                    .ok_or(JpegError("a component refers to a missing quantization table"))?;
                component.seen = true;
            } else if !frame.progressive {
                return invalid("a component occurs in two scans");
            }
        }
        self.position = scan.read(&mut frame, self.data, self.position)? - 1;
        self.frame = Some(frame);
        Ok(())
    }

    fn scan_header(&self, body: &[u8], frame: &Frame) -> Result<Scan, JpegError> {
        let Some((&count, rest)) = body.split_first() else { return invalid("a scan header is truncated") };
        let Some((specs, &[first, last, bits])) = rest.split_at_checked(2 * usize::from(count)) else {
            return invalid("a scan header has an invalid length");
        };
        let mut members: Vec<Member> = Vec::new();
        for &[id, tables] in specs.as_chunks::<2>().0 {
            let component = frame.components.iter().position(|c| c.id == id);
            let Some(component) = component.filter(|c| members.iter().all(|m| m.component != *c)) else {
                return invalid("a scan refers to a missing component, or to one twice");
            };
            let table = |tables: &[Option<Table>; 4], id: u8| tables.get(usize::from(id)).cloned().flatten();
            members.push(Member {
                component,
                dc: table(&self.dc, tables >> 4),
                ac: table(&self.ac, tables & 15),
            });
        }
        let in_mcu = |m: &Member| {
            let (h, v) = frame.components[m.component].plane.sampling;
            h * v
        };
        if members.is_empty() || members.len() > 1 && members.iter().map(in_mcu).sum::<usize>() > 10 {
            return invalid("a scan has no components or more than ten blocks per MCU");
        }
        let (first, last) = (usize::from(first), usize::from(last));
        let (high, low) = (u32::from(bits >> 4), u32::from(bits & 15));
        let known = !frame.progressive || members.iter().all(|m| frame.components[m.component].seen);
        let valid = match first {
            0 => last == 0 && (known || high == 0),
            // AC coefficients follow the DC coefficient of their block.
            _ => first <= last && last < 64 && members.len() == 1 && known,
        };
        if frame.progressive && (!valid || low > 13 || high != 0 && high != low + 1) {
            return invalid("the progressive scans are out of order");
        }
        Ok(Scan { members, band: (first, last), high, low, restart: self.restart })
    }
}
