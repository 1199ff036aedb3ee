use crate::error::{Error, product};

/// Shape of a convolution without its weights and input size; pairs are `[vertical, horizontal]`.
///
/// ```
/// use resnet_kernels::ConvShape;
/// let shape = ConvShape { kernel: [3, 3], padding: [1, 1], stride: [2, 2], ..ConvShape::pointwise(64, 128) };
/// assert_eq!(shape.output_hw([57, 56]).unwrap(), [29, 28]);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConvShape {
    /// Input channels of all groups.
    pub c_in: usize,
    /// Output channels of all groups.
    pub c_out: usize,
    /// Kernel size.
    pub kernel: [usize; 2],
    /// Stride in pixels.
    pub stride: [usize; 2],
    /// Zero padding on either side in pixels.
    pub padding: [usize; 2],
    /// Dilation: distance between neighboring kernel taps in pixels.
    pub dilation: [usize; 2],
    /// Number of groups: 1 for a regular convolution, `c_in` for a depthwise one.
    pub groups: usize,
}

/// Weights `[c_out, c_in / groups, kernel height, kernel width]` and bias `[c_out]` of a convolution.
#[derive(Clone, Copy, Debug)]
pub struct ConvWeights<'a> {
    /// Weights in PyTorch's order.
    pub weights: &'a [f32],
    /// Bias, if any.
    pub bias: Option<&'a [f32]>,
}

impl ConvShape {
    /// Returns the shape of a 1×1 convolution; use struct update syntax for other shapes.
    pub const fn pointwise(c_in: usize, c_out: usize) -> Self {
        Self { c_in, c_out, kernel: [1, 1], stride: [1, 1], padding: [0, 0], dilation: [1, 1], groups: 1 }
    }

    /// Checks the shape.
    ///
    /// # Errors
    ///
    /// A size is zero or overflows, or the channels are not divisible by the groups.
    pub fn check(&self) -> Result<(), Error> {
        let sizes = [
            ("input channels", self.c_in),
            ("output channels", self.c_out),
            ("kernel height", self.kernel[0]),
            ("kernel width", self.kernel[1]),
            ("vertical stride", self.stride[0]),
            ("horizontal stride", self.stride[1]),
            ("vertical dilation", self.dilation[0]),
            ("horizontal dilation", self.dilation[1]),
            ("groups", self.groups),
        ];
        if let Some(&(what, _)) = sizes.iter().find(|(_, size)| *size == 0) {
            return Err(Error::Zero { what });
        }
        for (what, channels) in [("input channels", self.c_in), ("output channels", self.c_out)] {
            if !channels.is_multiple_of(self.groups) {
                return Err(Error::Groups { what, channels, groups: self.groups });
            }
        }
        // Packing rounds channels up to 16, and Winograd stores 36 values per kernel: reserve room for both.
        let padded = |channels: usize| {
            channels.checked_next_multiple_of(16).ok_or(Error::Overflow { what: "channels" })
        };
        product(
            "weights length",
            &[padded(self.c_in)?, padded(self.c_out)?, self.kernel[0], self.kernel[1], 36],
        )?;
        self.extent(0)?;
        self.extent(1)?;
        Ok(())
    }

    /// Returns the number of weights, `c_out × c_in / groups × kernel height × kernel width`.
    ///
    /// # Errors
    ///
    /// The shape is invalid.
    pub fn weight_len(&self) -> Result<usize, Error> {
        self.check()?;
        product("weights length", &[self.c_out, self.c_in / self.groups, self.kernel[0], self.kernel[1]])
    }

    /// Returns the output `[height, width]` for an input `[height, width]`.
    ///
    /// # Errors
    ///
    /// The shape is invalid, or the padded input is smaller than the dilated kernel.
    pub fn output_hw(&self, input: [usize; 2]) -> Result<[usize; 2], Error> {
        self.check()?;
        let along = |axis: usize| {
            let (window, padding) = (self.extent(axis)?, self.padding[axis]);
            let spare = padded_spare(axis, input[axis], padding, window)?;
            Ok(spare / self.stride[axis] + 1)
        };
        Ok([along(0)?, along(1)?])
    }

