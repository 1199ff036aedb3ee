//! How parameters move: SGD with momentum, AdamW and LAMB, as PyTorch and timm have them.

use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, DType, Device, InplaceOp2, InplaceOp3, Layout, Tensor, Var};
use rayon::prelude::*;
use resnet_model::Parameters;
use resnet_model::parameters::Trainable;
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::config::require;
use crate::workers::{Buckets, Team};

/// How parameters move.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Optimizer {
    /// Which.
    pub kind: Kind,
    /// For SGD: the share of the last movement that is kept.
    pub momentum: f64,
    /// For SGD: whether the movement looks ahead (Nesterov).
    pub nesterov: bool,
    /// For AdamW and LAMB: how slowly the means of gradients and of their squares change.
    pub betas: [f64; 2],
    /// For AdamW and LAMB: added to the denominator.
    pub eps: f64,
    /// The pull towards 0; not on norms and biases.
    pub weight_decay: f64,
    /// What the learning rate is multiplied by for each tap further from the head.
    pub layer_decay: f64,
}

/// The kinds of optimizer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// PyTorch's `SGD`: decay is added to the gradient.
    Sgd,
    /// PyTorch's `AdamW` (arXiv 1711.05101).
    #[serde(rename = "adamw")]
    AdamW,
    /// LAMB (arXiv 1904.00962), bias-corrected: AdamW's movement as long as the parameter is.
    Lamb,
}

impl Default for Optimizer {
    fn default() -> Self {
        Optimizer {
            kind: Kind::Sgd,
            momentum: 0.9,
            nesterov: true,
            betas: [0.9, 0.999],
            eps: 1e-8,
            weight_decay: 1e-4,
            layer_decay: 1.0,
        }
    }
}

impl Optimizer {
    pub(crate) fn validate(&self) -> Result<()> {
        let share = |x: &f64| (0.0..1.0).contains(x);
        require("optimizer.momentum", self.momentum, "0 to less than 1", share(&self.momentum))?;
        let betas = self.betas.iter().all(share);
        require("optimizer.betas", format!("{:?}", self.betas), "numbers from 0 to less than 1", betas)?;
        require("optimizer.eps", self.eps, "more than 0", self.eps > 0.0 && self.eps.is_finite())?;
        let decay = self.weight_decay >= 0.0 && self.weight_decay.is_finite();
        require("optimizer.weight_decay", self.weight_decay, "0 or more", decay)?;
        let layer = self.layer_decay > 0.0 && self.layer_decay <= 1.0;
        require("optimizer.layer_decay", self.layer_decay, "more than 0, at most 1", layer)
    }
}

/// A parameter with what its optimizer remembers.
#[derive(Debug)]
struct Slot {
    name: String,
    var: Var,
    /// The learning rate is multiplied by it.
    scale: f64,
    decay: f64,
    /// SGD: the momentum; otherwise the means of gradients and of their squares.
    memory: Vec<Var>,
}

/// The parameters that are trained, and what their optimizer remembers.
#[derive(Debug)]
pub struct Moving {
    config: Optimizer,
    slots: Vec<Slot>,
    /// Steps done.
    steps: u64,
}

/// The norm of all gradients and what they are multiplied by.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Gradient {
    /// √Σg² over all trained parameters.
    pub norm: f64,
    /// At most 1, if the norm is limited.
    pub scale: f64,
}

impl Moving {
    /// An optimizer of the trained part of `parameters`, at rest.
    pub fn new(config: &Optimizer, parameters: &Parameters, trained: &Trainable) -> Result<Moving> {
        let graph = parameters.graph();
        let depth = |name: &str| {
            let module = name.rsplit_once('.').map_or(name, |(module, _)| module);
            let at = graph.nodes().iter().position(|node| node.name == module).unwrap_or(0);
            // Taps whose result the parameter's module does not influence.
            graph.taps().iter().filter(|tap| tap.node.index() < at).count()
        };
        let deepest = graph.taps().len();
        let slots = parameters
            .trained(trained)?
            .into_iter()
            .map(|(param, var)| {
                let memories = if config.kind == Kind::Sgd { 1 } else { 2 };
                let zeros = || Var::from_tensor(&var.as_detached_tensor().zeros_like()?);
                Ok(Slot {
                    name: param.name.clone(),
                    var: var.clone(),
                    scale: config.layer_decay.powi(deepest.saturating_sub(depth(&param.name)) as i32),
                    decay: if param.shape.len() > 1 { config.weight_decay } else { 0.0 },
                    memory: (0..memories).map(|_| Ok(zeros()?)).collect::<Result<_>>()?,
                })
            })
            .collect::<Result<_>>()?;
        Ok(Moving { config: config.clone(), slots, steps: 0 })
    }

    /// Steps done so far.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Continues after `steps` steps, once the memory has been restored.
    pub fn set_steps(&mut self, steps: u64) {
        self.steps = steps;
    }

