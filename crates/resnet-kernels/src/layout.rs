use crate::error::{Error, check_len, product};
use crate::threads::ThreadPool;

/// Channels that lie side by side in memory: one AVX-512 register, two of AVX2, four of NEON, one cache line.
pub const LANES: usize = 16;

/// How an activation lies in memory: `[N, C/16, halo + H + halo, halo + W + halo, 16]`, in `f32`.
///
/// Channels beyond `c` in the last block are zero, and so is the halo. Kernels write neither the halo nor anything
/// outside their own tensor; whoever owns the memory clears the halo once ([`Blocked::clear_halo`]) and again when the
/// memory is used for another layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Blocked {
    /// Images.
    pub n: usize,
    /// Channels, before they are rounded up to blocks of 16.
    pub c: usize,
    /// Height in pixels, without the halo.
    pub h: usize,
    /// Width in pixels, without the halo.
    pub w: usize,
    /// Zero pixels around every plane, `[above and below, left and right]`.
    pub halo: [usize; 2],
}

impl Blocked {
    /// A layout for `[N, C, H, W]` without a halo. Errors: a zero size, or a length that overflows.
    pub fn new(dims: [usize; 4]) -> Result<Self, Error> {
        let [n, c, h, w] = dims;
        Self { n, c, h, w, halo: [0, 0] }.checked()
    }

    /// Returns this layout with a zero border of `[vertical, horizontal]` pixels. Errors: a zero size, or a length that
    /// overflows.
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

    /// `[N, C, H, W]`.
    pub fn dims(&self) -> [usize; 4] {
        [self.n, self.c, self.h, self.w]
    }

    /// Blocks of 16 channels.
    pub fn blocks(&self) -> usize {
        self.c.div_ceil(LANES)
    }

    /// Elements of one row of one channel block, halo included.
    pub fn row_len(&self) -> usize {
        (self.w + 2 * self.halo[1]) * LANES
    }

    /// Elements of one channel block, halo included.
    pub fn plane_len(&self) -> usize {
        (self.h + 2 * self.halo[0]) * self.row_len()
    }

    /// Elements of one image.
    pub fn image_len(&self) -> usize {
        self.blocks() * self.plane_len()
    }

    /// Elements of the tensor: the length of the slice that holds it.
    pub fn len(&self) -> usize {
        self.n * self.image_len()
    }

    /// Returns `true` if the tensor has no elements; never the case for a layout made by [`Blocked::new`].
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Offset of a pixel within its plane; the pixel's 16 channels follow.
    pub fn pixel(&self, y: usize, x: usize) -> usize {
        (y + self.halo[0]) * self.row_len() + (x + self.halo[1]) * LANES
    }

    /// Writes zeros to the halo and nothing else. Error: `data` is not [`Blocked::len`] long.
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

    /// Fills `blocked` from `planar` `[N, C, H, W]`, halo and padding channels included.
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

    /// Fills `planar` `[N, C, H, W]` from `blocked`, dropping halo and padding channels.
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

/// A tensor that is read.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// How `data` lies.
    pub layout: Blocked,
    /// [`Blocked::len`] elements.
    pub data: &'a [f32],
}

/// A tensor that is written.
#[derive(Debug)]
pub struct ViewMut<'a> {
    /// How `data` lies.
    pub layout: Blocked,
    /// [`Blocked::len`] elements.
    pub data: &'a mut [f32],
}

impl<'a> View<'a> {
    pub(crate) fn check(&self, what: &'static str, dims: [usize; 4]) -> Result<(), Error> {
        check_tensor(what, &self.layout, self.data.len(), dims)
    }

    /// The plane of a channel block of an image.
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
    fn packing_is_undone_by_unpacking_and_clears_the_rest() {
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
    fn clearing_touches_the_halo_only() {
        let layout = Blocked::new([1, 16, 3, 2]).unwrap().with_halo([2, 1]).unwrap();
        let mut data = vec![1.0; layout.len()];
        layout.clear_halo(&mut data).unwrap();
        assert_eq!(data.iter().sum::<f32>(), (3 * 2 * 16) as f32);
        assert!(layout.clear_halo(&mut data[1..]).is_err());
    }

    #[test]
    fn sizes_that_cannot_be_are_refused() {
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
    fn empty_batches_and_channels_are_errors() {
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
