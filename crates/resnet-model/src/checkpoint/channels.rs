//! Adaptation of a checkpoint to another number of input channels.

use std::sync::Arc;

use crate::graph::{Op, StdConv};
use crate::raw::{Dtype, RawTensor};
use crate::{Checkpoint, Error, Result};
use resnet_image::preprocess::Channels;

impl Checkpoint {
    /// Adapts the stem to `channels` input channels, as timm's `adapt_input_conv`: for one channel, weights are summed over
    /// the channels, so that a gray image has the logits of an RGB image of three equal channels (normalized alike); for more
    /// channels, they are repeated and scaled so that their sum stays the same. For one channel, the preprocessing is set to
    /// luminance with the average mean and std.
    ///
    /// # Errors
    ///
    /// An error if the architecture does not support this number of channels or the weights cannot be read.
    pub fn with_in_channels(mut self, channels: usize) -> Result<Checkpoint> {
        let before = self.graph.in_channels();
        if channels == before {
            return Ok(self);
        }
        let mut meta = self.meta.clone();
        meta.arch = meta.arch.with_in_channels(channels);
        // Validates the number of channels.
        meta.arch.graph()?;
        for node in self.graph.nodes() {
            let conv = match node.op {
                Op::Conv(conv) | Op::StdConv(StdConv { conv, .. }) => conv,
                _ => continue,
            };
            if !node.inputs.iter().any(|input| input.index() == 0) {
                continue;
            }
            let name = format!("{}.weight", node.name);
            let pixels = conv.kernel[0] * conv.kernel[1];
            let values = self.values(&name)?;
            let mut adapted = Vec::with_capacity(conv.out_channels * channels * pixels);
            for filter in values.chunks_exact(before * pixels) {
                if channels == 1 {
                    let sum =
                        |p: usize| filter[p..].iter().step_by(pixels).map(|&w| f64::from(w)).sum::<f64>();
                    adapted.extend((0..pixels).map(|p| sum(p) as f32));
                    continue;
                }
                let scale = before as f64 / channels as f64;
                for channel in (0..channels).map(|c| c % before) {
                    let own = &filter[channel * pixels..(channel + 1) * pixels];
                    adapted.extend(own.iter().map(|&w| (f64::from(w) * scale) as f32));
                }
            }
            let bytes: Vec<u8> = adapted.iter().flat_map(|v| v.to_le_bytes()).collect();
            let shape = vec![conv.out_channels, channels, conv.kernel[0], conv.kernel[1]];
            let tensor = RawTensor::new(Dtype::F32, shape, Arc::new(bytes));
            let tensor = tensor.ok_or_else(|| Error::Missing(name.clone()))?;
            self.tensors.insert(name, tensor);
        }
        if channels == 1 {
            let mean = |values: &[f32]| vec![values.iter().sum::<f32>() / values.len().max(1) as f32];
            (meta.preprocess.mean, meta.preprocess.std) =
                (mean(&meta.preprocess.mean), mean(&meta.preprocess.std));
            meta.preprocess.channels = Channels::Gray;
        }
        Checkpoint::new(meta, self.tensors)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Tensor};

    use super::*;
    use crate::{Network, synthetic, zoo};

    fn logits(checkpoint: &Checkpoint, x: &Tensor) -> Vec<f32> {
        let network = Network::load(checkpoint, DType::F32, &Device::Cpu).unwrap();
        network.forward(x).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    fn close(a: &[f32], b: &[f32]) -> bool {
        a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-4)
    }

    /// An image of equal channels has the same logits with a stem of one or six channels. This does not hold for BiT, whose
    /// weights are standardized after adaptation; the tests of the zoo compare all families with timm.
    #[test]
    fn equal_channels_give_equal_logits() {
        for name in ["resnet20_cifar", "test_resnet", "resnet50_clip_gap", "resnetv2_18"] {
            let checkpoint = synthetic::checkpoint(&zoo::arch(name).unwrap()).unwrap();
            let one = Tensor::from_vec(synthetic::input(2 * 64 * 64), (2, 1, 64, 64), &Device::Cpu).unwrap();
            let expected = logits(&checkpoint, &one.repeat((1, 3, 1, 1)).unwrap());
            let gray = checkpoint.clone().with_in_channels(1).unwrap();
            assert_eq!(gray.meta().preprocess.mean.len(), 1);
            assert!(close(&logits(&gray, &one), &expected), "{name}");
            let six = checkpoint.clone().with_in_channels(6).unwrap();
            let many = one.repeat((1, 6, 1, 1)).unwrap();
            assert!(close(&logits(&six, &many), &expected), "{name}");
            assert_eq!(zoo::name_of(&six.meta().arch), Some(name));
        }
    }

    #[test]
    fn weights_are_repeated_and_scaled_as_in_timm() {
        let checkpoint = synthetic::checkpoint(&zoo::arch("resnet20_cifar").unwrap()).unwrap();
        let name = format!("{}.weight", checkpoint.graph().nodes()[1].name);
        let before = checkpoint.values(&name).unwrap();
        let five = checkpoint.clone().with_in_channels(5).unwrap().values(&name).unwrap();
        // First pixel of the second filter: channels 0, 1, 2, 0, 1, each scaled by 3/5.
        let found: Vec<f32> = (0..5).map(|c| five[9 * (5 + c)]).collect();
        let expected: Vec<f32> =
            [0, 1, 2, 0, 1].map(|c| (f64::from(before[9 * (3 + c)]) * 0.6) as f32).to_vec();
        assert_eq!(found, expected);
        assert!(checkpoint.clone().with_in_channels(0).is_err());
        assert_eq!(checkpoint.clone().with_in_channels(3).unwrap().values(&name).unwrap(), before);
    }
}
