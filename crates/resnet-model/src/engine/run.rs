//! Execution of the program.

use std::ops::Range;
use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};
use resnet_kernels::{
    Blocked, Input, Residual, ThreadPool, View, ViewMut, avg_pool, global_avg_pool, max_pool,
};

use super::Output;
use super::elementwise::{Coefficients, concat};
use super::pack::{CompiledStep, Kernel, Program};
use super::session::{MemoryPlan, ResultLayout, Session};
use crate::graph::NodeId;
use crate::{Error, Result};

/// Runs the steps of the session's request on normalized images `x`. The requested results are in its arena afterwards.
pub(super) fn run(
    program: &Program,
    session: &mut Session,
    x: &[f32],
    pool: &ThreadPool,
    on: &mut dyn FnMut(usize, Duration),
) -> Result<()> {
    let plan = session.plan().clone();
    let call = Call { program, plan: &plan, x, pool };
    let arena: &mut [f32] = &mut session.arena;
    if plan.packs_input
        && let Some(input) = program.graph.ids().next()
        && let (ResultLayout::Blocked(blocked), range) = plan.place(input)?
    {
        blocked.pack(x, &mut arena[range], pool)?;
    }
    let steps = plan.request().steps.clone();
    for (i, compiled) in program.steps[steps.clone()].iter().enumerate() {
        let start = Instant::now();
        call.step(i, compiled, arena)?;
        on(steps.start + i, start.elapsed());
    }
    Ok(())
}

struct Call<'a> {
    program: &'a Program,
    plan: &'a MemoryPlan,
    x: &'a [f32],
    pool: &'a ThreadPool,
}

/// The name of a step, for errors.
#[derive(Clone, Copy)]
struct StepName<'a>(&'a str);

impl StepName<'_> {
    /// Returns disjoint ranges of the arena.
    fn split<'a, const N: usize>(
        &self,
        arena: &'a mut [f32],
        ranges: [Range<usize>; N],
    ) -> Result<[&'a mut [f32]; N]> {
        arena.get_disjoint_mut(ranges).map_err(|_| self.error("results overlap in memory"))
    }

    fn blocked(&self, layout: ResultLayout) -> Result<Blocked> {
        match layout {
            ResultLayout::Blocked(layout) => Ok(layout),
            ResultLayout::Dense { .. } => Err(self.error("expected a feature map, found [N, C]")),
        }
    }

    fn error(&self, problem: &'static str) -> Error {
        Error::Engine { layer: self.0.to_owned(), problem }
    }
}

