//! The operations of a graph on candle tensors, `[N, C, H, W]`, where candle has none of its own.

use candle_core::{Result, Tensor};

use crate::graph::{
    AdaptiveAvgPool, AvgPool, Blur, ChannelConv, Conv, Divisor, Pad, PadChannels, Pool, Subsample,
};

/// A convolution with any strides, paddings and dilations that are equal or not along the two axes.
pub(crate) fn conv(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, conv: &Conv) -> Result<Tensor> {
    let [stride_h, stride_w] = conv.stride;
    let [dilation, dilation_w] = conv.dilation;
    if dilation != dilation_w {
        candle_core::bail!("dilations {:?} differ between the axes", conv.dilation);
    }
    // candle pads and strides both axes alike; what differs is done before and after.
    let [pad_h, pad_w] = conv.padding;
    let (x, padding) = match pad_h == pad_w {
        true => (x.clone(), pad_h),
        false => (x.pad_with_zeros(2, pad_h, pad_h)?.pad_with_zeros(3, pad_w, pad_w)?, 0),
    };
    let stride = if stride_h == stride_w { stride_h } else { 1 };
    let mut y = x.conv2d(weight, padding, stride, dilation, conv.groups)?;
    if stride_h != stride_w {
        y = every(&every(&y, 2, stride_h)?, 3, stride_w)?;
    }
    match bias {
        Some(bias) => y.broadcast_add(&bias.reshape((1, conv.out_channels, 1, 1))?),
        None => Ok(y),
    }
}

/// The weight `[out, in / groups, height, width]` shifted and scaled to mean 0 and variance 1 per output channel.
pub(crate) fn standardize(weight: &Tensor, eps: f64) -> Result<Tensor> {
    let flat = weight.flatten_from(1)?;
    let centred = flat.broadcast_sub(&flat.mean_keepdim(1)?)?;
    let deviation = (centred.sqr()?.mean_keepdim(1)? + eps)?.sqrt()?;
    centred.broadcast_div(&deviation)?.reshape(weight.shape())
}

/// The maximum over windows; padding counts as minus infinity.
pub(crate) fn max_pool(x: &Tensor, pool: &Pool) -> Result<Tensor> {
    let mut x = x.clone();
    for (axis, dim) in [(0, 2), (1, 3)] {
        let pad = pool.padding[axis];
        if pad > 0 {
            let mut shape = x.dims().to_vec();
            shape[dim] = pad;
            let border = Tensor::full(f32::NEG_INFINITY, shape, x.device())?.to_dtype(x.dtype())?;
            x = Tensor::cat(&[&border, &x, &border], dim)?;
        }
    }
    x.max_pool2d_with_stride((pool.kernel[0], pool.kernel[1]), (pool.stride[0], pool.stride[1]))
}

/// The mean over windows, as sums along one axis after the other: candle's own has no padding and, for windows that
/// overlap, no gradient.
pub(crate) fn avg_pool(x: &Tensor, pool: &AvgPool) -> Result<Tensor> {
    let mut x = x.clone();
    for (axis, dim) in [(0, 2), (1, 3)] {
        let size = x.dim(dim)?;
        let Some(output) = pool.output(axis, size) else {
            candle_core::bail!("no window fits {size} pixels")
        };
        let taps = vec![1.0; pool.window.kernel[axis]];
        let padded =
            pad_to(&x, dim, pool.window.padding[axis], (output - 1) * pool.window.stride[axis] + taps.len())?;
        let sum = weighted_sum(&padded, dim, &taps, pool.window.stride[axis], output)?;
        let counts: Vec<f32> = (0..output).map(|i| 1.0 / pool.count(axis, size, i) as f32).collect();
        let uniform = counts.iter().all(|c| *c == counts[0]);
        x = match (pool.window.padding[axis] == 0 || pool.divisor == Divisor::Window) && uniform {
            true => (sum * f64::from(counts[0]))?,
            false => {
                let mut shape = [1; 4];
                shape[dim] = output;
                sum.broadcast_mul(&Tensor::from_vec(counts, &shape, x.device())?.to_dtype(x.dtype())?)?
            }
        };
    }
    Ok(x)
}

