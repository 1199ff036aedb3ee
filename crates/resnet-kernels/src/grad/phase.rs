//! Input gradient of strided convolutions as forward convolutions, one for each input pixel modulo the stride.

use crate::layout::LANES;
use crate::shape::ConvShape;

/// Phase along one axis: the input pixels `y` with equal `(y + padding) mod stride`, and the taps that contribute to
/// them.
///
/// The gradient of pixel `y = start + stride · u` is the sum of `w[first + t · step] · g[u + cut − t · dilation]` over
/// `t < taps`: a convolution of the output gradient with reversed taps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Phase {
    pub(super) taps: usize,
    first: usize,
    step: usize,
    pub(super) dilation: usize,
    /// Padding of the output gradient.
    pub(super) padding: usize,
    /// Input pixel of the first result; may be negative.
    start: isize,
    stride: usize,
}

impl Phase {
    /// Returns all phases with at least one tap, for `size` input and `output` output pixels along `axis`.
    pub(super) fn list(shape: &ConvShape, axis: usize, size: usize, output: usize) -> Vec<Phase> {
        let (kernel, stride) = (shape.kernel[axis], shape.stride[axis]);
        let (padding, dilation) = (shape.padding[axis], shape.dilation[axis]);
        let common = gcd(stride, dilation);
        let step = stride / common;
        let mut phases = Vec::new();
        for first in 0..step.min(kernel) {
            let taps = (kernel - first).div_ceil(step);
            // Tap `first + t · step` maps output pixel `u − t · spread` to input pixel `at + stride · u`.
            let (at, spread) = ((first * dilation) as isize - padding as isize, dilation / common);
            let reach = spread * (taps - 1);
            // Omits results outside the input as far as equal padding on both sides allows.
            let before = (-at).max(0) as usize;
            let before = before.div_ceil(stride);
            let last = (size as isize - 1 - at).max(0) as usize / stride;
            let after = (output + reach - 1).saturating_sub(last);
            let cut = before.min(after).min(reach);
            // The padded gradient must not be smaller than the kernel.
            let padding = reach - cut;
            phases.push(Phase {
                taps,
                first,
                step,
                dilation: spread,
                padding,
                start: at + (stride * cut) as isize,
                stride,
            });
        }
        phases
    }

    /// Returns the forward tap of tap `t` of this phase.
    pub(super) fn tap(&self, t: usize) -> usize {
        self.first + t * self.step
    }

    /// Returns `true` if result `u` belongs to input pixel `u`.
    pub(super) fn is_whole(&self) -> bool {
        self.start == 0 && self.stride == 1
    }

    /// Returns the input pixel of result `u`, or `None` if it is outside the input.
    pub(super) fn target(&self, u: usize, size: usize) -> Option<usize> {
        let at = self.start + (u * self.stride) as isize;
        usize::try_from(at).ok().filter(|&at| at < size)
    }

    /// Adds a row of results to their input pixels in `line`.
    pub(super) fn add(&self, pixels: &[[f32; LANES]], line: &mut [[f32; LANES]]) {
        let skipped = ((-self.start).max(0) as usize).div_ceil(self.stride);
        let Some(first) = self.target(skipped, line.len()) else { return };
        for (to, pixel) in line[first..].iter_mut().step_by(self.stride).zip(pixels.iter().skip(skipped)) {
            to.iter_mut().zip(pixel).for_each(|(to, value)| *to += *value);
        }
    }

    /// Writes one channel of a row of results to its input pixels in `line`.
    pub(super) fn scatter(&self, pixels: &[[f32; LANES]], lane: usize, line: &mut [f32]) {
        let skipped = ((-self.start).max(0) as usize).div_ceil(self.stride);
        let Some(first) = self.target(skipped, line.len()) else { return };
        let targets = line[first..].iter_mut().step_by(self.stride);
        for (to, pixel) in targets.zip(pixels.iter().skip(skipped)) {
            *to = pixel[lane];
        }
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Returns the shape of the convolution that computes one phase along each axis.
pub(super) fn shape(shape: &ConvShape, row: &Phase, column: &Phase) -> ConvShape {
    ConvShape {
        c_in: shape.c_out,
        c_out: shape.c_in,
        kernel: [row.taps, column.taps],
        stride: [1, 1],
        padding: [row.padding, column.padding],
        dilation: [row.dilation, column.dilation],
        groups: shape.groups,
    }
}

/// Returns the weights of a phase: input and output channels swapped within each group, taps reversed.
pub(super) fn weights(shape: &ConvShape, weights: &[f32], row: &Phase, column: &Phase) -> Vec<f32> {
    let [kh, kw] = shape.kernel;
    let (ig, og) = (shape.c_in / shape.groups, shape.c_out / shape.groups);
    let mut flipped = Vec::with_capacity(shape.c_in * og * row.taps * column.taps);
    for ic in 0..shape.c_in {
        let (group, inner) = (ic / ig, ic % ig);
        for oc in group * og..(group + 1) * og {
            let kernel = &weights[(oc * ig + inner) * kh * kw..][..kh * kw];
            for i in (0..row.taps).rev() {
                let line = &kernel[(row.first + i * row.step) * kw..][..kw];
                flipped.extend((0..column.taps).rev().map(|j| line[column.first + j * column.step]));
            }
        }
    }
    flipped
}
