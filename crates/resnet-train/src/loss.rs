//! Loss functions.

use candle_core::{D, Tensor};
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::error::require;

/// A loss over logits `[N, K]`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Loss {
    /// Loss function.
    pub kind: LossKind,
    /// Label smoothing: fraction of the target spread evenly over all classes.
    pub label_smoothing: f64,
}

/// Loss functions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossKind {
    /// Softmax cross-entropy (PyTorch's `CrossEntropyLoss`).
    #[default]
    CrossEntropy,
    /// Binary cross-entropy per class (PyTorch's `BCEWithLogitsLoss`), averaged over images and classes.
    BinaryCrossEntropy,
}

impl Default for Loss {
    fn default() -> Self {
        Loss { kind: LossKind::CrossEntropy, label_smoothing: 0.0 }
    }
}

impl Loss {
    pub(crate) fn validate(&self) -> Result<()> {
        let valid = (0.0..1.0).contains(&self.label_smoothing);
        require("loss.label_smoothing", self.label_smoothing, "0 to less than 1", valid)
    }

    /// Returns the scalar loss of `logits` `[N, K]` for `targets` `[N, K]`, whose rows are probabilities: one-hot, or mixed.
    pub fn forward(&self, logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
        let classes = logits.dim(1)? as f64;
        let targets = match self.label_smoothing {
            0.0 => targets.clone(),
            s => ((targets * (1.0 - s))? + s / classes)?,
        };
        Ok(match self.kind {
            LossKind::CrossEntropy => {
                // Log-softmax, shifted by the largest logit to keep the exponentials finite.
                let shifted = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?.detach())?;
                let log_sum = shifted.exp()?.sum_keepdim(D::Minus1)?.log()?;
                let picked = (shifted.broadcast_sub(&log_sum)? * targets)?.sum(D::Minus1)?;
                picked.mean_all()?.neg()?
            }
            LossKind::BinaryCrossEntropy => {
                // max(x, 0) − x·t + log(1 + e^−|x|), which never overflows.
                let softened = (logits.abs()?.neg()?.exp()? + 1.0)?.log()?;
                ((logits.relu()? - (logits * targets)?)? + softened)?.mean_all()?
            }
        })
    }
}

/// Returns one-hot rows `[N, K]` of classes below `k`.
pub fn one_hot(classes: &[usize], k: usize) -> Vec<f32> {
    let mut rows = vec![0.0; classes.len() * k];
    for (row, &class) in rows.chunks_exact_mut(k.max(1)).zip(classes) {
        if let Some(value) = row.get_mut(class) {
            *value = 1.0;
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    #[test]
    fn losses_match_pytorch() {
        let logits = Var::new(&[[2f32, -1.0, 0.5], [300.0, 0.0, -300.0]], &Device::Cpu).unwrap();
        let targets = Tensor::from_vec(one_hot(&[0, 1], 3), (2, 3), &Device::Cpu).unwrap();
        let check = |kind, smoothing, expected: f32, gradient: [f32; 3]| {
            let loss = Loss { kind, label_smoothing: smoothing }.forward(&logits, &targets).unwrap();
            let found = loss.to_scalar::<f32>().unwrap();
            assert!((found / expected - 1.0).abs() < 1e-6, "{kind:?}: {found}, expected {expected}");
            let rows = loss.backward().unwrap().get(&logits).unwrap().to_vec2::<f32>().unwrap();
            for (a, b) in rows[0].iter().zip(gradient) {
                assert!((a - b).abs() < 1e-6, "{kind:?}: {:?}, expected {gradient:?}", rows[0]);
            }
        };
        // By torch.nn.functional.cross_entropy and binary_cross_entropy_with_logits, torch 2.15.
        check(LossKind::CrossEntropy, 0.0, 150.120_65, [-0.107_201_49, 0.019_556_286, 0.087_645_195]);
        check(LossKind::CrossEntropy, 0.1, 150.195_65, [-0.073_868_155, 0.002_889_618_3, 0.070_978_53]);
        check(LossKind::BinaryCrossEntropy, 0.0, 50.351_24, [-0.019_867_161, 0.044_823_572, 0.103_743_225]);
    }
}
