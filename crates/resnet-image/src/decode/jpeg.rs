//! JPEG, bit for bit as libjpeg-turbo decodes it, and so as Pillow sees it.
//!
//! The standard leaves the rounding of the inverse transform and all of the upsampling to the decoder, and decoders
//! differ by up to eight grey levels, which is more than a network's preprocessing may. Here are the integers of the
//! Independent JPEG Group's accurate transform, its triangle upsampling and its colour conversion. Baseline, extended
//! and progressive files of 8 bits with Huffman codes; the rest (arithmetic coding, 12 bits, lossless) is refused,
//! and so are damaged files, which libjpeg-turbo fills up with grey.

use std::ops::Range;

mod color;
mod huffman;
mod idct;
mod scan;

use color::Space;
use huffman::Table;
use idct::Block;
use scan::{Member, Scan, ZIGZAG};

/// What is wrong with a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Corrupt(pub(super) &'static str);

fn corrupt<T>(what: &'static str) -> Result<T, Corrupt> {
    Err(Corrupt(what))
}

/// More scans than any encoder writes: 63 coefficients of four components in one scan each.
const MAX_SCANS: usize = 256;

/// One component's samples.
struct Plane {
    samples: Vec<u8>,
    /// From row to row.
    stride: usize,
    /// Samples in a row, without those that only fill up the last block.
    width: usize,
    height: usize,
    /// Samples in an MCU in blocks, across and down.
    sampling: (usize, usize),
}

impl Plane {
    fn row(&self, y: usize) -> &[u8] {
        &self.samples[y * self.stride..][..self.width]
    }
}

/// A part of a picture in pixels: the first and one past the last column, likewise rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Region {
    pub(super) columns: Range<usize>,
    pub(super) rows: Range<usize>,
}

struct Component {
    id: u8,
    plane: Plane,
    /// The blocks whose samples are wanted.
    wanted: Region,
    /// Which of the four quantisation tables.
    table: usize,
    /// In natural order; those of the first scan with this component.
    quantisation: [u16; 64],
    /// Whether a scan had this component.
    seen: bool,
    /// Blocks in a row, including those that only fill up the last MCU.
    across: usize,
    /// Coefficients of all blocks, kept if they come in several scans.
    blocks: Vec<Block>,
}

struct Frame {
    width: usize,
    height: usize,
    progressive: bool,
    components: Vec<Component>,
    /// Largest sampling factors, across and down.
    max: (usize, usize),
    /// MCUs across and down.
    mcus: (usize, usize),
}

impl Frame {
    /// Limits the work to `part`.
    fn want(&mut self, part: &Region) {
        // Upsampling looks at a sample's neighbours.
        let blocks = |pixels: &Range<usize>, max: usize, sampling: usize| {
            let first = (pixels.start * sampling / max).saturating_sub(1) / 8;
            first..((pixels.end * sampling).div_ceil(max) + 1).div_ceil(8)
        };
        for component in &mut self.components {
            let (across, down) = component.plane.sampling;
            component.wanted = Region {
                columns: blocks(&part.columns, self.max.0, across),
                rows: blocks(&part.rows, self.max.1, down),
            };
        }
    }
}

/// What a header says, before any pixel is decoded.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Header {
    pub(super) width: usize,
    pub(super) height: usize,
    /// Bytes that decoding needs at once, samples and pixels included.
    pub(super) memory: usize,
}

/// A decoded file.
pub(super) struct Picture<'a> {
    /// Three bytes a pixel, of the part that was asked for.
    pub(super) rgb: Vec<u8>,
    /// A TIFF structure, from the APP1 segment of that name.
    pub(super) exif: Option<&'a [u8]>,
    pub(super) xmp: Option<&'a [u8]>,
}

/// Reads a JPEG file.
pub(super) struct Decoder<'a> {
    data: &'a [u8],
    position: usize,
    header: Header,
    exif: Option<&'a [u8]>,
    xmp: Option<&'a [u8]>,
    frame: Option<Frame>,
    quantisation: [Option<[u16; 64]>; 4],
    dc: [Option<Table>; 4],
    ac: [Option<Table>; 4],
    restart: usize,
    jfif: bool,
    /// The colour transform that Adobe's APP14 names.
    adobe: Option<u8>,
    scans: usize,
    /// Blocks of all scans so far.
    work: usize,
}

