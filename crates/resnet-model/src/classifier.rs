//! Image classification with a checkpoint.

use candle_core::Device;
use resnet_image::RgbImage;

use crate::engine::EngineOptions;
use crate::{Checkpoint, Error, Labels, Meta, Preprocess, Result, Runtime};

/// An image classifier: the preprocessing, network and labels of a checkpoint.
///
/// ```no_run
/// use candle_core::Device;
/// use resnet_model::image::decode;
/// use resnet_model::{Checkpoint, Classifier};
///
/// let checkpoint = Checkpoint::open("resnet50.safetensors".as_ref())?;
/// let classifier = Classifier::new(&checkpoint, &Device::Cpu)?;
/// let image = decode::open("cat.jpg".as_ref())?;
/// for prediction in &classifier.classify(&[image], 5)?[0] {
///     println!("{:.4} {}", prediction.score, prediction.label.as_deref().unwrap_or("?"));
/// }
/// # Ok::<(), resnet_model::Error>(())
/// ```
#[derive(Debug)]
pub struct Classifier {
    meta: Meta,
    runtime: Runtime,
}

/// A class with its score.
#[derive(Debug, Clone, PartialEq)]
pub struct Prediction {
    /// The index of the class.
    pub index: usize,
    /// Its label, if the checkpoint has labels.
    pub label: Option<String>,
    /// Its WordNet synset, for ImageNet classes.
    pub synset: Option<String>,
    /// The probability from 0 to 1, or the logit.
    pub score: f32,
}

/// The kind of score of a [`Prediction`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Score {
    /// The softmax over all classes.
    #[default]
    Probability,
    /// Sigmoid of each logit, for multi-label networks.
    Sigmoid,
    /// Logits.
    Logit,
}

impl Classifier {
    /// Creates a classifier that runs on `device`: with the engine on all cores of the CPU, with candle on other devices.
    ///
    /// # Errors
    ///
    /// An error if the architecture has no classification head, or does not match the preprocessing or the device.
    pub fn new(checkpoint: &Checkpoint, device: &Device) -> Result<Classifier> {
        Classifier::with_options(checkpoint, device, EngineOptions::default())
    }

    /// Like [`Classifier::new`], with options of the engine.
    ///
    /// # Errors
    ///
    /// As [`Classifier::new`].
    pub fn with_options(
        checkpoint: &Checkpoint,
        device: &Device,
        options: EngineOptions,
    ) -> Result<Classifier> {
        let meta = checkpoint.meta().clone();
        if meta.arch.classes().is_none() {
            return Err(Error::NoHead);
        }
        if meta.preprocess.mean.len() != meta.arch.in_channels() {
            return Err(Error::InputChannels {
                preprocess: meta.preprocess.mean.len(),
                network: meta.arch.in_channels(),
            });
        }
        Ok(Classifier { meta, runtime: Runtime::new(checkpoint, device, options)? })
    }

    /// Returns the metadata of the checkpoint.
    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    /// Returns the evaluation transform.
    pub fn preprocess(&self) -> &Preprocess {
        &self.meta.preprocess
    }

    /// Returns the `k` most probable classes of each image, best first.
    ///
    /// # Errors
    ///
    /// An error of [`Preprocess::apply`] or [`Classifier::logits`].
    pub fn classify(&self, images: &[RgbImage], k: usize) -> Result<Vec<Vec<Prediction>>> {
        let inputs = images
            .iter()
            .map(|image| self.preprocess().apply(image))
            .collect::<Result<Vec<_>, resnet_image::Error>>()?;
        Ok(self
            .logits(&inputs)?
            .iter()
            .map(|logits| top_k(logits, k, Score::Probability, &self.meta.labels))
            .collect())
    }

