//! Nodes that compute on activations.

use resnet_model::graph::{BatchNorm, ChannelConv, Flatten, GroupNorm, Linear, LinearForm, Multiply, Op};

use super::{Translator, Value};
use crate::cells::{Axis, CellKind, Tensors, View, axes_text};
use crate::constant::Constant;
use crate::error::{Code, Fault};
use crate::proto::NodeProto;
use crate::window::{Window, output};

/// Maximum kernel size along an axis.
const MAX_KERNEL: usize = 1 << 10;

/// Returns epsilon as the shortest decimal of its f32, so that 1e-5 is 1e-5 in f64.
fn eps(node: &NodeProto, default: f32) -> f64 {
    let eps = node.float_or("epsilon", default);
    eps.to_string().parse().unwrap_or(f64::from(eps))
}

impl<'a> Translator<'a> {
    /// Translates a node with an activation as input.
    pub(super) fn layer(&mut self, node: &'a NodeProto) -> Result<Value, Fault> {
        let view = match node.op.as_str() {
            "Conv" => self.conv(node)?,
            "BatchNormalization" => self.batch_norm(node)?,
            "InstanceNormalization" => self.instance_norm(node)?,
            "GroupNormalization" => self.group_norm(node)?,
            "Relu" => self.elementwise(node, Op::Relu)?,
            "Sigmoid" => self.elementwise(node, Op::Sigmoid)?,
            "Clip" => self.clip(node)?,
            "MaxPool" => self.max_pool(node)?,
            "AveragePool" => self.avg_pool(node)?,
            "GlobalAveragePool" => self.global_pool(node, Op::GlobalAvgPool, true)?,
            "GlobalMaxPool" => self.global_pool(node, Op::GlobalMaxPool, true)?,
            "ReduceMean" => self.reduce(node, Op::GlobalAvgPool)?,
            "ReduceMax" => self.reduce(node, Op::GlobalMaxPool)?,
            "Add" | "Sum" => self.add(node)?,
            "Sub" | "Div" => self.scalar(node)?,
            "Mul" => self.mul(node)?,
            "Gemm" => self.gemm(node)?,
            "MatMul" => self.matmul(node)?,
            "Identity" | "Dropout" | "Cast" | "CastLike" => self.view(node, 0)?,
            _ => return self.layout_op(node),
        };
        Ok(Value::View(view))
    }

    /// Translates an elementwise operation.
    fn elementwise(&mut self, node: &'a NodeProto, op: Op) -> Result<View, Fault> {
        let x = self.view(node, 0)?;
        let cell = self.push(node, CellKind::Op(op, Tensors::default()), &[x.cell])?;
        Ok(View { cell, ..x })
    }

    /// Translates `Clip` from 0 without an upper limit to a ReLU.
    fn clip(&mut self, node: &'a NodeProto) -> Result<View, Fault> {
        let mut limits = [node.float("min"), node.float("max")];
        for (i, limit) in limits.iter_mut().enumerate() {
            let input = i.saturating_add(1);
            if !node.input(input).is_empty() {
                *limit = self.constant(node, input)?.and_then(|c| c.scalar());
            }
        }
        match limits {
            [Some(0.0), max] if max.is_none_or(|max| max > 1e30) => self.elementwise(node, Op::Relu),
            [Some(0.0), Some(max)] => Err(node.fault(
                Code::Unsupported,
                format!("unsupported clip to [0, {max}] (ReLU6); no network of the zoo has it"),
            )),
            _ => Err(node.graph_fault("unsupported limits of Clip, expected min 0 and no max")),
        }
    }

    /// Returns the cell of an activation `[N, C, H, W]`; TensorFlow exporters transpose around convolutions.
    pub(super) fn nchw(&mut self, node: &'a NodeProto, i: usize) -> Result<usize, Fault> {
        let x = self.view(node, i)?;
        match x.axes.as_slice() {
            [Axis::N, Axis::C, Axis::H, Axis::W] => Ok(x.cell),
            axes => {
                Err(node.graph_fault(format!("expected an input [N, C, H, W], found {}", axes_text(axes))))
            }
        }
    }

