//! Nodes that pool pixels.

use resnet_model::graph::{AvgPool, Divisor, Op, Rounding};

use super::Translator;
use crate::cells::{Axis, CellKind, Tensors, View};
use crate::error::Fault;
use crate::proto::NodeProto;
use crate::window::{Window, output};

impl<'a> Translator<'a> {
    pub(super) fn max_pool(&mut self, node: &'a NodeProto) -> Result<View, Fault> {
        let x = self.planar(node, 0)?;
        let size = self.cell(x)?.size;
        let mut window = self.window(node, node.pair("kernel_shape", [1; 2])?, size)?;
        if window.dilation != [1; 2] {
            return Err(node.graph_fault("a dilated max-pool"));
        }
        if node.flag("ceil_mode") && !exact(size, &window) {
            // One window more is what a stride less one of padding makes, as long as it begins in the image.
            let begins = |i: usize| {
                let [kernel, stride, after] = at(i, [window.kernel, window.stride, window.after]);
                after.saturating_add(stride) <= kernel
            };
            if !begins(0) || !begins(1) {
                return Err(
                    node.graph_fault("a max-pool that rounds up (ceil_mode) to windows outside the image")
                );
            }
            for (after, stride) in window.after.iter_mut().zip(window.stride) {
                *after = after.saturating_add(stride.saturating_sub(1));
            }
        }
        let channels = self.cell(x)?.channels;
        let mut input = x;
        if !window.is_symmetric() {
            if self.cell(x)?.op() != Some(&Op::Relu) {
                let found = "a max-pool that is padded on one side only or rounds up";
                return Err(node.graph_fault(format!("{found}, expected a ReLU before it")));
            }
            // Zeros never win over what a ReLU gives.
            let padded = output(size, |axis, n| {
                let [before, after] = at(axis, [window.before, window.after]);
                n.checked_add(before)?.checked_add(after)
            });
            let pad = CellKind::Op(Op::Pad(window.pad()), Tensors::default());
            input = self.push_sized(node, pad, &[input], channels, padded)?;
            window = window.without_padding();
        }
        let pool = window.pool();
        let size = output(self.cell(input)?.size, |axis, n| pool.output(axis, n));
        let kind = CellKind::Op(Op::MaxPool(pool), Tensors::default());
        Ok(View::planar(self.push_sized(node, kind, &[input], channels, size)?))
    }

    pub(super) fn avg_pool(&mut self, node: &'a NodeProto) -> Result<View, Fault> {
        let x = self.planar(node, 0)?;
        let (channels, size) = (self.cell(x)?.channels, self.cell(x)?.size);
        let window = self.window(node, node.pair("kernel_shape", [1; 2])?, size)?;
        if !window.is_symmetric() || window.dilation != [1; 2] {
            return Err(node.graph_fault("a mean that is dilated or padded on one side only"));
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
        let kind = CellKind::Op(Op::AvgPool(pool), Tensors::default());
        Ok(View::planar(self.push_sized(node, kind, &[x], channels, size)?))
    }

    /// A mean or maximum over all pixels, whose axes stay with size 1 or go.
    pub(super) fn global_pool(&mut self, node: &'a NodeProto, op: Op, keep: bool) -> Result<View, Fault> {
        let x = self.view(node, 0)?;
        // One pixel is its own mean and maximum.
        if x.axes == [Axis::N, Axis::C, Axis::One, Axis::One] {
            let axes = if keep { x.axes } else { vec![Axis::N, Axis::C] };
            return Ok(View { cell: x.cell, axes });
        }
        if !x.is_map() {
            return Err(node.graph_fault("all pixels become one twice"));
        }
        let channels = self.cell(x.cell)?.channels;
        let cell = self.push_sized(node, CellKind::Op(op, Tensors::default()), &[x.cell], channels, None)?;
        let axes = x.axes.into_iter().filter_map(|axis| match axis {
            Axis::H | Axis::W => keep.then_some(Axis::One),
            axis => Some(axis),
        });
        Ok(View { cell, axes: axes.collect() })
    }

    pub(super) fn reduce(&mut self, node: &'a NodeProto, op: Op) -> Result<View, Fault> {
        let x = self.view(node, 0)?;
        let axes = self.list(node, "axes", 1)?.unwrap_or_default();
        let places = axes.iter().map(|&a| crate::constant::axis(a, x.axes.len()));
        let mut places: Vec<usize> = places.collect::<Option<_>>().unwrap_or_default();
        places.sort_unstable();
        let reduced: Vec<Axis> = places.iter().filter_map(|&i| x.axes.get(i).copied()).collect();
        match reduced.as_slice() {
            [Axis::H, Axis::W] | [Axis::One, Axis::One] => {
                self.global_pool(node, op, node.int_or("keepdims", 1) != 0)
            }
            _ => Err(node.graph_fault(format!("reduces the axes {axes:?}, expected those of the pixels"))),
        }
    }
}

/// What the pairs hold for an axis.
fn at<const N: usize>(axis: usize, pairs: [[usize; 2]; N]) -> [usize; N] {
    pairs.map(|pair| pair.get(axis).copied().unwrap_or(0))
}

/// Whether windows fill an image exactly, so that rounding does not matter.
fn exact(size: Option<[usize; 2]>, window: &Window) -> bool {
    let Some(size) = size else { return false };
    let fills = |i: usize| {
        let [n, kernel, stride, before, after] =
            at(i, [size, window.kernel, window.stride, window.before, window.after]);
        let left = n.saturating_add(before).saturating_add(after).checked_sub(kernel);
        left.is_some_and(|left| left.checked_rem(stride) == Some(0))
    };
    fills(0) && fills(1)
}
