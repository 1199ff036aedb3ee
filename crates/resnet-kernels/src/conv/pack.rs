//! Weights packed in the order in which the micro-kernel reads them.

use crate::error::Error;
use crate::layout::LANES;
use crate::shape::{ConvShape, ConvWeights};
use crate::simd::AlignedVec;
use crate::simd::Simd;
use crate::simd::tile::{Reduction, prefetch_lines};

/// Panel of output channels that one register tile computes.
#[derive(Clone, Debug)]
pub(crate) struct Panel {
    /// First output block.
    pub block: usize,
    /// Number of output blocks.
    pub blocks: usize,
    /// First input block that any of the outputs depends on.
    pub from: usize,
    /// Number of input blocks.
    pub depth: usize,
    /// Offset of the panel's weights.
    pub start: usize,
    /// Number of the panel's weights.
    pub len: usize,
}

/// Panels of a convolution, ordered by output channel.
#[derive(Clone, Debug)]
pub(crate) struct Panels {
    pub list: Vec<Panel>,
    /// First output block of every panel, and the total number of blocks.
    pub bounds: Vec<usize>,
    pub weights: AlignedVec,
    /// `[blocks × 16]`, zero in padding channels.
    pub bias: AlignedVec,
}

impl Panels {
    /// Divides the output channels into panels and allocates zero weights; `products` is the number of weights per pair
    /// of input and output channel.
    fn with_bias<S: Simd>(
        shape: &ConvShape,
        bias: Option<&[f32]>,
        products: usize,
        planar: bool,
    ) -> Result<Self, Error> {
        let mut panels = Self::empty::<S>(shape, products, planar);
        panels.weights = AlignedVec::zeroed(panels.len())?;
        panels.bias[..shape.c_out].copy_from_slice(bias.unwrap_or(&vec![0.0; shape.c_out]));
        Ok(panels)
    }

    /// Returns the number of weights of all panels, including padding.
    pub(crate) fn len(&self) -> usize {
        self.list.last().map_or(0, |panel| panel.start + panel.len)
    }

    /// Divides the output channels into panels without allocating weights; the bias is zero.
    pub(crate) fn empty<S: Simd>(shape: &ConvShape, products: usize, planar: bool) -> Self {
        let blocks = shape.c_out.div_ceil(LANES);
        let mut list: Vec<Panel> = Vec::new();
        let (mut block, mut start) = (0, 0);
        while block < blocks {
            let size = panel_blocks::<S>(shape, block, blocks, planar);
            let (from, depth) = inputs(shape, block, size);
            let channels = if planar { shape.c_in } else { depth * LANES };
            let len = size * LANES * channels * products;
            list.push(Panel { block, blocks: size, from, depth, start, len });
            block += size;
            start += len;
        }
        let mut bounds: Vec<usize> = list.iter().map(|panel| panel.block).collect();
        bounds.push(blocks);
        Self {
            list,
            bounds,
            weights: AlignedVec::default(),
            bias: AlignedVec::zeroed_or_abort(blocks * LANES),
        }
    }

    pub(super) fn weights(&self, panel: &Panel) -> &[f32] {
        &self.weights[panel.start..][..panel.len]
    }

    pub(super) fn bias(&self, panel: &Panel) -> &[f32] {
        &self.bias[panel.block * LANES..][..panel.blocks * LANES]
    }

