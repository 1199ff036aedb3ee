//! Fully connected layer.

use crate::error::{Error, check_len, product};
use crate::layout::LANES;
use crate::shape::ConvWeights;
use crate::simd::AlignedVec;
use crate::simd::tile::{Addend, MAX_PIXELS, Reduction, Tile, next_pixels};
use crate::simd::{Dispatch, Isa, Simd};
use crate::threads::{ThreadPool, TileOutput};

/// Products per partial sum. In a single sum, the 25,088 products of VGG's first fully connected layer lose a decimal
/// digit; also, the weights of one partial sum stay in cache for all inputs.
const SUM_CHUNK: usize = 256;

/// Fully connected layer `y = x·Wᵀ + b` with packed weights.
#[derive(Clone, Debug)]
pub struct PackedLinear {
    isa: Isa,
    features_in: usize,
    features_out: usize,
    /// Output blocks per panel.
    panel: usize,
    /// `[panel][features in][blocks × 16]`.
    weights: AlignedVec,
    bias: AlignedVec,
}

impl PackedLinear {
    /// Packs weights `[features out, features in]` and a bias `[features out]`.
    ///
    /// # Errors
    ///
    /// A feature count is zero, or a slice has the wrong length.
    pub fn new(
        isa: Isa,
        [features_out, features_in]: [usize; 2],
        weights: ConvWeights,
    ) -> Result<Self, Error> {
        for (what, size) in [("input features", features_in), ("output features", features_out)] {
            if size == 0 {
                return Err(Error::Zero { what });
            }
        }
        check_len(
            "weights",
            weights.weights.len(),
            product("weights length", &[features_out, features_in])?,
        )?;
        check_len("bias", weights.bias.map_or(features_out, <[f32]>::len), features_out)?;
        let panel = isa.dispatch(PanelBlocks).min(features_out.div_ceil(LANES));
        let width = panel * LANES;
        let padded = features_out.next_multiple_of(width);
        let mut packed = AlignedVec::zeroed(product("weights length", &[padded, features_in])?)?;
        for (row, source) in weights.weights.chunks_exact(features_in).enumerate() {
            let panel = &mut packed[row / width * width * features_in..][..width * features_in];
            let column = panel.iter_mut().skip(row % width).step_by(width);
            column.zip(source).for_each(|(to, from)| *to = *from);
        }
        let mut bias = AlignedVec::zeroed(padded)?;
        if let Some(source) = weights.bias {
            bias[..features_out].copy_from_slice(source);
        }
        Ok(Self { isa, features_in, features_out, panel, weights: packed, bias })
    }

    /// Returns `[features out, features in]`.
    pub fn features(&self) -> [usize; 2] {
        [self.features_out, self.features_in]
    }

    /// Returns the size of packed weights and bias in bytes.
    pub fn bytes(&self) -> usize {
        (self.weights.len() + self.bias.len()) * size_of::<f32>()
    }

    /// Returns the name of the micro-kernel, `linear-f32-{features}x{images}-{isa}`.
    pub fn kernel_name(&self) -> String {
        let pixels = self.isa.dispatch(TileImages(self.panel));
        format!("linear-f32-{}x{pixels}-{}", self.panel * LANES, self.isa.name())
    }

    /// Returns the number of scratch elements that [`PackedLinear::run`] needs for `batch` inputs.
    ///
    /// # Errors
    ///
    /// The length overflows.
    pub fn scratch_len(&self, batch: usize) -> Result<usize, Error> {
        product("scratch length", &[batch, self.bias.len()])
    }

    /// Computes `y` `[N, features out]` from `x` `[N, features in]`.
    ///
    /// # Errors
    ///
    /// A slice has the wrong length.
    pub fn run(&self, x: &[f32], y: &mut [f32], scratch: &mut [f32], pool: &ThreadPool) -> Result<(), Error> {
        let batch = x.len() / self.features_in;
        check_len("input", x.len(), batch * self.features_in)?;
        check_len("output", y.len(), product("output length", &[batch, self.features_out])?)?;
        let needed = self.scratch_len(batch)?;
        crate::error::check_at_least("scratch", scratch.len(), needed)?;
        if batch > 0 {
            self.isa.dispatch(Run { linear: self, batch, x, scratch: &mut scratch[..needed], pool });
        }
        // Scratch is `[panel][N][blocks × 16]`: every panel writes one contiguous range.
        let width = self.panel * LANES;
        for (image, y) in y.chunks_exact_mut(self.features_out).enumerate() {
            for (panel, y) in y.chunks_mut(width).enumerate() {
                y.copy_from_slice(&scratch[(panel * batch + image) * width..][..y.len()]);
            }
        }
        Ok(())
    }
}

struct PanelBlocks;

impl Dispatch for PanelBlocks {
    type Output = usize;

    fn run<S: Simd>(self, _: S) -> usize {
        S::PIXELS.len()
    }
}

struct TileImages(usize);

impl Dispatch for TileImages {
    type Output = usize;

    fn run<S: Simd>(self, _: S) -> usize {
        S::PIXELS[self.0 - 1]
    }
}

