//! Winograd convolution of 3×3 kernels (Lavin and Gray, arXiv 1509.09308) with stride 1, or with stride 2 by splitting
//! even and odd inputs.
//!
//! A block of tiles is computed in three steps. The input transform computes `V`, `[input block][A × B][tile][16]`; for
//! each panel of output channels, `A × B` matrix products with the packed weights `U` compute `M` in the same layout;
//! the output transform computes pixels from `M`, with the epilogue. `V` and `M` stay in cache.

use std::marker::PhantomData;

use super::direct::{TaskSize, owned_rows, partition_rows};
use super::pack::{Panel, Panels};
use super::{Call, PackedConv};
use crate::error::Error;
use crate::layout::{Blocked, LANES, View};
use crate::shape::{ConvShape, ConvWeights};
use crate::simd::Simd;
use crate::simd::tile::{Addend, MAX_PIXELS, Reduction, Tile, next_pixels};
use crate::threads::{Chunk, TaskOrder, TileOutput};

mod input_transform;
mod output_transform;
mod points;
mod tiling;

pub(super) use points::{F2, S2};
pub(crate) use points::{F4, Points};
pub(super) use tiling::{Extent, scratch_len};

use input_transform::InputTransform;
use output_transform::OutputTransform;
use tiling::{TileBlock, Tiling, widest};

/// Packs the transformed weights. P is the vertical algorithm, Q the horizontal one.
pub(super) fn pack<
    S: Simd,
    P: Points<A, M>,
    Q: Points<B, N>,
    const A: usize,
    const M: usize,
    const B: usize,
    const N: usize,
>(
    shape: &ConvShape,
    weights: ConvWeights,
) -> Result<Panels, Error> {
    Panels::winograd::<S, A, B>(shape, weights, P::G, Q::G)
}

pub(super) fn run<
    S: Simd,
    P: Points<A, M>,
    Q: Points<B, N>,
    const A: usize,
    const M: usize,
    const B: usize,
    const N: usize,
>(
    simd: S,
    call: Call,
    input: View,
) {
    let Call { conv, residual, output, scratch, pool } = call;
    let layout = output.layout;
    let extent = Extent::new::<P, Q, A, M, B, N>();
    let tiling = Tiling::choose(extent, conv.shape.c_in, layout.dims(), pool.threads());
    let stride = extent.block_stride(tiling.tiles());
    let v_len = conv.shape.c_in.div_ceil(LANES) * stride;
    let m_len = widest(conv) * stride;
    let bounds = &conv.panels.bounds;
    let edge = EdgeMask {
        down: tiling.down,
        vertical: P::needed(layout.h - (tiling.down - 1) * M),
        horizontal: Q::needed(layout.w - (tiling.across - 1) * N),
    };
    let transform = |channels: usize, block: &TileBlock, v: &mut [f32]| {
        let padding = conv.shape.padding;
        let points = PhantomData::<(P, Q)>;
        let output = [layout.h, layout.w];
        simd.vectorize(InputTransform::<P, Q, A, M, B, N> {
            input,
            block,
            channels,
            padding,
            output,
            v,
            points,
        });
    };
    let multiply = |v: &[f32], block: &TileBlock, m: &mut [f32], mut chunk: Chunk, first_image: usize| {
        let part = &owned_tiles(M, block, &chunk, &layout, first_image);
        for panel in &conv.panels.list[chunk.groups.clone()] {
            Products { simd, conv, panel, v, stride, block, part, extent, edge }.run(m);
            let (residual, chunk, layout, points) = (&residual, &mut chunk, &layout, PhantomData::<(P, Q)>);
            simd.vectorize(OutputTransform::<P, Q, A, M, B, N> {
                conv,
                panel,
                residual,
                m,
                tiles: part,
                chunk,
                layout,
                first_image,
                points,
            });
        }
    };
    if tiling.private {
        let (images, rows, panels) = (tiling.images, tiling.rows, conv.panels.list.len());
        let partition =
            partition_rows(&layout, bounds, TaskSize { images, rows, panels, order: TaskOrder::Rows }, M);
        pool.run_with_scratch(output.data, &partition, (scratch, v_len + m_len), |scratch, chunk| {
            let (v, m) = scratch.split_at_mut(v_len);
            let rows = owned_rows(&chunk, &layout);
            let block = TileBlock {
                image: chunk.outer.start,
                images: chunk.outer.len(),
                row: rows.start / M,
                rows: rows.len().div_ceil(M),
                across: tiling.across,
            };
            for (channels, v) in v.chunks_exact_mut(stride).enumerate() {
                transform(channels, &block, v);
            }
            multiply(v, &block, m, chunk, 0);
        });
        return;
    }
    let (v, m) = scratch.split_at_mut(v_len);
    for block in tiling.blocks(layout.n) {
        pool.for_each_chunk(v, stride, |channels, v| transform(channels, &block, v));
        let (panels, images, rows) = tiling.split(&block, conv.panels.list.len(), pool.threads());
        let part = Blocked { n: block.images, ..layout };
        let mut partition =
            partition_rows(&part, bounds, TaskSize { images, rows, panels, order: TaskOrder::Channels }, M);
        let line = layout.row_len();
        let (start, end) = ((block.row * M).min(layout.h), ((block.row + block.rows) * M).min(layout.h));
        partition.run_start = (layout.halo[0] + start) * line;
        partition.run.len = (end - start) * line;
        let data = &mut output.data[block.image * layout.image_len()..];
        pool.run_with_scratch(data, &partition, (m, m_len), |m, chunk| {
            multiply(v, &block, m, chunk, block.image)
        });
    }
}

