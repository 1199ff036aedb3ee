//! The tensors of an operation, and the operation on candle tensors.

use candle_core::{Module, Tensor};
use candle_nn::{GroupNorm, Init, VarBuilder};

use super::batch_norm::{BatchNormLayer, FusedOps};
use crate::graph::{Node, Op, StdConv};
use crate::{Error, Result, ops};

/// The tensors of one operation.
#[derive(Debug, Clone)]
pub(crate) enum Layer {
    Stateless,
    Conv {
        weight: Tensor,
        bias: Option<Tensor>,
    },
    BatchNorm(BatchNormLayer),
    GroupNorm {
        norm: GroupNorm,
        weight: Tensor,
        bias: Tensor,
    },
    /// EvoNorm with `v` as `activation`, or filter response normalization with `tau`.
    NormAct {
        weight: Tensor,
        bias: Tensor,
        activation: Tensor,
    },
    Linear {
        weight: Tensor,
        bias: Tensor,
    },
    ChannelConv(Tensor),
    AttentionPool(Box<ops::AttentionWeights>),
}

impl Layer {
    /// Reads or initializes the tensors of `node`.
    pub(crate) fn new(node: &Node, vb: VarBuilder) -> Result<Layer> {
        Ok(match node.op {
            Op::Conv(conv) | Op::StdConv(StdConv { conv, .. }) => {
                let [out, _, kh, kw] = conv.weight_shape();
                let stdev = (2.0 / (out * kh * kw) as f64).sqrt();
                let weight =
                    vb.get_with_hints(&conv.weight_shape(), "weight", Init::Randn { mean: 0.0, stdev })?;
                let bias = match conv.bias {
                    true => Some(vb.get_with_hints(out, "bias", Init::Const(0.0))?),
                    false => None,
                };
                Layer::Conv { weight, bias }
            }
            Op::BatchNorm(norm) => {
                Layer::BatchNorm(BatchNormLayer::new(&node.name, node.channels, norm.eps, vb)?)
            }
            Op::GroupNorm(norm) => {
                let tensor = |name, value| vb.get_with_hints(node.channels, name, Init::Const(value));
                let (weight, bias) = (tensor("weight", 1.0)?, tensor("bias", 0.0)?);
                let norm =
                    GroupNorm::new(weight.clone(), bias.clone(), node.channels, norm.groups, norm.eps)?;
                Layer::GroupNorm { norm, weight, bias }
            }
            Op::EvoNorm(_) | Op::FilterResponseNorm(_) => {
                let tensor = |name, value| vb.get_with_hints(node.channels, name, Init::Const(value));
                let (weight, bias) = (tensor("weight", 1.0)?, tensor("bias", 0.0)?);
                let activation = match node.op {
                    Op::EvoNorm(_) => tensor("v", 1.0)?,
                    _ => tensor("tau", 0.0)?,
                };
                Layer::NormAct { weight, bias, activation }
            }
            Op::Linear(linear) => {
                // PyTorch's default: uniform in ±1/√C.
                let bound = 1.0 / (linear.in_features as f64).sqrt();
                let init = Init::Uniform { lo: -bound, up: bound };
                let weight = vb.get_with_hints(linear.weight_shape(), "weight", init)?;
                Layer::Linear { weight, bias: vb.get_with_hints(linear.out_features, "bias", init)? }
            }
            Op::ChannelConv(conv) => {
                let bound = 1.0 / (conv.kernel as f64).sqrt();
                let init = Init::Uniform { lo: -bound, up: bound };
                Layer::ChannelConv(vb.get_with_hints((1, 1, conv.kernel), "weight", init)?)
            }
            Op::AttentionPool(pool) => {
                let c = node.channels;
                let stdev = 1.0 / (c as f64).sqrt();
                let projection = |part: &str| -> Result<ops::Projection> {
                    let (vb, init) = (vb.pp(part), Init::Uniform { lo: -stdev, up: stdev });
                    let weight = vb.get_with_hints((c, c), "weight", init)?;
                    Ok(ops::Projection { weight, bias: vb.get_with_hints(c, "bias", init)? })
                };
                Layer::AttentionPool(Box::new(ops::AttentionWeights {
                    position: vb.get_with_hints(
                        &pool.position_shape(c),
                        "pos_embed",
                        Init::Randn { mean: 0.0, stdev },
                    )?,
                    query: projection("q")?,
                    key: projection("k")?,
                    value: projection("v")?,
                }))
            }
            _ => Layer::Stateless,
        })
    }

