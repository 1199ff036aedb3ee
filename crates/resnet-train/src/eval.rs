//! Evaluation: loss, top-1 and top-5 accuracy, per-class accuracy, confusion matrix.

use std::collections::BTreeMap;
use std::sync::Arc;

use image::RgbImage;
use rayon::prelude::*;
use resnet_image::preprocess::Resize;
use resnet_model::{Classifier, Preprocess};

use crate::Result;
use crate::dataset::Dataset;
use crate::error::require;

/// Views of each image whose scores are averaged.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Views {
    /// If `true`, four corner crops, the center crop and their mirror images; otherwise the center crop.
    pub ten_crop: bool,
    /// Lengths of the shorter side in pixels; empty: that of the preprocessing.
    pub sizes: Vec<usize>,
}

/// Metrics of an evaluation.
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluation {
    /// Number of images evaluated.
    pub images: usize,
    /// Mean cross-entropy.
    pub loss: f64,
    /// Images whose class has the highest score.
    pub top1: usize,
    /// Images whose class is among the five highest scores.
    pub top5: usize,
    /// Nonzero entries of the confusion matrix: number of images by `(class, predicted class)`.
    pub confusion: BTreeMap<(usize, usize), usize>,
    /// Images that could not be read, and why.
    pub skipped: Vec<String>,
}

impl Evaluation {
    /// Returns the top-1 accuracy, 0 to 1.
    pub fn top1_accuracy(&self) -> f64 {
        self.top1 as f64 / self.images.max(1) as f64
    }

    /// Returns the top-5 accuracy, 0 to 1.
    pub fn top5_accuracy(&self) -> f64 {
        self.top5 as f64 / self.images.max(1) as f64
    }

    /// Returns the number of correct images and of all images of each class that has images.
    pub fn per_class(&self) -> BTreeMap<usize, [usize; 2]> {
        let mut classes = BTreeMap::new();
        for (&(class, predicted), &count) in &self.confusion {
            let [correct, images] = classes.entry(class).or_insert([0; 2]);
            *correct += if class == predicted { count } else { 0 };
            *images += count;
        }
        classes
    }
}

/// Evaluates the images `indices` in batches of `batch_size`; several models form an ensemble, whose probabilities are
/// averaged. `progress` receives the number of images done since the last call.
///
/// # Errors
/// No model, or a model whose number of classes differs from the dataset's.
pub fn evaluate(
    models: &[Classifier],
    dataset: &Dataset,
    indices: &[usize],
    views: &Views,
    batch_size: usize,
    progress: &mut dyn FnMut(usize),
) -> Result<Evaluation> {
    let classes = dataset.classes().len();
    require("models", models.len(), "at least one", !models.is_empty())?;
    for model in models {
        let found = model.meta().arch.classes().unwrap_or(0);
        require("classes of a model", found, "the number of classes of the dataset", found == classes)?;
    }
    let mut evaluation = Evaluation {
        images: 0,
        loss: 0.0,
        top1: 0,
        top5: 0,
        confusion: BTreeMap::new(),
        skipped: Vec::new(),
    };
    let mut loss = 0.0;
    for chunk in indices.chunks(batch_size.max(1)) {
        let opened: Vec<_> = chunk
            .par_iter()
            .filter_map(|&index| dataset.sample(index))
            .map(|sample| (sample.class, sample.image.open()))
            .collect();
        let mut images = Vec::new();
        for (class, image) in opened {
            match image {
                Ok(image) => images.push((class, image)),
                Err(why) => evaluation.skipped.push(why.to_string()),
            }
        }
        let scores = scores(models, &images, views, batch_size)?;
        for ((class, _), Scores { probabilities, log_probabilities }) in images.iter().zip(&scores) {
            let own = probabilities.get(*class).copied().unwrap_or(0.0);
            // The first of equal scores wins, as in argmax; NaN counts as wrong.
            let before = |(k, s): &(usize, &f64)| **s > own || (**s == own && k < class);
            let rank = match own.is_nan() {
                true => usize::MAX,
                false => probabilities.iter().enumerate().filter(before).count(),
            };
            let mut best = if own.is_nan() { usize::from(*class == 0) } else { 0 };
            for (k, score) in probabilities.iter().enumerate() {
                if *score > probabilities[best] {
                    best = k;
                }
            }
            evaluation.images += 1;
            evaluation.top1 += usize::from(rank == 0);
            evaluation.top5 += usize::from(rank < 5);
            *evaluation.confusion.entry((*class, best)).or_default() += 1;
            loss -= log_sum_exp(log_probabilities.iter().copied()) - (log_probabilities.len() as f64).ln();
        }
        progress(chunk.len());
    }
    evaluation.loss = loss / evaluation.images.max(1) as f64;
    Ok(evaluation)
}