/// Returns the tiles of `block` that `chunk` owns; tiles are `height` pixels high.
fn owned_tiles(
    height: usize,
    block: &TileBlock,
    chunk: &Chunk,
    layout: &Blocked,
    first_image: usize,
) -> TileBlock {
    let rows = owned_rows(chunk, layout);
    TileBlock {
        image: first_image + chunk.outer.start,
        images: chunk.outer.len(),
        row: rows.start / height,
        rows: rows.len().div_ceil(height),
        across: block.across,
    }
}

/// Products `M = U · V` for all positions of the tiles in `part`, for the output channels of a panel.
struct Products<'a, S> {
    simd: S,
    conv: &'a PackedConv,
    panel: &'a Panel,
    /// `V` of the whole block; `stride` elements from one channel block to the next.
    v: &'a [f32],
    stride: usize,
    block: &'a TileBlock,
    part: &'a TileBlock,
    extent: Extent,
    edge: EdgeMask,
}

/// Masks of the positions whose products are needed in the last row and the last column of tiles.
#[derive(Clone, Copy)]
struct EdgeMask {
    /// Number of rows of tiles in the image.
    down: usize,
    /// Bit masks of the vertical positions in the last row and the horizontal positions in the last column.
    vertical: u32,
    horizontal: u32,
}

impl<S: Simd> Products<'_, S> {
    fn run(&self, m: &mut [f32]) {
        let Self { conv, panel, block, part, .. } = self;
        let reduction = Reduction::new([panel.depth, 1, 1], [self.stride, 0, 0], LANES);
        let weights = conv.panels.weights(panel);
        let (all, tiles) = (block.tiles(), part.tiles());
        // A part has either all rows or a single image, so its tiles are contiguous in `V`.
        let first = ((part.image - block.image) * block.rows + part.row - block.row) * block.across;
        let mut output = TileOutput::from_slice(m, self.extent.block_stride(tiles), panel.blocks);
        let matrix = panel.depth * LANES * panel.blocks * LANES;
        let last = part.row + part.rows == self.edge.down;
        let [_, across] = self.extent.a;
        for position in 0..self.extent.positions() {
            let rows = part.rows - usize::from(last && self.edge.vertical >> (position / across) & 1 == 0);
            let columns = part.across - usize::from(self.edge.horizontal >> (position % across) & 1 == 0);
            let mut indices = part.first(rows, columns);
            let mut prefetch = conv.panels.prefetch(panel.start + (position + 1) * matrix, matrix);
            let mut tile = Tile {
                weights: &weights[position * matrix..],
                input: self.v,
                reduction: &reduction,
                pixels: 0,
                from: [0; MAX_PIXELS],
                to: [0; MAX_PIXELS],
                bias: None,
                addend: Addend::None,
                relu: false,
                prefetch: &[],
            };
            while indices.left() > 0 {
                tile.prefetch = prefetch.next(&reduction, panel.blocks);
                tile.pixels = next_pixels::<S>(panel.blocks, indices.left());
                for (p, index) in (0..tile.pixels).zip(&mut indices) {
                    tile.from[p] = (position * all + first + index) * LANES;
                    tile.to[p] = (position * tiles + index) * LANES;
                }
                self.simd.tile(&tile, panel.blocks, &mut output);
            }
        }
    }
}
