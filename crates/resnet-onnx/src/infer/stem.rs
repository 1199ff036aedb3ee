//! Infers the stem: the layers before the first block.

use resnet_model::arch::{AntiAlias, Padding, Stem, StemPool, StemV2};
use resnet_model::graph::{Conv, Op};

use super::Foreign;

/// Stem of a ResNet.
pub(super) struct InferredStem {
    pub(super) stem: Stem,
    pub(super) pool: StemPool,
    pub(super) anti_alias: Option<AntiAlias>,
    /// Padding of the stem; the blocks may differ.
    pub(super) padding: Padding,
}

/// Returns the operations up to node `end`, in order.
fn ops<'a>(net: Foreign<'a>, end: usize) -> Vec<&'a Op> {
    let mut ops: Vec<&Op> = std::iter::successors(Some(end), |&i| net.input(i))
        .take(32)
        .filter_map(|i| Some(&net.item(i)?.op))
        .collect();
    ops.reverse();
    ops
}

fn convs(ops: &[&Op]) -> Vec<Conv> {
    ops.iter().filter_map(|op| if let Op::Conv(conv) = op { Some(*conv) } else { None }).collect()
}

pub(super) fn resnet(net: Foreign, end: usize) -> Option<InferredStem> {
    let ops = ops(net, end);
    let convs = convs(&ops);
    let (stem, own) = match convs.as_slice() {
        [first, second, third, ..] if first.kernel == [3; 2] => {
            (Stem::Deep { widths: [first.out_channels, second.out_channels, third.out_channels] }, 3)
        }
        [first, ..] if first.kernel == [7; 2] => (Stem::Conv7 { width: first.out_channels }, 1),
        [first, ..] => (Stem::Conv3 { width: first.out_channels }, 1),
        [] => return None,
    };
    let pool = if convs.len() > own { StemPool::Conv } else { StemPool::Max };
    let anti_alias = ops.iter().find_map(|op| match op {
        Op::AvgPool(_) => Some(AntiAlias::Avg),
        Op::Blur(_) => Some(AntiAlias::Blur),
        _ => None,
    });
    let padding = match ops.windows(2).find(|pair| matches!(pair, [Op::Pad(_), _])) {
        Some([_, Op::Conv(_)]) => Padding::OneSided,
        Some(_) => Padding::OneSidedPool,
        None => Padding::Symmetric,
    };
    Some(InferredStem { stem, pool, anti_alias, padding })
}

pub(super) fn resnet_v2(net: Foreign, end: usize) -> Option<StemV2> {
    let ops = ops(net, end);
    let has = |predicate: fn(&Op) -> bool| ops.iter().any(|op| predicate(op));
    Some(match convs(&ops).as_slice() {
        [first, second, third, ..] => {
            StemV2::Deep { widths: [first.out_channels, second.out_channels, third.out_channels] }
        }
        [first] if !has(|op| matches!(op, Op::MaxPool(_))) => StemV2::Conv3 { width: first.out_channels },
        [first] if has(|op| matches!(op, Op::BatchNorm(_) | Op::GroupNorm(_))) => {
            StemV2::NormConv7 { width: first.out_channels }
        }
        [first] if has(|op| matches!(op, Op::Pad(_))) => {
            StemV2::Conv7ZeroPadded { width: first.out_channels }
        }
        [first, ..] => StemV2::Conv7 { width: first.out_channels },
        [] => return None,
    })
}
