//! Batches, decoded and augmented by all threads while the network computes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use candle_core::{Device, Tensor};
use rayon::prelude::*;
use resnet_model::Preprocess;

use crate::Result;
use crate::augment::{Augment, mix};
use crate::dataset::{Dataset, ImageSource, purpose};
use crate::distributed::Shard;
use crate::loss::one_hot;
use crate::random::Random;

/// Number of prefetched batches.
const PREFETCH: usize = 2;

/// Settings of batches.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// Augmentation.
    pub augment: Augment,
    /// Preprocessing: input size and normalization.
    pub preprocess: Preprocess,
    /// Seed of all random numbers.
    pub seed: u64,
    /// Images per batch and process.
    pub batch_size: usize,
    /// Shard of every batch that this process loads.
    pub shard: Shard,
}

/// A batch of network inputs.
#[derive(Debug)]
pub struct Batch {
    /// `[N, C, H, W]`.
    pub images: Vec<f32>,
    /// Shape of `images`; `N` is 0 if no image could be read.
    pub dims: [usize; 4],
    /// Target probabilities `[N, K]`.
    pub targets: Vec<f32>,
    /// Classes `[N]` before mixing.
    pub classes: Vec<usize>,
    /// Images that could not be read, and why.
    pub skipped: Vec<String>,
}

impl Batch {
    /// Returns images and targets as tensors.
    pub fn tensors(&self, device: &Device) -> Result<(Tensor, Tensor)> {
        let n = self.dims[0];
        let targets = Tensor::from_slice(&self.targets, (n, self.targets.len() / n.max(1)), device)?;
        Ok((Tensor::from_slice(&self.images, &self.dims, device)?, targets))
    }
}

impl Recipe {
    /// Returns the indices of the training images in the order of an epoch.
    pub fn order(&self, dataset: &Dataset, epoch: usize) -> Vec<usize> {
        let train = dataset.train();
        let mut random = Random::new(self.seed, &[purpose::ORDER, epoch as u64]);
        random.permutation(train.len()).into_iter().map(|i| train[i]).collect()
    }

    /// Loads batch `number` of an epoch from the images `indices`. The result does not depend on the number of threads.
    pub fn batch(&self, dataset: &Dataset, indices: &[usize], epoch: usize, number: usize) -> Batch {
        let one = |&index: &usize| -> Result<(Vec<f32>, usize), String> {
            let Some(sample) = dataset.sample(index) else {
                return Err(format!("invalid image index {index}"));
            };
            let mut random = Random::new(self.seed, &[purpose::AUGMENT, epoch as u64, index as u64]);
            let values = self.augment.apply(&sample.image, &self.preprocess, &mut random);
            Ok((values.map_err(|e| name(&sample.image, &e))?, sample.class))
        };
        let results: Vec<_> = indices.par_iter().map(one).collect();
        let (mut images, mut classes, mut skipped) = (Vec::new(), Vec::new(), Vec::new());
        for result in results {
            match result {
                Ok((values, class)) => {
                    images.extend_from_slice(&values);
                    classes.push(class);
                }
                Err(why) => skipped.push(why),
            }
        }
        let [c, h, w] = self.preprocess.shape();
        let dims = [classes.len(), c, h, w];
        let mut targets = one_hot(&classes, dataset.classes().len());
        let mut random = Random::new(self.seed, &[purpose::MIX, epoch as u64, number as u64]);
        mix(&self.augment, &mut images, &mut targets, dims, &mut random);
        Batch { images, dims, targets, classes, skipped }
    }
}

fn name(image: &ImageSource, error: &dyn std::fmt::Display) -> String {
    match image {
        // Most decoding errors name the file.
        ImageSource::File(path) => {
            let (path, error) = (path.display().to_string(), error.to_string());
            if error.contains(&path) { error } else { format!("`{path}`: {error}") }
        }
        ImageSource::Memory(_) => error.to_string(),
    }
}

