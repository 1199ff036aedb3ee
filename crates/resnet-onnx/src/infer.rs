//! Infers candidate architectures from the blocks of a foreign graph; [`compare`](super::compare) verifies them.

mod blocks;
mod stem;

use resnet_model::arch::{
    Arch, Attention, Block, GlobalPool, Norm, Padding, ProjectionV2, PrunedStage, ResNet, ResNetV2, Shortcut,
    Stage, StageV2, StrideIn, Vgg, VggNorm, VggStage,
};
use resnet_model::graph::{Linear, Op};

use self::blocks::{Body, Unit};
use super::canonical::CanonicalNode;

/// Maximum number of blocks.
const MAX_BLOCKS: usize = 10_000;

/// A foreign graph in canonical form.
#[derive(Clone, Copy)]
pub(crate) struct Foreign<'a> {
    pub(crate) items: &'a [CanonicalNode],
    /// Epsilon of the norms, if they were kept.
    pub(crate) eps: Option<f64>,
    /// If `true`, batch norms were kept.
    pub(crate) norms: bool,
}

impl<'a> Foreign<'a> {
    fn item(&self, i: usize) -> Option<&'a CanonicalNode> {
        self.items.get(i)
    }

    fn input(&self, i: usize) -> Option<usize> {
        self.item(i)?.inputs.first().copied()
    }
}

/// Pooling and classifier after the last feature map.
struct Head {
    pool: GlobalPool,
    classes: usize,
    /// Index of the node of the last feature map.
    features: usize,
}

/// Returns candidate architectures, the likeliest first.
pub(crate) fn candidates(net: Foreign) -> Vec<Arch> {
    let mut found = Vec::new();
    if let Some(vgg) = vgg(net) {
        found.push(Arch::Vgg(vgg));
    }
    if let Some(head) = head(net) {
        if let Some(body) = blocks::post_activation(net, head.features) {
            found.extend(resnets(net, &head, &body));
        }
        if let Some(body) = blocks::pre_activation(net, head.features) {
            found.extend(resnet_v2(net, &head, &body).map(Arch::ResNetV2));
        }
        if let Some(body) = blocks::plain(net, head.features) {
            found.extend(plain(net, &head, &body));
        }
    }
    found
}

fn head(net: Foreign) -> Option<Head> {
    let last = net.items.len().checked_sub(1)?;
    let (classes, pooled) = match net.item(last)?.op {
        Op::Linear(Linear { out_features, .. }) => (out_features, net.input(last)?),
        _ => (0, last),
    };
    let item = net.item(pooled)?;
    let both = |item: &CanonicalNode| {
        let &[a, b] = item.inputs.as_slice() else { return None };
        (net.input(a)? == net.input(b)?).then(|| net.input(a))?
    };
    let (pool, features) = match &item.op {
        Op::GlobalAvgPool => (GlobalPool::Avg, net.input(pooled)?),
        Op::GlobalMaxPool => (GlobalPool::Max, net.input(pooled)?),
        Op::Multiply(_) => (GlobalPool::AvgMax, both(net.item(net.input(pooled)?)?)?),
        Op::Concat => (GlobalPool::CatAvgMax, both(item)?),
        _ => return None,
    };
    Some(Head { pool, classes, features })
}

/// Returns the block type with the number of convolutions of `unit`.
fn kind(unit: &Unit) -> Option<Block> {
    match unit.convs.len() {
        2 => Some(Block::Basic),
        3 => Some(Block::Bottleneck),
        _ => None,
    }
}

/// Splits blocks into stages at a change of stride, channels or dilation.
fn stages(units: &[Unit]) -> Vec<&[Unit]> {
    units
        .chunk_by(|before, unit| {
            unit.stride() == 1 && unit.out() == before.out() && unit.last_dilation() == before.last_dilation()
        })
        .collect()
}

