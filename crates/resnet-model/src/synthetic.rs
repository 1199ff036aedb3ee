//! Weights from a formula: a checkpoint of any architecture without a file, for benchmarks and tests.
//!
//! A value depends only on the tensor's name, the element's index and the tensor's role, and the formula is simple
//! enough to be written in other languages too (`tests/golden/formula.py`), so that networks can be compared with
//! PyTorch's without storing their weights.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::param_specs::{ParamSpec, Role};
use crate::raw::{Dtype, RawTensor};
use crate::{Arch, Checkpoint, Labels, Meta, Preprocess, Result};

/// The FNV-1a hash of a name.
pub(crate) fn hash(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}

/// The `index`-th number of the sequence named `name`: uniform in [0, 1), a multiple of 2⁻²⁴ (splitmix64's mixer).
pub fn uniform(name: &str, index: usize) -> f64 {
    uniform_of(hash(name), index)
}

/// The sequence named `name`, to be read at any index: [`uniform`] without hashing the name each time.
pub(crate) fn sequence(name: &str) -> impl Fn(usize) -> f64 + use<> {
    let hash = hash(name);
    move |index| uniform_of(hash, index)
}

fn uniform_of(hash: u64, index: usize) -> f64 {
    let mut z = hash.wrapping_add((index as u64).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^= z >> 31;
    (z >> 40) as f64 / (1u64 << 24) as f64
}

/// The values of one tensor. Convolutions keep the second moment of what they are given (uniform in
/// ±√(6 / fan-in)); norm scales lie in [0.4, 0.8), so that deep networks neither vanish nor explode.
pub fn values(param: &ParamSpec) -> Vec<f32> {
    let elements: usize = param.shape.iter().product();
    let fan_in: usize = param.shape.iter().skip(1).product();
    let (low, high) = match param.role {
        // Fully connected layers that PyTorch stores as convolutions are filled as such.
        Role::LinearWeight if param.shape.len() == 2 => symmetric((3.0 / fan_in as f64).sqrt()),
        Role::ConvWeight | Role::LinearWeight => symmetric((6.0 / fan_in as f64).sqrt()),
        Role::NormScale => (0.4, 0.8),
        Role::RunningVar => (0.7, 1.3),
        Role::ConvBias | Role::LinearBias | Role::NormShift | Role::RunningMean | Role::Position => {
            symmetric(0.2)
        }
        Role::BatchesTracked => (0.0, 0.0),
    };
    let hash = hash(&param.name);
    (0..elements).map(|i| (low + (high - low) * uniform_of(hash, i)) as f32).collect()
}

fn symmetric(bound: f64) -> (f64, f64) {
    (-bound, bound)
}

/// An input image batch from the formula: `elements` values, uniform in [-2, 2).
pub fn input(elements: usize) -> Vec<f32> {
    let hash = hash("input");
    (0..elements).map(|i| (-2.0 + 4.0 * uniform_of(hash, i)) as f32).collect()
}

/// A checkpoint of `arch` with weights from the formula.
pub fn checkpoint(arch: &Arch) -> Result<Checkpoint> {
    let mut tensors = BTreeMap::new();
    for param in arch.graph()?.param_specs() {
        let tensor = match param.role {
            Role::BatchesTracked => Some(RawTensor::scalar_i64(0)),
            _ => {
                let bytes: Vec<u8> = values(&param).iter().flat_map(|v| v.to_le_bytes()).collect();
                RawTensor::new(Dtype::F32, param.shape.clone(), Arc::new(bytes))
            }
        };
        tensors.extend(tensor.map(|t| (param.name, t)));
    }
    let mut meta = Meta::new(arch.clone(), Preprocess::torchvision(256, 224));
    if arch.classes() == Some(1000) {
        meta.labels = Labels::ImageNet1k;
    }
    Checkpoint::new(meta, tensors)
}
