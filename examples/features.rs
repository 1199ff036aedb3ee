//! Feature maps of an image, for a network as a backbone: `cargo run --example features -- CHECKPOINT IMAGE`.

use std::path::Path;

use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor};
use resnet_image::decode;
use resnet_model::{Checkpoint, Network};

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let checkpoint = args.next().context("usage: features CHECKPOINT IMAGE")?;
    let image = args.next().context("usage: features CHECKPOINT IMAGE")?;

    let checkpoint = Checkpoint::open(Path::new(&checkpoint))?;
    let network = Network::load_folded(&checkpoint, DType::F32, &Device::Cpu)?;
    let preprocess = &checkpoint.meta().preprocess;
    let [height, width] = preprocess.crop;
    let pixels = preprocess.apply(&decode::open(Path::new(&image))?)?;
    let x = Tensor::from_vec(pixels, (1, preprocess.mean.len(), height, width), &Device::Cpu)?;

    let taps: Vec<&str> = network.graph().taps().iter().map(|t| t.name.as_str()).collect();
    let features = network.features(&x, &taps)?;
    for (tap, feature) in network.graph().taps().iter().zip(&features) {
        let norm = feature.sqr()?.sum_all()?.to_scalar::<f32>()?.sqrt();
        println!(
            "{:<8} stride {:>2}  {:<16} norm {norm:.3}",
            tap.name,
            tap.stride,
            format!("{:?}", feature.dims())
        );
    }
    Ok(())
}
