//! VGG (Simonyan and Zisserman 2014, arXiv 1409.1556), with the module names of torchvision's `vgg.py`.

use crate::Result;
use crate::arch::options::EPS;
use crate::arch::{Vgg, VggNorm};
use crate::graph::{AdaptiveAvgPool, Builder, Conv, Graph, PoolSpec};

/// Input size of the head in pixels.
const GRID: [usize; 2] = [7; 2];
/// Features of the hidden layers of the head.
const HIDDEN: usize = 4096;

/// Builds stages of convolutions, adaptive average pooling, three fully connected layers. Taps: `stages.0` … (after pooling),
/// `pooled` (the 4096 features before the last layer) and, with classes, `logits`.
pub(crate) fn graph(net: &Vgg) -> Result<Graph> {
    net.validate()?;
    let (mut g, mut x) = Builder::new(net.in_channels);
    // torchvision numbers all modules in one sequence.
    let mut index = 0;
    let mut next = || {
        index += 1;
        format!("features.{}", index - 1)
    };
    for (i, stage) in net.stages.iter().enumerate() {
        for _ in 0..stage.depth {
            let conv = Conv { bias: true, ..Conv::square(g.channels(x), stage.width, 3) };
            x = g.conv(next(), x, conv);
            if net.norm == VggNorm::Batch {
                x = g.batch_norm(next(), x, EPS);
            }
            x = g.relu(next(), x);
        }
        x = g.max_pool(next(), x, PoolSpec::square(2, 2));
        g.tap(format!("stages.{i}"), x);
    }
    x = g.adaptive_avg_pool("avgpool", x, AdaptiveAvgPool { output: GRID });
    x = g.flatten("flatten", x, GRID);
    for (linear, relu) in [("classifier.0", "classifier.1"), ("classifier.3", "classifier.4")] {
        x = g.linear(linear, x, HIDDEN);
        x = g.relu(relu, x);
    }
    g.tap("pooled", x);
    if net.num_classes > 0 {
        x = g.linear("classifier.6", x, net.num_classes);
        g.tap("logits", x);
    }
    Ok(g.finish())
}
