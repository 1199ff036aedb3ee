//! Running the program.

use std::ops::Range;
use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};
use resnet_kernels::{
    Blocked, Input, Residual, ThreadPool, View, ViewMut, avg_pool, global_avg_pool, max_pool,
};

use super::Output;
use super::map::{First, concat};
use super::pack::{Compiled, Kernel, Program};
use super::session::{Form, Layout, Session};
use crate::graph::NodeId;
use crate::{Error, Result, network};

/// Runs the steps of the session's layout on the normalised images `x`. The results asked for are then in its memory.
pub(super) fn run(
    program: &Program,
    session: &mut Session,
    x: &[f32],
    pool: &ThreadPool,
    on: &mut dyn FnMut(usize, Duration),
) -> Result<()> {
    let layout = session.layout().clone();
    let call = Call { program, layout: &layout, x, pool };
    let arena: &mut [f32] = &mut session.arena;
    if layout.packs_input
        && let Some(input) = program.graph.ids().next()
        && let (Form::Blocked(blocked), range) = layout.place(input)?
    {
        blocked.pack(x, &mut arena[range], pool)?;
    }
    let steps = layout.wanted().steps.clone();
    for (i, compiled) in program.steps[steps.clone()].iter().enumerate() {
        let start = Instant::now();
        call.step(i, compiled, arena)?;
        on(steps.start + i, start.elapsed());
    }
    Ok(())
}

struct Call<'a> {
    program: &'a Program,
    layout: &'a Layout,
    x: &'a [f32],
    pool: &'a ThreadPool,
}

/// Parts of the arena that the memory plan keeps apart.
fn split<const N: usize>(arena: &mut [f32], parts: [Range<usize>; N]) -> Result<[&mut [f32]; N]> {
    arena.get_disjoint_mut(parts).map_err(|e| Error::Arch(format!("the memory plan is wrong: {e}")))
}

fn blocked(form: Form) -> Result<Blocked> {
    match form {
        Form::Blocked(layout) => Ok(layout),
        Form::Dense { .. } => Err(Error::Arch("an operation on pixels follows the pooling".into())),
    }
}

