//! Optimizers: SGD with momentum, AdamW and LAMB, as in `torch.optim` and timm.

use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, DType, Device, InplaceOp2, InplaceOp3, Layout, Tensor, Var};
use rayon::prelude::*;
use resnet_model::Parameters;
use resnet_model::parameters::Trainable;
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::config::is_false;
use crate::distributed::{Buckets, Communicator};
use crate::error::require;

/// Optimizer and hyperparameters, named as in `torch.optim`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OptimizerConfig {
    /// Optimizer.
    pub kind: OptimizerKind,
    /// Momentum of SGD.
    pub momentum: f64,
    /// If `true`, SGD uses Nesterov momentum.
    pub nesterov: bool,
    /// Decay of the running averages of the gradient and its square, for AdamW and LAMB.
    pub betas: [f64; 2],
    /// Term added to the denominator of AdamW and LAMB.
    pub eps: f64,
    /// Weight decay.
    pub weight_decay: f64,
    /// If `true`, weight decay applies to norms and biases, too, as in the ResNet paper; timm and this default exempt them.
    #[serde(skip_serializing_if = "is_false")]
    pub decay_norm_and_bias: bool,
    /// Factor of the learning rate for each tap further from the head (timm's `layer_decay`).
    pub layer_decay: f64,
}

/// Optimizers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OptimizerKind {
    /// PyTorch's `SGD`: weight decay is added to the gradient.
    Sgd,
    /// PyTorch's `AdamW` (arXiv 1711.05101).
    #[serde(rename = "adamw")]
    AdamW,
    /// LAMB (arXiv 1904.00962) with bias correction: AdamW's update scaled to the norm of the parameter.
    Lamb,
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        OptimizerConfig {
            kind: OptimizerKind::Sgd,
            momentum: 0.9,
            nesterov: true,
            betas: [0.9, 0.999],
            eps: 1e-8,
            weight_decay: 1e-4,
            decay_norm_and_bias: false,
            layer_decay: 1.0,
        }
    }
}

impl OptimizerConfig {
    pub(crate) fn validate(&self) -> Result<()> {
        let fraction = |x: &f64| (0.0..1.0).contains(x);
        require("optimizer.momentum", self.momentum, "0 to less than 1", fraction(&self.momentum))?;
        let betas = self.betas.iter().all(fraction);
        require("optimizer.betas", format!("{:?}", self.betas), "numbers from 0 to less than 1", betas)?;
        require("optimizer.eps", self.eps, "more than 0", self.eps > 0.0 && self.eps.is_finite())?;
        let decay = self.weight_decay >= 0.0 && self.weight_decay.is_finite();
        require("optimizer.weight_decay", self.weight_decay, "0 or more", decay)?;
        let layer = self.layer_decay > 0.0 && self.layer_decay <= 1.0;
        require("optimizer.layer_decay", self.layer_decay, "more than 0, at most 1", layer)
    }
}

/// A trained parameter with its optimizer state.
#[derive(Debug)]
struct ParamState {
    name: String,
    var: Var,
    /// Factor of the learning rate.
    lr_scale: f64,
    weight_decay: f64,
    /// Momentum buffer of SGD; `exp_avg` and `exp_avg_sq` of AdamW and LAMB.
    buffers: Vec<Var>,
}

/// An optimizer of the trained parameters, with its state.
#[derive(Debug)]
pub struct Optimizer {
    config: OptimizerConfig,
    params: Vec<ParamState>,
    /// Steps done.
    steps: u64,
}

/// L2 norm of all gradients, and the factor that clips it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GradNorm {
    /// √Σg² over all trained parameters.
    pub norm: f64,
    /// Clipping factor, at most 1.
    pub scale: f64,
}

