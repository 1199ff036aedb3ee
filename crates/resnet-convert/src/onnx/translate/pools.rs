//! Nodes that pool pixels.

use resnet_model::graph::{AvgPool, Divisor, Op, Rounding};

use super::Translator;
use crate::error::Fault;
use crate::onnx::net::{Axis, Kind, Tensors, View};
use crate::onnx::proto::Node;
use crate::onnx::window::{Window, output};

impl<'a> Translator<'a> {
    pub(super) fn max_pool(&mut self, node: &'a Node) -> Result<View, Fault> {
        let x = self.planar(node, 0)?;
        let size = self.cell(x)?.size;
        let window = Window::of(node, node.pair("kernel_shape", [1; 2])?, size)?;
        if !window.is_symmetric() {
            return Err(
                node.odd("a max-pool that is padded on one side only, which no network of the zoo has")
            );
        }
        let pool = window.pool();
        let size_after = output(size, |axis, n| pool.output(axis, n));
        if node.flag("ceil_mode") && !exact(size, &window) {
            return Err(node.odd("a max-pool that rounds up (ceil_mode), which no network of the zoo has"));
        }
        if window.dilation != [1; 2] {
            return Err(node.odd("a dilated max-pool"));
        }
        let channels = self.cell(x)?.channels;
        let kind = Kind::Op(Op::MaxPool(pool), Tensors::default());
        Ok(View::planar(self.push_sized(node, kind, &[x], channels, size_after)?))
    }

    pub(super) fn avg_pool(&mut self, node: &'a Node) -> Result<View, Fault> {
        let x = self.planar(node, 0)?;
        let (channels, size) = (self.cell(x)?.channels, self.cell(x)?.size);
        let window = Window::of(node, node.pair("kernel_shape", [1; 2])?, size)?;
        if !window.is_symmetric() || window.dilation != [1; 2] {
            return Err(node.odd("a mean that is dilated or padded on one side only"));
        }
        let padded = window.before != [0; 2];
        if !padded && window.kernel == [1; 2] && window.stride == [1; 2] {
            return Ok(View::planar(x));
        }
        // Over all pixels: of a size that is known, or of the size of ImageNet networks' last features.
        let whole = size.map_or(window.kernel == [7; 2], |size| size == window.kernel);
        if whole && !padded {
            if size.is_none() {
                self.notes.push("a mean over 7×7 pixels is taken for one over all".into());
            }
            return self.global_pool(node, Op::GlobalAvgPool, true);
        }
        let divisor = if node.flag("count_include_pad") { Divisor::Window } else { Divisor::Pixels };
        let rounding = if node.flag("ceil_mode") { Rounding::Ceil } else { Rounding::Floor };
        let pool = AvgPool { window: window.pool(), rounding, divisor };
        let size = output(size, |axis, n| pool.output(axis, n));
        let kind = Kind::Op(Op::AvgPool(pool), Tensors::default());
        Ok(View::planar(self.push_sized(node, kind, &[x], channels, size)?))
    }

    /// A mean or maximum over all pixels, whose axes stay with size 1 or go.
    pub(super) fn global_pool(&mut self, node: &'a Node, op: Op, keep: bool) -> Result<View, Fault> {
        let x = self.view(node, 0)?;
        // One pixel is its own mean and maximum.
        if x.axes == [Axis::N, Axis::C, Axis::One, Axis::One] {
            let axes = if keep { x.axes } else { vec![Axis::N, Axis::C] };
            return Ok(View { cell: x.cell, axes });
        }
        if !x.is_map() {
            return Err(node.odd("all pixels become one twice"));
        }
        let channels = self.cell(x.cell)?.channels;
        let cell = self.push_sized(node, Kind::Op(op, Tensors::default()), &[x.cell], channels, None)?;
        let axes = x.axes.into_iter().filter_map(|axis| match axis {
            Axis::H | Axis::W => keep.then_some(Axis::One),
            axis => Some(axis),
        });
        Ok(View { cell, axes: axes.collect() })
    }

    pub(super) fn reduce(&mut self, node: &'a Node, op: Op) -> Result<View, Fault> {
        let x = self.view(node, 0)?;
        let axes = self.list(node, "axes", 1)?.unwrap_or_default();
        let places = axes.iter().map(|&a| crate::onnx::constant::axis(a, x.axes.len()));
        let mut places: Vec<usize> = places.collect::<Option<_>>().unwrap_or_default();
        places.sort_unstable();
        let reduced: Vec<Axis> = places.iter().filter_map(|&i| x.axes.get(i).copied()).collect();
        match reduced.as_slice() {
            [Axis::H, Axis::W] | [Axis::One, Axis::One] => {
                self.global_pool(node, op, node.int_or("keepdims", 1) != 0)
            }
            _ => Err(node.odd(format!("reduces the axes {axes:?}, expected those of the pixels"))),
        }
    }
}

/// Whether windows fill an image exactly, so that rounding does not matter.
fn exact(size: Option<[usize; 2]>, window: &Window) -> bool {
    let Some([height, width]) = size else { return false };
    let pool = window.pool();
    let fills = |n: usize, [kernel, stride, padding]: [usize; 3]| {
        let left = n.saturating_add(padding.saturating_mul(2)).checked_sub(kernel);
        left.is_some_and(|left| left.checked_rem(stride) == Some(0))
    };
    let axis =
        |i: usize| [&pool.kernel, &pool.stride, &pool.padding].map(|pair| pair.get(i).copied().unwrap_or(1));
    fills(height, axis(0)) && fills(width, axis(1))
}
