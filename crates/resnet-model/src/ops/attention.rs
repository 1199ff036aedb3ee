//! CLIP's attention pooling: the mean of all pixels attends to each pixel.

use candle_core::{D, Device, Result, Tensor};

use crate::graph::AttentionPool;

/// A fully connected layer's weight `[C, C]` and bias `[C]`.
#[derive(Debug, Clone)]
pub(crate) struct Projection {
    pub(crate) weight: Tensor,
    pub(crate) bias: Tensor,
}

/// The tensors of an [`AttentionPool`].
#[derive(Debug, Clone)]
pub(crate) struct AttentionWeights {
    /// The position embedding `[1 + rows · columns, C]` of the mean and of each pixel.
    pub(crate) position: Tensor,
    pub(crate) query: Projection,
    pub(crate) key: Projection,
    pub(crate) value: Projection,
}

/// Attention pooling of `x` `[N, C, H, W]` to `[N, C]`.
pub(crate) fn attention_pool(x: &Tensor, weights: &AttentionWeights, pool: &AttentionPool) -> Result<Tensor> {
    let (n, c, h, w) = x.dims4()?;
    let pixels = x.flatten_from(2)?;
    let mean = pixels.mean_keepdim(2)?;
    let tokens = Tensor::cat(&[&mean, &pixels], 2)?.transpose(1, 2)?;
    let tokens = tokens.broadcast_add(&positions(&weights.position, pool.grid, [h, w])?)?;
    // [N, T, C] to [N, heads, T, C / heads]
    let project = |tokens: &Tensor, by: &Projection| {
        let t = tokens.dim(1)?;
        let flat = tokens.contiguous()?.reshape((n * t, c))?;
        let y = flat.matmul(&by.weight.t()?)?.broadcast_add(&by.bias)?;
        y.reshape((n, t, pool.heads, c / pool.heads))?.transpose(1, 2)?.contiguous()
    };
    // Only the output of the first token is used, so it is the only query.
    let query = project(&tokens.narrow(1, 0, 1)?, &weights.query)?;
    let key = project(&tokens, &weights.key)?;
    let value = project(&tokens, &weights.value)?;
    let scale = 1.0 / ((c / pool.heads) as f64).sqrt();
    let scores = (query * scale)?.matmul(&key.transpose(2, 3)?.contiguous()?)?;
    candle_nn::ops::softmax(&scores, D::Minus1)?.matmul(&value)?.reshape((n, c))
}

/// Resamples a position embedding from `grid` to `to` rows and columns, as timm does for sizes other than that of training
/// (bicubic, antialiased).
fn positions(position: &Tensor, grid: [usize; 2], to: [usize; 2]) -> Result<Tensor> {
    if grid == to {
        return Ok(position.clone());
    }
    let [rows, columns] = [0, 1].map(|axis| cubic(grid[axis], to[axis]));
    let mut matrix = Vec::with_capacity(to[0] * to[1] * grid[0] * grid[1]);
    for row in &rows {
        for column in &columns {
            matrix.extend(row.iter().flat_map(|a| column.iter().map(move |b| a * b)));
        }
    }
    let matrix = Tensor::from_vec(matrix, (to[0] * to[1], grid[0] * grid[1]), &Device::Cpu)?;
    let matrix = matrix.to_dtype(position.dtype())?.to_device(position.device())?;
    let pixels = matrix.matmul(&position.narrow(0, 1, grid[0] * grid[1])?.contiguous()?)?;
    Tensor::cat(&[&position.narrow(0, 0, 1)?, &pixels], 0)
}

/// Returns the weights of `from` samples in each of `to` samples: Keys' cubic with `a = -0.5`, widened when downsampling.
fn cubic(from: usize, to: usize) -> Vec<Vec<f64>> {
    let scale = from as f64 / to as f64;
    let width = scale.max(1.0);
    let support = 2.0 * width;
    (0..to)
        .map(|i| {
            let center = scale * (i as f64 + 0.5);
            let first = (center - support + 0.5).max(0.0) as usize;
            let end = ((center + support + 0.5) as usize).min(from);
            let mut weights = vec![0.0; from];
            for (j, weight) in weights.iter_mut().enumerate().take(end).skip(first) {
                *weight = keys((j as f64 - center + 0.5) / width);
            }
            let sum: f64 = weights.iter().sum();
            weights.iter_mut().for_each(|weight| *weight /= sum);
            weights
        })
        .collect()
}

/// Keys' cubic convolution kernel with `a = -0.5`.
fn keys(x: f64) -> f64 {
    const A: f64 = -0.5;
    match x.abs() {
        x if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
        x if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
        _ => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Var};

    #[test]
    fn resampling_weights_sum_to_one() {
        for (from, to) in [(7, 7), (7, 2), (7, 14), (9, 1), (1, 5), (12, 13)] {
            for (i, row) in cubic(from, to).iter().enumerate() {
                assert!((row.iter().sum::<f64>() - 1.0).abs() < 1e-12, "{from} {to} {i}");
            }
        }
        // Equal sizes: the identity.
        assert_eq!(cubic(3, 3)[1], [0.0, 1.0, 0.0]);
    }

    /// With one head, one channel and projections of 1, the output is the tokens weighted by softmax(mean · token).
    #[test]
    fn one_channel_matches_the_closed_form() {
        let tensor =
            |values: &[f64], shape: &[usize]| Tensor::from_slice(values, shape, &Device::Cpu).unwrap();
        let one = || Projection { weight: tensor(&[1.0], &[1, 1]), bias: tensor(&[0.0], &[1]) };
        let weights = AttentionWeights {
            position: tensor(&[0.5, 0.0, 0.25], &[3, 1]),
            query: one(),
            key: one(),
            value: one(),
        };
        let x = Var::from_tensor(&tensor(&[1.0, 3.0], &[1, 1, 1, 2])).unwrap();
        let y = attention_pool(&x, &weights, &AttentionPool { heads: 1, grid: [1, 2] }).unwrap();
        let tokens = [2.5f64, 1.0, 3.25];
        let scores = tokens.map(|t| (2.5 * t).exp());
        let expected =
            tokens.iter().zip(scores).map(|(t, s)| t * s).sum::<f64>() / scores.iter().sum::<f64>();
        let found = y.to_dtype(DType::F64).unwrap().to_vec2::<f64>().unwrap()[0][0];
        assert!((found - expected).abs() < 1e-12, "{found} {expected}");
        let gradients = y.sum_all().unwrap().backward().unwrap();
        assert_eq!(gradients.get(&x).unwrap().dims(), [1, 1, 1, 2]);
    }
}
