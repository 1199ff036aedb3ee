//! Nodes that compute nothing: they arrange axes, cut, pad and join.

use resnet_model::graph::{Flatten, Op, Pad, PadChannels};

use super::{Translator, Value};
use crate::cells::{Axis, CellKind, Tensors, View};
use crate::constant::{self, axis};
use crate::error::{Code, Fault};
use crate::proto::NodeProto;
use crate::window::output;

impl<'a> Translator<'a> {
    /// The result of a node that arranges its input.
    pub(super) fn layout_op(&mut self, node: &'a NodeProto) -> Result<Value, Fault> {
        let view = match node.op.as_str() {
            "Flatten" => self.flatten(node)?,
            "Reshape" => self.reshape(node)?,
            "Squeeze" => self.squeeze(node)?,
            "Unsqueeze" => self.unsqueeze(node)?,
            "Transpose" => self.transpose(node)?,
            // A gate spread over the pixels it is multiplied with.
            "Expand" => {
                let x = self.view(node, 0)?;
                match x.is_row() {
                    true => x,
                    false => return Err(node.graph_fault("spreads what is no row of channels")),
                }
            }
            "Concat" => self.concat(node)?,
            "Pad" => self.pad(node)?,
            "Slice" => self.slice(node)?,
            other => {
                let detail =
                    format!("no network of the zoo has the operator {}", resnet_model::escape(other));
                return Err(node.fault(Code::Unsupported, detail));
            }
        };
        Ok(Value::View(view))
    }

    fn flatten(&mut self, node: &'a NodeProto) -> Result<View, Fault> {
        let x = self.view(node, 0)?;
        match axis(node.int_or("axis", 1), x.axes.len()) {
            Some(1) => self.rows(node, x),
            _ => Err(node.graph_fault("flattens images into each other")),
        }
    }

    /// `[N, C]`, or `[N, C · H · W]`.
    fn rows(&mut self, node: &'a NodeProto, x: View) -> Result<View, Fault> {
        let axes = vec![Axis::N, Axis::C];
        if x.axes.first() == Some(&Axis::N) && x.is_row() {
            return Ok(View { axes, ..x });
        }
        let cell = self.cell(x.cell)?;
        let (true, Some(pixels)) = (x == View::planar(x.cell), cell.size) else {
            return Err(node.graph_fault(
                "flattens an image whose size is not known, or whose axes are in another order",
            ));
        };
        let features = pixels.iter().try_fold(cell.channels, |n, &d| n.checked_mul(d));
        let features = features.ok_or_else(|| node.graph_fault("more features than can be counted"))?;
        let kind = CellKind::Op(Op::Flatten(Flatten { pixels }), Tensors::default());
        let cell = self.push_sized(node, kind, &[x.cell], features, None)?;
        Ok(View { cell, axes })
    }

    fn reshape(&mut self, node: &'a NodeProto) -> Result<View, Fault> {
        let x = self.view(node, 0)?;
        let target: Vec<Option<i64>> = match node.ints("shape") {
            Some(list) => list.iter().copied().map(Some).collect(),
            None => match self.value(node, 1)? {
                Some(Value::Constant(c)) => {
                    let list =
                        constant::ints(&c.tensor).ok_or_else(|| node.graph_fault("no list of sizes"))?;
                    list.into_iter().map(Some).collect()
                }
                Some(Value::Sizes(sizes)) => sizes,
                _ => return Err(node.graph_fault("no shape")),
            },
        };
        let (channels, size) = (self.cell(x.cell)?.channels, self.cell(x.cell)?.size);
        let channels = i64::try_from(channels).unwrap_or(i64::MAX);
        // A zero stands for what was there.
        let target: Vec<Option<i64>> = target
            .iter()
            .enumerate()
            .map(|(i, &d)| match (d, x.axes.get(i)) {
                (Some(0), Some(Axis::C)) => Some(channels),
                (Some(0), Some(Axis::One)) => Some(1),
                (Some(0), _) => None,
                _ => d,
            })
            .collect();
        let odd = || node.graph_fault(format!("makes {target:?} of axes {:?}", x.axes));
        let is_open = |d: &Option<i64>| d.is_none_or(|d| d == -1);
        let images = |d: &Option<i64>| d.is_none_or(|d| d == -1 || d >= 1);
        match (x.axes.as_slice(), target.as_slice()) {
            (_, [n, rest @ ..]) if x.is_row() && x.axes.first() == Some(&Axis::N) && images(n) => {
                // The one place that can hold the channels.
                let holds = |d: &Option<i64>| is_open(d) || (*d == Some(channels) && channels != 1);
                let mut places = rest.iter().enumerate().filter(|(_, d)| holds(d)).map(|(i, _)| i);
                let place = places.next().or_else(|| rest.iter().position(|&d| d == Some(channels)));
                let place = place.filter(|_| places.next().is_none()).ok_or_else(odd)?;
                let fits = rest.iter().enumerate().all(|(i, &d)| i == place || d == Some(1));
                if !fits {
                    return Err(odd());
                }
                let axes = (0..rest.len()).map(|i| if i == place { Axis::C } else { Axis::One });
                Ok(View { axes: std::iter::once(Axis::N).chain(axes).collect(), ..x })
            }
            ([Axis::N, Axis::C, Axis::H, Axis::W], [n, features]) if images(n) => {
                let pixels = size.and_then(|[h, w]| i64::try_from(h.checked_mul(w)?).ok());
                let all = pixels.and_then(|p| p.checked_mul(channels));
                match is_open(features) || (all.is_some() && *features == all) {
                    true => self.rows(node, x),
                    false => Err(odd()),
                }
            }
            ([Axis::N, Axis::C, Axis::H, Axis::W], [n, Some(groups), rest]) if images(n) && is_open(rest) => {
                let groups = usize::try_from(*groups).ok().filter(|&g| g > 0).ok_or_else(odd)?;
                Ok(View { axes: vec![Axis::N, Axis::Groups(groups), Axis::Rest], ..x })
            }
            ([Axis::N, Axis::Groups(_), Axis::Rest], [n, c, _, _]) if images(n) => {
                match c.is_none_or(|c| c == channels || c == -1) {
                    true => Ok(View::planar(x.cell)),
                    false => Err(odd()),
                }
            }
            _ => Err(odd()),
        }
    }