impl Call<'_> {
    fn step(&self, index: usize, compiled: &CompiledStep, arena: &mut [f32]) -> Result<()> {
        let step = &compiled.step;
        let name = StepName(&self.program.graph.node(step.node).name);
        let (layout, out) = self.plan.place(step.node)?;
        if let (ResultLayout::Blocked(layout), false) = (layout, self.plan.in_place[index]) {
            layout.clear_halo(&mut arena[out.clone()])?;
        }
        let input = step.inputs[0];
        let scratch = self.plan.scratch[index].clone();
        match &compiled.kernel {
            Kernel::Conv(conv) => {
                let layout = name.blocked(layout)?;
                let planar = conv.plan().algorithm == resnet_kernels::Algorithm::Planar;
                let residual = step.inputs.get(1).copied();
                let (source, from) = match planar {
                    true => (None, 0..0),
                    false => {
                        let (layout, range) = self.plan.place(input)?;
                        (Some(name.blocked(layout)?), range)
                    }
                };
                let (residual_layout, residual_range) = match residual {
                    Some(node) if !self.plan.in_place[index] && node != input => {
                        let (layout, range) = self.plan.place(node)?;
                        (Some(name.blocked(layout)?), range)
                    }
                    _ => (None, 0..0),
                };
                let [data, scratch, from, other] = name.split(arena, [out, scratch, from, residual_range])?;
                let source = source.map(|layout| View { layout, data: from });
                let residual = match (residual, residual_layout, source) {
                    (None, ..) => Residual::None,
                    (Some(_), Some(layout), _) => Residual::Add(View { layout, data: other }),
                    (Some(node), None, Some(source)) if node == input => Residual::Add(source),
                    (Some(_), ..) => Residual::InPlace,
                };
                let from = match source {
                    Some(view) => Input::Blocked(view),
                    None => Input::Planar { dims: self.plan.request().dims, data: self.x },
                };
                conv.run(from, residual, ViewMut { layout, data }, scratch, self.pool)?;
            }
            Kernel::Linear(linear) => {
                let (_, from) = self.plan.place(input)?;
                let [y, scratch, x] = name.split(arena, [out, scratch, from])?;
                linear.run(x, y, scratch, self.pool)?;
            }
            Kernel::MaxPool(window) => {
                let (source, from) = self.plan.place(input)?;
                let [data, from] = name.split(arena, [out, from])?;
                let source = View { layout: name.blocked(source)?, data: from };
                let to = ViewMut { layout: name.blocked(layout)?, data };
                max_pool(self.program.isa, window, source, to, self.pool)?;
            }
            Kernel::GlobalAvgPool => {
                let (source, from) = self.plan.place(input)?;
                let [y, from] = name.split(arena, [out, from])?;
                global_avg_pool(
                    self.program.isa,
                    View { layout: name.blocked(source)?, data: from },
                    y,
                    self.pool,
                )?;
            }
            Kernel::AvgPool(avg) => {
                let (source, from) = self.plan.place(input)?;
                let [data, from] = name.split(arena, [out, from])?;
                let source = View { layout: name.blocked(source)?, data: from };
                let to = ViewMut { layout: name.blocked(layout)?, data };
                avg_pool(self.program.isa, avg, source, to, self.pool)?;
            }
            Kernel::Elementwise(op) => {
                let (x, from) = self.plan.place(input)?;
                let gate = match op.coefficients {
                    Coefficients::Gate => self.plan.place(step.inputs[1])?.1,
                    _ => 0..0,
                };
                // `x + x` reads one range twice.
                let residual = step.inputs.last().copied().filter(|_| op.residual);
                let place = residual.filter(|&r| r != input).map(|r| self.plan.place(r)).transpose()?;
                let range = place.clone().map_or(0..0, |(_, range)| range);
                let [data, from, gate, other] = name.split(arena, [out, from, gate, range])?;
                let x = View { layout: name.blocked(x)?, data: from };
                let residual = match (residual, place) {
                    (Some(_), Some((layout, _))) => Some(View { layout: name.blocked(layout)?, data: other }),
                    (Some(_), None) => Some(x),
                    (None, _) => None,
                };
                op.run(x, gate, residual, ViewMut { layout: name.blocked(layout)?, data }, self.pool);
            }
            Kernel::Concat => {
                let (before, rest) = arena.split_at_mut(out.start);
                let (data, after) = rest.split_at_mut(out.len());
                let mut views = Vec::with_capacity(step.inputs.len());
                for &node in &step.inputs {
                    let (layout, range) = self.plan.place(node)?;
                    let data: &[f32] = match range.start < out.start {
                        true => &before[range],
                        false => &after[range.start - out.end..range.end - out.end],
                    };
                    views.push(View { layout: name.blocked(layout)?, data });
                }
                concat(&views, ViewMut { layout: name.blocked(layout)?, data }, self.pool);
            }
            Kernel::Dense(function) => {
                let (_, from) = self.plan.place(input)?;
                let [to, from] = name.split(arena, [out, from])?;
                to.iter_mut().zip(from).for_each(|(to, x)| *to = function(*x));
            }
            Kernel::Candle(layer) => {
                let inputs =
                    step.inputs.iter().map(|&i| self.tensor(i, arena)).collect::<Result<Vec<_>>>()?;
                let result = layer.apply(self.program.graph.node(step.node), &inputs, false)?;
                let values = result.flatten_all()?.to_vec1::<f32>()?;
                match layout {
                    ResultLayout::Blocked(layout) => layout.pack(&values, &mut arena[out], self.pool)?,
                    ResultLayout::Dense { .. } => arena[out].copy_from_slice(&values),
                }
            }
        }
        Ok(())
    }

    /// Returns a result as a candle tensor.
    fn tensor(&self, node: NodeId, arena: &[f32]) -> Result<Tensor> {
        if node.index() == 0 {
            return Ok(Tensor::from_slice(self.x, &self.plan.request().dims, &Device::Cpu)?);
        }
        let output = output(self.plan, node, arena, self.pool)?;
        Ok(Tensor::from_vec(output.values, output.shape, &Device::Cpu)?)
    }
}

/// Returns a result in row-major order.
pub(super) fn output(plan: &MemoryPlan, node: NodeId, arena: &[f32], pool: &ThreadPool) -> Result<Output> {
    let (layout, range) = plan.place(node)?;
    match layout {
        ResultLayout::Dense { n, c } => Ok(Output { shape: vec![n, c], values: arena[range].to_vec() }),
        ResultLayout::Blocked(layout) => {
            let shape = layout.dims();
            let mut values = vec![0.0; shape.iter().product()];
            layout.unpack(&arena[range], &mut values, pool)?;
            Ok(Output { shape: shape.to_vec(), values })
        }
    }
}