    fn conv(&mut self, node: &'a NodeProto) -> Result<View, Fault> {
        let weight = self.required(node, 1, "weight")?;
        let bias = self.constant(node, 2)?;
        let x = self.view(node, 0)?;
        let groups = usize::try_from(node.int_or("group", 1)).unwrap_or(0);
        if let (&[1, 1, kernel], 1, [Axis::N, Axis::One, Axis::C]) =
            (weight.shape(), groups, x.axes.as_slice())
        {
            return self.channel_conv(node, x, kernel, Tensors::weight(weight, bias));
        }
        let &[out, per_group, height, width] = weight.shape() else {
            return Err(node.graph_fault(format!(
                "expected a weight of 4 dimensions, found shape {:?}",
                weight.shape()
            )));
        };
        let channels = self.channels(x.cell, per_group.saturating_mul(groups))?;
        let fits =
            out > 0 && out.checked_rem(groups) == Some(0) && per_group.checked_mul(groups) == Some(channels);
        let small = [height, width].iter().all(|k| (1..=MAX_KERNEL).contains(k));
        let kernel_shape = node.pair("kernel_shape", [height, width])?;
        if !fits
            || !small
            || kernel_shape != [height, width]
            || bias.as_ref().is_some_and(|b| b.shape() != [out])
        {
            return Err(node.graph_fault(format!(
                "weight of shape {:?} in {groups} groups does not match {channels} input channels",
                weight.shape()
            )));
        }
        if x.is_vector() && [height, width] == [1, 1] && groups == 1 {
            return self.linear(
                node,
                x,
                Linear { in_features: channels, out_features: out, form: LinearForm::Pointwise },
                Tensors::weight(weight, bias),
            );
        }
        let mut input = self.nchw(node, 0)?;
        let size = self.cell(input)?.size;
        let mut window = self.window(node, [height, width], size)?;
        // A smaller kernel may cover the last feature map of a small image by chance.
        let covers = size == Some([height, width]) && [height, width] == [7; 2] && groups == 1;
        if covers && window.before == [0; 2] && window.after == [0; 2] && window.dilation == [1; 2] {
            return self.conv_as_linear(node, input, weight, bias);
        }
        if !window.is_symmetric() {
            let padded = output(size, |axis, n| {
                let at = |pair: [usize; 2]| pair.get(axis).copied().unwrap_or(0);
                n.checked_add(at(window.before))?.checked_add(at(window.after))
            });
            let pad = CellKind::Op(Op::Pad(window.pad()), Tensors::default());
            input = self.push_sized(node, pad, &[input], channels, padded)?;
            window = window.without_padding();
        }
        let conv = window.conv(channels, out, groups);
        let size = output(self.cell(input)?.size, |axis, n| conv.output(axis, n));
        let kind = CellKind::Op(Op::Conv(conv), Tensors::weight(weight, bias));
        Ok(View::nchw(self.push_sized(node, kind, &[input], out, size)?))
    }

    /// Returns the window of `node`; adds a note if its padding depends on the image size.
    pub(super) fn window(
        &mut self,
        node: &'a NodeProto,
        kernel: [usize; 2],
        size: Option<[usize; 2]>,
    ) -> Result<Window, Fault> {
        const NOTE: &str = "SAME padding is fixed to that of the image size of the graph";
        let window = Window::from_node(node, kernel, size)?;
        let same = node.text("auto_pad").is_some_and(|kind| kind.starts_with("SAME"));
        if same && window.stride != [1; 2] && !self.notes.iter().any(|n| n == NOTE) {
            self.notes.push(NOTE.into());
        }
        Ok(window)
    }

    /// Translates a convolution with the size of the feature map to a linear layer, e.g. in the head of timm's VGG.
    fn conv_as_linear(
        &mut self,
        node: &'a NodeProto,
        x: usize,
        weight: Constant,
        bias: Option<Constant>,
    ) -> Result<View, Fault> {
        let (channels, size) = (self.cell(x)?.channels, self.cell(x)?.size);
        let pixels = size.unwrap_or([1; 2]);
        let too_large = || node.graph_fault("the kernel has too many elements for a linear layer");
        let in_features = pixels.iter().try_fold(channels, |n, &d| n.checked_mul(d)).ok_or_else(too_large)?;
        let out_features = weight.shape().first().copied().unwrap_or(0);
        let weight = weight.reshape(&[out_features, in_features]).ok_or_else(too_large)?;
        let flat = CellKind::Op(Op::Flatten(Flatten { pixels }), Tensors::default());
        let cell = self.push_sized(node, flat, &[x], in_features, None)?;
        let view = View { cell, axes: vec![Axis::N, Axis::C, Axis::One, Axis::One] };
        let linear = Linear { in_features, out_features, form: LinearForm::Matrix };
        self.linear(node, view, linear, Tensors::weight(weight, bias))
    }

