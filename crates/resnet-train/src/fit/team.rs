//! What a run does because of other workers; alone, next to nothing.

use std::sync::atomic::Ordering;

use candle_core::{Device, Tensor, Var};
use resnet_model::param_specs::Role;

use super::{Begin, Trainer};
use crate::config::{Config, differences, require};
use crate::dataset::Dataset;
use crate::eval::{Evaluation, Model, Views, evaluate};
use crate::event::Event;
use crate::loader::Batch;
use crate::state::Progress;
use crate::workers::{Buckets, Part};
use crate::{Error, Result};
use resnet_model::{Checkpoint, RawTensor};

/// What a step changes before its gradients are those of all workers.
pub(super) struct Last {
    statistics: Vec<(Var, Tensor)>,
    progress: Progress,
}

/// Refuses settings that make no sense for several workers.
pub(super) fn check(config: &Config, dataset: &Dataset, part: Part) -> Result<()> {
    if part.count == 1 {
        return Ok(());
    }
    let images = dataset.train().len();
    require("workers", part.count, "at most the images to train on", part.count <= images)?;
    let mixed = config.augment.mixup > 0.0 || config.augment.cutmix > 0.0;
    let even = !mixed || config.batch_size.is_multiple_of(2);
    require("batch_size", config.batch_size, "even, for several workers with mixup or CutMix", even)
}

