//! Nodes that depend on no image: constants, and arithmetic between shapes.

use resnet_model::RawTensor;

use super::{Translator, Value};
use crate::cells::Axis;
use crate::constant::{self, Constant};
use crate::error::{Code, Fault};
use crate::proto::NodeProto;
use crate::tensor;

/// The longest list of sizes.
const MAX_SIZES: usize = 64;

impl<'a> Translator<'a> {
    /// The value of a node that depends on no image; `None` if it does.
    pub(super) fn evaluate(&mut self, node: &'a NodeProto) -> Result<Option<Value>, Fault> {
        match node.op.as_str() {
            "Constant" => return self.literal(node).map(|t| Some(constant(node, t))),
            "ConstantOfShape" => return self.constant_of_shape(node).map(Some),
            "Shape" => return self.shape(node).map(Some),
            // To the type of the images, which is no matter here.
            "CastLike" => match (self.value(node, 0)?, self.value(node, 1)?) {
                (Some(value @ Value::Constant(_)), Some(Value::View(_))) => return Ok(Some(value)),
                (_, Some(Value::View(_))) => return Ok(None),
                _ => {}
            },
            _ => {}
        }
        let mut inputs = Vec::new();
        for i in 0..node.inputs.len() {
            match self.value(node, i)? {
                Some(Value::View(_)) => return Ok(None),
                value => inputs.push(value),
            }
        }
        if inputs.iter().flatten().any(|v| matches!(v, Value::Sizes(_))) {
            return Ok(Some(known(node, sizes(node, &inputs), &inputs)));
        }
        let inputs: Vec<Option<Constant>> = inputs
            .into_iter()
            .map(|v| match v {
                Some(Value::Constant(c)) => Some(c),
                _ => None,
            })
            .collect();
        let tensor = self.compute(node, &inputs)?;
        let Some(first) = inputs.into_iter().flatten().next() else {
            return Err(node.fault(Code::Unsupported, "an operator that makes constants in an unknown way"));
        };
        Ok(Some(Value::Constant(first.with(tensor))))
    }

    /// The value of a `Constant`.
    fn literal(&mut self, node: &'a NodeProto) -> Result<RawTensor, Fault> {
        let made = if let Some(tensor) = node.tensor("value") {
            let raw = tensor::raw(tensor, self.context.file, &mut self.context.external)?;
            return raw.map_err(|what| node.fault(Code::Unsupported, format!("a constant {what}")));
        } else if let Some(list) = node.ints("value_ints") {
            constant::from_ints(list)
        } else if let Some(list) = node.floats("value_floats") {
            RawTensor::from_f32(vec![list.len()], list)
        } else if let Some(value) = node.int("value_int") {
            constant::from_ints(&[value]).and_then(|t| t.reshape(vec![]))
        } else if let Some(value) = node.float("value_float") {
            RawTensor::from_f32(vec![], &[value])
        } else {
            None
        };
        made.ok_or_else(|| node.fault(Code::Unsupported, "a constant of an unknown kind"))
    }

    fn constant_of_shape(&mut self, node: &'a NodeProto) -> Result<Value, Fault> {
        let shape = match self.value(node, 0)? {
            Some(Value::Constant(shape)) => constant::ints(&shape.tensor),
            // As many of something as there are images: only the shape of such a value matters.
            Some(Value::Sizes(sizes)) => return Ok(Value::Sizes(vec![None; sizes.len().min(MAX_SIZES)])),
            _ => None,
        };
        let shape =
            shape.and_then(|s| s.into_iter().map(|d| usize::try_from(d).ok()).collect::<Option<Vec<_>>>());
        let shape = shape.ok_or_else(|| node.fault(Code::TensorSize, "its shape is no list of sizes"))?;
        let element = match node.tensor("value") {
            Some(tensor) => tensor::raw(tensor, self.context.file, &mut self.context.external)?
                .map_err(|what| node.fault(Code::Unsupported, format!("a constant {what}")))?,
            None => RawTensor::from_f32(vec![1], &[0.0])
                .ok_or_else(|| node.fault(Code::TensorSize, "no element"))?,
        };
        let filled = self.fill(node, &element, shape)?;
        Ok(constant(node, filled))
    }