    /// Returns the channels of a cell; an input without a shape gets the channels that its first consumer expects.
    fn channels(&mut self, cell: usize, expected: usize) -> Result<usize, Fault> {
        match self.cells.get_mut(cell) {
            Some(input) if input.channels == 0 && expected > 0 => {
                input.channels = expected;
                Ok(expected)
            }
            _ => Ok(self.cell(cell)?.channels),
        }
    }

    fn channel_conv(
        &mut self,
        node: &'a NodeProto,
        x: View,
        kernel: usize,
        tensors: Tensors,
    ) -> Result<View, Fault> {
        let half = i64::try_from(kernel.div_euclid(2)).unwrap_or(0);
        let same = node.ints("pads").is_some_and(|p| p == [half, half]) && kernel % 2 == 1;
        if !same || tensors.bias.is_some() {
            return Err(node.graph_fault(
                "unsupported convolution over channels, expected symmetric padding and no bias",
            ));
        }
        let cell =
            self.push(node, CellKind::Op(Op::ChannelConv(ChannelConv { kernel }), tensors), &[x.cell])?;
        Ok(View { cell, ..x })
    }

    fn batch_norm(&mut self, node: &'a NodeProto) -> Result<View, Fault> {
        let x = self.view(node, 0)?;
        if x.position(Axis::C) != Some(1) || !node.int_or("spatial", 1).eq(&1) {
            return Err(node.graph_fault("unsupported batch norm, expected one over axis 1"));
        }
        let mut tensors = Tensors {
            weight: Some(self.required(node, 1, "scale")?),
            bias: Some(self.required(node, 2, "bias")?),
            mean: Some(self.required(node, 3, "mean")?),
            var: Some(self.required(node, 4, "variance")?),
        };
        let expected = tensors.weight.as_ref().map_or(0, |w| w.tensor.elements());
        let channels = self.channels(x.cell, expected)?;
        for tensor in [&mut tensors.weight, &mut tensors.bias, &mut tensors.mean, &mut tensors.var] {
            per_channel(node, tensor, channels)?;
        }
        if node.flag("training_mode")
            && !self.notes.iter().any(|n| n.starts_with("exported in training mode"))
        {
            self.notes.push("exported in training mode: batch norms use their running statistics".into());
        }
        let kind = CellKind::Op(Op::BatchNorm(BatchNorm { eps: eps(node, 1e-5) }), tensors);
        let cell = self.push(node, kind, &[x.cell])?;
        Ok(View { cell, ..x })
    }

    /// Translates the instance norm of a group norm, as PyTorch exports it for old operator sets.
    fn instance_norm(&mut self, node: &'a NodeProto) -> Result<View, Fault> {
        let x = self.view(node, 0)?;
        let &[Axis::N, Axis::Groups(groups), Axis::Rest] = x.axes.as_slice() else {
            return Err(node.graph_fault("unsupported instance norm; no network of the zoo has it"));
        };
        for (i, neutral) in [(1, 1.0), (2, 0.0)] {
            let values = self.required(node, i, "scale or bias")?;
            if values.shape() != [groups] || values.values().is_none_or(|v| v.iter().any(|&v| v != neutral)) {
                return Err(
                    node.graph_fault("unsupported scale or bias of an instance norm, expected 1 and 0")
                );
            }
        }
        let op = Op::GroupNorm(GroupNorm { groups, eps: eps(node, 1e-5) });
        let cell = self.push(node, CellKind::Op(op, Tensors::default()), &[x.cell])?;
        Ok(View { cell, ..x })
    }

    fn group_norm(&mut self, node: &'a NodeProto) -> Result<View, Fault> {
        let x = self.nchw(node, 0)?;
        let channels = self.cell(x)?.channels;
        let groups = usize::try_from(node.int_or("num_groups", 0)).unwrap_or(0);
        let (weight, bias) = (self.required(node, 1, "scale")?, self.required(node, 2, "bias")?);
        if [&weight, &bias].iter().any(|t| t.shape() != [channels]) || channels.checked_rem(groups) != Some(0)
        {
            return Err(
                node.graph_fault(format!("invalid group norm of {channels} channels in {groups} groups"))
            );
        }
        let op = Op::GroupNorm(GroupNorm { groups, eps: eps(node, 1e-5) });
        Ok(View::nchw(self.push(node, CellKind::Op(op, Tensors::weight(weight, Some(bias))), &[x])?))
    }

