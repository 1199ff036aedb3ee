//! Batch normalisation with what follows it: the sum with a shortcut and the rectifier.

use candle_core::{CpuStorage, CustomOp2, CustomOp3, D, Device, Layout, Result, Shape, Tensor, WithDType};
use rayon::prelude::*;

use super::real::{Real, contiguous, dispatch, is_ours, with};

/// The trained part of a normalisation.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Affine<'a> {
    /// Factors, `[C]`.
    pub(crate) weight: &'a Tensor,
    /// Addends, `[C]`.
    pub(crate) bias: &'a Tensor,
    /// Added to the variance.
    pub(crate) eps: f64,
    /// A tensor of `x`'s shape that is added afterwards.
    pub(crate) residual: Option<&'a Tensor>,
    /// Whether negative results become 0.
    pub(crate) relu: bool,
}

/// Mean and biased variance of each channel, `[C]`.
#[derive(Debug, Clone)]
pub(crate) struct Moments {
    pub(crate) mean: Tensor,
    pub(crate) var: Tensor,
}

/// `(x − mean) / √(var + eps) · weight + bias` of `x` `[N, C, H, W]` or `[N, C]`; with `given` moments, or with those of
/// the batch, which are returned.
pub(crate) fn normalize(x: &Tensor, affine: Affine, given: Option<&Moments>) -> Result<(Tensor, Moments)> {
    if !is_ours(x) {
        return composed(x, affine, given);
    }
    let x = x.contiguous()?;
    let moments = match given {
        Some(moments) => moments.clone(),
        None => moments(&x)?,
    };
    let vector = |t: &Tensor| t.detach().to_dtype(candle_core::DType::F64)?.to_vec1::<f64>();
    let mean = vector(&moments.mean)?;
    let scale = vector(&moments.var)?.into_iter().map(|var| 1.0 / (var + affine.eps).sqrt()).collect();
    let op = Normalize { mean, scale, of_batch: given.is_none(), relu: affine.relu };
    let parameters = Tensor::stack(&[affine.weight, affine.bias], 0)?;
    let y = match affine.residual {
        Some(residual) if residual.dims() != x.dims() => {
            candle_core::bail!("{:?} cannot be added to {:?}", residual.dims(), x.dims())
        }
        Some(residual) => x.apply_op3(&parameters, &residual.contiguous()?, op)?,
        None => x.apply_op2(&parameters, op)?,
    };
    Ok((y, moments))
}

/// The same of candle's operations.
fn composed(x: &Tensor, affine: Affine, given: Option<&Moments>) -> Result<(Tensor, Moments)> {
    let mut shape = vec![1; x.rank()];
    shape[1] = x.dim(1)?;
    let wide = |t: &Tensor| t.reshape(shape.as_slice())?.to_dtype(x.dtype());
    // [C, everything else]
    let flat = |x: &Tensor| x.transpose(0, 1)?.flatten_from(1)?.contiguous();
    let (centred, var, moments) = match given {
        Some(given) => (x.broadcast_sub(&wide(&given.mean)?)?, wide(&given.var)?, given.clone()),
        None => {
            let mean = flat(x)?.mean(D::Minus1)?;
            let centred = x.broadcast_sub(&wide(&mean)?)?;
            let var = flat(&centred)?.sqr()?.mean(D::Minus1)?;
            let moments = Moments { mean: mean.detach(), var: var.detach() };
            (centred, wide(&var)?, moments)
        }
    };
    let normal = centred.broadcast_div(&(var + affine.eps)?.sqrt()?)?;
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
    fn of(dims: &[usize]) -> Result<Extent> {
        match dims {
            [images, channels, rest @ ..] if !dims.contains(&0) => {
                Ok(Extent { images: *images, channels: *channels, pixels: rest.iter().product() })
            }
            _ => candle_core::bail!("cannot normalise {dims:?}, expected [N, C, …] without zeros"),
        }
    }

    /// The planes of one channel.
    fn planes<T>(self, values: &[T], channel: usize) -> impl Iterator<Item = &[T]> {
        let start = move |image: usize| (image * self.channels + channel) * self.pixels;
        (0..self.images).map(move |image| &values[start(image)..][..self.pixels])
    }
}

/// Sums that run side by side, so that they fill vector registers.
const LANES: usize = 8;

/// `Σ f(i)` over the indices below `len`, in `f64`, always in the same order.
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

/// Mean and variance over images and pixels.
fn moments(x: &Tensor) -> Result<Moments> {
    let extent = Extent::of(x.dims())?;
    let count = (extent.images * extent.pixels) as f64;
    let (mean, var): (Vec<f64>, Vec<f64>) = with!([x], T => |x| {
        let of_channel = |channel: usize| {
            let sums = extent.planes::<T>(x, channel).map(|p| sum(p.len(), |i| p[i].to_f64()));
            let mean = sums.sum::<f64>() / count;
            let squares = extent.planes::<T>(x, channel).map(|p| {
                sum(p.len(), |i| { let d = p[i].to_f64() - mean; d * d })
            });
            (mean, squares.sum::<f64>() / count)
        };
        (0..extent.channels).into_par_iter().map(of_channel).unzip()
    });
    let tensor =
        |values: Vec<f64>| Tensor::from_vec(values, extent.channels, &Device::Cpu)?.to_dtype(x.dtype());
    Ok(Moments { mean: tensor(mean)?, var: tensor(var)? })
}