/// Scores of one image over all models and views.
#[derive(Clone)]
struct Scores {
    /// Mean probabilities `[K]`.
    probabilities: Vec<f64>,
    /// Log-probability of the image's class in each view. A probability underflows to 0 where its logarithm is finite.
    log_probabilities: Vec<f64>,
}

fn log_sum_exp(values: impl Iterator<Item = f64> + Clone) -> f64 {
    let max = values.clone().fold(f64::NEG_INFINITY, f64::max);
    max + values.map(|x| (x - max).exp()).sum::<f64>().ln()
}

fn scores(
    models: &[Classifier],
    images: &[(usize, Arc<RgbImage>)],
    views: &Views,
    batch_size: usize,
) -> Result<Vec<Scores>> {
    let mut all = vec![Scores { probabilities: Vec::new(), log_probabilities: Vec::new() }; images.len()];
    for model in models {
        for preprocess in views.preprocesses(model.preprocess()) {
            let inputs: Vec<Vec<Vec<f32>>> = images
                .par_iter()
                .map(|(_, image)| match views.ten_crop {
                    true => ten_crops(image, &preprocess),
                    false => Ok(vec![preprocess.apply(image)?]),
                })
                .collect::<Result<_>>()?;
            let crops = inputs.first().map_or(0, Vec::len).max(1);
            let flat: Vec<&Vec<f32>> = inputs.iter().flatten().collect();
            let [c, h, w] = preprocess.shape();
            let mut rows = Vec::with_capacity(flat.len());
            for chunk in flat.chunks(batch_size.max(1)) {
                let values: Vec<f32> = chunk.iter().flat_map(|v| v.iter().copied()).collect();
                rows.extend(model.runtime().rows(values, [chunk.len(), c, h, w])?);
            }
            for (index, logits) in rows.iter().enumerate() {
                let (class, scores) = (images[index / crops].0, &mut all[index / crops]);
                let log_sum = log_sum_exp(logits.iter().map(|&x| f64::from(x)));
                scores.probabilities.resize(logits.len(), 0.0);
                scores
                    .log_probabilities
                    .push(logits.get(class).map_or(f64::NAN, |&x| f64::from(x) - log_sum));
                let probabilities = logits.iter().map(|&x| (f64::from(x) - log_sum).exp());
                scores.probabilities.iter_mut().zip(probabilities).for_each(|(sum, p)| *sum += p);
            }
        }
    }
    for scores in &mut all {
        let count = scores.log_probabilities.len().max(1) as f64;
        scores.probabilities.iter_mut().for_each(|p| *p /= count);
    }
    Ok(all)
}

impl Views {
    /// Returns one preprocessing per size.
    fn preprocesses(&self, preprocess: &Preprocess) -> Vec<Preprocess> {
        let sized = |&size: &usize| Preprocess { resize: Resize::ShorterSide(size), ..preprocess.clone() };
        if self.sizes.is_empty() { vec![preprocess.clone()] } else { self.sizes.iter().map(sized).collect() }
    }
}

