//! Training runs: epochs of steps, evaluation, saved states.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use candle_core::backprop::GradStore;
use candle_core::{DType, Tensor};
use resnet_model::network::{DropConfig, ProcessGroup, SingleProcess};
use resnet_model::{Labels, Meta, Network, Parameters};

use crate::config::{Config, Keep};
use crate::dataset::{Dataset, purpose};
use crate::distributed::{Communicator, Shard};
use crate::error::require;
use crate::eval::Evaluation;
use crate::event::{EpochMetrics, Event};
use crate::loader::{Batch, Loader, Recipe, batches};
use crate::optim::{Optimizer, fused2};
use crate::random::Random;
use crate::state::{Folder, Progress};
use crate::{Error, Result};

mod distributed;
mod files;

/// Inputs of a run.
#[derive(Debug)]
pub struct Run<'a> {
    /// Settings.
    pub config: &'a Config,
    /// Images.
    pub dataset: Arc<Dataset>,
    /// Initial parameters; they are updated in place.
    pub parameters: Parameters,
    /// Metadata of the result; labels and metrics are filled in.
    pub meta: Meta,
    /// Output folder of states, the resulting network and the curves.
    pub folder: &'a Path,
    /// New run or resumed run.
    pub begin: Begin,
    /// Stop request: once `true`, the run finishes the step, saves the state and ends.
    pub stop: &'a AtomicBool,
}

/// Start of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begin {
    /// A new run; the folder must not contain one.
    New,
    /// A resumed run; the folder must contain one with the same settings.
    Resume,
}

/// Result of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// Checkpoint of the best network, or the last with [`Keep::Last`]; `None` if the run was stopped before the first
    /// evaluation.
    pub checkpoint: Option<PathBuf>,
    /// Metrics of all epochs done.
    pub records: Vec<EpochMetrics>,
    /// Reason of the end.
    pub end: End,
}

/// Reason why a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// All epochs are done.
    Complete,
    /// Early stopping: no improvement for `patience` epochs.
    EarlyStopping,
    /// Stop request; the run can be resumed.
    Stopped,
}

/// File name of the resulting network in a run's folder.
pub const MODEL: &str = "model.safetensors";
/// File name of the training curves in a run's folder.
pub const CURVES: &str = "curves.svg";

/// Trains a network in this process; `on` receives progress events.
///
/// # Errors
/// Invalid settings, unreadable images or files, a loss that is not finite, a folder with another run or without one to
/// resume.
pub fn fit(run: Run, on: &mut dyn FnMut(Event)) -> Result<Report> {
    fit_distributed(run, &SingleProcess, on)
}

/// Trains a network in all processes of `group`, each of which calls this with the same run.
///
/// The total batch size is `batch_size` × world size. With synchronized or frozen batch norm statistics and without
/// dropout, loss and gradients equal those of a single process with the total batch size. Only rank 0 writes files; all
/// ranks receive the same events.
///
/// # Errors
/// Those of [`fit`], and ranks with different settings. If another rank is lost, rank 0 first saves the state of the last
/// complete step.
pub fn fit_distributed(run: Run, group: &dyn Communicator, on: &mut dyn FnMut(Event)) -> Result<Report> {
    let mut trainer = Trainer::new(run, group, on)?;
    let end = match trainer.run(on) {
        Err(error @ Error::Model(resnet_model::Error::ProcessGroup { .. })) => {
            trainer.save_last_step(on)?;
            return Err(error);
        }
        end => end?,
    };
    let checkpoint = Some(trainer.path.join(MODEL)).filter(|path| path.exists());
    Ok(Report { checkpoint, records: trainer.progress.records, end })
}

struct Trainer<'a> {
    config: Config,
    group: &'a dyn Communicator,
    dataset: Arc<Dataset>,
    recipe: Recipe,
    meta: Meta,
    parameters: Parameters,
    network: Network,
    optimizer: Optimizer,
    ema: Option<Parameters>,
    path: &'a Path,
    /// On rank 0 only.
    folder: Option<Folder>,
    stop: &'a AtomicBool,
    /// `true` if any rank received a stop request.
    stopping: bool,
    progress: Progress,
    /// State to restore if a step fails halfway.
    last: Option<distributed::LastStep>,
    /// Batches and steps per epoch.
    per_epoch: usize,
    steps: u64,
}

