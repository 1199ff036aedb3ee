//! Classifies an image: `cargo run --example classify -- CHECKPOINT IMAGE`.

use std::path::Path;

use anyhow::{Context, Result};
use candle_core::Device;
use resnet_image::decode;
use resnet_model::{Checkpoint, Classifier};

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let checkpoint = args.next().context("usage: classify CHECKPOINT IMAGE")?;
    let image = args.next().context("usage: classify CHECKPOINT IMAGE")?;

    // The metadata of the checkpoint contains preprocessing and labels.
    let checkpoint = Checkpoint::open(Path::new(&checkpoint))?;
    let classifier = Classifier::new(&checkpoint, &Device::Cpu)?;
    let image = decode::open(Path::new(&image))?;
    for prediction in &classifier.classify(&[image], 3)?[0] {
        println!("{:.4}  {}", prediction.score, prediction.label.as_deref().unwrap_or("?"));
    }
    Ok(())
}
