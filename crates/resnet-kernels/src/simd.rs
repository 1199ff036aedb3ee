//! Instruction sets, as types whose values prove that the CPU supports them.
//!
//! Every algorithm is written once, generic over [`Simd`]. `unsafe` is confined to this folder: its wrappers check
//! bounds once per call, and a token proves that the instructions are available.

use crate::error::Error;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod memory;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;
pub(crate) mod tile;

pub use memory::AlignedVec;

/// Instruction set that this CPU supports; values of unsupported instruction sets cannot be created.
///
/// ```
/// use resnet_kernels::Isa;
/// assert_eq!("portable".parse::<Isa>().unwrap().name(), "portable");
/// assert!(Isa::available().contains(&Isa::best()));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Isa(Token);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Token {
    #[cfg(target_arch = "x86_64")]
    Avx512(avx512::Avx512),
    #[cfg(target_arch = "x86_64")]
    Avx2(avx2::Avx2),
    #[cfg(target_arch = "aarch64")]
    Neon(neon::Neon),
    Portable(portable::Portable),
}

impl Isa {
    /// Returns the supported instruction sets, fastest first; never empty.
    pub fn available() -> Vec<Self> {
        let tokens = [
            #[cfg(target_arch = "x86_64")]
            avx512::Avx512::new().map(Token::Avx512),
            #[cfg(target_arch = "x86_64")]
            avx2::Avx2::new().map(Token::Avx2),
            #[cfg(target_arch = "aarch64")]
            neon::Neon::new().map(Token::Neon),
            Some(Token::Portable(portable::Portable)),
        ];
        tokens.into_iter().flatten().map(Isa).collect()
    }

    /// Returns the fastest supported instruction set.
    pub fn best() -> Self {
        Self::available().first().copied().unwrap_or(Isa(Token::Portable(portable::Portable)))
    }

    /// Returns the name: `avx512`, `avx2`, `neon` or `portable`.
    pub fn name(&self) -> &'static str {
        struct Name;
        impl Dispatch for Name {
            type Output = &'static str;
            fn run<S: Simd>(self, _: S) -> &'static str {
                S::NAME
            }
        }
        self.dispatch(Name)
    }

    /// Runs `work` with the token of this instruction set.
    pub(crate) fn dispatch<D: Dispatch>(self, work: D) -> D::Output {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Token::Avx512(token) => work.run(token),
            #[cfg(target_arch = "x86_64")]
            Token::Avx2(token) => work.run(token),
            #[cfg(target_arch = "aarch64")]
            Token::Neon(token) => work.run(token),
            Token::Portable(token) => work.run(token),
        }
    }
}

impl std::str::FromStr for Isa {
    type Err = Error;

    /// Returns the instruction set with this [`Isa::name`].
    ///
    /// # Errors
    ///
    /// [`Error::Isa`] if the name is unknown or the CPU does not support the instruction set.
    fn from_str(name: &str) -> Result<Self, Error> {
        let available = Self::available();
        let found = available.iter().find(|isa| isa.name() == name).copied();
        found.ok_or_else(|| Error::Isa {
            name: name.into(),
            available: available.iter().map(Isa::name).collect(),
        })
    }
}

/// Operation that is generic over the instruction set.
pub(crate) trait Dispatch {
    type Output;

    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// Inner loop. Its body is compiled with the instructions of the token if it is `#[inline(always)]`.
pub(crate) trait Kernel {
    type Output;

    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// Arithmetic on vectors of 16 channels in one or more registers.
///
/// Fast only inside [`Simd::vectorize`]; elsewhere every operation is a function call.
pub(crate) trait Simd: Copy + Send + Sync + 'static {
    /// Vector of 16 values.
    type V: Copy;

    /// Result of [`Isa::name`].
    const NAME: &'static str;

    /// Maximum number of pixels of a register tile with `m` channel blocks, at index `m - 1`.
    const PIXELS: &'static [usize];

    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output;

    fn splat(self, x: f32) -> Self::V;
    fn load(self, from: &[f32; 16]) -> Self::V;
    fn store(self, to: &mut [f32; 16], v: Self::V);
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    /// Returns `a * b + c`, with a single rounding if the hardware has FMA.
    fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// Returns `max(x, 0)`; NaN stays NaN.
    fn relu(self, x: Self::V) -> Self::V;
    /// Returns `x` where `y > 0`, else 0.
    fn select_positive(self, x: Self::V, y: Self::V) -> Self::V;
    /// Returns the maximum, or NaN if either operand is NaN.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;

    /// Prefetches the cache line at `address`, which may be invalid, into the L2 cache.
    fn prefetch(self, address: *const f32);

    /// Computes a register tile, see [`tile::Tile`]. Implemented with the macro `tile::dispatch!`, which maps run-time
    /// extents to const generics.
    fn tile(self, tile: &tile::Tile, blocks: usize, output: &mut crate::threads::TileOutput);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_parse() {
        let available = Isa::available();
        for isa in &available {
            assert_eq!(isa.name().parse::<Isa>().unwrap(), *isa);
        }
        let error = "mmx".parse::<Isa>().unwrap_err().to_string();
        assert!(error.starts_with("unsupported instruction set `mmx`, expected one of: "), "{error}");
        assert!(error.ends_with("portable"));
    }

    struct Arithmetic;

    impl Dispatch for Arithmetic {
        type Output = ();

        fn run<S: Simd>(self, s: S) {
            let a: [f32; 16] = std::array::from_fn(|i| i as f32 - 8.0);
            let nan: [f32; 16] = std::array::from_fn(|i| if i % 3 == 0 { f32::NAN } else { 1.0 });
            let read = |v| {
                let mut out = [0.0; 16];
                s.store(&mut out, v);
                out
            };
            let (va, vn, two) = (s.load(&a), s.load(&nan), s.splat(2.0));
            assert_eq!(read(s.add(va, two)), a.map(|x| x + 2.0));
            assert_eq!(read(s.sub(va, two)), a.map(|x| x - 2.0));
            assert_eq!(read(s.mul(va, two)), a.map(|x| x * 2.0));
            assert_eq!(read(s.mul_add(va, two, va)), a.map(|x| x * 3.0));
            assert_eq!(read(s.relu(va)), a.map(|x| x.max(0.0)));
            let select_positive = [0, 1]
                .map(|i| std::array::from_fn(|lane| if a[lane] > 0.0 { [a, nan][i][lane] } else { 0.0 }));
            assert_eq!(read(s.select_positive(va, va)), select_positive[0]);
            assert_eq!(
                read(s.select_positive(vn, va)).map(f32::to_bits),
                select_positive[1].map(f32::to_bits)
            );
            assert_eq!(
                read(s.select_positive(va, vn)),
                std::array::from_fn(|i| if nan[i].is_nan() { 0.0 } else { a[i] })
            );
            assert!(read(s.relu(vn)).iter().zip(nan).all(|(x, n)| x.is_nan() == n.is_nan()));
            for v in [s.max(va, vn), s.max(vn, va)] {
                for ((x, a), n) in read(v).into_iter().zip(a).zip(nan) {
                    assert!(if n.is_nan() { x.is_nan() } else { x == a.max(n) });
                }
            }
        }
    }

    #[test]
    fn vector_operations_match_scalars() {
        Isa::available().into_iter().for_each(|isa| isa.dispatch(Arithmetic));
    }
}
