//! Convolution: on the CPU by our kernels, elsewhere by candle's.

use candle_core::{CpuStorage, CustomOp2, DType, Device, Layout, Result, Shape, Tensor, WithDType};
use rayon::prelude::*;
use resnet_kernels::{ConvShape, Isa, PlanarConv, Precision};
use std::sync::OnceLock;

use super::real::{contiguous, is_ours, values};
use super::{every, standardize};
use crate::graph::{Conv, StdConv};

/// A convolution with any strides, paddings and dilations that are equal or not along the two axes.
pub(crate) fn conv(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, conv: &Conv) -> Result<Tensor> {
    with_precision(x, weight, bias, conv, Precision::F32)
}

/// The same with a standardised weight, and as precise as `f32` allows: BiT's networks make every error larger.
pub(crate) fn std_conv(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, std: &StdConv) -> Result<Tensor> {
    with_precision(x, &standardize(weight, std.eps)?, bias, &std.conv, Precision::Exact)
}

fn with_precision(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    conv: &Conv,
    precision: Precision,
) -> Result<Tensor> {
    let y = match is_ours(x) && x.dtype() == weight.dtype() {
        true => x.contiguous()?.apply_op2(&weight.contiguous()?, CpuConv(*conv, precision))?,
        false => composed(x, weight, conv)?,
    };
    match bias {
        Some(bias) => y.broadcast_add(&bias.reshape((1, conv.out_channels, 1, 1))?),
        None => Ok(y),
    }
}

/// The convolution by candle, which pads and strides both axes alike: what differs is done before and after.
fn composed(x: &Tensor, weight: &Tensor, conv: &Conv) -> Result<Tensor> {
    let [stride_h, stride_w] = conv.stride;
    let [dilation, dilation_w] = conv.dilation;
    if dilation != dilation_w {
        candle_core::bail!("dilations {:?} differ between the axes", conv.dilation);
    }
    if x.device().is_metal() && weight.track_op() && x.dim(0)? > 1 {
        candle_core::bail!(
            "candle's gradients of convolution weights are wrong on Metal for more than one image \
             (candle#3836); train on the CPU or freeze the convolutions"
        );
    }
    let [pad_h, pad_w] = conv.padding;
    let (x, padding) = match pad_h == pad_w {
        true => (x.clone(), pad_h),
        false => (x.pad_with_zeros(2, pad_h, pad_h)?.pad_with_zeros(3, pad_w, pad_w)?, 0),
    };
    let stride = if stride_h == stride_w { stride_h } else { 1 };
    // Pixels that no window reaches would make candle's gradient smaller than the input.
    let x = match x.track_op() && stride > 1 {
        true => trimmed(&x, conv, padding, stride)?,
        false => x,
    };
    let y = x.conv2d(weight, padding, stride, dilation, conv.groups)?;
    match stride_h == stride_w {
        true => Ok(y),
        false => every(&every(&y, 2, stride_h)?, 3, stride_w),
    }
}

/// `x` without the last rows and columns that no window of a strided convolution reaches, padding made explicit.
fn trimmed(x: &Tensor, conv: &Conv, padding: usize, stride: usize) -> Result<Tensor> {
    let mut x = x.clone();
    for (axis, dim) in [(0, 2), (1, 3)] {
        let size = x.dim(dim)?;
        let span = conv.dilation[axis] * (conv.kernel[axis] - 1) + 1;
        let Some(spare) = (size + 2 * padding).checked_sub(span) else {
            candle_core::bail!("a window of {span} pixels does not fit {size} with a padding of {padding}")
        };
        let unused = spare % stride;
        if unused > padding {
            x = x.narrow(dim, 0, size + padding - unused)?;
        }
    }
    Ok(x)
}

/// The threads that all convolutions of the process share; as many as rayon has.
pub(crate) fn threads() -> Result<&'static resnet_kernels::ThreadPool> {
    static POOL: OnceLock<std::result::Result<resnet_kernels::ThreadPool, String>> = OnceLock::new();
    let made = POOL.get_or_init(|| {
        let threads = rayon::current_num_threads().clamp(1, resnet_kernels::MAX_THREADS);
        resnet_kernels::ThreadPool::new(threads).map_err(|e| e.to_string())
    });
    made.as_ref().map_err(|e| candle_core::Error::Msg(e.clone()))
}

/// [`conv`] without bias on the CPU.
struct CpuConv(Conv, Precision);

impl CpuConv {
    fn planar(&self, input: [usize; 4]) -> Result<PlanarConv<'static>> {
        Ok(PlanarConv { shape: self.shape(), input, isa: isa(), precision: self.1, pool: threads()? })
    }

    fn shape(&self) -> ConvShape {
        super::shape_of(&self.0)
    }

    /// The naive loops of the definition, in rows. For each pair of an output row and an input row that a tap joins,
    /// `row` is called with the weight's index, the offsets of both rows, and the first output pixel, the first input
    /// pixel and the number of pixels.
    fn rows(&self, input: [usize; 4], image: usize, oc: usize, mut row: impl FnMut(Row)) {
        let shape = self.shape();
        let [_, c, h, w] = input;
        let Ok([oh, ow]) = shape.output_hw([h, w]) else { return };
        let (ig, og) = (shape.c_in / shape.groups, shape.c_out / shape.groups);
        let [kh, kw] = shape.kernel;
        for weight in 0..ig * kh * kw {
            let (ic, ky, kx) = (weight / (kh * kw), weight / kw % kh, weight % kw);
            let [py, px] = shape.padding;
            let (dy, dx) = (ky * shape.dilation[0], kx * shape.dilation[1]);
            let [sy, sx] = shape.stride;
            let first = px.saturating_sub(dx).div_ceil(sx);
            let last = (w + px).saturating_sub(dx + 1) / sx;
            if w + px < dx + 1 || last.min(ow - 1) < first {
                continue;
            }
            let pixels = last.min(ow - 1) - first + 1;
            for oy in 0..oh {
                let y = (oy * sy + dy).wrapping_sub(py);
                if y < h {
                    let plane = (image * c + oc / og * ig + ic) * h;
                    row(Row {
                        weight: oc * ig * kh * kw + weight,
                        output: oy * ow + first,
                        input: (plane + y) * w + first * sx + dx - px,
                        pixels,
                    });
                }
            }
        }
    }
}

