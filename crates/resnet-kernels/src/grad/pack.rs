//! Multithreaded packing of weights for a single use: in order, or transposed and flipped for the input gradient.

use super::Phase;
use crate::conv::{Algorithm, F4, PackedConv, Panels, Plan, Points};
use crate::layout::LANES;
use crate::shape::ConvShape;
use crate::simd::{Dispatch, Kernel, Simd};
use crate::threads::ThreadPool;

use super::buffer_pool::BufferPool;

/// Direction of a packed convolution without groups.
#[derive(Clone, Copy)]
pub(super) enum Direction<'a> {
    /// Weights of the forward convolution.
    Forward,
    /// Weights of one phase of the input gradient: input and output channels swapped, taps reversed.
    Backward(&'a Phase, &'a Phase),
}

/// Weights `[c_out, c_in, kernel height, kernel width]` of a convolution `shape`, to be packed.
#[derive(Clone, Copy)]
pub(super) struct WeightSource<'a> {
    pub(super) shape: &'a ConvShape,
    pub(super) weights: &'a [f32],
    pub(super) direction: Direction<'a>,
}

impl WeightSource<'_> {
    /// Returns the weight of each tap for an input channel and the 16 output channels of `block`.
    #[inline(always)]
    fn read<const TAPS: usize>(
        &self,
        input: usize,
        block: usize,
        taps: &[usize; TAPS],
    ) -> [[f32; LANES]; TAPS] {
        let mut out = [[0.0; LANES]; TAPS];
        let area = self.shape.kernel[0] * self.shape.kernel[1];
        let (outputs, c_in) = match self.direction {
            Direction::Forward => (self.shape.c_out, self.shape.c_in),
            Direction::Backward(..) => (self.shape.c_in, self.shape.c_in),
        };
        let first = block * LANES;
        for lane in 0..LANES.min(outputs - first) {
            let start = match self.direction {
                Direction::Forward => (first + lane) * c_in + input,
                Direction::Backward(..) => input * c_in + first + lane,
            };
            let kernel = &self.weights[start * area..][..area];
            for (out, &tap) in out.iter_mut().zip(taps) {
                out[lane] = kernel[tap];
            }
        }
        out
    }

    /// Returns the forward tap for each tap of the packed convolution.
    fn taps(&self) -> Vec<usize> {
        let [kh, kw] = self.shape.kernel;
        match self.direction {
            Direction::Forward => (0..kh * kw).collect(),
            Direction::Backward(row, column) => {
                let line = |i: usize| (0..column.taps).rev().map(move |j| row.tap(i) * kw + column.tap(j));
                (0..row.taps).rev().flat_map(line).collect()
            }
        }
    }
}

/// Packs `source` as the convolution `shape` for [`Algorithm::Pointwise`], [`Algorithm::Direct`] or
/// [`Algorithm::Winograd4`].
pub(super) fn pack(
    shape: ConvShape,
    plan: Plan,
    source: WeightSource,
    buffers: &mut BufferPool,
    pool: &ThreadPool,
) -> PackedConv {
    let panels = plan.isa.dispatch(Pack {
        shape: &shape,
        winograd: plan.algorithm == Algorithm::Winograd4,
        source,
        buffers,
        pool,
    });
    PackedConv::from_panels(shape, plan, panels)
}

struct Pack<'a> {
    shape: &'a ConvShape,
    winograd: bool,
    source: WeightSource<'a>,
    buffers: &'a mut BufferPool,
    pool: &'a ThreadPool,
}