    /// Returns up to `len` weights from `start` on for prefetching.
    pub(super) fn prefetch(&self, start: usize, len: usize) -> Prefetch<'_> {
        let from = self.weights.get(start..).unwrap_or_default();
        Prefetch(&from[..len.min(from.len())])
    }

    /// Packs `[input block][kernel height][kernel width][16][blocks × 16]` for each panel.
    pub(super) fn direct<S: Simd>(shape: &ConvShape, weights: ConvWeights) -> Result<Self, Error> {
        let taps = shape.kernel[0] * shape.kernel[1];
        let mut panels = Self::with_bias::<S>(shape, weights.bias, taps, false)?;
        let (ig, og) = (shape.c_in / shape.groups, shape.c_out / shape.groups);
        for panel in &panels.list {
            let width = panel.blocks * LANES;
            let packed = &mut panels.weights[panel.start..][..panel.len];
            for column in 0..width.min(shape.c_out - panel.block * LANES) {
                let oc = panel.block * LANES + column;
                for ic in 0..ig {
                    let channel = oc / og * ig + ic - panel.from * LANES;
                    let source = &weights.weights[(oc * ig + ic) * taps..][..taps];
                    for (tap, weight) in source.iter().enumerate() {
                        let row = (channel / LANES * taps + tap) * LANES + channel % LANES;
                        packed[row * width + column] = *weight;
                    }
                }
            }
        }
        Ok(panels)
    }

    /// Packs `[c_in][kernel height][kernel width][blocks × 16]` for each panel.
    pub(super) fn planar<S: Simd>(shape: &ConvShape, weights: ConvWeights) -> Result<Self, Error> {
        let taps = shape.kernel[0] * shape.kernel[1];
        let mut panels = Self::with_bias::<S>(shape, weights.bias, taps, true)?;
        let rows = shape.c_in * taps;
        for panel in &panels.list {
            let width = panel.blocks * LANES;
            let packed = &mut panels.weights[panel.start..][..panel.len];
            for column in 0..width.min(shape.c_out - panel.block * LANES) {
                let source = &weights.weights[(panel.block * LANES + column) * rows..][..rows];
                for (row, weight) in source.iter().enumerate() {
                    packed[row * width + column] = *weight;
                }
            }
        }
        Ok(panels)
    }

    /// Packs `[A × B][c_in][blocks × 16]` for each panel: `P·g·Qᵀ` of every kernel `g`, computed in `f64`.
    pub(super) fn winograd<S: Simd, const A: usize, const B: usize>(
        shape: &ConvShape,
        weights: ConvWeights,
        p: [[f64; 3]; A],
        q: [[f64; 3]; B],
    ) -> Result<Self, Error> {
        let mut panels = Self::with_bias::<S>(shape, weights.bias, A * B, false)?;
        for panel in &panels.list {
            let width = panel.blocks * LANES;
            let packed = &mut panels.weights[panel.start..][..panel.len];
            let columns = width.min(shape.c_out - panel.block * LANES);
            for ic in 0..shape.c_in {
                for block in 0..columns.div_ceil(LANES) {
                    let lanes = (columns - block * LANES).min(LANES);
                    let mut kernels = [[[0.0f64; LANES]; 3]; 3];
                    for (tap, values) in kernels.as_flattened_mut().iter_mut().enumerate() {
                        for (lane, value) in values[..lanes].iter_mut().enumerate() {
                            let oc = (panel.block + block) * LANES + lane;
                            *value = f64::from(weights.weights[(oc * shape.c_in + ic) * 9 + tap]);
                        }
                    }
                    for (position, values) in transform_kernels(&kernels, &p, &q).iter().flatten().enumerate()
                    {
                        let row = position * panel.depth * LANES + ic;
                        let to = &mut packed[row * width + block * LANES..][..LANES];
                        to.iter_mut().zip(values).for_each(|(to, value)| *to = *value as f32);
                    }
                }
            }
        }
        Ok(panels)
    }
}

/// Weights to prefetch, divided among the tiles that use the current weights.
pub(super) struct Prefetch<'a>(&'a [f32]);

impl<'a> Prefetch<'a> {
    /// Returns the part for the next tile with this reduction; empty when everything has been prefetched.
    pub(super) fn next(&mut self, reduction: &Reduction, blocks: usize) -> &'a [f32] {
        let len = reduction.len() * prefetch_lines(blocks) * LANES;
        let (now, later) = self.0.split_at(len.min(self.0.len()));
        self.0 = later;
        now
    }
}

/// Returns `P·g·Qᵀ` for 16 kernels in SIMD lanes.
fn transform_kernels<const A: usize, const B: usize>(
    kernels: &[[[f64; LANES]; 3]; 3],
    p: &[[f64; 3]; A],
    q: &[[f64; 3]; B],
) -> [[[f64; LANES]; B]; A] {
    let combine = |rows: [&[f64; LANES]; 3], by: &[f64; 3]| -> [f64; LANES] {
        std::array::from_fn(|lane| rows[0][lane] * by[0] + rows[1][lane] * by[1] + rows[2][lane] * by[2])
    };
    p.map(|by| {
        let half: [[f64; LANES]; 3] =
            std::array::from_fn(|x| combine([&kernels[0][x], &kernels[1][x], &kernels[2][x]], &by));
        std::array::from_fn(|j| combine([&half[0], &half[1], &half[2]], &q[j]))
    })
}

/// Returns the number of blocks of the panel that starts at `block`: as many as fit in registers, except with groups,
/// where it minimizes the multiplications by zero.
fn panel_blocks<S: Simd>(shape: &ConvShape, block: usize, blocks: usize, planar: bool) -> usize {
    let left = blocks - block;
    let max_blocks = S::PIXELS.len().min(left);
    if planar || shape.groups == 1 {
        return left.div_ceil(left.div_ceil(S::PIXELS.len()));
    }
    (1..=max_blocks).rev().min_by_key(|size| inputs(shape, block, *size).1).unwrap_or(1)
}

/// Returns the first input block that `size` output blocks from `block` on depend on, and the number of input blocks.
fn inputs(shape: &ConvShape, block: usize, size: usize) -> (usize, usize) {
    let (ig, og) = (shape.c_in / shape.groups, shape.c_out / shape.groups);
    let first = block * LANES / og * ig;
    let last = ((block + size) * LANES).min(shape.c_out) - 1;
    let end = (last / og + 1) * ig;
    let from = first / LANES;
    (from, end.div_ceil(LANES) - from)
}
