//! Grouping of Winograd tiles into blocks that stay in cache, and into tasks.

use super::Points;
use crate::conv::PackedConv;
use crate::error::{Error, product};
use crate::layout::LANES;

/// Bytes of `V` per block of tiles, and minimum number of tiles: fewer reuse each weight too little.
const BLOCK_BYTES: usize = 128 << 10;
const MIN_TILES: usize = 16;

/// Bytes of `V` for a block that all threads share: it stays in the L3 cache, and every block costs two barriers.
const SHARED_BYTES: usize = 1 << 20;

/// Input and output size of a tile, `[vertical, horizontal]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::conv) struct Extent {
    pub(super) a: [usize; 2],
    m: [usize; 2],
}

impl Extent {
    pub(in crate::conv) const fn new<
        P: Points<A, M>,
        Q: Points<B, N>,
        const A: usize,
        const M: usize,
        const B: usize,
        const N: usize,
    >() -> Self {
        Self { a: [A, B], m: [M, N] }
    }

    pub(super) fn positions(&self) -> usize {
        self.a[0] * self.a[1]
    }

    /// Returns the number of elements between channel blocks of `V` or `M`. One extra position per tile avoids powers
    /// of two, with which all blocks would map to the same cache sets.
    pub(super) const fn block_stride(&self, tiles: usize) -> usize {
        (self.a[0] * self.a[1] + 1) * tiles * LANES
    }
}

/// Number of tiles and their grouping into blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tiling {
    /// Tiles per image, horizontally and vertically.
    pub across: usize,
    pub down: usize,
    /// Images and rows of tiles per block; several images only if the block contains all rows.
    pub images: usize,
    pub rows: usize,
    /// If `true`, a block is one task with its own `V`; otherwise all threads work on one block at a time.
    pub private: bool,
}

impl Tiling {
    pub(super) fn choose(extent: Extent, c_in: usize, output: [usize; 4], threads: usize) -> Self {
        let [n, _, h, w] = output;
        let (down, across) = (h.div_ceil(extent.m[0]), w.div_ceil(extent.m[1]));
        let tile_bytes = extent.positions() * c_in.next_multiple_of(LANES) * size_of::<f32>();
        let group = |tiles: usize| {
            let (images, rows) = match tiles / (across * down) {
                0 => (1, (tiles / across).max(1)),
                images => (images.min(n), down),
            };
            (images, down.div_ceil(down.div_ceil(rows)))
        };
        // The wider the layer, the more weights are loaded per tile.
        let min_tiles = MIN_TILES.max(c_in / 16);
        let (images, rows) = group((BLOCK_BYTES / tile_bytes).max(min_tiles));
        let blocks = n.div_ceil(images) * down.div_ceil(rows);
        if threads == 1 || blocks >= 3 * threads || (blocks >= threads && blocks.is_multiple_of(threads)) {
            return Self { across, down, images, rows, private: true };
        }
        let (images, rows) = group((SHARED_BYTES / tile_bytes).max(min_tiles));
        Self { across, down, images, rows, private: false }
    }

    /// Returns the maximum number of tiles per block.
    pub(super) fn tiles(&self) -> usize {
        self.images * self.rows * self.across
    }

    /// Returns the blocks of a batch of `n` images.
    pub(super) fn blocks(self, n: usize) -> impl Iterator<Item = TileBlock> {
        let Self { across, down, images, rows, .. } = self;
        (0..n).step_by(images).flat_map(move |image| {
            (0..down).step_by(rows).map(move |row| TileBlock {
                image,
                images: images.min(n - image),
                row,
                rows: rows.min(down - row),
                across,
            })
        })
    }

    /// Returns the panels, images and rows of tiles per task of a block that threads share.
    pub(super) fn split(&self, block: &TileBlock, panels: usize, threads: usize) -> (usize, usize, usize) {
        // Enough tiles per task to reuse the weights, and about four tasks per thread.
        let parts = (4 * threads).div_ceil(panels).min(block.tiles() / MIN_TILES).max(1);
        match block.images {
            1 => (1, 1, block.rows.div_ceil(parts)),
            images => (1, images.div_ceil(parts), block.rows),
        }
    }
}

/// Rectangle of tiles that are transformed together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TileBlock {
    /// First image and number of images.
    pub image: usize,
    pub images: usize,
    /// First row of tiles and number of rows.
    pub row: usize,
    pub rows: usize,
    pub across: usize,
}

impl TileBlock {
    pub(super) fn tiles(&self) -> usize {
        self.images * self.rows * self.across
    }

