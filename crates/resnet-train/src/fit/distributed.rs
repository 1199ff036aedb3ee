//! Communication of a run with the other ranks; a single process sends and receives nothing.

use std::sync::atomic::Ordering;

use candle_core::{Device, Tensor, Var};
use resnet_model::param_specs::Role;

use super::{Begin, Trainer};
use crate::config::{Config, differences};
use crate::dataset::Dataset;
use crate::distributed::{Buckets, Shard};
use crate::error::require;
use crate::eval::{Evaluation, Views, evaluate};
use crate::event::Event;
use crate::state::Progress;
use crate::{Error, Result};
use resnet_model::engine::EngineOptions;
use resnet_model::{Checkpoint, Classifier, RawTensor};

/// State that a step changes before its gradients are summed over all ranks.
pub(super) struct LastStep {
    statistics: Vec<(Var, Tensor)>,
    progress: Progress,
}

/// Returns an error if the settings do not work with several processes.
pub(super) fn check(config: &Config, dataset: &Dataset, shard: Shard, is_cpu: bool) -> Result<()> {
    if shard.world_size == 1 {
        return Ok(());
    }
    let images = dataset.train().len();
    let world_size = shard.world_size;
    require("world size", world_size, "at most the number of training images", world_size <= images)?;
    require("sync_bn", config.sync_bn, "false, except on the CPU", is_cpu || !config.sync_bn)?;
    let mixed = config.augment.mixup > 0.0 || config.augment.cutmix > 0.0;
    let even = !mixed || config.batch_size.is_multiple_of(2);
    require(
        "batch_size",
        config.batch_size,
        "an even number, for several processes with mixup or CutMix",
        even,
    )
}

