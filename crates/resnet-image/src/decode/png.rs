//! EXIF and XMP metadata of PNG files, which Pillow reads from more chunks than the `image` crate.

use std::io::Read;

use flate2::read::ZlibDecoder;

/// Maximum length of a decompressed text chunk, as in Pillow.
const MAX_TEXT: u64 = 1 << 20;

/// Returns EXIF (a TIFF structure) from `eXIf` or else a "Raw profile type exif" text, and XMP from a text. Like Pillow,
/// looks at the chunks after the pixels, too, and at the last of several.
pub(super) fn metadata(file: &[u8]) -> [Option<Vec<u8>>; 2] {
    let (mut exif, mut profile, mut xmp) = (None, None, None);
    for (kind, data) in chunks(file) {
        match (&kind, data) {
            (b"eXIf", data) => exif = Some(data),
            (b"tEXt" | b"zTXt" | b"iTXt", data) => {
                let Some((keyword, text)) = split_at_nul(data) else { continue };
                match keyword {
                    b"Raw profile type exif" => profile = Some((kind, text)),
                    b"XML:com.adobe.xmp" => xmp = Some((kind, text)),
                    _ => {}
                }
            }
            _ => {}
        }
    }
    // Only the chunks that are used are decompressed, which bounds the time.
    let text = |(kind, text)| decompress(kind, text);
    let exif = exif.map(<[u8]>::to_vec).or_else(|| raw_profile(&profile.and_then(text)?));
    [exif, xmp.and_then(text)]
}

/// The chunks of a PNG file up to the first that is truncated. The decoder checks CRCs.
fn chunks(file: &[u8]) -> impl Iterator<Item = ([u8; 4], &[u8])> {
    let mut rest = file.get(8..).unwrap_or_default();
    std::iter::from_fn(move || {
        let (length, after) = rest.split_first_chunk::<4>()?;
        let (kind, after) = after.split_first_chunk::<4>()?;
        let (data, after) = after.split_at_checked(u32::from_be_bytes(*length) as usize)?;
        rest = after.get(4..)?;
        Some((*kind, data))
    })
}

fn split_at_nul(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = data.iter().position(|&b| b == 0)?;
    Some((&data[..at], &data[at + 1..]))
}

/// The text of a chunk from the byte after its keyword.
fn decompress(kind: [u8; 4], data: &[u8]) -> Option<Vec<u8>> {
    let (compressed, text) = match &kind {
        b"tEXt" => (false, data),
        b"zTXt" => (true, data.strip_prefix(b"\0")?),
        _ => {
            // Compression flag and method, language, translated keyword.
            let (&[flag, _], rest) = data.split_first_chunk::<2>()?;
            (flag != 0, split_at_nul(split_at_nul(rest)?.1)?.1)
        }
    };
    if !compressed {
        return Some(text.to_vec());
    }
    let mut out = Vec::new();
    ZlibDecoder::new(text).take(MAX_TEXT).read_to_end(&mut out).ok()?;
    Some(out)
}

/// Parses a raw profile as ImageMagick writes it: an empty line, the name, the length, and hexadecimal digits.
fn raw_profile(text: &[u8]) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> = text
        .splitn(4, |&b| b == b'\n')
        .nth(3)?
        .iter()
        .filter(|b| !b.is_ascii_whitespace())
        .map(|&b| char::from(b).to_digit(16).map(|digit| digit as u8))
        .collect();
    Some(digits?.as_chunks::<2>().0.iter().map(|[high, low]| high << 4 | low).collect())
}