    /// Computes `node` from its inputs.
    pub(crate) fn apply(&self, node: &Node, inputs: &[Tensor], train: bool) -> Result<Tensor> {
        let x = &inputs[0];
        let y = match (&node.op, self) {
            (Op::Conv(conv), Layer::Conv { weight, bias }) => ops::conv(x, weight, bias.as_ref(), conv)?,
            (Op::StdConv(std), Layer::Conv { weight, bias }) => ops::std_conv(x, weight, bias.as_ref(), std)?,
            (Op::BatchNorm(_), Layer::BatchNorm(norm)) => norm.forward(x, train, FusedOps::default())?,
            (Op::GroupNorm(_), Layer::GroupNorm { norm, .. }) => norm.forward(x)?,
            (Op::EvoNorm(norm), Layer::NormAct { weight, bias, activation: v }) => {
                ops::evo_norm(x, norm, weight, bias, v)?
            }
            (Op::FilterResponseNorm(norm), Layer::NormAct { weight, bias, activation: tau }) => {
                ops::filter_response_norm(x, norm, weight, bias, tau)?
            }
            (Op::Linear(_), Layer::Linear { weight, bias }) => {
                x.matmul(&weight.flatten_from(1)?.t()?)?.broadcast_add(bias)?
            }
            (Op::ChannelConv(conv), Layer::ChannelConv(weight)) => ops::channel_conv(x, weight, conv)?,
            (Op::AttentionPool(pool), Layer::AttentionPool(weights)) => {
                ops::attention_pool(x, weights, pool)?
            }
            (Op::Relu, _) => ops::relu(x)?,
            (Op::Sigmoid, _) => candle_nn::ops::sigmoid(x)?,
            (Op::MaxPool(pool), _) => ops::max_pool(x, pool)?,
            (Op::AvgPool(pool), _) => ops::avg_pool(x, pool)?,
            (Op::AdaptiveAvgPool(pool), _) => ops::adaptive_avg_pool(x, pool)?,
            (Op::Blur(blur), _) => ops::blur(x, blur)?,
            (Op::GlobalAvgPool, _) => x.flatten_from(2)?.mean(2)?,
            (Op::GlobalMaxPool, _) => x.flatten_from(2)?.max(2)?,
            (Op::Add, _) => (x + &inputs[1])?,
            (Op::Concat, _) => Tensor::cat(inputs, 1)?,
            (Op::Scale, _) => ops::scale(x, &inputs[1])?,
            (Op::Multiply(m), _) => (x * m.factor)?,
            (Op::Subsample(s), _) => ops::subsample(x, s)?,
            (Op::PadChannels(p), _) => ops::pad_channels(x, p)?,
            (Op::Pad(p), _) => ops::pad(x, p)?,
            (Op::Flatten(_), _) => x.flatten_from(1)?,
            (Op::Input, _) => x.clone(),
            (
                Op::Conv(_)
                | Op::StdConv(_)
                | Op::BatchNorm(_)
                | Op::GroupNorm(_)
                | Op::EvoNorm(_)
                | Op::FilterResponseNorm(_)
                | Op::Linear(_)
                | Op::ChannelConv(_)
                | Op::AttentionPool(_),
                _,
            ) => return Err(Error::Missing(node.name.clone())),
        };
        Ok(y)
    }

    /// Returns the trainable tensors.
    pub(super) fn trainable(&self) -> Vec<&Tensor> {
        match self {
            Layer::Stateless => vec![],
            Layer::Conv { weight, bias } => [Some(weight), bias.as_ref()].into_iter().flatten().collect(),
            Layer::BatchNorm(norm) => vec![&norm.weight, &norm.bias],
            Layer::GroupNorm { weight, bias, .. } => vec![weight, bias],
            Layer::NormAct { weight, bias, activation } => vec![weight, bias, activation],
            Layer::Linear { weight, bias } => vec![weight, bias],
            Layer::ChannelConv(weight) => vec![weight],
            Layer::AttentionPool(pool) => {
                let projections = [&pool.query, &pool.key, &pool.value];
                let each =
                    projections.into_iter().flat_map(|projection| [&projection.weight, &projection.bias]);
                [&pool.position].into_iter().chain(each).collect()
            }
        }
    }
}
