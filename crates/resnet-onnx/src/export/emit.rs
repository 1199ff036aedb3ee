//! Translates operations of `resnet-model` to ONNX operators.

mod attention;

use resnet_model::Checkpoint;
use resnet_model::cost::Cost;
use resnet_model::graph::{AvgPool, Conv, Divisor, Graph, GroupNorm, Node, Op, PoolSpec, Rounding};

use super::message::{self, Attribute, GraphIo, GraphNodes, value_info};
use crate::canonical::op_name;
use crate::error::{Error, Result};

/// Input of [`emit`].
pub(super) struct EmitOptions<'a> {
    pub(super) graph: &'a Graph,
    pub(super) checkpoint: &'a Checkpoint,
    /// If `true`, norms are folded into convolutions.
    pub(super) folded: bool,
    /// If `true`, weights and activations are f16.
    pub(super) half: bool,
    /// The image size, if the graph depends on it.
    pub(super) size: Option<FixedSize>,
    pub(super) batch: Option<usize>,
}

/// A fixed image size.
pub(super) struct FixedSize {
    /// Height and width.
    pub(super) image: [usize; 2],
    /// Output shape and cost of every node at this size.
    pub(super) costs: Vec<Cost>,
}

/// An initializer of the model.
#[derive(Debug)]
pub(super) struct Initializer {
    pub(super) name: String,
    pub(super) shape: Vec<usize>,
    pub(super) source: InitializerSource,
}

/// Source of the values of an initializer.
#[derive(Debug)]
pub(super) enum InitializerSource {
    /// The tensor of this name in the checkpoint.
    Stored(String),
    /// The folded weight of this convolution; its [`FoldedBias`](Self::FoldedBias) follows.
    Folded(Box<Node>),
    FoldedBias,
    Values(Vec<f32>),
    Ints(Vec<i64>),
}

impl Initializer {
    /// Returns the size in bytes; `item` is the size of a floating-point element.
    pub(super) fn bytes(&self, item: u64) -> u64 {
        let item = if let InitializerSource::Ints(_) = self.source { 8 } else { item };
        self.shape.iter().fold(item, |n, &d| n.saturating_mul(d as u64))
    }
}

/// Protobuf messages of a graph, and its initializers.
pub(super) struct Emitted {
    pub(super) nodes: GraphNodes,
    pub(super) io: GraphIo,
    pub(super) initializers: Vec<Initializer>,
}

const INPUT: &str = "input";

struct Emitter<'a> {
    options: &'a EmitOptions<'a>,
    nodes: Vec<message::Node>,
    initializers: Vec<Initializer>,
    /// The value name of every node's output.
    values: Vec<String>,
}

pub(super) fn emit(options: &EmitOptions) -> Result<Emitted> {
    let mut emitter = Emitter { options, nodes: vec![], initializers: vec![], values: vec![] };
    for node in options.graph.nodes() {
        let value = emitter.node(node)?;
        emitter.values.push(value);
    }
    emitter.finish()
}

fn ints(values: [usize; 2]) -> [i64; 2] {
    values.map(|v| i64::try_from(v).unwrap_or(i64::MAX))
}

/// Returns symmetric padding in the order of the `pads` attribute.
fn pads([height, width]: [usize; 2]) -> [i64; 4] {
    let [height, width] = ints([height, width]);
    [height, width, height, width]
}

