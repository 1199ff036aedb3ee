//! Fuses cells that exporters split: paddings, slices, scales and shifts.

use resnet_model::graph::{Blur, Conv, Op, PoolSpec, Subsample};
use resnet_model::{Preprocess, RawTensor};

use super::cells::{Cell, CellGraph, CellKind, Tensors};
use super::constant::{Constant, arithmetic};
use crate::error::{Code, Fault};

/// Preprocessing in the graph: `x · scale + shift` for each channel of the input.
#[derive(Debug, Clone, PartialEq)]
pub struct Prelude {
    scale: Vec<f32>,
    shift: Vec<f32>,
}

impl Prelude {
    /// Returns `default` with the mean and std that the graph applies. The range of the graph's input, 0 to 1 or 0 to 255,
    /// follows from their magnitude: a mean or std beyond 4 is one of 0 to 255.
    ///
    /// # Errors
    ///
    /// A [`Fault`] if the channels have different ranges.
    pub fn preprocess(&self, default: Preprocess, notes: &mut Vec<String>) -> Result<Preprocess, Fault> {
        let exceeds_unit =
            |(scale, shift): (&f32, &f32)| scale.recip().abs() > 4.0 || (shift / scale).abs() > 4.0;
        let mut ranges = self.scale.iter().zip(&self.shift).map(exceeds_unit);
        let bytes = ranges.next().unwrap_or(false);
        if ranges.any(|other| other != bytes) {
            let detail =
                "input channels are normalized for different ranges; expected 0 to 1 or 0 to 255 for all";
            return Err(Fault::new(Code::Unsupported, detail));
        }
        let range = if bytes { 255.0 } else { 1.0 };
        let std: Vec<f32> = self.scale.iter().map(|a| (a * range).recip()).collect();
        let mean: Vec<f32> = self.shift.iter().zip(&std).map(|(b, s)| -b * s).collect();
        let list = |values: &[f32]| values.iter().map(f32::to_string).collect::<Vec<_>>().join(", ");
        notes.push(format!(
            "the graph normalizes images of values from 0 to {range}: mean {}, std {} for values from 0 to 1",
            list(&mean),
            list(&std)
        ));
        Ok(Preprocess { mean, std, ..default })
    }
}

/// Fuses and simplifies nodes, and removes those without readers.
pub(crate) fn simplify(net: CellGraph) -> (CellGraph, Option<Prelude>) {
    let mut uses = vec![0usize; net.cells.len()];
    for &input in net.cells.iter().flat_map(|c| &c.inputs) {
        if let Some(n) = uses.get_mut(input) {
            *n = n.saturating_add(1);
        }
    }
    let mut out: Vec<Cell> = Vec::with_capacity(net.cells.len());
    let mut moved: Vec<usize> = Vec::with_capacity(net.cells.len());
    let mut prelude: Option<Prelude> = None;
    for cell in net.cells {
        let is_only_use = matches!(cell.inputs.as_slice(), [i] if uses.get(*i) == Some(&1));
        let mut cell = cell;
        for input in &mut cell.inputs {
            *input = moved.get(*input).copied().unwrap_or(0);
        }
        let before = cell.inputs.first().and_then(|&i| out.get(i)).filter(|_| is_only_use);
        if let (Some(Cell { kind: CellKind::Op(Op::Input, _), channels, .. }), CellKind::Affine(tensors)) =
            (before, &cell.kind)
        {
            prelude = compose_prelude(prelude, tensors, *channels);
            if prelude.is_some() {
                moved.push(0);
                continue;
            }
        }
        let fused = before.and_then(|before| fuse(before, &cell, &out));
        out.push(fused.unwrap_or(cell));
        moved.push(out.len().saturating_sub(1));
    }
    for cell in &mut out {
        if let CellKind::StridedSlice([height, width]) = cell.kind
            && height == width
        {
            cell.kind = Op::Subsample(Subsample { stride: height }).into();
        }
    }
    (reachable(out), prelude)
}

/// Removes cells that the last cell does not depend on.
fn reachable(cells: Vec<Cell>) -> CellGraph {
    let mut needed = vec![false; cells.len()];
    if let Some(last) = needed.last_mut() {
        *last = true;
    }
    for (i, cell) in cells.iter().enumerate().rev() {
        if needed.get(i) == Some(&true) {
            for &input in &cell.inputs {
                if let Some(n) = needed.get_mut(input) {
                    *n = true;
                }
            }
        }
    }
    let mut moved = vec![0usize; cells.len()];
    let mut kept: Vec<Cell> = Vec::with_capacity(cells.len());
    for ((mut cell, needed), i) in cells.into_iter().zip(needed).zip(0usize..) {
        // The input is always the first cell.
        if !needed && i > 0 {
            continue;
        }
        for input in &mut cell.inputs {
            *input = moved.get(*input).copied().unwrap_or(0);
        }
        if let Some(place) = moved.get_mut(i) {
            *place = kept.len();
        }
        kept.push(cell);
    }
    CellGraph { cells: kept }
}

