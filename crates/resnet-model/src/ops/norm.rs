//! Batch norm, optionally followed by a residual add and a ReLU.

use candle_core::{CpuStorage, CustomOp2, CustomOp3, D, DType, Device, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::cpu::{contiguous, is_cpu_f32, tensor, values};
use super::relu::mask;

/// Weight, bias and epsilon of a batch norm, and the operations fused with it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Affine<'a> {
    /// `[C]`.
    pub(crate) weight: &'a Tensor,
    /// `[C]`.
    pub(crate) bias: &'a Tensor,
    /// Added to the variance.
    pub(crate) eps: f64,
    /// A tensor with the shape of `x` that is added to the result.
    pub(crate) residual: Option<&'a Tensor>,
    /// If `true`, a ReLU follows.
    pub(crate) relu: bool,
}

/// Mean and biased variance of each channel, `[C]`.
#[derive(Debug, Clone)]
pub(crate) struct Moments {
    pub(crate) mean: Tensor,
    pub(crate) var: Tensor,
}

/// Computes `(x − mean) / √(var + eps) · weight + bias` for `x` `[N, C, H, W]` or `[N, C]`, with the moments of the batch
/// unless moments are `given`. Returns the result and the moments used.
pub(crate) fn normalize(x: &Tensor, affine: Affine, given: Option<&Moments>) -> Result<(Tensor, Moments)> {
    if !is_cpu_f32(x) {
        return composed(x, affine, given);
    }
    let x = x.contiguous()?;
    let moments = match given {
        Some(moments) => moments.clone(),
        None => moments(&x)?,
    };
    let vector = |t: &Tensor| t.detach().to_dtype(DType::F64)?.to_vec1::<f64>();
    let mean = vector(&moments.mean)?;
    let scale = vector(&moments.var)?.into_iter().map(|var| 1.0 / (var + affine.eps).sqrt()).collect();
    let op = Normalize { mean, scale, of_batch: given.is_none(), relu: affine.relu };
    let parameters = Tensor::stack(&[affine.weight, affine.bias], 0)?;
    let y = match affine.residual {
        Some(residual) if residual.dims() != x.dims() => {
            candle_core::bail!("cannot add a residual of shape {:?} to {:?}", residual.dims(), x.dims())
        }
        Some(residual) => x.apply_op3(&parameters, &residual.contiguous()?, op)?,
        None => x.apply_op2(&parameters, op)?,
    };
    Ok((y, moments))
}

/// [`normalize`] as candle operations.
fn composed(x: &Tensor, affine: Affine, given: Option<&Moments>) -> Result<(Tensor, Moments)> {
    let mut shape = vec![1; x.rank()];
    shape[1] = x.dim(1)?;
    let wide = |t: &Tensor| t.reshape(shape.as_slice())?.to_dtype(x.dtype());
    // [C, everything else]
    let flat = |x: &Tensor| x.transpose(0, 1)?.flatten_from(1)?.contiguous();
    let (centered, var, moments) = match given {
        Some(given) => (x.broadcast_sub(&wide(&given.mean)?)?, wide(&given.var)?, given.clone()),
        None => {
            let mean = flat(x)?.mean(D::Minus1)?;
            let centered = x.broadcast_sub(&wide(&mean)?)?;
            let var = flat(&centered)?.sqr()?.mean(D::Minus1)?;
            let moments = Moments { mean: mean.detach(), var: var.detach() };
            (centered, wide(&var)?, moments)
        }
    };
    let normal = centered.broadcast_div(&(var + affine.eps)?.sqrt()?)?;
    let mut y = normal.broadcast_mul(&wide(affine.weight)?)?.broadcast_add(&wide(affine.bias)?)?;
    if let Some(residual) = affine.residual {
        y = (y + residual)?;
    }
    Ok((if affine.relu { y.relu()? } else { y }, moments))
}

/// Images, channels and pixels of `[N, C, …]`.
#[derive(Debug, Clone, Copy)]
struct Extent {
    images: usize,
    channels: usize,
    pixels: usize,
}

impl Extent {
    fn from_dims(dims: &[usize]) -> Result<Extent> {
        match dims {
            [images, channels, rest @ ..] if !dims.contains(&0) => {
                Ok(Extent { images: *images, channels: *channels, pixels: rest.iter().product() })
            }
            _ => candle_core::bail!("cannot normalize shape {dims:?}, expected [N, C, …] without zeros"),
        }
    }

