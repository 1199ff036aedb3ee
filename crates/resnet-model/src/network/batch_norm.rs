//! Batch normalization with running statistics.

use candle_core::{DType, Tensor, Var};
use candle_nn::{Init, VarBuilder};

use crate::ops::{Affine, Moments, normalize};
use crate::{Error, Result};

/// The statistics that a batch norm uses in training mode.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Statistics {
    /// Those of the batch, which also update the running ones. With `momentum: None`, the running ones are the average over
    /// all batches (PyTorch's `momentum=None`).
    Batch {
        /// The weight of the current batch; PyTorch's default is 0.1.
        momentum: Option<f64>,
    },
    /// The running ones, without updating them.
    Running,
}

impl Default for Statistics {
    fn default() -> Self {
        Statistics::Batch { momentum: Some(0.1) }
    }
}

/// The tensors of a batch norm.
#[derive(Debug, Clone)]
pub(crate) struct BatchNormLayer {
    name: String,
    pub(super) weight: Tensor,
    pub(super) bias: Tensor,
    pub(super) mean: Var,
    pub(super) var: Var,
    batches: Var,
    pub(super) eps: f64,
    pub(super) statistics: Statistics,
}

/// The operations fused with a batch norm.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct FusedOps<'a> {
    pub(super) residual: Option<&'a Tensor>,
    pub(super) relu: bool,
}

impl BatchNormLayer {
    pub(super) fn new(name: &str, channels: usize, eps: f64, vb: VarBuilder) -> Result<BatchNormLayer> {
        let tensor = |name, value| vb.get_with_hints(channels, name, Init::Const(value));
        let statistic = |name, value| Var::from_tensor(&tensor(name, value)?);
        // PyTorch before 0.4.1 did not save the counter.
        let batches = match vb.get_with_hints_dtype((), "num_batches_tracked", Init::Const(0.0), DType::I64) {
            Ok(batches) => batches,
            Err(_) => Tensor::zeros((), DType::I64, vb.device())?,
        };
        Ok(BatchNormLayer {
            name: name.to_owned(),
            weight: tensor("weight", 1.0)?,
            bias: tensor("bias", 0.0)?,
            mean: statistic("running_mean", 0.0)?,
            var: statistic("running_var", 1.0)?,
            batches: Var::from_tensor(&batches)?,
            eps,
            statistics: Statistics::default(),
        })
    }

    /// Normalizes `x`; in training mode according to [`Statistics`].
    pub(super) fn forward(&self, x: &Tensor, train: bool, fused: FusedOps) -> Result<Tensor> {
        let affine = Affine {
            weight: &self.weight,
            bias: &self.bias,
            eps: self.eps,
            residual: fused.residual,
            relu: fused.relu,
        };
        let (true, Statistics::Batch { .. }) = (train, self.statistics) else {
            return self.normalize_by_running(x, affine);
        };
        let count = x.elem_count() / x.dim(1)?.max(1);
        self.check_count(count, x.dims())?;
        let (y, moments) = normalize(x, affine, None)?;
        self.update_running(moments, count)?;
        Ok(y)
    }

    /// Returns an error if the variance of `count` values is undefined.
    pub(super) fn check_count(&self, count: usize, dims: &[usize]) -> Result<()> {
        match count < 2 {
            true => Err(Error::OneValue { name: self.name.clone(), found: dims.to_vec() }),
            false => Ok(()),
        }
    }

    /// Updates the running statistics with the moments of a batch of `count` values per channel.
    pub(super) fn update_running(&self, moments: Moments, count: usize) -> Result<()> {
        let Statistics::Batch { momentum } = self.statistics else { return Ok(()) };
        let batches = self.batches.as_detached_tensor().to_scalar::<i64>()?.saturating_add(1);
        self.batches.set(&Tensor::new(batches, self.mean.device())?)?;
        let momentum = momentum.unwrap_or(1.0 / batches as f64);
        let update = |running: &Var, batch: Tensor| -> Result<()> {
            let running_dtype = running.dtype();
            let kept = (running.as_detached_tensor() * (1.0 - momentum))?;
            Ok(running.set(&(kept + (batch.to_dtype(running_dtype)? * momentum)?)?)?)
        };
        update(&self.mean, moments.mean)?;
        // PyTorch normalizes with the biased variance and tracks the unbiased one.
        let unbiased = count as f64 / (count as f64 - 1.0);
        update(&self.var, (moments.var * unbiased)?)
    }

    fn normalize_by_running(&self, x: &Tensor, affine: Affine) -> Result<Tensor> {
        let moments = Moments { mean: self.mean.as_detached_tensor(), var: self.var.as_detached_tensor() };
        Ok(normalize(x, affine, Some(&moments))?.0)
    }
}
