//! Max-pooling and average pooling over blocked tensors.

use std::ops::Range;

use crate::error::{Error, check_len};
use crate::layout::{LANES, View, ViewMut};
use crate::shape::padded_spare;
use crate::simd::{Dispatch, Isa, Kernel, Simd};
use crate::threads::{Axis, Partition, TaskOrder, ThreadPool};

/// The windows of a pooling, with PyTorch's meaning; axes are `[vertical, horizontal]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PoolSpec {
    /// Extent in pixels.
    pub kernel: [usize; 2],
    /// Distance of neighbouring windows in pixels.
    pub stride: [usize; 2],
    /// Padding on either side in pixels, at most half of the kernel.
    pub padding: [usize; 2],
    /// Whether a last window that reaches beyond the padded input counts, if it starts inside.
    pub ceil_mode: bool,
}

impl PoolSpec {
    /// Refuses zero sizes and too much padding.
    pub fn check(&self) -> Result<(), Error> {
        let sizes = [
            ("kernel height", self.kernel[0]),
            ("kernel width", self.kernel[1]),
            ("vertical stride", self.stride[0]),
            ("horizontal stride", self.stride[1]),
        ];
        if let Some(&(what, _)) = sizes.iter().find(|(_, size)| *size == 0) {
            return Err(Error::Zero { what });
        }
        for (padding, kernel) in self.padding.into_iter().zip(self.kernel) {
            if padding > kernel / 2 {
                return Err(Error::PoolPadding { padding, kernel });
            }
        }
        Ok(())
    }

    /// Output height and width for an input of `[height, width]`.
    pub fn output_hw(&self, input: [usize; 2]) -> Result<[usize; 2], Error> {
        self.check()?;
        let along = |axis: usize| {
            let spare = padded_spare(axis, input[axis], self.padding[axis], self.kernel[axis])?;
            let last =
                if self.ceil_mode { spare.div_ceil(self.stride[axis]) } else { spare / self.stride[axis] };
            // With `ceil_mode`, a spec must not start in the padding behind the input.
            let start = last.checked_mul(self.stride[axis]).ok_or(Error::Overflow { what: "pooled size" })?;
            Ok(if start >= input[axis] + self.padding[axis] { last } else { last + 1 })
        };
        Ok([along(0)?, along(1)?])
    }

    /// Input rows, of `height`, that output row `y` depends on; padding is left out.
    pub(crate) fn rows(&self, y: usize, height: usize) -> Range<usize> {
        self.span(0, y, height)
    }

    /// Input columns, of `width`, that output column `x` depends on; padding is left out.
    pub(crate) fn columns(&self, x: usize, width: usize) -> Range<usize> {
        self.span(1, x, width)
    }

    fn span(&self, axis: usize, at: usize, size: usize) -> Range<usize> {
        let start = at * self.stride[axis];
        let end = (start + self.kernel[axis]).saturating_sub(self.padding[axis]).min(size);
        start.saturating_sub(self.padding[axis]).min(end)..end
    }
}

/// An average pooling.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AvgPoolSpec {
    /// Its windows.
    pub window: PoolSpec,
    /// Whether padding counts as zeros; otherwise the mean is taken over pixels of the input only.
    pub count_include_pad: bool,
}

impl AvgPoolSpec {
    /// What the sum of output position `at` along an axis of `size` input pixels is divided by, for that axis.
    pub(crate) fn divisor(&self, axis: usize, at: usize, size: usize) -> usize {
        if self.count_include_pad {
            // Padding counts, what lies behind it (`ceil_mode`) does not.
            let start = at * self.window.stride[axis];
            (start + self.window.kernel[axis]).min(size + 2 * self.window.padding[axis]) - start
        } else {
            self.window.span(axis, at, size).len()
        }
    }
}

/// Max-pooling: padding counts as −∞ and NaN is larger than everything, as in PyTorch.
///
/// Errors: a bad spec, or shapes and lengths that do not fit.
pub fn max_pool(
    isa: Isa,
    spec: &PoolSpec,
    input: View,
    output: ViewMut,
    pool: &ThreadPool,
) -> Result<(), Error> {
    let [h, w] = spec.output_hw([input.layout.h, input.layout.w])?;
    check(&input, &output, [h, w])?;
    isa.dispatch(Windows { spec, divisor: None, input, output, pool });
    Ok(())
}

/// Average pooling. Errors: a bad spec, or shapes and lengths that do not fit.
pub fn avg_pool(
    isa: Isa,
    avg: &AvgPoolSpec,
    input: View,
    output: ViewMut,
    pool: &ThreadPool,
) -> Result<(), Error> {
    let [h, w] = avg.window.output_hw([input.layout.h, input.layout.w])?;
    check(&input, &output, [h, w])?;
    isa.dispatch(Windows { spec: &avg.window, divisor: Some(avg), input, output, pool });
    Ok(())
}

/// The mean over height and width: `[N, C, H, W]` blocked to `[N, C]` dense.
///
/// Errors: shapes and lengths that do not fit.
pub fn global_avg_pool(isa: Isa, input: View, output: &mut [f32], pool: &ThreadPool) -> Result<(), Error> {
    input.check("input", input.layout.dims())?;
    check_len("pooled output", output.len(), input.layout.n * input.layout.c)?;
    isa.dispatch(Global { input, output, pool });
    Ok(())
}

fn check(input: &View, output: &ViewMut, [h, w]: [usize; 2]) -> Result<(), Error> {
    let [n, c, _, _] = input.layout.dims();
    input.check("input", input.layout.dims())?;
    output.check("output", [n, c, h, w])
}

