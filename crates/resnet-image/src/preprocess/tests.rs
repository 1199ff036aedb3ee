use image::{Rgb, RgbImage};
use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::decode;

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/preprocess/");

fn golden(name: &str) -> Vec<u8> {
    std::fs::read(format!("{GOLDEN}{name}")).unwrap()
}

/// 64-bit FNV-1a, as in `golden/generate.py`.
fn fnv(bytes: impl IntoIterator<Item = u8>) -> String {
    let step = |h: u64, byte: u8| (h ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
    format!("{:016x}", bytes.into_iter().fold(0xcbf2_9ce4_8422_2325, step))
}

fn cases() -> Vec<Value> {
    serde_json::from_slice(&golden("cases.json")).unwrap()
}

#[test]
fn decoding_equals_pillow() {
    let cases = cases();
    assert!(cases.len() > 50);
    let mut wrong = vec![];
    for case in &cases {
        let name = case["file"].as_str().unwrap();
        let image = decode::decode(&golden(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
        let size = [image.height(), image.width()].map(Value::from);
        if case["size"].as_array().unwrap()[..] != size
            || fnv(image.as_raw().iter().copied()) != case["decoded"]
        {
            wrong.push(name);
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[test]
fn transforms_equal_torchvision_and_timm() {
    let crops = golden("crops.bin");
    let mut wrong = vec![];
    for case in cases() {
        let name = case["file"].as_str().unwrap();
        let image = decode::decode(&golden(name)).unwrap();
        for expected in case["crops"].as_array().unwrap() {
            let preprocess: Preprocess = serde_json::from_value(expected["preprocess"].clone()).unwrap();
            let pixels = preprocess.pixels(&image).unwrap();
            let equal = match expected["at"].as_u64() {
                Some(at) => pixels == crops[at as usize..][..pixels.len()],
                None => fnv(pixels.iter().copied()) == expected["hash"],
            };
            // PyTorch's tensor, bit for bit.
            let tensor = preprocess.apply(&image).unwrap();
            let tensor = fnv(tensor.iter().flat_map(|v| v.to_le_bytes()));
            if !equal || expected.get("tensor").is_some_and(|hash| *hash != tensor) {
                wrong.push(format!(
                    "{name} {:?} {:?} {:?}",
                    preprocess.resize, preprocess.filter, preprocess.channels
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{} differ: {:#?}", wrong.len(), wrong);
}

#[test]
fn bgr_reverses_the_channels() {
    let mut preprocess = Preprocess::torchvision(4, 2);
    preprocess.range = Range::Byte;
    preprocess.std = vec![1.0; 3];
    preprocess.mean = vec![1.0, 2.0, 3.0];
    let image = RgbImage::from_pixel(9, 6, Rgb([10, 20, 30]));
    assert_eq!(preprocess.apply(&image).unwrap(), [[9.0; 4], [18.0; 4], [27.0; 4]].concat());
    preprocess.channels = Channels::Bgr;
    assert_eq!(preprocess.apply(&image).unwrap(), [[29.0; 4], [18.0; 4], [7.0; 4]].concat());
    // The border has the mean of its channel in either order.
    preprocess.resize = Resize::Contain([4, 4]);
    preprocess.crop = [4, 4];
    let framed = preprocess.apply(&image).unwrap();
    // 4×3 pixels of the image, so the last row is border.
    assert_eq!([framed[12], framed[16 + 12], framed[32 + 12]], [0.0; 3]);
}

#[test]
fn apply_into_fills_one_image_of_a_batch() {
    let preprocess = Preprocess::torchvision(8, 8);
    let image = RgbImage::from_fn(20, 10, |x, y| Rgb([x as u8, y as u8, 0]));
    let mut batch = vec![0.0; 2 * 3 * 64];
    preprocess.apply_into(&image, &mut batch[192..]).unwrap();
    assert_eq!(batch[192..], preprocess.apply(&image).unwrap());
    let error = preprocess.apply_into(&image, &mut batch).unwrap_err().to_string();
    assert!(error.contains("has 384 elements, expected 3×8×8"), "{error}");
}

#[test]
fn long_strips_are_fast() {
    let strip = RgbImage::from_fn(16_384, 1, |x, _| Rgb([(x / 64) as u8; 3]));
    // The whole resized image would have 256 × 4,194,304 pixels. The machine may be busy: the fastest of three counts.
    let quick = (0..3).any(|_| {
        let start = std::time::Instant::now();
        let out = Preprocess::torchvision(256, 224).apply(&strip).unwrap();
        assert_eq!(out.len(), 3 * 224 * 224);
        start.elapsed().as_secs() < 2
    });
    assert!(quick);
    let mut border = Preprocess::torchvision(256, 224);
    border.resize = Resize::Contain([224, 224]);
    let error = border.apply(&strip).unwrap_err().to_string();
    assert!(error.contains("16384×1 pixels is too narrow"), "{error}");
}

#[test]
fn invalid_preprocessing_is_an_error() {
    let image = RgbImage::new(4, 4);
    let check = |change: fn(&mut Preprocess), expected: &str| {
        let mut preprocess = Preprocess::torchvision(256, 224);
        change(&mut preprocess);
        let error = preprocess.apply(&image).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    check(|p| p.crop = [0, 224], "is 0 pixels");
    check(|p| p.crop = [224, 1 << 20], "`crop` is 1048576 pixels");
    check(|p| p.resize = Resize::ShorterSide(usize::MAX), "pixels, expected 1 to");
    check(|p| p.resize = Resize::Cover([5, 0]), "is 0 pixels");
    check(|p| p.std[1] = 0.0, "`std` is 0");
    check(|p| p.std[1] = -1.0, "`std` is -1");
    check(|p| p.mean[0] = f32::NAN, "`mean` is [NaN");
    check(|p| p.channels = Channels::Gray, "expected 1 finite numbers");
    let empty = Preprocess::torchvision(256, 224).apply(&RgbImage::new(0, 7)).unwrap_err().to_string();
    assert!(empty.contains("0×7 pixels"), "{empty}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_size_is_preprocessed(
        (width, height) in (1u32..600, 1u32..600),
        crop in [1usize..80, 1usize..80],
        resize in prop_oneof![
            (1usize..600).prop_map(Resize::ShorterSide),
            [1usize..90, 1usize..90].prop_map(Resize::Exact),
            [1usize..90, 1usize..90].prop_map(Resize::Cover),
        ],
        filter in prop_oneof![
            Just(Filter::Nearest), Just(Filter::Bilinear), Just(Filter::Bicubic), Just(Filter::Lanczos),
        ],
        level in 0u8..=255,
    ) {
        let mut preprocess = Preprocess::torchvision(1, 1);
        (preprocess.resize, preprocess.crop, preprocess.filter) = (resize, crop, filter);
        let image = RgbImage::from_pixel(width, height, Rgb([level; 3]));
        let out = preprocess.apply(&image).unwrap();
        prop_assert_eq!(out.len(), preprocess.shape().iter().product::<usize>());
        prop_assert!(out.iter().all(|v| v.is_finite()));
        // Weights sum to one, so a uniform image stays uniform.
        let pixels = preprocess.pixels(&image).unwrap();
        prop_assert!(pixels.iter().all(|&p| p == level || p == 0));
    }
}
