//! From a foreign graph's nodes to cells, in the order of their values, whatever the order in the file.

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

/// What is known of a value while the graph is read.
#[derive(Debug, Clone)]
enum Value {
    /// The same for every input.
    Constant(Constant),
    /// A list of sizes, some of which depend on the input.
    Sizes(Vec<Option<i64>>),
    /// A result.
    View(View),
}

/// A foreign graph, translated.
#[derive(Debug)]
pub(crate) struct Translated {
    pub(crate) net: CellGraph,
    /// What a user may want to know.
    pub(crate) notes: Vec<String>,
    /// The initializers that it depends on.
    pub(crate) seen: HashSet<String>,
}

/// What translating needs beside the graph.
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
    seen: HashSet<String>,
    /// Bytes that constants may still take.
    budget: u64,
    filled: u64,
}

/// Bytes of constants that are one number over and over.
const MAX_FILLED: u64 = 2 << 30;

/// Translates `graph`.
pub(crate) fn translate<'a>(graph: &'a GraphProto, context: Context<'a>) -> Result<Translated, Fault> {
    let producers = producers(graph)?;
    let mut notes = Vec::new();
    let output = output(graph, &producers, &mut notes)?;
    let order = order(graph, &producers, output)?;
    no_attention(graph, &producers, &order)?;
    let mut translator = Translator {
        budget: context.file.len().saturating_mul(4).max(64 << 20),
        filled: 0,
        context,
        values: HashMap::new(),
        cells: vec![],
        notes,
        seen: HashSet::new(),
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
        seen: translator.seen,
    })
}

/// Which node makes each value.
fn producers(graph: &GraphProto) -> Result<HashMap<&str, usize>, Fault> {
    let mut producers = HashMap::new();
    for (i, node) in graph.nodes.iter().enumerate() {
        for name in node.outputs.iter().filter(|n| !n.is_empty()) {
            if producers.insert(name.as_str(), i).is_some() {
                let detail = format!("two nodes make the value `{}`", escape(name));
                return Err(node.fault(Code::DuplicateName, detail));
            }
        }
    }
    Ok(producers)
}

/// The value that is the network's result: what comes after the logits is left out.
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
            notes.push(format!("the graph ends with {op}, which is left out: results are logits"));
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
            notes.push(format!("the output `{}` was taken, not {}", escape(name), others.join(", ")));
            Ok(name)
        }
    }
}

/// Refuses attention by its name, before the first of the many nodes that exporters spell it with is refused by its own.
fn no_attention(
    graph: &GraphProto,
    producers: &HashMap<&str, usize>,
    order: &[&NodeProto],
) -> Result<(), Fault> {
    let by = |name: &str| producers.get(name).and_then(|&i| graph.nodes.get(i)).map(|node| node.op.as_str());
    let attends = |node: &&&NodeProto| node.op == "MatMul" && by(node.input(0)) == Some("Softmax");
    match order.iter().find(attends) {
        Some(node) => {
            let what = "attention, as in the image towers of CLIP: expected pools of other kinds; \
                        convert the checkpoint that the graph was exported from";
            Err(node.fault(Code::Unsupported, what))
        }
        None => Ok(()),
    }
}

/// The nodes that `output` depends on, each after those that it depends on.
fn order<'a>(
    graph: &'a GraphProto,
    producers: &HashMap<&str, usize>,
    output: &str,
) -> Result<Vec<&'a NodeProto>, Fault> {
    #[derive(Clone, Copy, PartialEq)]
    enum State {
        New,
        Open,
        Done,
    }
    let mut states = vec![State::New; graph.nodes.len()];
    let mut order = Vec::new();
    let mut stack: Vec<usize> = producers.get(output).copied().into_iter().collect();
    while let Some(&i) = stack.last() {
        let (Some(node), Some(state)) = (graph.nodes.get(i), states.get_mut(i)) else { break };
        match *state {
            State::New => {
                *state = State::Open;
                for input in node.inputs.iter().rev() {
                    let Some(&producer) = producers.get(input.as_str()) else { continue };
                    match states.get(producer) {
                        Some(State::New) => stack.push(producer),
                        Some(State::Open) => {
                            return Err(node.fault(Code::Cycle, "a value that depends on itself"));
                        }
                        _ => {}
                    }
                }
            }
            State::Open => {
                *state = State::Done;
                order.push(node);
                stack.pop();
            }
            State::Done => {
                stack.pop();
            }
        }
    }
    Ok(order)
}

