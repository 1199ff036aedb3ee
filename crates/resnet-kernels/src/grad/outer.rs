//! Weight gradient of blocked tensors: for every tap, a sum of outer products of 16 input × 16 output channels over all
//! output pixels of the batch.

use std::ops::Range;

use super::blocked::BlockedConv;
use super::buffer_pool::BufferPool;
use crate::error::{Error, product};
use crate::layout::{LANES, View};
use crate::simd::{Dispatch, Kernel, Simd};

/// Bytes of both operands per strip of rows, which should stay in the L2 cache for all pairs of channel blocks.
const STRIP_BYTES: usize = 256 << 10;

/// Maximum number of channel blocks of either operand per task; larger groups read operands less often.
const GROUP: usize = 8;

/// Minimum number of tasks per thread for load balancing.
const TASKS_PER_THREAD: usize = 4;

/// Elements of the sums for a pair of channel blocks and one tap.
const CELL: usize = LANES * LANES;

pub(super) fn gradient(
    conv: &BlockedConv,
    input: View,
    grad: View,
    buffers: &mut BufferPool,
) -> Result<Vec<f32>, Error> {
    let (outputs, inputs) = (grad.layout.blocks(), input.layout.blocks());
    let taps = conv.shape.kernel[0] * conv.shape.kernel[1];
    let [group_out, group_in] = groups([outputs, inputs], conv.pool.threads());
    let tasks = [outputs.div_ceil(group_out), inputs.div_ceil(group_in)];
    let task_len = group_out * group_in * taps * CELL;
    let len = product("sums", &[tasks[0] * tasks[1], task_len])?;
    let mut sums = buffers.zeroed(len);
    let job = Job { conv, input, grad, groups: [group_out, group_in] };
    conv.pool.for_each_chunk(&mut sums[..len], task_len, |index, sums| {
        let group = [index / tasks[1], index % tasks[1]];
        conv.isa.dispatch(Task { job: &job, group, sums });
    });
    let c_in = conv.shape.c_in;
    let mut result = vec![0.0; conv.shape.c_out * c_in * taps];
    conv.pool.for_each_chunk(&mut result, LANES * c_in * taps, |output, result| {
        let lanes = result.len() / (c_in * taps);
        for input in 0..inputs {
            let task = output / group_out * tasks[1] + input / group_in;
            let pair = output % group_out * group_in + input % group_in;
            let cells = &sums[task * task_len + pair * taps * CELL..][..taps * CELL];
            let channels = LANES.min(c_in - input * LANES);
            for (tap, cell) in cells.chunks_exact(CELL).enumerate() {
                for (channel, values) in cell.as_chunks::<LANES>().0.iter().take(channels).enumerate() {
                    let at = (input * LANES + channel) * taps + tap;
                    for (lane, value) in values[..lanes].iter().enumerate() {
                        result[lane * c_in * taps + at] = *value;
                    }
                }
            }
        }
    });
    buffers.put(sums);
    Ok(result)
}

/// Returns the number of output and input blocks per task.
fn groups(blocks: [usize; 2], threads: usize) -> [usize; 2] {
    let mut groups = blocks.map(|count| GROUP.min(count));
    let tasks = |groups: [usize; 2]| blocks[0].div_ceil(groups[0]) * blocks[1].div_ceil(groups[1]);
    while threads > 1 && tasks(groups) < TASKS_PER_THREAD * threads && groups != [1, 1] {
        let larger = usize::from(groups[1] > groups[0]);
        groups[larger] = groups[larger].div_ceil(2);
    }
    groups
}

struct Job<'a> {
    conv: &'a BlockedConv<'a>,
    input: View<'a>,
    grad: View<'a>,
    groups: [usize; 2],
}

struct Task<'a> {
    job: &'a Job<'a>,
    group: [usize; 2],
    sums: &'a mut [f32],
}

/// Returns the output positions along an axis for which tap `tap` is inside the `size` input pixels.
fn inside(conv: &BlockedConv, axis: usize, tap: usize, size: usize, output: usize) -> Range<usize> {
    let (stride, padding) = (conv.shape.stride[axis], conv.shape.padding[axis]);
    let offset = tap * conv.shape.dilation[axis];
    let first = padding.saturating_sub(offset).div_ceil(stride);
    let end = (size + padding).saturating_sub(offset).div_ceil(stride).min(output);
    first.min(end)..end
}

