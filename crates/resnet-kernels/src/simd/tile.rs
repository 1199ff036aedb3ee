//! Register-tile micro-kernel: the inner loop of all convolutions and fully connected layers.
#![allow(unsafe_code)]
#![allow(clippy::needless_range_loop, reason = "indices into arrays of registers match the formulas")]

use super::{Kernel, Simd};
use crate::threads::TileOutput;

/// Maximum number of pixels per tile over all instruction sets.
pub(crate) const MAX_PIXELS: usize = 14;

/// Reduction of a tile: three nested loops, each of which advances the input by a stride, around a run of contiguous
/// inputs. The weights are packed in the same order.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reduction {
    count: [usize; 3],
    stride: [usize; 3],
    run: usize,
    len: usize,
    reach: usize,
}

impl Reduction {
    /// Creates a reduction over `run` contiguous inputs (0 for an empty sum) for each combination of the three counts.
    pub(crate) fn new(count: [usize; 3], stride: [usize; 3], run: usize) -> Self {
        let len = count.iter().product::<usize>() * run;
        let reach = (0..3).map(|i| count[i].saturating_sub(1) * stride[i]).sum::<usize>() + run;
        Self { count, stride, run, len, reach: if len == 0 { 0 } else { reach } }
    }

    /// Returns the number of products per output.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Returns the number of contiguous inputs in the innermost loop.
    pub(crate) fn run(&self) -> usize {
        self.run
    }
}

/// Addend of the sums of a tile.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Addend<'a> {
    None,
    /// Previous content of the output.
    Output,
    /// Blocks `stride` elements apart; pixel `p` reads 16 values of each from `at[p]` on.
    Blocks {
        data: &'a [f32],
        stride: usize,
        at: [usize; MAX_PIXELS],
    },
}

/// Register tile of `blocks` × 16 output channels × `pixels` pixels:
/// `y[m·16 + lane][p] = relu(bias + addend + Σₖ w[k][m·16 + lane] · x[p][k])`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tile<'a> {
    /// `[reduction.len()][blocks × 16]`.
    pub weights: &'a [f32],
    pub input: &'a [f32],
    pub reduction: &'a Reduction,
    /// Number of pixels, which is the number of used entries in the arrays of offsets.
    pub pixels: usize,
    /// Offset of each pixel's reduction in `input`.
    pub from: [usize; MAX_PIXELS],
    /// Offset of each pixel within a block of the output.
    pub to: [usize; MAX_PIXELS],
    /// `[blocks × 16]`.
    pub bias: Option<&'a [f32]>,
    pub addend: Addend<'a>,
    pub relu: bool,
    /// Weights of a later tile to prefetch into the L2 cache, [`prefetch_lines`] cache lines per step of the reduction.
    /// Empty to disable prefetching.
    pub prefetch: &'a [f32],
}

/// Returns the number of cache lines that a tile of `blocks` blocks prefetches per step of its reduction: half of what
/// it reads, so that two tiles prefetch the weights of a third.
pub(crate) const fn prefetch_lines(blocks: usize) -> usize {
    blocks.div_ceil(2)
}

impl Tile<'_> {
    /// Panics unless everything that a kernel of `blocks` × `pixels` accesses is inside the slices and the output.
    #[inline(always)]
    fn assert_inside(&self, blocks: usize, pixels: usize, output: &TileOutput) {
        assert!(pixels <= MAX_PIXELS && blocks <= output.blocks);
        assert!(self.weights.len() >= self.reduction.len * blocks * 16);
        assert!(self.bias.is_none_or(|bias| bias.len() >= blocks * 16));
        let inside = |at: &[usize; MAX_PIXELS], bound: usize| at[..pixels].iter().all(|&at| at <= bound);
        assert!(self.input.len() >= self.reduction.reach);
        assert!(inside(&self.from, self.input.len() - self.reduction.reach));
        assert!(output.run.end >= 16 && inside(&self.to, output.run.end - 16));
        assert!(self.to[..pixels].iter().all(|&at| at >= output.run.start));
        if let Addend::Blocks { data, stride, at } = &self.addend {
            let reach = (blocks - 1) * stride + 16;
            assert!(data.len() >= reach && inside(at, data.len() - reach));
        }
    }
}

/// Tile with compile-time extents; `RUN` is the reduction's run, or 0 for any.
pub(crate) struct Fixed<'a, 'b, 'c, const BLOCKS: usize, const PIXELS: usize, const RUN: usize> {
    pub tile: &'a Tile<'b>,
    pub output: &'a mut TileOutput<'c>,
}

