//! A run: epochs of steps, evaluations, saved states.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use candle_core::backprop::GradStore;
use candle_core::{DType, Tensor};
use resnet_model::network::{DropConfig, ProcessGroup, SingleProcess};
use resnet_model::{Labels, Meta, Network, Parameters};

use crate::config::{Config, Keep, require};
use crate::dataset::{Dataset, purpose};
use crate::eval::Evaluation;
use crate::event::{Event, Record};
use crate::loader::{Batch, Loader, Recipe, batches};
use crate::optim::{Moving, fused2};
use crate::random::Random;
use crate::state::{Folder, Progress};
use crate::workers::{Part, Team};
use crate::{Error, Result, workers};

mod files;
mod team;

/// What a run is made of.
#[derive(Debug)]
pub struct Run<'a> {
    /// The settings.
    pub config: &'a Config,
    /// The images.
    pub dataset: Arc<Dataset>,
    /// Where training begins; they are changed.
    pub parameters: Parameters,
    /// What the result says about itself; labels and metrics are filled in.
    pub meta: Meta,
    /// Where states, the resulting network and the curves are written.
    pub folder: &'a Path,
    /// Whether a run in that folder is continued.
    pub begin: Begin,
    /// When it becomes true, the step is finished, the state saved, and the run ends.
    pub stop: &'a AtomicBool,
}

/// Whether a run begins or goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begin {
    /// The folder must hold no run.
    New,
    /// The folder must hold a run with the same settings.
    Resume,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// The best network, or the last where [`Keep::Last`] says so: a self-describing checkpoint. `None` if the run was
    /// stopped before the first evaluation.
    pub checkpoint: Option<PathBuf>,
    /// Figures of all epochs done.
    pub records: Vec<Record>,
    /// Why it ended.
    pub end: End,
}

/// Why a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// All epochs are done.
    Complete,
    /// It had not become better for as long as the configuration allows.
    Patience,
    /// It was told to stop; it can be resumed.
    Stopped,
}

/// The name of the resulting network in a run's folder.
pub const MODEL: &str = "model.safetensors";
/// The name of the curves in a run's folder.
pub const CURVES: &str = "curves.svg";

/// Trains; `on` is told what happens.
///
/// Errors: settings, images or files that cannot be used; a loss that is no number; a folder with another run or none.
pub fn fit(run: Run, on: &mut dyn FnMut(Event)) -> Result<Report> {
    fit_together(run, &SingleProcess, on)
}

/// [`fit`] by several workers, each of which calls this with the same run. A batch is `batch_size` images of each worker;
/// with synchronised or frozen statistics and without dropout, its loss and gradients are those of one worker with as
/// many images. Only the first worker writes files; all are told the same events.
///
/// Errors also: workers with different settings; others that cannot be reached, after the first worker has saved the state
/// of the last whole step.
pub fn fit_together(run: Run, team: &dyn Team, on: &mut dyn FnMut(Event)) -> Result<Report> {
    let mut trainer = Trainer::new(run, team, on)?;
    let end = match trainer.run(on) {
        Err(error @ Error::Model(resnet_model::Error::ProcessGroup { .. })) => {
            trainer.rescue(on)?;
            return Err(error);
        }
        end => end?,
    };
    let checkpoint = Some(trainer.path.join(MODEL)).filter(|path| path.exists());
    Ok(Report { checkpoint, records: trainer.progress.records, end })
}

struct Trainer<'a> {
    config: &'a Config,
    team: &'a dyn Team,
    dataset: Arc<Dataset>,
    recipe: Recipe,
    meta: Meta,
    parameters: Parameters,
    network: Network,
    moving: Moving,
    average: Option<Parameters>,
    path: &'a Path,
    /// The first worker's.
    folder: Option<Folder>,
    stop: &'a AtomicBool,
    /// Whether a worker was told to stop.
    stopping: bool,
    progress: Progress,
    /// What to return to when a step breaks off.
    last: Option<team::Last>,
    /// Batches and steps per epoch.
    per_epoch: usize,
    steps: u64,
}

