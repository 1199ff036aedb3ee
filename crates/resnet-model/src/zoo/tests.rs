//! The zoo compared with the networks of timm, torchvision and `tests/golden/zoo.py` in PyTorch.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};

use super::*;
use crate::arch::{ArchOptions, GlobalPool};
use crate::{Checkpoint, Network, Runtime, engine, random, safetensors, synthetic};

mod options;

const PARAMS: &str = include_str!("../../../../tests/golden/zoo_params.tsv");

/// Networks with more parameters run only when `RESNET_SLOW` is set.
const FAST: u64 = 100_000_000;

#[test]
fn names_are_unique() {
    for (name, net) in all() {
        assert_eq!(name_of(&net), Some(name));
        assert_eq!(name_of(&net.clone().with_classes(7).with_in_channels(1)), Some(name));
        assert_eq!(arch(name).unwrap(), net);
        assert_eq!(all().iter().filter(|(other, _)| *other == name).count(), 1, "{name}");
    }
}

#[test]
fn descriptions_round_trip_through_json() {
    for (name, net) in all() {
        let json = serde_json::to_string(&net).unwrap();
        assert_eq!(serde_json::from_str::<Arch>(&json).unwrap(), net, "{name}");
        assert!(json.len() < 600 || name.ends_with("_pruned"), "{name}: {json}");
        let with_unknown_field = json.replacen('{', r#"{"unknown":1,"#, 1);
        assert!(serde_json::from_str::<Arch>(&with_unknown_field).is_err(), "{name}");
    }
    let options =
        ArchOptions { pool: Some(GlobalPool::AvgMax), output_stride: Some(8), ..ArchOptions::default() };
    let net = arch("resnet50d").unwrap().with(options).unwrap();
    let json = serde_json::to_string(&net).unwrap();
    assert_eq!(serde_json::from_str::<Arch>(&json).unwrap(), net);
    assert_eq!(name_of(&net), Some("resnet50d"));
}

#[test]
fn unknown_names_suggest_similar_ones() {
    let message = arch("resnet51").unwrap_err().to_string();
    assert!(message.contains("unknown model `resnet51`; did you mean resnet50"), "{message}");
    assert_eq!(arch("bert").unwrap_err().to_string(), "unknown model `bert`");
}

/// A line of `zoo_params.tsv`.
struct GoldenRow {
    name: &'static str,
    tensors: usize,
    parameters: u64,
    listing: &'static str,
    macs: u64,
}

fn rows() -> Vec<GoldenRow> {
    let row = |line: &'static str| {
        let parts: Vec<&str> = line.split('\t').collect();
        let [name, tensors, parameters, listing, macs] = parts[..] else { panic!("{line}") };
        let number = |s: &str| s.parse::<u64>().unwrap();
        let tensors = number(tensors) as usize;
        GoldenRow { name, tensors, parameters: number(parameters), listing, macs: number(macs) }
    };
    PARAMS.lines().map(row).collect()
}

/// Returns an architecture by its name in the golden script; `resnet50+os8` has options.
fn golden_arch(name: &str) -> Arch {
    let (base, option) = name.split_once('+').unwrap_or((name, ""));
    let none = ArchOptions::default();
    let options = match option {
        "" => none,
        "os8" => ArchOptions { output_stride: Some(8), ..none },
        "os16" => ArchOptions { output_stride: Some(16), ..none },
        "max" => ArchOptions { pool: Some(GlobalPool::Max), ..none },
        "avgmax" => ArchOptions { pool: Some(GlobalPool::AvgMax), ..none },
        "catavgmax" => ArchOptions { pool: Some(GlobalPool::CatAvgMax), ..none },
        "classes0" => ArchOptions { num_classes: Some(0), ..none },
        "in1" | "adapt1" => ArchOptions { in_channels: Some(1), ..none },
        "adapt4" => ArchOptions { in_channels: Some(4), ..none },
        other => panic!("{other}"),
    };
    arch(base).unwrap().with(options).unwrap()
}

/// Returns a checkpoint with synthetic weights; `test_resnet+adapt4` has three input channels adapted to four.
fn golden_checkpoint(name: &str) -> Checkpoint {
    let Some((base, channels)) = name.split_once("+adapt") else {
        return synthetic::checkpoint(&golden_arch(name)).unwrap();
    };
    let checkpoint = synthetic::checkpoint(&arch(base).unwrap()).unwrap();
    checkpoint.with_in_channels(channels.parse().unwrap()).unwrap()
}

#[test]
fn names_shapes_order_and_costs_match_pytorch() {
    let rows = rows();
    for (name, _) in all() {
        assert!(rows.iter().any(|row| row.name == name), "{name} has no reference");
    }
    for GoldenRow { name, tensors, parameters, listing, macs } in rows {
        let graph = golden_arch(name).graph().unwrap();
        let list = graph.param_specs();
        let shape = |s: &[usize]| s.iter().map(usize::to_string).collect::<Vec<_>>().join("x");
        let text: String = list.iter().map(|p| format!("{} {}\n", p.name, shape(&p.shape))).collect();
        assert_eq!((list.len(), graph.param_count()), (tensors, parameters), "{name}");
        assert_eq!(format!("{:016x}", random::hash(&text)), listing, "{name}:\n{text}");
        assert_eq!(graph.macs(224, 224).unwrap(), macs, "{name}");
    }
}