    fn add(&mut self, node: &'a NodeProto) -> Result<View, Fault> {
        if node.inputs.len() == 1 {
            return self.view(node, 0);
        }
        if node.inputs.len() != 2 {
            return Err(node.graph_fault(format!("expected 2 operands, found {}", node.inputs.len())));
        }
        match (self.value(node, 0)?, self.value(node, 1)?) {
            (Some(Value::View(a)), Some(Value::View(b))) => {
                let [x, y] = [self.cell(a.cell)?, self.cell(b.cell)?];
                let sizes_differ = x.size.zip(y.size).is_some_and(|(x, y)| x != y);
                if a.axes != b.axes || x.channels != y.channels || sizes_differ {
                    let detail =
                        format!("operands differ in size: {} and {} channels", x.channels, y.channels);
                    return Err(node.graph_fault(detail));
                }
                let cell = self.push(node, CellKind::Op(Op::Add, Tensors::default()), &[a.cell, b.cell])?;
                Ok(View { cell, ..a })
            }
            (Some(Value::View(x)), Some(Value::Constant(c)))
            | (Some(Value::Constant(c)), Some(Value::View(x))) => self.affine(node, x, None, Some(c)),
            _ => Err(node.graph_fault("operand is not an activation")),
        }
    }

    /// Translates subtraction of or division by a constant.
    fn scalar(&mut self, node: &'a NodeProto) -> Result<View, Fault> {
        let x = self.view(node, 0)?;
        let constant = self.required(node, 1, "constant")?;
        let inverse = if node.op == "Sub" { "Neg" } else { "Reciprocal" };
        let inverted = crate::constant::unary(inverse, &constant.tensor);
        let inverted = constant.with(inverted.ok_or_else(|| node.graph_fault("constant is not numeric"))?);
        match node.op.as_str() {
            "Sub" => self.affine(node, x, None, Some(inverted)),
            _ => self.affine(node, x, Some(inverted), None),
        }
    }

    fn mul(&mut self, node: &'a NodeProto) -> Result<View, Fault> {
        match (self.value(node, 0)?, self.value(node, 1)?) {
            (Some(Value::View(a)), Some(Value::View(b))) => {
                let (x, gate) = if a.is_map() { (a, b) } else { (b, a) };
                // The channel axes of gate and feature map must match.
                let aligned =
                    gate.axes.len() == x.axes.len() && gate.position(Axis::C) == x.position(Axis::C);
                let channels = [self.cell(x.cell)?.channels, self.cell(gate.cell)?.channels];
                if !x.is_map() || !gate.is_vector() || !aligned || channels[0] != channels[1] {
                    return Err(node.graph_fault(
                        "unsupported product of activations, expected a feature map and a gate per channel",
                    ));
                }
                let cell =
                    self.push(node, CellKind::Op(Op::Scale, Tensors::default()), &[x.cell, gate.cell])?;
                Ok(View { cell, ..x })
            }
            (Some(Value::View(x)), Some(Value::Constant(c)))
            | (Some(Value::Constant(c)), Some(Value::View(x))) => self.affine(node, x, Some(c), None),
            _ => Err(node.graph_fault("operand is not an activation")),
        }
    }

    /// Translates `x · scale + shift` with scalar or per-channel constants.
    fn affine(
        &mut self,
        node: &'a NodeProto,
        x: View,
        scale: Option<Constant>,
        shift: Option<Constant>,
    ) -> Result<View, Fault> {
        if let (Some(scale), None) = (&scale, &shift)
            && let Some(factor) = scale.scalar()
            && x.cell != 0
        {
            // The last block of Inception-ResNet-v2.
            if factor == 1.0 {
                return Ok(x);
            }
            // The shortest decimal, not the rounded f32.
            let factor = factor.to_string().parse().unwrap_or(f64::from(factor));
            let op = Op::Multiply(Multiply { factor });
            let cell = self.push(node, CellKind::Op(op, Tensors::default()), &[x.cell])?;
            return Ok(View { cell, ..x });
        }
        let channels = self.cell(x.cell)?.channels;
        let channel_from_end = x.position(Axis::C).and_then(|i| x.axes.len().checked_sub(i));
        let aligned = |constant: Option<Constant>| -> Result<Option<Constant>, Fault> {
            let Some(constant) = constant else { return Ok(None) };
            let shape = constant.shape();
            let mismatch = || {
                node.graph_fault(format!("constant of shape {shape:?} does not match {channels} channels"))
            };
            if constant.tensor.elements() == 1 {
                let filled = crate::constant::fill(&constant.tensor, vec![channels]);
                return filled.map(|t| Some(constant.with(t))).ok_or_else(mismatch);
            }
            let at = channel_from_end.and_then(|from_end| shape.len().checked_sub(from_end));
            let along = at.is_some_and(|at| {
                shape.iter().enumerate().all(|(i, &d)| d == if i == at { channels } else { 1 })
            });
            match along && shape.len() <= x.axes.len() {
                true => constant.reshape(&[channels]).map(Some).ok_or_else(mismatch),
                false => Err(mismatch()),
            }
        };
        let tensors = Tensors { weight: aligned(scale)?, bias: aligned(shift)?, ..Tensors::default() };
        let cell = self.push(node, CellKind::Affine(tensors), &[x.cell])?;
        Ok(View { cell, ..x })
    }

