//! Convolution layers of ResNets on every instruction set: `cargo bench -p resnet-kernels -- [FILTER]`.
//!
//! A name consists of instruction set, algorithm, layer, batch size and threads. An item is a multiply-add of the
//! direct sum.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::fmt;
use std::time::Duration;

use divan::Bencher;
use divan::counter::ItemsCount;
use resnet_kernels::{
    Activation, Algorithm, AlignedVec, Blocked, ConvShape, ConvWeights, Epilogue, Input, InputHint, Isa,
    PackedConv, Plan, PoolSpec, Precision, Residual, ThreadPool, View, ViewMut, fma_peak,
};

fn main() {
    for isa in Isa::available() {
        let peak = fma_peak(isa, Duration::from_millis(100)) / 2e9;
        println!("{}: {peak:.1} G multiply-adds per second (FMA peak of one thread)", isa.name());
    }
    divan::main();
}

/// Returns name, shape and input size of convolutions in ResNet-18, ResNet-50 and ResNeXt-50.
fn layers() -> Vec<(&'static str, ConvShape, usize)> {
    let k1 = ConvShape::pointwise;
    let s2 = |shape: ConvShape| ConvShape { stride: [2, 2], ..shape };
    let k3 = |c_in, c_out| ConvShape { kernel: [3, 3], padding: [1, 1], ..k1(c_in, c_out) };
    let grouped = |c| ConvShape { groups: 32, ..k3(c, c) };
    vec![
        (STEM, ConvShape { kernel: [7, 7], padding: [3, 3], ..s2(k1(3, 64)) }, 224),
        ("3x3-64-56", k3(64, 64), 56),
        ("3x3-128-28", k3(128, 128), 28),
        ("3x3-256-14", k3(256, 256), 14),
        ("3x3-512-7", k3(512, 512), 7),
        ("3x3s2-64-128-56", s2(k3(64, 128)), 56),
        ("3x3s2-128-56", s2(k3(128, 128)), 56),
        ("3x3s2-512-14", s2(k3(512, 512)), 14),
        ("1x1s2-256-512-56", s2(k1(256, 512)), 56),
        ("1x1s2-1024-2048-14", s2(k1(1024, 2048)), 14),
        ("1x1-64-256-56", k1(64, 256), 56),
        ("1x1-256-64-56", k1(256, 64), 56),
        ("1x1-128-512-28", k1(128, 512), 28),
        ("1x1-512-128-28", k1(512, 128), 28),
        ("1x1-256-1024-14", k1(256, 1024), 14),
        ("1x1-1024-256-14", k1(1024, 256), 14),
        ("1x1-512-2048-7", k1(512, 2048), 7),
        ("1x1-2048-512-7", k1(2048, 512), 7),
        ("3x3g32-128-56", grouped(128), 56),
        ("3x3g32-1024-7", grouped(1024), 7),
        ("3x3d2-256-28", ConvShape { dilation: [2, 2], padding: [2, 2], ..k3(256, 256) }, 28),
    ]
}

const STEM: &str = "7x7s2-pool-3-64-224";

struct Case {
    name: String,
    shape: ConvShape,
    size: usize,
    batch: usize,
    threads: usize,
    plan: Plan,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.name)
    }
}

fn cases() -> Vec<Case> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = if cores == 1 { vec![1] } else { vec![1, cores] };
    let mut cases = Vec::new();
    for isa in Isa::available() {
        for (layer, shape, size) in layers() {
            for (batch, &threads) in
                [1, 8].into_iter().flat_map(|batch| threads.iter().map(move |t| (batch, t)))
            {
                let hint = InputHint { batch, input: [size, size] };
                let plan = Plan::choose(&shape, hint, isa, Precision::F32);
                let name = format!("{}-{}-{layer}-b{batch}-t{threads}", isa.name(), plan.algorithm.name());
                cases.push(Case { name, shape, size, batch, threads, plan });
            }
        }
    }
    cases
}

/// Cycles through copies of the weights, so that they are as cold as in a network.
#[divan::bench(args = cases(), max_time = 1)]
fn conv(bencher: Bencher, case: &Case) {
    let Case { shape, size, batch, .. } = *case;
    let weights: Vec<f32> = (0..shape.weight_len().unwrap()).map(|i| (i % 17) as f32 / 17.0 - 0.4).collect();
    let bias = vec![0.1; shape.c_out];
    let spec = PoolSpec { kernel: [3, 3], stride: [2, 2], padding: [1, 1], ceil_mode: false };
    let epilogue =
        Epilogue { activation: Activation::Relu, max_pool: case.name.contains(STEM).then_some(spec) };
    let conv_weights = ConvWeights { weights: &weights, bias: Some(&bias) };
    let first = PackedConv::new(shape, case.plan, conv_weights, epilogue).unwrap();
    // More in total than the last-level cache holds.
    let copies = ((64 << 20) / first.bytes()).clamp(1, 12);
    let convs = vec![first; copies];

    let dims = [batch, shape.c_in, size, size];
    let layout = Blocked::new(dims).unwrap().with_halo(convs[0].input_halo()).unwrap();
    let output_layout = Blocked::new(convs[0].output_dims(dims).unwrap()).unwrap();
    let mut input = AlignedVec::zeroed(layout.len()).unwrap();
    input.iter_mut().enumerate().for_each(|(i, x)| *x = (i % 13) as f32 / 13.0);
    let mut output = AlignedVec::zeroed(output_layout.len()).unwrap();
    let mut scratch = AlignedVec::zeroed(convs[0].scratch_len(dims, case.threads).unwrap()).unwrap();
    let pool = ThreadPool::new(case.threads).unwrap();
    let mut next = convs.iter().cycle();
    let macs = shape.macs(batch, [size, size]).unwrap();
    bencher.counter(ItemsCount::new(macs as u64)).bench_local(|| {
        let conv = next.next().unwrap();
        let input = match conv.plan().algorithm {
            Algorithm::Planar => Input::Planar { dims, data: &input[..dims.iter().product()] },
            _ => Input::Blocked(View { layout, data: &input }),
        };
        let output = ViewMut { layout: output_layout, data: &mut output };
        conv.run(input, Residual::None, output, &mut scratch, &pool).unwrap();
    });
}