impl Trainer<'_> {
    fn alone(&self) -> bool {
        self.team.count() == 1
    }

    /// This worker's result, unless another one has failed.
    pub(super) fn agree<T>(&self, own: Result<T>) -> Result<T> {
        if self.alone() {
            return own;
        }
        let mut failed = [f64::from(u8::from(own.is_err()))];
        self.team.sum(&mut failed)?;
        match own {
            Ok(_) if failed[0] > 0.0 => Err(Error::OtherWorker),
            own => own,
        }
    }

    /// Every variable of the run by the name that it has in a state.
    pub(super) fn variables(&self) -> Result<Vec<(String, &Var)>> {
        let mut variables = Vec::new();
        for (part, parameters) in [("model", Some(&self.parameters)), ("average", self.average.as_ref())] {
            let Some(parameters) = parameters else { continue };
            for param in parameters.list() {
                variables.push((format!("{part}/{}", param.name), parameters.var(&param.name)?));
            }
        }
        variables.extend(self.moving.memory().map(|(name, var)| (format!("optimizer/{name}"), var)));
        Ok(variables)
    }

    /// Gives the first worker's state to all, if their settings are the same; its folder then holds one.
    pub(super) fn share_all(&mut self, on: &mut dyn FnMut(Event), begin: Begin) -> Result<()> {
        if self.alone() {
            return Ok(());
        }
        let invalid = |e: serde_json::Error| Error::Syntax(e.to_string());
        let mut bytes = serde_json::to_vec(&self.progress).map_err(invalid)?;
        // Written and read, as the first worker's: JSON may not keep the last bit.
        let own: Progress = serde_json::from_slice(&bytes).map_err(invalid)?;
        self.team.share(0, &mut bytes)?;
        let progress: Progress = serde_json::from_slice(&bytes).map_err(invalid)?;
        let differences = differences(&progress.settings, &own.settings);
        self.agree(match differences.is_empty() {
            true => Ok(()),
            false => Err(Error::OtherSettings { rank: self.team.rank(), differences }),
        })?;
        for (name, var) in self.variables()? {
            let own = RawTensor::from_candle(&var.as_detached_tensor().to_device(&Device::Cpu)?)?;
            let mut bytes = own.read().map_err(resnet_model::Error::from)?;
            self.team.share(0, &mut bytes)?;
            let lost = || resnet_model::Error::Missing(name.clone());
            let tensor = RawTensor::new(own.dtype(), own.shape().to_vec(), std::sync::Arc::new(bytes));
            let tensor = tensor.ok_or_else(lost)?;
            var.set(&match tensor.scalar() {
                Some(count) => Tensor::new(count, var.device())?,
                None => tensor.to_candle(&name, var.dtype(), var.device())?,
            })?;
        }
        self.moving.set_steps(progress.step);
        self.progress = progress;
        // So that there is something to resume whenever a worker dies.
        if begin == Begin::New { self.save(on) } else { Ok(()) }
    }

    /// Whether this run is to end; all workers say the same.
    pub(super) fn told_to_stop(&self) -> bool {
        if self.alone() { self.stop.load(Ordering::Relaxed) } else { self.stopping }
    }

    /// What share of a batch `images` of this worker are; `None` if a worker has none, and the batch is left out.
    pub(super) fn share_of(&self, images: usize) -> Result<Option<f64>> {
        let mut sums = [images as f64, f64::from(u8::from(images == 0))];
        if !self.alone() {
            self.team.sum(&mut sums)?;
        }
        Ok((sums[1] == 0.0).then(|| images as f64 / sums[0]))
    }

    /// Sums of a step over all workers; whether one was told to stop goes with them.
    pub(super) fn totals(&mut self, loss: f64, images: usize, right: usize) -> Result<(f64, usize, usize)> {
        if self.alone() {
            return Ok((loss, images, right));
        }
        let stop = f64::from(u8::from(self.stop.load(Ordering::Relaxed)));
        let mut sums = [loss, images as f64, right as f64, stop];
        self.team.sum(&mut sums)?;
        self.stopping = sums[3] > 0.0;
        Ok((sums[0], sums[1] as usize, sums[2] as usize))
    }

    /// The images that any worker could not read, in the same order on each.
    pub(super) fn skipped_by_all(&self, batch: &Batch) -> Result<Vec<String>> {
        let mut sums = [batch.skipped.len() as f64];
        if self.alone() {
            return Ok(batch.skipped.clone());
        }
        self.team.sum(&mut sums)?;
        let mut all = Vec::new();
        if sums[0] > 0.0 {
            for root in 0..self.team.count() {
                let mut bytes = batch.skipped.join("\n").into_bytes();
                self.team.share(root, &mut bytes)?;
                let text = String::from_utf8_lossy(&bytes);
                all.extend(text.split('\n').filter(|why| !why.is_empty()).map(str::to_owned));
            }
        }
        Ok(all)
    }

    /// Running statistics that each worker moved by its own batch become their mean.
    pub(super) fn average_statistics(&self) -> Result<()> {
        if self.alone() || self.config.sync_bn || self.config.freeze_statistics {
            return Ok(());
        }
        let module = |name: &str| name.rsplit_once('.').map_or(name, |(module, _)| module).to_owned();
        let trained = self.parameters.trained(&self.config.trained())?;
        let trained: std::collections::BTreeSet<String> =
            trained.into_iter().map(|(param, _)| module(&param.name)).collect();
        let mut buckets = Buckets::new(self.team);
        let mut moved = Vec::new();
        for param in self.parameters.list() {
            if matches!(param.role, Role::RunningMean | Role::RunningVar)
                && trained.contains(&module(&param.name))
            {
                let var = self.parameters.var(&param.name)?;
                buckets.add(var, var.as_detached_tensor())?;
                moved.push(var);
            }
        }
        // Sums come in the order in which they were added.
        let mut moved = moved.into_iter();
        buckets.finish(|_, sum| {
            let mean = (sum / self.team.count() as f64)?;
            moved.next().map_or(Ok(()), |var| Ok(var.set(&mean)?))
        })?;
        Ok(())
    }

    /// Keeps what a step changes before it is whole.
    pub(super) fn remember(&mut self) -> Result<()> {
        if self.alone() {
            return Ok(());
        }
        let mut statistics = Vec::new();
        for param in self.parameters.list().iter().filter(|param| !param.role.is_trainable()) {
            let var = self.parameters.var(&param.name)?;
            statistics.push((var.clone(), var.as_detached_tensor().copy()?));
        }
        self.last = Some(Last { statistics, progress: self.progress.clone() });
        Ok(())
    }

    /// Saves the state of the last whole step, once others have been lost.
    pub(super) fn rescue(&mut self, on: &mut dyn FnMut(Event)) -> Result<()> {
        if let Some(last) = self.last.take()
            && last.progress.step == self.progress.step
        {
            for (var, value) in last.statistics {
                var.set(&value)?;
            }
            self.progress = last.progress;
        }
        if let Some(path) = self.write_state()? {
            on(Event::Saved { path });
        }
        Ok(())
    }

    /// Evaluates the images `indices`, a part on each worker.
    pub(super) fn evaluate(&self, checkpoint: &Checkpoint, indices: &[usize]) -> Result<Evaluation> {
        let batch = self.config.batch_size;
        let model = Model::new(checkpoint, self.parameters.device(), batch)?;
        let own = self.recipe.part.of(indices);
        let mut e = evaluate(&[model], &self.dataset, &own, &Views::default(), batch, &mut |_| {})?;
        if self.alone() {
            return Ok(e);
        }
        let mut sums = vec![e.images as f64, e.loss * e.images as f64, e.top1 as f64, e.top5 as f64];
        sums.extend(e.confusion.iter().flatten().map(|&n| f64::from(n)));
        self.team.sum(&mut sums)?;
        (e.images, e.top1, e.top5) = (sums[0] as usize, sums[2] as usize, sums[3] as usize);
        e.loss = sums[1] / sums[0].max(1.0);
        e.confusion.iter_mut().flatten().zip(&sums[4..]).for_each(|(n, &sum)| *n = sum as u32);
        Ok(e)
    }
}
