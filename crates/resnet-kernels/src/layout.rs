use crate::error::{Error, check_len, product};
use crate::threads::ThreadPool;

/// Channels per block: one AVX-512 register, two AVX2 registers, four NEON registers, one cache line.
pub const LANES: usize = 16;

/// Blocked memory layout of an activation, `[N, C/16, halo + H + halo, halo + W + halo, 16]` in `f32`; oneDNN's
/// `nChw16c` with a halo.
///
/// Channels beyond `c` in the last block are zero, and so is the halo. Kernels write neither the halo nor anything
/// outside their own tensor. The owner of the memory clears the halo once ([`Blocked::clear_halo`]) and again before
/// using the memory with another layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Blocked {
    /// Batch size.
    pub n: usize,
    /// Number of channels, not rounded up to blocks of 16.
    pub c: usize,
    /// Height in pixels, without halo.
    pub h: usize,
    /// Width in pixels, without halo.
    pub w: usize,
    /// Zero pixels around every plane, `[top and bottom, left and right]`.
    pub halo: [usize; 2],
}

impl Blocked {
    /// Creates a layout for `[N, C, H, W]` without halo.
    ///
    /// # Errors
    ///
    /// A size is zero, or the length overflows.
    pub fn new(dims: [usize; 4]) -> Result<Self, Error> {
        let [n, c, h, w] = dims;
        Self { n, c, h, w, halo: [0, 0] }.checked()
    }

    /// Returns this layout with a halo of `[vertical, horizontal]` pixels.
    ///
    /// # Errors
    ///
    /// A size is zero, or the length overflows.
    pub fn with_halo(self, halo: [usize; 2]) -> Result<Self, Error> {
        Self { halo, ..self }.checked()
    }

    fn checked(self) -> Result<Self, Error> {
        for (what, size) in [("batch", self.n), ("channels", self.c), ("height", self.h), ("width", self.w)] {
            if size == 0 {
                return Err(Error::Zero { what });
            }
        }
        let what = "activation length";
        let side = |size: usize, halo: usize| halo.checked_mul(2).and_then(|both| both.checked_add(size));
        let (Some(h), Some(w)) = (side(self.h, self.halo[0]), side(self.w, self.halo[1])) else {
            return Err(Error::Overflow { what });
        };
        product(what, &[self.n, self.c.div_ceil(LANES), h, w, LANES])?;
        Ok(self)
    }

    /// Returns the shape `[N, C, H, W]`.
    pub fn dims(&self) -> [usize; 4] {
        [self.n, self.c, self.h, self.w]
    }

    /// Returns the number of blocks of 16 channels.
    pub fn blocks(&self) -> usize {
        self.c.div_ceil(LANES)
    }

    /// Returns the number of elements in one row of one channel block, including the halo.
    pub fn row_len(&self) -> usize {
        (self.w + 2 * self.halo[1]) * LANES
    }

    /// Returns the number of elements in one plane (channel block), including the halo.
    pub fn plane_len(&self) -> usize {
        (self.h + 2 * self.halo[0]) * self.row_len()
    }

    /// Returns the number of elements per image.
    pub fn image_len(&self) -> usize {
        self.blocks() * self.plane_len()
    }

    /// Returns the number of elements of the tensor, which is the length of its slice.
    pub fn len(&self) -> usize {
        self.n * self.image_len()
    }

    /// Returns `true` if the tensor has no elements, which [`Blocked::new`] rules out.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the offset of a pixel's 16 channels within its plane.
    pub fn pixel(&self, y: usize, x: usize) -> usize {
        (y + self.halo[0]) * self.row_len() + (x + self.halo[1]) * LANES
    }