/// Returns four corner crops, the center crop and their mirror images (10-crop testing of the ResNet paper).
fn ten_crops(image: &RgbImage, preprocess: &Preprocess) -> Result<Vec<Vec<f32>>> {
    let size = [image.height() as usize, image.width() as usize];
    let scaled = |factor: f64| size.map(|side| (side as f64 * factor).round().max(1.0) as usize);
    let factors = |to: [usize; 2]| [0, 1].map(|axis| to[axis] as f64 / size[axis].max(1) as f64);
    let [height, width] = match preprocess.resize {
        Resize::Exact(size) => size,
        Resize::Cover(to) => scaled(factors(to)[0].max(factors(to)[1])),
        Resize::Contain(to) => scaled(factors(to)[0].min(factors(to)[1])),
        Resize::ShorterSide(side) => {
            let [h, w] = size;
            let longer = |long: usize, short: usize| side * long / short.max(1);
            if w <= h { [longer(h, w), side] } else { [side, longer(w, h)] }
        }
    };
    let preprocess = &Preprocess { resize: Resize::Exact([height, width]), ..preprocess.clone() };
    let [h, w] = preprocess.crop;
    // The preprocessing pads an image that is smaller than the crop.
    let [height, width] = [height.max(h), width.max(w)];
    let whole = Preprocess { crop: [height, width], ..preprocess.clone() }.apply(image)?;
    let (down, right) = (height - h, width - w);
    let origins = [
        [0, 0],
        [0, right],
        [down, 0],
        [down, right],
        [(down as f64 / 2.0).round() as usize, (right as f64 / 2.0).round() as usize],
    ];
    let mut crops = Vec::with_capacity(10);
    for [top, left] in origins {
        let crop: Vec<f32> = whole
            .chunks_exact(height * width)
            .flat_map(|plane| plane.chunks_exact(width).skip(top).take(h))
            .flat_map(|row| row[left..left + w].iter().copied())
            .collect();
        let mirrored = crop.chunks_exact(w).flat_map(|row| row.iter().rev().copied()).collect();
        crops.extend([crop, mirrored]);
    }
    Ok(crops)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;
    use resnet_model::{Arch, Checkpoint, synthetic, zoo};

    fn data() -> Dataset {
        let image = |i: u32| {
            let pixel =
                move |x: u32, y: u32| image::Rgb([(x * i) as u8, (y * 3 + i * 20) as u8, (x * y) as u8]);
            Arc::new(RgbImage::from_fn(40, 36, pixel))
        };
        let images = (0..9).map(|i| (image(i), i as usize % 3)).collect();
        Dataset::from_images(vec!["a".into(), "b".into(), "c".into()], images, 0.0, 1).unwrap()
    }

    fn arch() -> Arch {
        zoo::arch("resnet20_cifar").unwrap().with_classes(3)
    }

    fn classifier(checkpoint: &Checkpoint) -> Classifier {
        Classifier::new(checkpoint, &Device::Cpu).unwrap()
    }

    fn model() -> Classifier {
        let checkpoint = synthetic::checkpoint(&arch()).unwrap();
        let mut meta = checkpoint.meta().clone();
        meta.preprocess = Preprocess::torchvision(36, 32);
        classifier(&checkpoint.with_meta(meta).unwrap())
    }

    #[test]
    fn metrics_are_consistent() {
        let data = data();
        let (mut done, one) = (0, [model()]);
        for views in [
            Views::default(),
            Views { ten_crop: true, sizes: vec![] },
            Views { ten_crop: true, sizes: vec![34, 40] },
        ] {
            let e = evaluate(&one, &data, &data.all(), &views, 4, &mut |n| done += n).unwrap();
            let correct: usize = e.per_class().values().map(|c| c[0]).sum();
            assert_eq!((e.images, e.top1, e.top5), (9, correct, 9), "{views:?}");
            assert_eq!(e.per_class().values().map(|c| c[1]).collect::<Vec<_>>(), [3; 3]);
            assert!(e.loss > 0.0 && e.loss.is_finite());
        }
        assert_eq!(done, 27);
        let views = Views::default();
        let single = evaluate(&one, &data, &data.all(), &views, 4, &mut |_| {}).unwrap();
        let twice = evaluate(&[model(), model()], &data, &data.all(), &views, 9, &mut |_| {}).unwrap();
        assert_eq!((single.top1, &single.confusion), (twice.top1, &twice.confusion));
        assert!((single.loss - twice.loss).abs() < 1e-6);
    }

    #[test]
    fn nan_scores_are_wrong() {
        let parameters = resnet_model::Parameters::new(&arch(), Default::default(), &Device::Cpu).unwrap();
        let bias = parameters.var("fc.bias").unwrap();
        bias.set(&(bias.as_tensor() * f64::NAN).unwrap()).unwrap();
        let meta = resnet_model::Meta::new(arch(), Preprocess::torchvision(36, 32));
        let model = classifier(&parameters.checkpoint(meta).unwrap());
        let data = data();
        let e = evaluate(&[model], &data, &data.all(), &Views::default(), 4, &mut |_| {}).unwrap();
        assert_eq!((e.images, e.top1, e.top5, e.loss.is_nan()), (9, 0, 0, true));
        assert!(e.per_class().values().all(|c| c[0] == 0), "{:?}", e.confusion);
    }

    #[test]
    fn ten_crops_include_the_center_and_its_mirror_image() {
        let data = data();
        let preprocess = Preprocess::torchvision(36, 32);
        let image = data.sample(4).unwrap().image.open().unwrap();
        let crops = ten_crops(&image, &preprocess).unwrap();
        assert_eq!((crops.len(), &crops[8]), (10, &preprocess.apply(&image).unwrap()));
        let mirrored: Vec<f32> = crops[8].chunks_exact(32).flat_map(|r| r.iter().rev().copied()).collect();
        assert_eq!(crops[9], mirrored);
        let small = ten_crops(&RgbImage::new(3, 3), &Preprocess::torchvision(16, 32)).unwrap();
        assert!(small.iter().all(|crop| crop.len() == 3 * 32 * 32));
    }

    #[test]
    fn a_different_number_of_classes_is_rejected() {
        let checkpoint = synthetic::checkpoint(&zoo::arch("resnet20_cifar").unwrap()).unwrap();
        let model = classifier(&checkpoint);
        let data = data();
        let error = evaluate(&[model], &data, &data.all(), &Views::default(), 1, &mut |_| {}).unwrap_err();
        assert!(error.to_string().contains("classes of a model` is 10"), "{error}");
    }
}
