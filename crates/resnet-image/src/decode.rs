//! Decoding of image files to RGB, equal to Pillow's `exif_transpose` and `convert("RGB")`.
//!
//! Supports PNG, JPEG, WebP, BMP and the first frame of GIF, detected from magic bytes; the file name does not matter. Alpha is
//! dropped, not blended; palettes keep their colors where they are transparent; 16-bit color keeps the high byte,
//! 16-bit gray is clipped at 255 (both as in Pillow); CMYK is read inverted, as Adobe writes it; an EXIF (or
//! XMP) orientation from 1 to 8 is applied. JPEG is decoded bit for bit as by Pillow's libjpeg-turbo.
//!
//! Grayscale inputs need no separate decoder: Pillow's `convert("L")` of any of these formats equals that of its
//! `convert("RGB")`.
//!
//! Files come from anywhere: sizes are checked before anything is decoded, memory is limited, and a damaged file is an
//! error, never an image with gray areas.

mod gif;
mod jpeg;
mod orientation;
mod png;
mod sniff;

use std::fs::File;
use std::io::{self, Cursor, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, Limits, RgbImage};

use crate::{Error, Result};
pub use sniff::ImageFormat;

/// Usual file name extensions of the supported formats, lower case, for searching folders. Decoding does not depend on them.
pub const EXTENSIONS: &[&str] = &["png", "jpg", "jpeg", "jpe", "jfif", "webp", "bmp", "gif"];
/// Maximum file size in bytes.
pub const MAX_FILE: u64 = 64 << 20;
/// Maximum width and height in pixels.
pub const MAX_SIDE: usize = 16_384;
/// Maximum number of pixels.
pub const MAX_PIXELS: usize = 100_000_000;
/// Maximum memory for decoding one image, in bytes.
pub(crate) const MAX_MEMORY: usize = 512 << 20;
/// Maximum memory for the ancillary chunks of a PNG file, in bytes.
const MAX_CHUNKS: usize = 16 << 20;

/// Decoding options. The functions of this module use the defaults.
///
/// ```no_run
/// use resnet_image::decode::DecodeOptions;
///
/// let image = DecodeOptions { apply_orientation: false }.open("photo.jpg".as_ref())?;
/// # Ok::<(), resnet_image::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecodeOptions {
    /// Rotates and flips the image according to its EXIF or XMP orientation (default). The image loaders of torchvision
    /// and timm do not: set this to `false` to reproduce their evaluation of photos with an orientation.
    pub apply_orientation: bool,
}

impl Default for DecodeOptions {
    fn default() -> Self {
        DecodeOptions { apply_orientation: true }
    }
}

/// Reads and decodes the image file at `path`.
///
/// # Errors
///
/// [`Error::File`] with the path and an [`Error::Io`] if it is not a regular file or cannot be read, or an error of [`decode`].
pub fn open(path: &Path) -> Result<RgbImage> {
    DecodeOptions::default().open(path)
}

/// Reads and decodes the region `[x, y, width, height]` that `choose` returns for the image's `[width, height]`.
///
/// For a JPEG file, little more than the region is decoded, to the same values as in [`open`]; damage outside the
/// region may go unnoticed.
///
/// # Errors
///
/// The errors of [`open`], and [`Error::Region`] if the region is empty or not inside the image.
pub fn open_region(path: &Path, choose: impl FnOnce([u32; 2]) -> [u32; 4]) -> Result<RgbImage> {
    DecodeOptions::default().open_region(path, choose)
}

/// Decodes an image file in memory.
///
/// # Errors
///
/// [`Error::UnsupportedFormat`], [`Error::Damaged`], or the limit that the file exceeds.
pub fn decode(bytes: &[u8]) -> Result<RgbImage> {
    DecodeOptions::default().decode(bytes)
}

impl DecodeOptions {
    /// Like [`open`], with these options.
    ///
    /// # Errors
    ///
    /// As [`open`].
    pub fn open(self, path: &Path) -> Result<RgbImage> {
        read(path).and_then(|bytes| self.decode(&bytes)).map_err(|e| e.at(path))
    }

    /// Like [`open_region`], with these options.
    ///
    /// # Errors
    ///
    /// As [`open_region`].
    pub fn open_region(self, path: &Path, choose: impl FnOnce([u32; 2]) -> [u32; 4]) -> Result<RgbImage> {
        read(path).and_then(|bytes| self.decode_region(&bytes, choose)).map_err(|e| e.at(path))
    }

    /// Like [`decode`], with these options.
    ///
    /// # Errors
    ///
    /// As [`decode`].
    pub fn decode(self, bytes: &[u8]) -> Result<RgbImage> {
        check_file_size(bytes.len() as u64)?;
        let (mut image, orientation) = match sniff::format(bytes)? {
            ImageFormat::Jpeg => decode_jpeg(bytes)?,
            // The decoders of other crates are fuzzed too, but an update must not let a malformed file end a server's thread.
            format => catch_unwind(AssertUnwindSafe(|| decode_other(format, bytes)))
                .unwrap_or_else(|_| Err(damaged(format, "the decoder failed")))?,
        };
        if self.apply_orientation && orientation != Orientation::NoTransforms {
            let mut turned = DynamicImage::ImageRgb8(image);
            turned.apply_orientation(orientation);
            image = turned.into_rgb8();
        }
        Ok(image)
    }

