//! What a file is, by its first bytes.

use std::fmt;

use crate::{Error, Result};

/// Formats that are decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Png,
    Jpeg,
    WebP,
    Bmp,
    Gif,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Format::Png => "PNG",
            Format::Jpeg => "JPEG",
            Format::WebP => "WebP",
            Format::Bmp => "BMP",
            Format::Gif => "GIF",
        })
    }
}

/// First bytes of formats that are not decoded, to name them.
const OTHER_IMAGES: &[(&[u8], &str)] = &[
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
];

/// First bytes of files that are no images.
const NO_IMAGES: &[(&[u8], &str)] = &[
    (b"PK\x03\x04", "a zip archive"),
    (b"PK\x05\x06", "a zip archive"),
    (b"\x1f\x8b", "a gzip file"),
    (b"%PDF", "a PDF file"),
    (b"\x7fELF", "a program"),
    (b"\x80\x02", "a pickle"),
    (b"7z\xbc\xaf", "a 7z archive"),
];

/// The format of `bytes`, or an error that says what they look like.
pub(super) fn format(bytes: &[u8]) -> Result<Format> {
    let starts = |with: &[u8]| bytes.starts_with(with);
    if starts(b"\x89PNG\r\n\x1a\n") {
        return Ok(Format::Png);
    }
    if starts(b"\xff\xd8\xff") {
        return Ok(Format::Jpeg);
    }
    if starts(b"RIFF") && bytes.get(8..12) == Some(b"WEBP") {
        return Ok(Format::WebP);
    }
    if starts(b"BM") && bytes.len() >= 26 {
        return Ok(Format::Bmp);
    }
    if starts(b"GIF87a") || starts(b"GIF89a") {
        return Ok(Format::Gif);
    }
    Err(Error::Image(refusal(bytes)))
}

fn refusal(bytes: &[u8]) -> String {
    const EXPECTED: &str = "expected PNG, JPEG, WebP, BMP or GIF";
    if bytes.is_empty() {
        return format!("the file is empty, {EXPECTED}");
    }
    let known = |table: &'static [(&[u8], &str)]| table.iter().find(|(magic, _)| bytes.starts_with(magic));
    if let Some((_, name)) = known(OTHER_IMAGES) {
        return format!("{name} images are not supported, {EXPECTED}");
    }
    if let Some((b"ftyp", brand)) = bytes.get(4..).and_then(|b| b.split_first_chunk::<4>()) {
        let name = match brand.get(..4) {
            Some(b"avif" | b"avis") => "AVIF images are",
            Some(b"heic" | b"heix" | b"mif1" | b"msf1") => "HEIC images are",
            _ => "MPEG-4 files are",
        };
        return format!("{name} not supported, {EXPECTED}");
    }
    let looks = |what: &str| format!("not an image: looks like {what}, {EXPECTED}");
    if let Some((_, what)) = known(NO_IMAGES) {
        return looks(what);
    }
    let head = &bytes[..bytes.len().min(512)];
    // The last character may be cut.
    let text = match std::str::from_utf8(head) {
        Ok(text) => Some(text),
        Err(e) if e.error_len().is_none() && e.valid_up_to() > 0 => {
            std::str::from_utf8(&head[..e.valid_up_to()]).ok()
        }
        Err(_) => None,
    };
    match text {
        Some(text) if !text.chars().any(|c| c.is_control() && !c.is_ascii_whitespace()) => {
            let text = text.trim_start().to_ascii_lowercase();
            looks(if text.starts_with("<!doctype html") || text.starts_with("<html") {
                "HTML"
            } else if text.contains("<svg") {
                "SVG"
            } else if text.starts_with("<?xml") {
                "XML"
            } else if text.starts_with("version https://git-lfs") {
                "a Git LFS pointer, not the file itself"
            } else {
                "text"
            })
        }
        _ => {
            let shown: Vec<String> = bytes.iter().take(8).map(|b| format!("{b:02x}")).collect();
            format!("not an image: begins with the bytes {}, {EXPECTED}", shown.join(" "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_decoded_is_named() {
        let check = |bytes: &[u8], expected: &str| {
            let error = format(bytes).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        check(b"", "the file is empty");
        check(b"\x89", "begins with the bytes 89");
        check(b"\x89PNG\r\n", "begins with the bytes 89 50 4e 47");
        check(b"<!DOCTYPE html><html>404", "looks like HTML");
        check(b"\n  <HTML>", "looks like HTML");
        check(b"hello, world", "looks like text");
        check("Grüße".as_bytes(), "looks like text");
        check(b"version https://git-lfs.github.com/spec/v1\n", "Git LFS");
        check(b"<svg xmlns=\"http://www.w3.org/2000/svg\"/>", "looks like SVG");
        check(b"PK\x03\x04rest", "looks like a zip archive");
        check(b"BM is text", "looks like text");
        check(b"P6 99999 99999 255\n", "Netpbm images are not supported");
        check(b"II*\0\x08\0\0\0", "TIFF images are not supported");
        check(b"#?RADIANCE\n\n-Y 99999 +X 99999\n", "Radiance HDR images are not supported");
        check(b"\0\0\0\x1cftypavif", "AVIF images are not supported");
    }
}
