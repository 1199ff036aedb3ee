//! Batch norm of blocked tensors without halo, fused with residual add and ReLU, and its gradients.
//!
//! Sums are accumulated in `f32` over a few pixels and in `f64` over those partial sums, always in the same order.

use crate::error::{Error, check_at_least, check_len, check_no_halo};
use crate::layout::{Blocked, LANES};
use crate::simd::{Dispatch, Isa, Kernel, Simd};
use crate::threads::ThreadPool;

/// Pixels per partial sum in `f32`.
pub(super) const RUN: usize = 32;

/// Elements per task.
const CHUNK: usize = 256 * LANES;

/// One value per channel, padded to whole blocks.
type Lanes<T> = Vec<[T; LANES]>;

/// Batch norm of a tensor `[N, C, H, W]`.
#[derive(Clone, Copy, Debug)]
pub struct BatchNorm<'a> {
    /// Layout of the tensor, without halo.
    pub layout: Blocked,
    /// Instruction set.
    pub isa: Isa,
    /// Thread pool.
    pub pool: &'a ThreadPool,
}

/// Values saved in the forward pass for the gradients; vectors are `[C]`.
#[derive(Clone, Copy, Debug)]
pub struct BatchNormGrad<'a> {
    /// Input.
    pub x: &'a [f32],
    /// Output of the fused ReLU, if any; its zeros mask the gradient.
    pub relu_output: Option<&'a [f32]>,
    /// Mean of each channel.
    pub mean: &'a [f64],
    /// `1 / √(variance + eps)` of each channel.
    pub inv_std: &'a [f64],
    /// Weight of each channel.
    pub weight: &'a [f32],
    /// `true` if mean and variance were computed from `x`, `false` for running statistics.
    pub batch_stats: bool,
}