    fn squeeze(&mut self, node: &'a NodeProto) -> Result<View, Fault> {
        let mut x = self.view(node, 0)?;
        let places: Vec<usize> = match self.list(node, "axes", 1)? {
            Some(axes) => axes.iter().filter_map(|&a| axis(a, x.axes.len())).collect(),
            None => (0..x.axes.len()).filter(|&i| x.axes.get(i) == Some(&Axis::One)).collect(),
        };
        if places.iter().any(|&i| x.axes.get(i) != Some(&Axis::One)) {
            return Err(node.graph_fault(format!("takes away axes of {:?} that are not of size 1", x.axes)));
        }
        let mut i = 0usize;
        x.axes.retain(|_| {
            i = i.saturating_add(1);
            !places.contains(&i.saturating_sub(1))
        });
        Ok(x)
    }

    fn unsqueeze(&mut self, node: &'a NodeProto) -> Result<View, Fault> {
        let x = self.view(node, 0)?;
        let axes = self.list(node, "axes", 1)?.unwrap_or_default();
        let rank = x.axes.len().saturating_add(axes.len()).min(16);
        let places: Vec<usize> = axes.iter().filter_map(|&a| axis(a, rank)).collect();
        let mut own = x.axes.iter().copied();
        let axes = (0..rank).map(|i| if places.contains(&i) { Some(Axis::One) } else { own.next() });
        let axes =
            axes.collect::<Option<Vec<_>>>().ok_or_else(|| node.graph_fault("adds axes in an odd place"))?;
        Ok(View { axes, ..x })
    }

    fn transpose(&mut self, node: &'a NodeProto) -> Result<View, Fault> {
        let x = self.view(node, 0)?;
        let reversed: Vec<i64> = (0..x.axes.len() as i64).rev().collect();
        let order = node.ints("perm").unwrap_or(&reversed);
        let axes = order.iter().map(|&i| x.axes.get(usize::try_from(i).ok()?).copied());
        let axes = axes.collect::<Option<Vec<_>>>().filter(|axes| axes.len() == x.axes.len());
        let kept = |axes: &Vec<Axis>| x.axes.iter().all(|a| axes.contains(a));
        match axes.filter(kept) {
            Some(axes) => Ok(View { axes, ..x }),
            None => Err(node.graph_fault(format!("the order {order:?} of {} axes", x.axes.len()))),
        }
    }

    fn concat(&mut self, node: &'a NodeProto) -> Result<View, Fault> {
        let views = (0..node.inputs.len()).map(|i| self.view(node, i)).collect::<Result<Vec<_>, _>>()?;
        let Some(first) = views.first() else { return Err(node.graph_fault("joins nothing")) };
        let along = axis(node.int_or("axis", 1), first.axes.len());
        if along != first.place(Axis::C) || views.iter().any(|v| v.axes != first.axes) {
            return Err(node.graph_fault("joins other axes than the channels"));
        }
        let inputs: Vec<usize> = views.iter().map(|v| v.cell).collect();
        let mut channels = 0usize;
        for &input in &inputs {
            channels = channels.saturating_add(self.cell(input)?.channels);
        }
        let size = self.cell(first.cell)?.size;
        let kind = CellKind::Op(Op::Concat, Tensors::default());
        let cell = self.push_sized(node, kind, &inputs, channels, size)?;
        Ok(View { cell, axes: first.axes.clone() })
    }

