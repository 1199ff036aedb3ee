//! NEON: a vector is four registers; a tile of 16 channels × 6 pixels uses 24 of the 32 registers.
#![allow(unsafe_code)]

use std::arch::aarch64::*;

use super::tile::{Tile, dispatch};
use super::{Kernel, Simd};
use crate::threads::TileOutput;

/// Proof that this CPU supports NEON; created by [`Neon::new`] only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Neon(());

impl Neon {
    pub(crate) fn new() -> Option<Self> {
        std::arch::is_aarch64_feature_detected!("neon").then_some(Self(()))
    }
}

#[target_feature(enable = "neon")]
fn vectorize<K: Kernel>(simd: Neon, kernel: K) -> K::Output {
    kernel.run(simd)
}

/// Applies an intrinsic, whose only requirement is the instruction set, to all quarters.
macro_rules! op {
    (|$i:ident| $intrinsic:expr) => {
        [0, 1, 2, 3].map(
            #[inline(always)]
            |$i: usize| {
                // SAFETY: a value of `Neon` proves that the CPU supports these instructions.
                #[allow(unused_unsafe)]
                unsafe {
                    $intrinsic
                }
            },
        )
    };
}

impl Simd for Neon {
    type V = [float32x4_t; 4];

    const NAME: &'static str = "neon";
    const PIXELS: &'static [usize] = &[6];

    #[inline(always)]
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output {
        // SAFETY: a value of `Neon` proves that the CPU supports these instructions.
        unsafe { vectorize(self, kernel) }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        op!(|_i| vdupq_n_f32(x))
    }

    #[inline(always)]
    fn load(self, from: &[f32; 16]) -> Self::V {
        // In bounds: reads four values each from 0, 4, 8 and 12 of an array of 16.
        op!(|i| vld1q_f32(from.as_ptr().add(4 * i)))
    }

    #[inline(always)]
    fn store(self, to: &mut [f32; 16], v: Self::V) {
        for (quarter, v) in to.as_chunks_mut::<4>().0.iter_mut().zip(v) {
            // SAFETY: the chunk has four writable values.
            unsafe { vst1q_f32(quarter.as_mut_ptr(), v) }
        }
    }

    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        op!(|i| vaddq_f32(a[i], b[i]))
    }

    #[inline(always)]
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        op!(|i| vsubq_f32(a[i], b[i]))
    }

    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        op!(|i| vmulq_f32(a[i], b[i]))
    }

    #[inline(always)]
    fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        op!(|i| vfmaq_f32(c[i], a[i], b[i]))
    }

    #[inline(always)]
    fn relu(self, x: Self::V) -> Self::V {
        // FMAX returns NaN if either operand is NaN.
        op!(|i| vmaxq_f32(x[i], vdupq_n_f32(0.0)))
    }

    #[inline(always)]
    fn select_positive(self, x: Self::V, y: Self::V) -> Self::V {
        op!(|i| vbslq_f32(vcgtzq_f32(y[i]), x[i], vdupq_n_f32(0.0)))
    }

    #[inline(always)]
    fn max(self, a: Self::V, b: Self::V) -> Self::V {
        op!(|i| vmaxq_f32(a[i], b[i]))
    }

    #[inline(always)]
    fn prefetch(self, _address: *const f32) {
        // The intrinsic is unstable, and the hardware prefetcher follows sequential streams.
    }

    fn tile(self, tile: &Tile, blocks: usize, output: &mut TileOutput) {
        dispatch!(self, tile, blocks, output; 1: [1, 2, 3, 4, 5, 6])
    }
}
