//! A checkpoint made runnable: images in, named classes out.

use candle_core::Device;
use resnet_image::RgbImage;

use crate::engine::EngineOptions;
use crate::{Checkpoint, Error, Labels, Meta, Preprocess, Result, Runtime};

/// Preprocessing, network and labels of a checkpoint.
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

/// One class that an image may show.
#[derive(Debug, Clone, PartialEq)]
pub struct Prediction {
    /// The class, from 0.
    pub index: usize,
    /// Its name, if the checkpoint knows it.
    pub label: Option<String>,
    /// Its WordNet synset, for ImageNet classes.
    pub synset: Option<String>,
    /// Probability from 0 to 1, or logit.
    pub score: f32,
}

/// What a score is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Score {
    /// Softmax over all classes.
    #[default]
    Probability,
    /// What the network gives.
    Logit,
}

impl Classifier {
    /// Makes `checkpoint` runnable on `device`: by the engine with all cores on the CPU, by candle elsewhere. Its
    /// architecture must have a head.
    pub fn new(checkpoint: &Checkpoint, device: &Device) -> Result<Classifier> {
        Classifier::with_options(checkpoint, device, EngineOptions::default())
    }

    /// As [`Classifier::new`], with the engine's options.
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

    /// What the checkpoint says about itself.
    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    /// How an image becomes the network's input.
    pub fn preprocess(&self) -> &Preprocess {
        &self.meta.preprocess
    }

    /// The `k` best classes of each image by probability, best first.
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

    /// The logits `[K]` of each input, a `[C, H, W]` image as [`Preprocess::apply`] gives it.
    pub fn logits(&self, inputs: &[Vec<f32>]) -> Result<Vec<Vec<f32>>> {
        if inputs.is_empty() {
            return Ok(vec![]);
        }
        let [height, width] = self.meta.preprocess.crop;
        self.runtime.rows(inputs.concat(), [inputs.len(), self.meta.arch.in_channels(), height, width])
    }

    /// The network.
    pub fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// The `k` best classes of one image's logits, best first; of equal scores the lower class first.
    pub fn top_k(&self, logits: &[f32], k: usize, score: Score) -> Vec<Prediction> {
        top_k(logits, k, score, &self.meta.labels)
    }
}

/// Probabilities of one image's logits, in f64.
pub fn softmax(logits: &[f32]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exps: Vec<f64> = logits.iter().map(|&x| (f64::from(x) - f64::from(max)).exp()).collect();
    let sum: f64 = exps.iter().sum();
    exps.into_iter().map(|e| e / sum).collect()
}

fn top_k(logits: &[f32], k: usize, score: Score, labels: &Labels) -> Vec<Prediction> {
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
                Score::Probability => probabilities[index] as f32,
            },
        }
    };
    order.into_iter().take(k).map(prediction).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn best_classes_come_first() {
        let labels = Labels::Names(["a", "b", "c", "d"].map(String::from).to_vec());
        let top = top_k(&[1.0, 3.0, 3.0, -1e30], 3, Score::Probability, &labels);
        assert_eq!(top.iter().map(|p| p.index).collect::<Vec<_>>(), [1, 2, 0]);
        assert_eq!(top[0].label.as_deref(), Some("b"));
        assert!((top[0].score - 0.46831053).abs() < 1e-6, "{}", top[0].score);
        assert_eq!(top_k(&[1.0, 3.0], 9, Score::Logit, &Labels::None)[0].score, 3.0);
    }

    #[test]
    fn large_logits_do_not_overflow() {
        let top = top_k(&[1e30, 0.0], 2, Score::Probability, &Labels::None);
        assert_eq!((top[0].score, top[1].score), (1.0, 0.0));
    }
}
