//! Nodes that compute with images.

use resnet_model::graph::{BatchNorm, ChannelConv, Flatten, GroupNorm, Linear, LinearForm, Multiply, Op};

use super::{Translator, Value};
use crate::cells::{Axis, CellKind, Tensors, View};
use crate::constant::Constant;
use crate::error::{Code, Fault};
use crate::proto::NodeProto;
use crate::window::{Window, output};

/// The largest kernel along an axis.
const MAX_KERNEL: usize = 1 << 10;

/// An epsilon as it was written: files hold it as f32, so that 1e-5 is not what comes back.
fn eps(node: &NodeProto, default: f32) -> f64 {
    let eps = node.float_or("epsilon", default);
    eps.to_string().parse().unwrap_or(f64::from(eps))
}

impl<'a> Translator<'a> {
    /// The result of a node that depends on the image.
    pub(super) fn layer(&mut self, node: &'a NodeProto) -> Result<Value, Fault> {
        let view = match node.op.as_str() {
            "Conv" => self.conv(node)?,
            "BatchNormalization" => self.batch_norm(node)?,
            "InstanceNormalization" => self.instance_norm(node)?,
            "GroupNormalization" => self.group_norm(node)?,
            "Relu" => self.plain(node, Op::Relu)?,
            "Sigmoid" => self.plain(node, Op::Sigmoid)?,
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

    /// An operation on every number by itself.
    fn plain(&mut self, node: &'a NodeProto, op: Op) -> Result<View, Fault> {
        let x = self.view(node, 0)?;
        let cell = self.push(node, CellKind::Op(op, Tensors::default()), &[x.cell])?;
        Ok(View { cell, ..x })
    }

    /// `Clip` from 0 without an upper limit is a ReLU.
    fn clip(&mut self, node: &'a NodeProto) -> Result<View, Fault> {
        let mut limits = [node.float("min"), node.float("max")];
        for (i, limit) in limits.iter_mut().enumerate() {
            let input = i.saturating_add(1);
            if !node.input(input).is_empty() {
                *limit = self.constant(node, input)?.and_then(|c| c.scalar());
            }
        }
        match limits {
            [Some(0.0), max] if max.is_none_or(|max| max > 1e30) => self.plain(node, Op::Relu),
            [Some(0.0), Some(max)] => Err(node.fault(
                Code::Unsupported,
                format!("ReLU cut off at {max} (ReLU6): no network of the zoo has it"),
            )),
            _ => Err(node.graph_fault(format!("clips to {limits:?}"))),
        }
    }

    /// Checks that pixels are where they are elsewhere; exporters from TensorFlow move them around convolutions.
    pub(super) fn planar(&mut self, node: &'a NodeProto, i: usize) -> Result<usize, Fault> {
        let x = self.view(node, i)?;
        match x.axes.as_slice() {
            [Axis::N, Axis::C, Axis::H, Axis::W] => Ok(x.cell),
            axes => Err(node.graph_fault(format!("works on axes {axes:?}, expected N, C, H and W"))),
        }
    }

    fn conv(&mut self, node: &'a NodeProto) -> Result<View, Fault> {
        let weight = self.weight(node, 1, "weight")?;
        let bias = self.constant(node, 2)?;
        let x = self.view(node, 0)?;
        let groups = usize::try_from(node.int_or("group", 1)).unwrap_or(0);
        if let (&[1, 1, kernel], 1, [Axis::N, Axis::One, Axis::C]) =
            (weight.shape(), groups, x.axes.as_slice())
        {
            return self.channel_conv(node, x, kernel, Tensors::weight(weight, bias));
        }
        let &[out, per_group, height, width] = weight.shape() else {
            return Err(
                node.graph_fault(format!("a weight of shape {:?}, expected 4 dimensions", weight.shape()))
            );
        };
        let channels = self.channels(x.cell, per_group.saturating_mul(groups))?;
        let fits =
            out > 0 && out.checked_rem(groups) == Some(0) && per_group.checked_mul(groups) == Some(channels);
        let small = [height, width].iter().all(|k| (1..=MAX_KERNEL).contains(k));
        let told = node.pair("kernel_shape", [height, width])?;
        if !fits || !small || told != [height, width] || bias.as_ref().is_some_and(|b| b.shape() != [out]) {
            return Err(node.graph_fault(format!(
                "a weight of shape {:?} in {groups} groups for {channels} channels",
                weight.shape()
            )));
        }
        if x.is_row() && [height, width] == [1, 1] && groups == 1 {
            return self.linear(
                node,
                x,
                Linear { in_features: channels, out_features: out, form: LinearForm::Pointwise },
                Tensors::weight(weight, bias),
            );
        }
        let mut input = self.planar(node, 0)?;
        let size = self.cell(input)?.size;
        let mut window = self.window(node, [height, width], size)?;
        // Smaller ones may cover the last features of a small image by chance.
        let covers = size == Some([height, width]) && [height, width] == [7; 2] && groups == 1;
        if covers && window.before == [0; 2] && window.after == [0; 2] && window.dilation == [1; 2] {
            return self.whole(node, input, weight, bias);
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
        Ok(View::planar(self.push_sized(node, kind, &[input], out, size)?))
    }

    /// The window of `node`; a note if it would be padded otherwise on images of another size.
    pub(super) fn window(
        &mut self,
        node: &'a NodeProto,
        kernel: [usize; 2],
        size: Option<[usize; 2]>,
    ) -> Result<Window, Fault> {
        const NOTE: &str = "padding of the kind SAME is kept as it is for images of the graph's own size";
        let window = Window::from_node(node, kernel, size)?;
        let same = node.text("auto_pad").is_some_and(|kind| kind.starts_with("SAME"));
        if same && window.stride != [1; 2] && !self.notes.iter().any(|n| n == NOTE) {
            self.notes.push(NOTE.into());
        }
        Ok(window)
    }

    /// A convolution whose one window is the whole image: a fully connected layer (timm's VGG has such a head).
    fn whole(
        &mut self,
        node: &'a NodeProto,
        x: usize,
        weight: Constant,
        bias: Option<Constant>,
    ) -> Result<View, Fault> {
        let (channels, size) = (self.cell(x)?.channels, self.cell(x)?.size);
        let pixels = size.unwrap_or([1; 2]);
        let odd = || node.graph_fault("a convolution of a whole image that is too large");
        let in_features = pixels.iter().try_fold(channels, |n, &d| n.checked_mul(d)).ok_or_else(odd)?;
        let out_features = weight.shape().first().copied().unwrap_or(0);
        let weight = weight.reshape(&[out_features, in_features]).ok_or_else(odd)?;
        let flat = CellKind::Op(Op::Flatten(Flatten { pixels }), Tensors::default());
        let cell = self.push_sized(node, flat, &[x], in_features, None)?;
        let view = View { cell, axes: vec![Axis::N, Axis::C, Axis::One, Axis::One] };
        let linear = Linear { in_features, out_features, form: LinearForm::Matrix };
        self.linear(node, view, linear, Tensors::weight(weight, bias))
    }

    /// The channels of a cell; those of an input that tells nothing are what its first user expects.
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
            return Err(node.graph_fault("a convolution over channels, but with a bias or another padding"));
        }
        let cell =
            self.push(node, CellKind::Op(Op::ChannelConv(ChannelConv { kernel }), tensors), &[x.cell])?;
        Ok(View { cell, ..x })
    }

    fn batch_norm(&mut self, node: &'a NodeProto) -> Result<View, Fault> {
        let x = self.view(node, 0)?;
        if x.place(Axis::C) != Some(1) || !node.int_or("spatial", 1).eq(&1) {
            return Err(node.graph_fault("a batch norm that is not over the channels"));
        }
        let mut tensors = Tensors {
            weight: Some(self.weight(node, 1, "scale")?),
            bias: Some(self.weight(node, 2, "bias")?),
            mean: Some(self.weight(node, 3, "mean")?),
            var: Some(self.weight(node, 4, "variance")?),
        };
        let expected = tensors.weight.as_ref().map_or(0, |w| w.tensor.elements());
        let channels = self.channels(x.cell, expected)?;
        for tensor in [&mut tensors.weight, &mut tensors.bias, &mut tensors.mean, &mut tensors.var] {
            per_channel(node, tensor, channels)?;
        }
        if node.flag("training_mode") && !self.notes.iter().any(|n| n.starts_with("exported for training")) {
            self.notes.push("exported for training: its batch norms are read as for inference".into());
        }
        let kind = CellKind::Op(Op::BatchNorm(BatchNorm { eps: eps(node, 1e-5) }), tensors);
        let cell = self.push(node, kind, &[x.cell])?;
        Ok(View { cell, ..x })
    }

    /// Part of a group norm as PyTorch writes it for old operator sets: groups stand where channels were.
    fn instance_norm(&mut self, node: &'a NodeProto) -> Result<View, Fault> {
        let x = self.view(node, 0)?;
        let &[Axis::N, Axis::Groups(groups), Axis::Rest] = x.axes.as_slice() else {
            return Err(node.graph_fault("an instance norm, which no network of the zoo has"));
        };
        for (i, neutral) in [(1, 1.0), (2, 0.0)] {
            let values = self.weight(node, i, "scale or bias")?;
            if values.shape() != [groups] || values.values().is_none_or(|v| v.iter().any(|&v| v != neutral)) {
                return Err(node.graph_fault("an instance norm with a scale or bias of its own"));
            }
        }
        let op = Op::GroupNorm(GroupNorm { groups, eps: eps(node, 1e-5) });
        let cell = self.push(node, CellKind::Op(op, Tensors::default()), &[x.cell])?;
        Ok(View { cell, ..x })
    }

    fn group_norm(&mut self, node: &'a NodeProto) -> Result<View, Fault> {
        let x = self.planar(node, 0)?;
        let channels = self.cell(x)?.channels;
        let groups = usize::try_from(node.int_or("num_groups", 0)).unwrap_or(0);
        let (weight, bias) = (self.weight(node, 1, "scale")?, self.weight(node, 2, "bias")?);
        if [&weight, &bias].iter().any(|t| t.shape() != [channels]) || channels.checked_rem(groups) != Some(0)
        {
            return Err(node
                .graph_fault(format!("{groups} groups of {channels} channels, or a scale of another size")));
        }
        let op = Op::GroupNorm(GroupNorm { groups, eps: eps(node, 1e-5) });
        Ok(View::planar(self.push(node, CellKind::Op(op, Tensors::weight(weight, Some(bias))), &[x])?))
    }

    fn add(&mut self, node: &'a NodeProto) -> Result<View, Fault> {
        if node.inputs.len() == 1 {
            return self.view(node, 0);
        }
        if node.inputs.len() != 2 {
            return Err(node.graph_fault(format!("a sum of {} results, expected two", node.inputs.len())));
        }
        match (self.value(node, 0)?, self.value(node, 1)?) {
            (Some(Value::View(a)), Some(Value::View(b))) => {
                let [x, y] = [self.cell(a.cell)?, self.cell(b.cell)?];
                let apart = x.size.zip(y.size).is_some_and(|(x, y)| x != y);
                if a.axes != b.axes || x.channels != y.channels || apart {
                    let detail =
                        format!("adds {} channels to {}, or results of other sizes", x.channels, y.channels);
                    return Err(node.graph_fault(detail));
                }
                let cell = self.push(node, CellKind::Op(Op::Add, Tensors::default()), &[a.cell, b.cell])?;
                Ok(View { cell, ..a })
            }
            (Some(Value::View(x)), Some(Value::Constant(c)))
            | (Some(Value::Constant(c)), Some(Value::View(x))) => self.affine(node, x, None, Some(c)),
            _ => Err(node.graph_fault("adds what is no result")),
        }
    }

    /// Subtraction of a constant or division by one.
    fn scalar(&mut self, node: &'a NodeProto) -> Result<View, Fault> {
        let x = self.view(node, 0)?;
        let constant = self.weight(node, 1, "constant")?;
        let inverse = if node.op == "Sub" { "Neg" } else { "Reciprocal" };
        let inverted = crate::constant::unary(inverse, &constant.tensor);
        let inverted = constant.with(inverted.ok_or_else(|| node.graph_fault("a constant of no numbers"))?);
        match node.op.as_str() {
            "Sub" => self.affine(node, x, None, Some(inverted)),
            _ => self.affine(node, x, Some(inverted), None),
        }
    }

    fn mul(&mut self, node: &'a NodeProto) -> Result<View, Fault> {
        match (self.value(node, 0)?, self.value(node, 1)?) {
            (Some(Value::View(a)), Some(Value::View(b))) => {
                let (x, gate) = if a.is_map() { (a, b) } else { (b, a) };
                // The gate must stand where the channels are.
                let aligned = gate.axes.len() == x.axes.len() && gate.place(Axis::C) == x.place(Axis::C);
                let channels = [self.cell(x.cell)?.channels, self.cell(gate.cell)?.channels];
                if !x.is_map() || !gate.is_row() || !aligned || channels[0] != channels[1] {
                    return Err(node
                        .graph_fault("multiplies two results that are no image and its channels' weights"));
                }
                let cell =
                    self.push(node, CellKind::Op(Op::Scale, Tensors::default()), &[x.cell, gate.cell])?;
                Ok(View { cell, ..x })
            }
            (Some(Value::View(x)), Some(Value::Constant(c)))
            | (Some(Value::Constant(c)), Some(Value::View(x))) => self.affine(node, x, Some(c), None),
            _ => Err(node.graph_fault("multiplies what is no result")),
        }
    }

    /// `x · scale + shift`, the constants one number or one for each channel.
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
            // Inception-ResNet-v2's last block.
            if factor == 1.0 {
                return Ok(x);
            }
            // As it was written, not as f32 rounds it.
            let factor = factor.to_string().parse().unwrap_or(f64::from(factor));
            let op = Op::Multiply(Multiply { factor });
            let cell = self.push(node, CellKind::Op(op, Tensors::default()), &[x.cell])?;
            return Ok(View { cell, ..x });
        }
        let channels = self.cell(x.cell)?.channels;
        let place = x.place(Axis::C).and_then(|i| x.axes.len().checked_sub(i));
        let aligned = |constant: Option<Constant>| -> Result<Option<Constant>, Fault> {
            let Some(constant) = constant else { return Ok(None) };
            let shape = constant.shape();
            let odd = || node.graph_fault(format!("a constant of shape {shape:?} for {channels} channels"));
            if constant.tensor.elements() == 1 {
                let filled = crate::constant::fill(&constant.tensor, vec![channels]);
                return filled.map(|t| Some(constant.with(t))).ok_or_else(odd);
            }
            let at = place.and_then(|from_end| shape.len().checked_sub(from_end));
            let along = at.is_some_and(|at| {
                shape.iter().enumerate().all(|(i, &d)| d == if i == at { channels } else { 1 })
            });
            match along && shape.len() <= x.axes.len() {
                true => constant.reshape(&[channels]).map(Some).ok_or_else(odd),
                false => Err(odd()),
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
            return Err(node.graph_fault("a product with a factor or a transposed left side"));
        }
        let mut weight = self.weight(node, 1, "weight")?;
        if !node.flag("transB") {
            weight = transposed(node, &weight)?;
        }
        let x = self.view(node, 0)?;
        self.matrix(node, x, weight, bias)
    }