/// The mean over windows that divide the input: a product with a matrix of window weights along each axis.
pub(crate) fn adaptive_avg_pool(x: &Tensor, pool: &AdaptiveAvgPool) -> Result<Tensor> {
    let (_, _, h, w) = x.dims4()?;
    if [h, w] == pool.output {
        return Ok(x.clone());
    }
    let matrix = |axis: usize, size: usize| -> Result<Tensor> {
        let rows = (0..pool.output[axis]).flat_map(|i| {
            let [start, end] = pool.window(axis, size, i);
            (0..size).map(move |j| if (start..end).contains(&j) { 1.0 / (end - start) as f32 } else { 0.0 })
        });
        Tensor::from_vec(rows.collect::<Vec<_>>(), (pool.output[axis], size), x.device())?.to_dtype(x.dtype())
    };
    let over_width = x.contiguous()?.broadcast_matmul(&matrix(1, w)?.t()?)?;
    matrix(0, h)?.broadcast_matmul(&over_width)
}

/// The binomial blur with one reflected pixel on each side.
pub(crate) fn blur(x: &Tensor, blur: &Blur) -> Result<Tensor> {
    let mut x = x.clone();
    for dim in [2, 3] {
        let size = x.dim(dim)?;
        let Some(output) = blur.output(size) else { candle_core::bail!("no pixel to reflect") };
        let padded = Tensor::cat(&[&x.narrow(dim, 1, 1)?, &x, &x.narrow(dim, size - 2, 1)?], dim)?;
        x = weighted_sum(&padded, dim, &[0.25, 0.5, 0.25], blur.stride, output)?;
    }
    Ok(x)
}

/// `x` along `dim` with `before` zeros in front and as many behind as make it `size` long, if it is shorter.
fn pad_to(x: &Tensor, dim: usize, before: usize, size: usize) -> Result<Tensor> {
    let after = size.saturating_sub(before + x.dim(dim)?);
    match before + after {
        0 => Ok(x.clone()),
        _ => x.pad_with_zeros(dim, before, after),
    }
}

/// `output` sums of neighbouring slices along `dim`, each weighted, the windows `stride` apart.
fn weighted_sum(x: &Tensor, dim: usize, weights: &[f64], stride: usize, output: usize) -> Result<Tensor> {
    let mut sum: Option<Tensor> = None;
    for (i, &weight) in weights.iter().enumerate() {
        let slice = every(&x.narrow(dim, i, (output - 1) * stride + 1)?, dim, stride)?;
        let slice = if weight == 1.0 { slice } else { (slice * weight)? };
        sum = Some(match sum {
            Some(sum) => (sum + slice)?,
            None => slice,
        });
    }
    sum.ok_or_else(|| candle_core::Error::Msg("a window of no pixels".into()))
}

/// Every `stride`-th pixel along both axes.
pub(crate) fn subsample(x: &Tensor, subsample: &Subsample) -> Result<Tensor> {
    every(&every(x, 2, subsample.stride)?, 3, subsample.stride)
}

/// Zero channels before and after.
pub(crate) fn pad_channels(x: &Tensor, pad: &PadChannels) -> Result<Tensor> {
    x.pad_with_zeros(1, pad.before, pad.after)
}

/// Zero pixels around.
pub(crate) fn pad(x: &Tensor, pad: &Pad) -> Result<Tensor> {
    x.pad_with_zeros(2, pad.before[0], pad.after[0])?.pad_with_zeros(3, pad.before[1], pad.after[1])
}

/// A convolution over the channels of `x` `[N, C]`; the weight is `[1, 1, kernel]`.
pub(crate) fn channel_conv(x: &Tensor, weight: &Tensor, conv: &ChannelConv) -> Result<Tensor> {
    x.unsqueeze(1)?.conv1d(weight, conv.kernel / 2, 1, 1, 1)?.squeeze(1)
}

/// `x` `[N, C, H, W]`, each channel multiplied by its number in `gate` `[N, C]`.
pub(crate) fn scale(x: &Tensor, gate: &Tensor) -> Result<Tensor> {
    x.broadcast_mul(&gate.unsqueeze(2)?.unsqueeze(3)?)
}