/// Returns the output stride if stages are dilated.
fn output_stride(stem: usize, stages: &[&[Unit]]) -> Option<usize> {
    let mut stride = stem;
    let dilated = stages.iter().skip(1).find(|stage| {
        let first = stage.first().map_or(1, Unit::stride);
        stride = stride.saturating_mul(first);
        first == 1
    });
    let dilation = stages.last().and_then(|s| s.last()).map_or(1, Unit::last_dilation);
    (dilated.is_some() || dilation > 1).then_some(stride)
}

fn stride_in(units: &[Unit]) -> StrideIn {
    let first = units.iter().filter(|u| u.convs.len() == 3).find(|u| u.stride() > 1);
    match first.and_then(|u| u.convs.first()).is_some_and(|c| c.stride != [1; 2]) {
        true => StrideIn::Conv1x1,
        false => StrideIn::Conv3x3,
    }
}

fn norm(net: Foreign) -> Norm {
    match net.items.iter().any(|i| matches!(i.op, Op::GroupNorm(_))) {
        true => Norm::Group,
        false => Norm::Batch,
    }
}

/// Returns the ResNets that the blocks match; several if the SE reduction is ambiguous.
fn resnets(net: Foreign, head: &Head, body: &Body) -> Vec<Arch> {
    let attentions: Vec<Attention> = match body.units.iter().find_map(|u| u.attention) {
        None => vec![Attention::None],
        Some(blocks::Gate::ChannelConv) => vec![Attention::Eca],
        // Common reductions first.
        Some(blocks::Gate::Linear) => {
            let rest = (1..=64).filter(|r| ![16, 4, 8].contains(r));
            [16, 4, 8].into_iter().chain(rest).map(|reduction| Attention::Se { reduction }).collect()
        }
    };
    let Some(base) = resnet(net, head, body) else { return vec![] };
    attentions.into_iter().map(|attention| Arch::ResNet(ResNet { attention, ..base.clone() })).collect()
}

fn resnet(net: Foreign, head: &Head, body: &Body) -> Option<ResNet> {
    let stem = stem::resnet(net, body.start)?;
    let units = &body.units;
    let groups_of = stages(units);
    let grouped = units.iter().find(|u| u.convs.len() == 3);
    let groups = grouped.and_then(|u| u.convs.get(1)).map_or(1, |c| c.groups);
    let mut stages = Vec::new();
    let mut pruned = Vec::new();
    let (mut group_width, mut first_reduction) = (64, 1);
    let mut regular = true;
    for units in &groups_of {
        let first = units.first()?;
        let block = kind(first)?;
        let width = match block {
            Block::Basic => first.out(),
            Block::Bottleneck => first.out().div_ceil(4),
        };
        stages.push(Stage { block, depth: units.len(), width });
        let mut inner = Vec::new();
        for unit in *units {
            let (first, second) = (unit.convs.first()?.out_channels, unit.convs.get(1)?.out_channels);
            inner.push([first, second]);
            if block == Block::Bottleneck {
                // Inner width = width · group_width / 64 · groups.
                let scaled = second.checked_mul(64)?.checked_div(width.checked_mul(groups)?)?;
                if stages.len() == 1 && inner.len() == 1 {
                    (group_width, first_reduction) = (scaled, second.checked_div(first)?.max(1));
                }
                let expected = width.checked_mul(group_width)?.div_euclid(64).checked_mul(groups)?;
                regular &= expected == second && first.checked_mul(first_reduction) == Some(second);
                regular &= width.checked_mul(4) == Some(unit.out());
            }
        }
        pruned.push(PrunedStage { out: first.out(), inner });
    }
    let pruned = if regular { vec![] } else { pruned };
    if !pruned.is_empty() {
        (group_width, first_reduction) = (64, 1);
    }
    Some(ResNet {
        stem: stem.stem,
        stem_pool: stem.pool,
        padding: match (stem.padding, units.iter().any(Unit::pads)) {
            // The padding of a stem without pool and stride is ambiguous.
            (Padding::Symmetric, true) if stem.stem.stride() == 1 => Padding::OneSided,
            (_, true) if stem.padding != Padding::OneSided => Padding::OneSidedBlocks,
            (padding, _) => padding,
        },
        anti_alias: stem.anti_alias.or(body.anti_alias()).unwrap_or_default(),
        shortcut: shortcut(units)?,
        stride_in: stride_in(units),
        groups,
        group_width,
        first_reduction,
        norm: norm(net),
        norm_eps: net.eps.unwrap_or(ResNet::imagenet(Block::Basic, &[]).norm_eps),
        pruned,
        pool: head.pool,
        output_stride: output_stride(stem.stem.stride(), &groups_of),
        in_channels: net.item(0)?.channels,
        num_classes: head.classes,
        stages,
        ..ResNet::imagenet(Block::Basic, &[])
    })
}

