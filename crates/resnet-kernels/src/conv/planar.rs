//! Direct convolution of a planar input, for stems: three input channels would use 3 of 16 SIMD lanes.
//!
//! A task copies the input rows that it needs to scratch, with padding, and computes row by row. With a fused max pool,
//! the rows go to a ring buffer of one window height, and only pooled rows are written to the output.

use super::direct::{TaskSize, addend, owned_rows, partition_rows};
use super::pack::Panel;
use super::{Call, PackedConv};
use crate::epilogue::{Activation, Residual};
use crate::error::{Error, product};
use crate::layout::LANES;
use crate::pool::{MaxRows, PoolSpec};
use crate::simd::Simd;
use crate::simd::tile::{Addend, MAX_PIXELS, Reduction, Tile, next_pixels};
use crate::threads::{Chunk, TaskOrder, TileOutput};

/// Output rows per task without and with pooling: few enough for the cache, enough to amortize the rows that
/// neighboring tasks both need.
const ROWS: usize = 8;
const POOLED_ROWS: usize = 14;

/// Kernel rows per partial sum with chunked sums.
const SUM_CHUNK_ROWS: usize = 2;

/// Sizes of a task's scratch.
struct Sizes {
    /// Output rows per task, after pooling.
    rows: usize,
    /// Padded input: row width and number of rows per channel.
    width: usize,
    input_rows: usize,
    padded: usize,
    /// Convolution output: row width, rows in the ring buffer, elements per channel block.
    conv_width: usize,
    slots: usize,
    ring_block: usize,
    ring: usize,
}

impl Sizes {
    fn choose(
        conv: &PackedConv,
        input: [usize; 4],
        output: [usize; 4],
        threads: usize,
    ) -> Result<Self, Error> {
        let what = "scratch length";
        let shape = &conv.shape;
        let [conv_height, conv_width] = shape.output_hw([input[2], input[3]])?;
        let max_rows = if conv.epilogue.max_pool.is_some() { POOLED_ROWS } else { ROWS };
        // The same number of tasks for every thread, if the image is large enough.
        let tasks = output[2].div_ceil(max_rows).next_multiple_of(threads).min(output[2]);
        let rows = output[2].div_ceil(tasks);
        let (conv_rows, slots) = match &conv.epilogue.max_pool {
            Some(spec) => {
                let (rows, _) = (rows - 1).saturating_mul(spec.stride[0]).overflowing_add(spec.kernel[0]);
                (rows.min(conv_height), spec.kernel[0].min(conv_height))
            }
            None => (rows, 0),
        };
        let width = shape.padding[1].checked_mul(2).and_then(|both| both.checked_add(input[3]));
        let width = width.ok_or(Error::Overflow { what })?;
        let input_rows = (conv_rows - 1) * shape.stride[0] + (shape.kernel[0] - 1) * shape.dilation[0] + 1;
        let padded = product(what, &[shape.c_in, input_rows, width])?;
        let ring_block = product(what, &[slots, conv_width, LANES])?;
        let ring = product(what, &[shape.c_out.div_ceil(LANES), ring_block])?;
        Ok(Self {
            rows,
            width,
            input_rows,
            padded: padded.next_multiple_of(LANES),
            conv_width,
            slots,
            ring_block,
            ring,
        })
    }

    fn per_task(&self) -> usize {
        self.padded + self.ring
    }
}

pub(super) fn scratch_len(
    conv: &PackedConv,
    input: [usize; 4],
    output: [usize; 4],
    threads: usize,
) -> Result<usize, Error> {
    let sizes = Sizes::choose(conv, input, output, threads)?;
    product("scratch length", &[sizes.per_task(), threads])
}

pub(super) fn run<S: Simd>(simd: S, call: Call, dims: [usize; 4], data: &[f32]) {
    let Call { conv, residual, output, scratch, pool } = call;
    let layout = output.layout;
    // Cannot fail: `scratch_len` succeeded with the same arguments.
    let Ok(sizes) = Sizes::choose(conv, dims, layout.dims(), pool.threads()) else { return };
    let panels = &conv.panels;
    let task_size =
        TaskSize { images: 1, rows: sizes.rows, panels: panels.list.len(), order: TaskOrder::Rows };
    let partition = partition_rows(&layout, &panels.bounds, task_size, 1);
    let image_len = dims[1] * dims[2] * dims[3];
    pool.run_with_scratch(output.data, &partition, (scratch, sizes.per_task()), |scratch, mut chunk| {
        let (padded, ring) = scratch.split_at_mut(sizes.padded);
        let image = chunk.outer.start;
        let rows = owned_rows(&chunk, &layout);
        let task = Task { simd, conv, sizes: &sizes, dims, image: &data[image * image_len..][..image_len] };
        match &conv.epilogue.max_pool {
            None => {
                let first = task.pad(padded, rows.start..rows.end);
                for y in rows {
                    let row = layout.pixel(y, 0);
                    for panel in 0..panels.list.len() {
                        let (block, blocks) = (panels.list[panel].block, panels.list[panel].blocks);
                        let (mut added, added_layout) = addend(&residual, image, block);
                        if let (Addend::Blocks { at, .. }, Residual::Add(_)) = (&mut added, &residual) {
                            *at = [added_layout.pixel(y, 0); MAX_PIXELS];
                        }
                        task.row(
                            padded,
                            first,
                            y,
                            panel,
                            added,
                            row,
                            &mut chunk.tile_output(image, block, blocks),
                        );
                    }
                }
            }
            Some(spec) => task.pooled(spec, padded, ring, rows, &mut chunk, &layout),
        }
    });
}

struct Task<'a, S> {
    simd: S,
    conv: &'a PackedConv,
    sizes: &'a Sizes,
    dims: [usize; 4],
    /// `[C, H, W]`.
    image: &'a [f32],
}

