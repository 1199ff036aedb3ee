use std::sync::Arc;

use image::RgbImage;

use super::*;

fn gradient(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| {
        image::Rgb([(x * 7 % 256) as u8, (y * 11 % 256) as u8, ((x + y) * 5 % 256) as u8])
    })
}

fn everything() -> Augment {
    Augment {
        degrees: 10.0,
        zoom: 0.1,
        translate: 0.1,
        brightness: 0.4,
        contrast: 0.4,
        saturation: 0.4,
        hue: 0.1,
        rand_num_ops: 14,
        random_erasing: 0.5,
        ..Augment::default()
    }
}

#[test]
fn no_augmentation_equals_evaluation() {
    let preprocess = Preprocess::torchvision(40, 32);
    let image = ImageSource::Memory(Arc::new(gradient(60, 50)));
    let varied = Augment::none().apply(&image, &preprocess, &mut Random::new(1, &[])).unwrap();
    let plain = preprocess.apply(&gradient(60, 50)).unwrap();
    assert!(varied.iter().zip(&plain).all(|(a, b)| (a - b).abs() < 1e-5));
}

#[test]
fn augmentation_depends_on_the_key_only() {
    let preprocess = Preprocess::torchvision(40, 32);
    let image = ImageSource::Memory(Arc::new(gradient(60, 50)));
    let vary = |key| everything().apply(&image, &preprocess, &mut Random::new(1, &[key])).unwrap();
    let all: Vec<Vec<f32>> = (0..40).map(vary).collect();
    for (key, values) in all.iter().enumerate() {
        assert_eq!(values.len(), 3 * 32 * 32);
        assert!(values.iter().all(|v| v.is_finite() && v.abs() < 3.0), "{key}");
        assert_eq!(*values, vary(key as u64));
        assert!(all[..key].iter().all(|other| other != values), "{key}");
    }
}

#[test]
fn random_crops_are_inside_the_image() {
    let mut random = Random::new(3, &[]);
    for size in [[1, 1], [500, 3], [3, 500], [64, 48]] {
        for _ in 0..100 {
            let [x, y, w, h] = geometry::random_crop(size, [0.08, 1.0], [0.75, 4.0 / 3.0], &mut random);
            assert!(w > 0 && h > 0 && x + w <= size[0] && y + h <= size[1], "{size:?}: {x} {y} {w} {h}");
        }
    }
}

fn pixels(values: Vec<f32>, channels: usize, size: [usize; 2]) -> Pixels {
    Pixels { values, channels, size }
}

#[test]
fn color_operations_match_torchvision() {
    // One pixel each, by torchvision.transforms.v2.functional on u8, where ours does not round.
    let check = |change: &dyn Fn(&mut Pixels), expected: [f32; 3]| {
        let mut one = pixels(vec![200.0, 100.0, 50.0], 3, [1, 1]);
        change(&mut one);
        for (a, b) in one.values.iter().zip(expected) {
            assert!((a - b).abs() < 1.0, "{:?}, expected {expected:?}", one.values);
        }
    };
    check(&|p| p.adjust_brightness(1.5), [255.0, 150.0, 75.0]);
    check(&|p| p.adjust_saturation(0.0), [124.2; 3]);
    check(&|p| p.adjust_contrast(0.5), [162.1, 112.1, 87.1]);
    check(&|p| p.shift_hue(1.0 / 3.0), [50.0, 200.0, 100.0]);
    check(&|p| p.shift_hue(-0.5), [50.0, 150.0, 200.0]);
    check(&|p| p.posterize(2), [192.0, 64.0, 0.0]);
    check(&|p| p.solarize(100.0), [55.0, 155.0, 50.0]);
    check(&|p| p.adjust_sharpness(2.0), [200.0, 100.0, 50.0]);
}

#[test]
fn levels_are_stretched_and_equalised() {
    let mut low = pixels((0..1024).map(|i| 50.0 + (i % 100) as f32).collect(), 1, [32, 32]);
    let mut equal = low.clone();
    low.autocontrast();
    let range = |p: &Pixels| p.values.iter().fold((255f32, 0f32), |(a, b), v| (a.min(*v), b.max(*v)));
    assert_eq!(range(&low), (0.0, 255.0));
    equal.equalize();
    let (darkest, brightest) = range(&equal);
    assert!(darkest < 2.0 && brightest > 240.0, "{darkest} {brightest}");
}

#[test]
fn images_are_translated_and_rotated() {
    let image = pixels((0..9).map(|i| i as f32).collect(), 1, [3, 3]);
    let moved = image.warped([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]], Interpolation::Bilinear);
    assert_eq!(moved.values, [1.0, 2.0, 0.0, 4.0, 5.0, 0.0, 7.0, 8.0, 0.0]);
    let turned = image.warped([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0]], Interpolation::Bilinear);
    assert_eq!(turned.values, [2.0, 5.0, 8.0, 1.0, 4.0, 7.0, 0.0, 3.0, 6.0]);
    let mut flipped = image;
    flipped.flip();
    assert_eq!(flipped.values[..3], [2.0, 1.0, 0.0]);
}

#[test]
fn mixed_targets_match_mixed_images() {
    for (mixup, cutmix) in [(0.4, 0.0), (0.0, 1.0), (0.4, 1.0)] {
        let augment = Augment { mixup, cutmix, ..Augment::none() };
        for key in 0..50 {
            // Image i holds the number i everywhere, and is of class i.
            let (n, side) = (5, 8);
            let mut images: Vec<f32> = (0..n).flat_map(|i| vec![i as f32; side * side]).collect();
            let classes: Vec<usize> = (0..n).collect();
            let mut targets = crate::loss::one_hot(&classes, n);
            mix(&augment, &mut images, &mut targets, [n, 1, side, side], &mut Random::new(9, &[key]));
            for i in 0..n {
                let mean =
                    images[i * side * side..][..side * side].iter().sum::<f32>() / (side * side) as f32;
                let target: f32 = targets[i * n..][..n].iter().enumerate().map(|(k, t)| k as f32 * t).sum();
                assert!((mean - target).abs() < 1e-5, "{augment:?} {key}: {mean} {target}");
                assert!((targets[i * n..][..n].iter().sum::<f32>() - 1.0).abs() < 1e-6);
            }
        }
    }
}

#[test]
fn randaugment_shears_about_the_top_left_corner() {
    // The same as torchvision: row y is sampled at x + 0.3 (y + 0.5), rounded.
    let image = pixels((1..=12).map(|i| i as f32).collect(), 1, [4, 3]);
    let sheared = rand::shear(&image, [0.3, 0.0]);
    assert_eq!(sheared.values, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 9.0, 0.0, 11.0, 12.0, 0.0]);
}
