//! How good a network is: shares of images right, by class, whom it takes for whom.

use candle_core::Device;
use image::RgbImage;
use rayon::prelude::*;
use resnet_image::preprocess::Resize;
use resnet_model::classifier::softmax;
use resnet_model::engine::EngineOptions;
use resnet_model::{Checkpoint, Preprocess, Runtime};
use serde::Serialize;
use std::sync::Arc;

use crate::Result;
use crate::config::require;
use crate::dataset::Dataset;

/// How images are looked at.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Views {
    /// Whether scores are averaged over four corners and the centre and their mirror images, instead of the centre.
    pub ten_crop: bool,
    /// Lengths of the shorter side in pixels over which scores are averaged; empty: that of the preprocessing.
    pub sizes: Vec<usize>,
}

/// A network with its preprocessing.
#[derive(Debug)]
pub struct Model {
    runtime: Runtime,
    preprocess: Preprocess,
    classes: usize,
}

impl Model {
    /// The network of `checkpoint` on `device`, for batches of `batch` images. Error: it has no head.
    pub fn new(checkpoint: &Checkpoint, device: &Device, batch: usize) -> Result<Model> {
        let options = EngineOptions { batch, ..EngineOptions::default() };
        let classes = checkpoint.meta().arch.classes().ok_or_else(|| resnet_model::Error::NoHead)?;
        let preprocess = checkpoint.meta().preprocess.clone();
        Ok(Model { runtime: Runtime::new(checkpoint, device, options)?, preprocess, classes })
    }

    /// Number of classes.
    pub fn classes(&self) -> usize {
        self.classes
    }
}

/// The figures of an evaluation.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Evaluation {
    /// Images evaluated.
    pub images: usize,
    /// Mean cross entropy.
    pub loss: f64,
    /// Images whose class has the highest score.
    pub top1: usize,
    /// Images whose class is among the five highest.
    pub top5: usize,
    /// `confusion[class][answer]`: images of `class` taken for `answer`.
    pub confusion: Vec<Vec<u32>>,
    /// Images that could not be read, and why.
    pub skipped: Vec<String>,
}

impl Evaluation {
    /// Share of images right.
    pub fn top1_share(&self) -> f64 {
        self.top1 as f64 / self.images.max(1) as f64
    }

    /// Share of images right within five answers.
    pub fn top5_share(&self) -> f64 {
        self.top5 as f64 / self.images.max(1) as f64
    }

    /// Images right and images, by class.
    pub fn per_class(&self) -> Vec<[usize; 2]> {
        let of = |(class, row): (usize, &Vec<u32>)| {
            let all = row.iter().map(|&n| n as usize).sum();
            [row.get(class).map_or(0, |&n| n as usize), all]
        };
        self.confusion.iter().enumerate().map(of).collect()
    }
}

/// Evaluates the images `indices`; several models are an ensemble, whose probabilities are averaged. `progress` is told
/// the number of images done since the last call.
///
/// Errors: no model, models whose number of classes is not the dataset's.
pub fn evaluate(
    models: &[Model],
    dataset: &Dataset,
    indices: &[usize],
    views: &Views,
    batch: usize,
    progress: &mut dyn FnMut(usize),
) -> Result<Evaluation> {
    let classes = dataset.classes().len();
    require("models", models.len(), "at least one", !models.is_empty())?;
    for model in models {
        require("classes of a model", model.classes, "as many as the dataset has", model.classes == classes)?;
    }
    let mut evaluation = Evaluation {
        images: 0,
        loss: 0.0,
        top1: 0,
        top5: 0,
        confusion: vec![vec![0; classes]; classes],
        skipped: Vec::new(),
    };
    let mut loss = 0.0;
    for part in indices.chunks(batch.max(1)) {
        let opened: Vec<_> = part
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
        let scores = probabilities(models, &images, views, batch)?;
        for ((class, _), scores) in images.iter().zip(&scores) {
            let own = scores.get(*class).copied().unwrap_or(0.0);
            // The first of equal scores wins, as in an argmax; no numbers are a wrong answer.
            let before = |(k, s): &(usize, &f64)| **s > own || (**s == own && k < class);
            let rank = match own.is_nan() {
                true => usize::MAX,
                false => scores.iter().enumerate().filter(before).count(),
            };
            let mut best = if own.is_nan() { usize::from(*class == 0) } else { 0 };
            for (k, score) in scores.iter().enumerate() {
                if *score > scores[best] {
                    best = k;
                }
            }
            evaluation.images += 1;
            evaluation.top1 += usize::from(rank == 0);
            evaluation.top5 += usize::from(rank < 5);
            evaluation.confusion[*class][best] += 1;
            loss -= if own.is_nan() { own } else { own.max(f64::MIN_POSITIVE).ln() };
        }
        progress(part.len());
    }
    evaluation.loss = loss / evaluation.images.max(1) as f64;
    Ok(evaluation)
}

