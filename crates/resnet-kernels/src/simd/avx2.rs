//! AVX2 with FMA: a vector is two registers, a tile 16 channels × 6 pixels in 12 of the 16.
#![allow(unsafe_code)]

use std::arch::x86_64::*;

use super::tile::{Tile, dispatch};
use super::{Kernel, Simd};
use crate::threads::TileOutput;

/// Proof that this CPU has AVX2 and FMA: [`Avx2::new`] is the only way to get one.
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

/// Both halves of a result by an intrinsic that needs nothing but the instruction set.
macro_rules! op {
    (|$i:ident| $intrinsic:expr) => {
        [0, 1].map(
            #[inline(always)]
            |$i: usize| {
                // SAFETY: a value of `Avx2` exists only where these instructions do.
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
        // SAFETY: a value of `Avx2` exists only where these instructions do.
        unsafe { vectorize(self, kernel) }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        // SAFETY: as in `op!`.
        [unsafe { _mm256_set1_ps(x) }; 2]
    }

    #[inline(always)]
    fn load(self, from: &[f32; 16]) -> Self::V {
        // SAFETY: 8 values from 0 and from 8 of an array of 16.
        unsafe { [_mm256_loadu_ps(from.as_ptr()), _mm256_loadu_ps(from.as_ptr().add(8))] }
    }

    #[inline(always)]
    fn store(self, to: &mut [f32; 16], v: Self::V) {
        // SAFETY: 8 values from 0 and from 8 of an array of 16.
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
        // The instruction answers its second operand when either is NaN.
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
        // SAFETY: a prefetch of any address is allowed.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(address.cast()) }
    }

    fn tile(self, tile: &Tile, blocks: usize, output: &mut TileOutput) {
        dispatch!(self, tile, blocks, output; 1: [1, 2, 3, 4, 5, 6])
    }
}
