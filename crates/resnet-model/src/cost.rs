//! Output shape, multiply-adds and activation memory of every operation, for an input size.

use crate::graph::{Graph, Node, Op, StdConv};
use crate::{Error, Result};

/// What one operation costs, per image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cost {
    /// Shape of the result without the batch: `[C, H, W]`, or `[C]` where there are no pixels.
    pub shape: Vec<usize>,
    /// Multiply-adds of convolutions and fully connected layers, as torchvision counts them.
    pub macs: u64,
    /// Bytes of the result in f32.
    pub bytes: u64,
}

/// The cost of each operation of `graph` for an input of `height` × `width` pixels, in the order of its nodes.
/// Fails if the input is so small that an operation has no output, or if results that meet in an operation do not fit
/// together (anti-aliased networks need even sizes where PyTorch's do).
pub fn list(graph: &Graph, height: usize, width: usize) -> Result<Vec<Cost>> {
    const MAX_SIDE: usize = 1 << 20;
    if height == 0 || width == 0 || height > MAX_SIDE || width > MAX_SIDE {
        return Err(Error::Input {
            found: vec![height, width],
            expected: format!("height and width from 1 to {MAX_SIDE} pixels"),
        });
    }
    let mut costs: Vec<Cost> = Vec::with_capacity(graph.nodes().len());
    for node in graph.nodes() {
        let inputs: Vec<&[usize]> = node.inputs.iter().map(|id| costs[id.index()].shape.as_slice()).collect();
        let shape = output(node, &inputs, [height, width])?;
        let per_output = match &node.op {
            Op::Conv(conv) | Op::StdConv(StdConv { conv, .. }) => {
                conv.weight_shape()[1..].iter().map(|&d| d as u64).product()
            }
            Op::Linear(linear) => linear.in_features as u64,
            Op::ChannelConv(conv) => conv.kernel as u64,
            // The query of one token, keys and values of all.
            Op::AttentionPool(_) => {
                let pixels = inputs[0][1..].iter().map(|&d| d as u64).product::<u64>();
                node.channels as u64 * (1 + 2 * (1 + pixels))
            }
            _ => 0,
        };
        let elements = shape.iter().map(|&d| d as u64).product::<u64>();
        costs.push(Cost { macs: elements * per_output, bytes: elements * 4, shape });
    }
    Ok(costs)
}

/// The shape of a node's result, without the batch; `image` is the size of the network's input.
fn output(node: &Node, inputs: &[&[usize]], image: [usize; 2]) -> Result<Vec<usize>> {
    let c = node.channels;
    let [height, width] = image;
    let first = inputs.first().copied().unwrap_or(&[]);
    let pixels = |size: &dyn Fn(usize, usize) -> Option<usize>| match first {
        &[_, h, w] => match (size(0, h), size(1, w)) {
            (Some(h), Some(w)) => Ok(vec![c, h, w]),
            _ => Err(Error::TooSmall { layer: node.name.clone(), height, width }),
        },
        _ => Err(misfit(node, inputs, image)),
    };
    let fits = |holds: bool, shape: Vec<usize>| match holds {
        true => Ok(shape),
        false => Err(misfit(node, inputs, image)),
    };
    match &node.op {
        Op::Input => Ok(vec![c, height, width]),
        Op::AttentionPool(_) => fits(first.len() == 3, vec![c]),
        Op::Conv(conv) | Op::StdConv(StdConv { conv, .. }) => pixels(&|axis, n| conv.output(axis, n)),
        Op::MaxPool(pool) => pixels(&|axis, n| pool.output(axis, n)),
        Op::AvgPool(pool) => pixels(&|axis, n| pool.output(axis, n)),
        Op::AdaptiveAvgPool(pool) => pixels(&|axis, _| Some(pool.output[axis])),
        Op::Blur(blur) => pixels(&|_, n| blur.output(n)),
        Op::Subsample(s) => pixels(&|_, n| Some(n.div_ceil(s.stride))),
        Op::Pad(pad) => pixels(&|axis, n| Some(n + pad.before[axis] + pad.after[axis])),
        Op::PadChannels(_) => pixels(&|_, n| Some(n)),
        Op::GlobalAvgPool | Op::GlobalMaxPool | Op::Linear(_) => Ok(vec![c]),
        Op::Flatten(flat) => fits(first[1..] == flat.pixels, vec![c]),
        Op::Add => fits(inputs.iter().all(|&shape| shape == first), first.to_vec()),
        Op::Scale => fits(inputs[1] == [c], first.to_vec()),
        Op::Concat => fits(inputs.iter().all(|shape| shape[1..] == first[1..]), [&[c], &first[1..]].concat()),
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

fn misfit(node: &Node, inputs: &[&[usize]], [height, width]: [usize; 2]) -> Error {
    let shapes = inputs.iter().map(|shape| shape.to_vec()).collect();
    Error::Misfit { layer: node.name.clone(), shapes, height, width }
}

/// Multiply-adds of one image of `height` × `width` pixels.
pub fn macs(graph: &Graph, height: usize, width: usize) -> Result<u64> {
    Ok(list(graph, height, width)?.iter().map(|c| c.macs).sum())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::zoo;

    fn giga_macs(name: &str) -> f64 {
        macs(&zoo::arch(name).unwrap().graph().unwrap(), 224, 224).unwrap() as f64 / 1e9
    }

    #[test]
    fn multiply_adds_are_those_of_torchvisions_weight_tables() {
        for (name, expected) in [
            ("resnet18", 1.814),
            ("resnet34", 3.664),
            ("resnet50", 4.089),
            ("resnet101", 7.801),
            ("resnet152", 11.514),
            ("resnext50_32x4d", 4.230),
            ("resnext101_32x8d", 16.414),
            ("wide_resnet50_2", 11.398),
        ] {
            assert!((giga_macs(name) - expected).abs() < 5e-4, "{name}: {}", giga_macs(name));
        }
    }

    /// The paper's table 1: a plain network costs what the residual one costs, less the projections.
    #[test]
    fn plain_networks_cost_their_residual_twin_less_the_projections() {
        let projections = 3.0 * 6.4225e-3;
        assert!((giga_macs("resnet34") - giga_macs("plain34") - projections).abs() < 1e-4);
    }

    #[test]
    fn odd_sizes_and_subsampling() {
        let graph = zoo::arch("resnet20_cifar").unwrap().graph().unwrap();
        let costs = list(&graph, 33, 7).unwrap();
        let shape = |name: &str| &costs[graph.tap(name).unwrap().node.index()].shape;
        assert_eq!(shape("layer1"), &[16, 33, 7]);
        assert_eq!(shape("layer2"), &[32, 17, 4]);
        assert_eq!(shape("layer3"), &[64, 9, 2]);
        assert_eq!(shape("logits"), &[10]);
        assert!(list(&graph, 0, 7).is_err());
    }
}
