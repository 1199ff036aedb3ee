//! Everything that computes each value from the value at its place: norms that follow no convolution, attention gates,
//! sums, ReLU, together in one pass.

use resnet_kernels::{Blocked, LANES, ThreadPool, View, ViewMut};

/// `relu(scale · x + shift + residual)`, each part where it is wanted.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Map {
    pub(super) first: First,
    pub(super) residual: bool,
    pub(super) relu: bool,
}

/// Where scale and shift come from.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum First {
    /// There are none.
    Identity,
    /// A factor for all values.
    Factor(f32),
    /// A factor per image and channel: the step's second input `[N, C]`.
    Gate,
    /// Numbers per channel: a batch norm.
    Affine(Affine),
    /// Numbers per image and channel: a group norm.
    Group { groups: usize, eps: f64, affine: Affine },
}

/// A factor and an addend per channel.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Affine {
    pub(super) scale: Vec<f32>,
    pub(super) shift: Vec<f32>,
}

impl Map {
    /// Computes `to` from `x` and, where wanted, `gate` `[N, C]` and `residual`, which lie as their layouts say.
    pub(super) fn run(&self, x: View, gate: &[f32], residual: Option<View>, to: ViewMut, pool: &ThreadPool) {
        let (images, c) = (x.layout.n, x.layout.c);
        let coefficients: Vec<Affine> = match &self.first {
            First::Identity => vec![Affine { scale: vec![1.0; c], shift: vec![0.0; c] }],
            First::Factor(factor) => vec![Affine { scale: vec![*factor; c], shift: vec![0.0; c] }],
            First::Affine(affine) => vec![affine.clone()],
            First::Gate => {
                gate.chunks(c).map(|g| Affine { scale: g.to_vec(), shift: vec![0.0; c] }).collect()
            }
            First::Group { groups, eps, affine } => {
                (0..images).map(|image| group_norm(x, image, *groups, *eps, affine, pool)).collect()
            }
        };
        let layout = to.layout;
        let row_len = layout.w * LANES;
        pool.for_each_chunk(to.data, layout.plane_len(), |plane, data| {
            let (image, block) = (plane / layout.blocks(), plane % layout.blocks());
            let own = &coefficients[image.min(coefficients.len() - 1)];
            // Channels that only fill up the last block stay zero.
            let (mut scale, mut shift) = ([0.0; LANES], [0.0; LANES]);
            let first = block * LANES;
            for lane in 0..LANES.min(c - first) {
                (scale[lane], shift[lane]) = (own.scale[first + lane], own.shift[first + lane]);
            }
            for y in 0..layout.h {
                let start = layout.pixel(y, 0);
                let row = &mut data[start..start + row_len];
                let from = row_of(&x, image, block, y);
                match residual {
                    Some(residual) => {
                        let beside = row_of(&residual, image, block, y);
                        for ((to, x), r) in chunks_mut(row).iter_mut().zip(chunks(from)).zip(chunks(beside)) {
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
                    // Not `max`, which would make a number of NaN.
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

/// The pixels of one row of one block of channels.
fn row_of<'a>(view: &View<'a>, image: usize, block: usize, y: usize) -> &'a [f32] {
    let Blocked { w, .. } = view.layout;
    let start = image * view.layout.image_len() + block * view.layout.plane_len() + view.layout.pixel(y, 0);
    &view.data[start..start + w * LANES]
}

/// The factors and addends that normalise one image's groups of channels, in f64.
fn group_norm(x: View, image: usize, groups: usize, eps: f64, affine: &Affine, pool: &ThreadPool) -> Affine {
    let per_group = x.layout.c / groups;
    let mean = group_means(x, image, &vec![0.0; groups], pool, |v, _| v);
    let variance = group_means(x, image, &mean, pool, |v, mean| (v - mean) * (v - mean));
    let coefficient = |channel: usize| {
        let group = channel / per_group;
        let scale = f64::from(affine.scale[channel]) / (variance[group] + eps).sqrt();
        (scale as f32, (f64::from(affine.shift[channel]) - mean[group] * scale) as f32)
    };
    let (scale, shift) = (0..x.layout.c).map(coefficient).unzip();
    Affine { scale, shift }
}

/// The mean of `f(value, about[group])` over each group of channels of one image. Every channel is summed up in a lane of
/// its own, so that the loop fills vector registers.
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

/// Channels of `inputs`, one after the other, in `to`.
pub(super) fn concat(inputs: &[View], to: ViewMut, pool: &ThreadPool) {
    let layout = to.layout;
    pool.for_each_chunk(to.data, layout.plane_len(), |plane, data| {
        let (image, block) = (plane / layout.blocks(), plane % layout.blocks());
        let mut first = 0;
        for input in inputs {
            let c = input.layout.c;
            let wanted = (block * LANES).max(first)..((block + 1) * LANES).min(first + c);
            for y in 0..layout.h {
                let start = layout.pixel(y, 0);
                let row = chunks_mut(&mut data[start..start + layout.w * LANES]);
                if wanted.len() == LANES && (wanted.start - first).is_multiple_of(LANES) {
                    let from = chunks(row_of(input, image, (wanted.start - first) / LANES, y));
                    row.copy_from_slice(from);
                    continue;
                }
                for channel in wanted.clone() {
                    let own = channel - first;
                    let from = chunks(row_of(input, image, own / LANES, y));
                    for (to, from) in row.iter_mut().zip(from) {
                        to[channel % LANES] = from[own % LANES];
                    }
                }
            }
            first += c;
        }
        // Channels that only fill up the last block are zero, whatever the memory held before.
        for channel in first.max(block * LANES)..(block + 1) * LANES {
            for y in 0..layout.h {
                let start = layout.pixel(y, 0);
                let row = chunks_mut(&mut data[start..start + layout.w * LANES]);
                row.iter_mut().for_each(|pixel| pixel[channel % LANES] = 0.0);
            }
        }
    });
}
