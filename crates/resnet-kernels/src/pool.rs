//! Max and average pooling of blocked tensors.

use std::ops::Range;

use crate::error::{Error, check_len};
use crate::layout::{LANES, View, ViewMut};
use crate::shape::padded_spare;
use crate::simd::{Dispatch, Isa, Kernel, Simd};
use crate::threads::{Axis, Partition, TaskOrder, ThreadPool};

/// Pooling window as in PyTorch; pairs are `[vertical, horizontal]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PoolSpec {
    /// Kernel size in pixels.
    pub kernel: [usize; 2],
    /// Stride in pixels.
    pub stride: [usize; 2],
    /// Padding on either side in pixels, at most half the kernel size.
    pub padding: [usize; 2],
    /// If `true`, rounds the output size up, as PyTorch's `ceil_mode` does.
    pub ceil_mode: bool,
}

impl PoolSpec {
    /// Checks the window.
    ///
    /// # Errors
    ///
    /// A size is zero, or the padding is more than half the kernel size.
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

    /// Returns the output `[height, width]` for an input `[height, width]`.
    ///
    /// # Errors
    ///
    /// The window is invalid or larger than the padded input.
    pub fn output_hw(&self, input: [usize; 2]) -> Result<[usize; 2], Error> {
        self.check()?;
        let along = |axis: usize| {
            let spare = padded_spare(axis, input[axis], self.padding[axis], self.kernel[axis])?;
            let last =
                if self.ceil_mode { spare.div_ceil(self.stride[axis]) } else { spare / self.stride[axis] };
            // With `ceil_mode`, a window must not start in the padding at the end.
            let start = last.checked_mul(self.stride[axis]).ok_or(Error::Overflow { what: "pooled size" })?;
            Ok(if start >= input[axis] + self.padding[axis] { last } else { last + 1 })
        };
        Ok([along(0)?, along(1)?])
    }

    /// Returns the rows of an input of `height` rows that output row `y` depends on, without padding.
    pub(crate) fn rows(&self, y: usize, height: usize) -> Range<usize> {
        self.span(0, y, height)
    }

    /// Returns the columns of an input of `width` columns that output column `x` depends on, without padding.
    pub(crate) fn columns(&self, x: usize, width: usize) -> Range<usize> {
        self.span(1, x, width)
    }

    fn span(&self, axis: usize, at: usize, size: usize) -> Range<usize> {
        let start = at * self.stride[axis];
        let end = (start + self.kernel[axis]).saturating_sub(self.padding[axis]).min(size);
        start.saturating_sub(self.padding[axis]).min(end)..end
    }
}

/// Average pooling as in PyTorch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AvgPoolSpec {
    /// Pooling window.
    pub window: PoolSpec,
    /// If `true`, includes zero padding in the divisor.
    pub count_include_pad: bool,
}

impl AvgPoolSpec {
    /// Returns the factor of the divisor that comes from one axis, at output position `at` for `size` input pixels.
    pub(crate) fn divisor(&self, axis: usize, at: usize, size: usize) -> usize {
        if self.count_include_pad {
            // Includes padding, but not the excess of `ceil_mode`.
            let start = at * self.window.stride[axis];
            (start + self.window.kernel[axis]).min(size + 2 * self.window.padding[axis]) - start
        } else {
            self.window.span(axis, at, size).len()
        }
    }
}

/// Computes the max pool. As in PyTorch, padding is −∞ and NaN propagates.
///
/// # Errors
///
/// The window is invalid, or a shape or length does not match.
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

/// Computes the average pool.
///
/// # Errors
///
/// The window is invalid, or a shape or length does not match.
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

/// Computes the mean over height and width, from a blocked `[N, C, H, W]` to a dense `[N, C]`.
///
/// # Errors
///
/// A shape or length does not match.
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
    /// `None` for max pooling.
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
                // Starts after the left halo of the first row.
                let lines = plane.get(from.pixel(rows.start, 0)..).unwrap_or_default();
                let line = from.row_len();
                let divisor = divisor.map(|avg| (avg, avg.divisor(0, y, from.h)));
                simd.vectorize(Row { spec, divisor, lines, line, rows: rows.len(), width: from.w, to });
            }
        });
    }
}

/// One output row of a pooling.
struct Row<'a> {
    spec: &'a PoolSpec,
    /// Average pooling and its vertical divisor; `None` for max pooling.
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

/// One output row of a max pool over a ring buffer of rows.
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
            // One task per thread: reducing a small plane takes no longer than scheduling a task.
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