    fn matmul(&mut self, node: &'a NodeProto) -> Result<View, Fault> {
        let weight = self.weight(node, 1, "weight")?;
        let weight = transposed(node, &weight)?;
        let x = self.view(node, 0)?;
        self.matrix(node, x, weight, None)
    }

    /// A fully connected layer; `weight` `[K, C]`.
    fn matrix(
        &mut self,
        node: &'a NodeProto,
        x: View,
        weight: Constant,
        bias: Option<Constant>,
    ) -> Result<View, Fault> {
        let channels = self.cell(x.cell)?.channels;
        let &[out_features, in_features] = weight.shape() else {
            return Err(
                node.graph_fault(format!("a weight of shape {:?}, expected 2 dimensions", weight.shape()))
            );
        };
        if x.axes != [Axis::N, Axis::C] || in_features != channels || out_features == 0 {
            let detail = format!("a weight for {in_features} features, its input has {channels} channels");
            return Err(node.graph_fault(detail));
        }
        let bias = bias.map(|b| {
            let shape = b.shape().to_vec();
            let reshaped = b.reshape(&[out_features]);
            reshaped.ok_or_else(|| {
                node.graph_fault(format!("a bias of shape {shape:?} for {out_features} features"))
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

/// A matrix with rows and columns exchanged.
fn transposed(node: &NodeProto, weight: &Constant) -> Result<Constant, Fault> {
    let moved = resnet_model::raw::permute(&weight.tensor, &[1, 0]);
    moved.map(|t| weight.with(t)).ok_or_else(|| {
        node.graph_fault(format!("a weight of shape {:?}, expected 2 dimensions", weight.shape()))
    })
}

/// A tensor of one number for each channel; `[C]` or with further dimensions of size 1.
fn per_channel(node: &NodeProto, tensor: &mut Option<Constant>, channels: usize) -> Result<(), Fault> {
    let Some(constant) = tensor else { return Ok(()) };
    match constant.reshape(&[channels]) {
        Some(row) => *constant = row,
        None => {
            let shape = constant.shape().to_vec();
            return Err(node.graph_fault(format!("numbers of shape {shape:?} for {channels} channels")));
        }
    }
    Ok(())
}
