#![allow(clippy::needless_range_loop, reason = "indices into arrays of registers match the formulas")]

use std::marker::PhantomData;

use super::{Points, TileBlock};
use crate::layout::{Blocked, LANES, View};
use crate::simd::{Kernel, Simd};

/// Input transform of 16 channels of all tiles of a block to `V`; P is vertical, Q horizontal.
pub(super) struct InputTransform<'a, P, Q, const A: usize, const M: usize, const B: usize, const N: usize> {
    pub input: View<'a>,
    pub block: &'a TileBlock,
    /// Index of the block of 16 channels.
    pub channels: usize,
    pub padding: [usize; 2],
    /// `[height, width]` of the output.
    pub output: [usize; 2],
    /// `[A × B][tile][16]`.
    pub v: &'a mut [f32],
    pub points: PhantomData<(P, Q)>,
}

impl<P: Points<A, M>, Q: Points<B, N>, const A: usize, const M: usize, const B: usize, const N: usize> Kernel
    for InputTransform<'_, P, Q, A, M, B, N>
{
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let layout = self.input.layout;
        let tiles = self.block.tiles();
        let v = self.v.as_chunks_mut::<LANES>().0;
        let mut edge = [[[0.0; LANES]; B]; A];
        for (index, [image, row, column]) in self.block.each().enumerate() {
            let plane = self.input.plane(image, self.channels).as_chunks::<LANES>().0;
            // Position of the tile in the plane with halo; the padding may be wider than the halo.
            let top = (row * M * P::STRIDE + layout.halo[0]) as isize - self.padding[0] as isize;
            let left = (column * N * Q::STRIDE + layout.halo[1]) as isize - self.padding[1] as isize;
            let rows = tile_rows(&layout, plane, [top, left], &mut edge);
            let outputs = [self.output[0] - row * M, self.output[1] - column * N];
            let mut half = [[s.splat(0.0); B]; A];
            for x in 0..B {
                let column = P::input(s, std::array::from_fn(|y| s.load(&rows[y][x])), outputs[0]);
                for y in 0..A {
                    half[y][x] = column[y];
                }
            }
            for y in 0..A {
                let line = Q::input(s, half[y], outputs[1]);
                for x in 0..B {
                    s.store(&mut v[(y * B + x) * tiles + index], line[x]);
                }
            }
        }
    }
}

/// Returns the rows of the tile at `[top, left]`: slices of the plane if it contains the tile, else of a zero-padded
/// copy.
#[inline(always)]
fn tile_rows<'a, const A: usize, const B: usize>(
    layout: &Blocked,
    plane: &'a [[f32; LANES]],
    [top, left]: [isize; 2],
    edge: &'a mut [[[f32; LANES]; B]; A],
) -> [&'a [[f32; LANES]; B]; A] {
    let (height, width) = (layout.h + 2 * layout.halo[0], layout.w + 2 * layout.halo[1]);
    let inside = |start: isize, extent: usize, size: usize| start >= 0 && start as usize + extent <= size;
    if inside(top, A, height) && inside(left, B, width) {
        let rows = plane[top as usize * width + left as usize..].chunks(width);
        let mut found = [const { &[[0.0; LANES]; B] }; A];
        for (to, row) in found.iter_mut().zip(rows) {
            if let Some(row) = row.first_chunk() {
                *to = row;
            }
        }
        return found;
    }
    for (y, line) in edge.iter_mut().enumerate() {
        // Negative positions wrap to large values.
        let from = (top + y as isize) as usize;
        for (x, pixel) in line.iter_mut().enumerate() {
            let column = (left + x as isize) as usize;
            *pixel =
                if from < height && column < width { plane[from * width + column] } else { [0.0; LANES] };
        }
    }
    edge.each_ref()
}
