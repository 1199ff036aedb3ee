//! The backward pass: gradients from the last step to the first.

use super::forward::with_input;
use super::*;
use crate::graph::Op;
use resnet_kernels::{BatchNormGrad, BlockedConv};

type Sink<'a> = &'a mut dyn FnMut(&Tensor, Tensor) -> Result<()>;

pub(super) fn run(
    network: &Network,
    workers: &dyn ProcessGroup,
    mut saved: Vec<Saved>,
    grad: &Tensor,
    sink: Sink,
) -> Result<()> {
    let mut pass = Pass { network, workers, gradients: vec![None; network.layers.len()], sink };
    pass.gradients[network.graph.output().index()] = Some(Value::Planar(grad.detach()));
    let mut tracked = vec![false; network.layers.len()];
    for (step, save) in network.steps.iter().zip(&saved) {
        tracked[step.node.index()] = !matches!(save, Saved::Untracked);
    }
    while let Some(save) = saved.pop() {
        let step = &network.steps[saved.len()];
        let Some(grad) = pass.gradients[step.node.index()].take() else { continue };
        let needs_grad: Vec<bool> = step.inputs.iter().map(|input| tracked[input.index()]).collect();
        pass.step(step, &needs_grad, save, grad)?;
    }
    Ok(())
}

/// Turns the gradient of a ReLU with output `y` into that of its input, in place.
fn relu_grad(grad: &mut BlockedTensor, y: &BlockedTensor) -> Result<()> {
    let y = y.slice();
    ops::threads()?.for_each_chunk(grad.slice_mut(), 1 << 14, |index, grad| {
        let y = &y[index << 14..][..grad.len()];
        grad.iter_mut().zip(y).for_each(|(g, y)| *g = if *y > 0.0 { *g } else { 0.0 });
    });
    Ok(())
}

struct Pass<'a> {
    network: &'a Network,
    workers: &'a dyn ProcessGroup,
    /// By node: the gradient of its result, as far as known.
    gradients: Vec<Option<Value>>,
    sink: Sink<'a>,
}