    /// Zeros or reflected pixels around those of the image, or channels of zeros.
    fn pad(&mut self, node: &'a NodeProto) -> Result<View, Fault> {
        let x = self.view(node, 0)?;
        let rank = x.axes.len();
        let pads = self.list(node, "pads", 1)?.ok_or_else(|| node.graph_fault("no pads"))?;
        let value = match node.input(2).is_empty() {
            true => node.float_or("value", 0.0),
            false => self.constant(node, 2)?.and_then(|c| c.scalar()).unwrap_or(f32::NAN),
        };
        let places: Vec<usize> = match self.constant(node, 3)? {
            Some(axes) => constant::ints(&axes.tensor)
                .unwrap_or_default()
                .iter()
                .filter_map(|&a| axis(a, rank))
                .collect(),
            None => (0..rank).collect(),
        };
        let bad = || node.graph_fault(format!("pads {pads:?} of axes {:?} with {value}", x.axes));
        let pads: Vec<usize> = pads
            .iter()
            .map(|&p| usize::try_from(p).ok().filter(|&p| p <= 1 << 16))
            .collect::<Option<_>>()
            .ok_or_else(bad)?;
        let (before, after) = pads.split_at_checked(places.len()).ok_or_else(bad)?;
        let of = |wanted: Axis| -> [usize; 2] {
            let i = places.iter().position(|&p| x.axes.get(p) == Some(&wanted));
            let at = |list: &[usize]| i.and_then(|i| list.get(i).copied()).unwrap_or(0);
            [at(before), at(after)]
        };
        let (channels, [top, bottom], [left, right]) = (of(Axis::C), of(Axis::H), of(Axis::W));
        let (here, size) = (self.cell(x.cell)?.channels, self.cell(x.cell)?.size);
        let moves = [top, bottom, left, right] != [0; 4];
        let kind = match (node.text("mode").unwrap_or("constant"), channels, moves) {
            (_, [0, 0], false) if of(Axis::N) == [0; 2] => return Ok(x),
            ("constant", [before, after], false) if value == 0.0 && of(Axis::N) == [0; 2] => {
                Op::PadChannels(PadChannels { before, after }).into()
            }
            ("constant", [0, 0], true) if value == 0.0 && of(Axis::N) == [0; 2] => {
                Op::Pad(Pad { before: [top, left], after: [bottom, right] }).into()
            }
            ("reflect", [0, 0], true) if [top, left] == [bottom, right] && of(Axis::N) == [0; 2] => {
                CellKind::ReflectPad([top, left])
            }
            _ => return Err(bad()),
        };
        let size = output(size, |axis, n| match axis {
            0 => n.checked_add(top)?.checked_add(bottom),
            _ => n.checked_add(left)?.checked_add(right),
        });
        let [first, last] = channels;
        let channels = here.saturating_add(first).saturating_add(last);
        let cell = self.push_sized(node, kind, &[x.cell], channels, size)?;
        Ok(View { cell, ..x })
    }

    /// Every so manieth pixel from the first.
    fn slice(&mut self, node: &'a NodeProto) -> Result<View, Fault> {
        let x = self.view(node, 0)?;
        let rank = x.axes.len();
        let starts = self.list(node, "starts", 1)?.unwrap_or_default();
        let ends = self.list(node, "ends", 2)?.unwrap_or_default();
        let axes = self.list(node, "axes", 3)?.unwrap_or_else(|| (0..starts.len() as i64).collect());
        let steps = self.list(node, "steps", 4)?.unwrap_or_else(|| vec![1; starts.len()]);
        let (channels, size) = (self.cell(x.cell)?.channels, self.cell(x.cell)?.size);
        let mut stripe = [1usize; 2];
        for (((&start, &end), &at), &step) in starts.iter().zip(&ends).zip(&axes).zip(&steps) {
            let place = axis(at, rank).and_then(|i| x.axes.get(i));
            let step = usize::try_from(step).ok().filter(|s| (1..=1 << 10).contains(s));
            let known = match (place, size) {
                (Some(Axis::H), Some([height, _])) => i64::try_from(height).ok(),
                (Some(Axis::W), Some([_, width])) => i64::try_from(width).ok(),
                (Some(Axis::C), _) => i64::try_from(channels).ok(),
                _ => None,
            };
            let whole = start == 0 && end >= known.unwrap_or(i64::from(i32::MAX));
            match (place, step) {
                (Some(Axis::H), Some(step)) if whole => stripe = [step, stripe.last().copied().unwrap_or(1)],
                (Some(Axis::W), Some(step)) if whole => stripe = [stripe.first().copied().unwrap_or(1), step],
                (Some(_), Some(1)) if whole => {}
                _ => return Err(node.graph_fault("cuts a part of its input")),
            }
        }
        if stripe == [1; 2] {
            return Ok(x);
        }
        let [tall, wide] = stripe;
        let size = output(size, |axis, n| Some(n.div_ceil(if axis == 0 { tall } else { wide })));
        let cell = self.push_sized(node, CellKind::StridedSlice(stripe), &[x.cell], channels, size)?;
        Ok(View { cell, ..x })
    }
}

impl From<Op> for CellKind {
    fn from(op: Op) -> CellKind {
        CellKind::Op(op, Tensors::default())
    }
}