    /// Returns the output shape `[N, c_out, H', W']` for an input `[N, C, H, W]`.
    ///
    /// # Errors
    ///
    /// As for [`ConvShape::output_hw`]; also if the number of channels differs from `c_in` or the batch is empty.
    pub fn output_dims(&self, input: [usize; 4]) -> Result<[usize; 4], Error> {
        let [n, c, h, w] = input;
        if c != self.c_in {
            return Err(Error::Shape { what: "input", found: input, expected: [n, self.c_in, h, w] });
        }
        if n == 0 {
            return Err(Error::Zero { what: "batch" });
        }
        let [oh, ow] = self.output_hw([h, w])?;
        Ok([n, self.c_out, oh, ow])
    }

    /// Returns the number of multiply-adds for `batch` images of `[height, width]`.
    ///
    /// # Errors
    ///
    /// As for [`ConvShape::output_hw`].
    pub fn macs(&self, batch: usize, input: [usize; 2]) -> Result<f64, Error> {
        let [h, w] = self.output_hw(input)?;
        Ok(batch as f64 * h as f64 * w as f64 * self.weight_len()? as f64)
    }

    /// Returns the extent of the dilated kernel along an axis.
    fn extent(&self, axis: usize) -> Result<usize, Error> {
        let taps = self.kernel[axis] - 1;
        let extent = self.dilation[axis].checked_mul(taps).and_then(|reach| reach.checked_add(1));
        extent.ok_or(Error::Overflow { what: "dilated kernel" })
    }
}

/// Returns the size of the padded input minus the window.
pub(crate) fn padded_spare(axis: usize, size: usize, padding: usize, window: usize) -> Result<usize, Error> {
    let axis = ["height", "width"][axis];
    if size == 0 {
        return Err(Error::Zero { what: axis });
    }
    let padded = padding.checked_mul(2).and_then(|both| both.checked_add(size));
    let padded = padded.ok_or(Error::Overflow { what: "padded input" })?;
    padded.checked_sub(window).ok_or(Error::TooSmall { axis, size, padding, window })
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIT: ConvShape = ConvShape::pointwise(64, 64);

    #[test]
    fn output_sizes() {
        let check = |shape: ConvShape, input, output| {
            assert_eq!(shape.output_hw(input).unwrap(), output, "{shape:?}")
        };
        check(UNIT, [56, 57], [56, 57]);
        check(ConvShape { kernel: [7, 7], stride: [2, 2], padding: [3, 3], ..UNIT }, [224, 225], [112, 113]);
        check(ConvShape { kernel: [3, 3], stride: [2, 2], padding: [1, 1], ..UNIT }, [1, 2], [1, 1]);
        check(ConvShape { kernel: [1, 7], padding: [0, 3], ..UNIT }, [17, 17], [17, 17]);
        check(ConvShape { kernel: [3, 3], dilation: [4, 2], padding: [4, 2], ..UNIT }, [28, 28], [28, 28]);
        check(ConvShape { kernel: [3, 3], ..UNIT }, [3, 3], [1, 1]);
    }

    #[test]
    fn invalid_shapes_are_rejected() {
        let check = |shape: ConvShape, input, message: &str| {
            assert_eq!(shape.output_hw(input).unwrap_err().to_string(), message, "{shape:?}");
        };
        check(ConvShape { stride: [0, 1], ..UNIT }, [8, 8], "vertical stride is zero, expected at least 1");
        check(ConvShape { groups: 0, ..UNIT }, [8, 8], "groups is zero, expected at least 1");
        check(ConvShape { groups: 3, ..UNIT }, [8, 8], "64 input channels are not divisible by 3 groups");
        check(
            ConvShape { groups: 64, c_out: 96, ..UNIT },
            [8, 8],
            "96 output channels are not divisible by 64 groups",
        );
        check(UNIT, [8, 0], "width is zero, expected at least 1");
        check(
            ConvShape { kernel: [7, 7], padding: [1, 1], ..UNIT },
            [4, 9],
            "input height 4 with padding 1 is smaller than the kernel extent 7",
        );
        check(ConvShape { c_in: usize::MAX, ..UNIT }, [8, 8], "channels overflows the address space");
        check(
            ConvShape { c_in: 1 << 40, c_out: 1 << 40, ..UNIT },
            [8, 8],
            "weights length overflows the address space",
        );
        check(
            ConvShape { padding: [usize::MAX, 0], ..UNIT },
            [8, 8],
            "padded input overflows the address space",
        );
        check(
            ConvShape { kernel: [3, 3], dilation: [usize::MAX, 1], ..UNIT },
            [8, 8],
            "dilated kernel overflows the address space",
        );
    }
}
