//! Reference implementation of every operation: naive loops over `[N, C, H, W]`, used as the oracle of the tests.
//!
//! Sums are accumulated in `f64`, so that tests measure the error of a kernel against the true value.

use crate::error::{Error, check_len, product};
use crate::pool::{AvgPoolSpec, PoolSpec};
use crate::shape::{ConvShape, ConvWeights};

/// Returns the convolution `[N, c_out, H', W']` of `input` `[N, C, H, W]` with zero padding.
///
/// # Errors
///
/// Invalid shape, or slice lengths that do not match `dims` and `shape`.
pub fn conv(
    shape: &ConvShape,
    weights: ConvWeights,
    dims: [usize; 4],
    input: &[f32],
) -> Result<Vec<f32>, Error> {
    let [n, c, h, w] = dims;
    let [oh, ow] = shape.output_hw([h, w])?;
    check_len("input", input.len(), product("input length", &dims)?)?;
    check_len("weights", weights.weights.len(), shape.weight_len()?)?;
    check_len("input channels", c, shape.c_in)?;
    let [kh, kw] = shape.kernel;
    let (ig, og) = (shape.c_in / shape.groups, shape.c_out / shape.groups);
    let mut output = Vec::with_capacity(product("output length", &[n, shape.c_out, oh, ow])?);
    for image in 0..n {
        for oc in 0..shape.c_out {
            for (oy, ox) in pixels(oh, ow) {
                let mut sum = weights.bias.map_or(0.0, |bias| f64::from(bias[oc]));
                for ic in 0..ig {
                    let plane = (image * c + oc / og * ig + ic) * h;
                    for (ky, kx) in pixels(kh, kw) {
                        let y =
                            (oy * shape.stride[0] + ky * shape.dilation[0]).wrapping_sub(shape.padding[0]);
                        let x =
                            (ox * shape.stride[1] + kx * shape.dilation[1]).wrapping_sub(shape.padding[1]);
                        if y < h && x < w {
                            let weight = weights.weights[((oc * ig + ic) * kh + ky) * kw + kx];
                            sum += f64::from(weight) * f64::from(input[(plane + y) * w + x]);
                        }
                    }
                }
                output.push(sum as f32);
            }
        }
    }
    Ok(output)
}

/// Returns the max pool of `[N, C, H, W]`. As in PyTorch, padding is −∞ and NaN propagates.
pub fn max_pool(spec: &PoolSpec, dims: [usize; 4], input: &[f32]) -> Result<Vec<f32>, Error> {
    let fold = |values: &mut dyn Iterator<Item = f32>, _: [usize; 2]| {
        let larger = |max: f32, x: f32| if x > max || x.is_nan() { x } else { max };
        values.fold(f32::NEG_INFINITY, |max, x| if max.is_nan() { max } else { larger(max, x) })
    };
    windows(spec, dims, input, &fold)
}

/// Returns the average pool of `[N, C, H, W]` with PyTorch's divisors.
pub fn avg_pool(pool: &AvgPoolSpec, dims: [usize; 4], input: &[f32]) -> Result<Vec<f32>, Error> {
    let [_, _, h, w] = dims;
    let fold = |values: &mut dyn Iterator<Item = f32>, [oy, ox]: [usize; 2]| {
        let divisor = pool.divisor(0, oy, h) * pool.divisor(1, ox, w);
        (values.map(f64::from).sum::<f64>() / divisor as f64) as f32
    };
    windows(&pool.window, dims, input, &fold)
}

/// Returns `x·Wᵀ + b` `[N, features out]` for `x` `[N, features in]` and `W` `[features out, features in]`.
pub fn linear(weights: ConvWeights, features_in: usize, input: &[f32]) -> Result<Vec<f32>, Error> {
    let features_out = weights.weights.len() / features_in.max(1);
    let batch = input.len() / features_in.max(1);
    let shape = ConvShape::pointwise(features_in, features_out);
    conv(&shape, weights, [batch, features_in, 1, 1], input)
}

type Fold<'a> = &'a dyn Fn(&mut dyn Iterator<Item = f32>, [usize; 2]) -> f32;

fn windows(spec: &PoolSpec, dims: [usize; 4], input: &[f32], fold: Fold) -> Result<Vec<f32>, Error> {
    let [n, c, h, w] = dims;
    let [oh, ow] = spec.output_hw([h, w])?;
    check_len("input", input.len(), product("input length", &dims)?)?;
    let mut output = Vec::new();
    for index in 0..n * c {
        let plane = &input[index * h * w..][..h * w];
        for (oy, ox) in pixels(oh, ow) {
            let mut inside = pixels(spec.kernel[0], spec.kernel[1]).filter_map(|(ky, kx)| {
                let y = (oy * spec.stride[0] + ky).wrapping_sub(spec.padding[0]);
                let x = (ox * spec.stride[1] + kx).wrapping_sub(spec.padding[1]);
                (y < h && x < w).then(|| plane[y * w + x])
            });
            output.push(fold(&mut inside, [oy, ox]));
        }
    }
    Ok(output)
}

fn pixels(h: usize, w: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..h).flat_map(move |y| (0..w).map(move |x| (y, x)))
}