impl<const BLOCKS: usize, const PIXELS: usize, const RUN: usize> Kernel
    for Fixed<'_, '_, '_, BLOCKS, PIXELS, RUN>
{
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Fixed { tile, output } = self;
        tile.assert_inside(BLOCKS, PIXELS, output);
        let Reduction { count, stride, run, .. } = *tile.reduction;
        assert!(RUN == 0 || run == RUN);
        let load = |from: *const f32| {
            // SAFETY: every caller below passes a pointer to 16 values that `assert_inside` has checked.
            s.load(unsafe { &*from.cast::<[f32; 16]>() })
        };
        let mut acc = [[s.splat(0.0); BLOCKS]; PIXELS];
        if let Some(bias) = tile.bias {
            let bias: [S::V; BLOCKS] = std::array::from_fn(|m| {
                // SAFETY: `m < BLOCKS`, and the bias has at least 16 values for each block.
                load(unsafe { bias.as_ptr().add(m * 16) })
            });
            acc = [bias; PIXELS];
        }
        // SAFETY: `from[p] + reach <= input.len()`.
        let base: [*const f32; PIXELS] =
            std::array::from_fn(|p| unsafe { tile.input.as_ptr().add(tile.from[p]) });
        let mut weights = tile.weights.as_ptr();
        let mut prefetch = tile.prefetch.as_ptr();
        let prefetch_step = if tile.prefetch.is_empty() { 0 } else { prefetch_lines(BLOCKS) * 16 };
        for i in 0..count[0] {
            for j in 0..count[1] {
                for k in 0..count[2] {
                    let offset = i * stride[0] + j * stride[1] + k * stride[2];
                    for step in 0..if RUN == 0 { run } else { RUN } {
                        let w: [S::V; BLOCKS] = std::array::from_fn(|m| {
                            // SAFETY: `weights` has advanced fewer than `reduction.len` times by `BLOCKS * 16`.
                            load(unsafe { weights.add(m * 16) })
                        });
                        for p in 0..PIXELS {
                            // SAFETY: `offset + step < reach`, and at least `reach` values follow `base[p]`.
                            let x = s.splat(unsafe { *base[p].add(offset + step) });
                            for m in 0..BLOCKS {
                                acc[p][m] = s.mul_add(w[m], x, acc[p][m]);
                            }
                        }
                        if RUN != 0 {
                            for line in 0..prefetch_lines(BLOCKS) {
                                s.prefetch(prefetch.wrapping_add(line * 16));
                            }
                            prefetch = prefetch.wrapping_add(prefetch_step);
                        }
                        // SAFETY: advances by at most `reduction.len * BLOCKS * 16` in total, the end of the weights.
                        weights = unsafe { weights.add(BLOCKS * 16) };
                    }
                }
            }
        }
        let block = output.stride;
        let out = output.as_mut_ptr();
        match &tile.addend {
            Addend::None => {}
            Addend::Output => {
                for p in 0..PIXELS {
                    for m in 0..BLOCKS {
                        // SAFETY: `to[p]..to[p] + 16` is in the output's run and `m < blocks`.
                        let old = load(unsafe { out.add(m * block + tile.to[p]) });
                        acc[p][m] = s.add(acc[p][m], old);
                    }
                }
            }
            Addend::Blocks { data, stride, at } => {
                for p in 0..PIXELS {
                    for m in 0..BLOCKS {
                        // SAFETY: `at[p] + (BLOCKS - 1) * stride + 16 <= data.len()`.
                        let other = load(unsafe { data.as_ptr().add(m * stride + at[p]) });
                        acc[p][m] = s.add(acc[p][m], other);
                    }
                }
            }
        }
        if tile.relu {
            for p in 0..PIXELS {
                for m in 0..BLOCKS {
                    acc[p][m] = s.relu(acc[p][m]);
                }
            }
        }
        for p in 0..PIXELS {
            for m in 0..BLOCKS {
                // SAFETY: as for `Addend::Output`; the output is borrowed mutably.
                let to = unsafe { &mut *out.add(m * block + tile.to[p]).cast::<[f32; 16]>() };
                s.store(to, acc[p][m]);
            }
        }
    }
}

/// Returns the number of pixels of the next tile of `blocks` blocks when `left` pixels are left. Tiles are balanced,
/// since narrow tiles are bound by loading weights.
pub(crate) fn next_pixels<S: Simd>(blocks: usize, left: usize) -> usize {
    let tiles = left.div_ceil(S::PIXELS[blocks - 1]);
    left.div_ceil(tiles.max(1))
}

/// Body of [`Simd::tile`]: selects the compiled kernel. Panics for extents that were not compiled.
macro_rules! dispatch {
    ($simd:expr, $tile:expr, $blocks:expr, $output:expr; $($m:literal: [$($p:literal),*]),* $(,)?) => {{
        let (tile, output) = ($tile, $output);
        if tile.reduction.run() == 16 {
            match ($blocks, tile.pixels) {
                $($(($m, $p) => $simd.vectorize($crate::simd::tile::Fixed::<$m, $p, 16> { tile, output }),)*)*
                extents => unreachable!("no kernel for {extents:?}"),
            }
        } else {
            match ($blocks, tile.pixels) {
                $($(($m, $p) => $simd.vectorize($crate::simd::tile::Fixed::<$m, $p, 0> { tile, output }),)*)*
                extents => unreachable!("no kernel for {extents:?}"),
            }
        }
    }};
}
pub(crate) use dispatch;
