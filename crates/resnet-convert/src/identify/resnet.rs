//! Identification of post-activation ResNets and plain networks.

use resnet_model::arch::{
    AntiAlias, Arch, Attention, Block, Norm, PrunedStage, ResNet, Shortcut, Stage, Stem, StemPool,
};

use super::{MAX_BLOCKS, MAX_STAGES, Shapes, count, head};

pub(super) fn identify(shapes: &Shapes) -> Result<Arch, String> {
    let (stem, in_channels) = stem(shapes)?;
    let (stem_pool, anti_alias) = match (shapes.has("maxpool.1.weight"), shapes.has("maxpool.0.weight")) {
        (_, false) => (StemPool::Max, AntiAlias::None),
        (true, true) => (StemPool::Conv, AntiAlias::None),
        // The anti-aliasing layer is between the convolution and its norm.
        (false, true) => (StemPool::Conv, AntiAlias::Avg),
    };
    let norm = match (shapes.has("bn1.weight"), shapes.has("bn1.running_mean")) {
        (true, false) => Norm::Group,
        _ => Norm::Batch,
    };
    let mut stages = Vec::new();
    while stages.len() < MAX_STAGES {
        let Some(stage) = Blocks::read(shapes, stages.len().saturating_add(1))? else { break };
        stages.push(stage);
    }
    let features = stages.last().map_or(0, |s| s.out);
    let (num_classes, pool) = head(shapes, "fc.weight", features)?;
    let net = ResNet {
        stem,
        stem_pool,
        anti_alias,
        norm,
        pool,
        in_channels,
        num_classes,
        ..ResNet::imagenet(Block::Basic, &[])
    };
    let net = widths(net, &stages)?;
    let net = ResNet { shortcut: shortcut(&net, &stages)?, ..net };
    Ok(Arch::ResNet(ResNet { attention: attention(shapes, &net.stages)?, ..net }))
}

fn stem(shapes: &Shapes) -> Result<(Stem, usize), String> {
    if !shapes.has("conv1.0.weight") {
        let [width, channels, kernel, _] = shapes.need("conv1.weight")?;
        return match kernel {
            7 => Ok((Stem::Conv7 { width }, channels)),
            3 => Ok((Stem::Conv3 { width }, channels)),
            k => Err(format!("unsupported stem: {k}×{k} convolution, expected 7×7 or 3×3")),
        };
    }
    let [first, channels, ..] = shapes.need("conv1.0.weight")?;
    let [second, ..] = shapes.need("conv1.3.weight")?;
    let [third, ..] = shapes.need("conv1.6.weight")?;
    Ok((Stem::Deep { widths: [first, second, third] }, channels))
}

/// Blocks of one stage.
struct Blocks {
    block: Block,
    /// Output channels.
    out: usize,
    /// Output channels of each block's first and second convolution.
    inner: Vec<[usize; 2]>,
    /// Groups of the 3×3 convolutions.
    groups: usize,
    projections: Vec<Option<Projection>>,
}

#[derive(Clone, Copy, PartialEq)]
enum Projection {
    Plain,
    /// A 3×3 convolution.
    Wide,
    /// A 1×1 convolution after average pooling.
    Averaged,
}

impl Blocks {
    /// Reads stage `n`, counted from 1; `None` if there is none.
    fn read(shapes: &Shapes, n: usize) -> Result<Option<Blocks>, String> {
        let depth = count(MAX_BLOCKS, |b| shapes.has(&format!("layer{n}.{b}.conv1.weight")));
        if depth == 0 {
            return Ok(None);
        }
        let bottleneck = shapes.has(&format!("layer{n}.0.conv3.weight"));
        let block = if bottleneck { Block::Bottleneck } else { Block::Basic };
        let mut stage = Blocks { block, out: 0, inner: vec![], groups: 1, projections: vec![] };
        for b in 0..depth {
            let conv = |i: usize| shapes.need(&format!("layer{n}.{b}.conv{i}.weight"));
            let ([first, ..], [second, per_group, ..]) = (conv(1)?, conv(2)?);
            stage.inner.push([first, second]);
            stage.out = if bottleneck { conv(3)?[0] } else { second };
            let fits = first.checked_div(per_group).filter(|g| g.checked_mul(per_group) == Some(first));
            stage.groups = fits.ok_or_else(|| {
                format!(
                    "`layer{n}.{b}.conv2.weight` has {per_group} input channels per group, which do not divide {first}"
                )
            })?;
            let down = format!("layer{n}.{b}.downsample");
            let (plain, averaged) =
                (shapes.conv(&format!("{down}.0.weight")), shapes.conv(&format!("{down}.1.weight")));
            stage.projections.push(match (plain, averaged) {
                (Some([_, _, 1, _]), _) => Some(Projection::Plain),
                (Some(_), _) => Some(Projection::Wide),
                (None, Some(_)) => Some(Projection::Averaged),
                (None, None) => None,
            });
        }
        Ok(Some(stage))
    }
}