impl<'a> Trainer<'a> {
    fn new(run: Run<'a>, group: &'a dyn Communicator, on: &mut dyn FnMut(Event)) -> Result<Trainer<'a>> {
        let Run { config, dataset, parameters, mut meta, folder, begin, stop } = run;
        config.validate()?;
        let mut config = config.clone();
        let classes = dataset.classes().len();
        let outputs = meta.arch.classes().unwrap_or(0);
        require(
            "classes of the network",
            outputs,
            "the number of classes of the dataset",
            outputs == classes,
        )?;
        let same = meta.arch == *parameters.arch();
        require("architecture", &meta.arch, "that of the parameters", same)?;
        let shard = Shard { rank: group.rank(), world_size: group.world_size() };
        let per_epoch = batches(dataset.train().len(), config.batch_size * shard.world_size);
        distributed::check(&config, &dataset, shard, parameters.device().is_cpu())?;
        let lr = config.default_lr(false, shard.world_size);
        let lr = *config.schedule.lr.get_or_insert(lr);
        require(
            "grad_accum_steps",
            config.grad_accum_steps,
            "at most the number of batches in an epoch",
            config.grad_accum_steps <= per_epoch,
        )?;
        meta.labels = Labels::Names(dataset.classes().to_vec());
        let trained = config.trained();
        let recipe = Recipe {
            augment: config.augment.clone(),
            preprocess: meta.preprocess.clone(),
            seed: config.seed,
            batch_size: config.batch_size,
            shard,
        };
        let invalid = |e: serde_json::Error| Error::Syntax(e.to_string());
        let mut settings = serde_json::json!({
            "config": serde_json::to_value(&config).map_err(invalid)?,
            "architecture": serde_json::to_value(&meta.arch).map_err(invalid)?,
            "preprocess": serde_json::to_value(&meta.preprocess).map_err(invalid)?,
            "images": format!("{} train, {} val, {:016x}", dataset.train().len(), dataset.val().len(), dataset.fingerprint()),
        });
        if shard.world_size > 1 {
            settings["world_size"] = shard.world_size.into();
        }
        let steps_per_epoch = per_epoch / config.grad_accum_steps;
        let mut trainer = Trainer {
            network: parameters.network(&trained, config.statistics())?,
            optimizer: Optimizer::new(&config.optimizer, &parameters, &trained)?,
            ema: config.ema_decay.map(|_| parameters.copy()).transpose()?,
            path: folder,
            folder: None,
            last: None,
            stopping: false,
            progress: Progress::new(settings),
            steps: (config.epochs * steps_per_epoch) as u64,
            config,
            group,
            dataset,
            recipe,
            meta,
            parameters,
            stop,
            per_epoch,
        };
        let opened = trainer.open(begin, on);
        trainer.agree(opened)?;
        trainer.broadcast_state(on, begin)?;
        on(Event::Started {
            train: trainer.dataset.train().len(),
            val: trainer.dataset.val().len(),
            classes,
            steps: trainer.steps,
            lr,
            resumed: (begin == Begin::Resume).then_some(trainer.progress.step),
        });
        Ok(trainer)
    }

    fn run(&mut self, on: &mut dyn FnMut(Event)) -> Result<End> {
        while self.progress.epoch < self.config.epochs {
            if self.config.patience.is_some_and(|patience| self.progress.since_best >= patience) {
                return Ok(End::EarlyStopping);
            }
            if !self.epoch(on)? {
                return Ok(End::Stopped);
            }
        }
        Ok(End::Complete)
    }

    /// Runs the rest of the current epoch; returns `false` on a stop request.
    fn epoch(&mut self, on: &mut dyn FnMut(Event)) -> Result<bool> {
        let first = self.progress.batch;
        let mut loader = Loader::new(self.recipe.clone(), self.dataset.clone(), self.progress.epoch, first)?;
        let mut lr = self.config.schedule.at(self.progress.step.saturating_sub(1), self.steps);
        while self.progress.batch + self.config.grad_accum_steps <= self.per_epoch {
            if self.stop_requested() {
                drop(loader);
                self.save(on)?;
                return Ok(false);
            }
            lr = self.step(&mut loader, on)?;
            let due = |every| self.progress.step.is_multiple_of(every);
            if self.config.save_every.is_some_and(due) {
                self.save(on)?;
            }
        }
        drop(loader);
        self.finish_epoch(lr, on)?;
        Ok(true)
    }

    /// Takes one step on `grad_accum_steps` batches; returns the learning rate.
    fn step(&mut self, loader: &mut Loader, on: &mut dyn FnMut(Event)) -> Result<f64> {
        self.remember_step()?;
        let lr = self.config.schedule.at(self.progress.step, self.steps);
        let mut gradients: Option<GradStore> = None;
        let (mut loss_sum, mut images, mut correct) = (0.0, 0, 0);
        // `true` once the gradients are summed over all ranks.
        let mut reduced = self.group.world_size() == 1;
        for turn in 1..=self.config.grad_accum_steps {
            let batch = loader.next().ok_or_else(|| Error::Syntax("the data loader ended early".into()))?;
            self.progress.batch += 1;
            self.count_skipped(&batch.skipped, on)?;
            let n = batch.dims[0];
            let Some(weight) = self.batch_weight(n)? else { continue };
            reduced = reduced || turn == self.config.grad_accum_steps;
            let (loss, batch_correct, sum) = self.gradients(&batch, weight, gradients.take(), reduced)?;
            gradients = Some(sum);
            loss_sum += loss * n as f64;
            images += n;
            correct += batch_correct;
        }
        (loss_sum, images, correct) = self.totals(loss_sum, images, correct)?;
        let loss = loss_sum / images.max(1) as f64;
        if !loss.is_finite() {
            return Err(self.diverged("loss", loss, lr));
        }
        let mut norm = 0.0;
        if let Some(mut gradients) = gradients {
            if !reduced {
                gradients = self.optimizer.all_reduce(gradients, self.group)?;
            }
            let grad = self.optimizer.grad_norm(&gradients, self.config.clip_grad)?;
            norm = grad.norm;
            if !norm.is_finite() {
                return Err(self.diverged("norm of the gradients", norm, lr));
            }
            self.average_statistics()?;
            // No collective from here to the end of the step: a lost rank is noticed before the update, or after the step.
            self.optimizer.step(&gradients, lr, grad.scale)?;
            self.update_ema()?;
        }
        self.progress.correct += correct;
        self.progress.step += 1;
        self.progress.seen += images;
        self.progress.loss_sum = (f64::from_bits(self.progress.loss_sum) + loss_sum).to_bits();
        on(Event::Step {
            step: self.progress.step,
            steps: self.steps,
            epoch: self.progress.epoch,
            loss,
            lr,
            grad_norm: norm,
            images,
        });
        Ok(lr)
    }

    /// Returns loss, number of correct images and gradients of a batch. This rank has the fraction `weight` of its images.
    /// Gradients are of the mean over the step, with the `accumulated` ones added, and summed over all ranks if `reduce`.
    fn gradients(
        &self,
        batch: &Batch,
        weight: f64,
        accumulated: Option<GradStore>,
        reduce: bool,
    ) -> Result<(f64, usize, GradStore)> {
        let (images, targets) = batch.tensors(self.parameters.device())?;
        let norms: &dyn ProcessGroup = if self.config.sync_bn { self.group } else { &SingleProcess };
        let tape = self.network.train_forward(&images, self.drop_config(), norms)?;
        let loss = self.config.loss.forward(tape.logits(), &targets)?;
        let value = f64::from(loss.to_dtype(DType::F32)?.to_scalar::<f32>()?);
        let correct = correct(tape.logits(), &batch.classes)?;
        let divisor = self.config.grad_accum_steps as f64 / weight;
        let scaled = if divisor == 1.0 { loss } else { (loss / divisor)? };
        if reduce && self.group.world_size() > 1 {
            let all = crate::distributed::gradients(tape, &scaled, accumulated.as_ref(), self.group)?;
            return Ok((value, correct, all));
        }
        let mut gradients = tape.gradients(&scaled)?;
        if let Some(mut sum) = accumulated {
            sum.extend(gradients)?;
            gradients = sum;
        }
        Ok((value, correct, gradients))
    }

    /// Returns the dropout of this batch, seeded by its position in the run, so that a resumed run drops the same.
    fn drop_config(&self) -> DropConfig {
        let mut key = vec![purpose::DROP, self.progress.epoch as u64, self.progress.batch as u64];
        // Each rank drops other features.
        key.extend((self.group.rank() > 0).then_some(self.group.rank() as u64));
        DropConfig {
            dropout: self.config.dropout,
            drop_path: self.config.drop_path,
            seed: Random::new(self.config.seed, &key).bits(),
        }
    }

    fn diverged(&self, what: &'static str, value: f64, lr: f64) -> Error {
        Error::Diverged { step: self.progress.step, what, value, lr }
    }

    fn count_skipped(&mut self, skipped: &[String], on: &mut dyn FnMut(Event)) -> Result<()> {
        for why in &self.gather_skipped(skipped)? {
            self.progress.unreadable += 1;
            on(Event::Skipped { why: why.clone() });
            // Each image is read once per epoch.
            let limit = self.max_unreadable(self.dataset.train()) * (self.progress.epoch + 1);
            if self.progress.unreadable > limit {
                let (found, last) = (self.progress.unreadable, why.clone());
                return Err(Error::Unreadable { found, limit, last });
            }
        }
        Ok(())
    }

    fn max_unreadable(&self, images: &[usize]) -> usize {
        (self.config.max_unreadable * images.len() as f64).ceil() as usize
    }

    /// Updates the exponential moving average of the parameters.
    fn update_ema(&self) -> Result<()> {
        let (Some(ema), Some(decay)) = (&self.ema, self.config.ema_decay) else { return Ok(()) };
        let decay = decay as f32;
        for param in self.parameters.list() {
            let (to, from) = (ema.var(&param.name)?, self.parameters.var(&param.name)?);
            match to.dtype() {
                DType::F32 => fused2(to, &from.as_detached_tensor(), |a, b| decay * a + (1.0 - decay) * b)?,
                _ => to.set(&from.as_detached_tensor())?,
            }
        }
        Ok(())
    }

    /// Evaluates the network, saves it if it is the result so far, and saves the state.
    fn finish_epoch(&mut self, lr: f64, on: &mut dyn FnMut(Event)) -> Result<()> {
        let result = self.ema.as_ref().unwrap_or(&self.parameters);
        self.check_finite(result, lr)?;
        let mut checkpoint = result.checkpoint(self.meta.clone())?;
        let dataset = self.dataset.clone();
        let (train, val) = (dataset.train(), dataset.val());
        // Finite parameters can still produce NaN; without a validation set, a few training images show it.
        let some = self.config.batch_size.min(train.len());
        let evaluation = self.evaluate(&checkpoint, if val.is_empty() { &train[..some] } else { val })?;
        if !val.is_empty() {
            evaluation.skipped.iter().for_each(|why| on(Event::Skipped { why: why.clone() }));
            let (found, limit) = (evaluation.skipped.len(), self.max_unreadable(val));
            if let Some(last) = evaluation.skipped.last().filter(|_| found > limit || evaluation.images == 0)
            {
                return Err(Error::Unreadable { found, limit, last: last.clone() });
            }
        }
        if !evaluation.loss.is_finite() {
            return Err(self.diverged("validation loss", evaluation.loss, lr));
        }
        let evaluation = (!val.is_empty()).then_some(evaluation);
        let seen = self.progress.seen.max(1) as f64;
        let record = EpochMetrics {
            epoch: self.progress.epoch,
            step: self.progress.step,
            loss: f64::from_bits(self.progress.loss_sum) / seen,
            train_top1: self.progress.correct as f64 / seen,
            lr,
            val_loss: evaluation.as_ref().map(|e| e.loss),
            val_top1: evaluation.as_ref().map(Evaluation::top1_accuracy),
        };
        self.progress.records.push(record);
        self.progress.epoch += 1;
        (self.progress.batch, self.progress.seen, self.progress.correct) = (0, 0, 0);
        self.progress.loss_sum = 0f64.to_bits();
        on(Event::Epoch(record));
        if self.is_best(evaluation.as_ref()) || self.config.keep == Keep::Last {
            let mut meta = self.meta.clone();
            meta.metrics.insert("epoch".into(), self.progress.epoch as f64);
            if let Some(e) = &evaluation {
                meta.metrics.insert("top1".into(), 100.0 * e.top1_accuracy());
                meta.metrics.insert("top5".into(), 100.0 * e.top5_accuracy());
            }
            checkpoint = checkpoint.with_meta(meta)?;
            let written = self.write_best(&checkpoint);
            self.agree(written)?;
            on(Event::Best { path: self.path.join(MODEL) });
        }
        let drawn = self.draw();
        self.agree(drawn)?;
        self.save(on)
    }

    /// Returns `true` and remembers the metrics if they are the best so far; without validation, the latest is the best.
    fn is_best(&mut self, evaluation: Option<&Evaluation>) -> bool {
        let Some(e) = evaluation else { return true };
        let better = self
            .progress
            .best
            .is_none_or(|(top1, loss)| e.top1 > top1 || (e.top1 == top1 && e.loss < f64::from_bits(loss)));
        match better {
            true => (self.progress.best, self.progress.since_best) = (Some((e.top1, e.loss.to_bits())), 0),
            false => self.progress.since_best += 1,
        }
        better
    }
}

/// Counts the rows of `logits` `[N, K]` whose argmax is the class.
fn correct(logits: &Tensor, classes: &[usize]) -> Result<usize> {
    let predicted = logits.detach().argmax(1)?.to_vec1::<u32>()?;
    Ok(predicted.iter().zip(classes).filter(|(predicted, class)| **predicted as usize == **class).count())
}

#[cfg(test)]
mod tests;
