//! Elementwise operations in one pass: norms without a preceding convolution, attention gates, residual adds and ReLU.

use resnet_kernels::{Blocked, LANES, ThreadPool, View, ViewMut};

/// `relu(scale · x + shift + residual)`; all parts are optional.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Elementwise {
    pub(super) coefficients: Coefficients,
    pub(super) residual: bool,
    pub(super) relu: bool,
}

/// The source of scale and shift.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Coefficients {
    /// No scale and shift.
    Identity,
    /// A constant scale.
    Factor(f32),
    /// A scale per image and channel: the second input of the step, `[N, C]`.
    Gate,
    /// Scale and shift per channel: a batch norm.
    PerChannel(ScaleShift),
    /// Scale and shift per image and channel: a group norm.
    Group { groups: usize, eps: f64, affine: ScaleShift },
}

/// Scale and shift per channel.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ScaleShift {
    pub(super) scale: Vec<f32>,
    pub(super) shift: Vec<f32>,
}

impl Elementwise {
    /// Computes `to` from `x`, `gate` `[N, C]` and `residual`.
    pub(super) fn run(&self, x: View, gate: &[f32], residual: Option<View>, to: ViewMut, pool: &ThreadPool) {
        let (images, c) = (x.layout.n, x.layout.c);
        let coefficients: Vec<ScaleShift> = match &self.coefficients {
            Coefficients::Identity => vec![ScaleShift { scale: vec![1.0; c], shift: vec![0.0; c] }],
            Coefficients::Factor(factor) => vec![ScaleShift { scale: vec![*factor; c], shift: vec![0.0; c] }],
            Coefficients::PerChannel(affine) => vec![affine.clone()],
            Coefficients::Gate => {
                gate.chunks(c).map(|g| ScaleShift { scale: g.to_vec(), shift: vec![0.0; c] }).collect()
            }
            Coefficients::Group { groups, eps, affine } => {
                (0..images).map(|image| group_norm(x, image, *groups, *eps, affine, pool)).collect()
            }
        };
        let layout = to.layout;
        let row_len = layout.w * LANES;
        pool.for_each_chunk(to.data, layout.plane_len(), |plane, data| {
            let (image, block) = (plane / layout.blocks(), plane % layout.blocks());
            let image_coefficients = &coefficients[image.min(coefficients.len() - 1)];
            // Padding channels of the last block stay zero.
            let (mut scale, mut shift) = ([0.0; LANES], [0.0; LANES]);
            let first = block * LANES;
            for lane in 0..LANES.min(c - first) {
                (scale[lane], shift[lane]) =
                    (image_coefficients.scale[first + lane], image_coefficients.shift[first + lane]);
            }
            for y in 0..layout.h {
                let start = layout.pixel(y, 0);
                let row = &mut data[start..start + row_len];
                let from = row_of(&x, image, block, y);
                match residual {
                    Some(residual) => {
                        let residual = row_of(&residual, image, block, y);
                        for ((to, x), r) in chunks_mut(row).iter_mut().zip(chunks(from)).zip(chunks(residual))
                        {
                            for lane in 0..LANES {
                                to[lane] = x[lane] * scale[lane] + shift[lane] + r[lane];
                            }
                        }
                    }
                    None => {
                        for (to, x) in chunks_mut(row).iter_mut().zip(chunks(from)) {
                            for lane in 0..LANES {
                                to[lane] = x[lane] * scale[lane] + shift[lane];
                            }
                        }
                    }
                }
                if self.relu {
                    // Unlike `max`, this propagates NaN.
                    row.iter_mut().for_each(|v| *v = if *v < 0.0 { 0.0 } else { *v });
                }
            }
        });
    }
}

fn chunks(row: &[f32]) -> &[[f32; LANES]] {
    row.as_chunks().0
}

fn chunks_mut(row: &mut [f32]) -> &mut [[f32; LANES]] {
    row.as_chunks_mut().0
}

