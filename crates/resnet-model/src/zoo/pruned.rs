//! The widths of timm's `ecaresnet50d_pruned` and `ecaresnet101d_pruned` (arXiv 2002.08258).

use crate::arch::PrunedStage;

/// Output channels of a stage, and of the first and second convolution of each block.
type Widths = (usize, &'static [[usize; 2]]);

pub(super) const ECA_RESNET_50D: [Widths; 4] = [
    (19, &[[47, 18], [52, 22], [64, 35]]),
    (171, &[[85, 37], [107, 80], [120, 85], [125, 87]]),
    (818, &[[198, 126], [255, 232], [256, 233], [253, 235], [256, 225], [256, 239]]),
    (2022, &[[492, 237], [512, 500], [512, 490]]),
];

pub(super) const ECA_RESNET_101D: [Widths; 4] = [
    (26, &[[45, 25], [53, 20], [60, 27]]),
    (142, &[[81, 24], [93, 49], [102, 54], [122, 78]]),
    (
        278,
        &[
            [101, 25],
            [239, 160],
            [234, 156],
            [250, 176],
            [253, 191],
            [251, 175],
            [230, 128],
            [244, 154],
            [244, 159],
            [238, 97],
            [244, 149],
            [253, 181],
            [245, 119],
            [255, 216],
            [256, 201],
            [253, 149],
            [254, 141],
            [256, 190],
            [256, 217],
            [255, 156],
            [256, 155],
            [256, 232],
            [256, 214],
        ],
    ),
    (2042, &[[499, 289], [512, 512], [512, 502]]),
];

/// Returns the stages of a pruned network.
pub(super) fn stages(widths: &[Widths]) -> Vec<PrunedStage> {
    widths.iter().map(|&(out, inner)| PrunedStage { out, inner: inner.to_vec() }).collect()
}