    fn shape(&mut self, node: &'a NodeProto) -> Result<Value, Fault> {
        let sizes: Vec<Option<i64>> = match self.value(node, 0)? {
            Some(Value::Constant(c)) => c.shape().iter().map(|&d| i64::try_from(d).ok()).collect(),
            Some(Value::Sizes(sizes)) => vec![i64::try_from(sizes.len()).ok()],
            Some(Value::View(view)) => {
                let cell = self.cell(view.cell)?;
                let [height, width] = cell.size.map_or([None; 2], |s| s.map(|d| i64::try_from(d).ok()));
                let size = |axis: &Axis| match axis {
                    Axis::C => i64::try_from(cell.channels).ok(),
                    Axis::H => height,
                    Axis::W => width,
                    Axis::One => Some(1),
                    Axis::Groups(groups) => i64::try_from(*groups).ok(),
                    Axis::N | Axis::Rest => None,
                };
                view.axes.iter().map(size).collect()
            }
            None => return Err(node.graph_fault("no input")),
        };
        let rank = sizes.len();
        let at = |name, default: usize| match node.int(name) {
            Some(i) if i < 0 => rank.saturating_sub(usize::try_from(i.unsigned_abs()).unwrap_or(rank)),
            Some(i) => usize::try_from(i).unwrap_or(rank).min(rank),
            None => default,
        };
        let sizes = sizes.get(at("start", 0)..at("end", rank)).unwrap_or(&[]).to_vec();
        Ok(known(node, sizes, &[]))
    }

    /// The result of a node whose inputs are constants.
    fn compute(&mut self, node: &'a NodeProto, inputs: &[Option<Constant>]) -> Result<RawTensor, Fault> {
        let input = |i: usize| inputs.get(i).and_then(Option::as_ref).map(|c| &c.tensor);
        let odd = || node.fault(Code::Unsupported, "a constant that cannot be computed from its inputs");
        let tensor = input(0).ok_or_else(odd)?;
        // Before anything is computed: operands that take no memory are not to be written out.
        let all = inputs.iter().flatten().map(|c| c.tensor.byte_len()).fold(0u64, u64::saturating_add);
        if all > self.budget
            && matches!(
                node.op.as_str(),
                "Add"
                    | "Sub"
                    | "Mul"
                    | "Div"
                    | "Pow"
                    | "Sqrt"
                    | "Reciprocal"
                    | "Neg"
                    | "Exp"
                    | "Abs"
                    | "Concat"
                    | "Gather"
                    | "Slice"
                    | "ReduceMean"
                    | "BatchNormalization"
            )
        {
            return Err(node.fault(Code::TensorBytes, "constants far larger than the file"));
        }
        let list = |attribute: &str, i: usize| match node.ints(attribute) {
            Some(list) => Some(list.to_vec()),
            None => input(i).and_then(constant::ints),
        };
        let rank = tensor.shape().len();
        let made = match node.op.as_str() {
            "Identity" | "Dropout" => return Ok(tensor.clone()),
            "Cast" => node.int("to").and_then(tensor::dtype).and_then(|to| constant::cast(tensor, to)),
            "CastLike" => input(1).and_then(|like| constant::cast(tensor, like.dtype())),
            "Reshape" => list("shape", 1)
                .and_then(|to| constant::reshaped(tensor.shape(), &to, node.flag("allowzero")))
                .and_then(|shape| tensor.reshape(shape)),
            "Flatten" => constant::axis(node.int_or("axis", 1), rank.saturating_add(1)).and_then(|axis| {
                let (before, after) = tensor.shape().split_at_checked(axis)?;
                tensor.reshape(vec![product(before)?, product(after)?])
            }),
            "Squeeze" => squeeze(tensor, list("axes", 1)),
            "Unsqueeze" => list("axes", 1).and_then(|axes| unsqueeze(tensor, &axes)),
            "Transpose" => {
                let order = node.ints("perm").map(|p| p.iter().map(|&i| usize::try_from(i).ok()).collect());
                let order = order.unwrap_or_else(|| Some((0..rank).rev().collect::<Vec<_>>()));
                let moved = order.and_then(|order| resnet_model::raw::permute(tensor, &order));
                let moved = moved.ok_or_else(odd)?;
                return self.spend(node, moved);
            }
            "Expand" => {
                let shape = input(1).and_then(constant::ints).ok_or_else(odd)?;
                let shape = shape.into_iter().map(|d| usize::try_from(d).ok()).collect::<Option<Vec<_>>>();
                let shape = shape.ok_or_else(odd)?;
                // To the shape that both have when broadcast; the constant is one number or has it already.
                return match tensor.elements() {
                    1 if rank <= shape.len() => self.fill(node, &tensor.clone(), shape),
                    n if product(&shape).is_some_and(|m| m <= n) => Ok(tensor.clone()),
                    _ => Err(odd()),
                };
            }
            "Concat" => concat(inputs),
            "Gather" => {
                input(1).and_then(constant::ints).and_then(|at| gather(tensor, &at, input(1)?.shape()))
            }
            "Slice" => slice(node, inputs),
            "Add" | "Sub" | "Mul" | "Div" | "Pow" => {
                input(1).and_then(|other| constant::arithmetic(&node.op, tensor, other))
            }
            "Sqrt" | "Reciprocal" | "Neg" | "Exp" | "Abs" => constant::unary(&node.op, tensor),
            "ReduceMean" => {
                let axes = list("axes", 1).unwrap_or_else(|| (0..rank as i64).collect());
                constant::mean(tensor, &axes, node.int_or("keepdims", 1) != 0)
            }
            // PyTorch standardises weights by a batch norm of a batch of one.
            "BatchNormalization" => constant::batch_norm(
                tensor,
                [1, 2, 3, 4].map(input),
                f64::from(node.float_or("epsilon", 1e-5)),
                node.flag("training_mode"),
            ),
            _ => None,
        };
        let made = made.ok_or_else(odd)?;
        self.spend(node, made)
    }
}

