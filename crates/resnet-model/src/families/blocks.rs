//! Layers that several families share.

use crate::arch::options::NORM_GROUPS;
use crate::arch::{Attention, Norm};
use crate::graph::{
    AvgPool, Builder, Divisor, EvoNorm, FilterResponseNorm, GroupNorm, NodeId, Op, Pad, PoolSpec, Rounding,
};

/// Adds the norm.
pub(super) fn norm(g: &mut Builder, name: &str, x: NodeId, norm: Norm, eps: f64) -> NodeId {
    match norm {
        Norm::Batch => g.batch_norm(name, x, eps),
        Norm::Group => g.group_norm(name, x, GroupNorm { groups: NORM_GROUPS, eps }),
        Norm::Evo => g.push(name, Op::EvoNorm(EvoNorm { groups: NORM_GROUPS, eps }), &[x]),
        Norm::FilterResponse => g.push(name, Op::FilterResponseNorm(FilterResponseNorm { eps }), &[x]),
    }
}

/// Adds channel attention. `channels` are those of the unpruned stage, which determine the sizes.
pub(super) fn attention(
    g: &mut Builder,
    name: &str,
    x: NodeId,
    attention: Attention,
    channels: usize,
) -> NodeId {
    let gate = match attention {
        Attention::None => return x,
        Attention::Se { reduction } => {
            let hidden = Attention::hidden(channels, reduction);
            let y = g.global_avg_pool(format!("{name}.mean"), x);
            let y = g.pointwise(format!("{name}.fc1"), y, hidden);
            let y = g.relu(format!("{name}.act"), y);
            let out = g.channels(x);
            g.pointwise(format!("{name}.fc2"), y, out)
        }
        Attention::Eca => {
            let y = g.global_avg_pool(format!("{name}.mean"), x);
            g.channel_conv(format!("{name}.conv"), y, Attention::kernel(channels))
        }
    };
    let gate = g.sigmoid(format!("{name}.gate"), gate);
    g.scale(format!("{name}.scale"), x, gate)
}

/// 2×2 average pooling without the last pixel of an odd size.
pub(super) const fn avg_pool_2x2() -> AvgPool {
    AvgPool { window: PoolSpec::square(2, 2), rounding: Rounding::Floor, divisor: Divisor::Window }
}

/// 2×2 average pooling with `ceil_mode`, without padding in the divisor.
pub(super) const fn avg_pool_2x2_ceil() -> AvgPool {
    AvgPool { window: PoolSpec::square(2, 2), rounding: Rounding::Ceil, divisor: Divisor::Pixels }
}

/// Adds 2×2 average pooling with stride 1 and zeros after the last row and column (timm's `AvgPool2dSame`).
pub(super) fn avg_pool_2x2_same(g: &mut Builder, name: &str, x: NodeId) -> NodeId {
    let x = g.pad(format!("{name}.pad"), x, Pad { before: [0; 2], after: [1; 2] });
    let window = PoolSpec::square(2, 1);
    g.avg_pool(name, x, AvgPool { window, rounding: Rounding::Floor, divisor: Divisor::Window })
}
