use super::*;

fn golden(name: &str) -> Vec<u8> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/preprocess/");
    std::fs::read(format!("{folder}{name}")).unwrap()
}

const JPEGS: &[&str] = &[
    "444.jpg",
    "422.jpg",
    "420.jpg",
    "440.jpg",
    "411.jpg",
    "progressive.jpg",
    "progressive-grey.jpg",
    "grey.jpg",
    "restarts.jpg",
    "cmyk.jpg",
    "ycck.jpg",
    "orientation-6.jpg",
];

#[test]
fn truncated_files_are_errors() {
    for name in
        JPEGS.iter().chain(&["rgb-97x31.png", "palette-alpha.png", "alpha-16.png", "palette.gif", "24.bmp"])
    {
        let whole = golden(name);
        // A PNG is complete without its last chunk and a GIF without its last byte.
        let end = whole.len() - if name.ends_with("png") { 13 } else { 2 };
        for cut in (0..end).step_by(7) {
            let error =
                decode(&whole[..cut]).err().unwrap_or_else(|| panic!("{name} cut at {cut}")).to_string();
            assert!(!error.contains("the decoder failed"), "{name} cut at {cut} panics");
        }
    }
}

/// Not through `decode`, which would catch a panic.
#[test]
fn changed_jpegs_do_not_panic() {
    let mut random = 1u64;
    let mut next = |below: usize| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) as usize % below
    };
    let mut decoded = 0;
    for name in JPEGS {
        let whole = golden(name);
        for _ in 0..400 {
            let mut changed = whole.clone();
            for _ in 0..1 + next(4) {
                let at = next(changed.len());
                changed[at] = [0, 0xff, 1 << next(8), next(256) as u8][next(4)];
            }
            let Ok(decoder) = jpeg::Decoder::new(&changed) else { continue };
            let header = decoder.header();
            if check_size(header.width, header.height).is_err() || header.memory > 16 << 20 {
                continue;
            }
            if let Ok(picture) = decoder.decode(None) {
                assert_eq!(picture.rgb.len(), 3 * header.width * header.height);
                decoded += 1;
            }
            let half = |size: usize| size / 2..size;
            let part = jpeg::Region { columns: half(header.width), rows: half(header.height) };
            if let Ok(picture) = jpeg::Decoder::new(&changed).and_then(|decoder| decoder.decode(Some(part))) {
                assert_eq!(picture.rgb.len(), 3 * half(header.width).len() * half(header.height).len());
            }
        }
    }
    assert!(decoded > 100, "{decoded} were decoded: the mutations are too coarse");
}

#[test]
fn regions_equal_crops_of_the_whole_image() {
    for name in JPEGS.iter().chain(&["rgb-97x31.png"]) {
        let bytes = golden(name);
        let whole = decode(&bytes).unwrap();
        let (width, height) = whole.dimensions();
        let (right, bottom) = (width - 1, height - 1);
        for part in [
            [0, 0, width, height],
            [0, 0, 1, 1],
            [right, bottom, 1, 1],
            [7, 5, 11, 13],
            [8, 16, 9, 3],
            [1, 2, width - 3, height - 3],
            [width / 2, 0, width / 2, height],
            [0, height / 2, width, 1],
        ] {
            let [x, y, w, h] = part;
            let mut size = [0; 2];
            let found = DecodeOptions::default().decode_region(&bytes, |found| {
                size = found;
                part
            });
            assert_eq!(size, [width, height], "{name}");
            let expected = image::imageops::crop_imm(&whole, x, y, w, h).to_image();
            assert!(found.unwrap() == expected, "{name} {part:?}");
        }
        for part in [[0, 0, 0, 1], [0, 0, width + 1, 1], [u32::MAX, 0, u32::MAX, 1]] {
            let error = DecodeOptions::default().decode_region(&bytes, |_| part).unwrap_err().to_string();
            assert!(error.contains("is not inside the image of"), "{error}");
        }
    }
}

#[test]
fn bytes_after_the_end_and_between_segments_are_ignored() {
    let whole = golden("420.jpg");
    let expected = decode(&whole).unwrap();
    let mut longer = whole.clone();
    longer.extend_from_slice(b"trailing\xff\xd8\xff");
    assert_eq!(decode(&longer).unwrap(), expected);
    // Fill bytes before a marker, and stray ones.
    let at = whole.windows(2).position(|w| w == b"\xff\xda").unwrap();
    let stray = [&whole[..at], b"\0\x12\xff\xff\xff", &whole[at..]].concat();
    assert_eq!(decode(&stray).unwrap(), expected);
}

#[test]
fn unsupported_jpegs_are_named() {
    let whole = golden("grey.jpg");
    let at = whole.windows(2).position(|w| w == b"\xff\xc0").unwrap();
    let check = |offset: usize, byte: u8, expected: &str| {
        let mut changed = whole.clone();
        changed[at + offset] = byte;
        let error = decode(&changed).unwrap_err().to_string();
        assert!(
            error.starts_with("damaged or unsupported JPEG file: ") && error.contains(expected),
            "{error}"
        );
    };
    check(1, 0xc9, "arithmetic coding");
    check(1, 0xc3, "lossless");
    check(1, 0xc5, "hierarchical");
    check(4, 12, "only 8 bits a sample");
    check(9, 2, "neither 1, 3 nor 4 components");
    check(11, 0x51, "sampling factors");
    check(12, 3, "quantisation table that is not there");
    let mut flat = whole.clone();
    flat[at + 5..at + 7].fill(0);
    assert!(decode(&flat).unwrap_err().to_string().contains("47×0 pixels"));
}

#[cfg(unix)]
#[test]
fn only_regular_files_are_read() {
    let check = |path: &Path, expected: &str| {
        let error = open(path).unwrap_err().to_string();
        assert!(error.starts_with(&format!("`{}`", path.display())) && error.contains(expected), "{error}");
    };
    check(Path::new("/dev/zero"), "not a regular file");
    let dir = tempfile::tempdir().unwrap();
    check(dir.path(), "directory");
    check(&dir.path().join("missing.png"), "No such file");
    let pipe = dir.path().join("pipe.png");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    if made.is_ok_and(|status| status.success()) {
        check(&pipe, "not a regular file");
    }
    // 1 TB of holes.
    let huge = dir.path().join("huge.png");
    std::fs::File::create(&huge).unwrap().set_len(1 << 40).unwrap();
    check(&huge, "1099511627776 bytes, expected at most 67108864");
    // The file name does not matter.
    let renamed = dir.path().join("image.txt");
    std::fs::write(&renamed, golden("grey.png")).unwrap();
    assert_eq!(open(&renamed).unwrap().dimensions(), (45, 50));
}