impl Optimizer {
    /// Creates an optimizer of the `trained` part of `parameters`, with zero state.
    pub fn new(config: &OptimizerConfig, parameters: &Parameters, trained: &Trainable) -> Result<Optimizer> {
        let graph = parameters.graph();
        let depth = |name: &str| {
            let module = name.rsplit_once('.').map_or(name, |(module, _)| module);
            let at = graph.nodes().iter().position(|node| node.name == module).unwrap_or(0);
            // Taps before the parameter's module.
            graph.taps().iter().filter(|tap| tap.node.index() < at).count()
        };
        let deepest = graph.taps().len();
        let params = parameters
            .trained(trained)?
            .into_iter()
            .map(|(param, var)| {
                let buffers = if config.kind == OptimizerKind::Sgd { 1 } else { 2 };
                let zeros = || Var::from_tensor(&var.as_detached_tensor().zeros_like()?);
                Ok(ParamState {
                    name: param.name.clone(),
                    var: var.clone(),
                    lr_scale: config.layer_decay.powi(deepest.saturating_sub(depth(&param.name)) as i32),
                    weight_decay: match param.shape.len() > 1 || config.decay_norm_and_bias {
                        true => config.weight_decay,
                        false => 0.0,
                    },
                    buffers: (0..buffers).map(|_| Ok(zeros()?)).collect::<Result<_>>()?,
                })
            })
            .collect::<Result<_>>()?;
        Ok(Optimizer { config: config.clone(), params, steps: 0 })
    }

    /// Returns the number of steps done.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Sets the number of steps done, after the state has been restored.
    pub fn set_steps(&mut self, steps: u64) {
        self.steps = steps;
    }

    /// Returns the state tensors by name, `{parameter}.{index}`.
    pub fn state(&self) -> impl Iterator<Item = (String, &Var)> {
        self.params.iter().flat_map(|param| {
            param.buffers.iter().enumerate().map(|(index, var)| (format!("{}.{index}", param.name), var))
        })
    }

    /// Returns the gradients in `store` summed over all ranks of `group`.
    pub(crate) fn all_reduce(&self, mut store: GradStore, group: &dyn Communicator) -> Result<GradStore> {
        let mut buckets = Buckets::new(group);
        for param in &self.params {
            if let Some(gradient) = store.remove(&param.var) {
                buckets.add(&param.var, gradient)?;
            }
        }
        buckets.finish(|variable, sum| {
            store.insert(variable, sum);
            Ok(())
        })?;
        Ok(store)
    }

    /// Returns the norm of the gradients in `store`, and the factor that clips it to `clip`.
    pub fn grad_norm(&self, store: &GradStore, clip: Option<f64>) -> Result<GradNorm> {
        let mut squares = 0.0;
        for param in &self.params {
            if let Some(gradient) = store.get(&param.var) {
                squares += sum_of_squares(gradient)?;
            }
        }
        let norm = squares.sqrt();
        // PyTorch's clip_grad_norm_.
        let scale = clip.map_or(1.0, |clip| (clip / (norm + 1e-6)).min(1.0));
        Ok(GradNorm { norm, scale })
    }

