//! Image files into RGB, as Pillow's `exif_transpose` and `convert("RGB")` do.
//!
//! PNG, JPEG, WebP, BMP and the first frame of GIF, recognised by their first bytes whatever the file's name. Alpha is
//! dropped, not blended; palettes keep their colours where they are transparent; 16-bit colour keeps the high byte,
//! 16-bit grey is cut off at 255 (both are Pillow's ways); CMYK is taken as Adobe writes it, inverted; an EXIF (or
//! XMP) orientation from 1 to 8 is applied. JPEG is decoded bit for bit as Pillow's libjpeg-turbo does.
//!
//! Grey inputs need no other decoder: Pillow's `convert("L")` of any of these equals that of its `convert("RGB")`.
//!
//! Files come from anywhere: sizes are checked before anything is decoded, memory is limited, and a damaged file is an
//! error, never a picture with grey parts.

mod gif;
mod jpeg;
mod orientation;
mod sniff;

use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, Limits, RgbImage};

use crate::file::SharedFile;
use crate::{Error, Result, escape};
use sniff::Format;

/// How files of these formats usually end, lower case: what to look for in a folder. Decoding does not depend on it.
pub const EXTENSIONS: &[&str] = &["png", "jpg", "jpeg", "jpe", "jfif", "webp", "bmp", "gif"];
/// Largest file in bytes.
pub const MAX_FILE: u64 = 64 << 20;
/// Largest width and height in pixels.
pub const MAX_SIDE: usize = 16_384;
/// Most pixels.
pub const MAX_PIXELS: usize = 100_000_000;
/// Most memory for decoding one image, in bytes.
const MAX_MEMORY: usize = 512 << 20;
/// Most memory for a PNG file's other chunks, in bytes.
const MAX_CHUNKS: usize = 16 << 20;

/// Reads the image file at `path`.
///
/// # Errors
///
/// [`Error::At`] with the path, around [`Error::Io`] if it is no regular file or cannot be read and [`Error::Image`]
/// as [`decode`] returns it.
pub fn open(path: &Path) -> Result<RgbImage> {
    read(path).and_then(|bytes| decode(&bytes)).map_err(|e| e.at(path))
}

/// The part `[x, y, width, height]` of the image at `path` that `choose` chooses of its `[width, height]`.
///
/// Of a JPEG, where most of the time goes into pixels, not much more than the part is decoded, to the same values; damage
/// outside of it may go unnoticed.
///
/// # Errors
///
/// Like [`open`]; also if the part is empty or leaves the image.
pub fn open_part(path: &Path, choose: impl FnOnce([u32; 2]) -> [u32; 4]) -> Result<RgbImage> {
    read(path).and_then(|bytes| decode_part(&bytes, choose)).map_err(|e| e.at(path))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let file = SharedFile::open(path)?;
    if file.len() > MAX_FILE {
        return refuse(format!("the file has {} bytes, expected at most {MAX_FILE}", file.len()));
    }
    let mut bytes = vec![0; file.len() as usize];
    file.read_at(0, &mut bytes)?;
    Ok(bytes)
}

/// Like [`open_part`].
fn decode_part(bytes: &[u8], choose: impl FnOnce([u32; 2]) -> [u32; 4]) -> Result<RgbImage> {
    let checked = |size: [u32; 2]| {
        let part = choose(size);
        let [x, y, width, height] = part.map(u64::from);
        let inside = x + width <= u64::from(size[0]) && y + height <= u64::from(size[1]);
        match width > 0 && height > 0 && inside {
            true => Ok(part),
            false => {
                refuse(format!("the part {part:?} is not in the image of {}×{} pixels", size[0], size[1]))
            }
        }
    };
    if sniff::format(bytes)? == Format::Jpeg {
        let decoded = catch_unwind(AssertUnwindSafe(|| jpeg_header(bytes)));
        let mut decoder = decoded.unwrap_or_else(|_| Err(damaged(Format::Jpeg, "the decoder failed")))?;
        let [exif, xmp] = decoder.texts().map_err(|e| damaged(Format::Jpeg, e.0))?;
        if orientation::find(exif, xmp) == Orientation::NoTransforms {
            let header = decoder.header();
            let part = checked([header.width as u32, header.height as u32])?;
            let decoded = catch_unwind(AssertUnwindSafe(|| jpeg_part(decoder, part)));
            return decoded.unwrap_or_else(|_| Err(damaged(Format::Jpeg, "the decoder failed")));
        }
    }
    let image = decode(bytes)?;
    let [x, y, width, height] = checked([image.width(), image.height()])?;
    Ok(image::imageops::crop_imm(&image, x, y, width, height).to_image())
}

