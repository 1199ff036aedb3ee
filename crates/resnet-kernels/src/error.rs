use thiserror::Error;

/// Everything that can be wrong with a call of this crate; each variant says what was found and what was expected.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// A size that must be at least one is zero.
    #[error("{what} is zero, expected at least 1")]
    Zero {
        /// Which size, such as `kernel height`.
        what: &'static str,
    },
    /// A product of sizes does not fit the address space.
    #[error("{what} overflows the address space")]
    Overflow {
        /// Which product, such as `activation length`.
        what: &'static str,
    },
    /// Channels that do not divide into the groups.
    #[error("{channels} {what} do not divide into {groups} groups")]
    Groups {
        /// `input channels` or `output channels`.
        what: &'static str,
        /// The number of channels found.
        channels: usize,
        /// The number of groups asked for.
        groups: usize,
    },
    /// The window does not fit in the padded input.
    #[error("{axis} of {size} with padding {padding} is smaller than the window of {window}")]
    TooSmall {
        /// `height` or `width`.
        axis: &'static str,
        /// Input size along the axis in pixels.
        size: usize,
        /// Padding on either side in pixels.
        padding: usize,
        /// Extent of the dilated kernel in pixels.
        window: usize,
    },
    /// Pooling padding above half of the kernel, which would make windows of padding only.
    #[error("pooling padding {padding} is more than half of the kernel {kernel}")]
    PoolPadding {
        /// Padding on either side in pixels.
        padding: usize,
        /// Kernel extent in pixels.
        kernel: usize,
    },
    /// A slice of the wrong length.
    #[error("{what} has {found} elements, expected {expected}")]
    Length {
        /// Which slice, such as `weights`.
        what: &'static str,
        /// The length found, in elements.
        found: usize,
        /// The length expected (for scratch: the least), in elements.
        expected: usize,
    },
    /// A tensor of the wrong shape, as `[N, C, H, W]`.
    #[error("{what} has shape {found:?}, expected {expected:?}")]
    Shape {
        /// Which tensor, such as `output`.
        what: &'static str,
        /// The shape found.
        found: [usize; 4],
        /// The shape expected.
        expected: [usize; 4],
    },
    /// The zero border around the input is thinner than the padding that is read from it.
    #[error("the input's halo is {found:?} pixels, the padding needs at least {expected:?}")]
    Halo {
        /// The halo found, `[vertical, horizontal]`.
        found: [usize; 2],
        /// The halo needed, `[vertical, horizontal]`.
        expected: [usize; 2],
    },
    /// A planar input was given where a blocked one is read, or the reverse.
    #[error("the convolution reads a {expected} input, found a {found} one")]
    InputKind {
        /// `planar` or `blocked`.
        found: &'static str,
        /// `planar` or `blocked`.
        expected: &'static str,
    },
    /// The algorithm cannot compute this convolution.
    #[error("{algorithm} cannot compute this convolution: {why}")]
    Algorithm {
        /// Name of the algorithm asked for.
        algorithm: &'static str,
        /// What it does not support.
        why: &'static str,
    },
    /// An instruction set that this machine or this build does not have.
    #[error("instruction set `{name}` is not available here, expected one of {available:?}")]
    Isa {
        /// The name asked for.
        name: String,
        /// The names that would work.
        available: Vec<&'static str>,
    },
    /// A number of threads outside `1..=max`.
    #[error("{found} threads asked for, expected 1 to {max}")]
    Threads {
        /// The number asked for.
        found: usize,
        /// The largest number allowed.
        max: usize,
    },
    /// The operating system refused to start a thread.
    #[error("cannot start a worker thread")]
    Spawn(#[source] std::io::Error),
}

pub(crate) fn check_len(what: &'static str, found: usize, expected: usize) -> Result<(), Error> {
    if found == expected { Ok(()) } else { Err(Error::Length { what, found, expected }) }
}

pub(crate) fn check_at_least(what: &'static str, found: usize, expected: usize) -> Result<(), Error> {
    if found >= expected { Ok(()) } else { Err(Error::Length { what, found, expected }) }
}

/// The product of `factors` as a number of `f32` that a slice can hold.
pub(crate) fn product(what: &'static str, factors: &[usize]) -> Result<usize, Error> {
    let len = factors.iter().try_fold(1usize, |len, &factor| len.checked_mul(factor));
    len.filter(|&len| len <= isize::MAX as usize / 16).ok_or(Error::Overflow { what })
}
