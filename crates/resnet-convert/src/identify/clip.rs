//! Identification of CLIP's ResNets.

use resnet_model::arch::{Arch, Clip, ClipHead};

use super::{MAX_BLOCKS, MAX_STAGES, Shapes, count, head};

pub(super) fn identify(shapes: &Shapes) -> Result<Arch, String> {
    let [_, in_channels, ..] = shapes.need("stem.conv1.conv.weight")?;
    let [width, ..] = shapes.need("stem.conv3.conv.weight")?;
    let depth =
        |s: usize| count(MAX_BLOCKS, |b| shapes.has(&format!("stages.{s}.{b}.conv1_1x1.conv.weight")));
    let depths: Vec<usize> = (0..MAX_STAGES).map(depth).take_while(|&d| d > 0).collect();
    let (head, num_classes) = match shapes.get("head.pos_embed") {
        // One position for the mean of all pixels, then one per pixel.
        Some(&[positions, _]) => {
            let pixels = positions.saturating_sub(1);
            let side = pixels.isqrt();
            if side.checked_mul(side) != Some(pixels) {
                return Err(format!(
                    "`head.pos_embed` has {positions} positions, expected a square number plus one"
                ));
            }
            let classes = shapes.linear("head.proj.weight")?.map_or(0, |[classes, _]| classes);
            (ClipHead::Attention { grid: [side; 2] }, classes)
        }
        Some(other) => return Err(format!("`head.pos_embed` has shape {other:?}, expected two dimensions")),
        None => {
            let last = depths.len().saturating_sub(1);
            let features =
                shapes.conv(&format!("stages.{last}.0.conv3_1x1.conv.weight")).map_or(0, |[out, ..]| out);
            let (classes, pool) = head(shapes, "head.fc.weight", features)?;
            (ClipHead::Global { pool }, classes)
        }
    };
    Ok(Arch::Clip(Clip { width, depths, head, output_stride: None, in_channels, num_classes }))
}
