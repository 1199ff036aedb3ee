//! Pooling and blur.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::cpu::{contiguous, is_cpu_f32, tensor, values};
use super::every;
use crate::graph::{AdaptiveAvgPool, AvgPool, Blur, Divisor, PoolSpec};

/// Max pooling; padding counts as minus infinity. As in PyTorch, the gradient goes to the first of equal maxima, and a
/// NaN in a window is its maximum.
pub(crate) fn max_pool(x: &Tensor, pool: &PoolSpec) -> Result<Tensor> {
    let (_, _, h, w) = x.dims4()?;
    let (Some(_), Some(_)) = (pool.output(0, h), pool.output(1, w)) else {
        candle_core::bail!(
            "input of {h}×{w} pixels is smaller than the window of {}×{}",
            pool.kernel[0],
            pool.kernel[1]
        )
    };
    if is_cpu_f32(x) {
        return x.contiguous()?.apply_op1(MaxPool(*pool));
    }
    let padded = pad_with(x, pool, f32::NEG_INFINITY)?;
    // candle's gradient of max pooling needs windows that tile the input.
    let (_, _, padded_h, padded_w) = padded.dims4()?;
    let tiles =
        pool.kernel == pool.stride && padded_h % pool.stride[0] == 0 && padded_w % pool.stride[1] == 0;
    if tiles || !x.track_op() {
        return padded
            .max_pool2d_with_stride((pool.kernel[0], pool.kernel[1]), (pool.stride[0], pool.stride[1]));
    }
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
    max.ok_or_else(|| candle_core::Error::Msg("the pooling window is empty".into()))
}

/// Returns `x` padded with `value`.
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

/// [`max_pool`] in `f32` on the CPU.
struct MaxPool(PoolSpec);

impl MaxPool {
    /// Returns the maximum of the window at `[oy, ox]` of a plane `[h, w]`, and its index in the plane.
    fn window(&self, plane: &[f32], [h, w]: [usize; 2], [oy, ox]: [usize; 2]) -> (f32, usize) {
        let PoolSpec { kernel, stride, padding } = self.0;
        let span = |axis: usize, at: usize, size: usize| {
            let start = at * stride[axis];
            let end = (start + kernel[axis]).saturating_sub(padding[axis]).min(size);
            start.saturating_sub(padding[axis])..end
        };
        let mut max = (f32::NEG_INFINITY, usize::MAX);
        for y in span(0, oy, h) {
            for x in span(1, ox, w) {
                let value = plane[y * w + x];
                if value > max.0 || max.1 == usize::MAX || value.is_nan() {
                    max = (value, y * w + x);
                }
            }
        }
        max
    }

    fn output(&self, [h, w]: [usize; 2]) -> [usize; 2] {
        [self.0.output(0, h).unwrap_or(0), self.0.output(1, w).unwrap_or(0)]
    }

    fn forward(&self, x: &[f32], dims: [usize; 4]) -> Vec<f32> {
        let size = [dims[2], dims[3]];
        let [oh, ow] = self.output(size);
        let mut y = vec![0.0; dims[0] * dims[1] * oh * ow];
        let planes = y.par_chunks_mut(oh * ow).zip(x.par_chunks(size[0] * size[1]));
        planes.for_each(|(to, plane)| {
            for (i, to) in to.iter_mut().enumerate() {
                *to = self.window(plane, size, [i / ow, i % ow]).0;
            }
        });
        y
    }

    fn backward(&self, x: &[f32], grad: &[f32], dims: [usize; 4]) -> Vec<f32> {
        let size = [dims[2], dims[3]];
        let [oh, ow] = self.output(size);
        let mut gx = vec![0.0; x.len()];
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
        let y = self.forward(contiguous(storage, layout)?, [n, c, h, w]);
        Ok((CpuStorage::F32(y), (n, c, oh, ow).into()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let dims: [usize; 4] = x.dims4()?.into();
        let grad = grad.contiguous()?;
        let ((xs, x_layout), (grad, grad_layout)) = (x.storage_and_layout(), grad.storage_and_layout());
        let gx = self.backward(values(&xs, x_layout)?, values(&grad, grad_layout)?, dims);
        Ok(Some(tensor(gx, x.shape())?))
    }
}

/// Average pooling as weighted sums along each axis: candle's own has no padding, and no gradient for windows that overlap.
pub(crate) fn avg_pool(x: &Tensor, pool: &AvgPool) -> Result<Tensor> {
    let mut x = x.clone();
    for (axis, dim) in [(0, 2), (1, 3)] {
        let size = x.dim(dim)?;
        let Some(output) = pool.output(axis, size) else {
            candle_core::bail!("input of {size} pixels is smaller than the window")
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

/// Adaptive average pooling as a product with a matrix of window weights along each axis.
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

/// Binomial blur with reflection padding of one pixel.
pub(crate) fn blur(x: &Tensor, blur: &Blur) -> Result<Tensor> {
    let mut x = x.clone();
    for dim in [2, 3] {
        let size = x.dim(dim)?;
        let Some(output) = blur.output(size) else {
            candle_core::bail!("input of {size} pixel is too small for reflection padding")
        };
        let padded = Tensor::cat(&[&x.narrow(dim, 1, 1)?, &x, &x.narrow(dim, size - 2, 1)?], dim)?;
        x = weighted_sum(&padded, dim, &[0.25, 0.5, 0.25], blur.stride, output)?;
    }
    Ok(x)
}

/// Pads `x` along `dim` with `before` zeros at the start, and with zeros at the end up to a length of `size`.
fn pad_to(x: &Tensor, dim: usize, before: usize, size: usize) -> Result<Tensor> {
    let after = size.saturating_sub(before + x.dim(dim)?);
    match before + after {
        0 => Ok(x.clone()),
        _ => x.pad_with_zeros(dim, before, after),
    }
}

/// Returns `output` weighted sums of adjacent slices along `dim`, at a distance of `stride`.
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
    sum.ok_or_else(|| candle_core::Error::Msg("the pooling window is empty".into()))
}
