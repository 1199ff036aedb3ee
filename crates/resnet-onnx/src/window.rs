//! Windows that move over an image: sizes, strides and the paddings that ONNX spells in five ways.

use resnet_model::graph::{Conv, Pad, PoolSpec};

use super::proto::NodeProto;
use crate::error::Fault;

/// A convolution's or a pool's window.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Window {
    pub(crate) kernel: [usize; 2],
    pub(crate) stride: [usize; 2],
    pub(crate) dilation: [usize; 2],
    pub(crate) before: [usize; 2],
    pub(crate) after: [usize; 2],
}

impl Window {
    /// The window of `node`, over an image of `size` if that is known.
    pub(crate) fn from_node(
        node: &NodeProto,
        kernel: [usize; 2],
        size: Option<[usize; 2]>,
    ) -> Result<Window, Fault> {
        let stride = node.pair("strides", [1; 2])?;
        let dilation = node.pair("dilations", [1; 2])?;
        let mut window = Window { kernel, stride, dilation, before: [0; 2], after: [0; 2] };
        match node.text("auto_pad").unwrap_or("NOTSET") {
            "NOTSET" | "" => {
                let Some(list) = node.ints("pads") else { return Ok(window) };
                let pad = |&v: &i64| usize::try_from(v).ok().filter(|&v| v <= 1 << 16);
                match list.iter().map(pad).collect::<Option<Vec<_>>>().as_deref() {
                    Some(&[top, left, bottom, right]) => {
                        (window.before, window.after) = ([top, left], [bottom, right]);
                    }
                    _ => return Err(node.graph_fault(format!("pads {list:?}, expected four of 0 or more"))),
                }
            }
            "VALID" => {}
            same @ ("SAME_UPPER" | "SAME_LOWER") => {
                for (axis, (before, after)) in window.before.iter_mut().zip(&mut window.after).enumerate() {
                    let total = same_padding(
                        &window_axis(kernel, stride, dilation, axis),
                        size.and_then(|s| s.get(axis).copied()),
                    );
                    let total = total.ok_or_else(|| {
                        node.graph_fault("SAME padding of an image whose size is not known")
                    })?;
                    let (less, more) = (total.div_euclid(2), total.div_ceil(2));
                    (*before, *after) = if same == "SAME_UPPER" { (less, more) } else { (more, less) };
                }
            }
            other => return Err(node.graph_fault(format!("auto_pad `{}`", resnet_model::escape(other)))),
        }
        Ok(window)
    }

    pub(crate) fn is_symmetric(&self) -> bool {
        self.before == self.after
    }

    /// The padding as an operation of its own.
    pub(crate) fn pad(&self) -> Pad {
        Pad { before: self.before, after: self.after }
    }

    /// The same window, padding left out.
    pub(crate) fn bare(self) -> Window {
        Window { before: [0; 2], after: [0; 2], ..self }
    }

    pub(crate) fn pool(&self) -> PoolSpec {
        PoolSpec { kernel: self.kernel, stride: self.stride, padding: self.before }
    }

    pub(crate) fn conv(&self, in_channels: usize, out_channels: usize, groups: usize) -> Conv {
        Conv {
            in_channels,
            out_channels,
            kernel: self.kernel,
            stride: self.stride,
            padding: self.before,
            dilation: self.dilation,
            groups,
            bias: false,
        }
    }
}

/// One axis of a window: kernel, stride, dilation.
fn window_axis(kernel: [usize; 2], stride: [usize; 2], dilation: [usize; 2], axis: usize) -> [usize; 3] {
    let at = |pair: [usize; 2]| pair.get(axis).copied().unwrap_or(1);
    [at(kernel), at(stride), at(dilation)]
}

/// The pixels that SAME adds along an axis; `None` if they depend on a size that is not known.
fn same_padding([kernel, stride, dilation]: &[usize; 3], size: Option<usize>) -> Option<usize> {
    let span = kernel.saturating_sub(1).saturating_mul(*dilation).saturating_add(1);
    let size = match (stride, size) {
        (1, _) => return Some(span.saturating_sub(1)),
        (_, size) => size?,
    };
    let windows = size.div_ceil(*stride);
    Some(windows.saturating_sub(1).saturating_mul(*stride).saturating_add(span).saturating_sub(size))
}

/// The size of a result, where that of the input is known.
pub(crate) fn output(
    size: Option<[usize; 2]>,
    axis: impl Fn(usize, usize) -> Option<usize>,
) -> Option<[usize; 2]> {
    let [height, width] = size?;
    Some([axis(0, height)?, axis(1, width)?])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_padding_is_tensorflows() {
        // 7×7 with stride 2 on 224: 5 pixels, 2 before and 3 after.
        assert_eq!(same_padding(&[7, 2, 1], Some(224)), Some(5));
        assert_eq!(same_padding(&[3, 2, 1], Some(112)), Some(1));
        assert_eq!(same_padding(&[3, 1, 1], None), Some(2));
        assert_eq!(same_padding(&[1, 2, 1], Some(56)), Some(0));
        assert_eq!(same_padding(&[3, 2, 1], None), None);
    }
}
