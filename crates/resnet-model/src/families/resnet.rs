//! Residual networks (He et al. 2015, arXiv 1512.03385), with the module names of torchvision's and timm's
//! `resnet.py`, and plain networks with the same layers.

use super::blocks::{attention, avg_pool_2x2, avg_pool_2x2_ceil, avg_pool_2x2_same, norm};
use super::head::{Head, head};
use crate::Result;
use crate::arch::{AntiAlias, Block, ResNet, Shortcut, Stage, Stem, StemPool, StrideIn};
use crate::graph::{Builder, Conv, Graph, NodeId, Pad, PadChannels, PoolSpec};

/// Builds stem, stages of blocks, global pooling and linear head. Taps: `stem`, `layer1` …, `pooled` and, with a head,
/// `logits`.
pub(crate) fn graph(net: &ResNet) -> Result<Graph> {
    net.validate()?;
    let (mut g, input) = Builder::new(net.in_channels);
    let mut x = stem(&mut g, net, input);
    g.tap("stem", x);
    let mut image_stride = net.stem.stride();
    let (mut dilation, mut previous_dilation) = (1, 1);
    for (i, &stage) in net.stages.iter().enumerate() {
        let mut stage_stride = if i > 0 { 2 } else { 1 };
        // Beyond the output stride, dilation replaces the stride.
        if net.output_stride.is_some_and(|limit| image_stride >= limit) {
            dilation *= stage_stride;
            stage_stride = 1;
        }
        image_stride *= stage_stride;
        for j in 0..stage.depth {
            let pruned = net.pruned.get(i);
            let inner = net.inner_width(stage);
            let block = BlockSpec {
                name: format!("layer{}.{j}", i + 1),
                stage,
                stride: if j == 0 { stage_stride } else { 1 },
                first_dilation: previous_dilation,
                dilation,
                inner: pruned.map_or([inner / net.first_reduction, inner], |p| p.inner[j]),
                out: pruned.map_or(stage.out_channels(), |p| p.out),
            };
            x = residual_block(&mut g, net, x, &block);
            previous_dilation = dilation;
        }
        g.tap(format!("layer{}", i + 1), x);
    }
    head(&mut g, x, &Head { pool: net.pool, name: "fc", classes: net.num_classes, ..Head::default() });
    Ok(g.finish())
}

fn stem(g: &mut Builder, net: &ResNet, x: NodeId) -> NodeId {
    let one_sided = net.padding.one_sided_stem();
    let x = match net.stem {
        Stem::Conv7 { width } => {
            let conv = Conv { stride: [2; 2], ..Conv::square(net.in_channels, width, 7) };
            padded_conv(g, "conv1", x, conv, one_sided)
        }
        Stem::Conv3 { width } => g.conv("conv1", x, Conv::square(net.in_channels, width, 3)),
        Stem::Deep { widths: [first, second, third] } => {
            let conv = Conv { stride: [2; 2], ..Conv::square(net.in_channels, first, 3) };
            let x = padded_conv(g, "conv1.0", x, conv, one_sided);
            let x = norm(g, "conv1.1", x, net.norm, net.norm_eps);
            let x = g.relu("conv1.2", x);
            let x = g.conv("conv1.3", x, Conv::square(first, second, 3));
            let x = norm(g, "conv1.4", x, net.norm, net.norm_eps);
            let x = g.relu("conv1.5", x);
            g.conv("conv1.6", x, Conv::square(second, third, 3))
        }
    };
    let x = norm(g, "bn1", x, net.norm, net.norm_eps);
    let x = g.relu("relu", x);
    match (net.stem, net.stem_pool, net.anti_alias) {
        (Stem::Conv3 { .. }, _, _) => x,
        (_, StemPool::Conv, anti_alias) => {
            let width = net.stem.width();
            let stride = if anti_alias == AntiAlias::None { 2 } else { 1 };
            let x = g.conv("maxpool.0", x, Conv { stride: [stride; 2], ..Conv::square(width, width, 3) });
            let (x, next) = match anti_alias {
                AntiAlias::None => (x, 1),
                _ => (low_pass(g, "maxpool.1", x, anti_alias, 2), 2),
            };
            let x = norm(g, &format!("maxpool.{next}"), x, net.norm, net.norm_eps);
            g.relu(format!("maxpool.{}", next + 1), x)
        }
        (_, StemPool::Max, AntiAlias::None) if net.padding.one_sided_pool() => {
            // The input of the pooling is not negative, so zero padding does not change the maximum.
            let x = g.pad("maxpool.pad", x, Pad { before: [0; 2], after: [1; 2] });
            g.max_pool("maxpool", x, PoolSpec::square(3, 2))
        }
        (_, StemPool::Max, AntiAlias::None) => {
            g.max_pool("maxpool", x, PoolSpec { padding: [1; 2], ..PoolSpec::square(3, 2) })
        }
        (_, StemPool::Max, AntiAlias::Avg) => low_pass(g, "maxpool", x, AntiAlias::Avg, 2),
        (_, StemPool::Max, AntiAlias::Blur) => {
            let x = g.max_pool("maxpool.0", x, PoolSpec { padding: [1; 2], ..PoolSpec::square(3, 1) });
            low_pass(g, "maxpool.1", x, AntiAlias::Blur, 2)
        }
    }
}

/// Adds a convolution, whose padding may be one-sided if it has a stride.
fn padded_conv(g: &mut Builder, name: &str, x: NodeId, conv: Conv, one_sided: bool) -> NodeId {
    let padding = conv.kernel[0].saturating_sub(conv.stride[0]);
    if !one_sided || conv.stride == [1; 2] || padding == 0 {
        return g.conv(name, x, conv);
    }
    let pad = Pad { before: [padding / 2; 2], after: [padding.div_ceil(2); 2] };
    let x = g.pad(format!("{name}.pad"), x, pad);
    g.conv(name, x, Conv { padding: [0; 2], ..conv })
}

