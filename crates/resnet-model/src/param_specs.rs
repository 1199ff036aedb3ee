//! Every parameter's name, shape and role, in the order of PyTorch's `state_dict()`.

use crate::graph::{Graph, Op, StdConv};

/// One tensor that a network needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParamSpec {
    /// The name, e.g. `layer1.0.bn1.running_mean`.
    pub name: String,
    /// The shape; empty for a scalar.
    pub shape: Vec<usize>,
    /// What it is for.
    pub role: Role,
}

/// What a tensor is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Role {
    /// A convolution's weight, `[out, in / groups, height, width]`, or `[1, 1, kernel]` over channels.
    ConvWeight,
    /// A convolution's bias, `[out]`.
    ConvBias,
    /// A normalisation's factor, of its result or (EvoNorm's `v`) inside its activation, `[C]`.
    NormScale,
    /// A normalisation's addend or threshold (`tau`), `[C]`.
    NormShift,
    /// The running mean of a batch norm, `[C]`.
    RunningMean,
    /// The running variance of a batch norm, `[C]`.
    RunningVar,
    /// How many batches the running statistics have seen, an i64 scalar.
    BatchesTracked,
    /// A fully connected layer's weight, `[K, C]` or `[K, C, 1, 1]`.
    LinearWeight,
    /// A fully connected layer's bias, `[K]`.
    LinearBias,
    /// A position embedding, `[positions, C]`.
    Position,
}

impl Role {
    /// Whether training changes it by gradients; statistics are not parameters.
    pub fn is_trainable(self) -> bool {
        !matches!(self, Role::RunningMean | Role::RunningVar | Role::BatchesTracked)
    }

    /// Whether a network can do without: files older than PyTorch 0.4.1 have no `num_batches_tracked`.
    pub fn is_optional(self) -> bool {
        self == Role::BatchesTracked
    }
}

/// All tensors of a graph, in the order of `state_dict()`.
pub fn list(graph: &Graph) -> Vec<ParamSpec> {
    let mut params = Vec::new();
    for node in graph.registered() {
        let mut push = |suffix: &str, shape: &[usize], role| {
            params.push(ParamSpec { name: format!("{}.{suffix}", node.name), shape: shape.to_vec(), role });
        };
        let channels = [node.channels];
        match &node.op {
            Op::Conv(conv) | Op::StdConv(StdConv { conv, .. }) => {
                push("weight", &conv.weight_shape(), Role::ConvWeight);
                if conv.bias {
                    push("bias", &channels, Role::ConvBias);
                }
            }
            Op::BatchNorm(_) => {
                push("weight", &channels, Role::NormScale);
                push("bias", &channels, Role::NormShift);
                push("running_mean", &channels, Role::RunningMean);
                push("running_var", &channels, Role::RunningVar);
                push("num_batches_tracked", &[], Role::BatchesTracked);
            }
            Op::GroupNorm(_) => {
                push("weight", &channels, Role::NormScale);
                push("bias", &channels, Role::NormShift);
            }
            Op::EvoNorm(_) => {
                push("weight", &channels, Role::NormScale);
                push("bias", &channels, Role::NormShift);
                push("v", &channels, Role::NormScale);
            }
            Op::FilterResponseNorm(_) => {
                push("weight", &channels, Role::NormScale);
                push("bias", &channels, Role::NormShift);
                push("tau", &channels, Role::NormShift);
            }
            Op::Linear(linear) => {
                push("weight", &linear.weight_shape(), Role::LinearWeight);
                push("bias", &channels, Role::LinearBias);
            }
            Op::AttentionPool(pool) => {
                push("pos_embed", &pool.position_shape(node.channels), Role::Position);
                for part in ["q", "k", "v"] {
                    push(&format!("{part}.weight"), &[node.channels; 2], Role::LinearWeight);
                    push(&format!("{part}.bias"), &channels, Role::LinearBias);
                }
            }
            Op::ChannelConv(conv) => push("weight", &[1, 1, conv.kernel], Role::ConvWeight),
            Op::Input
            | Op::Relu
            | Op::Sigmoid
            | Op::MaxPool(_)
            | Op::AvgPool(_)
            | Op::AdaptiveAvgPool(_)
            | Op::Blur(_)
            | Op::GlobalAvgPool
            | Op::GlobalMaxPool
            | Op::Add
            | Op::Concat
            | Op::Scale
            | Op::Multiply(_)
            | Op::Subsample(_)
            | Op::PadChannels(_)
            | Op::Pad(_)
            | Op::Flatten(_) => {}
        }
    }
    params
}

/// Number of trainable parameters, as torchvision's and timm's tables count them.
pub fn count(graph: &Graph) -> u64 {
    let trainable = list(graph).into_iter().filter(|p| p.role.is_trainable());
    trainable.map(|p| p.shape.iter().map(|&d| d as u64).product::<u64>()).sum()
}

#[cfg(test)]
mod tests {
    use crate::zoo;

    #[test]
    fn counts_are_those_of_torchvisions_weight_tables() {
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
            assert_eq!(super::count(&zoo::arch(name).unwrap().graph().unwrap()), expected, "{name}");
        }
    }

    /// The paper's table 6 gives these in millions: 0.27, 0.46, 0.66, 0.85, 1.7 and 19.4.
    #[test]
    fn counts_of_the_cifar_networks_are_the_papers() {
        for (name, expected) in [
            ("resnet20_cifar", 0.27),
            ("resnet32_cifar", 0.46),
            ("resnet44_cifar", 0.66),
            ("resnet56_cifar", 0.85),
            ("resnet110_cifar", 1.7),
            ("resnet1202_cifar", 19.4),
        ] {
            let millions = super::count(&zoo::arch(name).unwrap().graph().unwrap()) as f64 / 1e6;
            assert!((millions - expected).abs() < 0.05, "{name}: {millions}");
        }
    }
}