impl Call<'_> {
    fn step(&self, index: usize, compiled: &Compiled, arena: &mut [f32]) -> Result<()> {
        let step = &compiled.step;
        let (form, out) = self.layout.place(step.node)?;
        if let (Form::Blocked(layout), false) = (form, self.layout.in_place[index]) {
            layout.clear_halo(&mut arena[out.clone()])?;
        }
        let input = step.inputs[0];
        let scratch = self.layout.scratch[index].clone();
        match &compiled.kernel {
            Kernel::Conv(conv) => {
                let layout = blocked(form)?;
                let planar = conv.plan().algorithm == resnet_kernels::Algorithm::Planar;
                let residual = step.inputs.get(1).copied();
                let (source, from) = match planar {
                    true => (None, 0..0),
                    false => {
                        let (form, range) = self.layout.place(input)?;
                        (Some(blocked(form)?), range)
                    }
                };
                let (beside, beside_range) = match residual {
                    Some(node) if !self.layout.in_place[index] && node != input => {
                        let (form, range) = self.layout.place(node)?;
                        (Some(blocked(form)?), range)
                    }
                    _ => (None, 0..0),
                };
                let [data, scratch, from, other] = split(arena, [out, scratch, from, beside_range])?;
                let source = source.map(|layout| View { layout, data: from });
                let residual = match (residual, beside, source) {
                    (None, ..) => Residual::None,
                    (Some(_), Some(layout), _) => Residual::Add(View { layout, data: other }),
                    (Some(node), None, Some(source)) if node == input => Residual::Add(source),
                    (Some(_), ..) => Residual::InPlace,
                };
                let from = match source {
                    Some(view) => Input::Blocked(view),
                    None => Input::Planar { dims: self.layout.wanted().dims, data: self.x },
                };
                conv.run(from, residual, ViewMut { layout, data }, scratch, self.pool)?;
            }
            Kernel::Linear(linear) => {
                let (_, from) = self.layout.place(input)?;
                let [y, scratch, x] = split(arena, [out, scratch, from])?;
                linear.run(x, y, scratch, self.pool)?;
            }
            Kernel::MaxPool(window) => {
                let (source, from) = self.layout.place(input)?;
                let [data, from] = split(arena, [out, from])?;
                let source = View { layout: blocked(source)?, data: from };
                let to = ViewMut { layout: blocked(form)?, data };
                max_pool(self.program.isa, window, source, to, self.pool)?;
            }
            Kernel::GlobalAvgPool => {
                let (source, from) = self.layout.place(input)?;
                let [y, from] = split(arena, [out, from])?;
                global_avg_pool(
                    self.program.isa,
                    View { layout: blocked(source)?, data: from },
                    y,
                    self.pool,
                )?;
            }
            Kernel::AvgPool(avg) => {
                let (source, from) = self.layout.place(input)?;
                let [data, from] = split(arena, [out, from])?;
                let source = View { layout: blocked(source)?, data: from };
                let to = ViewMut { layout: blocked(form)?, data };
                avg_pool(self.program.isa, avg, source, to, self.pool)?;
            }
            Kernel::Map(map) => {
                let (x, from) = self.layout.place(input)?;
                let gate = match map.first {
                    First::Gate => self.layout.place(step.inputs[1])?.1,
                    _ => 0..0,
                };
                // `x + x` reads one range twice.
                let residual = step.inputs.last().copied().filter(|_| map.residual);
                let beside = residual.filter(|&r| r != input).map(|r| self.layout.place(r)).transpose()?;
                let range = beside.clone().map_or(0..0, |(_, range)| range);
                let [data, from, gate, other] = split(arena, [out, from, gate, range])?;
                let x = View { layout: blocked(x)?, data: from };
                let residual = match (residual, beside) {
                    (Some(_), Some((form, _))) => Some(View { layout: blocked(form)?, data: other }),
                    (Some(_), None) => Some(x),
                    (None, _) => None,
                };
                map.run(x, gate, residual, ViewMut { layout: blocked(form)?, data }, self.pool);
            }
            Kernel::Concat => {
                let (before, rest) = arena.split_at_mut(out.start);
                let (data, after) = rest.split_at_mut(out.len());
                let mut views = Vec::with_capacity(step.inputs.len());
                for &node in &step.inputs {
                    let (form, range) = self.layout.place(node)?;
                    let data: &[f32] = match range.start < out.start {
                        true => &before[range],
                        false => &after[range.start - out.end..range.end - out.end],
                    };
                    views.push(View { layout: blocked(form)?, data });
                }
                concat(&views, ViewMut { layout: blocked(form)?, data }, self.pool);
            }
            Kernel::Dense(function) => {
                let (_, from) = self.layout.place(input)?;
                let [to, from] = split(arena, [out, from])?;
                to.iter_mut().zip(from).for_each(|(to, x)| *to = function(*x));
            }
            Kernel::Candle(layer) => {
                let inputs =
                    step.inputs.iter().map(|&i| self.tensor(i, arena)).collect::<Result<Vec<_>>>()?;
                let result = network::apply(self.program.graph.node(step.node), layer, &inputs, false)?;
                let values = result.flatten_all()?.to_vec1::<f32>()?;
                match form {
                    Form::Blocked(layout) => layout.pack(&values, &mut arena[out], self.pool)?,
                    Form::Dense { .. } => arena[out].copy_from_slice(&values),
                }
            }
        }
        Ok(())
    }

    /// A result as a candle tensor.
    fn tensor(&self, node: NodeId, arena: &[f32]) -> Result<Tensor> {
        if node.index() == 0 {
            return Ok(Tensor::from_slice(self.x, &self.layout.wanted().dims, &Device::Cpu)?);
        }
        let output = output(self.layout, node, arena, self.pool)?;
        Ok(Tensor::from_vec(output.values, output.shape, &Device::Cpu)?)
    }
}

/// A result in row-major order.
pub(super) fn output(layout: &Layout, node: NodeId, arena: &[f32], pool: &ThreadPool) -> Result<Output> {
    let (form, range) = layout.place(node)?;
    match form {
        Form::Dense { n, c } => Ok(Output { shape: vec![n, c], values: arena[range].to_vec() }),
        Form::Blocked(layout) => {
            let shape = layout.dims();
            let mut values = vec![0.0; shape.iter().product()];
            layout.unpack(&arena[range], &mut values, pool)?;
            Ok(Output { shape: shape.to_vec(), values })
        }
    }
}
