//! Names, shapes and roles of all parameters, in the order of PyTorch's `state_dict()`.

use crate::graph::Graph;

/// One tensor that a network needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParamSpec {
    /// The name, e.g. `layer1.0.bn1.running_mean`.
    pub name: String,
    /// The shape; empty for a scalar.
    pub shape: Vec<usize>,
    /// The purpose of the tensor.
    pub role: Role,
}

/// The purpose of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Role {
    /// The weight of a convolution, `[out, in / groups, height, width]`, or `[1, 1, kernel]` over channels.
    ConvWeight,
    /// The bias of a convolution, `[out]`.
    ConvBias,
    /// The weight of a normalization layer, or EvoNorm's `v`, `[C]`.
    NormScale,
    /// The bias of a normalization layer, or the threshold `tau`, `[C]`.
    NormShift,
    /// The running mean of a batch norm, `[C]`.
    RunningMean,
    /// The running variance of a batch norm, `[C]`.
    RunningVar,
    /// The number of batches in the running statistics, an i64 scalar.
    BatchesTracked,
    /// The weight of a fully connected layer, `[K, C]` or `[K, C, 1, 1]`.
    LinearWeight,
    /// The bias of a fully connected layer, `[K]`.
    LinearBias,
    /// A position embedding, `[positions, C]`.
    Position,
}

impl Role {
    /// Returns `true` if gradients update the tensor; running statistics are buffers, not parameters.
    pub fn is_trainable(self) -> bool {
        !matches!(self, Role::RunningMean | Role::RunningVar | Role::BatchesTracked)
    }

    /// Returns `true` if a checkpoint may lack the tensor: PyTorch before 0.4.1 wrote no `num_batches_tracked`.
    pub fn is_optional(self) -> bool {
        self == Role::BatchesTracked
    }
}

impl Graph {
    /// All tensors of the network, in the order of PyTorch's `state_dict()`.
    pub fn param_specs(&self) -> Vec<ParamSpec> {
        let specs = self.registered().flat_map(|node| {
            node.op.params(node.channels).into_iter().map(|(suffix, shape, role)| ParamSpec {
                name: format!("{}.{suffix}", node.name),
                shape,
                role,
            })
        });
        specs.collect()
    }

    /// The number of trainable parameters, as in the tables of torchvision and timm.
    pub fn param_count(&self) -> u64 {
        let trainable = self.param_specs().into_iter().filter(|p| p.role.is_trainable());
        trainable.map(|p| p.shape.iter().map(|&d| d as u64).product::<u64>()).sum()
    }
}

#[cfg(test)]
mod tests {
    use crate::zoo;

    #[test]
    fn param_counts_match_torchvision_weight_tables() {
        for (name, expected) in [
            ("resnet18", 11_689_512),
            ("resnet34", 21_797_672),
            ("resnet50", 25_557_032),
            ("resnet101", 44_549_160),
            ("resnet152", 60_192_808),
            ("resnext50_32x4d", 25_028_904),
            ("resnext101_32x8d", 88_791_336),
            ("resnext101_64x4d", 83_455_272),
            ("wide_resnet50_2", 68_883_240),
            ("wide_resnet101_2", 126_886_696),
        ] {
            assert_eq!(zoo::arch(name).unwrap().graph().unwrap().param_count(), expected, "{name}");
        }
    }

    /// In millions, from table 6 of the paper: 0.27, 0.46, 0.66, 0.85, 1.7 and 19.4.
    #[test]
    fn cifar_param_counts_match_the_paper() {
        for (name, expected) in [
            ("resnet20_cifar", 0.27),
            ("resnet32_cifar", 0.46),
            ("resnet44_cifar", 0.66),
            ("resnet56_cifar", 0.85),
            ("resnet110_cifar", 1.7),
            ("resnet1202_cifar", 19.4),
        ] {
            let millions = zoo::arch(name).unwrap().graph().unwrap().param_count() as f64 / 1e6;
            assert!((millions - expected).abs() < 0.05, "{name}: {millions}");
        }
    }
}
