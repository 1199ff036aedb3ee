//! Output shape, multiply-adds and activation memory of every operation, for an input size.

use crate::graph::{Graph, ShapeError};
use crate::{Error, Result};

/// The cost of one operation, per image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cost {
    /// The shape of the result without the batch dimension: `[C, H, W]`, or `[C]` after global pooling.
    pub shape: Vec<usize>,
    /// Multiply-adds of convolutions and fully connected layers, as torchvision counts them.
    pub macs: u64,
    /// Bytes of the result in f32.
    pub bytes: u64,
}

impl Graph {
    /// Returns the cost of each operation for an input of `height` × `width` pixels, in the order of [`Graph::nodes`].
    ///
    /// # Errors
    ///
    /// Returns an error if the input is so small that an operation has no output, or if the inputs of an operation have
    /// incompatible shapes (anti-aliased networks need even sizes, as in PyTorch).
    pub fn costs(&self, height: usize, width: usize) -> Result<Vec<Cost>> {
        const MAX_SIDE: usize = 1 << 20;
        if height == 0 || width == 0 || height > MAX_SIDE || width > MAX_SIDE {
            return Err(Error::Input {
                found: vec![height, width],
                expected: format!("height and width from 1 to {MAX_SIDE} pixels"),
            });
        }
        let mut costs: Vec<Cost> = Vec::with_capacity(self.nodes().len());
        for node in self.nodes() {
            let inputs: Vec<&[usize]> =
                node.inputs.iter().map(|id| costs[id.index()].shape.as_slice()).collect();
            let shape = match node.op.output_shape(node.channels, &inputs, [height, width]) {
                Ok(shape) => shape,
                Err(ShapeError::TooSmall) => {
                    return Err(Error::TooSmall { layer: node.name.clone(), height, width });
                }
                Err(ShapeError::Incompatible) => {
                    let shapes = inputs.iter().map(|shape| shape.to_vec()).collect();
                    return Err(Error::Misfit { layer: node.name.clone(), shapes, height, width });
                }
            };
            let elements = shape.iter().map(|&d| d as u64).product::<u64>();
            let macs = elements * node.op.macs_per_output(node.channels, &inputs);
            costs.push(Cost { macs, bytes: elements * 4, shape });
        }
        Ok(costs)
    }

    /// Returns the multiply-adds of one image of `height` × `width` pixels.
    pub fn macs(&self, height: usize, width: usize) -> Result<u64> {
        Ok(self.costs(height, width)?.iter().map(|c| c.macs).sum())
    }
}

#[cfg(test)]
mod tests {
    use crate::zoo;

    fn giga_macs(name: &str) -> f64 {
        zoo::arch(name).unwrap().graph().unwrap().macs(224, 224).unwrap() as f64 / 1e9
    }

    #[test]
    fn macs_match_torchvision_weight_tables() {
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

    /// Table 1 of the paper: a plain network costs as much as the residual one without the projections.
    #[test]
    fn plain_networks_cost_as_much_as_residual_ones_without_projections() {
        let projections = 3.0 * 6.4225e-3;
        assert!((giga_macs("resnet34") - giga_macs("plain34") - projections).abs() < 1e-4);
    }

    #[test]
    fn odd_sizes_are_rounded_up_by_strides() {
        let graph = zoo::arch("resnet20_cifar").unwrap().graph().unwrap();
        let costs = graph.costs(33, 7).unwrap();
        let shape = |name: &str| &costs[graph.tap(name).unwrap().node.index()].shape;
        assert_eq!(shape("layer1"), &[16, 33, 7]);
        assert_eq!(shape("layer2"), &[32, 17, 4]);
        assert_eq!(shape("layer3"), &[64, 9, 2]);
        assert_eq!(shape("logits"), &[10]);
        assert!(graph.costs(0, 7).is_err());
    }
}