impl BatchNorm<'_> {
    fn check(&self, what: &'static str, data: &[f32]) -> Result<(), Error> {
        check_no_halo(what, self.layout.halo)?;
        check_at_least(what, data.len(), self.layout.len())
    }

    /// Returns mean and biased variance of each channel, `[C]`.
    ///
    /// # Errors
    ///
    /// The layout has a halo, or the slice is too short.
    pub fn moments(&self, x: &[f32]) -> Result<[Vec<f64>; 2], Error> {
        self.check("input", x)?;
        let layout = &self.layout;
        let (area, blocks) = (layout.h * layout.w, layout.blocks());
        let mut planes = vec![[[0f64; LANES]; 2]; layout.n * blocks];
        self.pool.for_each_chunk(&mut planes, 1, |index, sums| {
            let plane = &x[index * area * LANES..][..area * LANES];
            sums[0] = self.isa.dispatch(Vectorized(Moments(plane.as_chunks::<LANES>().0)));
        });
        // Combines the images (Chan et al., parallel variance).
        let mut result = [(); 2].map(|()| Vec::with_capacity(layout.c));
        for channel in 0..layout.c {
            let (block, lane) = (channel / LANES, channel % LANES);
            let image_stats = |image: usize| planes[image * blocks + block].map(|values| values[lane]);
            let mean = (0..layout.n).map(|image| image_stats(image)[0]).sum::<f64>() / layout.n as f64;
            let squares = (0..layout.n).map(|image| {
                let [m, s] = image_stats(image);
                s + (m - mean) * (m - mean) * area as f64
            });
            result[0].push(mean);
            result[1].push(squares.sum::<f64>() / (area * layout.n) as f64);
        }
        Ok(result)
    }

    /// Computes `y = (x − mean) · factor + bias`, plus `residual` if given, with ReLU if `relu`; vectors are `[C]`.
    ///
    /// # Errors
    ///
    /// The layout has a halo, or a slice is too short.
    pub fn forward(
        &self,
        x: &[f32],
        [mean, factor, bias]: [&[f32]; 3],
        residual: Option<&[f32]>,
        relu: bool,
        y: &mut [f32],
    ) -> Result<(), Error> {
        self.check("input", x)?;
        self.check("residual", residual.unwrap_or(x))?;
        self.check("output", y)?;
        let vectors = [self.lanes("mean", mean)?, self.lanes("factors", factor)?, self.lanes("bias", bias)?];
        self.each_chunk(y, |range, block, y| {
            let [mean, factor, bias] = [0, 1, 2].map(|i| &vectors[i][block]);
            let x = x[range.clone()].as_chunks::<LANES>().0;
            let residual = residual.map(|r| r[range].as_chunks::<LANES>().0);
            let y = y.as_chunks_mut::<LANES>().0;
            self.isa.dispatch(Vectorized(Forward { x, mean, factor, bias, residual, relu, y }));
        });
        Ok(())
    }

    /// Masks the output gradient by the ReLU in place and returns the gradients of weight and bias, `[C]`.
    ///
    /// # Errors
    ///
    /// The layout has a halo, or a slice has the wrong length.
    pub fn grad_parameters(&self, saved: &BatchNormGrad, grad: &mut [f32]) -> Result<[Vec<f64>; 2], Error> {
        self.check("input", saved.x)?;
        self.check("output", saved.relu_output.unwrap_or(saved.x))?;
        self.check("gradient", grad)?;
        check_len("mean", saved.mean.len(), self.layout.c)?;
        check_len("inverse std", saved.inv_std.len(), self.layout.c)?;
        let mean: Vec<f32> = saved.mean.iter().map(|m| *m as f32).collect();
        let mean = self.lanes("mean", &mean)?;
        let (area, blocks) = (self.layout.h * self.layout.w, self.layout.blocks());
        let len = area * LANES;
        let grad = &mut grad[..self.layout.len()];
        let mut planes: Vec<(&mut [f32], [[f64; LANES]; 2])> =
            grad.chunks_exact_mut(len).map(|plane| (plane, [[0.0; LANES]; 2])).collect();
        self.pool.for_each_chunk(&mut planes, 1, |index, part| {
            let [(grad, sums)] = part else { return };
            let x = saved.x[index * len..][..len].as_chunks::<LANES>().0;
            let y = saved.relu_output.map(|y| y[index * len..][..len].as_chunks::<LANES>().0);
            let grad = grad.as_chunks_mut::<LANES>().0;
            *sums = self.isa.dispatch(Vectorized(Sums { x, y, grad, mean: &mean[index % blocks] }));
        });
        let mut result = [(); 2].map(|()| Vec::with_capacity(self.layout.c));
        for (channel, scale) in saved.inv_std.iter().enumerate() {
            let sum = |which: usize| {
                let image_stats = |i: usize| planes[i * blocks + channel / LANES].1[which][channel % LANES];
                (0..self.layout.n).map(image_stats).sum::<f64>()
            };
            result[0].push(sum(1) * scale);
            result[1].push(sum(0));
        }
        Ok(result)
    }

    /// Computes the input gradient from the masked output gradient and the gradients of weight and bias.
    ///
    /// # Errors
    ///
    /// The layout has a halo, or a slice has the wrong length.
    pub fn grad_input(
        &self,
        saved: &BatchNormGrad,
        [weight, bias]: [&[f64]; 2],
        grad: &[f32],
        out: &mut [f32],
    ) -> Result<(), Error> {
        self.check("gradient", grad)?;
        self.check("output", out)?;
        let vectors = self.input_vectors(saved, [weight, bias])?;
        self.each_chunk(out, |range, block, out| {
            let [mean, factor, slope, shift] = [0, 1, 2, 3].map(|i| &vectors[i][block]);
            let x = saved.x[range.clone()].as_chunks::<LANES>().0;
            let grad = Some(grad[range].as_chunks::<LANES>().0);
            let out = out.as_chunks_mut::<LANES>().0;
            self.isa.dispatch(Vectorized(Backward { x, grad, mean, factor, slope, shift, out }));
        });
        Ok(())
    }

    /// As [`BatchNorm::grad_input`], replacing the output gradient.
    ///
    /// # Errors
    ///
    /// As for [`BatchNorm::grad_input`].
    pub fn grad_input_in_place(
        &self,
        saved: &BatchNormGrad,
        [weight, bias]: [&[f64]; 2],
        grad: &mut [f32],
    ) -> Result<(), Error> {
        self.check("gradient", grad)?;
        let vectors = self.input_vectors(saved, [weight, bias])?;
        self.each_chunk(grad, |range, block, out| {
            let [mean, factor, slope, shift] = [0, 1, 2, 3].map(|i| &vectors[i][block]);
            let x = saved.x[range].as_chunks::<LANES>().0;
            let out = out.as_chunks_mut::<LANES>().0;
            self.isa.dispatch(Vectorized(Backward { x, grad: None, mean, factor, slope, shift, out }));
        });
        Ok(())
    }

    /// Returns mean, factor, slope and shift of `gx = factor · g + slope · (x − mean) + shift`.
    fn input_vectors(
        &self,
        saved: &BatchNormGrad,
        [weight, bias]: [&[f64]; 2],
    ) -> Result<[Lanes<f32>; 4], Error> {
        self.check("input", saved.x)?;
        let (c, count) = (self.layout.c, (self.layout.n * self.layout.h * self.layout.w) as f64);
        check_len("weight", saved.weight.len(), c)?;
        check_len("weight gradient", weight.len(), c)?;
        check_len("bias gradient", bias.len(), c)?;
        let vector = |f: &dyn Fn(usize, f64) -> f64| -> Vec<f32> {
            (0..c).map(|i| f(i, f64::from(saved.weight[i]) * saved.inv_std[i]) as f32).collect()
        };
        let batch = if saved.batch_stats { 1.0 } else { 0.0 };
        // The weight gradient is Σ g·(x − mean)·inv_std.
        Ok([
            self.lanes("mean", &vector(&|i, _| saved.mean[i]))?,
            self.lanes("factors", &vector(&|_, factor| factor))?,
            self.lanes(
                "slope",
                &vector(&|i, factor| -batch * factor * saved.inv_std[i] * weight[i] / count),
            )?,
            self.lanes("shift", &vector(&|i, factor| -batch * factor * bias[i] / count))?,
        ])
    }

    /// Expands a vector `[C]` to channel blocks, with zeros in padding channels.
    fn lanes(&self, what: &'static str, values: &[f32]) -> Result<Lanes<f32>, Error> {
        check_len(what, values.len(), self.layout.c)?;
        let mut lanes = vec![[0.0; LANES]; self.layout.blocks()];
        lanes.as_flattened_mut()[..values.len()].copy_from_slice(values);
        Ok(lanes)
    }

    /// Calls `task` for parts of planes with their range, the channel block, and that range of `out`.
    fn each_chunk(&self, out: &mut [f32], task: impl Fn(std::ops::Range<usize>, usize, &mut [f32]) + Sync) {
        let len = self.layout.plane_len();
        let chunks = len.div_ceil(CHUNK);
        let step = len.div_ceil(chunks).next_multiple_of(LANES);
        let mut parts: Vec<&mut [f32]> =
            out[..self.layout.len()].chunks_exact_mut(len).flat_map(|plane| plane.chunks_mut(step)).collect();
        let chunks = len.div_ceil(step);
        self.pool.for_each_chunk(&mut parts, 8, |index, parts| {
            for (offset, part) in parts.iter_mut().enumerate() {
                let (plane, chunk) = ((index * 8 + offset) / chunks, (index * 8 + offset) % chunks);
                let start = plane * len + chunk * step;
                task(start..start + part.len(), plane % self.layout.blocks(), part);
            }
        });
    }
}