    /// Like [`open_region`], of a file in memory.
    fn decode_region(self, bytes: &[u8], choose: impl FnOnce([u32; 2]) -> [u32; 4]) -> Result<RgbImage> {
        let checked = |width: u32, height: u32| {
            let region = choose([width, height]);
            let [x, y, w, h] = region.map(u64::from);
            let inside = x + w <= u64::from(width) && y + h <= u64::from(height);
            if w > 0 && h > 0 && inside { Ok(region) } else { Err(Error::Region { region, width, height }) }
        };
        if sniff::format(bytes)? == ImageFormat::Jpeg {
            let mut decoder = jpeg_header(bytes)?;
            let [exif, xmp] = decoder.metadata().map_err(|e| damaged(ImageFormat::Jpeg, e.0))?;
            if !self.apply_orientation || orientation::find(exif, xmp) == Orientation::NoTransforms {
                let header = decoder.header();
                let region = checked(header.width as u32, header.height as u32)?;
                return jpeg_region(decoder, region);
            }
        }
        let image = self.decode(bytes)?;
        let [x, y, width, height] = checked(image.width(), image.height())?;
        Ok(image::imageops::crop_imm(&image, x, y, width, height).to_image())
    }
}

/// The bytes of the regular file at `path`.
fn read(path: &Path) -> Result<Vec<u8>> {
    let metadata = std::fs::metadata(path)?;
    if metadata.is_dir() {
        return Err(io::Error::new(io::ErrorKind::IsADirectory, "is a directory, not a file").into());
    }
    // Opening a pipe could block, and reading a device never ends.
    if !metadata.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file").into());
    }
    check_file_size(metadata.len())?;
    let mut bytes = Vec::with_capacity(metadata.len() as usize);
    // The file may grow meanwhile.
    File::open(path)?.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn check_file_size(bytes: u64) -> Result<()> {
    if bytes > MAX_FILE { Err(Error::FileTooLarge { bytes }) } else { Ok(()) }
}

fn damaged(format: ImageFormat, reason: impl ToString) -> Error {
    // Decoders may quote bytes of the file.
    Error::Damaged { format, reason: escape(&reason.to_string()) }
}

/// Makes text from a file safe to print: escapes control and direction characters and truncates long texts.
#[doc(hidden)]
pub fn escape(text: &str) -> String {
    const MAX: usize = 120;
    let mut out = String::new();
    for c in text.chars() {
        if out.len() > MAX {
            out.push('…');
            break;
        }
        let hidden = c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}');
        if hidden { out.extend(c.escape_unicode()) } else { out.push(c) }
    }
    out
}

fn limits(memory: usize) -> Limits {
    let mut limits = Limits::default();
    limits.max_alloc = Some(memory as u64);
    limits
}

/// Checks the size of an image before memory is allocated for it.
fn check_size(width: usize, height: usize) -> Result<()> {
    if width == 0 || height == 0 {
        return Err(Error::EmptyImage { width, height });
    }
    if width > MAX_SIDE || height > MAX_SIDE || width * height > MAX_PIXELS {
        return Err(Error::ImageTooLarge { width, height });
    }
    Ok(())
}

fn check_memory(bytes: usize) -> Result<()> {
    if bytes > MAX_MEMORY { Err(Error::MemoryLimit { bytes }) } else { Ok(()) }
}

fn decode_jpeg(bytes: &[u8]) -> Result<(RgbImage, Orientation)> {
    let decoder = jpeg_header(bytes)?;
    let header = decoder.header();
    let decoded = decoder.decode(None).map_err(|e| damaged(ImageFormat::Jpeg, e.0))?;
    let orientation = orientation::find(decoded.exif, decoded.xmp);
    let image = RgbImage::from_raw(header.width as u32, header.height as u32, decoded.rgb);
    Ok((image.ok_or_else(|| damaged(ImageFormat::Jpeg, "the decoder failed"))?, orientation))
}

/// A JPEG decoder that has read the size, which is within the limits.
fn jpeg_header(bytes: &[u8]) -> Result<jpeg::Decoder<'_>> {
    let decoder = jpeg::Decoder::new(bytes).map_err(|e| damaged(ImageFormat::Jpeg, e.0))?;
    let header = decoder.header();
    check_size(header.width, header.height)?;
    check_memory(header.memory)?;
    Ok(decoder)
}

fn jpeg_region(decoder: jpeg::Decoder, [x, y, width, height]: [u32; 4]) -> Result<RgbImage> {
    let range = |first: u32, length: u32| first as usize..(first + length) as usize;
    let region = jpeg::Region { columns: range(x, width), rows: range(y, height) };
    let decoded = decoder.decode(Some(region)).map_err(|e| damaged(ImageFormat::Jpeg, e.0))?;
    RgbImage::from_raw(width, height, decoded.rgb)
        .ok_or_else(|| damaged(ImageFormat::Jpeg, "the decoder failed"))
}