/// Probabilities of every image, averaged over models, sizes and crops.
fn probabilities(
    models: &[Model],
    images: &[(usize, Arc<RgbImage>)],
    views: &Views,
    batch: usize,
) -> Result<Vec<Vec<f64>>> {
    let mut sums: Vec<Vec<f64>> = Vec::new();
    let mut count = 0.0;
    for model in models {
        for preprocess in views.preprocesses(&model.preprocess) {
            let inputs: Vec<Vec<Vec<f32>>> = images
                .par_iter()
                .map(|(_, image)| match views.ten_crop {
                    true => ten_crops(image, &preprocess),
                    false => Ok(vec![preprocess.apply(image)?]),
                })
                .collect::<Result<_>>()?;
            let crops = inputs.first().map_or(0, Vec::len);
            let flat: Vec<&Vec<f32>> = inputs.iter().flatten().collect();
            let [c, h, w] = preprocess.shape();
            let mut rows = Vec::with_capacity(flat.len());
            for part in flat.chunks(batch.max(1)) {
                let values: Vec<f32> = part.iter().flat_map(|v| v.iter().copied()).collect();
                rows.extend(model.runtime.rows(values, [part.len(), c, h, w])?);
            }
            sums.resize(images.len(), vec![0.0; model.classes]);
            for (index, row) in rows.iter().enumerate() {
                let sum = &mut sums[index / crops.max(1)];
                sum.iter_mut().zip(softmax(row)).for_each(|(sum, p)| *sum += p);
            }
            count += crops as f64;
        }
    }
    sums.iter_mut().flatten().for_each(|p| *p /= f64::max(count, 1.0));
    Ok(sums)
}

impl Views {
    /// One preprocessing for each size.
    fn preprocesses(&self, preprocess: &Preprocess) -> Vec<Preprocess> {
        let sized = |&size: &usize| Preprocess { resize: Resize::ShorterSide(size), ..preprocess.clone() };
        if self.sizes.is_empty() { vec![preprocess.clone()] } else { self.sizes.iter().map(sized).collect() }
    }
}

/// Four corners and the centre, and their mirror images (the paper's 10-crop testing).
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
    // A crop larger than the image is padded by the preprocessing; then there is one place to take it from.
    let [height, width] = [height.max(h), width.max(w)];
    let whole = Preprocess { crop: [height, width], ..preprocess.clone() }.apply(image)?;
    let (down, right) = (height - h, width - w);
    let places = [
        [0, 0],
        [0, right],
        [down, 0],
        [down, right],
        [(down as f64 / 2.0).round() as usize, (right as f64 / 2.0).round() as usize],
    ];
    let mut crops = Vec::with_capacity(10);
    for [top, left] in places {
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
    use resnet_model::{Arch, synthetic, zoo};

    fn data() -> Dataset {
        let image = |i: u32| {
            let pixel =
                move |x: u32, y: u32| image::Rgb([(x * i) as u8, (y * 3 + i * 20) as u8, (x * y) as u8]);
            Arc::new(RgbImage::from_fn(40, 36, pixel))
        };
        let images = (0..9).map(|i| (image(i), i as usize % 3)).collect();
        Dataset::memory(vec!["a".into(), "b".into(), "c".into()], images, 0.0, 1).unwrap()
    }

    fn arch() -> Arch {
        zoo::arch("resnet20_cifar").unwrap().with_classes(3)
    }

    fn model() -> Model {
        let checkpoint = synthetic::checkpoint(&arch()).unwrap();
        let mut meta = checkpoint.meta().clone();
        meta.preprocess = Preprocess::torchvision(36, 32);
        Model::new(&checkpoint.with_meta(meta).unwrap(), &Device::Cpu, 4).unwrap()
    }

    #[test]
    fn figures_agree_with_each_other() {
        let data = data();
        let (mut done, one) = (0, [model()]);
        for views in [
            Views::default(),
            Views { ten_crop: true, sizes: vec![] },
            Views { ten_crop: true, sizes: vec![34, 40] },
        ] {
            let e = evaluate(&one, &data, &data.all(), &views, 4, &mut |n| done += n).unwrap();
            let right: u32 = (0..3).map(|i| e.confusion[i][i]).sum();
            assert_eq!((e.images, e.top1, e.top5), (9, right as usize, 9), "{views:?}");
            assert_eq!(e.per_class().iter().map(|c| c[1]).collect::<Vec<_>>(), [3; 3]);
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
    fn scores_that_are_no_numbers_are_wrong() {
        let parameters = resnet_model::Parameters::new(&arch(), Default::default(), &Device::Cpu).unwrap();
        let bias = parameters.var("fc.bias").unwrap();
        bias.set(&(bias.as_tensor() * f64::NAN).unwrap()).unwrap();
        let meta = resnet_model::Meta::new(arch(), Preprocess::torchvision(36, 32));
        let model = Model::new(&parameters.checkpoint(meta).unwrap(), &Device::Cpu, 4).unwrap();
        let data = data();
        let e = evaluate(&[model], &data, &data.all(), &Views::default(), 4, &mut |_| {}).unwrap();
        assert_eq!((e.images, e.top1, e.top5, e.loss.is_nan()), (9, 0, 0, true));
        assert!((0..3).all(|class| e.confusion[class][class] == 0), "{:?}", e.confusion);
    }

    #[test]
    fn ten_crops_hold_the_centre_and_its_mirror_image() {
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
    fn other_classes_are_refused() {
        let checkpoint = synthetic::checkpoint(&zoo::arch("resnet20_cifar").unwrap()).unwrap();
        let model = Model::new(&checkpoint, &Device::Cpu, 1).unwrap();
        let data = data();
        let error = evaluate(&[model], &data, &data.all(), &Views::default(), 1, &mut |_| {}).unwrap_err();
        assert!(error.to_string().contains("classes of a model` is 10"), "{error}");
    }
}
