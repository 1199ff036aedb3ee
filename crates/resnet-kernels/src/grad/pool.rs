//! Gradients of pooling, channel scaling and sums, for blocked tensors without halo.

use crate::error::{Error, check_at_least, check_len, check_no_halo};
use crate::layout::{Blocked, LANES, View};
use crate::pool::{AvgPoolSpec, PoolSpec};
use crate::simd::{Isa, Kernel, Simd};
use crate::threads::ThreadPool;

use super::norm::{RUN, Vectorized};

/// Computes the input gradient of a max pool from the input `x`, the output `y` and the output gradient. As in PyTorch,
/// the first of equal maxima receives the gradient.
///
/// # Errors
///
/// The window is invalid, a tensor has a halo, or a shape or length does not match.
pub fn grad_max_pool(
    isa: Isa,
    spec: &PoolSpec,
    [x, y, grad]: [View; 3],
    out: &mut [f32],
    pool: &ThreadPool,
) -> Result<(), Error> {
    let (from, to) = (x.layout, y.layout);
    let [h, w] = spec.output_hw([from.h, from.w])?;
    x.check("input", from.dims())?;
    y.check("output", [from.n, from.c, h, w])?;
    grad.check("gradient", to.dims())?;
    for view in [x, y, grad] {
        check_no_halo("pooling tensor", view.layout.halo)?;
    }
    check_at_least("input gradient", out.len(), from.len())?;
    pool.for_each_chunk(&mut out[..from.len()], from.plane_len(), |index, out| {
        let (image, block) = (index / from.blocks(), index % from.blocks());
        let [x, y, grad] = [x, y, grad].map(|view| view.plane(image, block).as_chunks::<LANES>().0);
        let out = out.as_chunks_mut::<LANES>().0;
        isa.dispatch(Vectorized(Max { spec, x, y, grad, size: [from.h, from.w], width: to.w, out }));
    });
    Ok(())
}

struct Max<'a> {
    spec: &'a PoolSpec,
    x: &'a [[f32; LANES]],
    y: &'a [[f32; LANES]],
    grad: &'a [[f32; LANES]],
    size: [usize; 2],
    /// Width of the output.
    width: usize,
    out: &'a mut [[f32; LANES]],
}

impl Kernel for Max<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let Self { spec, x, y, grad, size: [h, w], width, out } = self;
        out.fill([0.0; LANES]);
        for (index, (max, g)) in y.iter().zip(grad).enumerate() {
            let columns = spec.columns(index % width, w);
            // Gradient of the lanes whose maximum has not been found yet.
            let mut left = *g;
            for row in spec.rows(index / width, h) {
                for at in row * w + columns.start..row * w + columns.end {
                    for lane in 0..LANES {
                        let here = x[at][lane] == max[lane];
                        out[at][lane] += if here { left[lane] } else { 0.0 };
                        left[lane] = if here { 0.0 } else { left[lane] };
                    }
                }
            }
        }
    }
}

/// Computes the input gradient, with layout `from`, of an average pool from the output gradient.
///
/// # Errors
///
/// The window is invalid, a tensor has a halo, or a shape or length does not match.
pub fn grad_avg_pool(
    isa: Isa,
    avg: &AvgPoolSpec,
    from: Blocked,
    grad: View,
    out: &mut [f32],
    pool: &ThreadPool,
) -> Result<(), Error> {
    let [h, w] = avg.window.output_hw([from.h, from.w])?;
    grad.check("gradient", [from.n, from.c, h, w])?;
    for halo in [from.halo, grad.layout.halo] {
        check_no_halo("pooling tensor", halo)?;
    }
    check_at_least("input gradient", out.len(), from.len())?;
    pool.for_each_chunk(&mut out[..from.len()], from.plane_len(), |index, out| {
        let grad = grad.plane(index / from.blocks(), index % from.blocks()).as_chunks::<LANES>().0;
        let out = out.as_chunks_mut::<LANES>().0;
        isa.dispatch(Vectorized(Average { avg, grad, size: [from.h, from.w], width: w, out }));
    });
    Ok(())
}

struct Average<'a> {
    avg: &'a AvgPoolSpec,
    grad: &'a [[f32; LANES]],
    size: [usize; 2],
    /// Width of the output.
    width: usize,
    out: &'a mut [[f32; LANES]],
}

impl Kernel for Average<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { avg, grad, size: [h, w], width, out } = self;
        out.fill([0.0; LANES]);
        for (index, g) in grad.iter().enumerate() {
            let (y, x) = (index / width, index % width);
            let count = avg.divisor(0, y, h) * avg.divisor(1, x, w);
            let scaled = s.mul(s.load(g), s.splat(1.0 / count as f32));
            let columns = avg.window.columns(x, w);
            for row in avg.window.rows(y, h) {
                for out in &mut out[row * w + columns.start..row * w + columns.end] {
                    let sum = s.add(s.load(out), scaled);
                    s.store(out, sum);
                }
            }
        }
    }
}

