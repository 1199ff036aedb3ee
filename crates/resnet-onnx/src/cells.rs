//! A foreign graph as cells: operations of `resnet-model` with their tensors.

use resnet_model::graph::Op;

use super::constant::Constant;

/// One operation of a foreign graph.
#[derive(Debug, Clone)]
pub(crate) struct Cell {
    /// Name and operator in the file: `/layer1/conv1/Conv (Conv)`.
    pub(crate) label: String,
    pub(crate) kind: CellKind,
    pub(crate) inputs: Vec<usize>,
    pub(crate) channels: usize,
    /// Height and width of the output, if known.
    pub(crate) size: Option<[usize; 2]>,
}

/// Kind of a [`Cell`].
#[derive(Debug, Clone)]
pub(crate) enum CellKind {
    /// An operation of `resnet-model` and its tensors, if any.
    Op(Op, Tensors),
    /// `x · weight + bias` per channel.
    Affine(Tensors),
    /// Every n-th pixel along height and width.
    StridedSlice([usize; 2]),
    /// Symmetric reflection padding of height and width.
    ReflectPad([usize; 2]),
}

/// Tensors of an operation, named as in PyTorch modules.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tensors {
    pub(crate) weight: Option<Constant>,
    pub(crate) bias: Option<Constant>,
    pub(crate) mean: Option<Constant>,
    pub(crate) var: Option<Constant>,
}

impl Tensors {
    pub(crate) fn weight(weight: Constant, bias: Option<Constant>) -> Tensors {
        Tensors { weight: Some(weight), bias, ..Tensors::default() }
    }
}

/// A foreign graph in topological order: the first cell is the input, the last one the output.
#[derive(Debug)]
pub(crate) struct CellGraph {
    pub(crate) cells: Vec<Cell>,
}

impl Cell {
    pub(crate) fn op(&self) -> Option<&Op> {
        match &self.kind {
            CellKind::Op(op, _) => Some(op),
            _ => None,
        }
    }
}

/// Axis of an activation. Cells are `[N, C, H, W]` or `[N, C]`; exporters use other layouts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Axis {
    N,
    C,
    H,
    W,
    /// Of size 1.
    One,
    /// Groups of channels; [`Rest`](Self::Rest) is everything in a group. Exporters write group norms like this.
    Groups(usize),
    Rest,
}

/// Formats axes for messages: `[N, C, H, W]`.
pub(crate) fn axes_text(axes: &[Axis]) -> String {
    let names: Vec<String> = axes
        .iter()
        .map(|axis| match axis {
            Axis::N => "N".into(),
            Axis::C => "C".into(),
            Axis::H => "H".into(),
            Axis::W => "W".into(),
            Axis::One => "1".into(),
            Axis::Groups(groups) => format!("{groups} groups"),
            Axis::Rest => "-1".into(),
        })
        .collect();
    format!("[{}]", names.join(", "))
}

/// Layout of a cell's output in an ONNX value.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct View {
    pub(crate) cell: usize,
    pub(crate) axes: Vec<Axis>,
}

impl View {
    pub(crate) fn nchw(cell: usize) -> View {
        View { cell, axes: vec![Axis::N, Axis::C, Axis::H, Axis::W] }
    }

    pub(crate) fn position(&self, axis: Axis) -> Option<usize> {
        self.axes.iter().position(|&a| a == axis)
    }

    /// Returns `true` for a feature map, with axes H and W.
    pub(crate) fn is_map(&self) -> bool {
        self.axes.contains(&Axis::H) && self.axes.contains(&Axis::W)
    }

    /// Returns `true` for a vector of channels, with any axes of size 1.
    pub(crate) fn is_vector(&self) -> bool {
        self.axes.contains(&Axis::C) && self.axes.iter().all(|a| matches!(a, Axis::N | Axis::C | Axis::One))
    }
}
