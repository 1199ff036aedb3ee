//! Pre-activation residual networks (He et al. 2016, arXiv 1603.05027) and BiT (arXiv 1912.11370), with the module names
//! of timm's `resnetv2.py`.

use super::blocks::{avg_pool_2x2_ceil, avg_pool_2x2_same, norm};
use super::head::{Head, head};
use crate::Result;
use crate::arch::{Block, ProjectionV2, ResNetV2, StageV2, StemV2, StrideIn};
use crate::graph::{Builder, Conv, Graph, LinearForm, NodeId, Op, Pad, PoolSpec, StdConv};

/// Builds stem, stages of blocks, norm, global pooling and head. Taps: `stem`, `stages.0` …, `pooled` and, with a head,
/// `logits`.
pub(crate) fn graph(net: &ResNetV2) -> Result<Graph> {
    net.validate()?;
    let (mut g, input) = Builder::new(net.in_channels);
    let mut x = stem(&mut g, net, input);
    g.tap("stem", x);
    let mut image_stride = net.stem.stride();
    let mut dilation = 1;
    for (i, &stage) in net.stages.iter().enumerate() {
        let mut stage_stride = if i > 0 { 2 } else { 1 };
        // Beyond the output stride, dilation replaces the stride.
        if net.output_stride.is_some_and(|limit| image_stride >= limit) {
            dilation *= stage_stride;
            stage_stride = 1;
        }
        image_stride *= stage_stride;
        for j in 0..stage.depth {
            let first = j == 0;
            let block = BlockSpec {
                name: format!("stages.{i}.blocks.{j}"),
                stage,
                stride: if first { stage_stride } else { 1 },
                // The rule of timm, which differs from the previous stage's dilation for dilations of 4 and more.
                first_dilation: match first {
                    true if dilation <= 2 => 1,
                    true => 2,
                    false => dilation,
                },
                dilation,
                first,
            };
            x = residual_block(&mut g, net, x, &block);
        }
        g.tap(format!("stages.{i}"), x);
    }
    x = norm_relu(&mut g, net, "norm", x);
    let form = LinearForm::Pointwise;
    head(&mut g, x, &Head { pool: net.pool, name: "head.fc", form, classes: net.num_classes });
    Ok(g.finish())
}

/// Adds a convolution, with weight standardization if the network uses it.
fn conv(g: &mut Builder, net: &ResNetV2, name: &str, x: NodeId, conv: Conv) -> NodeId {
    match net.standardize {
        None => g.conv(name, x, conv),
        Some(eps) => g.push(name, Op::StdConv(StdConv { conv, eps }), &[x]),
    }
}

/// Adds a norm, and a ReLU unless the norm includes an activation.
fn norm_relu(g: &mut Builder, net: &ResNetV2, name: &str, x: NodeId) -> NodeId {
    let x = norm(g, name, x, net.norm, net.norm_eps);
    match net.norm.activates() {
        true => x,
        false => g.relu(format!("{name}.act"), x),
    }
}

fn stem(g: &mut Builder, net: &ResNetV2, x: NodeId) -> NodeId {
    let c = net.in_channels;
    let x = match net.stem {
        StemV2::Conv7 { width } | StemV2::Conv7ZeroPadded { width } => {
            conv(g, net, "stem.conv", x, Conv { stride: [2; 2], ..Conv::square(c, width, 7) })
        }
        StemV2::NormConv7 { width } => {
            let x = norm(g, "stem.norm0", x, net.norm, net.norm_eps);
            let x = conv(g, net, "stem.conv", x, Conv { stride: [2; 2], ..Conv::square(c, width, 7) });
            norm_relu(g, net, "stem.norm1", x)
        }
        StemV2::Conv3 { width } => conv(g, net, "stem.conv", x, Conv::square(c, width, 3)),
        StemV2::Deep { widths: [first, second, third] } => {
            let x = conv(g, net, "stem.conv1", x, Conv { stride: [2; 2], ..Conv::square(c, first, 3) });
            let x = norm_relu(g, net, "stem.norm1", x);
            let x = conv(g, net, "stem.conv2", x, Conv::square(first, second, 3));
            let x = norm_relu(g, net, "stem.norm2", x);
            conv(g, net, "stem.conv3", x, Conv::square(second, third, 3))
        }
    };
    match net.stem {
        StemV2::Conv3 { .. } => x,
        StemV2::Conv7ZeroPadded { .. } => {
            let x = g.pad("stem.pad", x, Pad { before: [1; 2], after: [1; 2] });
            g.max_pool("stem.pool", x, PoolSpec::square(3, 2))
        }
        StemV2::Conv7 { .. } | StemV2::NormConv7 { .. } | StemV2::Deep { .. } => {
            g.max_pool("stem.pool", x, PoolSpec { padding: [1; 2], ..PoolSpec::square(3, 2) })
        }
    }
}

