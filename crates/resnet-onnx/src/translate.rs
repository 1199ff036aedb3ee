//! Translates the nodes of a foreign graph to cells, in topological order.

mod const_eval;
mod layers;
mod layout;
mod pools;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use resnet_model::graph::Op;
use resnet_model::raw::Bytes;
use resnet_model::{RawTensor, escape};

use super::cells::{Axis, Cell, CellGraph, CellKind, Tensors, View};
use super::constant::{self, Constant};
use super::external::External;
use super::proto::{GraphProto, MAX_NODES, NodeProto};
use crate::error::{Code, Fault};

/// A value of the graph during translation.
#[derive(Debug, Clone)]
enum Value {
    /// Independent of the input.
    Constant(Constant),
    /// A list of sizes; `None` depends on the input.
    Sizes(Vec<Option<i64>>),
    /// An activation.
    View(View),
}

/// Result of [`translate`].
#[derive(Debug)]
pub(crate) struct Translated {
    pub(crate) net: CellGraph,
    /// Notes for the user.
    pub(crate) notes: Vec<String>,
    /// Names of the used initializers.
    pub(crate) used: HashSet<String>,
}

/// Input of [`translate`] in addition to the graph.
pub(crate) struct Context<'a> {
    pub(crate) file: &'a Arc<dyn Bytes>,
    pub(crate) initializers: HashMap<&'a str, &'a RawTensor>,
    pub(crate) external: External,
}

struct Translator<'a> {
    context: Context<'a>,
    values: HashMap<&'a str, Value>,
    cells: Vec<Cell>,
    notes: Vec<String>,
    used: HashSet<String>,
    /// Remaining bytes for computed constants.
    budget: u64,
    /// Bytes of constants with one repeated element.
    filled: u64,
}

/// Maximum bytes of constants with one repeated element.
const MAX_FILLED: u64 = 2 << 30;

/// Translates `graph`.
pub(crate) fn translate<'a>(graph: &'a GraphProto, context: Context<'a>) -> Result<Translated, Fault> {
    let producers = producers(graph)?;
    let mut notes = Vec::new();
    let output = output(graph, &producers, &mut notes)?;
    let order = order(graph, &producers, output)?;
    reject_attention(graph, &producers, &order)?;
    let mut translator = Translator {
        budget: context.file.len().saturating_mul(4).max(64 << 20),
        filled: 0,
        context,
        values: HashMap::new(),
        cells: vec![],
        notes,
        used: HashSet::new(),
    };
    translator.input(graph)?;
    for node in order {
        translator.node(node)?;
    }
    match translator.values.get(output) {
        Some(Value::View(view)) => translator.cells.truncate(view.cell.saturating_add(1)),
        _ => {
            let detail = format!("the output `{}` does not depend on the input", escape(output));
            return Err(Fault::new(Code::Graph, detail));
        }
    }
    Ok(Translated {
        net: CellGraph { cells: translator.cells },
        notes: translator.notes,
        used: translator.used,
    })
}

/// Returns the index of the node that produces each value.
fn producers(graph: &GraphProto) -> Result<HashMap<&str, usize>, Fault> {
    let mut producers = HashMap::new();
    for (i, node) in graph.nodes.iter().enumerate() {
        for name in node.outputs.iter().filter(|n| !n.is_empty()) {
            if producers.insert(name.as_str(), i).is_some() {
                let detail = format!("duplicate producer of the value `{}`", escape(name));
                return Err(node.fault(Code::DuplicateName, detail));
            }
        }
    }
    Ok(producers)
}

/// Returns the output of the network: the logits, without softmax or argmax.
fn output<'a>(
    graph: &'a GraphProto,
    producers: &HashMap<&str, usize>,
    notes: &mut Vec<String>,
) -> Result<&'a str, Fault> {
    let mut ends = Vec::new();
    for output in &graph.outputs {
        let mut name = output.name.as_str();
        let mut after = None;
        for _ in 0..MAX_NODES {
            let node = producers.get(name).and_then(|&i| graph.nodes.get(i));
            let Some(node) = node else { break };
            match node.op.as_str() {
                "Softmax" | "LogSoftmax" | "ArgMax" | "TopK" => after = Some(node.op.as_str()),
                "Identity" | "Cast" if after.is_some() || ends.is_empty() => {}
                _ => break,
            }
            name = node.input(0);
        }
        if let Some(op) = after {
            notes.push(format!("the graph ends with {op}, which is omitted: the output is logits"));
        }
        if !ends.contains(&name) {
            ends.push(name);
        }
    }
    match ends.as_slice() {
        [] => Err(Fault::new(Code::Graph, "the graph has no output")),
        [name] => Ok(name),
        [name, others @ ..] => {
            let others: Vec<String> = others.iter().map(|n| format!("`{}`", escape(n))).collect();
            notes.push(format!("used the output `{}`, not {}", escape(name), others.join(", ")));
            Ok(name)
        }
    }
}

