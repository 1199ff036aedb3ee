//! Prints, for the layers of ResNet-18 and -50, what each kernel reaches and its share of the FMA peak measured beside it.
//!
//! `cargo run --release -p resnet-kernels --example layers -- [isa] [threads] [batch] [filter]`
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use resnet_kernels::*;
use std::time::{Duration, Instant};

/// Name, shape, input size and how often ResNet-18 and ResNet-50 have it.
fn layers() -> Vec<(&'static str, ConvShape, usize, [usize; 2])> {
    let k1 = ConvShape::pointwise;
    let s2 = |shape: ConvShape| ConvShape { stride: [2, 2], ..shape };
    let k3 = |c_in, c_out| ConvShape { kernel: [3, 3], padding: [1, 1], ..k1(c_in, c_out) };
    let stem = ConvShape { kernel: [7, 7], stride: [2, 2], padding: [3, 3], ..k1(3, 64) };
    vec![
        ("stem 7x7/2 + pool", stem, 224, [1, 1]),
        ("3x3 64 56", k3(64, 64), 56, [4, 3]),
        ("3x3 128 28", k3(128, 128), 28, [3, 3]),
        ("3x3 256 14", k3(256, 256), 14, [3, 5]),
        ("3x3 512 7", k3(512, 512), 7, [3, 2]),
        ("3x3/2 64-128 56", s2(k3(64, 128)), 56, [1, 0]),
        ("3x3/2 128-256 28", s2(k3(128, 256)), 28, [1, 0]),
        ("3x3/2 256-512 14", s2(k3(256, 512)), 14, [1, 0]),
        ("3x3/2 128 56", s2(k3(128, 128)), 56, [0, 1]),
        ("3x3/2 256 28", s2(k3(256, 256)), 28, [0, 1]),
        ("3x3/2 512 14", s2(k3(512, 512)), 14, [0, 1]),
        ("1x1/2 64-128 56", s2(k1(64, 128)), 56, [1, 0]),
        ("1x1/2 128-256 28", s2(k1(128, 256)), 28, [1, 0]),
        ("1x1/2 256-512 14", s2(k1(256, 512)), 14, [1, 0]),
        ("1x1/2 256-512 56", s2(k1(256, 512)), 56, [0, 1]),
        ("1x1/2 512-1024 28", s2(k1(512, 1024)), 28, [0, 1]),
        ("1x1/2 1024-2048 14", s2(k1(1024, 2048)), 14, [0, 1]),
        ("1x1 64-64 56", k1(64, 64), 56, [0, 1]),
        ("1x1 64-256 56", k1(64, 256), 56, [0, 4]),
        ("1x1 256-64 56", k1(256, 64), 56, [0, 2]),
        ("1x1 256-128 56", k1(256, 128), 56, [0, 1]),
        ("1x1 128-512 28", k1(128, 512), 28, [0, 4]),
        ("1x1 512-128 28", k1(512, 128), 28, [0, 3]),
        ("1x1 512-256 28", k1(512, 256), 28, [0, 1]),
        ("1x1 256-1024 14", k1(256, 1024), 14, [0, 6]),
        ("1x1 1024-256 14", k1(1024, 256), 14, [0, 5]),
        ("1x1 1024-512 14", k1(1024, 512), 14, [0, 1]),
        ("1x1 512-2048 7", k1(512, 2048), 7, [0, 3]),
        ("1x1 2048-512 7", k1(2048, 512), 7, [0, 2]),
        ("3x3g32 128 56", ConvShape { groups: 32, ..k3(128, 128) }, 56, [0, 0]),
        ("3x3g32 256 28", ConvShape { groups: 32, ..k3(256, 256) }, 28, [0, 0]),
        ("3x3g32 512 14", ConvShape { groups: 32, ..k3(512, 512) }, 14, [0, 0]),
        ("3x3g32 1024 7", ConvShape { groups: 32, ..k3(1024, 1024) }, 7, [0, 0]),
        ("3x3 dil2 256 28", ConvShape { dilation: [2, 2], padding: [2, 2], ..k3(256, 256) }, 28, [0, 0]),
    ]
}

/// The same layer with several copies of weights and data, so that they are as cold as within a network.
struct Bench {
    convs: Vec<PackedConv>,
    input: Aligned,
    layout: Blocked,
    output: Aligned,
    output_layout: Blocked,
    scratch: Aligned,
    dims: [usize; 4],
    macs: f64,
}