/// Multiplies every plane of `x` by its element of `gate` `[N, C]`, as in squeeze-and-excitation; also computes the
/// gradient of `x` from the output gradient.
///
/// # Errors
///
/// The layout has a halo, or a length does not match.
pub fn scale_channels(
    isa: Isa,
    layout: Blocked,
    x: &[f32],
    gate: &[f32],
    out: &mut [f32],
    pool: &ThreadPool,
) -> Result<(), Error> {
    check_gate(layout, x, gate.len())?;
    check_at_least("output", out.len(), layout.len())?;
    let len = layout.plane_len();
    pool.for_each_chunk(&mut out[..layout.len()], len, |index, out| {
        let (start, channels) = gates(layout, index);
        let mut factor = [0.0; LANES];
        factor[..channels].copy_from_slice(&gate[start..][..channels]);
        let x = x[index * len..][..len].as_chunks::<LANES>().0;
        let out = out.as_chunks_mut::<LANES>().0;
        isa.dispatch(Vectorized(Scale { x, factor: &factor, out }));
    });
    Ok(())
}

/// Returns the gradient `[N, C]` of the gate of [`scale_channels`] from `x` and the output gradient.
///
/// # Errors
///
/// The layout has a halo, or a length does not match.
pub fn grad_gate(
    isa: Isa,
    layout: Blocked,
    x: &[f32],
    grad: &[f32],
    pool: &ThreadPool,
) -> Result<Vec<f32>, Error> {
    check_gate(layout, x, layout.n * layout.c)?;
    check_at_least("gradient", grad.len(), layout.len())?;
    let len = layout.plane_len();
    let mut sums = vec![[0f32; LANES]; layout.n * layout.blocks()];
    pool.for_each_chunk(&mut sums, 1, |index, sum| {
        let [x, grad] = [x, grad].map(|values| values[index * len..][..len].as_chunks::<LANES>().0);
        sum[0] = isa.dispatch(Vectorized(Gate { x, grad }));
    });
    let mut out = Vec::with_capacity(layout.n * layout.c);
    for (index, sum) in sums.iter().enumerate() {
        out.extend(&sum[..gates(layout, index).1]);
    }
    Ok(out)
}

fn check_gate(layout: Blocked, x: &[f32], gate: usize) -> Result<(), Error> {
    check_no_halo("input", layout.halo)?;
    check_len("gate", gate, layout.n * layout.c)?;
    check_at_least("input", x.len(), layout.len())
}

/// Returns the offset in `[N, C]` of the channels of a plane, and their number.
fn gates(layout: Blocked, plane: usize) -> (usize, usize) {
    let first = plane % layout.blocks() * LANES;
    (plane / layout.blocks() * layout.c + first, LANES.min(layout.c - first))
}

struct Scale<'a> {
    x: &'a [[f32; LANES]],
    factor: &'a [f32; LANES],
    out: &'a mut [[f32; LANES]],
}

impl Kernel for Scale<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let factor = s.load(self.factor);
        for (out, x) in self.out.iter_mut().zip(self.x) {
            s.store(out, s.mul(s.load(x), factor));
        }
    }
}

/// Σ x · g, accumulated in `f32` over a few pixels and in `f64` over those partial sums.
struct Gate<'a> {
    x: &'a [[f32; LANES]],
    grad: &'a [[f32; LANES]],
}

impl Kernel for Gate<'_> {
    type Output = [f32; LANES];

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> [f32; LANES] {
        let mut totals = [0f64; LANES];
        for (x, grad) in self.x.chunks(RUN).zip(self.grad.chunks(RUN)) {
            let mut sum = s.splat(0.0);
            for (x, g) in x.iter().zip(grad) {
                sum = s.mul_add(s.load(x), s.load(g), sum);
            }
            let mut lanes = [0f32; LANES];
            s.store(&mut lanes, sum);
            totals.iter_mut().zip(lanes).for_each(|(total, value)| *total += f64::from(value));
        }
        totals.map(|total| total as f32)
    }
}

/// Computes the input gradient of the mean over height and width from the output gradient `[N, C]`.
///
/// # Errors
///
/// The layout has a halo, or a length does not match.
pub fn grad_global_avg_pool(
    layout: Blocked,
    grad: &[f32],
    out: &mut [f32],
    pool: &ThreadPool,
) -> Result<(), Error> {
    check_no_halo("input", layout.halo)?;
    check_len("gradient", grad.len(), layout.n * layout.c)?;
    check_at_least("input gradient", out.len(), layout.len())?;
    let factor = 1.0 / (layout.h * layout.w) as f32;
    pool.for_each_chunk(&mut out[..layout.len()], layout.plane_len(), |index, out| {
        let (image, first) = (index / layout.blocks(), index % layout.blocks() * LANES);
        let channels = LANES.min(layout.c - first);
        let mut values = [0.0; LANES];
        let grad = &grad[image * layout.c + first..][..channels];
        values.iter_mut().zip(grad).for_each(|(to, g)| *to = g * factor);
        out.as_chunks_mut::<LANES>().0.fill(values);
    });
    Ok(())
}

/// Adds `from` to `to`, up to the length of the shorter slice.
pub fn add_to(to: &mut [f32], from: &[f32], pool: &ThreadPool) {
    const CHUNK: usize = 1 << 14;
    let len = to.len().min(from.len());
    pool.for_each_chunk(&mut to[..len], CHUNK, |index, to| {
        let from = &from[index * CHUNK..][..to.len()];
        to.iter_mut().zip(from).for_each(|(to, from)| *to += *from);
    });
}
