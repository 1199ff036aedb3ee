//! Winograd convolution: 3×3 as products of transformed tiles (Lavin and Gray, arXiv 1509.09308), with stride 1 or, by
//! treating even and odd inputs apart, 2.
//!
//! A block of tiles goes through three steps: its input is transformed to `V`, `[input block][A × B][tile][16]`; for each
//! panel of output channels, `A × B` matrix products with the packed weights give `M`, laid out alike; `M` is
//! transformed to pixels, with the epilogue. `V` and `M` stay in cache.

use std::marker::PhantomData;

use super::direct::{Split, owned_rows, rows_cut};
use super::pack::{Panel, Panels};
use super::{Call, PackedConv};
use crate::layout::{Blocked, LANES, View};
use crate::shape::{ConvShape, ConvWeights};
use crate::simd::Simd;
use crate::simd::tile::{Addend, MAX_PIXELS, Reduction, Tile, next_pixels};
use crate::threads::{Order, Share, Target};

mod gather;
mod points;
mod scatter;
mod tiling;

pub(super) use points::{F2, S2};
pub(crate) use points::{F4, Points};
pub(super) use tiling::{Extent, scratch_len};

use gather::Gather;
use scatter::Scatter;
use tiling::{Block, Tiling, widest};

/// P works on the vertical axis, Q on the horizontal one.
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
    params: ConvWeights,
) -> Panels {
    Panels::winograd::<S, A, B>(shape, params, P::G, Q::G)
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
    let extent = Extent::of::<P, Q, A, M, B, N>();
    let tiling = Tiling::choose(extent, conv.shape.c_in, layout.dims(), pool.threads());
    let stride = extent.block_stride(tiling.tiles());
    let v_len = conv.shape.c_in.div_ceil(LANES) * stride;
    let m_len = widest(conv) * stride;
    let bounds = &conv.panels.bounds;
    let needed = Needed {
        down: tiling.down,
        vertical: P::needed(layout.h - (tiling.down - 1) * M),
        horizontal: Q::needed(layout.w - (tiling.across - 1) * N),
    };
    let transform = |channels: usize, block: &Block, v: &mut [f32]| {
        let padding = conv.shape.padding;
        let points = PhantomData::<(P, Q)>;
        let output = [layout.h, layout.w];
        simd.vectorize(Gather::<P, Q, A, M, B, N> { input, block, channels, padding, output, v, points });
    };
    let multiply = |v: &[f32], block: &Block, m: &mut [f32], mut share: Share, first_image: usize| {
        let part = &part_of(M, block, &share, &layout, first_image);
        for panel in &conv.panels.list[share.groups.clone()] {
            Products { simd, conv, panel, v, stride, block, part, extent, needed }.run(m);
            let (residual, share, layout, points) = (&residual, &mut share, &layout, PhantomData::<(P, Q)>);
            simd.vectorize(Scatter::<P, Q, A, M, B, N> {
                conv,
                panel,
                residual,
                m,
                tiles: part,
                share,
                layout,
                first_image,
                points,
            });
        }
    };
    if tiling.private {
        let (images, rows, panels) = (tiling.images, tiling.rows, conv.panels.list.len());
        let cut = rows_cut(&layout, bounds, Split { images, rows, panels, order: Order::Rows }, M);
        pool.run_shares_with(output.data, &cut, (scratch, v_len + m_len), |private, share| {
            let (v, m) = private.split_at_mut(v_len);
            let rows = owned_rows(&share, &layout);
            let block = Block {
                image: share.outer.start,
                images: share.outer.len(),
                row: rows.start / M,
                rows: rows.len().div_ceil(M),
                across: tiling.across,
            };
            for (channels, v) in v.chunks_exact_mut(stride).enumerate() {
                transform(channels, &block, v);
            }
            multiply(v, &block, m, share, 0);
        });
        return;
    }
    let (v, m) = scratch.split_at_mut(v_len);
    for block in tiling.blocks(layout.n) {
        pool.for_each_chunk(v, stride, |channels, v| transform(channels, &block, v));
        let (panels, images, rows) = tiling.split(&block, conv.panels.list.len(), pool.threads());
        let part = Blocked { n: block.images, ..layout };
        let mut cut = rows_cut(&part, bounds, Split { images, rows, panels, order: Order::Channels }, M);
        let line = layout.row_len();
        let (start, end) = ((block.row * M).min(layout.h), ((block.row + block.rows) * M).min(layout.h));
        cut.run_start = (layout.halo[0] + start) * line;
        cut.run.len = (end - start) * line;
        let data = &mut output.data[block.image * layout.image_len()..];
        pool.run_shares_with(data, &cut, (m, m_len), |m, share| multiply(v, &block, m, share, block.image));
    }
}