struct Windows<'a> {
    spec: &'a PoolSpec,
    /// For the average; otherwise the maximum is taken.
    divisor: Option<&'a AvgPoolSpec>,
    input: View<'a>,
    output: ViewMut<'a>,
    pool: &'a ThreadPool,
}

impl Dispatch for Windows<'_> {
    type Output = ();

    fn run<S: Simd>(self, simd: S) {
        let Self { spec, divisor, input, output, pool } = self;
        let (from, to) = (input.layout, output.layout);
        let (row, above) = (to.row_len(), to.halo[0]);
        let partition = Partition {
            order: TaskOrder::Rows,
            outer: Axis { len: to.n * to.blocks(), unit: 1, max_units: 1 },
            outer_stride: to.plane_len(),
            inner_bounds: &[0, 1],
            inner_group: 1,
            inner_stride: to.plane_len(),
            run_start: above * row,
            run: Axis { len: to.h * row, unit: row, max_units: to.h.div_ceil(2) },
        };
        pool.run_partitioned(output.data, &partition, |_, mut chunk| {
            let index = chunk.outer.start;
            let plane = input.plane(index / to.blocks(), index % to.blocks());
            for y in chunk.run.start / row - above..chunk.run.end / row - above {
                let rows = spec.rows(y, from.h);
                let start = to.pixel(y, 0);
                let to = chunk.slice(index, 0, start..start + to.w * LANES);
                // The rows with their left halo, which the width does not count.
                let lines = plane.get(from.pixel(rows.start, 0)..).unwrap_or_default();
                let line = from.row_len();
                let divisor = divisor.map(|avg| (avg, avg.divisor(0, y, from.h)));
                simd.vectorize(Row { spec, divisor, lines, line, rows: rows.len(), width: from.w, to });
            }
        });
    }
}

/// One row of a pooling.
struct Row<'a> {
    spec: &'a PoolSpec,
    /// For the average: the pooling and its vertical divisor.
    divisor: Option<(&'a AvgPoolSpec, usize)>,
    /// Starts at the first pixel of the first row; rows are `line` elements apart.
    lines: &'a [f32],
    line: usize,
    rows: usize,
    width: usize,
    to: &'a mut [f32],
}

impl Kernel for Row<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (x, to) in self.to.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
            let columns = self.spec.span(1, x, self.width);
            let start = if self.divisor.is_some() { 0.0 } else { f32::NEG_INFINITY };
            let mut acc = s.splat(start);
            for y in 0..self.rows {
                let pixels = &self.lines[y * self.line + columns.start * LANES..][..columns.len() * LANES];
                for pixel in pixels.as_chunks::<LANES>().0 {
                    let pixel = s.load(pixel);
                    acc = if self.divisor.is_some() { s.add(acc, pixel) } else { s.max(pixel, acc) };
                }
            }
            if let Some((avg, vertical)) = self.divisor {
                let count = (vertical * avg.divisor(1, x, self.width)) as f32;
                acc = s.mul(acc, s.splat(1.0 / count));
            }
            s.store(to, acc);
        }
    }
}

/// One row of a max-pooling over a ring of rows.
pub(crate) struct MaxRows<'a> {
    pub spec: &'a PoolSpec,
    /// `[slots][width][16]`; row `y` is in slot `y % slots`.
    pub lines: &'a [f32],
    pub slots: usize,
    pub rows: Range<usize>,
    pub width: usize,
    pub to: &'a mut [f32],
}

impl MaxRows<'_> {
    pub(crate) fn run<S: Simd>(self, simd: S) {
        simd.vectorize(self);
    }
}

impl Kernel for MaxRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (x, to) in self.to.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
            let columns = self.spec.span(1, x, self.width);
            let mut acc = s.splat(f32::NEG_INFINITY);
            for y in self.rows.clone() {
                let start = (y % self.slots * self.width + columns.start) * LANES;
                for pixel in self.lines[start..][..columns.len() * LANES].as_chunks::<LANES>().0 {
                    acc = s.max(s.load(pixel), acc);
                }
            }
            s.store(to, acc);
        }
    }
}

struct Global<'a> {
    input: View<'a>,
    output: &'a mut [f32],
    pool: &'a ThreadPool,
}

impl Dispatch for Global<'_> {
    type Output = ();

    fn run<S: Simd>(self, simd: S) {
        let Self { input, output, pool } = self;
        let layout = input.layout;
        for (image, pooled) in output.chunks_exact_mut(layout.c).enumerate() {
            // One task per thread: a plane of a late layer takes no longer than claiming a task.
            let chunk = layout.c.div_ceil(pool.threads()).next_multiple_of(LANES);
            pool.for_each_chunk(pooled, chunk, |index, pooled| {
                for (block, pooled) in pooled.chunks_mut(LANES).enumerate() {
                    let plane = input.plane(image, index * chunk / LANES + block);
                    let mean = simd.vectorize(Mean { plane, view: &input });
                    pooled.copy_from_slice(&mean[..pooled.len()]);
                }
            });
        }
    }
}

struct Mean<'a> {
    plane: &'a [f32],
    view: &'a View<'a>,
}

impl Kernel for Mean<'_> {
    type Output = [f32; LANES];

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> [f32; LANES] {
        let layout = &self.view.layout;
        let mut sum = s.splat(0.0);
        for y in 0..layout.h {
            let row = &self.plane[layout.pixel(y, 0)..][..layout.w * LANES];
            for pixel in row.as_chunks::<LANES>().0 {
                sum = s.add(sum, s.load(pixel));
            }
        }
        let mut mean = [0.0; LANES];
        s.store(&mut mean, s.mul(sum, s.splat(1.0 / (layout.h * layout.w) as f32)));
        mean
    }
}

#[cfg(test)]
mod tests;