/// Fuses `cell` with its only input, or returns `None`.
fn fuse(before: &Cell, cell: &Cell, cells: &[Cell]) -> Option<Cell> {
    let kind = match (&before.kind, &cell.kind) {
        (CellKind::Op(Op::Pad(pad), _), CellKind::Op(Op::Conv(conv), tensors))
            if pad.before == pad.after && conv.padding == [0; 2] =>
        {
            CellKind::Op(Op::Conv(Conv { padding: pad.before, ..*conv }), tensors.clone())
        }
        // After a ReLU, zero padding has no effect on the maximum, like the padding of a pool.
        (CellKind::Op(Op::Pad(pad), _), CellKind::Op(Op::MaxPool(pool), _))
            if pad.before == pad.after
                && pool.padding == [0; 2]
                && cells.get(*before.inputs.first()?)?.op() == Some(&Op::Relu) =>
        {
            Op::MaxPool(PoolSpec { padding: pad.before, ..*pool }).into()
        }
        (CellKind::StridedSlice([a, b]), CellKind::StridedSlice([c, d])) => {
            CellKind::StridedSlice([a.checked_mul(*c)?, b.checked_mul(*d)?])
        }
        (CellKind::ReflectPad([1, 1]), CellKind::Op(Op::Conv(conv), tensors)) if is_blur(conv, tensors) => {
            Op::Blur(Blur { stride: conv.stride[0] }).into()
        }
        (CellKind::Op(op @ (Op::Linear(_) | Op::Conv(_)), tensors), CellKind::Affine(affine))
            if tensors.bias.is_none() && affine.weight.is_none() =>
        {
            CellKind::Op(op.clone(), Tensors { bias: affine.bias.clone(), ..tensors.clone() })
        }
        (CellKind::Op(op @ Op::GroupNorm(_), tensors), CellKind::Affine(affine)) => {
            CellKind::Op(op.clone(), compose(tensors, affine)?)
        }
        (CellKind::Affine(first), CellKind::Affine(second)) => CellKind::Affine(compose(first, second)?),
        _ => return None,
    };
    Some(Cell { kind, inputs: before.inputs.clone(), label: before.label.clone(), ..cell.clone() })
}

/// Composes two affine maps into a scale followed by a shift, or returns `None`.
fn compose(first: &Tensors, second: &Tensors) -> Option<Tensors> {
    match (first, second) {
        (Tensors { weight, bias: None, .. }, Tensors { weight: None, bias, .. }) => {
            Some(Tensors { weight: weight.clone(), bias: bias.clone(), ..Tensors::default() })
        }
        (Tensors { weight: None, bias: None, .. }, Tensors { weight, bias, .. }) => {
            Some(Tensors { weight: weight.clone(), bias: bias.clone(), ..Tensors::default() })
        }
        // (x + b) · s = x · s + b · s
        (Tensors { weight: None, bias: Some(bias), .. }, Tensors { weight: Some(scale), bias: None, .. }) => {
            let bias = bias.with(arithmetic("Mul", &bias.tensor, &scale.tensor)?);
            Some(Tensors { weight: Some(scale.clone()), bias: Some(bias), ..Tensors::default() })
        }
        _ => None,
    }
}

/// Returns `true` if a convolution is timm's `BlurPool2d`: depthwise, with binomial weights.
fn is_blur(conv: &Conv, tensors: &Tensors) -> bool {
    const BINOMIAL: [f32; 9] = [1.0, 2.0, 1.0, 2.0, 4.0, 2.0, 1.0, 2.0, 1.0];
    let spec = Conv {
        stride: [conv.stride[0]; 2],
        padding: [0; 2],
        groups: conv.in_channels,
        ..Conv::square(conv.in_channels, conv.in_channels, 3)
    };
    let values = tensors.weight.as_ref().and_then(Constant::values).unwrap_or_default();
    *conv == spec
        && tensors.bias.is_none()
        && values.iter().zip(BINOMIAL.iter().cycle()).all(|(v, b)| (v * 16.0 - b).abs() < 1e-4)
}

/// Composes the preprocessing so far with the scale and shift of `tensors`.
fn compose_prelude(prelude: Option<Prelude>, tensors: &Tensors, channels: usize) -> Option<Prelude> {
    if channels > 1 << 14 {
        return None;
    }
    let mut prelude =
        prelude.unwrap_or_else(|| Prelude { scale: vec![1.0; channels], shift: vec![0.0; channels] });
    let read = |constant: &Option<Constant>, neutral: f32| match constant {
        Some(constant) => constant.values(),
        None => Some(vec![neutral; channels]),
    };
    let (scale, shift) = (read(&tensors.weight, 1.0)?, read(&tensors.bias, 0.0)?);
    let own = prelude.scale.iter_mut().zip(&mut prelude.shift);
    for ((a, b), (scale, shift)) in own.zip(scale.into_iter().zip(shift)) {
        (*a, *b) = (*a * scale, *b * scale + shift);
    }
    Some(prelude)
}

/// Returns an f32 tensor `[C]`.
pub(crate) fn row(values: &[f32]) -> Option<RawTensor> {
    RawTensor::from_f32(vec![values.len()], values)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn preprocess(scale: f32, mean: f32) -> Preprocess {
        let prelude = Prelude { scale: vec![scale; 3], shift: vec![-mean * scale; 3] };
        prelude.preprocess(Preprocess::torchvision(256, 224), &mut vec![]).unwrap()
    }

    #[test]
    fn input_range_follows_from_mean_and_std() {
        // Caffe only subtracts the mean, in the range 0 to 255.
        assert!((preprocess(1.0, 123.0).mean[0] - 123.0 / 255.0).abs() < 1e-6);
        assert!((preprocess(1.0, 123.0).std[0] - 1.0 / 255.0).abs() < 1e-6);
        assert!((preprocess(1.0 / 255.0, 0.0).std[0] - 1.0).abs() < 1e-6);
        assert!((preprocess(1.0 / 58.4, 123.7).std[0] - 58.4 / 255.0).abs() < 1e-6);
        assert!((preprocess(1.0 / 0.225, 0.45).mean[0] - 0.45).abs() < 1e-6);
        assert!((preprocess(1.0, 0.5).std[0] - 1.0).abs() < 1e-6);
        let mixed = Prelude { scale: vec![1.0, 1.0, 1.0], shift: vec![-123.0, -0.4, -0.4] };
        assert!(mixed.preprocess(Preprocess::torchvision(256, 224), &mut vec![]).is_err());
    }
}