impl Trainer<'_> {
    fn is_single(&self) -> bool {
        self.group.world_size() == 1
    }

    /// Returns this rank's result, or an error if another rank failed.
    pub(super) fn agree<T>(&self, own: Result<T>) -> Result<T> {
        if self.is_single() {
            return own;
        }
        let mut failed = [f64::from(u8::from(own.is_err()))];
        self.group.all_reduce(&mut failed)?;
        match own {
            Ok(_) if failed[0] > 0.0 => Err(Error::PeerFailed),
            own => own,
        }
    }

    /// Returns all variables of the run with their names in a state.
    pub(super) fn variables(&self) -> Result<Vec<(String, &Var)>> {
        let mut variables = Vec::new();
        for (prefix, parameters) in [("model", Some(&self.parameters)), ("ema", self.ema.as_ref())] {
            let Some(parameters) = parameters else { continue };
            for param in parameters.list() {
                variables.push((format!("{prefix}/{}", param.name), parameters.var(&param.name)?));
            }
        }
        variables.extend(self.optimizer.state().map(|(name, var)| (format!("optimizer/{name}"), var)));
        Ok(variables)
    }

    /// Broadcasts the state of rank 0, if all ranks have the same settings, and saves that of a new run.
    pub(super) fn broadcast_state(&mut self, on: &mut dyn FnMut(Event), begin: Begin) -> Result<()> {
        if self.is_single() {
            return Ok(());
        }
        let invalid = |e: serde_json::Error| Error::Syntax(e.to_string());
        let mut bytes = serde_json::to_vec(&self.progress).map_err(invalid)?;
        // Serialized and parsed like rank 0's: JSON may not preserve the last bit.
        let own: Progress = serde_json::from_slice(&bytes).map_err(invalid)?;
        self.group.broadcast(0, &mut bytes)?;
        let progress: Progress = serde_json::from_slice(&bytes).map_err(invalid)?;
        let differences = differences(&progress.settings, &own.settings);
        self.agree(match differences.is_empty() {
            true => Ok(()),
            false => Err(Error::SettingsMismatch { rank: self.group.rank(), differences }),
        })?;
        for (name, var) in self.variables()? {
            let own = RawTensor::from_candle(&var.as_detached_tensor().to_device(&Device::Cpu)?)?;
            let mut bytes = own.read().map_err(resnet_model::Error::from)?;
            self.group.broadcast(0, &mut bytes)?;
            let missing = || resnet_model::Error::Missing(name.clone());
            let tensor = RawTensor::new(own.dtype(), own.shape().to_vec(), std::sync::Arc::new(bytes));
            let tensor = tensor.ok_or_else(missing)?;
            var.set(&match tensor.scalar() {
                Some(count) => Tensor::new(count, var.device())?,
                None => tensor.to_candle(&name, var.dtype(), var.device())?,
            })?;
        }
        self.optimizer.set_steps(progress.step);
        self.progress = progress;
        // A run must be resumable from the first step on, whenever a rank is lost.
        if begin == Begin::New { self.save(on) } else { Ok(()) }
    }

    /// Returns `true` if the run must stop; the same on all ranks.
    pub(super) fn stop_requested(&self) -> bool {
        if self.is_single() { self.stop.load(Ordering::Relaxed) } else { self.stopping }
    }

    /// Returns the fraction of a batch that this rank's `images` are; `None` if a rank has none, and the batch is skipped.
    pub(super) fn batch_weight(&self, images: usize) -> Result<Option<f64>> {
        let mut sums = [images as f64, f64::from(u8::from(images == 0))];
        if !self.is_single() {
            self.group.all_reduce(&mut sums)?;
        }
        Ok((sums[1] == 0.0).then(|| images as f64 / sums[0]))
    }

    /// Sums the metrics of a step, and stop requests, over all ranks.
    pub(super) fn totals(&mut self, loss: f64, images: usize, correct: usize) -> Result<(f64, usize, usize)> {
        if self.is_single() {
            return Ok((loss, images, correct));
        }
        let stop = f64::from(u8::from(self.stop.load(Ordering::Relaxed)));
        let mut sums = [loss, images as f64, correct as f64, stop];
        self.group.all_reduce(&mut sums)?;
        self.stopping = sums[3] > 0.0;
        Ok((sums[0], sums[1] as usize, sums[2] as usize))
    }

    /// Returns the unreadable images of all ranks, in the same order on each.
    pub(super) fn gather_skipped(&self, skipped: &[String]) -> Result<Vec<String>> {
        let mut sums = [skipped.len() as f64];
        if self.is_single() {
            return Ok(skipped.to_vec());
        }
        self.group.all_reduce(&mut sums)?;
        let mut all = Vec::new();
        if sums[0] > 0.0 {
            for root in 0..self.group.world_size() {
                let mut bytes = skipped.join("\n").into_bytes();
                self.group.broadcast(root, &mut bytes)?;
                let text = String::from_utf8_lossy(&bytes);
                all.extend(text.split('\n').filter(|why| !why.is_empty()).map(str::to_owned));
            }
        }
        Ok(all)
    }

    /// Averages the running statistics, which each rank updated by its own batch, over all ranks.
    pub(super) fn average_statistics(&self) -> Result<()> {
        if self.is_single() || self.config.sync_bn || self.config.freeze_bn {
            return Ok(());
        }
        let module = |name: &str| name.rsplit_once('.').map_or(name, |(module, _)| module).to_owned();
        let trained = self.parameters.trained(&self.config.trained())?;
        let trained: std::collections::BTreeSet<String> =
            trained.into_iter().map(|(param, _)| module(&param.name)).collect();
        let mut buckets = Buckets::new(self.group);
        let mut updated = Vec::new();
        for param in self.parameters.list() {
            if matches!(param.role, Role::RunningMean | Role::RunningVar)
                && trained.contains(&module(&param.name))
            {
                let var = self.parameters.var(&param.name)?;
                buckets.add(var, var.as_detached_tensor())?;
                updated.push(var);
            }
        }
        // Sums arrive in the order in which they were added.
        let mut updated = updated.into_iter();
        buckets.finish(|_, sum| {
            let mean = (sum / self.group.world_size() as f64)?;
            updated.next().map_or(Ok(()), |var| Ok(var.set(&mean)?))
        })?;
        Ok(())
    }

    /// Copies the state that a step changes before it is complete.
    pub(super) fn remember_step(&mut self) -> Result<()> {
        if self.is_single() {
            return Ok(());
        }
        let mut statistics = Vec::new();
        for param in self.parameters.list().iter().filter(|param| !param.role.is_trainable()) {
            let var = self.parameters.var(&param.name)?;
            statistics.push((var.clone(), var.as_detached_tensor().copy()?));
        }
        self.last = Some(LastStep { statistics, progress: self.progress.clone() });
        Ok(())
    }

    /// Saves the state of the last complete step, after another rank was lost.
    pub(super) fn save_last_step(&mut self, on: &mut dyn FnMut(Event)) -> Result<()> {
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

    /// Evaluates the images `indices`, a shard on each rank; the confusion matrix is that of this rank only.
    pub(super) fn evaluate(&self, checkpoint: &Checkpoint, indices: &[usize]) -> Result<Evaluation> {
        let batch = self.config.batch_size;
        let options = EngineOptions { batch, ..EngineOptions::default() };
        let model = Classifier::with_options(checkpoint, self.parameters.device(), options)?;
        let own = self.recipe.shard.select(indices);
        let mut e = evaluate(&[model], &self.dataset, &own, &Views::default(), batch, &mut |_| {})?;
        if self.is_single() {
            return Ok(e);
        }
        let mut sums = [e.images as f64, e.loss * e.images as f64, e.top1 as f64, e.top5 as f64];
        self.group.all_reduce(&mut sums)?;
        (e.images, e.top1, e.top5) = (sums[0] as usize, sums[2] as usize, sums[3] as usize);
        e.loss = sums[1] / sums[0].max(1.0);
        e.skipped = self.gather_skipped(&e.skipped)?;
        Ok(e)
    }
}