    /// Returns the indices in `V` of the tiles in the first `rows` rows and `columns` columns.
    pub(super) fn first(&self, rows: usize, columns: usize) -> TileIndices {
        let skip = [self.across - columns, (self.rows - rows) * self.across];
        TileIndices { ends: [columns, rows], skip, next: 0, at: [0, 0], left: self.images * rows * columns }
    }

    /// Returns image, row and column of every tile, in the order of `V`.
    pub(super) fn each(&self) -> Tiles {
        Tiles { block: *self, next: [0, 0, 0] }
    }
}

/// Iterator of [`TileBlock::first`].
pub(super) struct TileIndices {
    ends: [usize; 2],
    /// Tiles skipped at the end of each row and of each image.
    skip: [usize; 2],
    next: usize,
    at: [usize; 2],
    left: usize,
}

impl TileIndices {
    pub(super) fn left(&self) -> usize {
        self.left
    }
}

impl Iterator for TileIndices {
    type Item = usize;

    #[inline(always)]
    fn next(&mut self) -> Option<usize> {
        self.left = self.left.checked_sub(1)?;
        let found = self.next;
        self.next += 1;
        self.at[0] += 1;
        if self.at[0] == self.ends[0] {
            self.at = [0, self.at[1] + 1];
            self.next += self.skip[0];
            if self.at[1] == self.ends[1] {
                self.at[1] = 0;
                self.next += self.skip[1];
            }
        }
        Some(found)
    }
}

/// Iterator without combinators, which would prevent inlining of vector instructions into the loop.
pub(super) struct Tiles {
    block: TileBlock,
    next: [usize; 3],
}

impl Iterator for Tiles {
    type Item = [usize; 3];

    #[inline(always)]
    fn next(&mut self) -> Option<[usize; 3]> {
        let TileBlock { image, images, row, rows, across } = self.block;
        let [n, y, x] = self.next;
        self.next = match (x + 1 == across, y + 1 == rows) {
            (false, _) => [n, y, x + 1],
            (true, false) => [n, y + 1, 0],
            (true, true) => [n + 1, 0, 0],
        };
        (n < images).then_some([image + n, row + y, x])
    }
}

/// Returns the number of scratch elements for an output `[N, C, H, W]` on `threads` threads.
pub(in crate::conv) fn scratch_len(
    extent: Extent,
    conv: &PackedConv,
    output: [usize; 4],
    threads: usize,
) -> Result<usize, Error> {
    let what = "scratch length";
    let tiling = Tiling::choose(extent, conv.shape.c_in, output, threads);
    let stride = product(what, &[extent.positions() + 1, tiling.tiles(), LANES])?;
    let v = product(what, &[conv.shape.c_in.div_ceil(LANES), stride])?;
    let m = product(what, &[widest(conv), stride])?;
    let (shared, private) = if tiling.private { (0, v.checked_add(m)) } else { (v, Some(m)) };
    let total = private.and_then(|private| private.checked_mul(threads));
    total.and_then(|total| total.checked_add(shared)).ok_or(Error::Overflow { what })
}

/// Returns the maximum number of blocks per panel.
pub(super) fn widest(conv: &PackedConv) -> usize {
    conv.panels.list.iter().map(|panel| panel.blocks).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const F4X4: Extent = Extent { a: [6, 6], m: [4, 4] };

    #[test]
    fn blocks_for_resnet_layers() {
        let check = |c_in, n, size: usize, threads, expected: (usize, usize, bool)| {
            let tiling = Tiling::choose(F4X4, c_in, [n, c_in, size, size], threads);
            assert_eq!((tiling.images, tiling.rows, tiling.private), expected, "{c_in} {n} {size} {threads}");
        };
        check(64, 1, 56, 1, (1, 1, true));
        check(64, 1, 56, 2, (1, 1, true));
        check(128, 1, 28, 1, (1, 2, true));
        check(128, 1, 28, 2, (1, 2, true));
        check(128, 1, 28, 3, (1, 7, false));
        check(256, 1, 14, 2, (1, 4, false));
        check(512, 8, 7, 1, (8, 2, true));
    }

    #[test]
    fn every_tile_is_in_exactly_one_block() {
        for (n, h, w, threads) in [(1, 7, 7, 2), (3, 29, 18, 4), (5, 9, 4, 3)] {
            let tiling = Tiling::choose(F4X4, 300, [n, 16, h, w], threads);
            let mut seen = std::collections::HashSet::new();
            for block in tiling.blocks(n) {
                assert!(block.tiles() <= tiling.tiles());
                for tile in block.each() {
                    assert!(seen.insert(tile));
                }
                let (panels, images, rows) = tiling.split(&block, 3, threads);
                assert!(panels == 1 && (images == 1 || rows == block.rows));
            }
            assert_eq!(seen.len(), n * h.div_ceil(4) * w.div_ceil(4));
        }
    }
}
