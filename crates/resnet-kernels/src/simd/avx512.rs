//! AVX-512: a vector is one register; a tile of up to 64 channels × 6 pixels uses 24 of the 32 registers.
#![allow(unsafe_code)]

use std::arch::x86_64::*;

use super::tile::{Tile, dispatch};
use super::{Kernel, Simd};
use crate::threads::TileOutput;

/// Proof that this CPU supports AVX-512 F, DQ and VL, AVX2 and FMA; created by [`Avx512::new`] only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Avx512(());

impl Avx512 {
    pub(crate) fn new() -> Option<Self> {
        let has = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma");
        has.then_some(Self(()))
    }
}

#[target_feature(enable = "avx512f,avx512dq,avx512vl,avx2,fma")]
fn vectorize<K: Kernel>(simd: Avx512, kernel: K) -> K::Output {
    kernel.run(simd)
}

/// Calls an intrinsic whose only requirement is the instruction set.
macro_rules! op {
    ($($intrinsic:tt)*) => {
        // SAFETY: a value of `Avx512` proves that the CPU supports these instructions.
        unsafe { $($intrinsic)* }
    };
}

impl Simd for Avx512 {
    type V = __m512;

    const NAME: &'static str = "avx512";
    const PIXELS: &'static [usize] = &[14, 12, 8, 6];

    #[inline(always)]
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output {
        op!(vectorize(self, kernel))
    }

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        op!(_mm512_set1_ps(x))
    }

    #[inline(always)]
    fn load(self, from: &[f32; 16]) -> __m512 {
        // SAFETY: the array is 16 readable values; see `op!` for the instruction.
        unsafe { _mm512_loadu_ps(from.as_ptr()) }
    }

    #[inline(always)]
    fn store(self, to: &mut [f32; 16], v: __m512) {
        // SAFETY: the array is 16 writable values; see `op!` for the instruction.
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), v) }
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_add_ps(a, b))
    }

    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_sub_ps(a, b))
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_mul_ps(a, b))
    }

    #[inline(always)]
    fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        op!(_mm512_fmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn relu(self, x: __m512) -> __m512 {
        // `vmaxps` returns its second operand if either is NaN.
        op!(_mm512_max_ps(_mm512_setzero_ps(), x))
    }

    #[inline(always)]
    fn select_positive(self, x: __m512, y: __m512) -> __m512 {
        op!(_mm512_maskz_mov_ps(_mm512_cmp_ps_mask::<_CMP_GT_OQ>(y, _mm512_setzero_ps()), x))
    }

    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        op!({
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(a, a);
            _mm512_mask_mov_ps(_mm512_max_ps(a, b), nan, a)
        })
    }

    #[inline(always)]
    fn prefetch(self, address: *const f32) {
        op!(_mm_prefetch::<_MM_HINT_T1>(address.cast()))
    }

    fn tile(self, tile: &Tile, blocks: usize, output: &mut TileOutput) {
        dispatch!(self, tile, blocks, output;
            1: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14],
            2: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12],
            3: [1, 2, 3, 4, 5, 6, 7, 8],
            4: [1, 2, 3, 4, 5, 6],
        )
    }
}