struct Run<'a> {
    linear: &'a PackedLinear,
    batch: usize,
    x: &'a [f32],
    scratch: &'a mut [f32],
    pool: &'a ThreadPool,
}

impl Dispatch for Run<'_> {
    type Output = ();

    fn run<S: Simd>(self, simd: S) {
        let Self { linear, batch, x, scratch, pool } = self;
        let width = linear.panel * LANES;
        pool.for_each_chunk(scratch, batch * width, |panel, y| {
            let bias = &linear.bias[panel * width..][..width];
            let panel_weights =
                &linear.weights[panel * width * linear.features_in..][..width * linear.features_in];
            let mut output = TileOutput::from_slice(y, LANES, linear.panel);
            for (chunk, weights) in panel_weights.chunks(SUM_CHUNK * width).enumerate() {
                let reduction = Reduction::new([1, 1, 1], [0, 0, 0], weights.len() / width);
                let mut tile = Tile {
                    weights,
                    input: x,
                    reduction: &reduction,
                    pixels: 0,
                    from: [0; MAX_PIXELS],
                    to: [0; MAX_PIXELS],
                    bias: (chunk == 0).then_some(bias),
                    addend: if chunk == 0 { Addend::None } else { Addend::Output },
                    relu: false,
                    prefetch: &[],
                };
                let mut done = 0;
                while done < batch {
                    tile.pixels = next_pixels::<S>(linear.panel, batch - done);
                    for p in 0..tile.pixels {
                        tile.from[p] = (done + p) * linear.features_in + chunk * SUM_CHUNK;
                        tile.to[p] = (done + p) * width;
                    }
                    simd.tile(&tile, linear.panel, &mut output);
                    done += tile.pixels;
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference;
    use crate::testing::{assert_close, random};

    #[test]
    fn matches_the_reference() {
        for isa in Isa::available() {
            for (batch, features_in, features_out) in
                [(1, 2048, 1000), (2, 7, 3), (7, 33, 130), (13, 64, 64), (1, 1, 1)]
            {
                let weights = random(features_in * features_out, 1);
                let (bias, x) = (random(features_out, 2), random(batch * features_in, 3));
                let conv_weights = ConvWeights { weights: &weights, bias: Some(&bias) };
                let linear = PackedLinear::new(isa, [features_out, features_in], conv_weights).unwrap();
                let expected = reference::linear(conv_weights, features_in, &x).unwrap();
                for threads in [1, 3] {
                    let pool = ThreadPool::new(threads).unwrap();
                    let mut scratch = vec![f32::NAN; linear.scratch_len(batch).unwrap()];
                    let mut y = vec![f32::NAN; batch * features_out];
                    linear.run(&x, &mut y, &mut scratch, &pool).unwrap();
                    assert_close(&linear.kernel_name(), &y, &expected, 2e-6);
                }
            }
        }
    }

    /// With a single sum, the relative error of VGG's first fully connected layer was 3e-6.
    #[test]
    fn chunked_sums_keep_long_sums_accurate() {
        let (features_in, features_out) = (25_088, 40);
        let (weights, x) = (random(features_in * features_out, 1), random(features_in, 3));
        let conv_weights = ConvWeights { weights: &weights, bias: None };
        let exact: Vec<f64> = weights
            .chunks_exact(features_in)
            .map(|row| row.iter().zip(&x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum())
            .collect();
        let largest = exact.iter().fold(0.0, |most: f64, y| most.max(y.abs()));
        for isa in Isa::available() {
            let linear = PackedLinear::new(isa, [features_out, features_in], conv_weights).unwrap();
            let mut scratch = vec![0.0; linear.scratch_len(1).unwrap()];
            let mut y = vec![0.0; features_out];
            linear.run(&x, &mut y, &mut scratch, &ThreadPool::new(1).unwrap()).unwrap();
            let error = y.iter().zip(&exact).map(|(y, e)| (f64::from(*y) - e).abs()).fold(0.0, f64::max);
            assert!(error < 1e-6 * largest, "{}: {error} of {largest}", isa.name());
        }
    }

    #[test]
    fn wrong_lengths_are_rejected() {
        let isa = Isa::best();
        let conv_weights = ConvWeights { weights: &[0.0; 6], bias: None };
        assert!(PackedLinear::new(isa, [0, 6], conv_weights).is_err());
        assert!(PackedLinear::new(isa, [2, 4], conv_weights).is_err());
        assert!(PackedLinear::new(isa, [2, 3], ConvWeights { bias: Some(&[0.0]), ..conv_weights }).is_err());
        let linear = PackedLinear::new(isa, [2, 3], conv_weights).unwrap();
        let pool = ThreadPool::new(1).unwrap();
        let mut scratch = vec![0.0; linear.scratch_len(2).unwrap()];
        assert!(linear.run(&[0.0; 6], &mut [0.0; 4], &mut scratch, &pool).is_ok());
        assert!(linear.run(&[0.0; 5], &mut [0.0; 4], &mut scratch, &pool).is_err());
        assert!(linear.run(&[0.0; 6], &mut [0.0; 3], &mut scratch, &pool).is_err());
        assert!(linear.run(&[0.0; 6], &mut [0.0; 4], &mut scratch[1..], &pool).is_err());
    }
}