    /// Returns the planes of one channel, one per image.
    fn planes(self, values: &[f32], channel: usize) -> impl Iterator<Item = &[f32]> {
        let start = move |image: usize| (image * self.channels + channel) * self.pixels;
        (0..self.images).map(move |image| &values[start(image)..][..self.pixels])
    }
}

/// Independent partial sums, so that the compiler vectorizes the loop.
const LANES: usize = 8;

/// Returns `Σ f(i)` for `i` in `0..len`, in `f64` and a fixed order.
#[inline(always)]
fn sum(len: usize, f: impl Fn(usize) -> f64) -> f64 {
    let mut lanes = [0.0; LANES];
    let whole = len / LANES * LANES;
    for first in (0..whole).step_by(LANES) {
        for (lane, sum) in lanes.iter_mut().enumerate() {
            *sum += f(first + lane);
        }
    }
    (whole..len).map(&f).sum::<f64>() + lanes.iter().sum::<f64>()
}

/// Returns mean and biased variance over images and pixels.
fn moments(x: &Tensor) -> Result<Moments> {
    let extent = Extent::from_dims(x.dims())?;
    let count = (extent.images * extent.pixels) as f64;
    let (storage, layout) = x.storage_and_layout();
    let values = values(&storage, layout)?;
    let of_channel = |channel: usize| {
        let sums = extent.planes(values, channel).map(|p| sum(p.len(), |i| f64::from(p[i])));
        let mean = sums.sum::<f64>() / count;
        let squares = extent.planes(values, channel).map(|p| {
            sum(p.len(), |i| {
                let d = f64::from(p[i]) - mean;
                d * d
            })
        });
        (mean as f32, (squares.sum::<f64>() / count) as f32)
    };
    let (mean, var): (Vec<f32>, Vec<f32>) = (0..extent.channels).into_par_iter().map(of_channel).unzip();
    let vector = |values| Tensor::from_vec(values, extent.channels, &Device::Cpu);
    Ok(Moments { mean: vector(mean)?, var: vector(var)? })
}

/// [`normalize`] in `f32` on the CPU; the second argument is weight and bias `[2, C]`, the third is the residual.
struct Normalize {
    mean: Vec<f64>,
    /// `1 / √(var + eps)`.
    scale: Vec<f64>,
    /// If `true`, mean and scale depend on `x`.
    of_batch: bool,
    relu: bool,
}

/// Gradients of `x`, of weight and bias `[2, C]`, and of the sum before the ReLU (empty without ReLU).
type Gradients = (Vec<f32>, Vec<f32>, Vec<f32>);

impl Normalize {
    fn check(&self, extent: Extent, parameters: usize) -> Result<()> {
        let c = extent.channels;
        match self.mean.len() == c && self.scale.len() == c && parameters == 2 * c {
            true => Ok(()),
            false => candle_core::bail!(
                "{c} channels, but {} statistics and {parameters} parameters",
                self.mean.len()
            ),
        }
    }

    fn forward(&self, extent: Extent, x: &[f32], parameters: &[f32], residual: Option<&[f32]>) -> Vec<f32> {
        let mut y = vec![0.0; x.len()];
        y.par_chunks_mut(extent.pixels).enumerate().for_each(|(index, to)| {
            let (channel, at) = (index % extent.channels, index * extent.pixels);
            let factor = (self.scale[channel] * f64::from(parameters[channel])) as f32;
            let (mean, bias) = (self.mean[channel] as f32, parameters[extent.channels + channel]);
            let x = &x[at..][..extent.pixels];
            match residual {
                Some(residual) => {
                    let residual = &residual[at..][..extent.pixels];
                    for ((to, x), added) in to.iter_mut().zip(x).zip(residual) {
                        *to = (*x - mean) * factor + bias + *added;
                    }
                }
                None => to.iter_mut().zip(x).for_each(|(to, x)| *to = (*x - mean) * factor + bias),
            }
            if self.relu {
                to.iter_mut().for_each(|to| *to = if *to < 0.0 { 0.0 } else { *to });
            }
        });
        y
    }