/// One call of [`CpuConv::rows`].
struct Row {
    weight: usize,
    /// In the output plane.
    output: usize,
    /// In the whole input.
    input: usize,
    pixels: usize,
}

/// The instruction set of all our kernels.
pub(crate) fn isa() -> Isa {
    static ISA: OnceLock<Isa> = OnceLock::new();
    *ISA.get_or_init(Isa::best)
}

fn kernel_error(error: resnet_kernels::Error) -> candle_core::Error {
    candle_core::Error::Msg(error.to_string())
}

impl CpuConv {
    fn forward_f64(&self, input: [usize; 4], output: [usize; 4], x: &[f64], weight: &[f64]) -> Vec<f64> {
        let (stride, area) = (self.0.stride[1], output[2] * output[3]);
        let mut y = vec![0.0; output.iter().product()];
        y.par_chunks_mut(area).enumerate().for_each(|(index, plane)| {
            self.rows(input, index / output[1], index % output[1], |row| {
                let from = x[row.input..].iter().step_by(stride);
                let to = plane[row.output..][..row.pixels].iter_mut();
                to.zip(from).for_each(|(to, from)| *to += weight[row.weight] * from);
            });
        });
        y
    }

    fn grad_input_f64(
        &self,
        input: [usize; 4],
        output: [usize; 4],
        grad: &[f64],
        weight: &[f64],
    ) -> Vec<f64> {
        let (stride, area) = (self.0.stride[1], output[2] * output[3]);
        let mut gx = vec![0.0; input.iter().product()];
        for index in 0..output[0] * output[1] {
            let plane = &grad[index * area..][..area];
            self.rows(input, index / output[1], index % output[1], |row| {
                let to = gx[row.input..].iter_mut().step_by(stride);
                let from = plane[row.output..][..row.pixels].iter();
                to.zip(from).for_each(|(to, from)| *to += weight[row.weight] * from);
            });
        }
        gx
    }

    fn grad_weight_f64(&self, input: [usize; 4], output: [usize; 4], x: &[f64], grad: &[f64]) -> Vec<f64> {
        let (stride, area) = (self.0.stride[1], output[2] * output[3]);
        let mut gw = vec![0.0; self.0.weight_shape().iter().product()];
        for index in 0..output[0] * output[1] {
            let plane = &grad[index * area..][..area];
            self.rows(input, index / output[1], index % output[1], |row| {
                let x = x[row.input..].iter().step_by(stride);
                let grad = plane[row.output..][..row.pixels].iter();
                gw[row.weight] += grad.zip(x).map(|(g, x)| g * x).sum::<f64>();
            });
        }
        gw
    }
}

impl CustomOp2 for CpuConv {
    fn name(&self) -> &'static str {
        "convolution"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let input: [usize; 4] = x_layout.shape().dims4()?.into();
        let planar = self.planar(input)?;
        let output = planar.output().map_err(kernel_error)?;
        let y = match x {
            CpuStorage::F64(_) => {
                let (x, weight) = (contiguous(x, x_layout)?, contiguous(weight, weight_layout)?);
                f64::to_cpu_storage_owned(self.forward_f64(input, output, x, weight))
            }
            _ => {
                let (x, weight) = (contiguous(x, x_layout)?, contiguous(weight, weight_layout)?);
                f32::to_cpu_storage_owned(planar.forward(x, weight).map_err(kernel_error)?)
            }
        };
        Ok((y, output.to_vec().into()))
    }

    /// No gradient is computed for what needs none: the images, frozen weights.
    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let input: [usize; 4] = x.dims4()?.into();
        let planar = self.planar(input)?;
        let output = planar.output().map_err(kernel_error)?;
        let grad = grad.contiguous()?;
        let (grad, grad_layout) = grad.storage_and_layout();
        let (xs, x_layout) = x.storage_and_layout();
        let (ws, w_layout) = weight.storage_and_layout();
        let mut gradients = (None, None);
        match x.dtype() {
            DType::F64 => {
                let grad = values(&grad, grad_layout)?;
                if x.track_op() {
                    let gx = self.grad_input_f64(input, output, grad, values(&ws, w_layout)?);
                    gradients.0 = Some(tensor(gx, x)?);
                }
                if weight.track_op() {
                    let gw = self.grad_weight_f64(input, output, values(&xs, x_layout)?, grad);
                    gradients.1 = Some(tensor(gw, weight)?);
                }
            }
            _ => {
                let grad = values(&grad, grad_layout)?;
                if x.track_op() {
                    let gx = planar.grad_input(grad, values(&ws, w_layout)?).map_err(kernel_error)?;
                    gradients.0 = Some(tensor(gx, x)?);
                }
                if weight.track_op() {
                    let gw = planar.grad_weights(values(&xs, x_layout)?, grad).map_err(kernel_error)?;
                    gradients.1 = Some(tensor(gw, weight)?);
                }
            }
        }
        Ok(gradients)
    }
}

fn tensor<T: WithDType>(values: Vec<T>, like: &Tensor) -> Result<Tensor> {
    Tensor::from_vec(values, like.shape(), &Device::Cpu)
}
