//! AVX2 and FMA: a vector is two registers; a tile of 16 channels × 6 pixels uses 12 of the 16 registers.
#![allow(unsafe_code)]

use std::arch::x86_64::*;

use super::tile::{Tile, dispatch};
use super::{Kernel, Simd};
use crate::threads::TileOutput;

/// Proof that this CPU supports AVX2 and FMA; created by [`Avx2::new`] only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Avx2(());

impl Avx2 {
    pub(crate) fn new() -> Option<Self> {
        (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")).then_some(Self(()))
    }
}

#[target_feature(enable = "avx2,fma")]
fn vectorize<K: Kernel>(simd: Avx2, kernel: K) -> K::Output {
    kernel.run(simd)
}

/// Applies an intrinsic, whose only requirement is the instruction set, to both halves.
macro_rules! op {
    (|$i:ident| $intrinsic:expr) => {
        [0, 1].map(
            #[inline(always)]
            |$i: usize| {
                // SAFETY: a value of `Avx2` proves that the CPU supports these instructions.
                unsafe { $intrinsic }
            },
        )
    };
}

impl Simd for Avx2 {
    type V = [__m256; 2];

    const NAME: &'static str = "avx2";
    const PIXELS: &'static [usize] = &[6];

    #[inline(always)]
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output {
        // SAFETY: a value of `Avx2` proves that the CPU supports these instructions.
        unsafe { vectorize(self, kernel) }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        // SAFETY: as in `op!`.
        [unsafe { _mm256_set1_ps(x) }; 2]
    }

    #[inline(always)]
    fn load(self, from: &[f32; 16]) -> Self::V {
        // SAFETY: reads 8 values each from 0 and 8 of an array of 16.
        unsafe { [_mm256_loadu_ps(from.as_ptr()), _mm256_loadu_ps(from.as_ptr().add(8))] }
    }

    #[inline(always)]
    fn store(self, to: &mut [f32; 16], v: Self::V) {
        // SAFETY: writes 8 values each from 0 and 8 of an array of 16.
        unsafe {
            _mm256_storeu_ps(to.as_mut_ptr(), v[0]);
            _mm256_storeu_ps(to.as_mut_ptr().add(8), v[1]);
        }
    }

    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        op!(|i| _mm256_add_ps(a[i], b[i]))
    }

    #[inline(always)]
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        op!(|i| _mm256_sub_ps(a[i], b[i]))
    }

    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        op!(|i| _mm256_mul_ps(a[i], b[i]))
    }

    #[inline(always)]
    fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        op!(|i| _mm256_fmadd_ps(a[i], b[i], c[i]))
    }

    #[inline(always)]
    fn relu(self, x: Self::V) -> Self::V {
        // `vmaxps` returns its second operand if either is NaN.
        op!(|i| _mm256_max_ps(_mm256_setzero_ps(), x[i]))
    }

    #[inline(always)]
    fn select_positive(self, x: Self::V, y: Self::V) -> Self::V {
        op!(|i| _mm256_and_ps(_mm256_cmp_ps::<_CMP_GT_OQ>(y[i], _mm256_setzero_ps()), x[i]))
    }

    #[inline(always)]
    fn max(self, a: Self::V, b: Self::V) -> Self::V {
        op!(|i| {
            let nan = _mm256_cmp_ps::<_CMP_UNORD_Q>(a[i], a[i]);
            _mm256_blendv_ps(_mm256_max_ps(a[i], b[i]), a[i], nan)
        })
    }

    #[inline(always)]
    fn prefetch(self, address: *const f32) {
        // SAFETY: prefetching is allowed at any address.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(address.cast()) }
    }

    fn tile(self, tile: &Tile, blocks: usize, output: &mut TileOutput) {
        dispatch!(self, tile, blocks, output; 1: [1, 2, 3, 4, 5, 6])
    }
}
