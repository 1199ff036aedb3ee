//! Hostile images are rejected or decoded within limits of time and memory. A single test, so that the process's peak memory
//! is that of one image.

use std::time::{Duration, Instant};

use resnet_image::{Preprocess, decode};

fn chunk(kind: &[u8; 4], data: &[u8]) -> Vec<u8> {
    let crc = kind.iter().chain(data).fold(!0u32, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| crc >> 1 ^ if crc & 1 == 1 { 0xedb8_8320 } else { 0 })
    });
    [&(data.len() as u32).to_be_bytes()[..], kind, data, &(!crc).to_be_bytes()].concat()
}

/// `times` zero bytes as a zlib stream of minimum size: 258 bytes per 13 bits.
fn zeros(times: usize) -> Vec<u8> {
    let mut bits = Bits::default();
    // Final block with fixed codes; a literal zero.
    bits.put(0b1, 1);
    bits.put(0b01, 2);
    bits.put_code(0b0011_0000, 8);
    for _ in 0..(times - 1) / 258 {
        // Length 258 (code 285) at distance 1 (code 0).
        bits.put_code(0b1100_0101, 8);
        bits.put_code(0, 5);
    }
    for _ in 0..(times - 1) % 258 {
        bits.put_code(0b0011_0000, 8);
    }
    bits.put_code(0, 7);
    let mut adler = (1u64, 0u64);
    adler.1 = (times as u64) % 65_521;
    adler.0 %= 65_521;
    let checksum = (adler.1 << 16 | adler.0) as u32;
    [&[0x78, 0x01][..], &bits.bytes, &checksum.to_be_bytes()].concat()
}

#[derive(Default)]
struct Bits {
    bytes: Vec<u8>,
    used: u32,
}

impl Bits {
    fn put(&mut self, value: u32, length: u32) {
        for i in 0..length {
            if self.used.is_multiple_of(8) {
                self.bytes.push(0);
            }
            if let Some(last) = self.bytes.last_mut() {
                *last |= ((value >> i & 1) as u8) << (self.used % 8);
            }
            self.used += 1;
        }
    }

    /// Huffman codes are written from the highest bit.
    fn put_code(&mut self, code: u32, length: u32) {
        self.put(code.reverse_bits() >> (32 - length), length);
    }
}

struct Png<'a> {
    size: (u32, u32),
    /// Bit depth, color type, compression, filter, interlacing.
    form: [u8; 5],
    before: &'a [u8],
    data: Vec<u8>,
}

impl Default for Png<'_> {
    fn default() -> Self {
        Png { size: (1, 1), form: [8, 2, 0, 0, 0], before: b"", data: zeros(4) }
    }
}

impl Png<'_> {
    fn bytes(&self) -> Vec<u8> {
        let sizes = [self.size.0.to_be_bytes(), self.size.1.to_be_bytes()].concat();
        let header = [&sizes[..], &self.form].concat();
        let signature = b"\x89PNG\r\n\x1a\n";
        [
            signature,
            &chunk(b"IHDR", &header)[..],
            self.before,
            &chunk(b"IDAT", &self.data),
            &chunk(b"IEND", b""),
        ]
        .concat()
    }
}

fn png(size: (u32, u32), data: Vec<u8>) -> Vec<u8> {
    Png { size, data, ..Png::default() }.bytes()
}

fn png_with(before: &[u8]) -> Vec<u8> {
    Png { before, ..Png::default() }.bytes()
}

fn replaced(bytes: &[u8], old: &[u8], new: &[u8]) -> Vec<u8> {
    let Some(at) = bytes.windows(old.len()).position(|w| w == old) else { return vec![] };
    [&bytes[..at], new, &bytes[at + old.len()..]].concat()
}

/// A JPEG of `size` with one component and the given frame marker; `scans` follows the tables.
fn jpeg(frame: u8, size: (u16, u16), scans: &[u8]) -> Vec<u8> {
    jpeg_of(1, frame, size, scans)
}

/// A JPEG with `components` components, numbered from 1.
fn jpeg_of(components: u8, frame: u8, size: (u16, u16), scans: &[u8]) -> Vec<u8> {
    let mut out = b"\xff\xd8\xff\xdb\0\x43\0".to_vec();
    out.extend([1; 64]);
    out.extend([0xff, frame, 0, 8 + 3 * components, 8]);
    out.extend(size.1.to_be_bytes());
    out.extend(size.0.to_be_bytes());
    out.push(components);
    (1..=components).for_each(|id| out.extend([id, 0x11, 0]));
    // Codes 0 and 10: DC differences of 0 and 1 bit; AC end of this block and end of up to 2^15 blocks.
    for (class, long) in [(0, 1), (0x10, 0xe0)] {
        out.extend([0xff, 0xc4, 0, 21, class, 1, 1]);
        out.extend([0; 14]);
        out.extend([0, long]);
    }
    out.extend(scans);
    out.extend([0xff, 0xd9]);
    out
}

