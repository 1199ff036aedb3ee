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
            if let Ok(image) = decoder.decode(None) {
                assert_eq!(image.rgb.len(), 3 * header.width * header.height);
                decoded += 1;
            }
            let half = |size: usize| size / 2..size;
            let region = jpeg::Region { columns: half(header.width), rows: half(header.height) };
            if let Ok(image) = jpeg::Decoder::new(&changed).and_then(|decoder| decoder.decode(Some(region))) {
                assert_eq!(image.rgb.len(), 3 * half(header.width).len() * half(header.height).len());
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

/// Three scans of the same data in an RGB file are a gray image.
#[test]
fn components_may_come_in_separate_scans() {
    let gray = golden("grey.jpg");
    let find = |marker: &[u8]| gray.windows(2).position(|w| w == marker).unwrap();
    let (frame, scan) = (find(b"\xff\xc0"), find(b"\xff\xda"));
    // Without JFIF, these component ids mean RGB.
    let mut file = [&gray[..frame], &gray[frame + 13..scan]].concat();
    let jfif = file.windows(4).position(|w| w == b"JFIF").unwrap();
    file[jfif] = b'X';
    file.extend([&b"\xff\xc0\0\x11\x08"[..], &gray[frame + 5..frame + 9], b"\x03"].concat());
    b"RGB".iter().for_each(|&id| file.extend([id, 0x11, 0]));
    for id in *b"RGB" {
        file.extend([&b"\xff\xda\0\x08\x01"[..], &[id], &gray[scan + 6..gray.len() - 2]].concat());
    }
    file.extend(b"\xff\xd9");
    assert!(decode(&file).unwrap() == decode(&gray).unwrap());
}

#[test]
fn orientation_can_be_ignored() {
    let bytes = golden("orientation-6.jpg");
    let (upright, stored) = (decode(&bytes).unwrap(), DecodeOptions { apply_orientation: false });
    let stored = stored.decode(&bytes).unwrap();
    assert_eq!(stored.dimensions(), (upright.height(), upright.width()));
    assert!(image::imageops::rotate90(&stored) == upright);
    let options = DecodeOptions { apply_orientation: false };
    let region = options.decode_region(&bytes, |_| [3, 2, 9, 8]).unwrap();
    assert!(region == image::imageops::crop_imm(&stored, 3, 2, 9, 8).to_image());
}

/// A PNG of 2×1 pixels with the given bit depth and color type, and `extra` chunks before and after the pixels.
fn png(depth: u8, color: u8, row: &[u8], extra: [&[u8]; 2]) -> Vec<u8> {
    let chunk = |kind: &[u8; 4], data: &[u8]| {
        let mut crc = flate2::Crc::new();
        crc.update(&[&kind[..], data].concat());
        [&(data.len() as u32).to_be_bytes()[..], kind, data, &crc.sum().to_be_bytes()].concat()
    };
    let extra = extra.map(|chunks| match chunks.split_first_chunk::<4>() {
        Some((kind, data)) => chunk(kind, data),
        None => vec![],
    });
    let mut out = b"\x89PNG\r\n\x1a\n".to_vec();
    out.extend(chunk(b"IHDR", &[0, 0, 0, 2, 0, 0, 0, 1, depth, color, 0, 0, 0]));
    out.extend(&extra[0]);
    out.extend(chunk(b"IDAT", &zlib(&[&[0], row].concat())));
    out.extend(&extra[1]);
    out.extend(chunk(b"IEND", b""));
    out
}

fn zlib(data: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    flate2::read::ZlibEncoder::new(data, flate2::Compression::default()).read_to_end(&mut out).unwrap();
    out
}

/// As in Pillow 12: `convert("RGB")` of mode `I;16` clips, with or without a transparent level.
#[test]
fn gray_of_16_bits_is_clipped_despite_transparency() {
    let row = [0x01, 0x02, 0x00, 0x80];
    for transparent in [&b""[..], b"tRNS\x01\x02"] {
        let image = decode(&png(16, 0, &row, [transparent, b""])).unwrap();
        assert_eq!(image.as_raw()[..], [255, 255, 255, 128, 128, 128]);
    }
    let alpha = [0x12, 0x34, 0xff, 0xff, 0x56, 0x78, 0, 0];
    assert_eq!(
        decode(&png(16, 4, &alpha, [b"", b""])).unwrap().as_raw()[..],
        [0x12, 0x12, 0x12, 0x56, 0x56, 0x56]
    );
}

#[test]
fn png_orientation_is_found_in_all_chunks() {
    let exif = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0";
    let hex: String = [b"Exif\0\0", &exif[..]].concat().iter().map(|b| format!("{b:02x}")).collect();
    let profile = format!("\nexif\n      {}\n{}\n{}\n", hex.len() / 2, &hex[..32], &hex[32..]);
    let xmp = b"<rdf:Description tiff:Orientation=\"6\"/>";
    let turned = [
        [b"eXIf", &exif[..]].concat(),
        [b"tEXtRaw profile type exif\0", profile.as_bytes()].concat(),
        [b"zTXtRaw profile type exif\0\0", &zlib(profile.as_bytes())[..]].concat(),
        [b"iTXtXML:com.adobe.xmp\0\0\0\0\0", &xmp[..]].concat(),
        [b"iTXtXML:com.adobe.xmp\0\x01\0\0\0", &zlib(xmp)[..]].concat(),
    ];
    let size = |extra| decode(&png(8, 2, &[7; 6], extra)).unwrap().dimensions();
    for chunk in &turned {
        let kind = chunk[..25].escape_ascii();
        assert_eq!([size([chunk, b""]), size([b"", chunk])], [(1, 2); 2], "{kind}");
    }
    for ignored in [
        &b"tEXtComment\0tiff:Orientation=\"6\""[..],
        b"tEXtRaw profile type exif\0\nexif\n1\nzz",
        b"zTXtXML:com.adobe.xmp\0\0xx",
    ] {
        assert_eq!(size([ignored, b""]), (2, 1));
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
    check(4, 12, "only 8 bits per sample");
    check(9, 2, "expected 1, 3 or 4 components");
    check(11, 0x51, "sampling factors");
    check(12, 3, "missing quantization table");
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
