//! Weight gradient of planar tensors: for every output channel and tap of an input channel, a dot product over all
//! output pixels of the batch.

use super::PlanarConv;
use crate::error::{Error, product};

use crate::layout::{LANES, View};
use crate::simd::{AlignedVec, Dispatch, Kernel, Simd};
use crate::threads::ThreadPool;

/// Bytes of output gradient per strip of rows, which should stay in the L2 cache for all taps.
const STRIP_BYTES: usize = 128 << 10;

/// Taps per register tile.
const TAPS: usize = 6;

/// Minimum number of tasks per thread for load balancing.
const TASKS_PER_THREAD: usize = 4;

/// Layout of both operands in which the pixels of several rows are contiguous.
///
/// The input is split by the stride, `[N, C, stride, stride, rows, pitch]`, so that neighboring outputs read
/// neighboring inputs; the gradient has the same pitch, with zeros at the end of each row.
struct PanelLayout {
    /// Blocks of 16 output channels per panel.
    blocks: usize,
    /// Panels per group.
    panels: usize,
    /// Output channels per group.
    channels: usize,
    /// Taps per group: input channels × kernel size.
    taps: usize,
    /// `[rows, pitch]` of one phase of an input channel.
    phase: [usize; 2],
    /// Elements per input channel, all phases.
    plane: usize,
    /// Output `[height, width]`.
    output: [usize; 2],
}

/// Output gradient.
#[derive(Clone, Copy)]
pub(super) enum OutputGrad<'a> {
    /// `[N, C, H, W]`.
    Planar(&'a [f32]),
    /// Blocked, without halo.
    Blocked(View<'a>),
}

pub(super) fn gradient(
    conv: &PlanarConv,
    output: [usize; 4],
    input: &[f32],
    grad: OutputGrad,
) -> Result<Vec<f32>, Error> {
    struct Run<'a>(&'a PlanarConv<'a>, [usize; 4], &'a [f32], OutputGrad<'a>);
    impl Dispatch for Run<'_> {
        type Output = Result<Vec<f32>, Error>;
        fn run<S: Simd>(self, simd: S) -> Self::Output {
            let Run(conv, output, input, grad) = self;
            run(simd, conv, output, input, grad)
        }
    }
    conv.isa.dispatch(Run(conv, output, input, grad))
}

impl PanelLayout {
    fn new<S: Simd>(conv: &PlanarConv, output: [usize; 4]) -> Self {
        let shape = &conv.shape;
        let channels = shape.c_out / shape.groups;
        // Registers limit the number of blocks per tile; among those, the one with the least padding.
        let padded = |blocks: usize| channels.next_multiple_of(blocks * 16);
        let possible = [4, 2, 1].into_iter().filter(|&blocks| blocks <= S::PIXELS.len());
        let blocks = possible.min_by_key(|&blocks| padded(blocks)).unwrap_or(1);
        let reach = |axis: usize| shape.dilation[axis] * (shape.kernel[axis] - 1) / shape.stride[axis];
        let phase = [output[2] + reach(0), output[3] + reach(1)];
        Self {
            blocks,
            panels: channels.div_ceil(blocks * 16),
            channels,
            taps: shape.c_in / shape.groups * shape.kernel[0] * shape.kernel[1],
            phase,
            plane: shape.stride[0] * shape.stride[1] * phase[0] * phase[1],
            output: [output[2], output[3]],
        }
    }

    /// Returns the number of output channels per panel, including padding.
    fn width(&self) -> usize {
        self.blocks * 16
    }

    /// Returns the number of elements per panel of the gradient of one image.
    fn panel(&self) -> usize {
        self.output[0] * self.phase[1] * self.width()
    }
}

/// Returns the zero-padded input, split by the stride: `[N, C, stride, stride, rows, pitch]`.
fn split_by_stride(conv: &PlanarConv, layout: &PanelLayout, input: &[f32]) -> Result<AlignedVec, Error> {
    let [n, c, h, w] = conv.input;
    let shape = &conv.shape;
    let [rows, pitch] = layout.phase;
    // The last run of the last plane may read past its row.
    let mut out = AlignedVec::zeroed(product("split input", &[n * c, layout.plane])? + pitch)?;
    let len = n * c * layout.plane;
    conv.pool.for_each_chunk(&mut out[..len], layout.plane, |index, plane| {
        let source = &input[index * h * w..][..h * w];
        let [sy, sx] = shape.stride;
        for (phase, plane) in plane.chunks_exact_mut(rows * pitch).enumerate() {
            let (py, px) = (phase / sx, phase % sx);
            for (row, line) in plane.chunks_exact_mut(pitch).enumerate() {
                let y = (row * sy + py).wrapping_sub(shape.padding[0]);
                if y >= h {
                    continue;
                }
                let from = &source[y * w..][..w];
                let skipped = shape.padding[1].saturating_sub(px).div_ceil(sx);
                let first = skipped * sx + px - shape.padding[1];
                let pixels = from.get(first..).unwrap_or_default().iter().step_by(sx);
                let targets = line.get_mut(skipped..).unwrap_or_default();
                targets.iter_mut().zip(pixels).for_each(|(to, from)| *to = *from);
            }
        }
    });
    Ok(out)
}