/// Returns one row of pixels of a channel block.
fn row_of<'a>(view: &View<'a>, image: usize, block: usize, y: usize) -> &'a [f32] {
    let Blocked { w, .. } = view.layout;
    let start = image * view.layout.image_len() + block * view.layout.plane_len() + view.layout.pixel(y, 0);
    &view.data[start..start + w * LANES]
}

/// Returns scale and shift of a group norm for one image, computed in f64.
fn group_norm(
    x: View,
    image: usize,
    groups: usize,
    eps: f64,
    affine: &ScaleShift,
    pool: &ThreadPool,
) -> ScaleShift {
    let per_group = x.layout.c / groups;
    let mean = group_means(x, image, &vec![0.0; groups], pool, |v, _| v);
    let variance = group_means(x, image, &mean, pool, |v, mean| (v - mean) * (v - mean));
    let coefficient = |channel: usize| {
        let group = channel / per_group;
        let scale = f64::from(affine.scale[channel]) / (variance[group] + eps).sqrt();
        (scale as f32, (f64::from(affine.shift[channel]) - mean[group] * scale) as f32)
    };
    let (scale, shift) = (0..x.layout.c).map(coefficient).unzip();
    ScaleShift { scale, shift }
}

/// Returns the mean of `f(value, about[group])` over each group of channels of one image. Each channel has its own SIMD
/// lane.
fn group_means(
    x: View,
    image: usize,
    about: &[f64],
    pool: &ThreadPool,
    f: impl Fn(f64, f64) -> f64 + Sync,
) -> Vec<f64> {
    let Blocked { c, h, w, .. } = x.layout;
    let per_group = c / about.len();
    let mut sums = vec![0.0f64; x.layout.blocks() * LANES];
    pool.for_each_chunk(&mut sums, LANES, |block, sums| {
        let group = |lane: usize| (block * LANES + lane) / per_group;
        let about: [f64; LANES] =
            std::array::from_fn(|lane| about.get(group(lane)).copied().unwrap_or_default());
        let mut lanes = [0.0f64; LANES];
        for y in 0..h {
            for pixel in chunks(row_of(&x, image, block, y)) {
                for lane in 0..LANES {
                    lanes[lane] += f(f64::from(pixel[lane]), about[lane]);
                }
            }
        }
        sums.copy_from_slice(&lanes);
    });
    let count = (per_group * h * w) as f64;
    sums[..c].chunks(per_group).map(|group| group.iter().sum::<f64>() / count).collect()
}

/// Concatenates the channels of `inputs` in `to`.
pub(super) fn concat(inputs: &[View], to: ViewMut, pool: &ThreadPool) {
    let layout = to.layout;
    pool.for_each_chunk(to.data, layout.plane_len(), |plane, data| {
        let (image, block) = (plane / layout.blocks(), plane % layout.blocks());
        let mut first = 0;
        for input in inputs {
            let c = input.layout.c;
            let channels = (block * LANES).max(first)..((block + 1) * LANES).min(first + c);
            for y in 0..layout.h {
                let start = layout.pixel(y, 0);
                let row = chunks_mut(&mut data[start..start + layout.w * LANES]);
                if channels.len() == LANES && (channels.start - first).is_multiple_of(LANES) {
                    let from = chunks(row_of(input, image, (channels.start - first) / LANES, y));
                    row.copy_from_slice(from);
                    continue;
                }
                for channel in channels.clone() {
                    let source = channel - first;
                    let from = chunks(row_of(input, image, source / LANES, y));
                    for (to, from) in row.iter_mut().zip(from) {
                        to[channel % LANES] = from[source % LANES];
                    }
                }
            }
            first += c;
        }
        // Zero the padding channels of the last block, since the buffer is reused.
        for channel in first.max(block * LANES)..(block + 1) * LANES {
            for y in 0..layout.h {
                let start = layout.pixel(y, 0);
                let row = chunks_mut(&mut data[start..start + layout.w * LANES]);
                row.iter_mut().for_each(|pixel| pixel[channel % LANES] = 0.0);
            }
        }
    });
}
