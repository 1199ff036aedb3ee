//! A custom architecture, described as data: `cargo run --example custom_arch`.

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use candle_nn::{VarBuilder, VarMap};
use resnet_model::arch::{Block, ResNet, Shortcut, Stage};
use resnet_model::{Arch, Network};

fn main() -> Result<()> {
    // A thin network for 4-channel images: three stages, a projection in every block (the paper's option C).
    let stage = |depth, width| Stage { block: Block::Bottleneck, depth, width };
    let arch = Arch::ResNet(ResNet {
        stages: vec![stage(2, 16), stage(3, 32), stage(2, 64)],
        shortcut: Shortcut::ProjectionAll,
        in_channels: 4,
        num_classes: 5,
        ..ResNet::imagenet(Block::Bottleneck, &[])
    });
    let graph = arch.graph()?;
    let macs = graph.macs(96, 96)?;
    println!("{arch}: {} parameters, {:.1} M multiply-adds at 96×96", graph.param_count(), macs as f64 / 1e6);

    let weights = VarMap::new();
    let network = Network::new(&arch, VarBuilder::from_varmap(&weights, DType::F32, &Device::Cpu))?;
    let logits = network.forward(&Tensor::zeros((2, 4, 96, 96), DType::F32, &Device::Cpu)?)?;
    println!("logits {:?}", logits.dims());
    Ok(())
}
