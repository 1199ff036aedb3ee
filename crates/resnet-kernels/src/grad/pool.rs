//! Gradients of pooling, and sums, of blocked tensors without a halo.

use crate::error::{Error, check_at_least, check_len};
use crate::layout::{Blocked, LANES, View};
use crate::pool::Window;
use crate::simd::{Isa, Kernel, Simd};
use crate::threads::Pool;

use super::norm::Vectorized;

/// The gradient to the input of a max-pooling, from the input `x`, the result `y` and the gradient to it. It goes to the
/// first of equal maxima, as in PyTorch.
///
/// Errors: a bad window, halos, shapes and lengths that do not fit.
pub fn grad_max_pool(
    isa: Isa,
    window: &Window,
    [x, y, grad]: [View; 3],
    out: &mut [f32],
    pool: &Pool,
) -> Result<(), Error> {
    let (from, to) = (x.layout, y.layout);
    let [h, w] = window.output_hw([from.h, from.w])?;
    x.check("input", from.dims())?;
    y.check("output", [from.n, from.c, h, w])?;
    grad.check("gradient", to.dims())?;
    for view in [x, y, grad] {
        if view.layout.halo != [0, 0] {
            return Err(Error::Halo { found: view.layout.halo, expected: [0, 0] });
        }
    }
    check_at_least("input gradient", out.len(), from.len())?;
    pool.for_each_chunk(&mut out[..from.len()], from.plane_len(), |index, out| {
        let (image, block) = (index / from.blocks(), index % from.blocks());
        let [x, y, grad] = [x, y, grad].map(|view| view.plane(image, block).as_chunks::<LANES>().0);
        let out = out.as_chunks_mut::<LANES>().0;
        isa.dispatch(Vectorized(Max { window, x, y, grad, size: [from.h, from.w], width: to.w, out }));
    });
    Ok(())
}

struct Max<'a> {
    window: &'a Window,
    x: &'a [[f32; LANES]],
    y: &'a [[f32; LANES]],
    grad: &'a [[f32; LANES]],
    size: [usize; 2],
    /// Of the output.
    width: usize,
    out: &'a mut [[f32; LANES]],
}

impl Kernel for Max<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let Self { window, x, y, grad, size: [h, w], width, out } = self;
        out.fill([0.0; LANES]);
        for (index, (max, g)) in y.iter().zip(grad).enumerate() {
            let columns = window.columns(index % width, w);
            // What has not found its maximum yet.
            let mut left = *g;
            for row in window.rows(index / width, h) {
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

/// The gradient to the input of the mean over height and width, from that to its result `[N, C]`.
///
/// Errors: a halo, lengths that do not fit.
pub fn grad_global_avg_pool(
    layout: Blocked,
    grad: &[f32],
    out: &mut [f32],
    pool: &Pool,
) -> Result<(), Error> {
    if layout.halo != [0, 0] {
        return Err(Error::Halo { found: layout.halo, expected: [0, 0] });
    }
    check_len("gradient", grad.len(), layout.n * layout.c)?;
    check_at_least("input gradient", out.len(), layout.len())?;
    let share = 1.0 / (layout.h * layout.w) as f32;
    pool.for_each_chunk(&mut out[..layout.len()], layout.plane_len(), |index, out| {
        let (image, first) = (index / layout.blocks(), index % layout.blocks() * LANES);
        let channels = LANES.min(layout.c - first);
        let mut values = [0.0; LANES];
        let grad = &grad[image * layout.c + first..][..channels];
        values.iter_mut().zip(grad).for_each(|(to, g)| *to = g * share);
        out.as_chunks_mut::<LANES>().0.fill(values);
    });
    Ok(())
}

/// `to += from`, all of the shorter one.
pub fn add_to(to: &mut [f32], from: &[f32], pool: &Pool) {
    const CHUNK: usize = 1 << 14;
    let len = to.len().min(from.len());
    pool.for_each_chunk(&mut to[..len], CHUNK, |index, to| {
        let from = &from[index * CHUNK..][..to.len()];
        to.iter_mut().zip(from).for_each(|(to, from)| *to += *from);
    });
}