/// Rejects attention with one message, rather than at the first of its many nodes.
fn reject_attention(
    graph: &GraphProto,
    producers: &HashMap<&str, usize>,
    order: &[&NodeProto],
) -> Result<(), Fault> {
    let producer_op =
        |name: &str| producers.get(name).and_then(|&i| graph.nodes.get(i)).map(|node| node.op.as_str());
    let attends = |node: &&&NodeProto| node.op == "MatMul" && producer_op(node.input(0)) == Some("Softmax");
    match order.iter().find(attends) {
        Some(node) => {
            let detail =
                "unsupported attention (as in CLIP image encoders); convert the original checkpoint instead";
            Err(node.fault(Code::Unsupported, detail))
        }
        None => Ok(()),
    }
}

/// Returns the nodes that `output` depends on, in topological order.
fn order<'a>(
    graph: &'a GraphProto,
    producers: &HashMap<&str, usize>,
    output: &str,
) -> Result<Vec<&'a NodeProto>, Fault> {
    #[derive(Clone, Copy, PartialEq)]
    enum Visit {
        New,
        Open,
        Done,
    }
    let mut states = vec![Visit::New; graph.nodes.len()];
    let mut order = Vec::new();
    let mut stack: Vec<usize> = producers.get(output).copied().into_iter().collect();
    while let Some(&i) = stack.last() {
        let (Some(node), Some(state)) = (graph.nodes.get(i), states.get_mut(i)) else { break };
        match *state {
            Visit::New => {
                *state = Visit::Open;
                for input in node.inputs.iter().rev() {
                    let Some(&producer) = producers.get(input.as_str()) else { continue };
                    match states.get(producer) {
                        Some(Visit::New) => stack.push(producer),
                        Some(Visit::Open) => {
                            return Err(
                                node.fault(Code::Cycle, "cyclic graph: the node depends on its own output")
                            );
                        }
                        _ => {}
                    }
                }
            }
            Visit::Open => {
                *state = Visit::Done;
                order.push(node);
                stack.pop();
            }
            Visit::Done => {
                stack.pop();
            }
        }
    }
    Ok(order)
}

impl<'a> Translator<'a> {
    /// Adds the input of the network: the only graph input that is not an initializer.
    fn input(&mut self, graph: &'a GraphProto) -> Result<(), Fault> {
        let mut inputs =
            graph.inputs.iter().filter(|i| !self.context.initializers.contains_key(i.name.as_str()));
        let fault = |detail: String| Err(Fault::new(Code::Graph, detail));
        let Some(input) = inputs.next() else { return fault("the graph has no input".into()) };
        if let Some(other) = inputs.next() {
            let names = format!("`{}` and `{}`", escape(&input.name), escape(&other.name));
            return fault(format!("unsupported graph with several inputs: {names}; export with one"));
        }
        // Without a shape, the channels are inferred from the first convolution.
        let dims = input.dims().unwrap_or_else(|| vec![None; 4]);
        let &[_, second, third, fourth] = dims.as_slice() else {
            return fault(format!(
                "the input `{}` has {} dimensions, expected 4",
                escape(&input.name),
                dims.len()
            ));
        };
        let is_channels = |d: Option<i64>| d.is_some_and(|d| (1..=4).contains(&d));
        let channels_last = is_channels(fourth) && !is_channels(second);
        let (channels, height, width) =
            if channels_last { (fourth, second, third) } else { (second, third, fourth) };
        let axes = match channels_last {
            true => {
                self.notes.push(
                    "the graph takes images as [N, H, W, C], the converted network takes [N, C, H, W]".into(),
                );
                vec![Axis::N, Axis::H, Axis::W, Axis::C]
            }
            false => vec![Axis::N, Axis::C, Axis::H, Axis::W],
        };
        let pixels = |d: Option<i64>| d.and_then(|d| usize::try_from(d).ok()).filter(|&d| d <= 1 << 20);
        let size = pixels(height).zip(pixels(width)).map(|(height, width)| [height, width]);
        self.cells.push(Cell {
            label: format!("{} (input)", input.name),
            kind: CellKind::Op(Op::Input, Tensors::default()),
            inputs: vec![],
            channels: pixels(channels).unwrap_or(0),
            size,
        });
        self.values.insert(&input.name, Value::View(View { cell: 0, axes }));
        Ok(())
    }

    fn node(&mut self, node: &'a NodeProto) -> Result<(), Fault> {
        if !matches!(node.domain.as_str(), "" | "ai.onnx") {
            let detail = format!("unsupported operator domain `{}`", escape(&node.domain));
            return Err(node.fault(Code::Unsupported, detail));
        }
        if node.op.contains("Quantize") || node.op.starts_with("QLinear") || node.op.ends_with("Integer") {
            return Err(node.fault(
                Code::Unsupported,
                "unsupported quantized graph; convert the original float model instead",
            ));
        }
        let Some(name) = node.outputs.first() else { return Err(node.graph_fault("the node has no output")) };
        let value = match self.evaluate(node)? {
            Some(value) => value,
            None => self.layer(node)?,
        };
        self.values.insert(name, value);
        Ok(())
    }