/// Decodes a file of a format other than JPEG.
fn decode_other(format: ImageFormat, bytes: &[u8]) -> Result<(RgbImage, Orientation)> {
    match format {
        ImageFormat::WebP => {
            let decoder = image::codecs::webp::WebPDecoder::new(Cursor::new(bytes));
            convert(format, bytes, decoder.map_err(|e| damaged(format, e))?)
        }
        ImageFormat::Bmp => {
            let decoder = image::codecs::bmp::BmpDecoder::new(Cursor::new(bytes));
            convert(format, bytes, decoder.map_err(|e| damaged(format, e))?)
        }
        ImageFormat::Gif => Ok((gif::decode(bytes)?, Orientation::NoTransforms)),
        ImageFormat::Jpeg => decode_jpeg(bytes),
        ImageFormat::Png => decode_png(bytes),
    }
}

fn decode_png(bytes: &[u8]) -> Result<(RgbImage, Orientation)> {
    let format = ImageFormat::Png;
    // The size comes first in the file; it is checked before the rest is read.
    if let Some(&[a, b, c, d, e, f, g, h]) = bytes.get(16..24) {
        let side = |bytes| u32::from_be_bytes(bytes) as usize;
        check_size(side([a, b, c, d]), side([e, f, g, h]))?;
    }
    // The limit is for what the decoder keeps in addition to the pixels: rows, color profiles and texts.
    let decoder = image::codecs::png::PngDecoder::with_limits(Cursor::new(bytes), limits(MAX_CHUNKS))
        .map_err(|e| damaged(format, e))?;
    let (width, height) = decoder.dimensions();
    // Deflate expands a byte to at most 1032, and a pixel takes at least one bit.
    if u64::from(width) * u64::from(height) / 8 > 1032 * bytes.len() as u64 {
        return Err(damaged(format, "the file is truncated"));
    }
    convert(format, bytes, decoder)
}

/// Converts the output of a decoder of the `image` crate as Pillow's `convert("RGB")` does.
fn convert(
    format: ImageFormat,
    bytes: &[u8],
    mut decoder: impl ImageDecoder,
) -> Result<(RgbImage, Orientation)> {
    let (width, height) = decoder.dimensions();
    check_size(width as usize, height as usize)?;
    let decoded = usize::try_from(decoder.total_bytes()).unwrap_or(usize::MAX);
    check_memory(decoded.saturating_add(3 * width as usize * height as usize))?;
    decoder.set_limits(limits(MAX_MEMORY)).map_err(|e| damaged(format, e))?;
    let [exif, xmp] = match format {
        ImageFormat::Png => png::metadata(bytes),
        _ => [decoder.exif_metadata().unwrap_or_default(), decoder.xmp_metadata().unwrap_or_default()],
    };
    let orientation = orientation::find(exif.as_deref(), xmp.as_deref());
    // A tRNS chunk makes gray pixels gray and alpha here, but not in Pillow.
    let is_gray = format == ImageFormat::Png && bytes.get(25) == Some(&0);
    let image = DynamicImage::from_decoder(decoder).map_err(|e| damaged(format, e))?;
    let rgb = match image {
        DynamicImage::ImageRgb8(rgb) => rgb,
        DynamicImage::ImageLuma8(gray) => to_rgb(&gray, |p| [p.0[0]; 3]),
        DynamicImage::ImageLumaA8(gray) => to_rgb(&gray, |p| [p.0[0]; 3]),
        DynamicImage::ImageRgba8(rgba) => to_rgb(&rgba, |p| [p.0[0], p.0[1], p.0[2]]),
        // Pillow clips 16-bit gray without alpha (mode `I;16`) …
        DynamicImage::ImageLuma16(gray) => to_rgb(&gray, |p| [p.0[0].min(255) as u8; 3]),
        DynamicImage::ImageLumaA16(gray) if is_gray => to_rgb(&gray, |p| [p.0[0].min(255) as u8; 3]),
        // … and keeps the high byte of all other 16-bit formats.
        DynamicImage::ImageLumaA16(gray) => to_rgb(&gray, |p| [(p.0[0] >> 8) as u8; 3]),
        DynamicImage::ImageRgb16(rgb) => to_rgb(&rgb, |p| p.0.map(|v| (v >> 8) as u8)),
        DynamicImage::ImageRgba16(rgba) => {
            to_rgb(&rgba, |p| [p.0[0], p.0[1], p.0[2]].map(|v| (v >> 8) as u8))
        }
        other => return Err(damaged(format, format!("unsupported pixel format {:?}", other.color()))),
    };
    Ok((rgb, orientation))
}

fn to_rgb<P: image::Pixel>(
    image: &image::ImageBuffer<P, Vec<P::Subpixel>>,
    convert: impl Fn(&P) -> [u8; 3],
) -> RgbImage {
    let mut out = RgbImage::new(image.width(), image.height());
    for (out, pixel) in out.pixels_mut().zip(image.pixels()) {
        out.0 = convert(pixel);
    }
    out
}

#[cfg(test)]
mod tests;