impl Emitter<'_> {
    /// Appends an operator and returns the name of its output, `name`.
    fn push(&mut self, name: &str, op: &str, inputs: &[&str], attributes: Vec<Attribute>) -> String {
        self.nodes.push(message::Node {
            inputs: inputs.iter().map(|&i| i.to_owned()).collect(),
            outputs: vec![name.to_owned()],
            name: format!("{name}/{op}"),
            op: op.to_owned(),
            attributes,
        });
        name.to_owned()
    }

    fn initializer(&mut self, name: String, shape: Vec<usize>, source: InitializerSource) -> String {
        self.initializers.push(Initializer { name: name.clone(), shape, source });
        name
    }

    fn stored(&mut self, node: &Node, suffix: &str, shape: &[usize]) -> String {
        let name = format!("{}.{suffix}", node.name);
        self.initializer(name.clone(), shape.to_vec(), InitializerSource::Stored(name))
    }

    fn list(&mut self, name: String, values: &[i64]) -> String {
        self.initializer(name, vec![values.len()], InitializerSource::Ints(values.to_vec()))
    }

    /// Appends the operators of `node` and returns the name of its output.
    fn node(&mut self, node: &Node) -> Result<String> {
        let name = node.name.as_str();
        let inputs: Vec<String> =
            node.inputs.iter().filter_map(|i| self.values.get(i.index()).cloned()).collect();
        let x = inputs.first().map_or(INPUT, String::as_str);
        let value = match &node.op {
            Op::Input => match self.options.half {
                true => self.push("input.half", "Cast", &[INPUT], vec![Attribute::int("to", 10)]),
                false => INPUT.to_owned(),
            },
            Op::Conv(conv) => self.conv(node, conv, x),
            // Folding has standardized its weight.
            Op::StdConv(std) => self.conv(node, &std.conv, x),
            Op::BatchNorm(norm) => {
                let tensors = ["weight", "bias", "running_mean", "running_var"];
                let tensors = tensors.map(|suffix| self.stored(node, suffix, &[node.channels]));
                let [weight, bias, mean, var] = &tensors;
                let eps = Attribute::float("epsilon", norm.eps as f32);
                self.push(name, "BatchNormalization", &[x, weight, bias, mean, var], vec![eps])
            }
            Op::GroupNorm(norm) => self.group_norm(node, norm, x),
            Op::Relu => self.push(name, "Relu", &[x], vec![]),
            Op::Sigmoid => self.push(name, "Sigmoid", &[x], vec![]),
            Op::MaxPool(pool) => self.push(name, "MaxPool", &[x], window(pool)),
            Op::AvgPool(pool) => self.push(name, "AveragePool", &[x], mean(pool)),
            Op::AdaptiveAvgPool(pool) => self.adaptive(node, pool.output, x)?,
            Op::Blur(blur) => self.blur(node, blur.stride, x),
            Op::GlobalAvgPool => self.global(name, "GlobalAveragePool", x),
            Op::GlobalMaxPool => self.global(name, "GlobalMaxPool", x),
            Op::Add => {
                let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
                self.push(name, "Add", &inputs, vec![])
            }
            Op::Concat => {
                let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
                self.push(name, "Concat", &inputs, vec![Attribute::int("axis", 1)])
            }
            Op::Scale => {
                let gate = inputs.get(1).map_or("", String::as_str);
                let axes = self.list(format!("{name}.axes"), &[2, 3]);
                let gate = self.push(&format!("{name}.gate"), "Unsqueeze", &[gate, &axes], vec![]);
                self.push(name, "Mul", &[x, &gate], vec![])
            }
            Op::Multiply(m) => {
                let factor = InitializerSource::Values(vec![m.factor as f32]);
                let factor = self.initializer(format!("{name}.factor"), vec![], factor);
                self.push(name, "Mul", &[x, &factor], vec![])
            }
            Op::Subsample(s) => {
                let starts = self.list(format!("{name}.starts"), &[0, 0]);
                let io = self.list(format!("{name}.ends"), &[i64::from(i32::MAX); 2]);
                let axes = self.list(format!("{name}.axes"), &[2, 3]);
                let steps = self.list(format!("{name}.steps"), &ints([s.stride; 2]));
                self.push(name, "Slice", &[x, &starts, &io, &axes, &steps], vec![])
            }
            Op::PadChannels(pad) => {
                let [before, after] = ints([pad.before, pad.after]);
                self.pad(name, x, &[0, before, 0, 0, 0, after, 0, 0])
            }
            Op::Pad(pad) => {
                let ([top, left], [bottom, right]) = (ints(pad.before), ints(pad.after));
                self.pad(name, x, &[0, 0, top, left, 0, 0, bottom, right])
            }
            Op::Flatten(_) => self.push(name, "Flatten", &[x], vec![Attribute::int("axis", 1)]),
            Op::AttentionPool(pool) => self.attention_pool(node, pool, x)?,
            Op::Linear(linear) => {
                let weight = self.stored(node, "weight", &[linear.out_features, linear.in_features]);
                let bias = self.stored(node, "bias", &[linear.out_features]);
                self.push(name, "Gemm", &[x, &weight, &bias], vec![Attribute::int("transB", 1)])
            }
            Op::ChannelConv(conv) => {
                let weight = self.stored(node, "weight", &[1, 1, conv.kernel]);
                let axes = self.list(format!("{name}.axes"), &[1]);
                let row = self.push(&format!("{name}.row"), "Unsqueeze", &[x, &axes], vec![]);
                let [half, kernel] = ints([conv.kernel.div_euclid(2), conv.kernel]);
                let attributes =
                    vec![Attribute::ints("kernel_shape", &[kernel]), Attribute::ints("pads", &[half, half])];
                let row = self.push(&format!("{name}.conv"), "Conv", &[&row, &weight], attributes);
                self.push(name, "Squeeze", &[&row, &axes], vec![])
            }
            other => return Err(Error::Export(format!("`{name}`: {} has no ONNX operator", op_name(other)))),
        };
        Ok(value)
    }

    fn conv(&mut self, node: &Node, conv: &Conv, x: &str) -> String {
        let name = format!("{}.weight", node.name);
        let source = match self.options.folded {
            true => InitializerSource::Folded(Box::new(node.clone())),
            false => InitializerSource::Stored(name.clone()),
        };
        let weight = self.initializer(name, conv.weight_shape().to_vec(), source);
        let attributes = vec![
            Attribute::ints("kernel_shape", &ints(conv.kernel)),
            Attribute::ints("strides", &ints(conv.stride)),
            Attribute::ints("pads", &pads(conv.padding)),
            Attribute::ints("dilations", &ints(conv.dilation)),
            Attribute::int("group", i64::try_from(conv.groups).unwrap_or(i64::MAX)),
        ];
        let mut inputs = vec![x.to_owned(), weight];
        if conv.bias {
            let name = format!("{}.bias", node.name);
            let source = if self.options.folded {
                InitializerSource::FoldedBias
            } else {
                InitializerSource::Stored(name.clone())
            };
            inputs.push(self.initializer(name, vec![node.channels], source));
        }
        let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
        self.push(&node.name, "Conv", &inputs, attributes)
    }

    /// Emits a group norm with operator set 17: a reshape to groups and an instance norm.
    fn group_norm(&mut self, node: &Node, norm: &GroupNorm, x: &str) -> String {
        let name = node.name.as_str();
        let groups = i64::try_from(norm.groups).unwrap_or(i64::MAX);
        let grouped = self.list(format!("{name}.groups"), &[0, groups, -1]);
        let shape = self.push(&format!("{name}.shape"), "Shape", &[x], vec![]);
        let y = self.push(&format!("{name}.grouped"), "Reshape", &[x, &grouped], vec![]);
        let one = self.initializer(
            format!("{name}.one"),
            vec![norm.groups],
            InitializerSource::Values(vec![1.0; norm.groups]),
        );
        let zero = self.initializer(
            format!("{name}.zero"),
            vec![norm.groups],
            InitializerSource::Values(vec![0.0; norm.groups]),
        );
        let eps = Attribute::float("epsilon", norm.eps as f32);
        let y = self.push(&format!("{name}.normal"), "InstanceNormalization", &[&y, &one, &zero], vec![eps]);
        let y = self.push(&format!("{name}.planar"), "Reshape", &[&y, &shape], vec![]);
        let weight = self.stored(node, "weight", &[node.channels, 1, 1]);
        let bias = self.stored(node, "bias", &[node.channels, 1, 1]);
        let y = self.push(&format!("{name}.scaled"), "Mul", &[&y, &weight], vec![]);
        self.push(name, "Add", &[&y, &bias], vec![])
    }

    fn global(&mut self, name: &str, op: &str, x: &str) -> String {
        let pooled = self.push(&format!("{name}.pixel"), op, &[x], vec![]);
        self.push(name, "Flatten", &[&pooled], vec![Attribute::int("axis", 1)])
    }

    fn pad(&mut self, name: &str, x: &str, pads: &[i64]) -> String {
        let pads = self.list(format!("{name}.pads"), pads);
        self.push(name, "Pad", &[x, &pads], vec![])
    }

    fn blur(&mut self, node: &Node, stride: usize, x: &str) -> String {
        const BINOMIAL: [f32; 9] = [1.0, 2.0, 1.0, 2.0, 4.0, 2.0, 1.0, 2.0, 1.0];
        let name = node.name.as_str();
        let pads = self.list(format!("{name}.pads"), &[0, 0, 1, 1, 0, 0, 1, 1]);
        let reflected = self.push(
            &format!("{name}.padded"),
            "Pad",
            &[x, &pads],
            vec![Attribute::text("mode", "reflect")],
        );
        let kernel = BINOMIAL.map(|v| v / 16.0).repeat(node.channels);
        let weight = self.initializer(
            format!("{name}.filter"),
            vec![node.channels, 1, 3, 3],
            InitializerSource::Values(kernel),
        );
        let attributes = vec![
            Attribute::ints("kernel_shape", &[3, 3]),
            Attribute::ints("strides", &ints([stride; 2])),
            Attribute::int("group", i64::try_from(node.channels).unwrap_or(i64::MAX)),
        ];
        self.push(name, "Conv", &[&reflected, &weight], attributes)
    }

    /// Emits adaptive average pooling as average pooling for a fixed image size; ONNX has no adaptive pooling.
    fn adaptive(&mut self, node: &Node, grid: [usize; 2], x: &str) -> Result<String> {
        let pixels = self.pixels(node)?;
        let mut kernel = [1; 2];
        for ((kernel, pixels), grid) in kernel.iter_mut().zip(pixels).zip(grid) {
            match (pixels.checked_rem(grid), pixels.checked_div(grid)) {
                (Some(0), Some(size)) if size > 0 => *kernel = size,
                _ => {
                    let detail = format!(
                        "`{}`: unsupported adaptive pooling of {pixels} pixels to {grid}, expected a multiple; change the crop size",
                        node.name
                    );
                    return Err(Error::Export(detail));
                }
            }
        }
        let window = PoolSpec { kernel, stride: kernel, padding: [0; 2] };
        let pool = AvgPool { window, rounding: Rounding::Floor, divisor: Divisor::Pixels };
        Ok(self.push(&node.name, "AveragePool", &[x], mean(&pool)))
    }

    /// Returns height and width of the input of `node`.
    fn pixels(&self, node: &Node) -> Result<[usize; 2]> {
        let input = node.inputs.first().and_then(|i| self.options.size.as_ref()?.costs.get(i.index()));
        match input.map(|c| c.shape.as_slice()) {
            Some(&[_, height, width]) => Ok([height, width]),
            _ => Err(Error::Export(format!("`{}` requires a fixed image size", node.name))),
        }
    }

    fn finish(mut self) -> Result<Emitted> {
        let options = self.options;
        let output = options.graph.node(options.graph.output());
        let mut result = self.values.last().cloned().unwrap_or_default();
        let name = match options.checkpoint.meta().arch.classes() {
            Some(_) => "logits",
            None => "features",
        };
        let to_f32 = if options.half { vec![Attribute::int("to", 1)] } else { vec![] };
        result = self.push(name, if options.half { "Cast" } else { "Identity" }, &[&result], to_f32);
        let batch = options.batch.ok_or("batch");
        let [height, width] = match &options.size {
            Some(size) => size.image.map(Ok),
            None => [Err("height"), Err("width")],
        };
        let inputs = vec![value_info(INPUT, &[batch, Ok(options.graph.in_channels()), height, width])];
        let outputs = vec![value_info(&result, &[batch, Ok(output.channels)])];
        let nodes = GraphNodes { nodes: self.nodes, name: "resnet".into() };
        Ok(Emitted { nodes, io: GraphIo { inputs, outputs }, initializers: self.initializers })
    }
}

fn window(pool: &PoolSpec) -> Vec<Attribute> {
    vec![
        Attribute::ints("kernel_shape", &ints(pool.kernel)),
        Attribute::ints("strides", &ints(pool.stride)),
        Attribute::ints("pads", &pads(pool.padding)),
    ]
}

fn mean(pool: &AvgPool) -> Vec<Attribute> {
    let mut attributes = window(&pool.window);
    // Without padding the flag has no effect, and runtimes differ in its handling of ceil_mode.
    let counts = pool.divisor == Divisor::Window && pool.window.padding != [0; 2];
    attributes.push(Attribute::int("count_include_pad", i64::from(counts)));
    attributes.push(Attribute::int("ceil_mode", i64::from(pool.rounding == Rounding::Ceil)));
    attributes
}
