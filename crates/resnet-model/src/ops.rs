//! The operations of a graph on candle tensors `[N, C, H, W]`, differentiable by candle.
//!
//! Convolution, batch norm, max pooling and ReLU in `f32` on the CPU are candle custom operations; everything else, and
//! every other dtype and device, is composed of candle's operations.
//!
//! These custom operations exist next to the training tape (`network/tape.rs`) for what the tape does not do: gradients of
//! the input and of intermediate results ([`ModuleT::forward_t`](candle_core::ModuleT)), the reference of the engine's tests,
//! and the tape's own fallback for operations without a blocked kernel (biased and weight-standardized convolutions, group norm).
//! A training step on two cores, batch of 8 images of 112×112 pixels: ResNet-18 0.8 s with the tape, 1.5 s with these
//! operations, 8.7 s with candle's own. ResNet-50, batch of 4: 1.2 s, 2.0 s and 7 s.

use candle_core::{DType, Result, Tensor};

use crate::graph::{ChannelConv, Pad, PadChannels, Subsample};

mod attention;
mod conv;
mod cpu;
mod kernels;
mod norm;
mod norm_act;
mod pool;
mod relu;

pub(crate) use attention::{AttentionWeights, Projection, attention_pool};
pub(crate) use conv::{conv, isa, std_conv, threads};
pub(crate) use cpu::{is_cpu_f32, values};
pub(crate) use kernels::{avg_pool_spec, conv_shape, pool_spec};
pub(crate) use norm::{Affine, Moments, normalize};
pub(crate) use norm_act::{evo_norm, filter_response_norm};
pub(crate) use pool::{adaptive_avg_pool, avg_pool, blur, max_pool};
pub(crate) use relu::relu;

/// Returns the weight `[out, in / groups, height, width]` shifted and scaled to mean 0 and variance 1 per output channel.
/// Computes in f64 on the CPU, because BiT's networks amplify every rounding error.
pub(crate) fn standardize(weight: &Tensor, eps: f64) -> Result<Tensor> {
    if weight.device().is_cpu() && weight.dtype() == DType::F32 {
        return standardize(&weight.to_dtype(DType::F64)?, eps)?.to_dtype(DType::F32);
    }
    let flat = weight.flatten_from(1)?;
    let centered = flat.broadcast_sub(&flat.mean_keepdim(1)?)?;
    let std = (centered.sqr()?.mean_keepdim(1)? + eps)?.sqrt()?;
    centered.broadcast_div(&std)?.reshape(weight.shape())
}

/// Returns every `stride`-th pixel along both axes.
pub(crate) fn subsample(x: &Tensor, subsample: &Subsample) -> Result<Tensor> {
    every(&every(x, 2, subsample.stride)?, 3, subsample.stride)
}

/// Pads with channels of zeros.
pub(crate) fn pad_channels(x: &Tensor, pad: &PadChannels) -> Result<Tensor> {
    x.pad_with_zeros(1, pad.before, pad.after)
}

/// Pads with pixels of zeros.
pub(crate) fn pad(x: &Tensor, pad: &Pad) -> Result<Tensor> {
    x.pad_with_zeros(2, pad.before[0], pad.after[0])?.pad_with_zeros(3, pad.before[1], pad.after[1])
}

/// A convolution over the channels of `x` `[N, C]`; the weight is `[1, 1, kernel]`.
pub(crate) fn channel_conv(x: &Tensor, weight: &Tensor, conv: &ChannelConv) -> Result<Tensor> {
    x.unsqueeze(1)?.conv1d(weight, conv.kernel / 2, 1, 1, 1)?.squeeze(1)
}

/// Multiplies each channel of `x` `[N, C, H, W]` by its value in `gate` `[N, C]`.
pub(crate) fn scale(x: &Tensor, gate: &Tensor) -> Result<Tensor> {
    x.broadcast_mul(&gate.unsqueeze(2)?.unsqueeze(3)?)
}

/// Returns every `step`-th slice along `dim`, starting with the first.
fn every(x: &Tensor, dim: usize, step: usize) -> Result<Tensor> {
    if step == 1 {
        return Ok(x.clone());
    }
    let indices: Vec<u32> = (0..x.dim(dim)? as u32).step_by(step).collect();
    x.contiguous()?.index_select(&Tensor::new(indices, x.device())?, dim)
}

#[cfg(test)]
mod tests;
