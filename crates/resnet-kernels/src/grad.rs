//! Convolutions for training: forward and both gradients.
//!
//! Weights change with every step, so they are packed for every call. The input gradient is a forward convolution with
//! transposed and flipped weights.

use crate::conv::{Algorithm, Epilogue, Input, InputHint, PackedConv, Plan, Precision};
use crate::epilogue::Residual;
use crate::error::{Error, check_len, product};

use crate::layout::{Blocked, LANES, View, ViewMut};
use crate::shape::{ConvShape, ConvWeights};
use crate::simd::{AlignedVec, Isa};
use crate::threads::ThreadPool;

mod blocked;
mod buffer_pool;
mod norm;
mod outer;
mod pack;
mod phase;
mod pool;
mod weights;

pub use blocked::BlockedConv;
pub use buffer_pool::BufferPool;
pub use norm::{BatchNorm, BatchNormGrad};
pub use pool::{add_to, grad_avg_pool, grad_gate, grad_global_avg_pool, grad_max_pool, scale_channels};

use phase::Phase;

/// Minimum number of output pixels in the batch for which Winograd amortizes the filter transform.
const WINOGRAD_PIXELS: usize = 1024;

/// Training convolution of planar tensors `[N, C, H, W]` with weights `[c_out, c_in / groups, kernel height, kernel
/// width]`.
///
/// Results do not depend on the number of threads.
///
/// ```
/// use resnet_kernels::{ConvShape, Isa, PlanarConv, ThreadPool, Precision};
/// let pool = ThreadPool::new(1)?;
/// let shape = ConvShape::pointwise(2, 1);
/// let conv = PlanarConv { shape, input: [1, 2, 1, 3], isa: Isa::best(), precision: Precision::F32, pool: &pool };
/// let (x, weights) = ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [10.0, 1.0]);
/// assert_eq!(conv.forward(&x, &weights)?, [14.0, 25.0, 36.0]);
/// assert_eq!(conv.grad_input(&[1.0, 0.0, 2.0], &weights)?, [10.0, 0.0, 20.0, 1.0, 0.0, 2.0]);
/// assert_eq!(conv.grad_weights(&x, &[1.0, 0.0, 2.0])?, [7.0, 16.0]);
/// # Ok::<(), resnet_kernels::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct PlanarConv<'a> {
    /// Shape of the convolution.
    pub shape: ConvShape,
    /// Input shape `[N, C, H, W]`.
    pub input: [usize; 4],
    /// Instruction set.
    pub isa: Isa,
    /// `F32` allows Winograd; `Exact` uses direct convolutions with chunked sums.
    pub precision: Precision,
    /// Thread pool.
    pub pool: &'a ThreadPool,
}