fn size(name: &str) -> [usize; 2] {
    let (base, option) = name.split_once('+').unwrap_or((name, ""));
    match base {
        _ if name.contains("inception") => [75, 107],
        _ if option.starts_with("os") => [64, 96],
        "resnetv2_50d_frn" => [128, 128],
        "resnet50_clip" => [224, 224],
        "resnet50x4_clip" => [320, 32],
        "resnet1202_cifar" | "plain1202_cifar" | "preresnet1001_cifar" => [16, 8],
        _ => [64, 32],
    }
}

/// Returns the largest difference relative to the largest magnitude.
fn error(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let max = |values: &mut dyn Iterator<Item = f32>| values.fold(0f32, |a, b| a.max(b.abs()));
    max(&mut found.iter().zip(expected).map(|(a, b)| a - b)) / max(&mut expected.iter().copied())
}

fn spread(tensor: &Tensor) -> Vec<f32> {
    const SAMPLES: usize = 16;
    let flat = tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    (0..SAMPLES).map(|i| flat[i * flat.len() / SAMPLES]).collect()
}

/// Returns the largest error of all stages and the logits, compared with PyTorch.
fn distance_from_pytorch(name: &str, network: &Runtime, golden: &BTreeMap<String, Vec<f32>>) -> f32 {
    let [h, w] = size(name);
    let c = network.graph().in_channels();
    let input = synthetic::input(2 * c * h * w);
    let x = Tensor::from_slice(&input, (2, c, h, w), &Device::Cpu).unwrap();
    let stages: Vec<&str> = network.graph().taps().iter().map(|t| t.name.as_str()).collect();
    let stages: Vec<&str> =
        stages.into_iter().filter(|t| !["stem", "pooled", "logits"].contains(t)).collect();
    let mut worst = 0f32;
    for (i, tap) in network.features(&x, &stages).unwrap().iter().enumerate() {
        let e = error(&spread(tap), &golden[&format!("{name}/tap{i}")]);
        assert!(e < 1e-4, "{name} {}: {e}", stages[i]);
        worst = worst.max(e);
    }
    assert!(!golden.contains_key(&format!("{name}/tap{}", stages.len())), "{name} has more stages");
    let y = network.rows(input, [2, c, h, w]).unwrap();
    let expected = &golden[&format!("{name}/logits")];
    let logits = error(&y[1][..expected.len()], expected);
    // A random projection covers all logits.
    let all = y.concat();
    let weights: Vec<f64> = (0..all.len()).map(|i| random::uniform("projection", i) - 0.5).collect();
    let norm = weights.iter().map(|w| w * w).sum::<f64>().sqrt();
    let projection = all.iter().zip(&weights).map(|(y, w)| f64::from(*y) * w).sum::<f64>() / norm;
    let scale = expected.iter().fold(0f32, |a, b| a.max(b.abs()));
    let projected = (projection as f32 - golden[&format!("{name}/projection")][0]).abs() / scale;
    assert!(logits < 1e-4 && projected < 1e-4, "{name}: {logits}, {projected}");
    worst.max(logits).max(projected)
}

/// Compares one part of the zoo with PyTorch; the parts run in parallel.
fn compare_with_pytorch(part: usize, parts: usize) {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/zoo.safetensors");
    let contents = safetensors::open(std::path::Path::new(path)).unwrap();
    let golden: BTreeMap<String, Vec<f32>> =
        contents.tensors.into_iter().map(|(name, t)| (name.clone(), t.to_f32(&name).unwrap())).collect();
    let slow = std::env::var_os("RESNET_SLOW").is_some();
    let mut rows = rows();
    rows.sort_by_key(|row| row.parameters);
    for row in rows.iter().skip(part).step_by(parts) {
        if !slow && row.parameters > FAST {
            continue;
        }
        let start = std::time::Instant::now();
        let checkpoint = golden_checkpoint(row.name);
        let network =
            Runtime::Network(Box::new(Network::load(&checkpoint, DType::F32, &Device::Cpu).unwrap()));
        let network_error = distance_from_pytorch(row.name, &network, &golden);
        drop(network);
        let options =
            engine::EngineOptions { input: Some(size(row.name)), ..engine::EngineOptions::default() };
        let engine = Runtime::new(&checkpoint, &Device::Cpu, options).unwrap();
        let errors = [network_error, distance_from_pytorch(row.name, &engine, &golden)];
        println!(
            "{}\t{:.1e}\t{:.1e}\t{:.1} s",
            row.name,
            errors[0],
            errors[1],
            start.elapsed().as_secs_f64()
        );
    }
}

#[test]
fn results_match_pytorch_first_half() {
    compare_with_pytorch(0, 2);
}

#[test]
fn results_match_pytorch_second_half() {
    compare_with_pytorch(1, 2);
}
