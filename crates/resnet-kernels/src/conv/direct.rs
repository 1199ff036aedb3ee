//! Direct convolution of a blocked input, including 1×1: a sum over input blocks and taps in registers.

use std::ops::Range;

use super::pack::Panel;
use super::{Call, PackedConv};
use crate::epilogue::{Activation, Residual};
use crate::layout::{Blocked, LANES, View};
use crate::simd::Simd;
use crate::simd::tile::{Addend, MAX_PIXELS, Reduction, Tile, next_pixels};
use crate::threads::{Axis, Chunk, Partition, TaskOrder};

/// Bytes of input per task, which is read once per panel and should stay in the L2 cache.
const STRIP_BYTES: usize = 256 << 10;

/// Bytes of weights that are applied to all pixels of a task before the next ones; together with the input, they should
/// stay in the L2 cache. Longer sums are continued from the output.
const WEIGHT_BYTES: usize = 320 << 10;

/// Products per partial sum with chunked sums: one block of 3×3 taps.
const SUM_CHUNK: usize = 144;

/// Minimum number of tasks per thread for load balancing.
const TASKS_PER_THREAD: usize = 4;

/// Minimum number of pixels per task; below it, reading weights costs more than the better balance gains.
const MIN_PIXELS: usize = 36;

/// Maximum number of images, rows and panels per task.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TaskSize {
    pub images: usize,
    pub rows: usize,
    pub panels: usize,
    pub order: TaskOrder,
}

impl TaskSize {
    fn choose(output: &Blocked, panels: usize, row_bytes: usize, threads: usize) -> Self {
        let mut rows = (STRIP_BYTES / row_bytes.max(1)).clamp(1, output.h);
        let images = if rows < output.h { 1 } else { STRIP_BYTES / (row_bytes * output.h).max(1) };
        let images = images.clamp(1, output.n);
        if threads == 1 {
            return Self { images, rows, panels, order: TaskOrder::Rows };
        }
        let min_tasks = TASKS_PER_THREAD * threads;
        let min_rows = MIN_PIXELS.div_ceil(output.w).clamp(1, output.h);
        let images = images.min(output.n.div_ceil(threads));
        let strips = |images: usize, rows: usize| output.n.div_ceil(images) * output.h.div_ceil(rows);
        let mut group = panels;
        while group > 1 && strips(images, rows) * panels.div_ceil(group) < min_tasks {
            group = group.div_ceil(2);
        }
        while rows > min_rows && images == 1 && strips(images, rows) * panels.div_ceil(group) < min_tasks {
            rows = rows.div_ceil(2).max(min_rows);
        }
        // Prefers equal numbers of images or row strips per thread, otherwise of channel groups.
        let balanced =
            |len: usize, tasks: usize| len.is_multiple_of(threads) && tasks.is_multiple_of(threads);
        let by_rows =
            balanced(output.n, output.n.div_ceil(images)) || balanced(output.h, output.h.div_ceil(rows));
        let by_channels = balanced(panels, panels.div_ceil(group));
        let order = if by_channels && !by_rows { TaskOrder::Channels } else { TaskOrder::Rows };
        Self { images, rows, panels: group, order }
    }
}

pub(super) fn run<S: Simd>(simd: S, call: Call, input: View) {
    let Call { conv, residual, output, pool, .. } = call;
    let (shape, panels) = (&conv.shape, &conv.panels);
    let (from, to) = (input.layout, output.layout);
    let row_bytes = from.blocks() * from.row_len() * shape.stride[0] * size_of::<f32>();
    let task_size = TaskSize::choose(&to, panels.list.len(), row_bytes, pool.threads());
    let partition = partition_rows(&to, &panels.bounds, task_size, 1);
    let job = Job { simd, conv, residual: &residual, input, to };
    pool.run_partitioned(output.data, &partition, |_, mut chunk| {
        for panel in &panels.list[chunk.groups.clone()] {
            let taps = shape.kernel[0] * shape.kernel[1] * LANES;
            let block_len = taps * panel.blocks * LANES;
            let max_step = if conv.chunked_sums { SUM_CHUNK / taps } else { usize::MAX };
            let step = (WEIGHT_BYTES / size_of::<f32>() / block_len).min(max_step).max(1);
            let step = panel.depth.div_ceil(panel.depth.div_ceil(step));
            for first in (0..panel.depth).step_by(step) {
                let depth = step.min(panel.depth - first);
                job.accumulate(panel, first..first + depth, block_len, &mut chunk);
            }
        }
    });
}

struct Job<'a, S> {
    simd: S,
    conv: &'a PackedConv,
    residual: &'a Residual<'a>,
    input: View<'a>,
    to: Blocked,
}