impl<'a> Decoder<'a> {
    /// Reads up to the frame's header, or fails.
    pub(super) fn new(data: &'a [u8]) -> Result<Decoder<'a>, Corrupt> {
        let mut decoder = Decoder {
            data,
            position: 2,
            header: Header::default(),
            exif: None,
            xmp: None,
            frame: None,
            quantisation: [const { None }; 4],
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
                0xd9 => return corrupt("the file holds no picture"),
                0xda => return corrupt("a scan stands before the frame"),
                code => decoder.segment(code)?,
            }
        }
        Ok(decoder)
    }

    pub(super) fn header(&self) -> Header {
        self.header
    }

    /// EXIF and XMP, if they stand before the first scan, as the standards say.
    pub(super) fn texts(&mut self) -> Result<[Option<&'a [u8]>; 2], Corrupt> {
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

    /// Decodes the rest, or what `part` of the picture needs of it; the part must not be empty.
    pub(super) fn decode(mut self, part: Option<Region>) -> Result<Picture<'a>, Corrupt> {
        if let (Some(part), Some(frame)) = (&part, &mut self.frame) {
            frame.want(part);
        }
        loop {
            match self.marker()? {
                0xd9 => break,
                0xda => self.scan()?,
                code => self.segment(code)?,
            }
        }
        let mut frame = self.frame.take().ok_or(Corrupt("the file holds no picture"))?;
        if frame.components.iter().any(|c| !c.seen) {
            return corrupt("a component is missing");
        }
        frame.components.iter_mut().for_each(Component::finish);
        let space = self.space(&frame);
        let planes: Vec<Plane> = frame.components.into_iter().map(|c| c.plane).collect();
        let whole = Region { columns: 0..frame.width, rows: 0..frame.height };
        let rgb = color::to_rgb(&planes, space, &part.unwrap_or(whole), frame.max);
        Ok(Picture { rgb, exif: self.exif, xmp: self.xmp })
    }

    /// libjpeg's guess of what the components are.
    fn space(&self, frame: &Frame) -> Space {
        let ids: Vec<u8> = frame.components.iter().map(|c| c.id).collect();
        match (&ids[..], self.jfif, self.adobe) {
            ([_], ..) => Space::Grey,
            ([_, _, _], true, _) => Space::YCbCr,
            ([_, _, _], false, Some(0)) => Space::Rgb,
            ([b'R', b'G', b'B'], false, None) => Space::Rgb,
            ([_, _, _], ..) => Space::YCbCr,
            (_, _, None | Some(0)) => Space::Cmyk,
            _ => Space::Ycck,
        }
    }

    /// The next marker's code. Between segments libjpeg passes over anything.
    fn marker(&mut self) -> Result<u8, Corrupt> {
        loop {
            let rest = self.data.get(self.position..).unwrap_or_default();
            let Some(at) = rest.iter().position(|&b| b == 0xff) else {
                return corrupt("the file is truncated");
            };
            let Some(fill) = rest[at..].iter().position(|&b| b != 0xff) else {
                return corrupt("the file is truncated");
            };
            self.position += at + fill + 1;
            match rest[at + fill] {
                // A stuffed zero, or a marker without a segment.
                0 | 0x01 | 0xd0..=0xd7 => {}
                code => return Ok(code),
            }
        }
    }