/// A scan of component 1: header for the coefficients `band` with bits `approximation`, and data.
fn scan(band: [u8; 2], approximation: u8, data: &[u8]) -> Vec<u8> {
    scan_of(1, band, approximation, data)
}

fn scan_of(component: u8, band: [u8; 2], approximation: u8, data: &[u8]) -> Vec<u8> {
    [&[0xff, 0xda, 0, 8, 1, component, 0, band[0], band[1], approximation], data].concat()
}

fn exif(data: &[u8]) -> Vec<u8> {
    let body = [b"Exif\0\0", data].concat();
    [&[0xff, 0xe1], &(body.len() as u16 + 2).to_be_bytes()[..], &body].concat()
}

fn gif(size: [u16; 2], frame: [u16; 2], frames: usize) -> Vec<u8> {
    let numbers = |values: &[u16]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    let mut out = b"GIF89a".to_vec();
    out.extend(numbers(&size));
    out.extend(b"\x80\0\0\0\0\0\xff\xff\xff");
    for _ in 0..frames {
        out.push(b',');
        out.extend(numbers(&[0, 0, frame[0], frame[1]]));
        out.extend(b"\0\x02\x02\x44\x01\0");
    }
    out.push(b';');
    out
}

struct Bmp {
    size: (i32, i32),
    bits: u16,
    compression: u32,
    colors: u32,
    data: Vec<u8>,
}

impl Default for Bmp {
    fn default() -> Self {
        Bmp { size: (1, 1), bits: 24, compression: 0, colors: 0, data: vec![0; 4] }
    }
}

impl Bmp {
    fn bytes(&self) -> Vec<u8> {
        let length = self.data.len() as u32;
        let mut out = b"BM".to_vec();
        for number in [54 + length, 0, 54, 40, self.size.0 as u32, self.size.1 as u32] {
            out.extend(number.to_le_bytes());
        }
        out.extend(1u16.to_le_bytes());
        out.extend(self.bits.to_le_bytes());
        for number in [self.compression, length, 0, 0, self.colors, 0] {
            out.extend(number.to_le_bytes());
        }
        out.extend(&self.data);
        out
    }
}