impl PlanarConv<'_> {
    /// Returns the output shape `[N, c_out, H', W']`.
    ///
    /// # Errors
    ///
    /// Invalid shape, wrong number of channels, or an input smaller than the kernel.
    pub fn output(&self) -> Result<[usize; 4], Error> {
        let output = self.shape.output_dims(self.input)?;
        product("input length", &self.input)?;
        product("output length", &output)?;
        Ok(output)
    }

    /// Returns the output `[N, c_out, H', W']`.
    ///
    /// # Errors
    ///
    /// A shape or length does not match.
    pub fn forward(&self, input: &[f32], weights: &[f32]) -> Result<Vec<f32>, Error> {
        let dims = self.output()?;
        check_len("input", input.len(), self.input.iter().product())?;
        let conv = self.packed(self.shape, self.input, weights)?;
        let from = self.layout(self.input, conv.input_halo())?;
        let blocked = match conv.plan().algorithm {
            Algorithm::Planar => AlignedVec::default(),
            _ => self.blocked(from, input)?,
        };
        let (to, result) = self.run(&conv, (self.input, input), (from, &blocked))?;
        let mut output = vec![0.0; dims.iter().product()];
        to.unpack(&result, &mut output, self.pool)?;
        Ok(output)
    }

    /// Returns the input gradient `[N, c_in, H, W]` for the output gradient `[N, c_out, H', W']`.
    ///
    /// With a stride, the input pixels are divided into phases (pixel modulo stride), each of which is a convolution
    /// with a subset of the taps.
    ///
    /// # Errors
    ///
    /// A shape or length does not match.
    pub fn grad_input(&self, grad: &[f32], weights: &[f32]) -> Result<Vec<f32>, Error> {
        let output = self.output()?;
        let [_, c, h, w] = self.input;
        check_len("gradient", grad.len(), output.iter().product())?;
        check_len("weights", weights.len(), self.shape.weight_len()?)?;
        let rows = Phase::list(&self.shape, 0, h, output[2]);
        let columns = Phase::list(&self.shape, 1, w, output[3]);
        let halo = |phases: &[Phase]| phases.iter().map(|phase| phase.padding).max().unwrap_or(0);
        let from = self.layout(output, [halo(&rows), halo(&columns)])?;
        let mut blocked = AlignedVec::default();
        let mut result = vec![0.0; self.input.iter().product()];
        for row in &rows {
            for column in &columns {
                let shape = phase::shape(&self.shape, row, column);
                let conv = self.packed(shape, output, &phase::weights(&self.shape, weights, row, column))?;
                if conv.plan().algorithm != Algorithm::Planar && blocked.is_empty() {
                    blocked = self.blocked(from, grad)?;
                }
                let (to, part) = self.run(&conv, (output, grad), (from, &blocked))?;
                self.pool.for_each_chunk(&mut result, h * w, |index, plane| {
                    let (image, channel) = (index / c, index % c);
                    let source = &part[image * to.image_len() + channel / LANES * to.plane_len()..];
                    for y in 0..to.h {
                        let Some(line) = row.target(y, h).and_then(|at| plane.get_mut(at * w..(at + 1) * w))
                        else {
                            continue;
                        };
                        let pixels = source[to.pixel(y, 0)..][..to.w * LANES].as_chunks::<LANES>().0;
                        column.scatter(pixels, channel % LANES, line);
                    }
                });
            }
        }
        Ok(result)
    }

    /// Returns the weight gradient for an input and an output gradient.
    ///
    /// # Errors
    ///
    /// A shape or length does not match.
    pub fn grad_weights(&self, input: &[f32], grad: &[f32]) -> Result<Vec<f32>, Error> {
        let output = self.output()?;
        check_len("input", input.len(), self.input.iter().product())?;
        check_len("gradient", grad.len(), output.iter().product())?;
        weights::gradient(self, output, input, weights::OutputGrad::Planar(grad))
    }

    fn packed(&self, shape: ConvShape, input: [usize; 4], weights: &[f32]) -> Result<PackedConv, Error> {
        let [oh, ow] = shape.output_hw([input[2], input[3]])?;
        let many = input[0].saturating_mul(oh * ow) >= WINOGRAD_PIXELS;
        let precision = if many { self.precision } else { Precision::Exact };
        let hint = InputHint { batch: input[0], input: [input[2], input[3]] };
        let plan = Plan::choose(&shape, hint, self.isa, precision);
        let conv = PackedConv::new(shape, plan, ConvWeights { weights, bias: None }, Epilogue::default())?;
        Ok(if self.precision == Precision::Exact { conv.with_chunked_sums() } else { conv })
    }

    fn layout(&self, dims: [usize; 4], halo: [usize; 2]) -> Result<Blocked, Error> {
        Blocked::new(dims)?.with_halo(halo)
    }

    fn blocked(&self, layout: Blocked, planar: &[f32]) -> Result<AlignedVec, Error> {
        let mut blocked = AlignedVec::zeroed(layout.len())?;
        layout.pack(planar, &mut blocked, self.pool)?;
        Ok(blocked)
    }

    /// Runs `conv` on the planar or the blocked form of its input, depending on its algorithm.
    fn run(
        &self,
        conv: &PackedConv,
        (dims, planar): ([usize; 4], &[f32]),
        (layout, blocked): (Blocked, &[f32]),
    ) -> Result<(Blocked, AlignedVec), Error> {
        let input = match conv.plan().algorithm {
            Algorithm::Planar => Input::Planar { dims, data: planar },
            _ => Input::Blocked(View { layout, data: blocked }),
        };
        let to = Blocked::new(conv.output_dims(dims)?)?;
        let mut result = AlignedVec::zeroed(to.len())?;
        let mut scratch = AlignedVec::zeroed(conv.scratch_len(dims, self.pool.threads())?)?;
        let target = ViewMut { layout: to, data: &mut result };
        conv.run(input, Residual::None, target, &mut scratch, self.pool)?;
        Ok((to, result))
    }
}

#[cfg(test)]
mod tests;
