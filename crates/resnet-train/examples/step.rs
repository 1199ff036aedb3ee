//! Training steps for `make peers-train` (`tests/peers/train.py`), which runs the same steps in PyTorch.
//!
//! `step [--weights FILE] [--save FILE] [--threads N] [--batch N] [--size PIXELS] [--lr LR] MODEL`: reads a number of steps from each
//! line of standard input and prints a line of JSON: seconds and losses or, for `0`, the peak memory; the
//! first `0` also saves the parameters. Images and classes come from a formula (`tests/golden/formula.py`).
#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a measurement for developers")]

use std::collections::BTreeMap;
use std::io::BufRead;
use std::path::Path;
use std::time::Instant;

use candle_core::{Device, Tensor};
use resnet_model::file::Existing;
use resnet_model::network::{DropConfig, SingleProcess, Statistics};
use resnet_model::parameters::{Initialization, Trainable};
use resnet_model::{Parameters, RawTensor, random, safetensors, synthetic, zoo};
use resnet_train::loss::{Loss, one_hot};
use resnet_train::optim::{Optimizer, OptimizerConfig};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let flag = |name: &str| args.iter().position(|a| a == name).and_then(|at| args.get(at + 1));
    let number = |name: &str, default: f64| flag(name).map_or(default, |a| a.parse().unwrap());
    let (batch, size) = (number("--batch", 8.0) as usize, number("--size", 224.0) as usize);
    let (threads, lr) = (number("--threads", 2.0) as usize, number("--lr", 0.01));
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().unwrap();
    let device = &Device::Cpu;
    let model = args.last().unwrap();
    let parameters = Parameters::new(&zoo::arch(model).unwrap(), Initialization::default(), device).unwrap();
    if let Some(path) = flag("--weights") {
        let contents = safetensors::open(Path::new(path)).unwrap();
        contents.tensors.iter().for_each(|(name, tensor)| parameters.set(name, tensor).unwrap());
    }
    let network = parameters.network(&Trainable::All, Statistics::default()).unwrap();
    let mut optimizer = Optimizer::new(&OptimizerConfig::default(), &parameters, &Trainable::All).unwrap();
    // The inputs repeat every ten batches.
    let image = 3 * size * size;
    let images = synthetic::input(10 * batch * image);
    let mut step = 0;
    let mut save = flag("--save");
    for line in std::io::stdin().lock().lines() {
        let count: usize = line.unwrap().trim().parse().unwrap();
        if count == 0 {
            if let Some(path) = save.take() {
                write(&parameters, Path::new(path));
            }
            println!("{}", serde_json::json!({"peak_kb": peak()}));
            continue;
        }
        let (mut seconds, mut losses) = (Vec::new(), Vec::new());
        for _ in 0..count {
            let at = step % 10 * batch;
            let x = images[at * image..][..batch * image].to_vec();
            let x = Tensor::from_vec(x, (batch, 3, size, size), device).unwrap();
            let class = |i: usize| (random::uniform("classes", at + i) * 1000.0) as usize;
            let classes: Vec<usize> = (0..batch).map(class).collect();
            let targets = Tensor::from_vec(one_hot(&classes, 1000), (batch, 1000), device).unwrap();
            let start = Instant::now();
            let tape = network.train_forward(&x, DropConfig::default(), &SingleProcess).unwrap();
            let loss = Loss::default().forward(tape.logits(), &targets).unwrap();
            losses.push(loss.to_scalar::<f32>().unwrap());
            let forward = start.elapsed().as_secs_f64();
            let gradients = tape.gradients(&loss).unwrap();
            let both = start.elapsed().as_secs_f64();
            optimizer.step(&gradients, lr, 1.0).unwrap();
            seconds.push([start.elapsed().as_secs_f64(), forward, both - forward]);
            step += 1;
        }
        println!("{}", serde_json::json!({"seconds": seconds, "losses": losses}));
    }
}

fn write(parameters: &Parameters, path: &Path) {
    let tensor = |name: &str| {
        let tensor = parameters.var(name).unwrap().as_detached_tensor();
        RawTensor::from_candle(&tensor).unwrap()
    };
    let tensors: BTreeMap<String, RawTensor> =
        parameters.list().iter().map(|param| (param.name.clone(), tensor(&param.name))).collect();
    safetensors::write(path, Existing::Replace, &BTreeMap::new(), &tensors, &mut |_| {}).unwrap();
}

/// Returns the peak memory of the process in KiB, on Linux.
fn peak() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().trim_end_matches("kB").trim().parse().ok()
}