    /// Returns the value of input `i`; `None` if it is omitted.
    fn value(&mut self, node: &'a NodeProto, i: usize) -> Result<Option<Value>, Fault> {
        let name = node.input(i);
        if name.is_empty() {
            return Ok(None);
        }
        if let Some(value) = self.values.get(name) {
            return Ok(Some(value.clone()));
        }
        match self.context.initializers.get(name) {
            Some(&tensor) => {
                self.used.insert(name.to_owned());
                let constant = Constant { tensor: tensor.clone(), name: name.to_owned() };
                Ok(Some(Value::Constant(constant)))
            }
            None => Err(node.graph_fault(format!("undefined input `{}`", escape(name)))),
        }
    }

    /// Returns a constant input; `None` if it is omitted.
    fn constant(&mut self, node: &'a NodeProto, i: usize) -> Result<Option<Constant>, Fault> {
        match self.value(node, i)? {
            None => Ok(None),
            Some(Value::Constant(constant)) => Ok(Some(constant)),
            Some(_) => Err(node.graph_fault(format!(
                "input `{}` is an activation, expected a constant",
                escape(node.input(i))
            ))),
        }
    }

    /// Returns a required constant input.
    fn required(&mut self, node: &'a NodeProto, i: usize, name: &str) -> Result<Constant, Fault> {
        self.constant(node, i)?.ok_or_else(|| node.graph_fault(format!("missing {name}")))
    }

    /// Returns a list of integers from an attribute or a constant input, depending on the operator set.
    fn list(
        &mut self,
        node: &'a NodeProto,
        attribute: &str,
        input: usize,
    ) -> Result<Option<Vec<i64>>, Fault> {
        if let Some(list) = node.ints(attribute) {
            return Ok(Some(list.to_vec()));
        }
        let Some(constant) = self.constant(node, input)? else { return Ok(None) };
        let invalid = || node.graph_fault(format!("invalid {attribute}, expected a list of integers"));
        constant::ints(&constant.tensor).map(Some).ok_or_else(invalid)
    }

    /// Returns the activation of input `i`.
    fn view(&mut self, node: &'a NodeProto, i: usize) -> Result<View, Fault> {
        match self.value(node, i)? {
            Some(Value::View(view)) => Ok(view),
            _ => Err(node.graph_fault(format!("input `{}` is not an activation", escape(node.input(i))))),
        }
    }

    fn cell(&self, id: usize) -> Result<&Cell, Fault> {
        self.cells.get(id).ok_or_else(|| Fault::new(Code::Graph, "internal error: missing cell"))
    }

    /// Appends a cell with the channels and size of its first input.
    fn push(&mut self, node: &NodeProto, kind: CellKind, inputs: &[usize]) -> Result<usize, Fault> {
        let first = inputs.first().copied().unwrap_or(0);
        let (channels, size) = {
            let first = self.cell(first)?;
            (first.channels, first.size)
        };
        self.push_sized(node, kind, inputs, channels, size)
    }

    /// Appends a cell and returns its index.
    fn push_sized(
        &mut self,
        node: &NodeProto,
        kind: CellKind,
        inputs: &[usize],
        channels: usize,
        size: Option<[usize; 2]>,
    ) -> Result<usize, Fault> {
        self.cells.push(Cell { label: node.label(), kind, inputs: inputs.to_vec(), channels, size });
        Ok(self.cells.len().saturating_sub(1))
    }

    /// Subtracts the bytes of a computed constant from the budget.
    fn spend(&mut self, node: &NodeProto, tensor: RawTensor) -> Result<RawTensor, Fault> {
        match self.budget.checked_sub(tensor.byte_len()) {
            Some(left) => {
                self.budget = left;
                Ok(tensor)
            }
            None => Err(node.fault(Code::TensorBytes, "computed constants are much larger than the file")),
        }
    }

    /// Expands one element to `shape`, up to [`MAX_FILLED`] bytes in total.
    fn fill(&mut self, node: &NodeProto, element: &RawTensor, shape: Vec<usize>) -> Result<RawTensor, Fault> {
        let invalid = || node.fault(Code::TensorSize, "invalid element or shape of a constant");
        let tensor = constant::fill(element, shape).ok_or_else(invalid)?;
        self.filled = self.filled.saturating_add(tensor.byte_len());
        match self.filled <= MAX_FILLED {
            true => Ok(tensor),
            false => {
                Err(node.fault(Code::TensorBytes, format!("expanded constants exceed {MAX_FILLED} bytes")))
            }
        }
    }
}
