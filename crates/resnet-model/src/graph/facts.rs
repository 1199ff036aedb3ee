//! Per-operation facts: parameters, output shape, multiply-adds, stride and display name.
//!
//! All other modules ask an [`Op`] instead of listing the operations themselves; `docs/adding-an-op.md` lists the files
//! that a new operation touches.

use super::{Op, StdConv};
use crate::param_specs::Role;

/// The reason why an operation has no output shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ShapeError {
    /// No window fits the input.
    TooSmall,
    /// The inputs do not have the shapes that the operation needs.
    Incompatible,
}

/// Suffix of the name, shape and role of a parameter.
type Param = (String, Vec<usize>, Role);

impl Op {
    /// Returns the parameters of the operation for `channels` output channels, in the order of PyTorch's `state_dict()`.
    pub fn params(&self, channels: usize) -> Vec<Param> {
        let c = vec![channels];
        let param = |name: &str, shape: Vec<usize>, role| (name.to_owned(), shape, role);
        let affine =
            || vec![param("weight", c.clone(), Role::NormScale), param("bias", c.clone(), Role::NormShift)];
        match self {
            Op::Conv(conv) | Op::StdConv(StdConv { conv, .. }) => {
                let bias = conv.bias.then(|| param("bias", c.clone(), Role::ConvBias));
                let weight = param("weight", conv.weight_shape().to_vec(), Role::ConvWeight);
                [Some(weight), bias].into_iter().flatten().collect()
            }
            Op::BatchNorm(_) => {
                let statistics = [
                    param("running_mean", c.clone(), Role::RunningMean),
                    param("running_var", c.clone(), Role::RunningVar),
                    param("num_batches_tracked", vec![], Role::BatchesTracked),
                ];
                affine().into_iter().chain(statistics).collect()
            }
            Op::GroupNorm(_) => affine(),
            Op::EvoNorm(_) => [affine(), vec![param("v", c.clone(), Role::NormScale)]].concat(),
            Op::FilterResponseNorm(_) => [affine(), vec![param("tau", c.clone(), Role::NormShift)]].concat(),
            Op::Linear(linear) => vec![
                param("weight", linear.weight_shape(), Role::LinearWeight),
                param("bias", c, Role::LinearBias),
            ],
            Op::AttentionPool(pool) => {
                let position = param("pos_embed", pool.position_shape(channels).to_vec(), Role::Position);
                let projections = ["q", "k", "v"].into_iter().flat_map(|name| {
                    [
                        param(&format!("{name}.weight"), vec![channels; 2], Role::LinearWeight),
                        param(&format!("{name}.bias"), c.clone(), Role::LinearBias),
                    ]
                });
                [position].into_iter().chain(projections).collect()
            }
            Op::ChannelConv(conv) => vec![param("weight", vec![1, 1, conv.kernel], Role::ConvWeight)],
            Op::Input
            | Op::Relu
            | Op::Sigmoid
            | Op::MaxPool(_)
            | Op::AvgPool(_)
            | Op::AdaptiveAvgPool(_)
            | Op::Blur(_)
            | Op::GlobalAvgPool
            | Op::GlobalMaxPool
            | Op::Add
            | Op::Concat
            | Op::Scale
            | Op::Multiply(_)
            | Op::Subsample(_)
            | Op::PadChannels(_)
            | Op::Pad(_)
            | Op::Flatten(_) => vec![],
        }
    }

    /// Returns the output channels for inputs of these channels.
    pub(crate) fn out_channels(&self, inputs: &[usize]) -> usize {
        let c = inputs.first().copied().unwrap_or_default();
        match self {
            Op::Conv(conv) | Op::StdConv(StdConv { conv, .. }) => conv.out_channels,
            Op::PadChannels(p) => c + p.before + p.after,
            Op::Concat => inputs.iter().sum(),
            Op::Flatten(f) => c * f.pixels[0] * f.pixels[1],
            Op::Linear(l) => l.out_features,
            _ => c,
        }
    }

    /// Returns the stride along each axis in input pixels; 0 if the output has no pixels or a fixed number of them.
    pub(crate) fn stride(&self) -> usize {
        match self {
            Op::Conv(conv) | Op::StdConv(StdConv { conv, .. }) => conv.stride[0],
            Op::MaxPool(p) => p.stride[0],
            Op::AvgPool(p) => p.window.stride[0],
            Op::Blur(b) => b.stride,
            Op::Subsample(s) => s.stride,
            Op::GlobalAvgPool
            | Op::GlobalMaxPool
            | Op::AdaptiveAvgPool(_)
            | Op::AttentionPool(_)
            | Op::Flatten(_)
            | Op::Linear(_) => 0,
            _ => 1,
        }
    }

