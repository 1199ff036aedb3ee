//! CLIP's residual networks (Radford et al. 2021, arXiv 2103.00020), with the module names of timm's `byobnet.py`.

use super::blocks::{avg_pool_2x2, avg_pool_2x2_ceil, avg_pool_2x2_same};
use super::head::{Head, head};
use crate::Result;
use crate::arch::options::EPS;
use crate::arch::{Clip, ClipHead};
use crate::graph::{AttentionPool, Builder, Conv, Graph, NodeId, Op};

/// Builds stem, stages of bottleneck blocks, attention or global pooling, last layer. Taps: `stem`, `stages.0` …, `pooled`
/// and, with a last layer, `logits` (CLIP's embedding).
pub(crate) fn graph(net: &Clip) -> Result<Graph> {
    net.validate()?;
    let (mut g, mut x) = Builder::new(net.in_channels);
    for (n, (stride, out)) in [(2, net.width / 2), (1, net.width / 2), (1, net.width)].into_iter().enumerate()
    {
        let conv = Conv { stride: [stride; 2], ..Conv::square(g.channels(x), out, 3) };
        x = conv_norm_relu(&mut g, &format!("stem.conv{}", n + 1), x, conv);
    }
    x = g.avg_pool("stem.pool", x, avg_pool_2x2());
    g.tap("stem", x);
    let (mut image_stride, mut dilation) = (4, 1);
    for (i, &depth) in net.depths.iter().enumerate() {
        let mut stage_stride = if i > 0 { 2 } else { 1 };
        // Beyond the output stride, dilation replaces the stride.
        if net.output_stride.is_some_and(|limit| image_stride >= limit) {
            dilation *= stage_stride;
            stage_stride = 1;
        }
        image_stride *= stage_stride;
        for j in 0..depth {
            let block = BlockSpec {
                name: format!("stages.{i}.{j}"),
                out: net.channels(i),
                stride: if j == 0 { stage_stride } else { 1 },
                // The rule of timm, which differs from the previous stage's dilation for dilations of 4 and more.
                first_dilation: match j {
                    0 if dilation <= 2 => 1,
                    0 => 2,
                    _ => dilation,
                },
                dilation,
            };
            x = residual_block(&mut g, x, &block);
        }
        g.tap(format!("stages.{i}"), x);
    }
    match net.head {
        ClipHead::Attention { grid } => {
            let heads = g.channels(x) / crate::arch::HEAD_CHANNELS;
            x = g.push("head", Op::AttentionPool(AttentionPool { heads, grid }), &[x]);
            g.tap("pooled", x);
            if net.num_classes > 0 {
                x = g.linear("head.proj", x, net.num_classes);
                g.tap("logits", x);
            }
        }
        ClipHead::Global { pool } => {
            head(&mut g, x, &Head { pool, name: "head.fc", classes: net.num_classes, ..Head::default() });
        }
    }
    Ok(g.finish())
}

/// The options of one block.
struct BlockSpec {
    name: String,
    out: usize,
    stride: usize,
    /// Dilation of the 3×3 convolution.
    first_dilation: usize,
    /// Dilation of the later blocks of the stage.
    dilation: usize,
}

fn conv_norm(g: &mut Builder, name: &str, x: NodeId, conv: Conv) -> NodeId {
    let x = g.conv(format!("{name}.conv"), x, conv);
    g.batch_norm(format!("{name}.bn"), x, EPS)
}

fn conv_norm_relu(g: &mut Builder, name: &str, x: NodeId, conv: Conv) -> NodeId {
    let x = conv_norm(g, name, x, conv);
    g.relu(format!("{name}.act"), x)
}

fn residual_block(g: &mut Builder, input: NodeId, block: &BlockSpec) -> NodeId {
    let name = &block.name;
    let (in_channels, inner) = (g.channels(input), block.out / 4);
    let shortcut = shortcut(g, input, block);
    let dilation = [block.first_dilation; 2];
    let middle = Conv { dilation, padding: dilation, ..Conv::square(inner, inner, 3) };
    let x = conv_norm_relu(g, &format!("{name}.conv1_1x1"), input, Conv::square(in_channels, inner, 1));
    let mut x = conv_norm_relu(g, &format!("{name}.conv2_kxk"), x, middle);
    if block.stride > 1 {
        x = g.avg_pool(format!("{name}.conv2_kxk.aa"), x, avg_pool_2x2());
    }
    let x = conv_norm(g, &format!("{name}.conv3_1x1"), x, Conv::square(inner, block.out, 1));
    let x = g.add(format!("{name}.add"), x, shortcut);
    g.relu(format!("{name}.act"), x)
}

/// Returns the input, or adds average pooling and a 1×1 projection if the shapes differ.
fn shortcut(g: &mut Builder, input: NodeId, block: &BlockSpec) -> NodeId {
    let in_channels = g.channels(input);
    if block.stride == 1 && in_channels == block.out && block.first_dilation == block.dilation {
        return input;
    }
    let pool = format!("{}.shortcut.pool", block.name);
    let x = match (block.stride, block.first_dilation) {
        (1, 1) => input,
        (1, _) => avg_pool_2x2_same(g, &pool, input),
        _ => g.avg_pool(pool, input, avg_pool_2x2_ceil()),
    };
    conv_norm(g, &format!("{}.shortcut.conv", block.name), x, Conv::square(in_channels, block.out, 1))
}