    /// Updates every parameter that has a gradient in `store`; gradients are first multiplied by `scale`.
    pub fn step(&mut self, store: &GradStore, lr: f64, scale: f64) -> Result<()> {
        let first = self.steps == 0;
        self.steps += 1;
        for param in &self.params {
            let Some(gradient) = store.get(&param.var) else { continue };
            let gradient = gradient.contiguous()?;
            let lr = lr * param.lr_scale;
            match (self.config.kind, param.buffers.as_slice()) {
                (OptimizerKind::Sgd, [momentum]) => {
                    self.sgd(param, momentum, &gradient, Update { lr, scale, first })?
                }
                (_, [mean, square]) => {
                    self.adam(param, [mean, square], &gradient, Update { lr, scale, first })?
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// As in PyTorch, the momentum buffer starts as the first gradient.
    fn sgd(&self, param: &ParamState, buffer: &Var, gradient: &Tensor, update: Update) -> Result<()> {
        let (momentum, decay) = (self.config.momentum, param.weight_decay);
        let first = if update.first { 0.0 } else { momentum };
        let nesterov = self.config.nesterov && momentum > 0.0;
        let [first, scale, decay] = [first, update.scale, decay].map(|x| x as f32);
        fused3(buffer, &param.var, gradient, move |m, w, g| first * m + (scale * g + decay * w))?;
        let (lr, momentum) = (update.lr as f32, momentum as f32);
        match nesterov {
            true => fused3(&param.var, buffer, gradient, move |w, m, g| {
                w - lr * ((scale * g + decay * w) + momentum * m)
            }),
            false => fused2(&param.var, buffer, move |w, m| w - lr * m),
        }
    }

    fn adam(
        &self,
        param: &ParamState,
        [mean, square]: [&Var; 2],
        gradient: &Tensor,
        update: Update,
    ) -> Result<()> {
        let [b1, b2] = self.config.betas;
        let correct = |beta: f64| 1.0 - beta.powi(self.steps.min(1 << 30) as i32);
        let (c1, c2) = (correct(b1) as f32, correct(b2).sqrt() as f32);
        let (b1, b2, scale) = (b1 as f32, b2 as f32, update.scale as f32);
        let (lr, eps, decay) = (update.lr as f32, self.config.eps as f32, param.weight_decay as f32);
        fused2(mean, gradient, move |m, g| b1 * m + (1.0 - b1) * (scale * g))?;
        fused2(square, gradient, move |v, g| b2 * v + (1.0 - b2) * (scale * g) * (scale * g))?;
        if self.config.kind == OptimizerKind::AdamW {
            return fused3(&param.var, mean, square, move |w, m, v| {
                w * (1.0 - lr * decay) - lr / c1 * m / (v.sqrt() / c2 + eps)
            });
        }
        let direction = Var::from_tensor(&param.var.as_detached_tensor().copy()?)?;
        fused3(&direction, mean, square, move |w, m, v| m / c1 / (v.sqrt() / c2 + eps) + decay * w)?;
        // As in timm, the trust ratio applies to decayed weights only.
        let ratio = match param.weight_decay > 0.0 {
            true => {
                let length = |t: &Tensor| Ok::<f64, crate::Error>(sum_of_squares(t)?.sqrt());
                let (weight, direction) = (length(&param.var.as_detached_tensor())?, length(&direction)?);
                if weight > 0.0 && direction > 0.0 { weight / direction } else { 1.0 }
            }
            false => 1.0,
        };
        let lr = (update.lr * ratio) as f32;
        fused2(&param.var, &direction, move |w, u| w - lr * u)
    }
}

/// Arguments of one update.
#[derive(Clone, Copy)]
struct Update {
    lr: f64,
    scale: f64,
    first: bool,
}

/// Elements per task; sums are added chunk by chunk, so they do not depend on the number of threads.
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
    let on_cpu = Var::from_tensor(&a.as_detached_tensor().to_device(&Device::Cpu)?)?;
    on_cpu.inplace_op2(&b.to_device(&Device::Cpu)?, &Elementwise(f))?;
    Ok(a.set(&on_cpu.as_detached_tensor().to_device(a.device())?)?)
}

/// `a ← f(a, b, c)` element by element.
pub(crate) fn fused3(a: &Var, b: &Tensor, c: &Tensor, f: impl Fn(f32, f32, f32) -> f32 + Sync) -> Result<()> {
    if a.device().is_cpu() {
        return Ok(a.inplace_op3(b, c, &Elementwise(f))?);
    }
    // Other devices go through the CPU.
    let cpu = &Device::Cpu;
    let on_cpu = Var::from_tensor(&a.as_detached_tensor().to_device(cpu)?)?;
    on_cpu.inplace_op3(&b.to_device(cpu)?, &c.to_device(cpu)?, &Elementwise(f))?;
    Ok(a.set(&on_cpu.as_detached_tensor().to_device(a.device())?)?)
}

struct Elementwise<F>(F);

fn values<'a>(storage: &'a CpuStorage, layout: &Layout) -> candle_core::Result<&'a [f32]> {
    let range = layout.contiguous_offsets().zip(storage.as_slice::<f32>().ok());
    let values = range.and_then(|((start, end), all)| all.get(start..end));
    values.ok_or_else(|| candle_core::Error::Msg("the optimizer supports contiguous f32 tensors only".into()))
}

fn values_mut<'a>(storage: &'a mut CpuStorage, layout: &Layout) -> candle_core::Result<&'a mut [f32]> {
    let range = layout.contiguous_offsets();
    match (storage, range) {
        (CpuStorage::F32(all), Some((start, end))) => all.get_mut(start..end),
        _ => None,
    }
    .ok_or_else(|| candle_core::Error::Msg("the optimizer supports contiguous f32 tensors only".into()))
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