fn shortcut(units: &[Unit]) -> Option<Shortcut> {
    let ops = || units.iter().flat_map(|u| &u.shortcut);
    let any = |predicate: fn(&Op) -> bool| ops().any(predicate);
    let always_projects = units.iter().any(|u| {
        u.projects() && u.stride() == 1 && u.first_dilation() == u.last_dilation() && u.input() == u.out()
    });
    Some(match () {
        () if any(|op| matches!(op, Op::AvgPool(_))) => Shortcut::AvgProjection,
        () if any(|op| matches!(op, Op::Conv(c) if c.kernel == [3; 2])) => Shortcut::Projection3x3,
        () if any(|op| matches!(op, Op::PadChannels(_) | Op::Subsample(_))) => Shortcut::ZeroPad,
        () if always_projects => Shortcut::ProjectionAll,
        () => Shortcut::Projection,
    })
}

fn resnet_v2(net: Foreign, head: &Head, body: &Body) -> Option<ResNetV2> {
    let stem = stem::resnet_v2(net, body.start)?;
    let units = &body.units;
    let groups_of = stages(units);
    let block = kind(units.first()?)?;
    let mean = units.iter().flat_map(|u| &u.shortcut).any(|op| matches!(op, Op::AvgPool(_)));
    let stage = |units: &&[Unit]| Some(StageV2 { depth: units.len(), channels: units.first()?.out() });
    Some(ResNetV2 {
        stem,
        block,
        stages: groups_of.iter().map(stage).collect::<Option<_>>()?,
        projection: if mean { ProjectionV2::AvgConv } else { ProjectionV2::Conv },
        stride_in: stride_in(units),
        norm: norm(net),
        norm_eps: net.eps.unwrap_or(ResNetV2::imagenet(block, &[]).norm_eps),
        pool: head.pool,
        output_stride: output_stride(stem.stride(), &groups_of),
        in_channels: net.item(0)?.channels,
        num_classes: head.classes,
        ..ResNetV2::imagenet(block, &[])
    })
}

/// Returns a network without shortcuts, with blocks of two or three convolutions.
fn plain(net: Foreign, head: &Head, body: &Body) -> Option<Arch> {
    let unit = body.units.first()?;
    let size = if unit.convs.iter().any(|c| c.kernel == [1; 2]) { 3 } else { 2 };
    let (convs, start) = blocks::plain_convs(net, head.features)?;
    let units: Vec<Unit> = convs.chunks(size).map(|convs| Unit::plain(convs.to_vec())).collect();
    let base = resnet(net, head, &Body { units, start })?;
    Some(Arch::ResNet(ResNet { shortcut: Shortcut::None, ..base }))
}

fn vgg(net: Foreign) -> Option<Vgg> {
    net.items.iter().find(|i| matches!(i.op, Op::Flatten(_)))?;
    let last = net.items.last()?;
    let mut stages = Vec::new();
    let (mut depth, mut width) = (0usize, 0);
    for item in net.items {
        match &item.op {
            Op::Conv(conv) => (depth, width) = (depth.saturating_add(1), conv.out_channels),
            Op::MaxPool(_) => {
                stages.push(VggStage { depth, width });
                depth = 0;
            }
            _ => {}
        }
    }
    // A network without a classifier ends with a ReLU.
    let num_classes = match last.op {
        Op::Linear(linear) => linear.out_features,
        _ => 0,
    };
    let norm = if net.norms { VggNorm::Batch } else { VggNorm::None };
    Some(Vgg { stages, norm, in_channels: net.item(0)?.channels, num_classes })
}