    /// Sets the halo to zero and leaves everything else unchanged.
    ///
    /// # Errors
    ///
    /// The length of `data` is not [`Blocked::len`].
    pub fn clear_halo(&self, data: &mut [f32]) -> Result<(), Error> {
        check_len("activation", data.len(), self.len())?;
        if self.halo == [0, 0] || data.is_empty() {
            return Ok(());
        }
        let (row, side) = (self.row_len(), self.halo[1] * LANES);
        let border = self.halo[0] * row;
        for plane in data.chunks_exact_mut(self.plane_len()) {
            let (above, rest) = plane.split_at_mut(border);
            let (inner, below) = rest.split_at_mut(self.h * row);
            above.fill(0.0);
            below.fill(0.0);
            for row in inner.chunks_exact_mut(row) {
                row[..side].fill(0.0);
                let end = row.len() - side;
                row[end..].fill(0.0);
            }
        }
        Ok(())
    }

    /// Converts `planar` `[N, C, H, W]` to `blocked` and clears the halo and the padding channels.
    ///
    /// # Errors
    ///
    /// A slice has the wrong length.
    pub fn pack(&self, planar: &[f32], blocked: &mut [f32], pool: &ThreadPool) -> Result<(), Error> {
        check_len("planar activation", planar.len(), self.n * self.c * self.h * self.w)?;
        check_len("activation", blocked.len(), self.len())?;
        let area = self.h * self.w;
        pool.for_each_chunk(blocked, self.plane_len(), |index, plane| {
            let (image, block) = (index / self.blocks(), index % self.blocks());
            let first = block * LANES;
            let channels = (self.c - first).min(LANES);
            let source = &planar[(image * self.c + first) * area..][..channels * area];
            plane.fill(0.0);
            for y in 0..self.h {
                let row = &mut plane[self.pixel(y, 0)..][..self.w * LANES];
                for (x, pixel) in row.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
                    for (lane, value) in pixel[..channels].iter_mut().enumerate() {
                        *value = source[lane * area + y * self.w + x];
                    }
                }
            }
        });
        Ok(())
    }

    /// Converts `blocked` to `planar` `[N, C, H, W]`.
    ///
    /// # Errors
    ///
    /// A slice has the wrong length.
    pub fn unpack(&self, blocked: &[f32], planar: &mut [f32], pool: &ThreadPool) -> Result<(), Error> {
        check_len("planar activation", planar.len(), self.n * self.c * self.h * self.w)?;
        check_len("activation", blocked.len(), self.len())?;
        pool.for_each_chunk(planar, self.h * self.w, |index, plane| {
            let (image, channel) = (index / self.c, index % self.c);
            let source = &blocked[image * self.image_len() + channel / LANES * self.plane_len()..];
            for (y, row) in plane.chunks_exact_mut(self.w).enumerate() {
                let pixels = &source[self.pixel(y, 0)..][..self.w * LANES];
                for (value, pixel) in row.iter_mut().zip(pixels.as_chunks::<LANES>().0) {
                    *value = pixel[channel % LANES];
                }
            }
        });
        Ok(())
    }
}

/// Immutable view of a blocked tensor.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// Layout of `data`.
    pub layout: Blocked,
    /// Elements; the length is [`Blocked::len`].
    pub data: &'a [f32],
}

/// Mutable view of a blocked tensor.
#[derive(Debug)]
pub struct ViewMut<'a> {
    /// Layout of `data`.
    pub layout: Blocked,
    /// Elements; the length is [`Blocked::len`].
    pub data: &'a mut [f32],
}

impl<'a> View<'a> {
    pub(crate) fn check(&self, what: &'static str, dims: [usize; 4]) -> Result<(), Error> {
        check_tensor(what, &self.layout, self.data.len(), dims)
    }

    /// Returns the plane of one channel block of one image.
    pub(crate) fn plane(&self, image: usize, block: usize) -> &'a [f32] {
        let start = image * self.layout.image_len() + block * self.layout.plane_len();
        &self.data[start..][..self.layout.plane_len()]
    }
}

impl ViewMut<'_> {
    pub(crate) fn check(&self, what: &'static str, dims: [usize; 4]) -> Result<(), Error> {
        check_tensor(what, &self.layout, self.data.len(), dims)
    }
}

