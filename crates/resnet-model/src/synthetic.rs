//! Synthetic weights and inputs for benchmarks and tests: a checkpoint of any architecture without a file.
//!
//! A value depends only on the tensor's name and role and the element's index. `tests/golden/formula.py` implements the same
//! formula, so that networks can be compared with PyTorch's without storing their weights.

use std::collections::BTreeMap;

use crate::param_specs::{ParamSpec, Role};
use crate::random::sequence;
use crate::{Arch, Checkpoint, Labels, Meta, Preprocess, RawTensor, Result};

/// Returns the values of one tensor. Convolutions are uniform in ±√(6 / fan-in), which preserves the second moment; norm
/// scales are in [0.4, 0.8), so that activations of deep networks neither vanish nor explode.
pub fn values(param: &ParamSpec) -> Vec<f32> {
    let elements: usize = param.shape.iter().product();
    let fan_in: usize = param.shape.iter().skip(1).product();
    let (low, high) = match param.role {
        // Linear layers that PyTorch stores as 1×1 convolutions have four dimensions.
        Role::LinearWeight if param.shape.len() == 2 => symmetric((3.0 / fan_in as f64).sqrt()),
        Role::ConvWeight | Role::LinearWeight => symmetric((6.0 / fan_in as f64).sqrt()),
        Role::NormScale => (0.4, 0.8),
        Role::RunningVar => (0.7, 1.3),
        Role::ConvBias | Role::LinearBias | Role::NormShift | Role::RunningMean | Role::Position => {
            symmetric(0.2)
        }
        Role::BatchesTracked => (0.0, 0.0),
    };
    let random = sequence(&param.name);
    (0..elements).map(|i| (low + (high - low) * random(i)) as f32).collect()
}

fn symmetric(bound: f64) -> (f64, f64) {
    (-bound, bound)
}

/// Returns `elements` values of an input batch, uniform in [-2, 2).
pub fn input(elements: usize) -> Vec<f32> {
    let random = sequence("input");
    (0..elements).map(|i| (-2.0 + 4.0 * random(i)) as f32).collect()
}

/// Returns a checkpoint of `arch` with synthetic weights.
///
/// # Errors
///
/// An error if `arch` is invalid.
pub fn checkpoint(arch: &Arch) -> Result<Checkpoint> {
    let mut tensors = BTreeMap::new();
    for param in arch.graph()?.param_specs() {
        let tensor = match param.role {
            Role::BatchesTracked => Some(RawTensor::scalar_i64(0)),
            _ => RawTensor::from_f32(param.shape.clone(), &values(&param)),
        };
        tensors.extend(tensor.map(|t| (param.name, t)));
    }
    let mut meta = Meta::new(arch.clone(), Preprocess::torchvision(256, 224));
    if arch.classes() == Some(1000) {
        meta.labels = Labels::ImageNet1k;
    }
    Checkpoint::new(meta, tensors)
}