/// Runs a kernel with the instruction set that it is dispatched to.
pub(super) struct Vectorized<K>(pub(super) K);

impl<K: Kernel> Dispatch for Vectorized<K> {
    type Output = K::Output;

    fn run<S: Simd>(self, simd: S) -> K::Output {
        simd.vectorize(self.0)
    }
}

/// Mean and sum of squared differences from the mean, over the pixels of one channel block.
struct Moments<'a>(&'a [[f32; LANES]]);

impl Kernel for Moments<'_> {
    type Output = [[f64; LANES]; 2];

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Self::Output {
        let (mut mean, mut squares) = ([0f64; LANES], [0f64; LANES]);
        let mut done = 0.0;
        for run in self.0.chunks(RUN) {
            let mut sum = s.splat(0.0);
            for pixel in run {
                sum = s.add(sum, s.load(pixel));
            }
            let run_mean = s.mul(sum, s.splat(1.0 / run.len() as f32));
            let mut residual_sum = s.splat(0.0);
            let mut square = s.splat(0.0);
            for pixel in run {
                let d = s.sub(s.load(pixel), run_mean);
                residual_sum = s.add(residual_sum, d);
                square = s.mul_add(d, d, square);
            }
            let [mut m, mut d, mut q] = [[0f32; LANES]; 3];
            s.store(&mut m, run_mean);
            s.store(&mut d, residual_sum);
            s.store(&mut q, square);
            let n = run.len() as f64;
            for lane in 0..LANES {
                // Corrects the rounding error of the `f32` mean by the mean residual.
                let correction = f64::from(d[lane]) / n;
                let (m, q) =
                    (f64::from(m[lane]) + correction, f64::from(q[lane]) - n * correction * correction);
                let delta = m - mean[lane];
                mean[lane] += delta * n / (done + n);
                squares[lane] += q + delta * delta * done * n / (done + n);
            }
            done += n;
        }
        [mean, squares]
    }
}

