//! The order of a checkpoint's classes.

use crate::{Checkpoint, Labels, RawTensor, Result};

impl Checkpoint {
    /// Reorders the classes, so that class `i` becomes the one that was `order[i]`: the rows of the head and the labels.
    /// Returns `None` if `order` is not a permutation of the classes.
    ///
    /// # Errors
    ///
    /// The weights of the head cannot be read.
    pub fn with_class_order(mut self, order: &[usize]) -> Result<Option<Checkpoint>> {
        let mut sorted = order.to_vec();
        sorted.sort_unstable();
        if !sorted.iter().copied().eq(0..self.meta.arch.classes().unwrap_or(0)) {
            return Ok(None);
        }
        // The head is the last layer with parameters.
        let names = self.graph.nodes().iter().rev().map(|node| node.name.as_str());
        let has_rows = |name: &str| self.tensors.contains_key(&format!("{name}.weight"));
        let Some(head) = names.into_iter().find(|name| has_rows(name)).map(str::to_owned) else {
            return Ok(None);
        };
        for name in [format!("{head}.weight"), format!("{head}.bias")] {
            let Some(shape) = self.tensors.get(&name).map(|tensor| tensor.shape().to_vec()) else { continue };
            let row: usize = shape.iter().skip(1).product();
            if shape.first() != Some(&order.len()) {
                return Ok(None);
            }
            let values = self.values(&name)?;
            let reordered: Vec<f32> =
                order.iter().flat_map(|&class| &values[class * row..(class + 1) * row]).copied().collect();
            if let Some(tensor) = RawTensor::from_f32(shape, &reordered) {
                self.tensors.insert(name, tensor);
            }
        }
        let mut meta = self.meta.clone();
        if !meta.labels.is_none() {
            let name = |&class: &usize| meta.labels.get(class).map(|label| label.name.to_owned());
            meta.labels = Labels::Names(order.iter().filter_map(name).collect());
        }
        Checkpoint::new(meta, self.tensors).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Tensor};

    use crate::{Checkpoint, Labels, Network, synthetic, zoo};

    #[test]
    fn logits_and_labels_are_permuted() {
        for name in ["resnet20_cifar", "resnetv2_18"] {
            let arch = zoo::arch(name).unwrap().with_classes(3);
            let checkpoint = synthetic::checkpoint(&arch).unwrap();
            let mut meta = checkpoint.meta().clone();
            meta.labels = Labels::Names(["a", "b", "c"].map(str::to_owned).to_vec());
            let checkpoint = checkpoint.with_meta(meta).unwrap();
            let x = Tensor::from_vec(synthetic::input(3 * 64 * 64), (1, 3, 64, 64), &Device::Cpu).unwrap();
            let logits = |checkpoint: &Checkpoint| -> Vec<f32> {
                let network = Network::load(checkpoint, DType::F32, &Device::Cpu).unwrap();
                network.forward(&x).unwrap().flatten_all().unwrap().to_vec1().unwrap()
            };
            let before = logits(&checkpoint);
            let reordered = checkpoint.clone().with_class_order(&[2, 0, 1]).unwrap().unwrap();
            let after = logits(&reordered);
            for (class, from) in [2, 0, 1].into_iter().enumerate() {
                assert!((after[class] - before[from]).abs() < 1e-5, "{name}: {before:?} {after:?}");
            }
            assert_eq!(reordered.meta().labels, Labels::Names(["c", "a", "b"].map(str::to_owned).to_vec()));
            for invalid in [&[0, 1][..], &[0, 1, 1], &[0, 1, 3]] {
                assert!(checkpoint.clone().with_class_order(invalid).unwrap().is_none());
            }
        }
    }
}
