//! Measured FMA peak, the upper bound for every kernel.

use std::time::{Duration, Instant};

use crate::simd::{Dispatch, Isa, Kernel, Simd};

/// Measures the peak of one thread in FLOP/s (an FMA counts as two) with independent FMA chains in registers.
///
/// Returns the best of several short runs within about `budget`. Clock frequencies drift, so compare only with
/// measurements taken at the same time.
pub fn fma_peak(isa: Isa, budget: Duration) -> f64 {
    isa.dispatch(Peak { budget })
}

struct Peak {
    budget: Duration,
}

impl Dispatch for Peak {
    type Output = f64;

    fn run<S: Simd>(self, simd: S) -> f64 {
        // The number of accumulators of the widest tile; more would spill.
        let vectors = S::PIXELS.len() * S::PIXELS.last().copied().unwrap_or(1);
        let begin = Instant::now();
        let mut best = 0.0f64;
        while best == 0.0 || begin.elapsed() < self.budget {
            let start = Instant::now();
            match vectors {
                24 => std::hint::black_box(simd.vectorize(FmaLoop::<24>)),
                6 => std::hint::black_box(simd.vectorize(FmaLoop::<6>)),
                _ => std::hint::black_box(simd.vectorize(FmaLoop::<2>)),
            };
            let count = if vectors == 24 || vectors == 6 { vectors } else { 2 };
            let flops = (ROUNDS * count * 16 * 2) as f64;
            best = best.max(flops / start.elapsed().as_secs_f64());
        }
        best
    }
}

const ROUNDS: usize = 20_000;

struct FmaLoop<const VECTORS: usize>;

impl<const VECTORS: usize> Kernel for FmaLoop<VECTORS> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let scale = s.splat(std::hint::black_box(0.999));
        let shift = s.splat(std::hint::black_box(0.001));
        // Distinct lanes, all of them used: otherwise the compiler drops registers of a vector.
        let lanes: [f32; 16] = std::hint::black_box(std::array::from_fn(|lane| lane as f32));
        let mut acc: [S::V; VECTORS] = std::array::from_fn(|i| s.add(s.load(&lanes), s.splat(i as f32)));
        for _ in 0..ROUNDS {
            for x in &mut acc {
                *x = s.mul_add(*x, scale, shift);
            }
        }
        let mut sum = [0.0; 16];
        let total = acc.into_iter().fold(s.splat(0.0), |total, x| s.add(total, x));
        s.store(&mut sum, total);
        std::hint::black_box(sum)[0]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peak_is_plausible() {
        for isa in Isa::available() {
            let peak = fma_peak(isa, Duration::from_millis(1));
            // Emulated CPUs are slow.
            assert!(peak > 1e6 && peak < 1e13, "{} {peak}", isa.name());
        }
    }
}
