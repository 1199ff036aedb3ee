//! Which architecture tensors belong to, from their shapes.

use std::collections::BTreeMap;

use resnet_model::arch::{Arch, Block, ResNet, Shortcut, Stage, Stem};
use resnet_model::{RawTensor, escape};

/// More stages or blocks than any network has; a file's names decide how often we look.
const MAX_STAGES: usize = 16;
const MAX_BLOCKS: usize = 1000;

type Tensors = BTreeMap<String, RawTensor>;

fn shape<'a>(tensors: &'a Tensors, name: &str) -> Option<&'a [usize]> {
    tensors.get(name).map(RawTensor::shape)
}

/// The shape of a convolution's weight: `[out, in / groups, height, width]`.
fn conv(tensors: &Tensors, name: &str) -> Option<[usize; 4]> {
    shape(tensors, name)?.try_into().ok()
}

/// `arch` with the numbers of classes and input channels that the file has.
pub(crate) fn adapt(arch: &Arch, tensors: &Tensors) -> Arch {
    let classes = shape(tensors, "fc.weight").and_then(|s| s.first()).copied().unwrap_or(0);
    let arch = arch.clone().with_classes(classes);
    match conv(tensors, "conv1.weight") {
        Some([_, channels, _, _]) => arch.with_in_channels(channels),
        None => arch,
    }
}

/// The architecture of tensors under torchvision's names; else why there is none.
pub(crate) fn identify(tensors: &Tensors) -> Result<Arch, String> {
    let [width, in_channels, kernel, _] =
        conv(tensors, "conv1.weight").ok_or("`conv1.weight` is no convolution")?;
    let stem = match kernel {
        7 => Stem::Conv7 { width },
        3 => Stem::Conv3 { width },
        k => return Err(format!("a stem with a {k}×{k} convolution, expected 7×7 or 3×3")),
    };
    let mut stages = Vec::new();
    while stages.len() < MAX_STAGES {
        let Some(stage) = stage(tensors, stages.len().saturating_add(1))? else { break };
        stages.push(stage);
    }
    let (groups, group_width) = groups(tensors, &stages)?;
    let num_classes = match shape(tensors, "fc.weight") {
        None => 0,
        Some([classes, _]) => *classes,
        Some(other) => return Err(format!("`fc.weight` has shape {other:?}, expected two dimensions")),
    };
    let net = ResNet {
        stem,
        stages,
        shortcut: Shortcut::Projection,
        groups,
        group_width,
        in_channels,
        num_classes,
        ..ResNet::imagenet(Block::Basic, &[])
    };
    let shortcut = shortcut(tensors, &net)?;
    Ok(Arch::ResNet(ResNet { shortcut, ..net }))
}

/// The stage of number `n`, from 1; `None` if there is none.
fn stage(tensors: &Tensors, n: usize) -> Result<Option<Stage>, String> {
    let has = |b: usize| tensors.contains_key(&format!("layer{n}.{b}.conv1.weight"));
    let depth = (0..MAX_BLOCKS).take_while(|&b| has(b)).count();
    if depth == 0 {
        return Ok(None);
    }
    let out = |i: usize| conv(tensors, &format!("layer{n}.0.conv{i}.weight")).map(|[out, ..]| out);
    let (block, out) = match (out(3), out(2)) {
        (Some(out), _) => (Block::Bottleneck, out),
        (None, Some(out)) => (Block::Basic, out),
        (None, None) => return Err(format!("`layer{n}.0` has no second convolution")),
    };
    match out.checked_rem(block.expansion()) {
        Some(0) => Ok(Some(Stage { block, depth, width: out.checked_div(block.expansion()).unwrap_or(out) })),
        _ => Err(format!("`layer{n}.0.conv3.weight` has {out} channels, expected a multiple of 4")),
    }
}

/// Groups of the 3×3 convolutions, and their width at a stage width of 64.
fn groups(tensors: &Tensors, stages: &[Stage]) -> Result<(usize, usize), String> {
    let name = "layer1.0.conv2.weight";
    let first = stages.first().filter(|s| s.block == Block::Bottleneck);
    let (Some(stage), Some([inner, per_group, _, _])) = (first, conv(tensors, name)) else {
        return Ok((1, 64));
    };
    let odd = || format!("`{name}` has shape [{inner}, {per_group}, …], which fits no groups");
    let groups =
        inner.checked_div(per_group).filter(|g| g.checked_mul(per_group) == Some(inner)).ok_or_else(odd)?;
    let scaled = inner.checked_mul(64).ok_or_else(odd)?;
    let width = stage.width.checked_mul(groups).and_then(|w| scaled.checked_div(w)).ok_or_else(odd)?;
    Ok((groups, width))
}

/// The kind of shortcut, from the blocks that have a projection.
fn shortcut(tensors: &Tensors, net: &ResNet) -> Result<Shortcut, String> {
    let mut channels = net.stem.width();
    let (mut all, mut none, mut where_needed) = (true, true, true);
    for (i, stage) in net.stages.iter().enumerate() {
        let out = stage.width.saturating_mul(stage.block.expansion());
        for b in 0..stage.depth {
            let projects =
                tensors.contains_key(&format!("layer{}.{b}.downsample.0.weight", i.saturating_add(1)));
            let needed = channels != out || (i > 0 && b == 0);
            channels = out;
            all &= projects;
            none &= !projects;
            where_needed &= projects == needed;
        }
    }
    match net.stem {
        _ if where_needed => Ok(Shortcut::Projection),
        _ if all => Ok(Shortcut::ProjectionAll),
        Stem::Conv3 { .. } if none => Ok(Shortcut::ZeroPad),
        _ if none => Err("no block has a projection, so its shortcuts are zero-padded or absent, which the tensors cannot tell".into()),
        _ => Err("some blocks have a projection where none is needed, or lack one".into()),
    }
}

/// A few names, for the message that nothing was recognised.
pub(crate) fn some_names(tensors: &[(String, RawTensor)]) -> String {
    let names: Vec<String> =
        tensors.iter().take(4).map(|(n, t)| format!("`{}` {:?}", escape(n), t.shape())).collect();
    let more = if tensors.len() > names.len() { ", …" } else { "" };
    format!("{}{more}", names.join(", "))
}