/// Returns the gradient with the channels of a panel interleaved: `[N, groups, panels, H', pitch, width]`.
fn interleave(
    conv: &PlanarConv,
    layout: &PanelLayout,
    grad: OutputGrad,
    batch: usize,
) -> Result<AlignedVec, Error> {
    let [oh, ow] = layout.output;
    let (groups, width, pitch) = (conv.shape.groups, layout.width(), layout.phase[1]);
    let mut out = AlignedVec::zeroed(product("panels", &[batch * groups, layout.panels, layout.panel()])?)?;
    conv.pool.for_each_chunk(&mut out, layout.panel(), |index, panel| {
        let first = index % layout.panels * width;
        let group = index / layout.panels;
        let lanes = width.min(layout.channels - first);
        let channel = group % groups * layout.channels + first;
        if let (OutputGrad::Blocked(view), true) = (grad, channel.is_multiple_of(LANES)) {
            for lane in (0..lanes).step_by(LANES) {
                let plane = view.plane(group / groups, (channel + lane) / LANES);
                let count = LANES.min(lanes - lane);
                for (line, row) in panel.chunks_exact_mut(pitch * width).zip(plane.chunks_exact(ow * LANES)) {
                    let targets = line.chunks_exact_mut(width);
                    for (to, from) in targets.zip(row.as_chunks::<LANES>().0) {
                        to[lane..lane + count].copy_from_slice(&from[..count]);
                    }
                }
            }
            return;
        }
        for lane in 0..lanes {
            if let OutputGrad::Blocked(view) = grad {
                let plane = view.plane(group / groups, (channel + lane) / LANES);
                for (line, row) in panel.chunks_exact_mut(pitch * width).zip(plane.chunks_exact(ow * LANES)) {
                    let targets = line[lane..].iter_mut().step_by(width);
                    let pixels = row.as_chunks::<LANES>().0;
                    targets.zip(pixels).for_each(|(to, from)| *to = from[(channel + lane) % LANES]);
                }
                continue;
            }
            let OutputGrad::Planar(grad) = grad else { continue };
            let plane = &grad[(group * layout.channels + first + lane) * oh * ow..][..oh * ow];
            for (line, row) in panel.chunks_exact_mut(pitch * width).zip(plane.chunks_exact(ow)) {
                let targets = line[lane..].iter_mut().step_by(width);
                targets.zip(row).for_each(|(to, from)| *to = *from);
            }
        }
    });
    Ok(out)
}