fn check_tensor(what: &'static str, layout: &Blocked, len: usize, dims: [usize; 4]) -> Result<(), Error> {
    layout.checked()?;
    if layout.dims() != dims {
        return Err(Error::Shape { what, found: layout.dims(), expected: dims });
    }
    check_len(what, len, layout.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Algorithm, ConvShape, ConvWeights, Epilogue, Input, Isa, PackedConv, Plan, Residual};

    #[test]
    fn unpack_inverts_pack_and_pack_clears_padding() {
        let pool = ThreadPool::new(2).unwrap();
        for (dims, halo) in [([2, 3, 5, 4], [1, 2]), ([1, 16, 1, 1], [0, 0]), ([3, 33, 2, 7], [0, 1])] {
            let layout = Blocked::new(dims).unwrap().with_halo(halo).unwrap();
            let planar: Vec<f32> = (1..=dims.iter().product()).map(|i| i as f32).collect();
            let mut blocked = vec![f32::NAN; layout.len()];
            layout.pack(&planar, &mut blocked, &pool).unwrap();
            assert_eq!(blocked.iter().filter(|x| **x != 0.0).count(), planar.len());
            let mut cleared = blocked.clone();
            layout.clear_halo(&mut cleared).unwrap();
            assert_eq!(cleared, blocked);
            let mut back = vec![0.0; planar.len()];
            layout.unpack(&blocked, &mut back, &pool).unwrap();
            assert_eq!(back, planar);
        }
    }

    #[test]
    fn clear_halo_leaves_the_interior_unchanged() {
        let layout = Blocked::new([1, 16, 3, 2]).unwrap().with_halo([2, 1]).unwrap();
        let mut data = vec![1.0; layout.len()];
        layout.clear_halo(&mut data).unwrap();
        assert_eq!(data.iter().sum::<f32>(), (3 * 2 * 16) as f32);
        assert!(layout.clear_halo(&mut data[1..]).is_err());
    }

    #[test]
    fn invalid_sizes_are_rejected() {
        assert_eq!(
            Blocked::new([1, 0, 2, 3]).unwrap_err().to_string(),
            "channels is zero, expected at least 1"
        );
        let overflow = "activation length overflows the address space";
        assert_eq!(Blocked::new([1 << 32, 1 << 20, 1 << 10, 1 << 10]).unwrap_err().to_string(), overflow);
        let layout = Blocked::new([1, 1, 1, 1]).unwrap();
        assert_eq!(layout.with_halo([usize::MAX, 0]).unwrap_err().to_string(), overflow);
    }

    #[test]
    fn empty_batches_and_channels_are_rejected() {
        let shape = ConvShape { kernel: [3, 3], padding: [1, 1], ..ConvShape::pointwise(16, 16) };
        let weights = vec![0.0; 16 * 16 * 9];
        let pool = ThreadPool::new(2).unwrap();
        for algorithm in [Algorithm::Direct, Algorithm::Winograd4] {
            let plan = Plan { algorithm, isa: Isa::best() };
            let weights = ConvWeights { weights: &weights, bias: None };
            let conv = PackedConv::new(shape, plan, weights, Epilogue::default()).unwrap();
            let run = |n, c| {
                let layout = Blocked { n, c, h: 4, w: 4, halo: [1, 1] };
                let output = ViewMut { layout: Blocked { halo: [0, 0], ..layout }, data: &mut [] };
                let input = Input::Blocked(View { layout, data: &[] });
                conv.run(input, Residual::None, output, &mut [], &pool).unwrap_err().to_string()
            };
            assert_eq!(run(0, 16), "batch is zero, expected at least 1");
            assert_eq!(run(1, 0), "input has shape [1, 0, 4, 4], expected [1, 16, 4, 4]");
            assert!(conv.scratch_len([0, 16, 4, 4], 2).is_err());
        }
    }
}