/// Iterator over the batches of an epoch, prefetched by a separate thread; dropping it stops the thread.
#[derive(Debug)]
pub struct Loader {
    receiver: Option<Receiver<Batch>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// Returns the number of batches in an epoch; the incomplete last batch is dropped, unless it is the only one.
pub fn batches(images: usize, batch_size: usize) -> usize {
    (images / batch_size.max(1)).max(usize::from(images > 0))
}

impl Loader {
    /// Starts at batch `first` of an epoch.
    pub fn new(recipe: Recipe, dataset: Arc<Dataset>, epoch: usize, first: usize) -> Result<Loader> {
        let (sender, receiver) = sync_channel(PREFETCH);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let work = move || produce(&recipe, &dataset, epoch, first, &sender, &stopped);
        let builder = std::thread::Builder::new().name("resnet-loader".into());
        let thread =
            builder.spawn(work).map_err(|e| crate::Error::io(std::path::Path::new("loader thread"))(e))?;
        Ok(Loader { receiver: Some(receiver), stop, thread: Some(thread) })
    }
}

fn produce(
    recipe: &Recipe,
    dataset: &Dataset,
    epoch: usize,
    first: usize,
    sender: &SyncSender<Batch>,
    stop: &AtomicBool,
) {
    let order = recipe.order(dataset, epoch);
    let total = recipe.batch_size.max(1) * recipe.shard.world_size;
    let count = batches(order.len(), total);
    for (number, indices) in order.chunks(total).take(count).enumerate().skip(first) {
        let own = recipe.shard.select(indices);
        if stop.load(Ordering::Relaxed) || sender.send(recipe.batch(dataset, &own, epoch, number)).is_err() {
            return;
        }
    }
}

impl Iterator for Loader {
    type Item = Batch;

    fn next(&mut self) -> Option<Batch> {
        self.receiver.as_ref()?.recv().ok()
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Closing the channel wakes a blocked producer.
        self.receiver = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use image::RgbImage;

    use super::*;

    fn dataset(count: u32) -> Arc<Dataset> {
        let image = |i: u32| Arc::new(RgbImage::from_pixel(12, 10, image::Rgb([(i * 9) as u8; 3])));
        let images = (0..count).map(|i| (image(i), (i % 2) as usize)).collect();
        Arc::new(Dataset::from_images(vec!["a".into(), "b".into()], images, 0.0, 1).unwrap())
    }

    fn recipe(batch_size: usize) -> Recipe {
        let preprocess = Preprocess::torchvision(8, 8);
        Recipe {
            augment: Augment { mixup: 0.2, ..Augment::default() },
            preprocess,
            seed: 5,
            batch_size,
            shard: Shard::WHOLE,
        }
    }

    #[test]
    fn batches_do_not_depend_on_threads() {
        let data = dataset(10);
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let recipe = recipe(4);
                let order = recipe.order(&data, 3);
                recipe.batch(&data, &order[..4], 3, 0).images
            })
        };
        assert_eq!(run(1), run(3));
        let loaded: Vec<Batch> = Loader::new(recipe(4), data.clone(), 3, 0).unwrap().collect();
        assert_eq!((loaded.len(), &loaded[0].images), (2, &run(1)));
        let later: Vec<Batch> = Loader::new(recipe(4), data, 3, 1).unwrap().collect();
        assert_eq!(later[0].images, loaded[1].images);
    }

    #[test]
    fn every_epoch_is_a_permutation() {
        let data = dataset(12);
        let recipe = recipe(4);
        let orders: Vec<Vec<usize>> = (0..3).map(|epoch| recipe.order(&data, epoch)).collect();
        assert!(orders[0] != orders[1] && orders[1] != orders[2]);
        for mut order in orders {
            order.sort_unstable();
            assert_eq!(order, data.train());
        }
    }

    #[test]
    fn a_loader_can_be_dropped_early() {
        let mut loader = Loader::new(recipe(1), dataset(50), 0, 0).unwrap();
        assert!(loader.next().is_some());
        drop(loader);
        assert_eq!([batches(0, 4), batches(3, 4), batches(9, 4)], [0, 1, 2]);
    }

    #[test]
    fn unreadable_images_are_named() {
        let dir = tempfile::tempdir().unwrap();
        for (class, name) in [("a", "good.png"), ("a", "bad.png"), ("b", "good.png")] {
            std::fs::create_dir_all(dir.path().join(class)).unwrap();
            let path = dir.path().join(class).join(name);
            match name {
                "bad.png" => std::fs::write(&path, b"not an image").unwrap(),
                _ => RgbImage::new(9, 9).save(&path).unwrap(),
            }
        }
        let data = Dataset::from_folder(dir.path(), 0.0, 1).unwrap();
        let batch = recipe(3).batch(&data, &data.all(), 0, 0);
        assert_eq!((batch.dims[0], batch.classes.as_slice()), (2, &[0, 1][..]));
        assert!(batch.skipped.len() == 1 && batch.skipped[0].contains("bad.png"), "{:?}", batch.skipped);
    }
}