impl Dispatch for Task<'_> {
    type Output = ();

    fn run<S: Simd>(self, simd: S) {
        let Self { job: Job { conv, input, grad, groups }, group, sums } = self;
        let (from, to) = (input.layout, grad.layout);
        let [kh, kw] = conv.shape.kernel;
        let [sy, sx] = conv.shape.stride;
        let range = |axis: usize, blocks: usize| {
            let start = group[axis] * groups[axis];
            start..(start + groups[axis]).min(blocks)
        };
        let (outputs, inputs) = (range(0, to.blocks()), range(1, from.blocks()));
        let pixel_bytes = (outputs.len() + inputs.len() * sy * sx) * LANES * size_of::<f32>();
        let strip = (STRIP_BYTES / (pixel_bytes * to.w)).max(1);
        let columns: Vec<Range<usize>> = (0..kw).map(|tap| inside(conv, 1, tap, from.w, to.w)).collect();
        let all_rows: Vec<Range<usize>> = (0..kh).map(|tap| inside(conv, 0, tap, from.h, to.h)).collect();
        for image in 0..to.n {
            for first in (0..to.h).step_by(strip) {
                for (oc, output) in outputs.clone().enumerate() {
                    let grad = grad.plane(image, output);
                    for (ic, block) in inputs.clone().enumerate() {
                        let input = input.plane(image, block);
                        let cells = &mut sums[(oc * groups[1] + ic) * kh * kw * CELL..][..kh * kw * CELL];
                        for (tap, sums) in cells.chunks_exact_mut(CELL).enumerate() {
                            let (ky, columns) = (tap / kw, &columns[tap % kw]);
                            let rows = all_rows[ky].start.max(first)..all_rows[ky].end.min(first + strip);
                            if rows.is_empty() || columns.is_empty() {
                                continue;
                            }
                            let y = rows.start * sy + ky * conv.shape.dilation[0] - conv.shape.padding[0];
                            let x = columns.start * sx + tap % kw * conv.shape.dilation[1]
                                - conv.shape.padding[1];
                            let products = Products {
                                grad: &grad[to.pixel(rows.start, columns.start)..],
                                grad_row: to.row_len(),
                                input: &input[from.pixel(y, x)..],
                                input_row: sy * from.row_len(),
                                step: sx * LANES,
                                rows: rows.len(),
                                columns: columns.len(),
                            };
                            // As many accumulators as fit in registers.
                            match S::PIXELS.len() >= 4 {
                                true => simd.vectorize(Outer::<16> { products, sums }),
                                false => simd.vectorize(Outer::<4> { products, sums }),
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Corresponding pixels of a gradient plane and an input plane.
#[derive(Clone, Copy)]
struct Products<'a> {
    grad: &'a [f32],
    grad_row: usize,
    input: &'a [f32],
    input_row: usize,
    /// Elements between consecutive input pixels.
    step: usize,
    rows: usize,
    columns: usize,
}

/// Computes `sums[i][o] += Σ input[i] · grad[o]` over all pixels, `COUNT` input channels at a time.
struct Outer<'a, const COUNT: usize> {
    products: Products<'a>,
    sums: &'a mut [f32],
}

impl<const COUNT: usize> Kernel for Outer<'_, COUNT> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Products { grad, grad_row, input, input_row, step, rows, columns } = self.products;
        let sums = self.sums.as_chunks_mut::<LANES>().0;
        for (part, sums) in sums.chunks_exact_mut(COUNT).enumerate() {
            let mut acc: [S::V; COUNT] = std::array::from_fn(|i| s.load(&sums[i]));
            for row in 0..rows {
                let grad = grad[row * grad_row..][..columns * LANES].as_chunks::<LANES>().0;
                let end = (columns - 1) * step + LANES;
                let input = input[row * input_row..][..end].chunks(step);
                for (g, x) in grad.iter().zip(input) {
                    let Some(x) = x.get(part * COUNT..).and_then(<[f32]>::first_chunk::<COUNT>) else {
                        break;
                    };
                    let g = s.load(g);
                    for i in 0..COUNT {
                        acc[i] = s.mul_add(g, s.splat(x[i]), acc[i]);
                    }
                }
            }
            for i in 0..COUNT {
                s.store(&mut sums[i], acc[i]);
            }
        }
    }
}