impl<'a> Translator<'a> {
    /// The one input that is no weight.
    fn input(&mut self, graph: &'a GraphProto) -> Result<(), Fault> {
        let mut inputs =
            graph.inputs.iter().filter(|i| !self.context.initializers.contains_key(i.name.as_str()));
        let odd = |detail: String| Err(Fault::new(Code::Graph, detail));
        let Some(input) = inputs.next() else { return odd("the graph has no input".into()) };
        if let Some(other) = inputs.next() {
            let names = format!("`{}` and `{}`", escape(&input.name), escape(&other.name));
            return odd(format!("the graph has several inputs: {names}, …"));
        }
        // Without a shape the first convolution tells the channels.
        let dims = input.dims().unwrap_or_else(|| vec![None; 4]);
        let &[_, second, third, fourth] = dims.as_slice() else {
            return odd(format!(
                "the input `{}` has {} dimensions, expected 4",
                escape(&input.name),
                dims.len()
            ));
        };
        let is_few = |d: Option<i64>| d.is_some_and(|d| (1..=4).contains(&d));
        let last = is_few(fourth) && !is_few(second);
        let (channels, height, width) = if last { (fourth, second, third) } else { (second, third, fourth) };
        let axes = match last {
            true => {
                self.notes.push(
                    "the graph takes images as [N, H, W, C], the converted network as [N, C, H, W]".into(),
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
            let detail = format!("an operator of `{}`, which is not read", escape(&node.domain));
            return Err(node.fault(Code::Unsupported, detail));
        }
        if node.op.contains("Quantize") || node.op.starts_with("QLinear") || node.op.ends_with("Integer") {
            return Err(
                node.fault(Code::Unsupported, "a quantised graph; convert the one that it was made from")
            );
        }
        let Some(name) = node.outputs.first() else { return Err(node.graph_fault("no output")) };
        let value = match self.evaluate(node)? {
            Some(value) => value,
            None => self.layer(node)?,
        };
        self.values.insert(name, value);
        Ok(())
    }

    /// What is known of input `i`; `None` if it is left out.
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
                self.seen.insert(name.to_owned());
                let constant = Constant { tensor: tensor.clone(), name: name.to_owned() };
                Ok(Some(Value::Constant(constant)))
            }
            None => Err(node.graph_fault(format!("the input `{}` comes from nowhere", escape(name)))),
        }
    }

    /// A constant input; `None` if it is left out.
    fn constant(&mut self, node: &'a NodeProto, i: usize) -> Result<Option<Constant>, Fault> {
        match self.value(node, i)? {
            None => Ok(None),
            Some(Value::Constant(constant)) => Ok(Some(constant)),
            Some(_) => Err(node.graph_fault(format!(
                "its input `{}` depends on the image, expected a weight",
                escape(node.input(i))
            ))),
        }
    }

    /// A constant that must be there.
    fn weight(&mut self, node: &'a NodeProto, i: usize, what: &str) -> Result<Constant, Fault> {
        self.constant(node, i)?.ok_or_else(|| node.graph_fault(format!("no {what}")))
    }

    /// A short list of integers that an attribute or a constant input gives, depending on the operator set.
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
        let bad = || node.graph_fault(format!("its {attribute} are no list of integers"));
        constant::ints(&constant.tensor).map(Some).ok_or_else(bad)
    }

    /// The result that input `i` is.
    fn view(&mut self, node: &'a NodeProto, i: usize) -> Result<View, Fault> {
        match self.value(node, i)? {
            Some(Value::View(view)) => Ok(view),
            _ => Err(node
                .graph_fault(format!("its input `{}` does not depend on the image", escape(node.input(i))))),
        }
    }

    fn cell(&self, id: usize) -> Result<&Cell, Fault> {
        self.cells.get(id).ok_or_else(|| Fault::new(Code::Graph, "a result that was never made"))
    }

    /// A new cell with as many channels and pixels as its first input.
    fn push(&mut self, node: &NodeProto, kind: CellKind, inputs: &[usize]) -> Result<usize, Fault> {
        let first = inputs.first().copied().unwrap_or(0);
        let (channels, size) = {
            let first = self.cell(first)?;
            (first.channels, first.size)
        };
        self.push_sized(node, kind, inputs, channels, size)
    }

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

    /// Counts the bytes of a constant that was computed.
    fn spend(&mut self, node: &NodeProto, tensor: RawTensor) -> Result<RawTensor, Fault> {
        match self.budget.checked_sub(tensor.byte_len()) {
            Some(left) => {
                self.budget = left;
                Ok(tensor)
            }
            None => Err(node.fault(Code::TensorBytes, "constants far larger than the file")),
        }
    }

    /// Counts the bytes of a constant that is one number over and over.
    fn fill(&mut self, node: &NodeProto, element: &RawTensor, shape: Vec<usize>) -> Result<RawTensor, Fault> {
        let bad = || node.fault(Code::TensorSize, "its element or shape makes no tensor");
        let tensor = constant::fill(element, shape).ok_or_else(bad)?;
        self.filled = self.filled.saturating_add(tensor.byte_len());
        match self.filled <= MAX_FILLED {
            true => Ok(tensor),
            false => Err(node.fault(Code::TensorBytes, format!("constants of more than {MAX_FILLED} bytes"))),
        }
    }
}
