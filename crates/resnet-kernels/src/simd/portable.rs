//! Portable fallback: arrays of 16 that the compiler vectorizes with the baseline instructions of the target.

use super::tile::{Tile, dispatch};
use super::{Kernel, Simd};
use crate::threads::TileOutput;

/// Token of the portable implementation, supported by every CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Portable;

#[inline(always)]
fn zip(a: [f32; 16], b: [f32; 16], f: impl Fn(f32, f32) -> f32) -> [f32; 16] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

impl Simd for Portable {
    type V = [f32; 16];

    const NAME: &'static str = "portable";
    const PIXELS: &'static [usize] = &[2];

    #[inline(always)]
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output {
        kernel.run(self)
    }

    #[inline(always)]
    fn splat(self, x: f32) -> [f32; 16] {
        [x; 16]
    }

    #[inline(always)]
    fn load(self, from: &[f32; 16]) -> [f32; 16] {
        *from
    }

    #[inline(always)]
    fn store(self, to: &mut [f32; 16], v: [f32; 16]) {
        *to = v;
    }

    #[inline(always)]
    fn add(self, a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        zip(a, b, |a, b| a + b)
    }

    #[inline(always)]
    fn sub(self, a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        zip(a, b, |a, b| a - b)
    }

    #[inline(always)]
    fn mul(self, a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        zip(a, b, |a, b| a * b)
    }

    #[inline(always)]
    fn mul_add(self, a: [f32; 16], b: [f32; 16], c: [f32; 16]) -> [f32; 16] {
        // Two roundings: `f32::mul_add` is a library call on targets without FMA.
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }

    #[inline(always)]
    fn relu(self, x: [f32; 16]) -> [f32; 16] {
        x.map(|x| if x < 0.0 { 0.0 } else { x })
    }

    #[inline(always)]
    fn select_positive(self, x: [f32; 16], y: [f32; 16]) -> [f32; 16] {
        zip(x, y, |x, y| if y > 0.0 { x } else { 0.0 })
    }

    #[inline(always)]
    fn max(self, a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        zip(a, b, |a, b| if a > b || a.is_nan() { a } else { b })
    }

    #[inline(always)]
    fn prefetch(self, _address: *const f32) {}

    fn tile(self, tile: &Tile, blocks: usize, output: &mut TileOutput) {
        dispatch!(self, tile, blocks, output; 1: [1, 2])
    }
}