/// [`normalize`] on the CPU; the second argument is weight and bias, `[2, C]`, the third is added.
struct Normalize {
    mean: Vec<f64>,
    /// `1 / √(var + eps)`.
    scale: Vec<f64>,
    /// Whether mean and scale depend on `x`.
    of_batch: bool,
    relu: bool,
}

/// Gradients to `x`, to weight and bias `[2, C]`, and to what was added.
type Gradients<T> = (Vec<T>, Vec<T>, Vec<T>);

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

    fn forward<T: Real>(&self, extent: Extent, x: &[T], parameters: &[T], residual: Option<&[T]>) -> Vec<T> {
        let zero = T::from_f64(0.0);
        let mut y = vec![zero; x.len()];
        y.par_chunks_mut(extent.pixels).enumerate().for_each(|(index, to)| {
            let (channel, at) = (index % extent.channels, index * extent.pixels);
            let factor = self.scale[channel] * parameters[channel].to_f64();
            let (factor, mean) = (T::from_f64(factor), T::from_f64(self.mean[channel]));
            let bias = parameters[extent.channels + channel];
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
                to.iter_mut().for_each(|to| *to = if *to < zero { zero } else { *to });
            }
        });
        y
    }

    fn backward<T: Real>(
        &self,
        extent: Extent,
        x: &[T],
        parameters: &[T],
        y: &[T],
        grad: &[T],
    ) -> Gradients<T> {
        let (zero, count) = (T::from_f64(0.0), (extent.images * extent.pixels) as f64);
        let mut behind: Vec<T> = Vec::new();
        if self.relu {
            let pairs = y.par_iter().with_min_len(super::relu::CHUNK).zip(grad);
            behind = pairs.map(|(&y, &g)| if y > zero { g } else { zero }).collect();
        }
        let grad = if self.relu { &behind } else { grad };
        // Per channel: Σ g and Σ g · (x − mean).
        let sums: Vec<[f64; 2]> = (0..extent.channels)
            .into_par_iter()
            .map(|channel| {
                let mean = self.mean[channel];
                let planes = || extent.planes(grad, channel).zip(extent.planes(x, channel));
                let plain = planes().map(|(g, _)| sum(g.len(), |i| g[i].to_f64())).sum();
                let product =
                    planes().map(|(g, x)| sum(g.len(), |i| g[i].to_f64() * (x[i].to_f64() - mean))).sum();
                [plain, product]
            })
            .collect();
        let mut gx = vec![zero; x.len()];
        gx.par_chunks_mut(extent.pixels).enumerate().for_each(|(index, to)| {
            let (channel, at) = (index % extent.channels, index * extent.pixels);
            let scale = self.scale[channel];
            let factor = parameters[channel].to_f64() * scale;
            let [plain, product] = sums[channel];
            let (shift, slope) = match self.of_batch {
                true => (-factor * plain / count, -factor * scale * scale * product / count),
                false => (0.0, 0.0),
            };
            let [factor, shift, slope] = [factor, shift, slope].map(T::from_f64);
            let mean = T::from_f64(self.mean[channel]);
            let sources = grad[at..].iter().zip(&x[at..]);
            for (to, (g, x)) in to.iter_mut().zip(sources) {
                *to = factor * *g + (slope * (*x - mean) + shift);
            }
        });
        let weights = sums.iter().zip(&self.scale).map(|([_, product], scale)| product * scale);
        let parameters = weights.chain(sums.iter().map(|[plain, _]| *plain)).map(T::from_f64).collect();
        (gx, parameters, behind)
    }

    fn run(
        &self,
        x: (&CpuStorage, &Layout),
        p: (&CpuStorage, &Layout),
        added: Option<(&CpuStorage, &Layout)>,
    ) -> Result<(CpuStorage, Shape)> {
        let extent = Extent::of(x.1.dims())?;
        self.check(extent, p.1.shape().elem_count())?;
        let y = dispatch!(x.0, T => {
            let added: Option<&[T]> = added.map(|(storage, layout)| contiguous(storage, layout)).transpose()?;
            let y = self.forward::<T>(extent, contiguous(x.0, x.1)?, contiguous(p.0, p.1)?, added);
            T::to_cpu_storage_owned(y)
        });
        Ok((y, x.1.shape().clone()))
    }

    /// The gradients to `x`, the parameters and, if there is one, the residual.
    fn gradients(&self, x: &Tensor, parameters: &Tensor, y: &Tensor, grad: &Tensor) -> Result<[Tensor; 3]> {
        let extent = Extent::of(x.dims())?;
        let device = &Device::Cpu;
        let [gx, gp, behind] = with!([x, parameters, y, grad], T => |xs, ps, ys, gs| {
            let (gx, gp, behind) = self.backward::<T>(extent, xs, ps, ys, gs);
            let behind = match self.relu {
                true => Tensor::from_vec(behind, x.shape(), device)?,
                false => grad.clone(),
            };
            [Tensor::from_vec(gx, x.shape(), device)?, Tensor::from_vec(gp, parameters.shape(), device)?, behind]
        });
        Ok([gx, gp, behind])
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
        let [gx, gp, behind] = self.gradients(x, p, y, grad)?;
        let wanted = |t: &Tensor, gradient| t.track_op().then_some(gradient);
        Ok((wanted(x, gx), wanted(p, gp), wanted(added, behind)))
    }
}