    fn backward(&self, extent: Extent, x: &[f32], parameters: &[f32], y: &[f32], grad: &[f32]) -> Gradients {
        let count = (extent.images * extent.pixels) as f64;
        let before_relu = if self.relu { mask(y, grad) } else { vec![] };
        let grad = if self.relu { &before_relu } else { grad };
        // Per channel: Σ g and Σ g · (x − mean).
        let sums: Vec<[f64; 2]> = (0..extent.channels)
            .into_par_iter()
            .map(|channel| {
                let mean = self.mean[channel];
                let planes = || extent.planes(grad, channel).zip(extent.planes(x, channel));
                let plain = planes().map(|(g, _)| sum(g.len(), |i| f64::from(g[i]))).sum();
                let product =
                    planes().map(|(g, x)| sum(g.len(), |i| f64::from(g[i]) * (f64::from(x[i]) - mean))).sum();
                [plain, product]
            })
            .collect();
        let mut gx = vec![0.0; x.len()];
        gx.par_chunks_mut(extent.pixels).enumerate().for_each(|(index, to)| {
            let (channel, at) = (index % extent.channels, index * extent.pixels);
            let scale = self.scale[channel];
            let factor = f64::from(parameters[channel]) * scale;
            let [plain, product] = sums[channel];
            let (shift, slope) = match self.of_batch {
                true => (-factor * plain / count, -factor * scale * scale * product / count),
                false => (0.0, 0.0),
            };
            let [factor, shift, slope, mean] =
                [factor, shift, slope, self.mean[channel]].map(|value| value as f32);
            let sources = grad[at..].iter().zip(&x[at..]);
            for (to, (g, x)) in to.iter_mut().zip(sources) {
                *to = factor * *g + (slope * (*x - mean) + shift);
            }
        });
        let weights = sums.iter().zip(&self.scale).map(|([_, product], scale)| product * scale);
        let parameters = weights.chain(sums.iter().map(|[plain, _]| *plain)).map(|v| v as f32).collect();
        (gx, parameters, before_relu)
    }

    fn run(
        &self,
        x: (&CpuStorage, &Layout),
        p: (&CpuStorage, &Layout),
        added: Option<(&CpuStorage, &Layout)>,
    ) -> Result<(CpuStorage, Shape)> {
        let extent = Extent::from_dims(x.1.dims())?;
        self.check(extent, p.1.shape().elem_count())?;
        let added = added.map(|(storage, layout)| contiguous(storage, layout)).transpose()?;
        let y = self.forward(extent, contiguous(x.0, x.1)?, contiguous(p.0, p.1)?, added);
        Ok((CpuStorage::F32(y), x.1.shape().clone()))
    }

    /// Returns the gradients of `x`, the parameters and the residual, which is that of the sum before the ReLU.
    fn gradients(&self, x: &Tensor, parameters: &Tensor, y: &Tensor, grad: &Tensor) -> Result<[Tensor; 3]> {
        let contiguous = grad.contiguous()?;
        let [(xs, xl), (ps, pl), (ys, yl), (gs, gl)] =
            [x, parameters, y, &contiguous].map(Tensor::storage_and_layout);
        let (xs, ps, ys, gs) = (values(&xs, xl)?, values(&ps, pl)?, values(&ys, yl)?, values(&gs, gl)?);
        let (gx, gp, before_relu) = self.backward(Extent::from_dims(x.dims())?, xs, ps, ys, gs);
        let residual = if self.relu { tensor(before_relu, x.shape())? } else { grad.clone() };
        Ok([tensor(gx, x.shape())?, tensor(gp, parameters.shape())?, residual])
    }
}

impl CustomOp2 for Normalize {
    fn name(&self) -> &'static str {
        "batch-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        p: &CpuStorage,
        pl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.run((x, xl), (p, pl), None)
    }

    fn bwd(
        &self,
        x: &Tensor,
        p: &Tensor,
        y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [gx, gp, _] = self.gradients(x, p, y, grad)?;
        Ok((x.track_op().then_some(gx), p.track_op().then_some(gp)))
    }
}

impl CustomOp3 for Normalize {
    fn name(&self) -> &'static str {
        "batch-norm-add"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        p: &CpuStorage,
        pl: &Layout,
        added: &CpuStorage,
        al: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.run((x, xl), (p, pl), Some((added, al)))
    }

    fn bwd(
        &self,
        x: &Tensor,
        p: &Tensor,
        added: &Tensor,
        y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [gx, gp, residual] = self.gradients(x, p, y, grad)?;
        let needs_grad = |t: &Tensor, gradient| t.track_op().then_some(gradient);
        Ok((needs_grad(x, gx), needs_grad(p, gp), needs_grad(added, residual)))
    }
}