    /// What the optimizer remembers, by name: `{parameter}.{index}`.
    pub fn memory(&self) -> impl Iterator<Item = (String, &Var)> {
        self.slots.iter().flat_map(|slot| {
            slot.memory.iter().enumerate().map(|(index, var)| (format!("{}.{index}", slot.name), var))
        })
    }

    /// The gradients in `store`, summed over the workers of `team`.
    pub(crate) fn sum(&self, mut store: GradStore, team: &dyn Team) -> Result<GradStore> {
        let mut buckets = Buckets::new(team);
        for slot in &self.slots {
            if let Some(gradient) = store.remove(&slot.var) {
                buckets.add(&slot.var, gradient)?;
            }
        }
        buckets.finish(|variable, sum| {
            store.insert(variable, sum);
            Ok(())
        })?;
        Ok(store)
    }

    /// The norm of the gradients in `store`, and the factor that keeps it below `clip`.
    pub fn gradient(&self, store: &GradStore, clip: Option<f64>) -> Result<Gradient> {
        let mut squares = 0.0;
        for slot in &self.slots {
            if let Some(gradient) = store.get(&slot.var) {
                squares += sum_of_squares(gradient)?;
            }
        }
        let norm = squares.sqrt();
        // PyTorch's clip_grad_norm_.
        let scale = clip.map_or(1.0, |clip| (clip / (norm + 1e-6)).min(1.0));
        Ok(Gradient { norm, scale })
    }

    /// Moves every parameter that has a gradient in `store`; gradients are first multiplied by `scale`.
    pub fn step(&mut self, store: &GradStore, rate: f64, scale: f64) -> Result<()> {
        let first = self.steps == 0;
        self.steps += 1;
        for slot in &self.slots {
            let Some(gradient) = store.get(&slot.var) else { continue };
            let gradient = gradient.contiguous()?;
            let rate = rate * slot.scale;
            match (self.config.kind, slot.memory.as_slice()) {
                (Kind::Sgd, [momentum]) => {
                    self.sgd(slot, momentum, &gradient, Move { rate, scale, first })?
                }
                (_, [mean, square]) => {
                    self.adam(slot, [mean, square], &gradient, Move { rate, scale, first })?
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// PyTorch: the first movement is the gradient itself, whatever the momentum.
    fn sgd(&self, slot: &Slot, momentum: &Var, gradient: &Tensor, by: Move) -> Result<()> {
        let (kept, decay) = (self.config.momentum, slot.decay);
        let kept_now = if by.first { 0.0 } else { kept };
        let nesterov = self.config.nesterov && kept > 0.0;
        let [kept_now, scale, decay] = [kept_now, by.scale, decay].map(|x| x as f32);
        fused3(momentum, &slot.var, gradient, move |m, w, g| kept_now * m + (scale * g + decay * w))?;
        let (rate, kept) = (by.rate as f32, kept as f32);
        match nesterov {
            true => fused3(&slot.var, momentum, gradient, move |w, m, g| {
                w - rate * ((scale * g + decay * w) + kept * m)
            }),
            false => fused2(&slot.var, momentum, move |w, m| w - rate * m),
        }
    }

    fn adam(&self, slot: &Slot, [mean, square]: [&Var; 2], gradient: &Tensor, by: Move) -> Result<()> {
        let [b1, b2] = self.config.betas;
        let correct = |beta: f64| 1.0 - beta.powi(self.steps.min(1 << 30) as i32);
        let (c1, c2) = (correct(b1) as f32, correct(b2).sqrt() as f32);
        let (b1, b2, scale) = (b1 as f32, b2 as f32, by.scale as f32);
        let (rate, eps, decay) = (by.rate as f32, self.config.eps as f32, slot.decay as f32);
        fused2(mean, gradient, move |m, g| b1 * m + (1.0 - b1) * (scale * g))?;
        fused2(square, gradient, move |v, g| b2 * v + (1.0 - b2) * (scale * g) * (scale * g))?;
        if self.config.kind == Kind::AdamW {
            return fused3(&slot.var, mean, square, move |w, m, v| {
                w * (1.0 - rate * decay) - rate / c1 * m / (v.sqrt() / c2 + eps)
            });
        }
        let update = Var::from_tensor(&slot.var.as_detached_tensor().copy()?)?;
        fused3(&update, mean, square, move |w, m, v| m / c1 / (v.sqrt() / c2 + eps) + decay * w)?;
        // The ratio adapts weights only, as in timm: norms and biases move as AdamW's.
        let ratio = match slot.decay > 0.0 {
            true => {
                let length = |t: &Tensor| Ok::<f64, crate::Error>(sum_of_squares(t)?.sqrt());
                let (weight, update) = (length(&slot.var.as_detached_tensor())?, length(&update)?);
                if weight > 0.0 && update > 0.0 { weight / update } else { 1.0 }
            }
            false => 1.0,
        };
        let rate = (by.rate * ratio) as f32;
        fused2(&slot.var, &update, move |w, u| w - rate * u)
    }
}

/// One movement.
#[derive(Clone, Copy)]
struct Move {
    rate: f64,
    scale: f64,
    first: bool,
}

/// Elements that one task takes; sums are made of whole chunks, so they do not depend on the number of threads.
const CHUNK: usize = 1 << 14;

/// Σt².
fn sum_of_squares(t: &Tensor) -> Result<f64> {
    let t = t.detach().contiguous()?.to_dtype(DType::F32)?.to_device(&Device::Cpu)?;
    let (storage, layout) = t.storage_and_layout();
    let candle_core::Storage::Cpu(storage) = &*storage else { return Ok(0.0) };
    let values = values(storage, layout)?;
    let chunks: Vec<f64> = values
        .par_chunks(CHUNK)
        .map(|chunk| {
            let mut lanes = [0f64; 8];
            let (whole, rest) = chunk.as_chunks::<8>();
            for part in whole {
                lanes.iter_mut().zip(part).for_each(|(sum, &x)| *sum += f64::from(x) * f64::from(x));
            }
            lanes.iter().sum::<f64>() + rest.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>()
        })
        .collect();
    Ok(chunks.iter().sum())
}

/// `a ← f(a, b)` element by element.
pub(crate) fn fused2(a: &Var, b: &Tensor, f: impl Fn(f32, f32) -> f32 + Sync) -> Result<()> {
    if a.device().is_cpu() {
        return Ok(a.inplace_op2(b, &Elementwise(f))?);
    }
    let held = Var::from_tensor(&a.as_detached_tensor().to_device(&Device::Cpu)?)?;
    held.inplace_op2(&b.to_device(&Device::Cpu)?, &Elementwise(f))?;
    Ok(a.set(&held.as_detached_tensor().to_device(a.device())?)?)
}

/// `a ← f(a, b, c)` element by element.
pub(crate) fn fused3(a: &Var, b: &Tensor, c: &Tensor, f: impl Fn(f32, f32, f32) -> f32 + Sync) -> Result<()> {
    if a.device().is_cpu() {
        return Ok(a.inplace_op3(b, c, &Elementwise(f))?);
    }
    // Other devices: over the CPU, which is right everywhere and slow only for what moves.
    let cpu = &Device::Cpu;
    let held = Var::from_tensor(&a.as_detached_tensor().to_device(cpu)?)?;
    held.inplace_op3(&b.to_device(cpu)?, &c.to_device(cpu)?, &Elementwise(f))?;
    Ok(a.set(&held.as_detached_tensor().to_device(a.device())?)?)
}

struct Elementwise<F>(F);

fn values<'a>(storage: &'a CpuStorage, layout: &Layout) -> candle_core::Result<&'a [f32]> {
    let range = layout.contiguous_offsets().zip(storage.as_slice::<f32>().ok());
    let values = range.and_then(|((start, end), all)| all.get(start..end));
    values.ok_or_else(|| candle_core::Error::Msg("an optimizer needs contiguous f32 tensors".into()))
}

fn values_mut<'a>(storage: &'a mut CpuStorage, layout: &Layout) -> candle_core::Result<&'a mut [f32]> {
    let range = layout.contiguous_offsets();
    match (storage, range) {
        (CpuStorage::F32(all), Some((start, end))) => all.get_mut(start..end),
        _ => None,
    }
    .ok_or_else(|| candle_core::Error::Msg("an optimizer needs contiguous f32 tensors".into()))
}