impl Dispatch for Pack<'_> {
    type Output = Panels;

    fn run<S: Simd>(self, simd: S) -> Panels {
        let Self { shape, winograd, source, buffers, pool } = self;
        let taps = source.taps();
        let products = if winograd { PRODUCTS } else { taps.len() };
        let mut panels = Panels::empty::<S>(shape, products, false);
        let len = panels.len();
        let mut weights = buffers.take(len);
        let uniform = panels.list.first().map_or(0, |panel| panel.len);
        if winograd && panels.list.iter().all(|panel| panel.len == uniform) {
            pool.for_each_chunk(&mut weights[..len], uniform, |index, to| {
                let panel = &panels.list[index];
                let (block, blocks) = (panel.block, panel.blocks);
                simd.vectorize(FilterTransform { source, block, blocks, inputs: shape.c_in, to });
            });
        } else {
            for panel in &panels.list {
                let (block, blocks) = (panel.block, panel.blocks);
                let to = &mut weights[panel.start..][..panel.len];
                if winograd {
                    simd.vectorize(FilterTransform { source, block, blocks, inputs: shape.c_in, to });
                    continue;
                }
                // A chunk contains all taps of a block of input channels.
                pool.for_each_chunk(to, taps.len() * LANES * blocks * LANES, |index, to| {
                    let inputs = index * LANES..(index * LANES + LANES).min(shape.c_in);
                    simd.vectorize(Direct { source, block, blocks, inputs, taps: &taps, to });
                });
            }
        }
        panels.weights = weights;
        panels
    }
}

/// Packs `[tap][16][blocks × 16]` for one block of input channels.
struct Direct<'a> {
    source: WeightSource<'a>,
    block: usize,
    blocks: usize,
    inputs: std::ops::Range<usize>,
    taps: &'a [usize],
    to: &'a mut [f32],
}

impl Direct<'_> {
    #[inline(always)]
    fn group<const TAPS: usize>(&mut self, first: usize, taps: &[usize; TAPS]) {
        let width = self.blocks * LANES;
        for (row, input) in self.inputs.clone().enumerate() {
            for block in 0..self.blocks {
                let values = self.source.read(input, self.block + block, taps);
                for (tap, values) in values.iter().enumerate() {
                    let at = ((first + tap) * LANES + row) * width + block * LANES;
                    self.to[at..][..LANES].copy_from_slice(values);
                }
            }
        }
    }
}

impl Kernel for Direct<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, _: S) {
        if self.inputs.len() < LANES {
            self.to.fill(0.0);
        }
        let taps = self.taps;
        let (nines, rest) = taps.as_chunks::<9>();
        for (index, nine) in nines.iter().enumerate() {
            self.group(index * 9, nine);
        }
        for (index, tap) in rest.iter().enumerate() {
            self.group(nines.len() * 9 + index, &[*tap]);
        }
    }
}

/// Products per tile of F(4×4, 3×3).
const PRODUCTS: usize = 36;

/// Packs `[36][inputs][blocks × 16]`: the filter transform `G·g·Gᵀ` of every kernel `g`.
struct FilterTransform<'a> {
    source: WeightSource<'a>,
    block: usize,
    blocks: usize,
    inputs: usize,
    to: &'a mut [f32],
}

impl Kernel for FilterTransform<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { source, block, blocks, inputs, to } = self;
        let width = blocks * LANES;
        let rows = inputs.next_multiple_of(LANES);
        let g = F4::G.map(|row| row.map(|x| s.splat(x as f32)));
        let taps: [usize; 9] = match source.direction {
            Direction::Forward => std::array::from_fn(|tap| tap),
            Direction::Backward(..) => std::array::from_fn(|tap| 8 - tap),
        };
        for input in 0..rows {
            for part in 0..blocks {
                let kernel = match input < inputs {
                    true => source.read(input, block + part, &taps),
                    false => [[0.0; LANES]; 9],
                };
                let kernel: [S::V; 9] = std::array::from_fn(|tap| s.load(&kernel[tap]));
                let combine = |a: S::V, b: S::V, c: S::V, by: &[S::V; 3]| {
                    s.mul_add(c, by[2], s.mul_add(b, by[1], s.mul(a, by[0])))
                };
                for (i, by) in g.iter().enumerate() {
                    let half: [S::V; 3] =
                        std::array::from_fn(|x| combine(kernel[x], kernel[3 + x], kernel[6 + x], by));
                    for (j, by) in g.iter().enumerate() {
                        let at = ((i * 6 + j) * rows + input) * width + part * LANES;
                        if let Some(to) = to[at..].first_chunk_mut::<LANES>() {
                            s.store(to, combine(half[0], half[1], half[2], by));
                        }
                    }
                }
            }
        }
    }
}
