//! The input pipeline for `make peers-train` (`tests/peers/pipeline.py`), which compares it with torchvision's.
//!
//! `pipeline [--threads N] [--batch N] FOLDER`: for each line of standard input, loads the batches of an epoch, 224×224, and
//! prints a line of JSON: seconds, images and the sum of one value per batch.
#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a measurement for developers")]

use std::io::BufRead;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use resnet_model::Preprocess;
use resnet_train::Dataset;
use resnet_train::augment::Augment;
use resnet_train::distributed::Shard;
use resnet_train::loader::{Loader, Recipe};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let flag = |name: &str| args.iter().position(|a| a == name).and_then(|at| args.get(at + 1));
    let number = |name: &str, default: usize| flag(name).map_or(default, |a| a.parse().unwrap());
    rayon::ThreadPoolBuilder::new().num_threads(number("--threads", 2)).build_global().unwrap();
    let dataset = Arc::new(Dataset::from_folder(Path::new(args.last().unwrap()), 0.0, 0).unwrap());
    let recipe = Recipe {
        augment: Augment::default(),
        preprocess: Preprocess::torchvision(256, 224),
        seed: 0,
        batch_size: number("--batch", 32),
        shard: Shard::WHOLE,
    };
    for (epoch, _) in std::io::stdin().lock().lines().enumerate() {
        let start = Instant::now();
        let (mut images, mut sum) = (0, 0.0);
        for batch in Loader::new(recipe.clone(), dataset.clone(), epoch, 0).unwrap() {
            assert!(batch.skipped.is_empty(), "{:?}", batch.skipped);
            images += batch.dims[0];
            sum += f64::from(batch.images[batch.images.len() / 2]);
        }
        let seconds = start.elapsed().as_secs_f64();
        println!("{}", serde_json::json!({"seconds": seconds, "images": images, "sample": sum}));
    }
}
