//! ReLU.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::cpu::{contiguous, is_cpu_f32, tensor, values};

/// Elements per task.
pub(super) const CHUNK: usize = 1 << 14;

/// Computes `max(x, 0)`. NaN stays NaN; the gradient at 0 is 0.
pub(crate) fn relu(x: &Tensor) -> Result<Tensor> {
    if is_cpu_f32(x) { x.contiguous()?.apply_op1(Relu) } else { x.relu() }
}

struct Relu;

impl CustomOp1 for Relu {
    fn name(&self) -> &'static str {
        "relu"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = contiguous(storage, layout)?.par_iter().with_min_len(CHUNK);
        let y = x.map(|&x| if x < 0.0 { 0.0 } else { x }).collect();
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, _: &Tensor, y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let grad = grad.contiguous()?;
        let ((y_storage, y_layout), (grad, grad_layout)) =
            (y.storage_and_layout(), grad.storage_and_layout());
        let gx = mask(values(&y_storage, y_layout)?, values(&grad, grad_layout)?);
        Ok(Some(tensor(gx, y.shape())?))
    }
}

/// Returns the gradient of a ReLU with output `y`.
pub(super) fn mask(y: &[f32], grad: &[f32]) -> Vec<f32> {
    let pairs = y.par_iter().with_min_len(CHUNK).zip(grad);
    pairs.map(|(&y, &grad)| if y > 0.0 { grad } else { 0.0 }).collect()
}