fn constant(node: &NodeProto, tensor: RawTensor) -> Value {
    Value::Constant(Constant { tensor, name: node.outputs.first().cloned().unwrap_or_default() })
}

/// Sizes of which all are known are a constant: a list, or one number where one was picked out of a list.
fn known(node: &NodeProto, sizes: Vec<Option<i64>>, inputs: &[Option<Value>]) -> Value {
    let list = sizes.iter().copied().collect::<Option<Vec<i64>>>();
    let Some(tensor) = list.and_then(|list| constant::from_ints(&list)) else { return Value::Sizes(sizes) };
    let single = match (node.op.as_str(), inputs.get(1)) {
        ("Squeeze", _) => true,
        ("Gather", Some(Some(Value::Constant(at)))) => at.shape().is_empty(),
        _ => false,
    };
    match tensor.reshape(vec![]).filter(|_| single) {
        Some(number) => constant(node, number),
        None => constant(node, tensor),
    }
}

fn product(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d))
}

fn squeeze(tensor: &RawTensor, axes: Option<Vec<i64>>) -> Option<RawTensor> {
    let rank = tensor.shape().len();
    let axes: Option<Vec<usize>> = match axes {
        Some(axes) => Some(axes.into_iter().map(|a| constant::axis(a, rank)).collect::<Option<_>>()?),
        None => None,
    };
    let kept = tensor.shape().iter().enumerate().filter(|&(i, &d)| match &axes {
        Some(axes) => !axes.contains(&i),
        None => d != 1,
    });
    tensor.reshape(kept.map(|(_, &d)| d).collect())
}

fn unsqueeze(tensor: &RawTensor, axes: &[i64]) -> Option<RawTensor> {
    let rank = tensor.shape().len().checked_add(axes.len())?;
    let axes: Vec<usize> = axes.iter().map(|&a| constant::axis(a, rank)).collect::<Option<_>>()?;
    let mut sizes = tensor.shape().iter();
    let shape = (0..rank).map(|i| if axes.contains(&i) { Some(1) } else { sizes.next().copied() });
    tensor.reshape(shape.collect::<Option<_>>()?)
}

/// Short lists of integers, one after the other.
fn concat(inputs: &[Option<Constant>]) -> Option<RawTensor> {
    let lists = inputs.iter().flatten().map(|c| (c.shape().len() == 1).then(|| constant::ints(&c.tensor))?);
    let lists: Vec<Vec<i64>> = lists.collect::<Option<_>>()?;
    let all: Vec<i64> = lists.into_iter().flatten().collect();
    (all.len() <= MAX_SIZES).then(|| constant::from_ints(&all))?
}

/// Elements of a short list.
fn gather(tensor: &RawTensor, at: &[i64], shape: &[usize]) -> Option<RawTensor> {
    let values = constant::ints(tensor).filter(|_| tensor.shape().len() == 1)?;
    let picked = at.iter().map(|&i| values.get(constant::axis(i, values.len())?).copied());
    constant::from_ints(&picked.collect::<Option<Vec<_>>>()?)?.reshape(shape.to_vec())
}

