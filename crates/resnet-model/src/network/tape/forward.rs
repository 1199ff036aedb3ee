//! The forward pass: results, and the values that their gradients need.

use super::*;
use crate::graph::Op;
use crate::network::DropPlan;
use crate::network::batch_norm::BatchNormLayer;
use crate::ops::Moments;
use resnet_kernels::{BlockedConv, Input, LANES, ViewMut};

/// Returns the output of `network` for `x`, and the saved values of each step.
pub(super) fn run(
    network: &Network,
    x: &Tensor,
    plan: Option<&DropPlan>,
    workers: &dyn ProcessGroup,
) -> Result<(Tensor, Vec<Saved>)> {
    let mut pass = Pass { network, workers, plan, tracked: vec![false; network.layers.len()] };
    let mut reads = network.reads.clone();
    // Nothing reads the taps here.
    for tap in network.graph.taps() {
        reads[tap.node.index()] -= 1;
    }
    let mut results: Vec<Option<Value>> = vec![None; network.layers.len()];
    let mut saved = Vec::with_capacity(network.steps.len());
    let output = network.graph.output();
    for step in network.steps.iter().take_while(|step| step.node <= output) {
        let inputs: Vec<Value> = step
            .inputs
            .iter()
            .map(|input| {
                let index = input.index();
                reads[index] -= 1;
                let result = if reads[index] == 0 { results[index].take() } else { results[index].clone() };
                result.ok_or_else(|| Error::Missing(network.graph.node(*input).name.clone()))
            })
            .collect::<Result<_>>()?;
        let (value, save) = match inputs.as_slice() {
            [] => (Value::Planar(x.detach().contiguous()?), Saved::Untracked),
            _ => pass.step(step, inputs)?,
        };
        results[step.node.index()] = Some(value);
        saved.push(save);
    }
    let missing = || Error::Missing(network.graph.node(output).name.clone());
    let logits = results[output.index()].take().ok_or_else(missing)?.planar()?;
    Ok((logits, saved))
}

struct Pass<'a> {
    network: &'a Network,
    workers: &'a dyn ProcessGroup,
    /// The dropped features and branches.
    plan: Option<&'a DropPlan>,
    /// By node: `true` if a parameter up to it is trained.
    tracked: Vec<bool>,
}