impl Pass<'_> {
    fn buffers(&self) -> &SharedBuffers {
        &self.network.buffers
    }

    fn step(&mut self, step: &Step, needs_grad: &[bool], saved: Saved, grad: Value) -> Result<()> {
        match saved {
            Saved::Untracked => Ok(()),
            Saved::Conv { input } => self.conv(step, needs_grad[0], input, grad),
            Saved::Norm(normed) => self.norm(step, needs_grad, normed, grad),
            Saved::MaxPool { x, y } => {
                let Op::MaxPool(pool) = &self.network.graph.node(step.node).op else { return Ok(()) };
                let grad = grad.blocked(self.buffers())?;
                let mut out = BlockedTensor::empty(self.buffers(), x.layout);
                let views = [x.view(), y.view(), grad.view()];
                let threads = ops::threads()?;
                resnet_kernels::grad_max_pool(
                    ops::isa(),
                    &ops::pool_spec(pool),
                    views,
                    out.slice_mut(),
                    threads,
                )
                .map_err(kernel)?;
                self.add(step.inputs[0], needs_grad[0], Value::Blocked(Rc::new(out)))
            }
            Saved::AvgPool(layout) => {
                let Op::AvgPool(pool) = &self.network.graph.node(step.node).op else { return Ok(()) };
                let grad = grad.blocked(self.buffers())?;
                let mut out = BlockedTensor::empty(self.buffers(), layout);
                let (avg, threads) = (ops::avg_pool_spec(pool), ops::threads()?);
                resnet_kernels::grad_avg_pool(
                    ops::isa(),
                    &avg,
                    layout,
                    grad.view(),
                    out.slice_mut(),
                    threads,
                )
                .map_err(kernel)?;
                self.add(step.inputs[0], needs_grad[0], Value::Blocked(Rc::new(out)))
            }
            Saved::Scale { x, gate } => {
                let grad = grad.blocked(self.buffers())?;
                let (layout, threads) = (x.layout, ops::threads()?);
                if needs_grad[1] {
                    let to_gate =
                        resnet_kernels::grad_gate(ops::isa(), layout, x.slice(), grad.slice(), threads)
                            .map_err(kernel)?;
                    let to_gate = Tensor::from_vec(to_gate, gate.shape(), &Device::Cpu)?;
                    self.add(step.inputs[1], true, Value::Planar(to_gate))?;
                }
                if !needs_grad[0] {
                    return Ok(());
                }
                let mut out = BlockedTensor::empty(self.buffers(), layout);
                with_values(&gate, |gate| {
                    let out = out.slice_mut();
                    resnet_kernels::scale_channels(ops::isa(), layout, grad.slice(), gate, out, threads)
                        .map_err(kernel)
                })?;
                self.add(step.inputs[0], true, Value::Blocked(Rc::new(out)))
            }
            Saved::GlobalAvgPool(layout) => {
                let mut out = BlockedTensor::empty(self.buffers(), layout);
                let grad = grad.planar()?;
                with_values(&grad, |grad| {
                    resnet_kernels::grad_global_avg_pool(layout, grad, out.slice_mut(), ops::threads()?)
                        .map_err(kernel)
                })?;
                self.add(step.inputs[0], needs_grad[0], Value::Blocked(Rc::new(out)))
            }
            Saved::Relu(y) => {
                let mut grad = BlockedTensor::owned(grad.into_blocked(self.buffers())?);
                relu_grad(&mut grad, &y)?;
                self.add(step.inputs[0], needs_grad[0], Value::Blocked(Rc::new(grad)))
            }
            Saved::Add(drop_path) => {
                let buffers = self.buffers().clone();
                let mut term = |term: usize, grad: Value| match &drop_path {
                    _ if !needs_grad[term] => Ok(()),
                    Some(drop_path) if drop_path.branch == term => {
                        let mut grad = BlockedTensor::owned(grad.into_blocked(&buffers)?);
                        drop_path.grad(term, &mut grad)?;
                        self.add(step.inputs[term], true, Value::Blocked(Rc::new(grad)))
                    }
                    _ => self.add(step.inputs[term], true, grad),
                };
                term(1, grad.clone())?;
                term(0, grad)
            }
            Saved::Candle { inputs, output } => self.candle(step, inputs, output, grad),
        }
    }

    /// Accumulates the gradient of the result of `node` if it is `needs_grad`.
    fn add(&mut self, node: NodeId, needs_grad: bool, grad: Value) -> Result<()> {
        if !needs_grad {
            return Ok(());
        }
        let sum = match (self.gradients[node.index()].take(), grad) {
            (None, grad) => grad,
            (Some(Value::Planar(a)), Value::Planar(b)) => Value::Planar((a + b)?),
            (Some(a), b) => {
                let (mut a, b) =
                    (BlockedTensor::owned(a.into_blocked(self.buffers())?), b.into_blocked(self.buffers())?);
                resnet_kernels::add_to(a.slice_mut(), b.slice(), ops::threads()?);
                Value::Blocked(Rc::new(a))
            }
        };
        self.gradients[node.index()] = Some(sum);
        Ok(())
    }

    fn conv(&mut self, step: &Step, needs_grad: bool, input: Value, grad: Value) -> Result<()> {
        let (Op::Conv(conv), Layer::Conv { weight, .. }) =
            (&self.network.graph.node(step.node).op, &self.network.layers[step.node.index()])
        else {
            return Ok(());
        };
        let grad = grad.into_blocked(self.buffers())?;
        let dims = input.dims()?;
        let conv =
            BlockedConv { shape: ops::conv_shape(conv), input: dims, isa: ops::isa(), pool: ops::threads()? };
        if weight.track_op() {
            let gw = with_input(&input, |input| {
                conv.grad_weights(input, grad.slice(), &mut lock(self.buffers())).map_err(kernel)
            })?;
            (self.sink)(weight, Tensor::from_vec(gw, weight.shape(), &Device::Cpu)?)?;
        }
        drop(input);
        if needs_grad {
            let node = step.inputs[0];
            let before = self.gradients[node.index()].take();
            let before = before
                .map(|b| Ok::<_, Error>(BlockedTensor::owned(b.into_blocked(self.buffers())?).into_data()))
                .transpose()?;
            let gx = with_values(weight, |w| {
                conv.grad_input(grad.slice(), w, before, &mut lock(self.buffers())).map_err(kernel)
            })?;
            let layout = Blocked::new(dims).map_err(kernel)?;
            let gx = BlockedTensor::new(self.buffers(), layout, gx);
            self.gradients[node.index()] = Some(Value::Blocked(Rc::new(gx)));
        }
        Ok(())
    }

    fn norm(&mut self, step: &Step, needs_grad: &[bool], saved: SavedNorm, grad: Value) -> Result<()> {
        let Layer::BatchNorm(norm) = &self.network.layers[saved.norm.index()] else { return Ok(()) };
        let SavedNorm { x, mut y, mean, scale, of_batch, fraction, drop_path, .. } = saved;
        let mut grad = BlockedTensor::owned(grad.into_blocked(self.buffers())?);
        let kernels = resnet_kernels::BatchNorm { layout: x.layout, isa: ops::isa(), pool: ops::threads()? };
        let mut residual = step.inputs.get(1).map(|node| (*node, needs_grad[1]));
        if let Some(drop_path) = drop_path {
            // The gradients of the norm and of the residual differ.
            if let Some(y) = y.take() {
                relu_grad(&mut grad, &y)?;
            }
            if let Some((node, true)) = residual.take() {
                let mut added = BlockedTensor::copy(&grad);
                drop_path.grad(1, &mut added)?;
                self.add(node, true, Value::Blocked(Rc::new(added)))?;
            }
            drop_path.grad(0, &mut grad)?;
        }
        let workers = self.workers;
        let buffers = self.buffers().clone();
        let (passed, parameters) = with_values(&norm.weight, |weight| {
            let of = BatchNormGrad {
                x: x.slice(),
                relu_output: y.as_ref().map(|y| y.slice()),
                mean: &mean,
                inv_std: &scale,
                weight,
                batch_stats: of_batch,
            };
            let [gw, gb] = kernels.grad_parameters(&of, grad.slice_mut()).map_err(kernel)?;
            let (mut all_w, mut all_b) = (gw.clone(), gb.clone());
            if of_batch && workers.world_size() > 1 {
                let mut both: Vec<f64> = gw.iter().chain(&gb).copied().collect();
                workers.all_reduce(&mut both)?;
                // The kernel divides by the number of values in this process, the formula by that of all processes.
                all_w = both[..gw.len()].iter().map(|sum| sum * fraction).collect();
                all_b = both[gw.len()..].iter().map(|sum| sum * fraction).collect();
            }
            let passed = match (needs_grad[0], residual) {
                (false, _) => None,
                (true, Some((_, true))) => {
                    let mut out = BlockedTensor::empty(&buffers, x.layout);
                    kernels
                        .grad_input(&of, [&all_w, &all_b], grad.slice(), out.slice_mut())
                        .map_err(kernel)?;
                    Some(out)
                }
                (true, _) => {
                    kernels.grad_input_in_place(&of, [&all_w, &all_b], grad.slice_mut()).map_err(kernel)?;
                    let empty = BlockedTensor::new(&buffers, x.layout, resnet_kernels::AlignedVec::default());
                    Some(std::mem::replace(&mut grad, empty))
                }
            };
            Ok((passed, [gw, gb]))
        })?;
        for (tensor, values) in [&norm.weight, &norm.bias].into_iter().zip(parameters) {
            if tensor.track_op() {
                let values: Vec<f32> = values.into_iter().map(|v| v as f32).collect();
                (self.sink)(tensor, Tensor::from_vec(values, tensor.shape(), &Device::Cpu)?)?;
            }
        }
        drop((x, y));
        if let Some((node, needs_grad)) = residual {
            self.add(node, needs_grad, Value::Blocked(Rc::new(grad)))?;
        }
        match passed {
            Some(passed) => self.add(step.inputs[0], needs_grad[0], Value::Blocked(Rc::new(passed))),
            None => Ok(()),
        }
    }

    fn candle(&mut self, step: &Step, inputs: Vec<Option<Var>>, output: Tensor, grad: Value) -> Result<()> {
        let grad = grad.planar()?.reshape(output.shape())?;
        let mut gradients = (&output * grad)?.sum_all()?.backward()?;
        let layer = &self.network.layers[step.norm.unwrap_or(step.node).index()];
        for tensor in layer.trainable().into_iter().filter(|t| t.track_op()) {
            if let Some(gradient) = gradients.remove(tensor) {
                (self.sink)(tensor, gradient)?;
            }
        }
        for (variable, node) in inputs.into_iter().zip(&step.inputs) {
            if let Some(gradient) = variable.and_then(|v| gradients.remove(&v)) {
                self.add(*node, true, Value::Planar(gradient))?;
            }
        }
        Ok(())
    }
}