impl<S: Simd> Task<'_, S> {
    /// Copies the input of convolution rows `rows`, with padding, to `[C, rows, width]`; returns the first row.
    fn pad(&self, padded: &mut [f32], rows: std::ops::Range<usize>) -> usize {
        let shape = &self.conv.shape;
        let [_, _, h, w] = self.dims;
        let above = shape.padding[0];
        for (index, line) in
            padded.chunks_exact_mut(self.sizes.width).take(shape.c_in * self.sizes.input_rows).enumerate()
        {
            let (channel, row) = (index / self.sizes.input_rows, index % self.sizes.input_rows);
            let y = (rows.start * shape.stride[0] + row).wrapping_sub(above);
            if y < h {
                let (left, rest) = line.split_at_mut(shape.padding[1]);
                left.fill(0.0);
                rest[..w].copy_from_slice(&self.image[(channel * h + y) * w..][..w]);
                rest[w..].fill(0.0);
            } else {
                line.fill(0.0);
            }
        }
        rows.start
    }

    /// Computes one row of the convolution for one panel; `to` is the offset of the row in each block of the output.
    #[expect(clippy::too_many_arguments, reason = "the two callers differ in all of them")]
    fn row(
        &self,
        padded: &[f32],
        first: usize,
        y: usize,
        panel: usize,
        added: Addend,
        to: usize,
        output: &mut TileOutput,
    ) {
        let (shape, sizes) = (&self.conv.shape, self.sizes);
        let panel = &self.conv.panels.list[panel];
        let (plane, line) = (sizes.input_rows * sizes.width, shape.dilation[0] * sizes.width);
        let [kh, kw] = shape.kernel;
        let (channels, rows) = if self.conv.chunked_sums { (1, SUM_CHUNK_ROWS) } else { (shape.c_in, kh) };
        let reduction = |rows| match shape.dilation[1] {
            1 => Reduction::new([channels, rows, 1], [plane, line, 0], kw),
            step => Reduction::new([channels, rows, kw], [plane, line, step], 1),
        };
        // Complete chunks of rows, and the remainder.
        let reductions = [reduction(rows), reduction(kh % rows)];
        let starts = (0..shape.c_in).step_by(channels);
        let partial_sums = starts.flat_map(|channel| (0..kh).step_by(rows).map(move |row| (channel, row)));
        let weights = self.conv.panels.weights(panel);
        let width = panel.blocks * LANES;
        let start = (y - first) * shape.stride[0] * sizes.width;
        let mut tile = Tile {
            weights,
            input: padded,
            reduction: &reductions[0],
            pixels: 0,
            from: [0; MAX_PIXELS],
            to: [0; MAX_PIXELS],
            bias: None,
            addend: added,
            relu: false,
            prefetch: &[],
        };
        let mut done = 0;
        while done < sizes.conv_width {
            tile.pixels = next_pixels::<S>(panel.blocks, sizes.conv_width - done);
            for p in 0..tile.pixels {
                tile.from[p] = start + (done + p) * shape.stride[1];
                tile.to[p] = to + (done + p) * LANES;
                if let (Addend::Blocks { at: row, .. }, Addend::Blocks { at, .. }) =
                    (&added, &mut tile.addend)
                {
                    at[p] = row[0] + (done + p) * LANES;
                }
            }
            let first = tile.addend;
            for (channel, row) in partial_sums.clone() {
                let is_first = (channel, row) == (0, 0);
                tile.weights = &weights[(channel * kh + row) * kw * width..];
                tile.input = &padded[channel * plane + row * line..];
                tile.reduction = &reductions[usize::from(row + rows > kh)];
                tile.bias = is_first.then_some(self.conv.panels.bias(panel));
                tile.addend = if is_first { first } else { Addend::Output };
                let is_last = channel + channels >= shape.c_in && row + rows >= kh;
                tile.relu = is_last && self.conv.epilogue.activation == Activation::Relu;
                self.simd.tile(&tile, panel.blocks, output);
            }
            tile.addend = first;
            done += tile.pixels;
        }
    }

    /// Computes `rows` of the max-pooled convolution.
    fn pooled(
        &self,
        spec: &PoolSpec,
        padded: &mut [f32],
        ring: &mut [f32],
        rows: std::ops::Range<usize>,
        chunk: &mut Chunk,
        layout: &crate::layout::Blocked,
    ) {
        let Sizes { conv_width, slots, ring_block, .. } = *self.sizes;
        let Ok([conv_height, _]) = self.conv.shape.output_hw([self.dims[2], self.dims[3]]) else { return };
        let first = spec.rows(rows.start, conv_height).start;
        let last = spec.rows(rows.end - 1, conv_height).end;
        self.pad(padded, first..last);
        let image = chunk.outer.start;
        let mut next = first;
        for y in rows {
            let needed = spec.rows(y, conv_height);
            next = next.max(needed.start);
            while next < needed.end {
                for panel in 0..self.conv.panels.list.len() {
                    let Panel { block, blocks, .. } = self.conv.panels.list[panel];
                    let mut output =
                        TileOutput::from_slice(&mut ring[block * ring_block..], ring_block, blocks);
                    let to = next % slots * conv_width * LANES;
                    self.row(padded, first, next, panel, Addend::None, to, &mut output);
                }
                next += 1;
            }
            for block in chunk.inner.clone() {
                let start = layout.pixel(y, 0);
                let to = chunk.slice(image, block, start..start + layout.w * LANES);
                let lines = &ring[block * ring_block..][..ring_block];
                MaxRows { spec, lines, slots, rows: needed.clone(), width: conv_width, to }.run(self.simd);
            }
        }
    }
}