/// Returns the network with stages, groups and widths.
fn widths(net: ResNet, stages: &[Blocks]) -> Result<ResNet, String> {
    let regular = |s: &Blocks| {
        let width = s.out.checked_div(s.block.expansion())?;
        let whole = width.checked_mul(s.block.expansion()) == Some(s.out);
        let [first, second] = *s.inner.first()?;
        let equal = s.inner.iter().all(|i| *i == [first, second]);
        let basic = s.block == Block::Bottleneck || (first == width && s.groups == 1);
        (whole && equal && basic)
            .then_some((Stage { block: s.block, depth: s.inner.len(), width }, [first, second]))
    };
    let bottlenecks = || stages.iter().filter(|s| s.block == Block::Bottleneck);
    let groups = bottlenecks().next().map_or(1, |s| s.groups);
    if let Some(all) = stages.iter().map(regular).collect::<Option<Vec<_>>>()
        && bottlenecks().all(|s| s.groups == groups)
    {
        let narrow = all.iter().filter(|(s, _)| s.block == Block::Bottleneck);
        let inner: Vec<(usize, [usize; 2])> = narrow.map(|(s, inner)| (s.width, *inner)).collect();
        if let Some((group_width, first_reduction)) = inner_widths(groups, &inner) {
            let stages = all.into_iter().map(|(stage, _)| stage).collect();
            return Ok(ResNet { stages, groups, group_width, first_reduction, ..net });
        }
    }
    if groups != 1 || stages.iter().any(|s| s.block == Block::Basic) {
        return Err("unsupported block widths".into());
    }
    // A pruned network; the widths before pruning are the standard ones.
    let stage = |(i, s): (u32, &Blocks)| Stage {
        block: s.block,
        depth: s.inner.len(),
        width: 64usize.saturating_mul(2usize.saturating_pow(i)),
    };
    let pruned = stages.iter().map(|s| PrunedStage { out: s.out, inner: s.inner.clone() }).collect();
    Ok(ResNet { stages: (0..).zip(stages).map(stage).collect(), pruned, ..net })
}

/// Returns `base_width` and `first_reduction` (timm) that yield the channels of all bottleneck stages, which are passed as
/// width and output channels of the first two convolutions.
fn inner_widths(groups: usize, stages: &[(usize, [usize; 2])]) -> Option<(usize, usize)> {
    let Some((_, [first, second])) = stages.first() else { return Some((64, 1)) };
    let reduction = second.checked_div(*first)?;
    let (mut low, mut high) = (1usize, usize::MAX);
    for (width, [first, second]) in stages {
        // A group has `width · group_width / 64` channels, rounded down.
        let per_group = second.checked_div(groups)?;
        let exact =
            per_group.checked_mul(groups) == Some(*second) && first.checked_mul(reduction) == Some(*second);
        if !exact {
            return None;
        }
        low = low.max(per_group.checked_mul(64)?.div_ceil((*width).max(1)));
        high = high.min(per_group.checked_add(1)?.checked_mul(64)?.div_ceil((*width).max(1)));
    }
    (low < high).then_some((low, reduction))
}

/// Returns the kind of shortcut, from the blocks with a projection.
fn shortcut(net: &ResNet, stages: &[Blocks]) -> Result<Shortcut, String> {
    let mut channels = net.stem.width();
    let (mut all, mut none, mut where_needed) = (true, true, true);
    let mut kinds = Vec::new();
    for (i, stage) in stages.iter().enumerate() {
        for (b, projection) in stage.projections.iter().enumerate() {
            let needed = channels != stage.out || (i > 0 && b == 0);
            channels = stage.out;
            all &= projection.is_some();
            none &= projection.is_none();
            where_needed &= projection.is_some() == needed;
            kinds.extend(projection);
        }
    }
    let kind = match () {
        () if kinds.contains(&Projection::Averaged) => Shortcut::AvgProjection,
        () if kinds.contains(&Projection::Wide) => Shortcut::Projection3x3,
        () => Shortcut::Projection,
    };
    match net.stem {
        _ if where_needed => Ok(kind),
        _ if all && kind == Shortcut::Projection => Ok(Shortcut::ProjectionAll),
        // The CIFAR networks of the ResNet paper have option A (zero padding); ImageNet networks without projections are
        // its plain networks.
        Stem::Conv3 { .. } if none => Ok(Shortcut::ZeroPad),
        _ if none => Ok(Shortcut::None),
        _ => Err("unsupported combination of blocks with and without projection".into()),
    }
}

fn attention(shapes: &Shapes, stages: &[Stage]) -> Result<Attention, String> {
    if shapes.has("layer1.0.se.conv.weight") {
        return Ok(Attention::Eca);
    }
    let hidden = |n: usize| shapes.conv(&format!("layer{n}.0.se.fc1.weight")).map(|[hidden, ..]| hidden);
    if hidden(1).is_none() {
        return Ok(Attention::None);
    }
    // Reductions that round to the same sizes are the same network; common ones come first.
    let matches = |&reduction: &usize| {
        let mut numbered = (1..).zip(stages);
        numbered.all(|(n, stage)| hidden(n) == Some(Attention::hidden(stage.out_channels(), reduction)))
    };
    let reduction = [16, 4, 8].into_iter().chain(1..=1024).find(matches);
    let reduction = reduction.ok_or("unsupported hidden sizes of squeeze-and-excitation")?;
    Ok(Attention::Se { reduction })
}
