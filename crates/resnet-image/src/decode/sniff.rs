//! Detection of the image format from magic bytes.

use std::fmt;

use crate::{Error, Result};

/// A supported image format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ImageFormat {
    /// PNG.
    Png,
    /// JPEG.
    Jpeg,
    /// WebP.
    WebP,
    /// BMP.
    Bmp,
    /// GIF.
    Gif,
}

impl fmt::Display for ImageFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ImageFormat::Png => "PNG",
            ImageFormat::Jpeg => "JPEG",
            ImageFormat::WebP => "WebP",
            ImageFormat::Bmp => "BMP",
            ImageFormat::Gif => "GIF",
        })
    }
}

/// Magic bytes of formats that are not decoded, to name them in the error.
const UNSUPPORTED: &[(&[u8], &str)] = &[
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"\0\0\x01\0", "ICO"),
    (b"\x76\x2f\x31\x01", "OpenEXR"),
    (b"#?RADIANCE", "Radiance HDR"),
    (b"#?RGBE", "Radiance HDR"),
    (b"DDS ", "DDS"),
    (b"8BPS", "Photoshop"),
    (b"qoif", "QOI"),
    (b"farbfeld", "Farbfeld"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cJXL ", "JPEG XL"),
    (b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"P1", "Netpbm"),
    (b"P2", "Netpbm"),
    (b"P3", "Netpbm"),
    (b"P4", "Netpbm"),
    (b"P5", "Netpbm"),
    (b"P6", "Netpbm"),
    (b"P7", "Netpbm"),
    (b"PK\x03\x04", "a zip archive"),
    (b"PK\x05\x06", "a zip archive"),
    (b"\x1f\x8b", "a gzip file"),
    (b"%PDF", "a PDF file"),
    (b"\x7fELF", "an executable"),
    (b"\x80\x02", "a pickle"),
    (b"7z\xbc\xaf", "a 7z archive"),
];

/// Returns the format of `bytes`.
///
/// # Errors
///
/// [`Error::UnsupportedFormat`] names the format that was found instead.
pub(super) fn format(bytes: &[u8]) -> Result<ImageFormat> {
    let starts = |magic: &[u8]| bytes.starts_with(magic);
    if starts(b"\x89PNG\r\n\x1a\n") {
        return Ok(ImageFormat::Png);
    }
    if starts(b"\xff\xd8\xff") {
        return Ok(ImageFormat::Jpeg);
    }
    if starts(b"RIFF") && bytes.get(8..12) == Some(b"WEBP") {
        return Ok(ImageFormat::WebP);
    }
    if starts(b"BM") && bytes.len() >= 26 {
        return Ok(ImageFormat::Bmp);
    }
    if starts(b"GIF87a") || starts(b"GIF89a") {
        return Ok(ImageFormat::Gif);
    }
    Err(Error::UnsupportedFormat { found: unsupported(bytes) })
}

/// Describes a file that is not an image of a supported format.
fn unsupported(bytes: &[u8]) -> String {
    if bytes.is_empty() {
        return "an empty file".into();
    }
    if let Some((_, name)) = UNSUPPORTED.iter().find(|(magic, _)| bytes.starts_with(magic)) {
        return (*name).into();
    }
    if let Some((b"ftyp", brand)) = bytes.get(4..).and_then(|b| b.split_first_chunk::<4>()) {
        return match brand.get(..4) {
            Some(b"avif" | b"avis") => "AVIF",
            Some(b"heic" | b"heix" | b"mif1" | b"msf1") => "HEIC",
            _ => "MPEG-4",
        }
        .into();
    }
    let head = &bytes[..bytes.len().min(512)];
    // The last character may be incomplete.
    let text = match std::str::from_utf8(head) {
        Ok(text) => Some(text),
        Err(e) if e.error_len().is_none() && e.valid_up_to() > 0 => {
            std::str::from_utf8(&head[..e.valid_up_to()]).ok()
        }
        Err(_) => None,
    };
    let Some(text) = text.filter(|text| !text.chars().any(|c| c.is_control() && !c.is_ascii_whitespace()))
    else {
        let first: Vec<String> = bytes.iter().take(8).map(|b| format!("{b:02x}")).collect();
        return format!("the magic bytes {}", first.join(" "));
    };
    let text = text.trim_start().to_ascii_lowercase();
    let name = if text.starts_with("<!doctype html") || text.starts_with("<html") {
        "HTML"
    } else if text.contains("<svg") {
        "SVG"
    } else if text.starts_with("<?xml") {
        "XML"
    } else if text.starts_with("version https://git-lfs") {
        "a Git LFS pointer instead of the file"
    } else {
        "text"
    };
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unsupported_formats_are_named() {
        let check = |bytes: &[u8], expected: &str| {
            let error = format(bytes).unwrap_err().to_string();
            assert!(error.contains(&format!("found {expected}")), "{error}");
        };
        check(b"", "an empty file");
        check(b"\x89", "the magic bytes 89,");
        check(b"\x89PNG\r\n", "the magic bytes 89 50 4e 47");
        check(b"<!DOCTYPE html><html>404", "HTML,");
        check(b"\n  <HTML>", "HTML,");
        check(b"hello, world", "text,");
        check("Grüße".as_bytes(), "text,");
        check(b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer");
        check(b"<svg xmlns=\"http://www.w3.org/2000/svg\"/>", "SVG,");
        check(b"PK\x03\x04rest", "a zip archive,");
        check(b"BM is text", "text,");
        check(b"P6 99999 99999 255\n", "Netpbm,");
        check(b"II*\0\x08\0\0\0", "TIFF,");
        check(b"#?RADIANCE\n\n-Y 99999 +X 99999\n", "Radiance HDR,");
        check(b"\0\0\0\x1cftypavif", "AVIF,");
    }
}