    /// Returns the shape of the output without the batch dimension, for `channels` output channels; `image` is the size of
    /// the network's input.
    pub(crate) fn output_shape(
        &self,
        channels: usize,
        inputs: &[&[usize]],
        image: [usize; 2],
    ) -> Result<Vec<usize>, ShapeError> {
        let c = channels;
        let first = inputs.first().copied().unwrap_or(&[]);
        let pixels = |size: &dyn Fn(usize, usize) -> Option<usize>| match first {
            &[_, h, w] => match (size(0, h), size(1, w)) {
                (Some(h), Some(w)) => Ok(vec![c, h, w]),
                _ => Err(ShapeError::TooSmall),
            },
            _ => Err(ShapeError::Incompatible),
        };
        let check = |compatible: bool, shape: Vec<usize>| match compatible {
            true => Ok(shape),
            false => Err(ShapeError::Incompatible),
        };
        match self {
            Op::Input => Ok(vec![c, image[0], image[1]]),
            Op::AttentionPool(_) => check(first.len() == 3, vec![c]),
            Op::Conv(conv) | Op::StdConv(StdConv { conv, .. }) => pixels(&|axis, n| conv.output(axis, n)),
            Op::MaxPool(pool) => pixels(&|axis, n| pool.output(axis, n)),
            Op::AvgPool(pool) => pixels(&|axis, n| pool.output(axis, n)),
            Op::AdaptiveAvgPool(pool) => pixels(&|axis, _| Some(pool.output[axis])),
            Op::Blur(blur) => pixels(&|_, n| blur.output(n)),
            Op::Subsample(s) => pixels(&|_, n| Some(n.div_ceil(s.stride))),
            Op::Pad(pad) => pixels(&|axis, n| Some(n + pad.before[axis] + pad.after[axis])),
            Op::PadChannels(_) => pixels(&|_, n| Some(n)),
            Op::GlobalAvgPool | Op::GlobalMaxPool | Op::Linear(_) => Ok(vec![c]),
            Op::Flatten(flat) => check(first[1..] == flat.pixels, vec![c]),
            Op::Add => check(inputs.iter().all(|&shape| shape == first), first.to_vec()),
            Op::Scale => check(inputs[1] == [c], first.to_vec()),
            Op::Concat => {
                check(inputs.iter().all(|shape| shape[1..] == first[1..]), [&[c], &first[1..]].concat())
            }
            Op::BatchNorm(_)
            | Op::GroupNorm(_)
            | Op::EvoNorm(_)
            | Op::FilterResponseNorm(_)
            | Op::Relu
            | Op::Sigmoid
            | Op::Multiply(_)
            | Op::ChannelConv(_) => Ok(first.to_vec()),
        }
    }

    /// Returns the multiply-adds per element of the output.
    pub(crate) fn macs_per_output(&self, channels: usize, inputs: &[&[usize]]) -> u64 {
        match self {
            Op::Conv(conv) | Op::StdConv(StdConv { conv, .. }) => {
                conv.weight_shape()[1..].iter().map(|&d| d as u64).product()
            }
            Op::Linear(linear) => linear.in_features as u64,
            Op::ChannelConv(conv) => conv.kernel as u64,
            // One query; a key and a value per token.
            Op::AttentionPool(_) => {
                let pixels = inputs[0][1..].iter().map(|&d| d as u64).product::<u64>();
                channels as u64 * (1 + 2 * (1 + pixels))
            }
            _ => 0,
        }
    }

    /// Returns `true` if the operation normalizes its input.
    pub fn is_norm(&self) -> bool {
        matches!(self, Op::BatchNorm(_) | Op::GroupNorm(_) | Op::EvoNorm(_) | Op::FilterResponseNorm(_))
    }

    /// Returns the name of the operation for display, e.g. `batch norm`.
    pub fn name(&self) -> &'static str {
        match self {
            Op::Input => "input",
            Op::Conv(_) => "conv",
            Op::StdConv(_) => "std conv",
            Op::BatchNorm(_) => "batch norm",
            Op::GroupNorm(_) => "group norm",
            Op::EvoNorm(_) => "EvoNorm",
            Op::FilterResponseNorm(_) => "response norm",
            Op::Relu => "ReLU",
            Op::Sigmoid => "sigmoid",
            Op::MaxPool(_) => "max pool",
            Op::AvgPool(_) => "avg pool",
            Op::AdaptiveAvgPool(_) => "adaptive avg pool",
            Op::Blur(_) => "blur",
            Op::GlobalAvgPool => "global avg pool",
            Op::GlobalMaxPool => "global max pool",
            Op::AttentionPool(_) => "attention pool",
            Op::Add => "add",
            Op::Concat => "concat",
            Op::Scale => "scale",
            Op::Multiply(_) => "multiply",
            Op::Subsample(_) => "subsample",
            Op::PadChannels(_) => "pad channels",
            Op::Pad(_) => "pad",
            Op::Flatten(_) => "flatten",
            Op::Linear(_) => "linear",
            Op::ChannelConv(_) => "channel conv",
        }
    }
}
