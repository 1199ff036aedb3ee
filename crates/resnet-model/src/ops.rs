//! The operations of a graph on candle tensors, `[N, C, H, W]`, with the gradients that candle lacks.
//!
//! On the CPU they are operations of their own (`f32` by `resnet-kernels`, `f64` by plain loops); elsewhere they are
//! composed of candle's.

use candle_core::{DType, Result, Tensor};

use crate::graph::{ChannelConv, Pad, PadChannels, Subsample};

mod activated;
mod attention;
mod conv;
mod kernels;
mod norm;
mod pool;
mod real;
mod relu;

pub(crate) use activated::{evo_norm, filter_response_norm};
pub(crate) use attention::{AttentionWeights, Projection, attention_pool};
pub(crate) use conv::{conv, isa, std_conv, threads};
pub(crate) use kernels::{average_of, shape_of, window_of};
pub(crate) use norm::{Affine, Moments, normalize};
pub(crate) use pool::{adaptive_avg_pool, avg_pool, blur, max_pool};
pub(crate) use real::{is_ours, values};
pub(crate) use relu::relu;

/// The weight `[out, in / groups, height, width]` shifted and scaled to mean 0 and variance 1 per output channel; on the
/// CPU in f64, since BiT's networks multiply every error.
pub(crate) fn standardize(weight: &Tensor, eps: f64) -> Result<Tensor> {
    if weight.device().is_cpu() && weight.dtype() == DType::F32 {
        return standardize(&weight.to_dtype(DType::F64)?, eps)?.to_dtype(DType::F32);
    }
    let flat = weight.flatten_from(1)?;
    let centred = flat.broadcast_sub(&flat.mean_keepdim(1)?)?;
    let deviation = (centred.sqr()?.mean_keepdim(1)? + eps)?.sqrt()?;
    centred.broadcast_div(&deviation)?.reshape(weight.shape())
}

/// Every `stride`-th pixel along both axes.
pub(crate) fn subsample(x: &Tensor, subsample: &Subsample) -> Result<Tensor> {
    every(&every(x, 2, subsample.stride)?, 3, subsample.stride)
}

/// Zero channels before and after.
pub(crate) fn pad_channels(x: &Tensor, pad: &PadChannels) -> Result<Tensor> {
    x.pad_with_zeros(1, pad.before, pad.after)
}

/// Zero pixels around.
pub(crate) fn pad(x: &Tensor, pad: &Pad) -> Result<Tensor> {
    x.pad_with_zeros(2, pad.before[0], pad.after[0])?.pad_with_zeros(3, pad.before[1], pad.after[1])
}

/// A convolution over the channels of `x` `[N, C]`; the weight is `[1, 1, kernel]`.
pub(crate) fn channel_conv(x: &Tensor, weight: &Tensor, conv: &ChannelConv) -> Result<Tensor> {
    x.unsqueeze(1)?.conv1d(weight, conv.kernel / 2, 1, 1, 1)?.squeeze(1)
}

/// `x` `[N, C, H, W]`, each channel multiplied by its number in `gate` `[N, C]`.
pub(crate) fn scale(x: &Tensor, gate: &Tensor) -> Result<Tensor> {
    x.broadcast_mul(&gate.unsqueeze(2)?.unsqueeze(3)?)
}

/// Every `step`-th slice along `dim`, from the first.
fn every(x: &Tensor, dim: usize, step: usize) -> Result<Tensor> {
    if step == 1 {
        return Ok(x.clone());
    }
    let indices: Vec<u32> = (0..x.dim(dim)? as u32).step_by(step).collect();
    x.contiguous()?.index_select(&Tensor::new(indices, x.device())?, dim)
}

#[cfg(test)]
mod tests;