fn run<S: Simd>(
    simd: S,
    conv: &PlanarConv,
    output: [usize; 4],
    input: &[f32],
    grad: OutputGrad,
) -> Result<Vec<f32>, Error> {
    let (shape, batch) = (&conv.shape, output[0]);
    let layout = PanelLayout::new::<S>(conv, output);
    let split = split_by_stride(conv, &layout, input)?;
    let panels = interleave(conv, &layout, grad, batch)?;
    // Sums of one tile: `[TAPS][width]`.
    let tile = TAPS * layout.width();
    let needed = layout.taps.div_ceil(TAPS);
    let per_task = tiles_per_task(conv.pool, shape.groups * layout.panels, needed);
    // Rounded up so that no task has tiles of two panels.
    let tiles = needed.next_multiple_of(per_task);
    let mut sums = AlignedVec::zeroed(product("sums", &[shape.groups * layout.panels, tiles, tile])?)?;
    let channel_taps = shape.kernel[0] * shape.kernel[1];
    let strip = (STRIP_BYTES / (layout.width() * size_of::<f32>() * layout.phase[1]).max(1)).max(1);
    let task = |panel: usize, first: usize, sums: &mut [f32]| {
        let group = panel / layout.panels;
        for image in 0..batch {
            let channels = (image * shape.c_in + group * (shape.c_in / shape.groups)) * layout.plane;
            let panel =
                &panels[(image * shape.groups * layout.panels + panel) * layout.panel()..][..layout.panel()];
            for row in (0..layout.output[0]).step_by(strip) {
                let rows = strip.min(layout.output[0] - row);
                let line = layout.phase[1] * layout.width();
                let weights = &panel[row * line..][..rows * line];
                for (index, sums) in sums.chunks_exact_mut(tile).enumerate().take(needed - first) {
                    let from: [usize; TAPS] = std::array::from_fn(|p| {
                        let tap = ((first + index) * TAPS + p).min(layout.taps - 1);
                        let (channel, tap) = (tap / channel_taps, tap % channel_taps);
                        let at = [tap / shape.kernel[1], tap % shape.kernel[1]];
                        let at: [usize; 2] = std::array::from_fn(|axis| at[axis] * shape.dilation[axis]);
                        let [sy, sx] = shape.stride;
                        let phase = at[0] % sy * sx + at[1] % sx;
                        let [height, pitch] = layout.phase;
                        let offset = (at[0] / sy + row) * pitch + at[1] / sx;
                        channels + channel * layout.plane + phase * height * pitch + offset
                    });
                    dot(simd, layout.blocks, Dot { weights, input: &split, from: &from, sums });
                }
            }
        }
    };
    conv.pool.for_each_chunk(&mut sums, per_task * tile, |index, sums| {
        task(index * per_task / tiles, index * per_task % tiles, sums);
    });
    let mut result = Vec::with_capacity(shape.c_out * layout.taps);
    for channel in 0..shape.c_out {
        let (group, inner) = (channel / layout.channels, channel % layout.channels);
        let panel = group * layout.panels + inner / layout.width();
        let lanes = &sums[panel * tiles * tile + inner % layout.width()..];
        result.extend((0..layout.taps).map(|tap| lanes[tap * layout.width()]));
    }
    Ok(result)
}

/// Returns the number of tiles per task: a whole panel if there are enough panels.
fn tiles_per_task(pool: &ThreadPool, panels: usize, tiles: usize) -> usize {
    let min_tasks = TASKS_PER_THREAD * pool.threads();
    if panels >= min_tasks { tiles } else { tiles.div_ceil(min_tasks).max(1) }
}

/// Computes `sums[tap][lane] += Σₖ weights[k][lane] · input[from[tap] + k]`.
struct Dot<'a> {
    /// `[run][blocks × 16]`.
    weights: &'a [f32],
    input: &'a [f32],
    from: &'a [usize; TAPS],
    /// `[TAPS][blocks × 16]`.
    sums: &'a mut [f32],
}

fn dot<S: Simd>(simd: S, blocks: usize, dot: Dot) {
    match blocks {
        4 => simd.vectorize(Fixed::<4>(dot)),
        2 => simd.vectorize(Fixed::<2>(dot)),
        _ => simd.vectorize(Fixed::<1>(dot)),
    }
}

/// Dot products with compile-time extents.
struct Fixed<'a, const BLOCKS: usize>(Dot<'a>);

impl<const BLOCKS: usize> Kernel for Fixed<'_, BLOCKS> {
    type Output = ();

    #[inline(always)]
    #[allow(clippy::needless_range_loop, reason = "indices into arrays of registers match the formulas")]
    fn run<S: Simd>(self, s: S) {
        let Dot { weights, input, from, sums } = self.0;
        let (weights, sums) = (weights.as_chunks::<16>().0, sums.as_chunks_mut::<16>().0);
        let run = weights.len() / BLOCKS;
        let x: [&[f32]; TAPS] = std::array::from_fn(|p| &input[from[p]..][..run]);
        let mut acc: [[S::V; BLOCKS]; TAPS] =
            std::array::from_fn(|p| std::array::from_fn(|m| s.load(&sums[p * BLOCKS + m])));
        for (k, w) in weights.chunks_exact(BLOCKS).enumerate() {
            let w: [S::V; BLOCKS] = std::array::from_fn(|m| s.load(&w[m]));
            for p in 0..TAPS {
                let x = s.splat(x[p][k]);
                for m in 0..BLOCKS {
                    acc[p][m] = s.mul_add(w[m], x, acc[p][m]);
                }
            }
        }
        for p in 0..TAPS {
            for m in 0..BLOCKS {
                s.store(&mut sums[p * BLOCKS + m], acc[p][m]);
            }
        }
    }
}