    /// The segment at the current position, which is passed over.
    fn body(&mut self) -> Result<&'a [u8], Corrupt> {
        let rest = self.data.get(self.position..).unwrap_or_default();
        let Some((length, _)) = rest.split_first_chunk::<2>() else {
            return corrupt("the file is truncated");
        };
        let length = usize::from(u16::from_be_bytes(*length));
        if length < 2 {
            return corrupt("a segment has no length");
        }
        let Some(body) = rest.get(2..length) else { return corrupt("the file is truncated") };
        self.position += length;
        Ok(body)
    }

    fn segment(&mut self, code: u8) -> Result<(), Corrupt> {
        match code {
            0xd8 => corrupt("a second file begins within the file"),
            0xc4 => {
                let body = self.body()?;
                self.huffman(body)
            }
            0xdb => {
                let body = self.body()?;
                self.quantisation(body)
            }
            0xdd => match *self.body()? {
                [high, low] => {
                    self.restart = usize::from(u16::from_be_bytes([high, low]));
                    Ok(())
                }
                _ => corrupt("the restart interval has a wrong length"),
            },
            0xc0..=0xc2 => {
                let body = self.body()?;
                self.frame(body, code == 0xc2)
            }
            0xc3 | 0xc7 | 0xcb | 0xcf => corrupt("lossless JPEG is not supported"),
            0xc5 | 0xc6 | 0xcd | 0xce => corrupt("hierarchical JPEG is not supported"),
            0xc9 | 0xca => corrupt("arithmetic coding is not supported"),
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

    fn huffman(&mut self, mut body: &[u8]) -> Result<(), Corrupt> {
        while let Some((&which, rest)) = body.split_first() {
            let Some((counts, rest)) = rest.split_first_chunk::<16>() else {
                return corrupt("a Huffman table is cut off");
            };
            let total: usize = counts.iter().map(|&c| usize::from(c)).sum();
            let (Some(symbols), true) = (rest.get(..total), total <= 256) else {
                return corrupt("a Huffman table is cut off");
            };
            body = &rest[total..];
            let table = Table::new(counts, symbols)?;
            let (class, id) = (which >> 4, usize::from(which & 15));
            if class == 0 && !table.is_dc() {
                return corrupt("a Huffman table for DC has a symbol above 15");
            }
            match (class, self.dc.get_mut(id), self.ac.get_mut(id)) {
                (0, Some(slot), _) | (1, _, Some(slot)) => *slot = Some(table),
                _ => return corrupt("there is no Huffman table of that number"),
            }
        }
        Ok(())
    }

    fn quantisation(&mut self, mut body: &[u8]) -> Result<(), Corrupt> {
        while let Some((&which, rest)) = body.split_first() {
            let size = if which >> 4 == 0 { 1 } else { 2 };
            let (Some(values), Some(slot)) =
                (rest.get(..64 * size), self.quantisation.get_mut(usize::from(which & 15)))
            else {
                return corrupt("a quantisation table is cut off or has a number above 3");
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

    fn frame(&mut self, body: &[u8], progressive: bool) -> Result<(), Corrupt> {
        if self.frame.is_some() {
            return corrupt("the file has two frames");
        }
        let Some((&[bits, h1, h0, w1, w0, count], components)) = body.split_first_chunk::<6>() else {
            return corrupt("the frame is cut off");
        };
        if bits != 8 {
            return corrupt("only 8 bits a sample are supported");
        }
        let (width, height) =
            (usize::from(u16::from_be_bytes([w1, w0])), usize::from(u16::from_be_bytes([h1, h0])));
        let specs = components.as_chunks::<3>();
        if !matches!(count, 1 | 3 | 4) || specs.0.len() != usize::from(count) || !specs.1.is_empty() {
            return corrupt("the frame has neither 1, 3 nor 4 components");
        }
        let sampling = |[_, hv, _]: &[u8; 3]| (usize::from(hv >> 4), usize::from(hv & 15));
        let all: Vec<_> = specs.0.iter().map(sampling).collect();
        let max = all.iter().fold((0, 0), |max, s| (s.0.max(max.0), s.1.max(max.1)));
        if all
            .iter()
            .any(|&(h, v)| !(1..=4).contains(&h) || !(1..=4).contains(&v) || max.0 % h != 0 || max.1 % v != 0)
        {
            return corrupt("the sampling factors are not supported");
        }
        let mcus = (width.div_ceil(8 * max.0), height.div_ceil(8 * max.1));
        let components: Vec<Component> = specs
            .0
            .iter()
            .zip(&all)
            .map(|(&[id, _, table], &sampling)| Component {
                id,
                plane: Plane {
                    samples: Vec::new(),
                    stride: 8 * mcus.0 * sampling.0,
                    width: (width * sampling.0).div_ceil(max.0),
                    height: (height * sampling.1).div_ceil(max.1),
                    sampling,
                },
                wanted: Region { columns: 0..usize::MAX, rows: 0..usize::MAX },
                table: usize::from(table),
                quantisation: [0; 64],
                seen: false,
                across: mcus.0 * sampling.0,
                blocks: Vec::new(),
            })
            .collect();
        let blocks: usize = components.iter().map(|c| c.across * mcus.1 * c.plane.sampling.1).sum();
        let kept = if progressive { 64 * size_of::<i16>() } else { 0 };
        self.header.memory = blocks * (64 + kept) + 3 * width * height;
        (self.header.width, self.header.height) = (width, height);
        self.frame = Some(Frame { width, height, progressive, components, max, mcus });
        Ok(())
    }

    fn scan(&mut self) -> Result<(), Corrupt> {
        let body = self.body()?;
        let Some(mut frame) = self.frame.take() else { return corrupt("a scan stands before the frame") };
        let scan = self.scan_header(body, &frame)?;
        let blocks = |c: &Component| c.across * frame.mcus.1 * c.plane.sampling.1;
        let total: usize = frame.components.iter().map(blocks).sum();
        // Every block takes a bit at least, in the scan that sends its DC.
        if total > self.data.len() * 8 {
            return corrupt("the file is truncated");
        }
        // A scan may pass over many blocks with few bits; so that the time depends on the file's size, they are
        // counted. Real files stay far below.
        self.scans += 1;
        self.work += total;
        if self.scans > MAX_SCANS || self.work > (24 << 20) + 16 * self.data.len() {
            return corrupt("the file has too many scans");
        }
        if self.scans == 1 {
            let keep = frame.progressive || scan.members.len() < frame.components.len();
            for component in &mut frame.components {
                let rows = frame.mcus.1 * component.plane.sampling.1;
                component.plane.samples = vec![0; rows * 8 * component.plane.stride];
                component.blocks = vec![[0; 64]; if keep { rows * component.across } else { 0 }];
            }
        }
        for member in &scan.members {
            let component = &mut frame.components[member.component];
            if !component.seen {
                component.quantisation = self
                    .quantisation
                    .get(component.table)
                    .and_then(|table| *table)
                    .ok_or(Corrupt("a component names a quantisation table that is not there"))?;
                component.seen = true;
            } else if !frame.progressive {
                return corrupt("a component comes twice");
            }
        }
        self.position = scan.read(&mut frame, self.data, self.position)? - 1;
        self.frame = Some(frame);
        Ok(())
    }

    fn scan_header(&self, body: &[u8], frame: &Frame) -> Result<Scan, Corrupt> {
        let Some((&count, rest)) = body.split_first() else { return corrupt("a scan's header is cut off") };
        let Some((specs, &[first, last, bits])) = rest.split_at_checked(2 * usize::from(count)) else {
            return corrupt("a scan's header has a wrong length");
        };
        let mut members: Vec<Member> = Vec::new();
        for &[id, tables] in specs.as_chunks::<2>().0 {
            let component = frame.components.iter().position(|c| c.id == id);
            let Some(component) = component.filter(|c| members.iter().all(|m| m.component != *c)) else {
                return corrupt("a scan names a component that the frame lacks, or one twice");
            };
            let table = |tables: &[Option<Table>; 4], id: u8| tables.get(usize::from(id)).cloned().flatten();
            members.push(Member {
                component,
                dc: table(&self.dc, tables >> 4),
                ac: table(&self.ac, tables & 15),
            });
        }
        let in_mcu = |m: &Member| {
            let (across, down) = frame.components[m.component].plane.sampling;
            across * down
        };
        if members.is_empty() || members.len() > 1 && members.iter().map(in_mcu).sum::<usize>() > 10 {
            return corrupt("a scan has no component or more than ten blocks in an MCU");
        }
        let (first, last) = (usize::from(first), usize::from(last));
        let (high, low) = (u32::from(bits >> 4), u32::from(bits & 15));
        let known = !frame.progressive || members.iter().all(|m| frame.components[m.component].seen);
        let sound = match first {
            0 => last == 0 && (known || high == 0),
            // The coefficients of a block are there only once its DC was sent.
            _ => first <= last && last < 64 && members.len() == 1 && known,
        };
        if frame.progressive && (!sound || low > 13 || high != 0 && high != low + 1) {
            return corrupt("a scan's coefficients are out of order");
        }
        Ok(Scan { members, band: (first, last), high, low, restart: self.restart })
    }
}