/// Every `step`-th slice along `dim`, from the first.
fn every(x: &Tensor, dim: usize, step: usize) -> Result<Tensor> {
    if step == 1 {
        return Ok(x.clone());
    }
    let indices: Vec<u32> = (0..x.dim(dim)? as u32).step_by(step).collect();
    x.contiguous()?.index_select(&Tensor::new(indices, x.device())?, dim)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::Rounding;
    use candle_core::{Device, Var};

    #[test]
    fn padding_never_wins_a_max_pool() {
        let x = Tensor::full(-1f32, (1, 1, 3, 3), &Device::Cpu).unwrap();
        let pool = Pool { padding: [1; 2], ..Pool::square(3, 2) };
        let y = max_pool(&x, &pool).unwrap();
        assert_eq!(y.dims(), [1, 1, 2, 2]);
        assert_eq!(y.flatten_all().unwrap().to_vec1::<f32>().unwrap(), [-1.0; 4]);
    }

    #[test]
    fn axes_may_differ() {
        let x = Tensor::arange(0f32, 2.0 * 5.0 * 6.0, &Device::Cpu).unwrap().reshape((1, 2, 5, 6)).unwrap();
        let w = Tensor::ones((1, 2, 1, 3), candle_core::DType::F32, &Device::Cpu).unwrap();
        let spec = Conv { kernel: [1, 3], padding: [0, 1], stride: [2, 1], ..Conv::square(2, 1, 1) };
        let y = conv(&x, &w, None, &spec).unwrap();
        assert_eq!(y.dims(), [1, 1, 3, 6]);
        // Row 2, column 0: elements 12 and 13 of the first channel, 42 and 43 of the second.
        assert_eq!(y.flatten_all().unwrap().to_vec1::<f32>().unwrap()[6], (12 + 13 + 42 + 43) as f32);
    }

    fn rows(y: &Tensor) -> Vec<Vec<f32>> {
        y.squeeze(0).unwrap().squeeze(0).unwrap().to_vec2().unwrap()
    }

    fn counting(h: usize, w: usize) -> Tensor {
        Tensor::arange(0f32, (h * w) as f32, &Device::Cpu).unwrap().reshape((1, 1, h, w)).unwrap()
    }

    #[test]
    fn means_divide_by_what_they_are_told() {
        let check = |rounding, divisor, padding, expected: Vec<Vec<f32>>| {
            let window = Pool { padding: [padding; 2], ..Pool::square(2, 2) };
            let y = avg_pool(&counting(3, 3), &AvgPool { window, rounding, divisor }).unwrap();
            assert_eq!(rows(&y), expected);
        };
        check(Rounding::Floor, Divisor::Window, 0, vec![vec![2.0]]);
        check(Rounding::Ceil, Divisor::Pixels, 0, vec![vec![2.0, 3.5], vec![6.5, 8.0]]);
        check(Rounding::Floor, Divisor::Window, 1, vec![vec![0.0, 0.75], vec![2.25, 6.0]]);
        check(Rounding::Floor, Divisor::Pixels, 1, vec![vec![0.0, 1.5], vec![4.5, 6.0]]);
    }

    #[test]
    fn blurring_reflects_the_border() {
        let y = blur(&counting(3, 4), &Blur { stride: 2 }).unwrap();
        // Along the width 0 1 2 3 becomes (1 + 0 + 1) / 4 and 2; along the height 0 4 8 becomes 2 and 6.
        assert_eq!(rows(&y), [[2.5, 4.0], [6.5, 8.0]]);
    }

    #[test]
    fn adaptive_means_overlap_where_pixels_are_few() {
        let y = adaptive_avg_pool(&counting(1, 3), &AdaptiveAvgPool { output: [1, 2] }).unwrap();
        assert_eq!(rows(&y), [[0.5, 1.5]]);
    }

    #[test]
    fn means_and_blurs_have_gradients() {
        let x = Var::from_tensor(&counting(4, 4)).unwrap();
        let window = Pool { padding: [1; 2], ..Pool::square(3, 1) };
        let pool = AvgPool { window, rounding: Rounding::Floor, divisor: Divisor::Window };
        let y = blur(&avg_pool(&x, &pool).unwrap(), &Blur { stride: 2 }).unwrap();
        let gradients = y.sum_all().unwrap().backward().unwrap();
        assert_eq!(gradients.get(&x).unwrap().dims(), [1, 1, 4, 4]);
    }
}