/// Adds the strided filter of anti-aliased networks.
fn low_pass(g: &mut Builder, name: &str, x: NodeId, anti_alias: AntiAlias, stride: usize) -> NodeId {
    match (anti_alias, stride) {
        // The windows of timm are as large as the stride.
        (AntiAlias::None, _) | (AntiAlias::Avg, 1) => x,
        (AntiAlias::Avg, _) => g.avg_pool(name, x, avg_pool_2x2()),
        (AntiAlias::Blur, stride) => g.blur(name, x, stride),
    }
}

/// The options of one block.
struct BlockSpec {
    name: String,
    stage: Stage,
    stride: usize,
    /// Dilation of the first 3×3 convolution of the block.
    first_dilation: usize,
    /// Dilation of later 3×3 convolutions.
    dilation: usize,
    /// Output channels of the first and second convolution; a basic block uses only the first.
    inner: [usize; 2],
    out: usize,
}

fn residual_block(g: &mut Builder, net: &ResNet, input: NodeId, block: &BlockSpec) -> NodeId {
    let name = &block.name;
    let filtered =
        net.anti_alias != AntiAlias::None && (block.stride == 2 || block.first_dilation != block.dilation);
    let stride = if filtered { [1; 2] } else { [block.stride; 2] };
    let in_channels = g.channels(input);
    let [first, second] = block.inner;
    let dilated = |conv: Conv, dilation| Conv { dilation: [dilation; 2], padding: [dilation; 2], ..conv };
    // The convolutions, and the number of the one before the anti-aliasing filter.
    let (convs, filter_after) = match block.stage.block {
        Block::Basic => {
            let one = Conv { stride, ..Conv::square(in_channels, first, 3) };
            let two = Conv::square(first, block.out, 3);
            (vec![dilated(one, block.first_dilation), dilated(two, block.dilation)], 1)
        }
        Block::Bottleneck => {
            let (in_first, in_second) = match net.stride_in {
                StrideIn::Conv1x1 => (stride, [1; 2]),
                StrideIn::Conv3x3 => ([1; 2], stride),
            };
            let two = Conv { stride: in_second, groups: net.groups, ..Conv::square(first, second, 3) };
            let convs = vec![
                Conv { stride: in_first, ..Conv::square(in_channels, first, 1) },
                dilated(two, block.first_dilation),
                Conv::square(second, block.out, 1),
            ];
            (convs, 2)
        }
    };
    let mut x = input;
    for (i, conv) in convs.iter().enumerate() {
        let n = i + 1;
        x = padded_conv(g, &format!("{name}.conv{n}"), x, *conv, net.padding.one_sided_blocks());
        x = norm(g, &format!("{name}.bn{n}"), x, net.norm, net.norm_eps);
        if n < convs.len() {
            x = g.relu(format!("{name}.relu{n}"), x);
        }
        if n == filter_after && filtered {
            x = low_pass(g, &format!("{name}.aa"), x, net.anti_alias, block.stride);
        }
    }
    x = attention(g, &format!("{name}.se"), x, net.attention, block.stage.out_channels());
    if let Some(shortcut) = shortcut(g, net, input, block) {
        x = g.add(format!("{name}.add"), x, shortcut);
    }
    g.relu(format!("{name}.relu"), x)
}

/// Adds the shortcut; returns `None` in plain networks.
fn shortcut(g: &mut Builder, net: &ResNet, input: NodeId, block: &BlockSpec) -> Option<NodeId> {
    let (in_channels, out) = (g.channels(input), block.out);
    let same = block.stride == 1 && in_channels == out;
    let name = format!("{}.downsample", block.name);
    let plain = Conv { stride: [block.stride; 2], ..Conv::square(in_channels, out, 1) };
    match net.shortcut {
        Shortcut::None => return None,
        Shortcut::ProjectionAll => {}
        _ if same => return Some(input),
        _ => {}
    }
    let (x, conv, index) = match net.shortcut {
        Shortcut::None => return None,
        Shortcut::ZeroPad => {
            let x = match block.stride {
                1 => input,
                stride => g.subsample(format!("{name}.subsample"), input, stride),
            };
            let missing = out.saturating_sub(in_channels);
            let pad = PadChannels { before: missing / 2, after: missing - missing / 2 };
            return Some(if missing == 0 { x } else { g.pad_channels(format!("{name}.pad"), x, pad) });
        }
        Shortcut::Projection | Shortcut::ProjectionAll => (input, plain, 0),
        Shortcut::Projection3x3 if block.stride == 1 && block.dilation == 1 => (input, plain, 0),
        Shortcut::Projection3x3 => {
            let dilation = block.first_dilation;
            let padding = (block.stride - 1 + 2 * dilation) / 2;
            let conv = Conv { kernel: [3; 2], dilation: [dilation; 2], padding: [padding; 2], ..plain };
            (input, conv, 0)
        }
        Shortcut::AvgProjection => {
            let pool = format!("{name}.0");
            let x = match (block.stride, block.dilation) {
                (1, 1) => input,
                (1, _) => avg_pool_2x2_same(g, &pool, input),
                _ => g.avg_pool(pool, input, avg_pool_2x2_ceil()),
            };
            (x, Conv { stride: [1; 2], ..plain }, 1)
        }
    };
    let x = g.conv(format!("{name}.{index}"), x, conv);
    Some(norm(g, &format!("{name}.{}", index + 1), x, net.norm, net.norm_eps))
}
