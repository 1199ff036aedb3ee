//! Pooling and blurring.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, WithDType};
use rayon::prelude::*;

use super::real::{Real, contiguous, dispatch, with};
use super::{every, real};
use crate::graph::{AdaptiveAvgPool, AvgPool, Blur, Divisor, PoolSpec};

/// The maximum over windows; padding counts as minus infinity. The gradient goes to the first of equal maxima, as in
/// PyTorch, and a NaN in the window is the maximum.
pub(crate) fn max_pool(x: &Tensor, pool: &PoolSpec) -> Result<Tensor> {
    let (_, _, h, w) = x.dims4()?;
    let (Some(_), Some(_)) = (pool.output(0, h), pool.output(1, w)) else {
        candle_core::bail!("no window of {:?} fits {h}×{w} pixels", pool.kernel)
    };
    if real::is_ours(x) {
        return x.contiguous()?.apply_op1(MaxPool(*pool));
    }
    let padded = pad_with(x, pool, f32::NEG_INFINITY)?;
    let plain = pool.kernel == pool.stride;
    if plain || !x.track_op() {
        return padded
            .max_pool2d_with_stride((pool.kernel[0], pool.kernel[1]), (pool.stride[0], pool.stride[1]));
    }
    // candle's own has a gradient only for windows that do not overlap.
    let mut max: Option<Tensor> = None;
    for i in 0..pool.kernel[0] {
        for j in 0..pool.kernel[1] {
            let mut slice = padded.clone();
            for (axis, dim, first, size) in [(0, 2, i, h), (1, 3, j, w)] {
                let output = pool.output(axis, size).unwrap_or(0);
                let step = pool.stride[axis];
                slice = every(&slice.narrow(dim, first, (output - 1) * step + 1)?, dim, step)?;
            }
            max = Some(match max {
                Some(max) => slice.gt(&max)?.where_cond(&slice, &max)?,
                None => slice,
            });
        }
    }
    max.ok_or_else(|| candle_core::Error::Msg("a window of no pixels".into()))
}

/// `x` with a border of `value` as wide as the padding.
fn pad_with(x: &Tensor, pool: &PoolSpec, value: f32) -> Result<Tensor> {
    let mut x = x.clone();
    for (axis, dim) in [(0, 2), (1, 3)] {
        let pad = pool.padding[axis];
        if pad > 0 {
            let mut shape = x.dims().to_vec();
            shape[dim] = pad;
            let border = Tensor::full(value, shape, x.device())?.to_dtype(x.dtype())?;
            x = Tensor::cat(&[&border, &x, &border], dim)?;
        }
    }
    Ok(x)
}

/// [`max_pool`] on the CPU.
struct MaxPool(PoolSpec);

impl MaxPool {
    /// The result and where in its plane it comes from, for the window at `[oy, ox]` of a plane `[h, w]`.
    fn window<T: Real>(&self, plane: &[T], [h, w]: [usize; 2], [oy, ox]: [usize; 2]) -> (T, usize) {
        let PoolSpec { kernel, stride, padding } = self.0;
        let span = |axis: usize, at: usize, size: usize| {
            let start = at * stride[axis];
            let end = (start + kernel[axis]).saturating_sub(padding[axis]).min(size);
            start.saturating_sub(padding[axis])..end
        };
        let mut max = (T::from_f64(f64::NEG_INFINITY), usize::MAX);
        for y in span(0, oy, h) {
            for x in span(1, ox, w) {
                let value = plane[y * w + x];
                // A NaN is unequal to itself.
                #[allow(clippy::eq_op, reason = "the test for NaN that needs no float trait")]
                if value > max.0 || max.1 == usize::MAX || value != value {
                    max = (value, y * w + x);
                }
            }
        }
        max
    }

    fn output(&self, [h, w]: [usize; 2]) -> [usize; 2] {
        [self.0.output(0, h).unwrap_or(0), self.0.output(1, w).unwrap_or(0)]
    }

    fn forward<T: Real>(&self, x: &[T], dims: [usize; 4]) -> Vec<T> {
        let size = [dims[2], dims[3]];
        let [oh, ow] = self.output(size);
        let mut y = vec![T::from_f64(0.0); dims[0] * dims[1] * oh * ow];
        let planes = y.par_chunks_mut(oh * ow).zip(x.par_chunks(size[0] * size[1]));
        planes.for_each(|(to, plane)| {
            for (i, to) in to.iter_mut().enumerate() {
                *to = self.window(plane, size, [i / ow, i % ow]).0;
            }
        });
        y
    }

    fn backward<T: Real>(&self, x: &[T], grad: &[T], dims: [usize; 4]) -> Vec<T> {
        let size = [dims[2], dims[3]];
        let [oh, ow] = self.output(size);
        let mut gx = vec![T::from_f64(0.0); x.len()];
        let planes = gx.par_chunks_mut(size[0] * size[1]).zip(x.par_chunks(size[0] * size[1]));
        planes.zip(grad.par_chunks(oh * ow)).for_each(|((to, plane), grad)| {
            for (i, grad) in grad.iter().enumerate() {
                let (_, at) = self.window(plane, size, [i / ow, i % ow]);
                if let Some(to) = to.get_mut(at) {
                    *to += *grad;
                }
            }
        });
        gx
    }
}

