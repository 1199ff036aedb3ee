//! A foreign graph in terms of ours: cells, each an operation with its tensors.

use resnet_model::graph::Op;

use super::constant::Constant;

/// One operation of a foreign graph.
#[derive(Debug, Clone)]
pub(crate) struct Cell {
    /// What the file calls it, with its kind there: `/layer1/conv1/Conv (Conv)`.
    pub(crate) label: String,
    pub(crate) kind: CellKind,
    pub(crate) inputs: Vec<usize>,
    pub(crate) channels: usize,
    /// Height and width of the result, where they are known.
    pub(crate) size: Option<[usize; 2]>,
}

#[derive(Debug, Clone)]
pub(crate) enum CellKind {
    /// An operation of ours; those with tensors have them.
    Op(Op, Tensors),
    /// Multiplication by one number for each channel and addition of another.
    Affine(Tensors),
    /// Every so manieth pixel along each axis.
    StridedSlice([usize; 2]),
    /// Reflected pixels on all sides, height and width.
    ReflectPad([usize; 2]),
}

/// The tensors of an operation, under the names of PyTorch's modules.
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

/// A foreign graph: every cell comes after its inputs, the first is the input, the last the output.
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

/// An axis of a value that depends on the input. A result of ours is `[N, C, H, W]` or `[N, C]`; exporters arrange it
/// in many ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Axis {
    N,
    C,
    H,
    W,
    /// Of size 1.
    One,
    /// Groups of channels, and everything in a group: how group norms are spelled.
    Groups(usize),
    Rest,
}

/// A cell's result as an ONNX value has it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct View {
    pub(crate) cell: usize,
    pub(crate) axes: Vec<Axis>,
}

impl View {
    pub(crate) fn planar(cell: usize) -> View {
        View { cell, axes: vec![Axis::N, Axis::C, Axis::H, Axis::W] }
    }

    pub(crate) fn place(&self, axis: Axis) -> Option<usize> {
        self.axes.iter().position(|&a| a == axis)
    }

    /// Whether it has pixels.
    pub(crate) fn is_map(&self) -> bool {
        self.axes.contains(&Axis::H) && self.axes.contains(&Axis::W)
    }

    /// Whether it is a row of channels, in whatever shape.
    pub(crate) fn is_row(&self) -> bool {
        self.axes.contains(&Axis::C) && self.axes.iter().all(|a| matches!(a, Axis::N | Axis::C | Axis::One))
    }
}