/// Decodes an image file.
///
/// # Errors
///
/// [`Error::Image`] says what the bytes are if they are no image of a known format, which limit an image exceeds, or
/// what is damaged.
pub fn decode(bytes: &[u8]) -> Result<RgbImage> {
    if bytes.len() as u64 > MAX_FILE {
        return refuse(format!("the file has {} bytes, expected at most {MAX_FILE}", bytes.len()));
    }
    let format = sniff::format(bytes)?;
    let decoded = catch_unwind(AssertUnwindSafe(|| match format {
        Format::Png => {
            // The size stands first in the file; it is judged before the rest is read.
            if let Some(&[a, b, c, d, e, f, g, h]) = bytes.get(16..24) {
                let side = |bytes| u32::from_be_bytes(bytes) as usize;
                check_size(side([a, b, c, d]), side([e, f, g, h]))?;
            }
            // What the decoder keeps beside the pixels: rows, and colour profiles and texts that nobody reads.
            let decoder = image::codecs::png::PngDecoder::with_limits(Cursor::new(bytes), limits(MAX_CHUNKS));
            let decoder = decoder.map_err(|e| damaged(format, e))?;
            let (width, height) = decoder.dimensions();
            // Deflate makes no more than 1032 bytes of one, and of a pixel there is a bit at least.
            if u64::from(width) * u64::from(height) / 8 > 1032 * bytes.len() as u64 {
                return Err(damaged(format, "the file is truncated"));
            }
            convert(format, decoder)
        }
        Format::WebP => {
            let decoder =
                image::codecs::webp::WebPDecoder::new(Cursor::new(bytes)).map_err(|e| damaged(format, e))?;
            convert(format, decoder)
        }
        Format::Bmp => {
            let decoder =
                image::codecs::bmp::BmpDecoder::new(Cursor::new(bytes)).map_err(|e| damaged(format, e))?;
            convert(format, decoder)
        }
        Format::Gif => gif::decode(bytes),
        Format::Jpeg => decode_jpeg(bytes),
    }));
    decoded.unwrap_or_else(|_| Err(damaged(format, "the decoder failed")))
}

fn refuse<T>(what: String) -> Result<T> {
    Err(Error::Image(what))
}

fn damaged(format: Format, what: impl ToString) -> Error {
    Error::Image(format!("a damaged or unusual {format} file: {}", escape(&what.to_string())))
}

fn limits(memory: usize) -> Limits {
    let mut limits = Limits::default();
    limits.max_alloc = Some(memory as u64);
    limits
}

/// Refuses sizes beyond the limits, before memory is taken for them.
fn check_size(width: usize, height: usize) -> Result<()> {
    if width == 0 || height == 0 {
        return refuse(format!("the image has {width}×{height} pixels"));
    }
    if width > MAX_SIDE || height > MAX_SIDE || width * height > MAX_PIXELS {
        return refuse(format!(
            "the image has {width}×{height} pixels, expected at most {MAX_SIDE} a side and {MAX_PIXELS} in all"
        ));
    }
    Ok(())
}

fn check_memory(bytes: usize) -> Result<()> {
    if bytes > MAX_MEMORY {
        return refuse(format!("decoding takes {} MiB, expected at most {}", bytes >> 20, MAX_MEMORY >> 20));
    }
    Ok(())
}