struct Forward<'a> {
    x: &'a [[f32; LANES]],
    mean: &'a [f32; LANES],
    factor: &'a [f32; LANES],
    bias: &'a [f32; LANES],
    residual: Option<&'a [[f32; LANES]]>,
    relu: bool,
    y: &'a mut [[f32; LANES]],
}

impl Kernel for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { x, mean, factor, bias, residual, relu, y } = self;
        let (mean, factor, bias) = (s.load(mean), s.load(factor), s.load(bias));
        let apply = |x: &[f32; LANES]| s.mul_add(s.sub(s.load(x), mean), factor, bias);
        let activate = |v: S::V| if relu { s.relu(v) } else { v };
        match residual {
            Some(residual) => {
                for ((y, x), added) in y.iter_mut().zip(x).zip(residual) {
                    s.store(y, activate(s.add(apply(x), s.load(added))));
                }
            }
            None => {
                for (y, x) in y.iter_mut().zip(x) {
                    s.store(y, activate(apply(x)));
                }
            }
        }
    }
}

/// Masks the gradient in place; computes Σ g and Σ g · (x − mean).
struct Sums<'a> {
    x: &'a [[f32; LANES]],
    y: Option<&'a [[f32; LANES]]>,
    grad: &'a mut [[f32; LANES]],
    mean: &'a [f32; LANES],
}

impl Kernel for Sums<'_> {
    type Output = [[f64; LANES]; 2];

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Self::Output {
        let Self { x, y, grad, mean } = self;
        let mean = s.load(mean);
        let mut totals = [[0f64; LANES]; 2];
        for (index, run) in grad.chunks_mut(RUN).enumerate() {
            let x = &x[index * RUN..][..run.len()];
            if let Some(y) = y {
                let y = &y[index * RUN..][..run.len()];
                // A separate loop with a vector select: a loop over lanes compiles to sixteen branches.
                for (g, y) in run.iter_mut().zip(y) {
                    let passed = s.select_positive(s.load(g), s.load(y));
                    s.store(g, passed);
                }
            }
            let (mut plain, mut product) = (s.splat(0.0), s.splat(0.0));
            for (g, x) in run.iter().zip(x) {
                let g = s.load(g);
                plain = s.add(plain, g);
                product = s.mul_add(g, s.sub(s.load(x), mean), product);
            }
            let mut lanes = [[0f32; LANES]; 2];
            s.store(&mut lanes[0], plain);
            s.store(&mut lanes[1], product);
            for (total, lanes) in totals.iter_mut().zip(lanes) {
                total.iter_mut().zip(lanes).for_each(|(total, value)| *total += f64::from(value));
            }
        }
        totals
    }
}

/// Computes `out = factor · grad + slope · (x − mean) + shift`; without `grad`, `out` initially holds the gradient.
struct Backward<'a> {
    x: &'a [[f32; LANES]],
    grad: Option<&'a [[f32; LANES]]>,
    mean: &'a [f32; LANES],
    factor: &'a [f32; LANES],
    slope: &'a [f32; LANES],
    shift: &'a [f32; LANES],
    out: &'a mut [[f32; LANES]],
}

impl Kernel for Backward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { x, grad, mean, factor, slope, shift, out } = self;
        let [mean, factor, slope, shift] = [mean, factor, slope, shift].map(|v| s.load(v));
        let grad_x =
            |g: S::V, x: &[f32; LANES]| s.mul_add(factor, g, s.mul_add(slope, s.sub(s.load(x), mean), shift));
        match grad {
            Some(grad) => {
                for ((out, x), g) in out.iter_mut().zip(x).zip(grad) {
                    s.store(out, grad_x(s.load(g), x));
                }
            }
            None => {
                for (out, x) in out.iter_mut().zip(x) {
                    let g = s.load(out);
                    s.store(out, grad_x(g, x));
                }
            }
        }
    }
}