impl CustomOp1 for MaxPool {
    fn name(&self) -> &'static str {
        "max-pool"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (n, c, h, w) = layout.shape().dims4()?;
        let [oh, ow] = self.output([h, w]);
        let result = dispatch!(storage, T => {
            T::to_cpu_storage_owned(self.forward::<T>(contiguous(storage, layout)?, [n, c, h, w]))
        });
        Ok((result, (n, c, oh, ow).into()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let (n, c, h, w) = x.dims4()?;
        let gradient = with!([x, grad], T => |x, grad| {
            Tensor::from_vec(self.backward::<T>(x, grad, [n, c, h, w]), (n, c, h, w), &candle_core::Device::Cpu)?
        });
        Ok(Some(gradient))
    }
}

/// The mean over windows, as sums along one axis after the other: candle's own has no padding and, for windows that
/// overlap, no gradient.
pub(crate) fn avg_pool(x: &Tensor, pool: &AvgPool) -> Result<Tensor> {
    let mut x = x.clone();
    for (axis, dim) in [(0, 2), (1, 3)] {
        let size = x.dim(dim)?;
        let Some(output) = pool.output(axis, size) else {
            candle_core::bail!("no window fits {size} pixels")
        };
        let taps = vec![1.0; pool.window.kernel[axis]];
        let padded =
            pad_to(&x, dim, pool.window.padding[axis], (output - 1) * pool.window.stride[axis] + taps.len())?;
        let sum = weighted_sum(&padded, dim, &taps, pool.window.stride[axis], output)?;
        let counts: Vec<f32> = (0..output).map(|i| 1.0 / pool.count(axis, size, i) as f32).collect();
        let uniform = counts.iter().all(|c| *c == counts[0]);
        x = match (pool.window.padding[axis] == 0 || pool.divisor == Divisor::Window) && uniform {
            true => (sum * f64::from(counts[0]))?,
            false => {
                let mut shape = [1; 4];
                shape[dim] = output;
                sum.broadcast_mul(&Tensor::from_vec(counts, &shape, x.device())?.to_dtype(x.dtype())?)?
            }
        };
    }
    Ok(x)
}

/// The mean over windows that divide the input: a product with a matrix of window weights along each axis.
pub(crate) fn adaptive_avg_pool(x: &Tensor, pool: &AdaptiveAvgPool) -> Result<Tensor> {
    let (_, _, h, w) = x.dims4()?;
    if [h, w] == pool.output {
        return Ok(x.clone());
    }
    let matrix = |axis: usize, size: usize| -> Result<Tensor> {
        let rows = (0..pool.output[axis]).flat_map(|i| {
            let [start, end] = pool.window(axis, size, i);
            (0..size).map(move |j| if (start..end).contains(&j) { 1.0 / (end - start) as f32 } else { 0.0 })
        });
        Tensor::from_vec(rows.collect::<Vec<_>>(), (pool.output[axis], size), x.device())?.to_dtype(x.dtype())
    };
    let over_width = x.contiguous()?.broadcast_matmul(&matrix(1, w)?.t()?)?;
    matrix(0, h)?.broadcast_matmul(&over_width)
}

/// The binomial blur with one reflected pixel on each side.
pub(crate) fn blur(x: &Tensor, blur: &Blur) -> Result<Tensor> {
    let mut x = x.clone();
    for dim in [2, 3] {
        let size = x.dim(dim)?;
        let Some(output) = blur.output(size) else { candle_core::bail!("no pixel to reflect") };
        let padded = Tensor::cat(&[&x.narrow(dim, 1, 1)?, &x, &x.narrow(dim, size - 2, 1)?], dim)?;
        x = weighted_sum(&padded, dim, &[0.25, 0.5, 0.25], blur.stride, output)?;
    }
    Ok(x)
}

/// `x` along `dim` with `before` zeros in front and as many behind as make it `size` long, if it is shorter.
fn pad_to(x: &Tensor, dim: usize, before: usize, size: usize) -> Result<Tensor> {
    let after = size.saturating_sub(before + x.dim(dim)?);
    match before + after {
        0 => Ok(x.clone()),
        _ => x.pad_with_zeros(dim, before, after),
    }
}

/// `output` sums of neighbouring slices along `dim`, each weighted, the windows `stride` apart.
fn weighted_sum(x: &Tensor, dim: usize, weights: &[f64], stride: usize, output: usize) -> Result<Tensor> {
    let mut sum: Option<Tensor> = None;
    for (i, &weight) in weights.iter().enumerate() {
        let slice = every(&x.narrow(dim, i, (output - 1) * stride + 1)?, dim, stride)?;
        let slice = if weight == 1.0 { slice } else { (slice * weight)? };
        sum = Some(match sum {
            Some(sum) => (sum + slice)?,
            None => slice,
        });
    }
    sum.ok_or_else(|| candle_core::Error::Msg("a window of no pixels".into()))
}
