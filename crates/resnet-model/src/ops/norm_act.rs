//! Normalization layers with a built-in activation.

use candle_core::{Result, Tensor};

use crate::graph::{EvoNorm, FilterResponseNorm};

/// EvoNorm-S0 of `x` `[N, C, H, W]`; `weight`, `bias` and `v` are `[C]`.
pub(crate) fn evo_norm(
    x: &Tensor,
    norm: &EvoNorm,
    weight: &Tensor,
    bias: &Tensor,
    v: &Tensor,
) -> Result<Tensor> {
    let (n, c, h, w) = x.dims4()?;
    let grouped = x.reshape((n, norm.groups, c / norm.groups * h * w))?;
    let variance = grouped.broadcast_sub(&grouped.mean_keepdim(2)?)?.sqr()?.mean_keepdim(2)?;
    let activated = (x * candle_nn::ops::sigmoid(&x.broadcast_mul(&per_channel(v)?)?)?)?;
    let normal = activated.reshape(grouped.shape())?.broadcast_div(&(variance + norm.eps)?.sqrt()?)?;
    affine(&normal.reshape(x.shape())?, weight, bias)
}

/// Filter response normalization of `x` `[N, C, H, W]`; `weight`, `bias` and the threshold `tau` are `[C]`.
pub(crate) fn filter_response_norm(
    x: &Tensor,
    norm: &FilterResponseNorm,
    weight: &Tensor,
    bias: &Tensor,
    tau: &Tensor,
) -> Result<Tensor> {
    let (n, c, h, w) = x.dims4()?;
    let squares = x.reshape((n, c, h * w))?.sqr()?.mean_keepdim(2)?.reshape((n, c, 1, 1))?;
    let y = affine(&x.broadcast_div(&(squares + norm.eps)?.sqrt()?)?, weight, bias)?;
    y.broadcast_maximum(&per_channel(tau)?)
}

fn affine(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    x.broadcast_mul(&per_channel(weight)?)?.broadcast_add(&per_channel(bias)?)
}

fn per_channel(values: &Tensor) -> Result<Tensor> {
    values.reshape((1, (), 1, 1))
}
