//! Identification of pre-activation ResNets and BiT.

use resnet_model::arch::{Arch, Block, Norm, ProjectionV2, ResNetV2, StageV2, StemV2, StrideIn};

use super::{MAX_BLOCKS, MAX_STAGES, Shapes, count, head};

pub(super) fn identify(shapes: &Shapes) -> Result<Arch, String> {
    let bottleneck = shapes.has("stages.0.blocks.0.conv3.weight");
    let (block, last) = if bottleneck { (Block::Bottleneck, 3) } else { (Block::Basic, 2) };
    let norm = match () {
        () if shapes.has("norm.running_mean") => Norm::Batch,
        () if shapes.has("norm.v") => Norm::Evo,
        () if shapes.has("norm.tau") => Norm::FilterResponse,
        () => Norm::Group,
    };
    // A 7×7 stem with group norm is BiT's: standardized weights and zero-padded max pooling.
    let (stem, in_channels, standardize) = if shapes.has("stem.conv1.weight") {
        let conv = |i: usize| shapes.need(&format!("stem.conv{i}.weight"));
        let ([first, channels, ..], [second, ..], [third, ..]) = (conv(1)?, conv(2)?, conv(3)?);
        (StemV2::Deep { widths: [first, second, third] }, channels, None)
    } else {
        let [width, channels, kernel, _] = shapes.need("stem.conv.weight")?;
        match (kernel, norm) {
            (7, Norm::Group) => (StemV2::Conv7ZeroPadded { width }, channels, Some(1e-8)),
            (7, _) if shapes.has("stem.norm0.weight") => (StemV2::NormConv7 { width }, channels, None),
            (7, _) => (StemV2::Conv7 { width }, channels, None),
            (3, _) => (StemV2::Conv3 { width }, channels, None),
            (k, _) => return Err(format!("unsupported stem: {k}×{k} convolution, expected 7×7 or 3×3")),
        }
    };
    let mut stages = Vec::new();
    while stages.len() < MAX_STAGES {
        let s = stages.len();
        let depth = count(MAX_BLOCKS, |b| shapes.has(&format!("stages.{s}.blocks.{b}.conv1.weight")));
        if depth == 0 {
            break;
        }
        let [channels, ..] = shapes.need(&format!("stages.{s}.blocks.0.conv{last}.weight"))?;
        stages.push(StageV2 { depth, channels });
    }
    let (num_classes, pool) = head(shapes, "head.fc.weight", stages.last().map_or(0, |s| s.channels))?;
    Ok(Arch::ResNetV2(ResNetV2 {
        stem,
        stages,
        projection: match stem {
            StemV2::Deep { .. } => ProjectionV2::AvgConv,
            _ => ProjectionV2::Conv,
        },
        stride_in: match (stem, block) {
            (StemV2::Conv3 { .. }, Block::Bottleneck) => StrideIn::Conv1x1,
            _ => StrideIn::Conv3x3,
        },
        norm,
        standardize,
        pool,
        in_channels,
        num_classes,
        ..ResNetV2::imagenet(block, &[])
    }))
}