impl Pass<'_> {
    fn buffers(&self) -> &SharedBuffers {
        &self.network.buffers
    }

    fn step(&mut self, step: &Step, mut inputs: Vec<Value>) -> Result<(Value, Saved)> {
        let node = self.network.graph.node(step.node);
        let before = step.inputs.iter().any(|input| self.tracked[input.index()]);
        let layer = &self.network.layers[step.norm.unwrap_or(step.node).index()];
        let trained = layer.trainable().into_iter().any(Tensor::track_op);
        let tracked = before || trained;
        self.tracked[step.node.index()] = tracked;
        let image = inputs.iter().all(Value::is_image);
        let (value, saved) = match (&node.op, layer) {
            (_, Layer::BatchNorm(norm)) if image => self.norm(norm, step, &inputs, tracked)?,
            (Op::Conv(conv), Layer::Conv { weight, bias: None }) if image => {
                let shape = ops::conv_shape(conv);
                let input = match &inputs[0] {
                    // Fewer channels than a block.
                    Value::Planar(x) if !before && shape.groups == 1 && shape.c_in < LANES => {
                        Value::Planar(x.clone())
                    }
                    other => Value::Blocked(other.blocked(self.buffers())?),
                };
                let y = self.conv(shape, weight, &input)?;
                (Value::Blocked(Rc::new(y)), Saved::Conv { input })
            }
            (Op::MaxPool(pool), _) if image => {
                let x = inputs[0].blocked(self.buffers())?;
                let window = ops::pool_spec(pool);
                let [h, w] = window.output_hw([x.layout.h, x.layout.w]).map_err(kernel)?;
                let mut y = BlockedTensor::empty(self.buffers(), Blocked { h, w, ..x.layout });
                let target = ViewMut { layout: y.layout, data: y.slice_mut() };
                resnet_kernels::max_pool(ops::isa(), &window, x.view(), target, ops::threads()?)
                    .map_err(kernel)?;
                let y = Rc::new(y);
                (Value::Blocked(y.clone()), Saved::MaxPool { x, y })
            }
            (Op::AvgPool(pool), _) if image => {
                let x = inputs[0].blocked(self.buffers())?;
                let avg = ops::avg_pool_spec(pool);
                let [h, w] = avg.window.output_hw([x.layout.h, x.layout.w]).map_err(kernel)?;
                let mut y = BlockedTensor::empty(self.buffers(), Blocked { h, w, ..x.layout });
                let target = ViewMut { layout: y.layout, data: y.slice_mut() };
                resnet_kernels::avg_pool(ops::isa(), &avg, x.view(), target, ops::threads()?)
                    .map_err(kernel)?;
                (Value::Blocked(Rc::new(y)), Saved::AvgPool(x.layout))
            }
            (Op::Scale, _) if inputs[0].is_image() => {
                let (x, gate) = (inputs[0].blocked(self.buffers())?, inputs[1].planar()?);
                let mut y = BlockedTensor::empty(self.buffers(), x.layout);
                with_values(&gate, |gate| {
                    let threads = ops::threads()?;
                    resnet_kernels::scale_channels(
                        ops::isa(),
                        x.layout,
                        x.slice(),
                        gate,
                        y.slice_mut(),
                        threads,
                    )
                    .map_err(kernel)
                })?;
                (Value::Blocked(Rc::new(y)), Saved::Scale { x, gate })
            }
            (Op::GlobalAvgPool, _) if image => {
                let x = inputs[0].blocked(self.buffers())?;
                let mut out = vec![0.0; x.layout.n * x.layout.c];
                resnet_kernels::global_avg_pool(ops::isa(), x.view(), &mut out, ops::threads()?)
                    .map_err(kernel)?;
                let y = Tensor::from_vec(out, (x.layout.n, x.layout.c), &Device::Cpu)?;
                (Value::Planar(y), Saved::GlobalAvgPool(x.layout))
            }
            (Op::Relu, _) if matches!(inputs[0], Value::Blocked(_)) => {
                let mut y = BlockedTensor::owned(inputs.swap_remove(0).into_blocked(self.buffers())?);
                ops::threads()?.for_each_chunk(y.slice_mut(), 1 << 14, |_, y| {
                    y.iter_mut().for_each(|y| *y = if *y < 0.0 { 0.0 } else { *y });
                });
                let y = Rc::new(y);
                (Value::Blocked(y.clone()), Saved::Relu(y))
            }
            (Op::Add, _) if inputs.iter().any(|x| matches!(x, Value::Blocked(_))) => {
                let b = inputs[1].blocked(self.buffers())?;
                let mut a = BlockedTensor::owned(inputs.swap_remove(0).into_blocked(self.buffers())?);
                let drop_path = self.drop_path(step, a.layout.n);
                match &drop_path {
                    Some(drop_path) => drop_path.add(&mut a, &b, false)?,
                    None => resnet_kernels::add_to(a.slice_mut(), b.slice(), ops::threads()?),
                }
                (Value::Blocked(Rc::new(a)), Saved::Add(drop_path))
            }
            _ => self.candle(step, &inputs)?,
        };
        Ok((value, if tracked { saved } else { Saved::Untracked }))
    }

    fn conv(
        &self,
        shape: resnet_kernels::ConvShape,
        weight: &Tensor,
        input: &Value,
    ) -> Result<BlockedTensor> {
        let pool = ops::threads()?;
        let conv = BlockedConv { shape, input: input.dims()?, isa: ops::isa(), pool };
        let layout = conv.output().map_err(kernel)?;
        let data = with_input(input, |input| {
            with_values(weight, |w| conv.forward(input, w, &mut lock(self.buffers())).map_err(kernel))
        })?;
        Ok(BlockedTensor::new(self.buffers(), layout, data))
    }

    /// Returns the drop path of the residual add in `step`.
    fn drop_path(&self, step: &Step, images: usize) -> Option<DropPath> {
        let plan = self.plan?;
        let (add, branch) = self.network.drop_path_branch(step, plan)?;
        Some(DropPath { factors: plan.branch_factors(add, images), branch })
    }

    fn norm(
        &self,
        norm: &BatchNormLayer,
        step: &Step,
        inputs: &[Value],
        tracked: bool,
    ) -> Result<(Value, Saved)> {
        let (id, relu) = (step.norm.unwrap_or(step.node), step.norm.is_some());
        let x = inputs[0].blocked(self.buffers())?;
        let layout = x.layout;
        let kernels = resnet_kernels::BatchNorm { layout, isa: ops::isa(), pool: ops::threads()? };
        let of_batch = matches!(norm.statistics, Statistics::Batch { .. });
        let ([mean, var], fraction) = match of_batch {
            true => self.moments(norm, &kernels, x.slice())?,
            false => {
                let vector = |t: &Var| t.as_detached_tensor().to_dtype(DType::F64)?.to_vec1::<f64>();
                ([vector(&norm.mean)?, vector(&norm.var)?], 1.0)
            }
        };
        let scale: Vec<f64> = var.iter().map(|var| 1.0 / (var + norm.eps).sqrt()).collect();
        let residual = inputs.get(1).map(|r| r.blocked(self.buffers())).transpose()?;
        if let Some(residual) = &residual
            && residual.layout != layout
        {
            let name = self.network.graph.node(step.node).name.clone();
            let (found, expected) = (residual.layout.dims().to_vec(), layout.dims().to_vec());
            return Err(Error::Shape { name, found, expected });
        }
        let drop_path = self.drop_path(step, layout.n);
        // Drop path scales the result of the norm, so the residual is added in a second pass.
        let fused = residual.as_ref().filter(|_| drop_path.is_none());
        let mut y = BlockedTensor::empty(self.buffers(), layout);
        with_values(&norm.weight, |weight| {
            with_values(&norm.bias, |bias| {
                let factors: Vec<f32> =
                    scale.iter().zip(weight).map(|(s, w)| (s * f64::from(*w)) as f32).collect();
                let mean: Vec<f32> = mean.iter().map(|m| *m as f32).collect();
                let (added, relu) = (fused.map(|r| r.slice()), relu && drop_path.is_none());
                kernels
                    .forward(x.slice(), [&mean, &factors, bias], added, relu, y.slice_mut())
                    .map_err(kernel)
            })
        })?;
        if let (Some(drop_path), Some(residual)) = (&drop_path, &residual) {
            drop_path.add(&mut y, residual, relu)?;
        }
        let y = Rc::new(y);
        let kept = (relu && tracked).then(|| y.clone());
        let saved = SavedNorm { norm: id, x, y: kept, mean, scale, of_batch, fraction, drop_path };
        Ok((Value::Blocked(y), Saved::Norm(saved)))
    }

    /// Returns mean and biased variance of the batch over all processes, and the fraction of its values in this process.
    /// Updates the running statistics.
    fn moments(
        &self,
        norm: &BatchNormLayer,
        kernels: &resnet_kernels::BatchNorm,
        x: &[f32],
    ) -> Result<([Vec<f64>; 2], f64)> {
        let layout = kernels.layout;
        let mut count = layout.n * layout.h * layout.w;
        let mut fraction = 1.0;
        let [mut mean, mut var] = kernels.moments(x).map_err(kernel)?;
        if self.workers.world_size() > 1 {
            // Squares around the joint mean avoid cancellation.
            let c = layout.c;
            let mut sums: Vec<f64> = mean.iter().map(|m| m * count as f64).chain([count as f64]).collect();
            self.workers.all_reduce(&mut sums)?;
            let all = sums[c];
            let joint: Vec<f64> = sums[..c].iter().map(|sum| sum / all).collect();
            let own = mean.iter().zip(&var).zip(&joint);
            let mut squares: Vec<f64> =
                own.map(|((m, v), joint)| (v + (m - joint) * (m - joint)) * count as f64).collect();
            self.workers.all_reduce(&mut squares)?;
            mean = joint;
            var = squares.into_iter().map(|sum| sum / all).collect();
            fraction = count as f64 / all;
            count = all as usize;
        }
        norm.check_count(count, &layout.dims())?;
        let tensor = |values: &[f64]| {
            Tensor::from_vec(values.iter().map(|v| *v as f32).collect::<Vec<_>>(), values.len(), &Device::Cpu)
        };
        norm.update_running(Moments { mean: tensor(&mean)?, var: tensor(&var)? }, count)?;
        Ok(([mean, var], fraction))
    }

    /// Runs any other operation as a separate candle graph.
    fn candle(&self, step: &Step, inputs: &[Value]) -> Result<(Value, Saved)> {
        let mut variables = Vec::new();
        let mut tensors = Vec::new();
        for (value, input) in inputs.iter().zip(&step.inputs) {
            let planar = value.planar()?;
            let variable = match self.tracked[input.index()] {
                true => Some(Var::from_tensor(&planar)?),
                false => None,
            };
            tensors.push(variable.as_ref().map_or(planar, |v| v.as_tensor().clone()));
            variables.push(variable);
        }
        let output = self.network.step(step, &tensors, true, self.plan)?;
        Ok((Value::Planar(output.detach()), Saved::Candle { inputs: variables, output }))
    }
}

/// Calls `f` with the input of a convolution in the form that the kernels take.
pub(super) fn with_input<R>(value: &Value, f: impl FnOnce(Input) -> Result<R>) -> Result<R> {
    match value {
        Value::Planar(x) => {
            let dims = x.dims4()?.into();
            with_values(x, |data| f(Input::Planar { dims, data }))
        }
        Value::Blocked(act) => f(Input::Blocked(act.view())),
    }
}
