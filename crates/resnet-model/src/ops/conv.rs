//! Convolution: by our kernels in `f32` on the CPU, otherwise as candle operations.

use std::sync::OnceLock;

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};
use resnet_kernels::{Isa, PlanarConv, Precision};

use super::cpu::{contiguous, is_cpu_f32, tensor, values};
use super::{every, standardize};
use crate::graph::{Conv, StdConv};

/// A convolution of `x` `[N, C, H, W]`; strides, padding and dilations of the two axes may differ.
pub(crate) fn conv(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, conv: &Conv) -> Result<Tensor> {
    with_precision(x, weight, bias, conv, Precision::F32)
}

/// A convolution with a standardized weight and without Winograd: BiT's networks amplify every rounding error.
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
    let y = match is_cpu_f32(x) && is_cpu_f32(weight) {
        true => x.contiguous()?.apply_op2(&weight.contiguous()?, CpuConv(*conv, precision))?,
        false => composed(x, weight, conv)?,
    };
    match bias {
        Some(bias) => y.broadcast_add(&bias.reshape((1, conv.out_channels, 1, 1))?),
        None => Ok(y),
    }
}

/// The convolution as candle operations. candle's `conv2d` has one padding, stride and dilation for both axes; where the
/// axes differ, padding, subsampling and a weight with zeros between its taps are separate operations.
fn composed(x: &Tensor, weight: &Tensor, conv: &Conv) -> Result<Tensor> {
    let [stride_h, stride_w] = conv.stride;
    if x.device().is_metal() && weight.track_op() && x.dim(0)? > 1 {
        candle_core::bail!(
            "candle's gradients of convolution weights are wrong on Metal for more than one image \
             (candle#3836); train on the CPU or freeze the convolutions"
        );
    }
    let [dilation_h, dilation_w] = conv.dilation;
    let (weight, dilation) = match dilation_h == dilation_w {
        true => (weight.clone(), dilation_h),
        false => (dilate(&dilate(weight, 2, dilation_h)?, 3, dilation_w)?, 1),
    };
    let [pad_h, pad_w] = conv.padding;
    let (x, padding) = match pad_h == pad_w {
        true => (x.clone(), pad_h),
        false => (x.pad_with_zeros(2, pad_h, pad_h)?.pad_with_zeros(3, pad_w, pad_w)?, 0),
    };
    let stride = if stride_h == stride_w { stride_h } else { 1 };
    let (x, padding) = match x.track_op() && stride > 1 {
        true => trim(&x, conv, padding, stride)?,
        false => (x, padding),
    };
    let y = x.conv2d(&weight, padding, stride, dilation, conv.groups)?;
    match stride_h == stride_w {
        true => Ok(y),
        false => every(&every(&y, 2, stride_h)?, 3, stride_w),
    }
}

/// Returns `weight` with `dilation - 1` zeros between its taps along `dim`.
fn dilate(weight: &Tensor, dim: usize, dilation: usize) -> Result<Tensor> {
    if dilation == 1 {
        return Ok(weight.clone());
    }
    let mut shape = weight.dims().to_vec();
    shape[dim] *= dilation;
    let spread = weight.unsqueeze(dim + 1)?.pad_with_zeros(dim + 1, 0, dilation - 1)?.reshape(shape)?;
    spread.narrow(dim, 0, (weight.dim(dim)? - 1) * dilation + 1)
}

/// Returns `x` and its remaining padding such that candle's gradient of a strided convolution has the size of `x`: it
/// handles rows and columns that no window covers only if both axes have the same number within the padding.
fn trim(x: &Tensor, conv: &Conv, padding: usize, stride: usize) -> Result<(Tensor, usize)> {
    let mut unused = [0; 2];
    for (axis, unused) in unused.iter_mut().enumerate() {
        let size = x.dim(2 + axis)?;
        let span = conv.dilation[axis] * (conv.kernel[axis] - 1) + 1;
        let Some(spare) = (size + 2 * padding).checked_sub(span) else {
            candle_core::bail!(
                "input of {size} pixels with padding {padding} is smaller than the window of {span}"
            )
        };
        *unused = spare % stride;
    }
    if unused[0] == unused[1] && unused[0] <= padding {
        return Ok((x.clone(), padding));
    }
    let mut x = x.clone();
    for (axis, unused) in unused.into_iter().enumerate() {
        let (dim, size) = (2 + axis, x.dim(2 + axis)?);
        x = x.narrow(dim, 0, size - unused.saturating_sub(padding))?;
        x = x.pad_with_zeros(dim, padding, padding.saturating_sub(unused))?;
    }
    Ok((x, 0))
}

/// The thread pool of all operations of the process, with as many threads as rayon.
pub(crate) fn threads() -> Result<&'static resnet_kernels::ThreadPool> {
    static POOL: OnceLock<std::result::Result<resnet_kernels::ThreadPool, String>> = OnceLock::new();
    let pool = POOL.get_or_init(|| {
        let threads = rayon::current_num_threads().clamp(1, resnet_kernels::MAX_THREADS);
        resnet_kernels::ThreadPool::new(threads).map_err(|e| e.to_string())
    });
    pool.as_ref().map_err(|e| candle_core::Error::Msg(e.clone()))
}

/// [`conv`] without bias in `f32` on the CPU.
struct CpuConv(Conv, Precision);

impl CpuConv {
    fn planar(&self, input: [usize; 4]) -> Result<PlanarConv<'static>> {
        let shape = super::conv_shape(&self.0);
        Ok(PlanarConv { shape, input, isa: isa(), precision: self.1, pool: threads()? })
    }
}

/// The instruction set of all operations.
pub(crate) fn isa() -> Isa {
    static ISA: OnceLock<Isa> = OnceLock::new();
    *ISA.get_or_init(Isa::best)
}

fn kernel_error(error: resnet_kernels::Error) -> candle_core::Error {
    candle_core::Error::Msg(error.to_string())
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
        let (x, weight) = (contiguous(x, x_layout)?, contiguous(weight, weight_layout)?);
        let y = planar.forward(x, weight).map_err(kernel_error)?;
        Ok((CpuStorage::F32(y), output.to_vec().into()))
    }

    /// Skips the gradients of tensors that are not trained: images and frozen weights.
    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let input: [usize; 4] = x.dims4()?.into();
        let planar = self.planar(input)?;
        let grad = grad.contiguous()?;
        let (grad, grad_layout) = grad.storage_and_layout();
        let grad = values(&grad, grad_layout)?;
        let mut gradients = (None, None);
        if x.track_op() {
            let (storage, layout) = weight.storage_and_layout();
            let gx = planar.grad_input(grad, values(&storage, layout)?).map_err(kernel_error)?;
            gradients.0 = Some(tensor(gx, x.shape())?);
        }
        if weight.track_op() {
            let (storage, layout) = x.storage_and_layout();
            let gw = planar.grad_weights(values(&storage, layout)?, grad).map_err(kernel_error)?;
            gradients.1 = Some(tensor(gw, weight.shape())?);
        }
        Ok(gradients)
    }
}