/// The options of one block.
struct BlockSpec {
    name: String,
    stage: StageV2,
    stride: usize,
    /// Dilation of the first 3×3 convolution of the block.
    first_dilation: usize,
    /// Dilation of later 3×3 convolutions.
    dilation: usize,
    /// If `true`, the block is the first of its stage.
    first: bool,
}

fn residual_block(g: &mut Builder, net: &ResNetV2, input: NodeId, block: &BlockSpec) -> NodeId {
    let name = &block.name;
    let (in_channels, out) = (g.channels(input), block.stage.channels);
    let inner = net.inner_width(block.stage);
    let stride = [block.stride; 2];
    let dilated = |conv: Conv, dilation| Conv { dilation: [dilation; 2], padding: [dilation; 2], ..conv };
    let (convs, projects) = match net.block {
        Block::Basic => {
            let one = Conv { stride, ..Conv::square(in_channels, inner, 3) };
            let two = dilated(Conv::square(inner, out, 3), block.dilation);
            let differs = block.stride != 1 || block.first_dilation != block.dilation || in_channels != out;
            (vec![dilated(one, block.first_dilation), two], block.first && differs)
        }
        Block::Bottleneck => {
            let (in_first, in_second) = match net.stride_in {
                StrideIn::Conv1x1 => (stride, [1; 2]),
                StrideIn::Conv3x3 => ([1; 2], stride),
            };
            let two = Conv { stride: in_second, ..Conv::square(inner, inner, 3) };
            let convs = vec![
                Conv { stride: in_first, ..Conv::square(in_channels, inner, 1) },
                dilated(two, block.first_dilation),
                Conv::square(inner, out, 1),
            ];
            (convs, block.first)
        }
    };
    // timm registers the projection before the norm that it reads.
    let position = g.reserve();
    let active = norm_relu(g, net, &format!("{name}.norm1"), input);
    let shortcut = match projects {
        true => projection(g, net, active, block),
        false => input,
    };
    if projects {
        g.register_at(shortcut, position);
    }
    let mut x = active;
    for (i, spec) in convs.iter().enumerate() {
        let n = i + 1;
        if n > 1 {
            x = norm_relu(g, net, &format!("{name}.norm{n}"), x);
        }
        x = conv(g, net, &format!("{name}.conv{n}"), x, *spec);
    }
    g.add(format!("{name}.add"), x, shortcut)
}

fn projection(g: &mut Builder, net: &ResNetV2, x: NodeId, block: &BlockSpec) -> NodeId {
    let pool = format!("{}.downsample.pool", block.name);
    let (x, stride) = match (net.projection, block.stride, block.dilation) {
        (ProjectionV2::Conv, stride, _) => (x, stride),
        (ProjectionV2::AvgConv, 1, 1) => (x, 1),
        (ProjectionV2::AvgConv, 1, _) => (avg_pool_2x2_same(g, &pool, x), 1),
        (ProjectionV2::AvgConv, _, _) => (g.avg_pool(pool, x, avg_pool_2x2_ceil()), 1),
    };
    let spec = Conv { stride: [stride; 2], ..Conv::square(g.channels(x), block.stage.channels, 1) };
    conv(g, net, &format!("{}.downsample.conv", block.name), x, spec)
}