/// The tiles of `block` that `share` owns; tiles are `height` pixels high.
fn part_of(height: usize, block: &Block, share: &Share, layout: &Blocked, first_image: usize) -> Block {
    let rows = owned_rows(share, layout);
    Block {
        image: first_image + share.outer.start,
        images: share.outer.len(),
        row: rows.start / height,
        rows: rows.len().div_ceil(height),
        across: block.across,
    }
}

/// `M = U · V` for every position of a tile, for the output channels of a panel and the tiles of a part of the block.
struct Products<'a, S> {
    simd: S,
    conv: &'a PackedConv,
    panel: &'a Panel,
    /// Of the whole block; `stride` elements from one channel block to the next.
    v: &'a [f32],
    stride: usize,
    block: &'a Block,
    part: &'a Block,
    extent: Extent,
    needed: Needed,
}

/// The positions of the tiles in the last row and column whose products are needed.
#[derive(Clone, Copy)]
struct Needed {
    /// Rows of tiles in the image.
    down: usize,
    /// Bits for the vertical positions in the last row, and for the horizontal ones in the last column.
    vertical: u32,
    horizontal: u32,
}

impl<S: Simd> Products<'_, S> {
    fn run(&self, m: &mut [f32]) {
        let Self { conv, panel, block, part, .. } = self;
        let reduction = Reduction::new([panel.depth, 1, 1], [self.stride, 0, 0], LANES);
        let weights = conv.panels.weights(panel);
        let (all, tiles) = (block.tiles(), part.tiles());
        // A part has all rows, or one image: either way its tiles follow each other in `V`.
        let first = ((part.image - block.image) * block.rows + part.row - block.row) * block.across;
        let mut target = Target::from_slice(m, self.extent.block_stride(tiles), panel.blocks);
        let matrix = panel.depth * LANES * panel.blocks * LANES;
        let last = part.row + part.rows == self.needed.down;
        let [_, across] = self.extent.a;
        for alpha in 0..self.extent.alphas() {
            let rows = part.rows - usize::from(last && self.needed.vertical >> (alpha / across) & 1 == 0);
            let columns = part.across - usize::from(self.needed.horizontal >> (alpha % across) & 1 == 0);
            let mut wanted = part.first(rows, columns);
            let mut ahead = conv.panels.ahead(panel.start + (alpha + 1) * matrix, matrix);
            let mut tile = Tile {
                weights: &weights[alpha * matrix..],
                input: self.v,
                reduction: &reduction,
                pixels: 0,
                from: [0; MAX_PIXELS],
                to: [0; MAX_PIXELS],
                bias: None,
                addend: Addend::None,
                relu: false,
                ahead: &[],
            };
            while wanted.left() > 0 {
                tile.ahead = ahead.next(&reduction, panel.blocks);
                tile.pixels = next_pixels::<S>(panel.blocks, wanted.left());
                for (p, index) in (0..tile.pixels).zip(&mut wanted) {
                    tile.from[p] = (alpha * all + first + index) * LANES;
                    tile.to[p] = (alpha * tiles + index) * LANES;
                }
                self.simd.tile(&tile, panel.blocks, &mut target);
            }
        }
    }
}