    fn gemm(&mut self, node: &'a NodeProto) -> Result<View, Fault> {
        let (alpha, beta) = (node.float_or("alpha", 1.0), node.float_or("beta", 1.0));
        let bias = self.constant(node, 2)?;
        if alpha != 1.0 || node.flag("transA") || (bias.is_some() && beta != 1.0) {
            return Err(node.graph_fault("unsupported attributes, expected alpha 1, beta 1 and transA 0"));
        }
        let mut weight = self.required(node, 1, "weight")?;
        if !node.flag("transB") {
            weight = transposed(node, &weight)?;
        }
        let x = self.view(node, 0)?;
        self.matrix(node, x, weight, bias)
    }

    fn matmul(&mut self, node: &'a NodeProto) -> Result<View, Fault> {
        let weight = self.required(node, 1, "weight")?;
        let weight = transposed(node, &weight)?;
        let x = self.view(node, 0)?;
        self.matrix(node, x, weight, None)
    }

    /// Translates a linear layer with `weight` `[out, in]`.
    fn matrix(
        &mut self,
        node: &'a NodeProto,
        x: View,
        weight: Constant,
        bias: Option<Constant>,
    ) -> Result<View, Fault> {
        let channels = self.cell(x.cell)?.channels;
        let &[out_features, in_features] = weight.shape() else {
            return Err(node.graph_fault(format!(
                "expected a weight of 2 dimensions, found shape {:?}",
                weight.shape()
            )));
        };
        if x.axes != [Axis::N, Axis::C] || in_features != channels || out_features == 0 {
            let detail = format!("expected an input of {in_features} features, found {channels} channels");
            return Err(node.graph_fault(detail));
        }
        let bias = bias.map(|b| {
            let shape = b.shape().to_vec();
            let reshaped = b.reshape(&[out_features]);
            reshaped.ok_or_else(|| {
                node.graph_fault(format!("bias of shape {shape:?} does not match {out_features} features"))
            })
        });
        let linear = Linear { in_features, out_features, form: LinearForm::Matrix };
        self.linear(node, x, linear, Tensors::weight(weight, bias.transpose()?))
    }

    fn linear(
        &mut self,
        node: &'a NodeProto,
        x: View,
        linear: Linear,
        tensors: Tensors,
    ) -> Result<View, Fault> {
        let kind = CellKind::Op(Op::Linear(linear), tensors);
        let cell = self.push_sized(node, kind, &[x.cell], linear.out_features, None)?;
        Ok(View { cell, ..x })
    }
}

/// Returns the transposed matrix.
fn transposed(node: &NodeProto, weight: &Constant) -> Result<Constant, Fault> {
    let moved = resnet_model::raw::permute(&weight.tensor, &[1, 0]);
    moved.map(|t| weight.with(t)).ok_or_else(|| {
        node.graph_fault(format!("expected a weight of 2 dimensions, found shape {:?}", weight.shape()))
    })
}

/// Reshapes a per-channel tensor to `[C]`.
fn per_channel(node: &NodeProto, tensor: &mut Option<Constant>, channels: usize) -> Result<(), Fault> {
    let Some(constant) = tensor else { return Ok(()) };
    match constant.reshape(&[channels]) {
        Some(row) => *constant = row,
        None => {
            let shape = constant.shape().to_vec();
            return Err(
                node.graph_fault(format!("tensor of shape {shape:?} does not match {channels} channels"))
            );
        }
    }
    Ok(())
}