impl<S: Simd> Job<'_, S> {
    /// Adds the products of the input blocks `depths` of a panel for all pixels of a chunk. The output holds the sums
    /// of the preceding blocks; `block_len` is the number of weights per block.
    fn accumulate(&self, panel: &Panel, depths: Range<usize>, block_len: usize, chunk: &mut Chunk) {
        let Self { conv, to, .. } = self;
        let (shape, from) = (&conv.shape, self.input.layout);
        let (first, last) = (depths.start == 0, depths.end == panel.depth);
        let reduction = Reduction::new(
            [depths.len(), shape.kernel[0], shape.kernel[1]],
            [from.plane_len(), shape.dilation[0] * from.row_len(), shape.dilation[1] * LANES],
            LANES,
        );
        let mut prefetch =
            conv.panels.prefetch(panel.start + depths.end * block_len, depths.len() * block_len);
        for image in chunk.outer.clone() {
            let start = image * from.image_len() + (panel.from + depths.start) * from.plane_len();
            let (addend, addend_layout) = match first {
                true => addend(self.residual, image, panel.block),
                false => addend(&Residual::InPlace, image, panel.block),
            };
            let mut tile = Tile {
                weights: &conv.panels.weights(panel)[depths.start * block_len..],
                input: &self.input.data[start..],
                reduction: &reduction,
                pixels: 0,
                from: [0; MAX_PIXELS],
                to: [0; MAX_PIXELS],
                bias: first.then_some(conv.panels.bias(panel)),
                addend,
                relu: last && conv.epilogue.activation == Activation::Relu,
                prefetch: &[],
            };
            let rows = owned_rows(chunk, to);
            let mut pixels = Pixels::new(rows.start, to.w, rows.len());
            let mut output = chunk.tile_output(image, panel.block, panel.blocks);
            while pixels.left > 0 {
                tile.prefetch = prefetch.next(&reduction, panel.blocks);
                tile.pixels = next_pixels::<S>(panel.blocks, pixels.left);
                for p in 0..tile.pixels {
                    let (y, x) = pixels.next();
                    // The halo is at least as wide as the padding.
                    let top = y * shape.stride[0] + from.halo[0] - shape.padding[0];
                    let left = x * shape.stride[1] + from.halo[1] - shape.padding[1];
                    tile.from[p] = top * from.row_len() + left * LANES;
                    tile.to[p] = to.pixel(y, x);
                    if let Addend::Blocks { at, .. } = &mut tile.addend {
                        at[p] = addend_layout.pixel(y, x);
                    }
                }
                self.simd.tile(&tile, panel.blocks, &mut output);
            }
        }
    }
}

/// Returns the residual for an image and the output blocks from `block` on, and its layout.
pub(super) fn addend<'a>(residual: &Residual<'a>, image: usize, block: usize) -> (Addend<'a>, Blocked) {
    match residual {
        Residual::None => (Addend::None, super::dense([0; 4])),
        Residual::InPlace => (Addend::Output, super::dense([0; 4])),
        Residual::Add(view) => {
            let layout = view.layout;
            let data = &view.data[image * layout.image_len() + block * layout.plane_len()..];
            (Addend::Blocks { data, stride: layout.plane_len(), at: [0; MAX_PIXELS] }, layout)
        }
    }
}

/// Partitions a blocked output by images, rows and panels, without the halo. Rows are counted in units of `unit`.
pub(super) fn partition_rows<'a>(
    to: &Blocked,
    bounds: &'a [usize],
    task_size: TaskSize,
    unit: usize,
) -> Partition<'a> {
    let row = to.row_len();
    Partition {
        order: task_size.order,
        outer: Axis { len: to.n, unit: 1, max_units: task_size.images },
        outer_stride: to.image_len(),
        inner_bounds: bounds,
        inner_group: task_size.panels,
        inner_stride: to.plane_len(),
        run_start: to.halo[0] * row,
        run: Axis { len: to.h * row, unit: unit * row, max_units: task_size.rows },
    }
}

/// Returns the output rows, without halo, that a chunk of [`partition_rows`] owns.
pub(super) fn owned_rows(chunk: &Chunk, to: &Blocked) -> std::ops::Range<usize> {
    let row = to.row_len();
    chunk.run.start / row - to.halo[0]..chunk.run.end / row - to.halo[0]
}

/// Iterator over pixels, row by row; a tile may span rows.
struct Pixels {
    y: usize,
    x: usize,
    width: usize,
    left: usize,
}

impl Pixels {
    fn new(first_row: usize, width: usize, rows: usize) -> Self {
        Self { y: first_row, x: 0, width, left: width * rows }
    }

    #[inline]
    fn next(&mut self) -> (usize, usize) {
        let at = (self.y, self.x);
        self.left -= 1;
        self.x += 1;
        if self.x == self.width {
            self.x = 0;
            self.y += 1;
        }
        at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn task_sizes_balance_threads_and_fit_caches() {
        let check = |n, size: usize, channels: usize, panels, threads, expected: [usize; 3], order| {
            let output = super::super::dense([n, panels * 64, size, size]);
            let row_bytes = channels * size * 4;
            let task_size = TaskSize::choose(&output, panels, row_bytes, threads);
            let [images, rows, panels] = expected;
            assert_eq!(task_size, TaskSize { images, rows, panels, order });
        };
        check(1, 56, 64, 4, 1, [1, 18, 4], TaskOrder::Rows);
        check(1, 7, 512, 32, 1, [1, 7, 32], TaskOrder::Rows);
        check(1, 7, 512, 32, 2, [1, 7, 4], TaskOrder::Channels);
        check(1, 7, 2048, 8, 2, [1, 4, 2], TaskOrder::Channels);
        check(1, 14, 1024, 4, 2, [1, 4, 2], TaskOrder::Rows);
        check(1, 56, 256, 1, 2, [1, 4, 1], TaskOrder::Rows);
        check(8, 7, 512, 32, 1, [2, 7, 32], TaskOrder::Rows);
        check(8, 7, 512, 32, 2, [2, 7, 16], TaskOrder::Rows);
        check(1, 56, 64, 1, 2, [1, 5, 1], TaskOrder::Rows);
    }
}
