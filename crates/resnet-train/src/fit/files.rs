//! Files of a run: states, the best network, the curves. Only rank 0 has the folder.

use std::collections::BTreeMap;
use std::path::PathBuf;

use candle_core::{DType, Device};
use resnet_model::file::{Existing, write_atomically};
use resnet_model::{Checkpoint, Parameters, RawTensor};

use super::{Begin, CURVES, MODEL, Trainer};
use crate::config::differences;
use crate::event::Event;
use crate::state::{Folder, sync, sync_folder};
use crate::{Error, Result, plot};

impl Trainer<'_> {
    /// Opens the folder on rank 0, and restores the state of a resumed run.
    pub(super) fn open(&mut self, begin: Begin, on: &mut dyn FnMut(Event)) -> Result<()> {
        if self.group.rank() > 0 {
            return Ok(());
        }
        let folder = self.folder.insert(Folder::open(self.path)?);
        match begin {
            Begin::New if !folder.states()?.is_empty() => Err(Error::Exists(self.path.to_owned())),
            Begin::New => Ok(()),
            Begin::Resume => self.restore(on),
        }
    }

    fn restore(&mut self, on: &mut dyn FnMut(Event)) -> Result<()> {
        let Some(folder) = &self.folder else { return Ok(()) };
        let (progress, tensors, skipped) = folder.load()?;
        skipped.into_iter().for_each(|why| on(Event::Skipped { why }));
        let differences = differences(&progress.settings, &self.progress.settings);
        if !differences.is_empty() {
            return Err(Error::RunMismatch { path: self.path.to_owned(), differences });
        }
        let tensor = |name: String| {
            tensors.get(&name).ok_or_else(|| Error::Model(resnet_model::Error::Missing(name.clone())))
        };
        for param in self.parameters.list() {
            self.parameters.set(&param.name, tensor(format!("model/{}", param.name))?)?;
            if let Some(ema) = &self.ema {
                ema.set(&param.name, tensor(format!("ema/{}", param.name))?)?;
            }
        }
        for (name, var) in self.optimizer.state() {
            let saved = tensor(format!("optimizer/{name}"))?;
            var.set(&saved.to_candle(&name, DType::F32, self.parameters.device())?)?;
        }
        self.optimizer.set_steps(progress.step);
        self.progress = progress;
        Ok(())
    }

    pub(super) fn write_best(&self, checkpoint: &Checkpoint) -> Result<()> {
        if self.folder.is_none() {
            return Ok(());
        }
        let path = self.path.join(MODEL);
        checkpoint.save(&path, Existing::Replace, &mut |_| {})?;
        sync(&path)?;
        sync_folder(self.path)
    }

    pub(super) fn draw(&self) -> Result<()> {
        if self.folder.is_none() {
            return Ok(());
        }
        let curves = plot::run(&self.progress.records);
        write_atomically(&self.path.join(CURVES), Existing::Replace, |out| {
            Ok(std::io::Write::write_all(out, curves.as_bytes())?)
        })?;
        Ok(())
    }

    /// Returns an error if a parameter is NaN or infinite: such a state is useless.
    pub(super) fn check_finite(&self, parameters: &Parameters, lr: f64) -> Result<()> {
        for param in parameters.list() {
            let var = parameters.var(&param.name)?;
            if var.dtype() != DType::F32 {
                continue;
            }
            let sum = var.as_detached_tensor().abs()?.sum_all()?.to_scalar::<f32>()?;
            if !sum.is_finite() {
                return Err(self.diverged("L1 norm of a parameter", f64::from(sum), lr));
            }
        }
        Ok(())
    }

    pub(super) fn save(&mut self, on: &mut dyn FnMut(Event)) -> Result<()> {
        self.check_finite(&self.parameters, self.config.schedule.at(self.progress.step, self.steps))?;
        let saved = self.write_state();
        let path = self.agree(saved)?;
        path.into_iter().for_each(|path| on(Event::Saved { path }));
        Ok(())
    }

    /// Writes the state, on rank 0.
    pub(super) fn write_state(&self) -> Result<Option<PathBuf>> {
        let Some(folder) = &self.folder else { return Ok(None) };
        let mut tensors = BTreeMap::new();
        for (name, var) in self.variables()? {
            let tensor = var.as_detached_tensor().to_device(&Device::Cpu)?;
            tensors.insert(name, RawTensor::from_candle(&tensor)?);
        }
        Ok(Some(folder.save(&self.progress, &tensors)?))
    }
}
