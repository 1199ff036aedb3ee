//! Ten training steps compared with PyTorch (`tests/golden/train.py`).

use std::path::Path;

use candle_core::{Device, Tensor};
use resnet_model::network::{DropConfig, SingleProcess, Statistics};
use resnet_model::param_specs::Role;
use resnet_model::parameters::Trainable;
use resnet_model::{Arch, Meta, Parameters, Preprocess, RawTensor, random, safetensors, synthetic};
use serde::Deserialize;

use crate::loss::{Loss, one_hot};
use crate::optim::{Optimizer, OptimizerConfig};

/// Metadata of a golden file.
#[derive(Deserialize)]
struct Golden {
    arch: Arch,
    size: [usize; 2],
    steps: usize,
    batch: usize,
    classes: usize,
    rate: f64,
    momentum: f64,
    weight_decay: f64,
}

/// Returns synthetic weights with initial running statistics.
fn initial_parameters(arch: &Arch) -> Parameters {
    let checkpoint = synthetic::checkpoint(arch).unwrap();
    let parameters = Parameters::from_checkpoint(&checkpoint, &Device::Cpu).unwrap();
    for param in parameters.list().to_vec() {
        let rest = match param.role {
            Role::RunningMean => 0.0,
            Role::RunningVar => 1.0,
            _ => continue,
        };
        let values = vec![rest; param.shape[0]];
        parameters.set(&param.name, &RawTensor::from_f32(param.shape.clone(), &values).unwrap()).unwrap();
    }
    parameters
}

fn check(name: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/train").join(name);
    let contents = safetensors::open(&path).unwrap();
    let golden: Golden = serde_json::from_str(&contents.metadata["run"]).unwrap();
    let Golden { arch, size: [h, w], steps, batch, classes, .. } = golden;
    let config = OptimizerConfig {
        momentum: golden.momentum,
        weight_decay: golden.weight_decay,
        nesterov: true,
        ..OptimizerConfig::default()
    };
    let parameters = initial_parameters(&arch);
    let meta = || Meta::new(arch.clone(), Preprocess::torchvision(256, 224));
    let initial = parameters.checkpoint(meta()).unwrap();
    let network = parameters.network(&Trainable::All, Statistics::default()).unwrap();
    let mut optimizer = Optimizer::new(&config, &parameters, &Trainable::All).unwrap();
    let images = synthetic::input(steps * batch * 3 * h * w);
    let mut losses = Vec::new();
    for (step, images) in images.chunks_exact(batch * 3 * h * w).enumerate() {
        let x = Tensor::from_slice(images, (batch, 3, h, w), &Device::Cpu).unwrap();
        let class = |i: usize| (random::uniform("classes", step * batch + i) * classes as f64) as usize;
        let rows = one_hot(&(0..batch).map(class).collect::<Vec<_>>(), classes);
        let targets = Tensor::from_vec(rows, (batch, classes), &Device::Cpu).unwrap();
        let tape = network.train_forward(&x, DropConfig::default(), &SingleProcess).unwrap();
        let loss = Loss::default().forward(tape.logits(), &targets).unwrap();
        losses.push(loss.to_scalar::<f32>().unwrap());
        optimizer.step(&tape.gradients(&loss).unwrap(), golden.rate, 1.0).unwrap();
    }
    let found = parameters.checkpoint(meta()).unwrap();
    let mut compared = 0;
    for (name, expected) in contents.tensors {
        if name == "losses" {
            for (step, (found, expected)) in losses.iter().zip(expected.to_f32(&name).unwrap()).enumerate() {
                assert!((found - expected).abs() < 1e-4, "loss {step} is {found}, expected {expected}");
            }
            continue;
        }
        if let Some(count) = expected.scalar() {
            assert_eq!((found.tensor(&name).unwrap().scalar(), count), (Some(count), steps as i64), "{name}");
            continue;
        }
        let (found, expected) = (found.values(&name).unwrap(), expected.to_f32(&name).unwrap());
        let largest = expected.iter().fold(0f32, |max, v| max.max(v.abs()));
        let worst = found.iter().zip(&expected).fold(0f32, |max, (a, b)| max.max((a - b).abs()));
        assert!(worst <= 1e-3 * largest, "`{name}` differs by {worst} of {largest}");
        // The distance moved is the stricter test: most weights stay close to their initial values.
        let start = initial.values(&name).unwrap();
        let distance = start.iter().zip(&expected).fold(0f32, |max, (a, b)| max.max((a - b).abs()));
        assert!(worst <= 0.05 * distance, "`{name}` differs by {worst}, it moved by {distance}");
        compared += 1;
    }
    assert!(compared > 30 && losses.len() == steps, "{compared} tensors");
}

#[test]
fn ten_steps_match_pytorch() {
    for name in ["basic.safetensors", "bottleneck.safetensors", "grouped.safetensors"] {
        check(name);
    }
}