impl<'a> Trainer<'a> {
    fn new(run: Run<'a>, team: &'a dyn Team, on: &mut dyn FnMut(Event)) -> Result<Trainer<'a>> {
        let Run { config, dataset, parameters, mut meta, folder, begin, stop } = run;
        config.validate()?;
        let classes = dataset.classes().len();
        let outputs = meta.arch.classes().unwrap_or(0);
        require("classes of the network", outputs, "as many as the dataset has", outputs == classes)?;
        let same = meta.arch == *parameters.arch();
        require("architecture", &meta.arch, "that of the parameters", same)?;
        let part = Part { rank: team.rank(), count: team.count() };
        let per_epoch = batches(dataset.train().len(), config.batch_size * part.count);
        team::check(config, &dataset, part)?;
        require(
            "accumulate",
            config.accumulate,
            "at most the batches of an epoch",
            config.accumulate <= per_epoch,
        )?;
        meta.labels = Labels::Names(dataset.classes().to_vec());
        let trained = config.trained();
        let recipe = Recipe {
            augment: config.augment.clone(),
            preprocess: meta.preprocess.clone(),
            seed: config.seed,
            batch_size: config.batch_size,
            part,
        };
        let invalid = |e: serde_json::Error| Error::Syntax(e.to_string());
        let mut settings = serde_json::json!({
            "config": serde_json::to_value(config).map_err(invalid)?,
            "architecture": serde_json::to_value(&meta.arch).map_err(invalid)?,
            "preprocess": serde_json::to_value(&meta.preprocess).map_err(invalid)?,
            "images": format!("{} and {} held out, {:016x}", dataset.train().len(), dataset.held_out().len(), dataset.fingerprint()),
        });
        if part.count > 1 {
            settings["workers"] = part.count.into();
        }
        let steps_per_epoch = per_epoch / config.accumulate;
        let mut trainer = Trainer {
            network: parameters.network(&trained, config.statistics())?,
            moving: Moving::new(&config.optimizer, &parameters, &trained)?,
            average: config.ema.map(|_| parameters.copy()).transpose()?,
            path: folder,
            folder: None,
            last: None,
            stopping: false,
            progress: Progress::new(settings),
            steps: (config.epochs * steps_per_epoch) as u64,
            config,
            team,
            dataset,
            recipe,
            meta,
            parameters,
            stop,
            per_epoch,
        };
        let opened = trainer.open(begin, on);
        trainer.agree(opened)?;
        trainer.share_all(on, begin)?;
        on(Event::Started {
            train: trainer.dataset.train().len(),
            held_out: trainer.dataset.held_out().len(),
            classes,
            steps: trainer.steps,
            resumed: (begin == Begin::Resume).then_some(trainer.progress.step),
        });
        Ok(trainer)
    }

    fn run(&mut self, on: &mut dyn FnMut(Event)) -> Result<End> {
        while self.progress.epoch < self.config.epochs {
            if self.config.patience.is_some_and(|patience| self.progress.since_best >= patience) {
                return Ok(End::Patience);
            }
            if !self.epoch(on)? {
                return Ok(End::Stopped);
            }
        }
        Ok(End::Complete)
    }

    /// The rest of the present epoch; `false` if it was told to stop.
    fn epoch(&mut self, on: &mut dyn FnMut(Event)) -> Result<bool> {
        let first = self.progress.batch;
        let mut loader = Loader::new(self.recipe.clone(), self.dataset.clone(), self.progress.epoch, first)?;
        let mut rate = self.config.schedule.at(self.progress.step.saturating_sub(1), self.steps);
        while self.progress.batch + self.config.accumulate <= self.per_epoch {
            if self.told_to_stop() {
                drop(loader);
                self.save(on)?;
                return Ok(false);
            }
            rate = self.step(&mut loader, on)?;
            let due = |every| self.progress.step.is_multiple_of(every);
            if self.config.save_every.is_some_and(due) {
                self.save(on)?;
            }
        }
        drop(loader);
        self.finish_epoch(rate, on)?;
        Ok(true)
    }

    /// One step on `accumulate` batches; the learning rate is returned.
    fn step(&mut self, loader: &mut Loader, on: &mut dyn FnMut(Event)) -> Result<f64> {
        self.remember()?;
        let rate = self.config.schedule.at(self.progress.step, self.steps);
        let mut gradients: Option<GradStore> = None;
        let (mut loss_sum, mut images, mut right) = (0.0, 0, 0);
        // Whether the gradients are those of all workers.
        let mut joint = self.team.count() == 1;
        for turn in 1..=self.config.accumulate {
            let batch = loader.next().ok_or_else(|| Error::Syntax("the loader ended early".into()))?;
            self.progress.batch += 1;
            self.count_skipped(&batch, on)?;
            let n = batch.dims[0];
            let Some(share) = self.share_of(n)? else { continue };
            joint = joint || turn == self.config.accumulate;
            let (loss, right_here, sum) = self.gradients(&batch, share, gradients.take(), joint)?;
            gradients = Some(sum);
            loss_sum += loss * n as f64;
            images += n;
            right += right_here;
        }
        (loss_sum, images, right) = self.totals(loss_sum, images, right)?;
        let loss = loss_sum / images.max(1) as f64;
        if !loss.is_finite() {
            return Err(self.diverged("loss", loss, rate));
        }
        let mut norm = 0.0;
        if let Some(mut gradients) = gradients {
            if !joint {
                gradients = self.moving.sum(gradients, self.team)?;
            }
            let gradient = self.moving.gradient(&gradients, self.config.clip)?;
            norm = gradient.norm;
            if !norm.is_finite() {
                return Err(self.diverged("norm of the gradients", norm, rate));
            }
            self.average_statistics()?;
            // Nothing is asked of the other workers from here to the end of the step, so that it breaks off before or not.
            self.moving.step(&gradients, rate, gradient.scale)?;
            self.average()?;
        }
        self.progress.right += right;
        self.progress.step += 1;
        self.progress.seen += images;
        self.progress.loss_sum = (f64::from_bits(self.progress.loss_sum) + loss_sum).to_bits();
        on(Event::Step {
            step: self.progress.step,
            steps: self.steps,
            epoch: self.progress.epoch,
            loss,
            rate,
            norm,
            images,
        });
        Ok(rate)
    }

    /// Loss and images right of a batch of which this worker has a `share`, and its gradients with the `earlier` ones of
    /// the step: those of the mean over the step, summed over the workers if `joint`.
    fn gradients(
        &self,
        batch: &Batch,
        share: f64,
        earlier: Option<GradStore>,
        joint: bool,
    ) -> Result<(f64, usize, GradStore)> {
        let (images, targets) = batch.tensors(self.parameters.device())?;
        let norms: &dyn ProcessGroup = if self.config.sync_bn { self.team } else { &SingleProcess };
        let backward = self.network.train_forward(&images, self.dropping(), norms)?;
        let loss = self.config.loss.of(backward.logits(), &targets)?;
        let value = f64::from(loss.to_dtype(DType::F32)?.to_scalar::<f32>()?);
        let right = right(backward.logits(), &batch.classes)?;
        let parts = self.config.accumulate as f64 / share;
        let part = if parts == 1.0 { loss } else { (loss / parts)? };
        if joint && self.team.count() > 1 {
            return Ok((value, right, workers::gradients(backward, &part, earlier.as_ref(), self.team)?));
        }
        let mut gradients = backward.gradients(&part)?;
        if let Some(mut sum) = earlier {
            sum.extend(gradients)?;
            gradients = sum;
        }
        Ok((value, right, gradients))
    }

    /// What this batch leaves out: chosen by its place in the run, so that a resumed one leaves out the same.
    fn dropping(&self) -> DropConfig {
        let mut place = vec![purpose::DROP, self.progress.epoch as u64, self.progress.batch as u64];
        // Another part of the batch, other features.
        place.extend((self.team.rank() > 0).then_some(self.team.rank() as u64));
        DropConfig {
            dropout: self.config.dropout,
            drop_path: self.config.drop_path,
            seed: Random::new(self.config.seed, &place).bits(),
        }
    }

    fn diverged(&self, what: &'static str, value: f64, rate: f64) -> Error {
        Error::Diverged { step: self.progress.step, what, value, rate }
    }

    fn count_skipped(&mut self, batch: &Batch, on: &mut dyn FnMut(Event)) -> Result<()> {
        for why in &self.skipped_by_all(batch)? {
            self.progress.unreadable += 1;
            on(Event::Skipped { why: why.clone() });
            // An image is met once per epoch.
            let per_epoch = (self.config.unreadable * self.dataset.train().len() as f64).ceil() as usize;
            let limit = per_epoch * (self.progress.epoch + 1);
            if self.progress.unreadable > limit {
                let (found, last) = (self.progress.unreadable, why.clone());
                return Err(Error::Unreadable { found, limit, last });
            }
        }
        Ok(())
    }

    /// Moves the averaged parameters towards the present ones.
    fn average(&self) -> Result<()> {
        let (Some(average), Some(decay)) = (&self.average, self.config.ema) else { return Ok(()) };
        let decay = decay as f32;
        for param in self.parameters.list() {
            let (to, from) = (average.var(&param.name)?, self.parameters.var(&param.name)?);
            match to.dtype() {
                DType::F32 => fused2(to, &from.as_detached_tensor(), |a, b| decay * a + (1.0 - decay) * b)?,
                _ => to.set(&from.as_detached_tensor())?,
            }
        }
        Ok(())
    }

    /// Evaluates, records, keeps the network if it is to be kept, and saves the state.
    fn finish_epoch(&mut self, rate: f64, on: &mut dyn FnMut(Event)) -> Result<()> {
        let result = self.average.as_ref().unwrap_or(&self.parameters);
        self.check_finite(result, rate)?;
        let mut checkpoint = result.checkpoint(self.meta.clone())?;
        let (train, held_out) = (self.dataset.train(), self.dataset.held_out());
        // Parameters that are numbers may still give scores that are none; a few images show it where none is held out.
        let some = self.config.batch_size.min(train.len());
        let evaluation =
            self.evaluate(&checkpoint, if held_out.is_empty() { &train[..some] } else { held_out })?;
        if !evaluation.loss.is_finite() {
            return Err(self.diverged("loss of the epoch's network", evaluation.loss, rate));
        }
        let evaluation = (!held_out.is_empty()).then_some(evaluation);
        let seen = self.progress.seen.max(1) as f64;
        let record = Record {
            epoch: self.progress.epoch,
            step: self.progress.step,
            loss: f64::from_bits(self.progress.loss_sum) / seen,
            train_top1: self.progress.right as f64 / seen,
            rate,
            held_out_loss: evaluation.as_ref().map(|e| e.loss),
            held_out_top1: evaluation.as_ref().map(Evaluation::top1_share),
        };
        self.progress.records.push(record);
        self.progress.epoch += 1;
        (self.progress.batch, self.progress.seen, self.progress.right) = (0, 0, 0);
        self.progress.loss_sum = 0f64.to_bits();
        on(Event::Epoch(record));
        if self.is_best(evaluation.as_ref()) || self.config.keep == Keep::Last {
            let mut meta = self.meta.clone();
            meta.metrics.insert("epoch".into(), self.progress.epoch as f64);
            if let Some(e) = &evaluation {
                meta.metrics.insert("top1".into(), 100.0 * e.top1_share());
                meta.metrics.insert("top5".into(), 100.0 * e.top5_share());
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

    /// Whether these figures are the best so far; without any, the latest network is.
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

/// How many rows of `logits` `[N, K]` are largest at the row's class.
fn right(logits: &Tensor, classes: &[usize]) -> Result<usize> {
    let answers = logits.detach().argmax(1)?.to_vec1::<u32>()?;
    Ok(answers.iter().zip(classes).filter(|(answer, class)| **answer as usize == **class).count())
}

#[cfg(test)]
mod tests;