fn rotated(image: RgbImage, orientation: Orientation) -> RgbImage {
    if orientation == Orientation::NoTransforms {
        return image;
    }
    let mut image = DynamicImage::ImageRgb8(image);
    image.apply_orientation(orientation);
    image.into_rgb8()
}

fn decode_jpeg(bytes: &[u8]) -> Result<RgbImage> {
    let decoder = jpeg_header(bytes)?;
    let header = decoder.header();
    let picture = decoder.decode(None).map_err(|e| damaged(Format::Jpeg, e.0))?;
    let orientation = orientation::find(picture.exif, picture.xmp);
    let image = RgbImage::from_raw(header.width as u32, header.height as u32, picture.rgb);
    Ok(rotated(image.ok_or_else(|| damaged(Format::Jpeg, "the decoder failed"))?, orientation))
}

/// A JPEG that keeps the limits, read up to its size.
fn jpeg_header(bytes: &[u8]) -> Result<jpeg::Decoder<'_>> {
    let decoder = jpeg::Decoder::new(bytes).map_err(|e| damaged(Format::Jpeg, e.0))?;
    let header = decoder.header();
    check_size(header.width, header.height)?;
    check_memory(header.memory)?;
    Ok(decoder)
}

fn jpeg_part(decoder: jpeg::Decoder, [x, y, width, height]: [u32; 4]) -> Result<RgbImage> {
    let range = |first: u32, length: u32| first as usize..(first + length) as usize;
    let part = jpeg::Part { columns: range(x, width), rows: range(y, height) };
    let picture = decoder.decode(Some(part)).map_err(|e| damaged(Format::Jpeg, e.0))?;
    RgbImage::from_raw(width, height, picture.rgb).ok_or_else(|| damaged(Format::Jpeg, "the decoder failed"))
}

/// What the `image` crate decodes, as Pillow's `convert("RGB")` turns it.
fn convert(format: Format, mut decoder: impl ImageDecoder) -> Result<RgbImage> {
    let (width, height) = decoder.dimensions();
    check_size(width as usize, height as usize)?;
    let decoded = usize::try_from(decoder.total_bytes()).unwrap_or(usize::MAX);
    check_memory(decoded.saturating_add(3 * width as usize * height as usize))?;
    decoder.set_limits(limits(MAX_MEMORY)).map_err(|e| damaged(format, e))?;
    let exif = decoder.exif_metadata().unwrap_or_default();
    let xmp = if format == Format::WebP { decoder.xmp_metadata().unwrap_or_default() } else { None };
    let orientation = orientation::find(exif.as_deref(), xmp.as_deref());
    let image = DynamicImage::from_decoder(decoder).map_err(|e| damaged(format, e))?;
    let rgb = match image {
        DynamicImage::ImageRgb8(rgb) => rgb,
        DynamicImage::ImageLuma8(grey) => to_rgb(&grey, |p| [p.0[0]; 3]),
        DynamicImage::ImageLumaA8(grey) => to_rgb(&grey, |p| [p.0[0]; 3]),
        DynamicImage::ImageRgba8(rgba) => to_rgb(&rgba, |p| [p.0[0], p.0[1], p.0[2]]),
        // Pillow keeps 16-bit grey in a mode of its own, whose conversion cuts off…
        DynamicImage::ImageLuma16(grey) => to_rgb(&grey, |p| [p.0[0].min(255) as u8; 3]),
        // … and reads the high bytes of all else.
        DynamicImage::ImageLumaA16(grey) => to_rgb(&grey, |p| [(p.0[0] >> 8) as u8; 3]),
        DynamicImage::ImageRgb16(rgb) => to_rgb(&rgb, |p| p.0.map(|v| (v >> 8) as u8)),
        DynamicImage::ImageRgba16(rgba) => {
            to_rgb(&rgba, |p| [p.0[0], p.0[1], p.0[2]].map(|v| (v >> 8) as u8))
        }
        other => return Err(damaged(format, format!("unsupported pixels {:?}", other.color()))),
    };
    Ok(rotated(rgb, orientation))
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