    /// Returns the logits `[K]` of each input, a preprocessed image `[C, H, W]` as returned by [`Preprocess::apply`].
    ///
    /// # Errors
    ///
    /// [`Error::Nan`] if a logit is NaN, or an error of the network.
    pub fn logits(&self, inputs: &[Vec<f32>]) -> Result<Vec<Vec<f32>>> {
        if inputs.is_empty() {
            return Ok(vec![]);
        }
        let [height, width] = self.meta.preprocess.crop;
        let dims = [inputs.len(), self.meta.arch.in_channels(), height, width];
        let rows = self.runtime.rows(inputs.concat(), dims)?;
        match rows.iter().position(|logits| logits.iter().any(|x| x.is_nan())) {
            Some(image) => Err(Error::Nan { image }),
            None => Ok(rows),
        }
    }

    /// Returns the network.
    pub fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// Returns the `k` classes with the highest logits of one image, best first; of equal logits, the lower index first.
    pub fn top_k(&self, logits: &[f32], k: usize, score: Score) -> Vec<Prediction> {
        top_k(logits, k, score, &self.meta.labels)
    }
}

/// Returns the probabilities of one image's logits, computed in f64.
pub fn softmax(logits: &[f32]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exps: Vec<f64> = logits.iter().map(|&x| (f64::from(x) - f64::from(max)).exp()).collect();
    let sum: f64 = exps.iter().sum();
    exps.into_iter().map(|e| e / sum).collect()
}

/// The `k` best classes of one image's logits `[K]`, best first; of equal scores the lower class first.
pub fn top_k(logits: &[f32], k: usize, score: Score, labels: &Labels) -> Vec<Prediction> {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
    let probabilities = softmax(logits);
    let prediction = |index: usize| {
        let logit = logits[index];
        let label = labels.get(index);
        Prediction {
            index,
            label: label.map(|l| l.name.to_owned()),
            synset: label.and_then(|l| l.synset).map(str::to_owned),
            score: match score {
                Score::Logit => logit,
                Score::Sigmoid => (1.0 / (1.0 + (-f64::from(logit)).exp())) as f32,
                Score::Probability => probabilities[index] as f32,
            },
        }
    };
    order.into_iter().take(k).map(prediction).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{RawTensor, synthetic, zoo};

    #[test]
    fn top_k_is_sorted() {
        let labels = Labels::Names(["a", "b", "c", "d"].map(String::from).to_vec());
        let top = top_k(&[1.0, 3.0, 3.0, -1e30], 3, Score::Probability, &labels);
        assert_eq!(top.iter().map(|p| p.index).collect::<Vec<_>>(), [1, 2, 0]);
        assert_eq!(top[0].label.as_deref(), Some("b"));
        assert!((top[0].score - 0.46831053).abs() < 1e-6, "{}", top[0].score);
        assert_eq!(top_k(&[1.0, 3.0], 9, Score::Logit, &Labels::None)[0].score, 3.0);
    }

    #[test]
    fn nan_logits_are_an_error() {
        let checkpoint = synthetic::checkpoint(&zoo::arch("resnet20_cifar").unwrap()).unwrap();
        let mut tensors = checkpoint.tensors().clone();
        tensors.insert("fc.bias".into(), RawTensor::from_f32(vec![10], &[f32::NAN; 10]).unwrap());
        let broken = Checkpoint::new(checkpoint.meta().clone(), tensors).unwrap();
        let input = synthetic::input(checkpoint.meta().preprocess.shape().iter().product());
        let logits = |checkpoint| {
            Classifier::new(checkpoint, &Device::Cpu).unwrap().logits(std::slice::from_ref(&input))
        };
        assert_eq!(logits(&checkpoint).unwrap()[0].len(), 10);
        let error = logits(&broken).unwrap_err().to_string();
        assert!(error.contains("returned NaN for image 0"), "{error}");
    }

    #[test]
    fn large_logits_do_not_overflow() {
        let top = top_k(&[1e30, 0.0], 2, Score::Probability, &Labels::None);
        assert_eq!((top[0].score, top[1].score), (1.0, 0.0));
    }
}
