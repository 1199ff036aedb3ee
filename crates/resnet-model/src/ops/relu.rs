//! The rectifier.

use candle_core::{CpuStorage, CustomOp1, Device, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::real::{contiguous, dispatch, is_ours, with};

/// Elements that one task takes.
pub(super) const CHUNK: usize = 1 << 14;

/// `max(x, 0)`; NaN stays NaN. The gradient at 0 is 0.
pub(crate) fn relu(x: &Tensor) -> Result<Tensor> {
    if is_ours(x) { x.contiguous()?.apply_op1(Relu) } else { x.relu() }
}

struct Relu;

impl CustomOp1 for Relu {
    fn name(&self) -> &'static str {
        "relu"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let result = dispatch!(storage, T => {
            let (x, zero): (&[T], T) = (contiguous(storage, layout)?, 0.0);
            let y = x.par_iter().with_min_len(CHUNK).map(|&x| if x < zero { zero } else { x }).collect();
            <T as candle_core::WithDType>::to_cpu_storage_owned(y)
        });
        Ok((result, layout.shape().clone()))
    }

    fn bwd(&self, _: &Tensor, y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let gradient = with!([y, grad], T => |y, grad| {
            let zero: T = 0.0;
            let pairs = y.par_iter().with_min_len(CHUNK).zip(grad);
            let gradient: Vec<T> = pairs.map(|(&y, &grad)| if y > zero { grad } else { zero }).collect();
            Tensor::from_vec(gradient, grad_shape(y.len(), grad.len())?, &Device::Cpu)?
        });
        Ok(Some(gradient.reshape(y.shape())?))
    }
}

/// The length of both.
fn grad_shape(y: usize, grad: usize) -> Result<usize> {
    if y == grad { Ok(y) } else { candle_core::bail!("{grad} gradients for {y} values") }
}
