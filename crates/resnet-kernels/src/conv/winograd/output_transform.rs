#![allow(clippy::needless_range_loop, reason = "indices into arrays of registers match the formulas")]

use std::marker::PhantomData;

use super::{Extent, Points, TileBlock};
use crate::conv::PackedConv;
use crate::conv::pack::Panel;
use crate::epilogue::{Activation, Residual};
use crate::layout::{Blocked, LANES};
use crate::simd::{Kernel, Simd};
use crate::threads::Chunk;

/// Output transform of a panel's products to pixels, with bias, residual add and activation; P is vertical, Q
/// horizontal.
pub(super) struct OutputTransform<
    'a,
    'b,
    P,
    Q,
    const A: usize,
    const M: usize,
    const B: usize,
    const N: usize,
> {
    pub conv: &'a PackedConv,
    pub panel: &'a Panel,
    pub residual: &'a Residual<'a>,
    /// `[output block][A × B][tile][16]`.
    pub m: &'a [f32],
    pub tiles: &'a TileBlock,
    pub chunk: &'a mut Chunk<'b>,
    /// Layout of the output; `chunk` starts at `first_image`.
    pub layout: &'a Blocked,
    pub first_image: usize,
    pub points: PhantomData<(P, Q)>,
}

impl<P: Points<A, M>, Q: Points<B, N>, const A: usize, const M: usize, const B: usize, const N: usize> Kernel
    for OutputTransform<'_, '_, P, Q, A, M, B, N>
{
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let layout = self.layout;
        let tiles = self.tiles.tiles();
        let relu = self.conv.epilogue.activation == Activation::Relu;
        let biases = self.conv.panels.bias(self.panel).as_chunks::<LANES>().0;
        let products = self.m.chunks_exact(Extent::new::<P, Q, A, M, B, N>().block_stride(tiles));
        for ((block, bias), m) in (self.panel.block..).zip(biases).zip(products) {
            let m = m.as_chunks::<LANES>().0;
            let bias = s.load(bias);
            for (index, [image, row, column]) in self.tiles.each().enumerate() {
                let (top, left) = (row * M, column * N);
                let (height, width) = ((layout.h - top).min(M), (layout.w - left).min(N));
                let mut half = [[s.splat(0.0); B]; M];
                for x in 0..B {
                    let products = std::array::from_fn(|y| s.load(&m[(y * B + x) * tiles + index]));
                    let line = P::output(s, products, height);
                    for y in 0..M {
                        half[y][x] = line[y];
                    }
                }
                for y in 0..height {
                    let start = layout.pixel(top + y, left);
                    let run = start..start + width * LANES;
                    let to =
                        self.chunk.slice(image - self.first_image, block, run).as_chunks_mut::<LANES>().0;
                    let values = Q::output(s, half[y], width);
                    let added = match self.residual {
                        Residual::Add(view) => {
                            let from = &view.plane(image, block)[view.layout.pixel(top + y, left)..];
                            from[..width * LANES].as_chunks::<LANES>().0
                        }
                        Residual::None | Residual::InPlace => &[],
                    };
                    for x in 0..N {
                        let Some(to) = to.get_mut(x) else { break };
                        let mut value = s.add(values[x], bias);
                        match self.residual {
                            Residual::None => {}
                            Residual::InPlace => value = s.add(value, s.load(to)),
                            Residual::Add(_) => value = s.add(value, s.load(&added[x])),
                        }
                        s.store(to, if relu { s.relu(value) } else { value });
                    }
                }
            }
        }
    }
}