impl<F: Fn(f32, f32) -> f32 + Sync> InplaceOp2 for Elementwise<F> {
    fn name(&self) -> &'static str {
        "elementwise-2"
    }

    fn cpu_fwd(
        &self,
        a: &mut CpuStorage,
        al: &Layout,
        b: &CpuStorage,
        bl: &Layout,
    ) -> candle_core::Result<()> {
        let (a, b) = (values_mut(a, al)?, values(b, bl)?);
        a.par_chunks_mut(CHUNK).zip(b.par_chunks(CHUNK)).for_each(|(a, b)| {
            a.iter_mut().zip(b).for_each(|(a, b)| *a = (self.0)(*a, *b));
        });
        Ok(())
    }
}

impl<F: Fn(f32, f32, f32) -> f32 + Sync> InplaceOp3 for Elementwise<F> {
    fn name(&self) -> &'static str {
        "elementwise-3"
    }

    fn cpu_fwd(
        &self,
        a: &mut CpuStorage,
        al: &Layout,
        b: &CpuStorage,
        bl: &Layout,
        c: &CpuStorage,
        cl: &Layout,
    ) -> candle_core::Result<()> {
        let (a, b, c) = (values_mut(a, al)?, values(b, bl)?, values(c, cl)?);
        a.par_chunks_mut(CHUNK).zip(b.par_chunks(CHUNK)).zip(c.par_chunks(CHUNK)).for_each(|((a, b), c)| {
            a.iter_mut().zip(b).zip(c).for_each(|((a, b), c)| *a = (self.0)(*a, *b, *c));
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests;