/// The expected result.
enum Expected {
    /// An image of this width and height.
    Decoded(u32, u32),
    /// An error that contains this text.
    Rejected(&'static str),
}
use Expected::{Decoded, Rejected};

fn suite() -> Vec<(&'static str, Vec<u8>, Expected)> {
    let zip = b"PK\x03\x04\x14\0\0\0\0\0".to_vec();
    let bomb = |kind: &[u8; 4]| chunk(kind, &[b"k\0\0", &zeros(100_000_000)[..]].concat());
    let tiff = |orientation: u16| {
        [b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0", &orientation.to_le_bytes()[..], b"\0\0\x08\0\0\0"]
            .concat()
    };
    // DC difference 0 and end of block are two zero bits.
    let pixel = jpeg(0xc0, (1, 1), &scan([0, 63], 0, &[0x3f]));
    let turned = |orientation| [&pixel[..2], &exif(&tiff(orientation)), &pixel[2..]].concat();
    // 450 × 450 blocks; DC takes one bit per block, AC one bit for many blocks.
    let progressive = |times: usize| {
        let first = scan([0, 0], 0x01, &[0; 25_313]);
        let empty = scan([1, 63], 0x01, &b"\xbf\xff\0".repeat(7));
        jpeg(0xc2, (3600, 3600), &[first, empty.repeat(times)].concat())
    };
    // 500 × 500 blocks of two bits in each of three scans.
    let separate: Vec<u8> = (1..=3).flat_map(|id| scan_of(id, [0, 63], 0, &[0; 62_500])).collect();
    let frame = &jpeg(0xc0, (1, 1), b"")[71..84];
    vec![
        ("I01 huge PNG", png((50_000, 50_000), zeros(1)), Rejected("50000×50000 pixels")),
        ("I01 large PNG of few bytes", png((10_000, 10_000), zeros(100)), Rejected("truncated")),
        ("I02 IDAT bomb", png((8, 8), zeros(100_000_000)), Decoded(8, 8)),
        ("I03 zTXt bomb", png_with(&bomb(b"zTXt")), Decoded(1, 1)),
        ("I03 iCCP bomb", png_with(&bomb(b"iCCP")), Decoded(1, 1)),
        ("I04 wrong CRC", replaced(&png_with(b""), b"IHDR", b"IHDS"), Rejected("damaged or unsupported PNG")),
        ("I04 two IHDR", png_with(&chunk(b"IHDR", &[0; 13])), Rejected("damaged or unsupported PNG")),
        ("I04 no PLTE", Png { form: [8, 3, 0, 0, 0], ..Png::default() }.bytes(), Rejected("alette")),
        ("I04 chunk of 2 GiB", png_with(b"\x7f\xff\xff\xfftEXt"), Rejected("damaged or unsupported PNG")),
        ("I04 APNG of 10^6 frames", png_with(&chunk(b"acTL", b"\0\x0f\x42\x40\0\0\0\0")), Decoded(1, 1)),
        ("I04 interlaced", Png { form: [8, 2, 0, 0, 1], ..Png::default() }.bytes(), Decoded(1, 1)),
        ("I05 0×0", png((0, 0), zeros(1)), Rejected("0×0 pixels")),
        ("I05 0×1", png((0, 1), zeros(1)), Rejected("0×1 pixels")),
        ("I05 1×0", png((1, 0), zeros(1)), Rejected("1×0 pixels")),
        ("I05 65535×1", png((65_535, 1), zeros(1 + 3 * 65_535)), Rejected("65535×1 pixels")),
        ("I05 1×100000", png((1, 100_000), zeros(400_000)), Rejected("1×100000 pixels")),
        ("I05 16384×1", png((16_384, 1), zeros(1 + 3 * 16_384)), Decoded(16_384, 1)),
        ("I06 1×60000", png((1, 60_000), zeros(240_000)), Rejected("1×60000 pixels")),
        ("I06 1×16384", png((1, 16_384), zeros(4 * 16_384)), Decoded(1, 16_384)),
        ("I07 whole", pixel.clone(), Decoded(1, 1)),
        ("I07 no frame", replaced(&pixel, frame, b""), Rejected("precedes the frame")),
        ("I07 two frames", replaced(&pixel, frame, &frame.repeat(2)), Rejected("two frames")),
        (
            "I07 too many codes",
            replaced(&pixel, b"\0\x15\0\x01\x01", b"\0\x15\0\x02\x02"),
            Rejected("Huffman table"),
        ),
        ("I07 65500×65500", jpeg(0xc0, (65_500, 65_500), b""), Rejected("65500×65500 pixels")),
        ("I07 large and empty", jpeg(0xc0, (9_000, 9_000), &scan([0, 63], 0, &[0])), Rejected("truncated")),
        ("I07 one scan per component", jpeg_of(3, 0xc0, (4000, 4000), &separate), Decoded(4000, 4000)),
        ("I07 20 scans", progressive(19), Decoded(3600, 3600)),
        ("I07 200 scans of little", progressive(199), Rejected("too many scans")),
        (
            "I07 10^4 scans",
            [&pixel[..pixel.len() - 2], &scan([0, 63], 0, &[0x3f]).repeat(10_000)].concat(),
            Rejected("occurs in two scans"),
        ),
        (
            "I07 10^4 scans, progressive",
            jpeg(0xc2, (1, 1), &scan([0, 0], 0, &[0x3f]).repeat(10_000)),
            Rejected("too many scans"),
        ),
        ("I08 orientation 9", turned(9), Decoded(1, 1)),
        ("I08 orientation 65535", turned(65_535), Decoded(1, 1)),
        ("I08 64 KiB", [&pixel[..2], &exif(&[b'I'; 65_000]), &pixel[2..]].concat(), Decoded(1, 1)),
        ("I09 10^5 frames", gif([1, 1], [1, 1], 100_000), Decoded(1, 1)),
        ("I09 frame exceeds its canvas", gif([1, 1], [65_535, 65_535], 1), Rejected("65535×65535 pixels")),
        ("I09 65535×65535", gif([65_535, 65_535], [65_535, 65_535], 1), Rejected("65535×65535 pixels")),
        (
            "I09 large and empty",
            gif([10_000, 10_000], [10_000, 10_000], 1),
            Rejected("damaged or unsupported GIF"),
        ),
        ("I10 height -2^31", Bmp { size: (1, i32::MIN), ..Bmp::default() }.bytes(), Rejected("BMP")),
        ("I10 33 bits", Bmp { bits: 33, ..Bmp::default() }.bytes(), Rejected("BMP")),
        ("I10 2^31 colors", Bmp { bits: 8, colors: 1 << 31, ..Bmp::default() }.bytes(), Rejected("BMP")),
        (
            "I10 run past the end",
            Bmp { size: (100, 100), bits: 8, compression: 1, data: b"\xff\x01".repeat(9), colors: 0 }.bytes(),
            Rejected("BMP"),
        ),
        ("I10 2^31-1", Bmp { size: (i32::MAX, i32::MAX), ..Bmp::default() }.bytes(), Rejected("BMP")),
        ("I11 TIFF", b"II*\0\x0c\0\0\0\0\0\0\0\xff\xff".to_vec(), Rejected("found TIFF")),
        (
            "I12 wrong RIFF size",
            b"RIFF\xff\xff\xff\xffWEBPVP8 \x0a\0\0\0\0\0\0\0\0\0\0\0\0\0".to_vec(),
            Rejected("WebP"),
        ),
        (
            "I12 2^24 a side",
            b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0\xff\xff\xff\xff\xff\xff".to_vec(),
            Rejected("WebP"),
        ),
        (
            "I12 bad codes",
            [b"RIFF\x1a\0\0\0WEBPVP8L\x0e\0\0\0\x2f", &[0xff; 13][..]].concat(),
            Rejected("WebP"),
        ),
        ("I13 Netpbm", b"P6 99999 99999 255\n".to_vec(), Rejected("found Netpbm")),
        ("I13 HDR", b"#?RADIANCE\n\n-Y 99999 +X 99999\n".to_vec(), Rejected("found Radiance HDR")),
        ("I13 SVG", b"<svg xmlns=\"http://www.w3.org/2000/svg\"/>".to_vec(), Rejected("found SVG")),
        (
            "I14 ICO with a PNG",
            [b"\0\0\x01\0\x01\0", &png((1, 1), zeros(4))[..]].concat(),
            Rejected("found ICO"),
        ),
        (
            "I15 16 bits",
            Png { form: [16, 2, 0, 0, 0], data: zeros(7), ..Png::default() }.bytes(),
            Decoded(1, 1),
        ),
        (
            "I15 gray and alpha",
            Png { form: [8, 4, 0, 0, 0], data: zeros(3), ..Png::default() }.bytes(),
            Decoded(1, 1),
        ),
        ("I16 nothing", vec![], Rejected("found an empty file")),
        ("I16 one byte", vec![0x89], Rejected("found the magic bytes 89")),
        ("I16 HTML", b"<!DOCTYPE html><html>404".to_vec(), Rejected("found HTML")),
        ("I16 text", b"a text file named .png\n".to_vec(), Rejected("found text")),
        ("I16 zip", zip, Rejected("found a zip archive")),
    ]
}

/// Returns the peak memory of this process since `reset_peak` in bytes, or `None` if the system does not report it.
fn peak() -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<usize>().ok()? << 10)
}

