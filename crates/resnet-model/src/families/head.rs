//! The classification head: global pooling and a fully connected layer.

use crate::arch::GlobalPool;
use crate::graph::{Builder, LinearForm, NodeId};

/// The head of a network.
pub(super) struct Head {
    /// The global pooling.
    pub(super) pool: GlobalPool,
    /// The name of the fully connected layer.
    pub(super) name: &'static str,
    /// The stored shape of its weight.
    pub(super) form: LinearForm,
    /// Number of classes; 0 = no fully connected layer.
    pub(super) classes: usize,
}

impl Default for Head {
    fn default() -> Self {
        Head { pool: GlobalPool::Avg, name: "fc", form: LinearForm::Matrix, classes: 0 }
    }
}

/// Adds the head. Taps: `pooled` and, with classes, `logits`.
pub(super) fn head(g: &mut Builder, x: NodeId, head: &Head) -> NodeId {
    let mut x = global_pool(g, x, head.pool);
    g.tap("pooled", x);
    if head.classes > 0 {
        x = match head.form {
            LinearForm::Matrix => g.linear(head.name, x, head.classes),
            LinearForm::Pointwise => g.pointwise(head.name, x, head.classes),
        };
        g.tap("logits", x);
    }
    x
}

fn global_pool(g: &mut Builder, x: NodeId, pool: GlobalPool) -> NodeId {
    match pool {
        GlobalPool::Avg => g.global_avg_pool("avgpool", x),
        GlobalPool::Max => g.global_max_pool("maxpool_all", x),
        GlobalPool::AvgMax => {
            let (mean, max) = (g.global_avg_pool("avgpool", x), g.global_max_pool("maxpool_all", x));
            let sum = g.add("avgmax.add", mean, max);
            g.multiply("avgmax", sum, 0.5)
        }
        GlobalPool::CatAvgMax => {
            let (mean, max) = (g.global_avg_pool("avgpool", x), g.global_max_pool("maxpool_all", x));
            g.concat("catavgmax", &[mean, max])
        }
    }
}