impl Bench {
    fn new(name: &str, shape: ConvShape, size: usize, batch: usize, threads: usize, plan: Plan) -> Self {
        let weights: Vec<f32> =
            (0..shape.weight_len().unwrap()).map(|i| (i % 17) as f32 / 17.0 - 0.4).collect();
        let bias = vec![0.1; shape.c_out];
        let params = Parameters { weights: &weights, bias: Some(&bias) };
        let window = Window { kernel: [3, 3], stride: [2, 2], padding: [1, 1], ceil_mode: false };
        let max_pool = name.contains("pool").then_some(window);
        let finish = Finish { activation: Activation::Relu, max_pool };
        let first = PackedConv::new(shape, plan, params, finish).unwrap();
        // Together more than the last-level cache keeps, as the weights of a whole network are.
        let copies = (64 << 20) / first.bytes();
        let copies = copies.clamp(1, 12);
        let convs = vec![first; copies];
        let dims = [batch, shape.c_in, size, size];
        let layout = Blocked::new(dims).unwrap().with_halo(convs[0].input_halo()).unwrap();
        let output_layout = Blocked::new(convs[0].output_dims(dims).unwrap()).unwrap();
        let mut input = Aligned::zeroed(layout.len());
        input.iter_mut().enumerate().for_each(|(i, x)| *x = (i % 13) as f32 / 13.0);
        let scratch = Aligned::zeroed(convs[0].scratch_len(dims, threads).unwrap());
        let macs = shape.macs(batch, [size, size]).unwrap();
        Self {
            convs,
            input,
            layout,
            output: Aligned::zeroed(output_layout.len()),
            output_layout,
            scratch,
            dims,
            macs,
        }
    }

    fn once(&mut self, round: usize, pool: &Pool) -> Duration {
        let conv = &self.convs[round % self.convs.len()];
        let input = match conv.plan().algorithm {
            Algorithm::Planar => {
                Input::Planar { dims: self.dims, data: &self.input[..self.dims.iter().product()] }
            }
            _ => Input::Blocked(View { layout: self.layout, data: &self.input }),
        };
        let output = ViewMut { layout: self.output_layout, data: &mut self.output };
        let start = Instant::now();
        conv.run(input, Residual::None, output, &mut self.scratch, pool).unwrap();
        start.elapsed()
    }
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let arg = |index: usize| args.get(index).map(String::as_str);
    let isa = arg(0).map_or(Isa::best(), |name| Isa::by_name(name).unwrap());
    let threads: usize = arg(1).map_or(1, |threads| threads.parse().unwrap());
    let batch: usize = arg(2).map_or(1, |batch| batch.parse().unwrap());
    let filter = arg(3).unwrap_or("");
    let forced = arg(4);
    let rounds: usize = arg(5).map_or(60, |rounds| rounds.parse().unwrap());
    let pool = Pool::new(threads).unwrap();
    println!(
        "{:<20} {:<28} {:>8} {:>8} {:>9} {:>7}",
        "layer", "kernel", "min ms", "med ms", "GFLOP/s", "% peak"
    );
    let mut totals = [0.0; 2];
    for (name, shape, size, counts) in layers() {
        if !name.contains(filter) {
            continue;
        }
        let mut plan = Plan::choose(&shape, Site { batch, input: [size, size] }, isa, Precision::F32);
        if let Some(forced) = forced {
            use Algorithm::*;
            let found =
                [Planar, Pointwise, Direct, Winograd2, Winograd4].into_iter().find(|a| a.name() == forced);
            plan.algorithm =
                found.filter(|algorithm| algorithm.supports(&shape).is_ok()).unwrap_or(plan.algorithm);
        }
        let mut bench = Bench::new(name, shape, size, batch, threads, plan);
        let mut times = Vec::new();
        let mut peak = fma_peak(isa, Duration::from_millis(2));
        for round in 0..rounds {
            times.push(bench.once(round, &pool).as_secs_f64());
            if round % 10 == 9 {
                peak = peak.max(fma_peak(isa, Duration::from_micros(500)));
            }
        }
        times.sort_by(f64::total_cmp);
        let best = times[0];
        let rate = 2.0 * bench.macs / best;
        let share = 100.0 * rate / (peak * threads as f64);
        let kernel = bench.convs[0].kernel_name();
        println!(
            "{name:<20} {kernel:<28} {:>8.3} {:>8.3} {:>9.1} {share:>7.1}",
            best * 1e3,
            times[times.len() / 2] * 1e3,
            rate / 1e9
        );
        for (total, count) in totals.iter_mut().zip(counts) {
            *total += best * 1e3 * count as f64;
        }
    }
    println!("sum of minima: ResNet-18 {:.2} ms, ResNet-50 {:.2} ms", totals[0], totals[1]);
}