fn reset_peak() -> bool {
    std::fs::write("/proc/self/clear_refs", "5").is_ok()
}

/// Maximum time per image.
const LIMIT: Duration = Duration::from_secs(2);

fn time<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let start = Instant::now();
    (work(), start.elapsed())
}

#[test]
fn hostile_images_are_rejected_or_decoded_within_limits() {
    let preprocess = Preprocess::torchvision(256, 224);
    for (name, bytes, expected) in suite() {
        let measured = reset_peak();
        let before = peak();
        let (result, elapsed) = time(|| decode::decode(&bytes));
        if let (true, Some(before), Some(after)) = (measured, before, peak()) {
            let pixels = result.as_ref().map_or(0, |image| image.as_raw().len());
            // Samples and pixels; in addition buffers, and the coefficients of progressive files.
            let buffers = if name == "I07 one scan per component" { 8 << 20 } else { 32 << 20 };
            let used = after - before;
            assert!(used <= buffers + 2 * pixels, "{name}: {} MiB", used >> 20);
        }
        // The machine may be busy.
        let quick = elapsed < LIMIT || (0..2).any(|_| time(|| decode::decode(&bytes)).1 < LIMIT);
        assert!(quick, "{name}: {elapsed:?}");
        match (result, expected) {
            (Ok(image), Decoded(width, height)) => {
                assert_eq!(image.dimensions(), (width, height), "{name}");
                assert_eq!(preprocess.apply(&image).unwrap().len(), 3 * 224 * 224, "{name}");
            }
            (Err(error), Rejected(text)) => {
                let error = error.to_string();
                assert!(error.contains(text) && !error.contains("the decoder failed"), "{name}: {error}");
                assert!(!error.chars().any(char::is_control), "{name}: {error:?}");
            }
            (Ok(image), Rejected(_)) => panic!("{name} was decoded: {:?}", image.dimensions()),
            (Err(error), Decoded(..)) => panic!("{name}: {error}"),
        }
    }
}