/// A part of a short list or table of integers, along one axis after the other.
fn slice(node: &NodeProto, inputs: &[Option<Constant>]) -> Option<RawTensor> {
    let tensor = &inputs.first()?.as_ref()?.tensor;
    let list = |name: &str, i: usize| match node.ints(name) {
        Some(list) => Some(list.to_vec()),
        None => constant::ints(&inputs.get(i)?.as_ref()?.tensor),
    };
    let (starts, ends) = (list("starts", 1)?, list("ends", 2)?);
    let axes = list("axes", 3).unwrap_or_else(|| (0..starts.len() as i64).collect());
    let steps = list("steps", 4).unwrap_or_else(|| vec![1; starts.len()]);
    let (mut values, mut shape) = (constant::ints(tensor)?, tensor.shape().to_vec());
    for (((&start, &end), &axis), &step) in starts.iter().zip(&ends).zip(&axes).zip(&steps) {
        let axis = constant::axis(axis, shape.len())?;
        let len = *shape.get(axis)?;
        let picked = picked(start, end, step, len)?;
        let inner = product(shape.get(axis.checked_add(1)?..)?)?;
        let mut out = Vec::new();
        for outer in values.chunks(len.checked_mul(inner)?.max(1)) {
            for &i in &picked {
                let at = i.checked_mul(inner)?;
                out.extend_from_slice(outer.get(at..at.checked_add(inner)?)?);
            }
        }
        *shape.get_mut(axis)? = picked.len();
        values = out;
    }
    constant::from_ints(&values)?.reshape(shape)
}

/// The places that `Slice` means, of `len`.
fn picked(start: i64, end: i64, step: i64, len: usize) -> Option<Vec<usize>> {
    let len = i64::try_from(len).ok()?;
    let from_start = |i: i64| if i < 0 { i.saturating_add(len) } else { i };
    let (lowest, highest) = if step > 0 { (0, len) } else { (-1, len.checked_sub(1)?) };
    let end = from_start(end).clamp(lowest, highest);
    let mut at = from_start(start).clamp(lowest.max(0), highest.max(0));
    let mut out = Vec::new();
    while (step > 0 && at < end) || (step < 0 && at > end) {
        out.push(usize::try_from(at).ok()?);
        at = at.checked_add(step)?;
    }
    Some(out)
}

/// The part of a list of `len` that `Slice` means.
fn bounds(start: i64, end: i64, len: usize) -> std::ops::Range<usize> {
    let place = |i: i64| match usize::try_from(i) {
        Ok(i) => i.min(len),
        Err(_) => len.saturating_sub(usize::try_from(i.unsigned_abs()).unwrap_or(len)),
    };
    let (start, end) = (place(start), place(end));
    start..end.max(start)
}

/// A list of sizes computed from others, some of which are not known.
fn sizes(node: &NodeProto, inputs: &[Option<Value>]) -> Vec<Option<i64>> {
    let list = |value: &Option<Value>| -> Vec<Option<i64>> {
        match value {
            Some(Value::Sizes(sizes)) => sizes.clone(),
            Some(Value::Constant(c)) => {
                constant::ints(&c.tensor).map_or_else(Vec::new, |v| v.into_iter().map(Some).collect())
            }
            _ => vec![],
        }
    };
    let ints = |i: usize| -> Option<Vec<i64>> { list(inputs.get(i)?).into_iter().collect() };
    let first = inputs.first().map(list).unwrap_or_default();
    let out = match node.op.as_str() {
        "Identity" | "Cast" | "Unsqueeze" | "Squeeze" | "Reshape" => Some(first.clone()),
        "Concat" => Some(inputs.iter().flat_map(list).collect()),
        "Gather" => ints(1).map(|at| {
            let pick = |i: i64| first.get(constant::axis(i, first.len())?).copied().flatten();
            at.into_iter().map(pick).collect()
        }),
        "Slice" => {
            let one = |name: &str, i: usize| match node.ints(name) {
                Some(list) => list.first().copied(),
                None => ints(i)?.first().copied(),
            };
            one("starts", 1)
                .zip(one("ends", 2))
                .map(|(start, end)| first.get(bounds(start, end, first.len())).unwrap_or(&[]).to_vec())
        }
        _ => None,
    };
    // Whatever else is computed, it is not known.
    let mut out = out.unwrap_or_else(|| vec![None; first.len().max(1)]);
    out.truncate(MAX_SIZES);
    out
}
