//! Sliding windows of convolutions and pools: kernel, stride, dilation and padding attributes.

use resnet_model::graph::{Conv, Pad, PoolSpec};

use super::proto::NodeProto;
use crate::error::Fault;

/// Sliding window of a convolution or pool.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Window {
    pub(crate) kernel: [usize; 2],
    pub(crate) stride: [usize; 2],
    pub(crate) dilation: [usize; 2],
    /// Padding at the top and left.
    pub(crate) before: [usize; 2],
    /// Padding at the bottom and right.
    pub(crate) after: [usize; 2],
}

impl Window {
    /// Returns the window of `node`; `size` is the input size, needed for SAME padding.
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
                    _ => {
                        return Err(node.graph_fault(format!(
                            "invalid pads {list:?}, expected four non-negative values"
                        )));
                    }
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
                        node.graph_fault("SAME padding requires a fixed image size; export with one")
                    })?;
                    let (floor, ceil) = (total.div_euclid(2), total.div_ceil(2));
                    (*before, *after) = if same == "SAME_UPPER" { (floor, ceil) } else { (ceil, floor) };
                }
            }
            other => {
                return Err(
                    node.graph_fault(format!("unsupported auto_pad `{}`", resnet_model::escape(other)))
                );
            }
        }
        Ok(window)
    }

    pub(crate) fn is_symmetric(&self) -> bool {
        self.before == self.after
    }

    /// Returns the padding as a separate operation.
    pub(crate) fn pad(&self) -> Pad {
        Pad { before: self.before, after: self.after }
    }

    /// Returns the window without padding.
    pub(crate) fn without_padding(self) -> Window {
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

/// Returns kernel, stride and dilation of one axis.
fn window_axis(kernel: [usize; 2], stride: [usize; 2], dilation: [usize; 2], axis: usize) -> [usize; 3] {
    let at = |pair: [usize; 2]| pair.get(axis).copied().unwrap_or(1);
    [at(kernel), at(stride), at(dilation)]
}

/// Returns the total SAME padding along an axis, or `None` if it depends on an unknown size.
fn same_padding([kernel, stride, dilation]: &[usize; 3], size: Option<usize>) -> Option<usize> {
    let span = kernel.saturating_sub(1).saturating_mul(*dilation).saturating_add(1);
    let size = match (stride, size) {
        (1, _) => return Some(span.saturating_sub(1)),
        (_, size) => size?,
    };
    let windows = size.div_ceil(*stride);
    Some(windows.saturating_sub(1).saturating_mul(*stride).saturating_add(span).saturating_sub(size))
}

/// Returns the output size if the input size is known.
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
    fn same_padding_matches_tensorflow() {
        // 7×7 with stride 2 on 224: 5 pixels, 2 before and 3 after.
        assert_eq!(same_padding(&[7, 2, 1], Some(224)), Some(5));
        assert_eq!(same_padding(&[3, 2, 1], Some(112)), Some(1));
        assert_eq!(same_padding(&[3, 1, 1], None), Some(2));
        assert_eq!(same_padding(&[1, 2, 1], Some(56)), Some(0));
        assert_eq!(same_padding(&[3, 2, 1], None), None);
    }
}
