//! Image orientation in EXIF and XMP metadata.

use image::metadata::Orientation;

/// Returns the orientation in EXIF (a TIFF structure) or else in XMP, as Pillow's `exif_transpose` does. Values other than
/// 1 to 8 are ignored.
pub(super) fn find(exif: Option<&[u8]>, xmp: Option<&[u8]>) -> Orientation {
    exif.and_then(in_exif)
        .or_else(|| xmp.and_then(in_xmp))
        .and_then(|value| Orientation::from_exif(u8::try_from(value).ok()?))
        .unwrap_or(Orientation::NoTransforms)
}

/// Returns tag 0x0112 of the first directory. Reads no other directory, so cyclic directories are harmless.
fn in_exif(mut tiff: &[u8]) -> Option<u32> {
    while let Some(rest) = tiff.strip_prefix(b"Exif\0\0") {
        tiff = rest;
    }
    let little = match tiff.first_chunk::<4>()? {
        b"II*\0" => true,
        b"MM\0*" => false,
        _ => return None,
    };
    let number = |bytes: &[u8]| -> u32 {
        let append = |sum: u32, &byte: &u8| sum << 8 | u32::from(byte);
        if little { bytes.iter().rev().fold(0, append) } else { bytes.iter().fold(0, append) }
    };
    let directory = tiff.get(number(tiff.get(4..8)?) as usize..)?;
    let (count, entries) = directory.split_first_chunk::<2>()?;
    let entries = entries.as_chunks::<12>().0.iter().take(number(count) as usize);
    let entry = entries.into_iter().find(|entry| number(&entry[..2]) == 0x0112)?;
    match (number(&entry[2..4]), number(&entry[4..8])) {
        (1, 1) => Some(number(&entry[8..9])),
        (3, 1) => Some(number(&entry[8..10])),
        (4, 1) => Some(number(&entry[8..12])),
        _ => None,
    }
}

/// Returns the digit after `tiff:Orientation`, an attribute or element.
fn in_xmp(xmp: &[u8]) -> Option<u32> {
    const NAME: &[u8] = b"tiff:Orientation";
    xmp.windows(NAME.len()).enumerate().filter(|(_, w)| *w == NAME).find_map(|(at, _)| {
        let rest = &xmp[at + NAME.len()..];
        let digit = rest.strip_prefix(b"=\"").or_else(|| rest.strip_prefix(b">"))?.first()?;
        digit.is_ascii_digit().then(|| u32::from(digit - b'0'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exif(kind: u16, value: u32) -> Vec<u8> {
        let mut out = b"II*\0\x08\0\0\0\x01\0\x12\x01".to_vec();
        out.extend(kind.to_le_bytes());
        out.extend(1u32.to_le_bytes());
        out.extend(value.to_le_bytes());
        out
    }

    #[test]
    fn values_outside_one_to_eight_are_ignored() {
        assert_eq!(find(Some(&exif(3, 6)), None), Orientation::Rotate90);
        assert_eq!(find(Some(&exif(4, 3)), None), Orientation::Rotate180);
        let big = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x08\0\0";
        assert_eq!(find(Some(big), None), Orientation::Rotate270);
        for ignored in [exif(3, 0), exif(3, 9), exif(3, 65_535), exif(4, 262), exif(2, 6)] {
            assert_eq!(find(Some(&ignored), None), Orientation::NoTransforms);
        }
        let whole = exif(3, 6);
        for cut in 0..whole.len() {
            find(Some(&whole[..cut]), None);
        }
        // A directory beyond the end, and directories that overlap the header.
        for offset in [0u32, 4, 8, u32::MAX] {
            let mut looped = exif(3, 9);
            looped[4..8].copy_from_slice(&offset.to_le_bytes());
            assert_eq!(find(Some(&looped), None), Orientation::NoTransforms);
        }
    }

    #[test]
    fn xmp_is_used_if_exif_has_no_orientation() {
        let attribute = b"<rdf:Description tiff:Orientation=\"6\"/>";
        let element = b"<tiff:Orientation>8</tiff:Orientation>";
        assert_eq!(find(None, Some(attribute)), Orientation::Rotate90);
        assert_eq!(find(None, Some(element)), Orientation::Rotate270);
        assert_eq!(find(Some(&exif(3, 1)), Some(element)), Orientation::NoTransforms);
        assert_eq!(find(None, Some(b"tiff:Orientation=\"9\"")), Orientation::NoTransforms);
        assert_eq!(find(None, Some(b"tiff:Orientation")), Orientation::NoTransforms);
    }
}
