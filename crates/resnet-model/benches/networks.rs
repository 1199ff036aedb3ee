//! Whole networks through the engine: `cargo bench -p resnet-model --bench networks -- [FILTER]`.
//!
//! An item is an image. `resnet-cli bench` says more of one network, `make peers` compares with other engines.
#![allow(clippy::unwrap_used)]

use std::fmt;

use divan::Bencher;
use divan::counter::ItemsCount;
use resnet_model::engine::{Engine, EngineOptions};
use resnet_model::{synthetic, zoo};

fn main() {
    divan::main();
}

struct Case {
    model: &'static str,
    batch: usize,
    threads: usize,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}-b{}-t{}", self.model, self.batch, self.threads)
    }
}

fn cases() -> Vec<Case> {
    let cores = EngineOptions::default().threads;
    let mut cases = Vec::new();
    for model in ["resnet18", "resnet50", "resnext50_32x4d", "resnetv2_50", "vgg16", "inception_v3"] {
        for batch in [1, 8] {
            for threads in if cores == 1 { vec![1] } else { vec![1, cores] } {
                cases.push(Case { model, batch, threads });
            }
        }
    }
    cases
}

#[divan::bench(args = cases(), max_time = 3, min_time = 1)]
fn run(bencher: Bencher, case: &Case) {
    let &Case { model, batch, threads } = case;
    let checkpoint = synthetic::checkpoint(&zoo::arch(model).unwrap()).unwrap();
    let engine =
        Engine::new(&checkpoint, EngineOptions { threads, batch, ..EngineOptions::default() }).unwrap();
    let [height, width] = checkpoint.meta().preprocess.crop;
    let dims = [batch, 3, height, width];
    let x = synthetic::input(dims.iter().product());
    bencher.counter(ItemsCount::new(batch)).bench_local(|| engine.output(&x, dims).unwrap());
}
