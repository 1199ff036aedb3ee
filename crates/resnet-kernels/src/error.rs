use thiserror::Error;

/// The error type of this crate. Each variant holds what was found and what was expected.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// A size that must be at least 1 is 0.
    #[error("{what} is zero, expected at least 1")]
    Zero {
        /// Name of the size, such as `kernel height`.
        what: &'static str,
    },
    /// A product of sizes exceeds the address space.
    #[error("{what} overflows the address space")]
    Overflow {
        /// Name of the product, such as `activation length`.
        what: &'static str,
    },
    /// A buffer for which not enough memory is available.
    #[error("cannot allocate {len} f32 elements, try a smaller batch or image size")]
    Allocation {
        /// Length of the buffer in elements.
        len: usize,
    },
    /// A number of channels that is not divisible by the number of groups.
    #[error("{channels} {what} are not divisible by {groups} groups")]
    Groups {
        /// `input channels` or `output channels`.
        what: &'static str,
        /// Number of channels.
        channels: usize,
        /// Number of groups.
        groups: usize,
    },
    /// The padded input is smaller than the dilated kernel.
    #[error("input {axis} {size} with padding {padding} is smaller than the kernel extent {window}")]
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
    /// Pooling padding above half the kernel size, with which a window could contain only padding.
    #[error("invalid pooling padding {padding}, expected at most half the kernel size {kernel}")]
    PoolPadding {
        /// Padding on either side in pixels.
        padding: usize,
        /// Kernel size in pixels.
        kernel: usize,
    },
    /// A slice of the wrong length.
    #[error("{what} has length {found}, expected {expected}")]
    Length {
        /// Name of the slice, such as `weights`.
        what: &'static str,
        /// Actual length in elements.
        found: usize,
        /// Expected length in elements.
        expected: usize,
    },
    /// A slice that is too short.
    #[error("{what} has length {found}, expected at least {expected}")]
    TooShort {
        /// Name of the slice, such as `scratch`.
        what: &'static str,
        /// Actual length in elements.
        found: usize,
        /// Minimum length in elements.
        expected: usize,
    },
    /// A tensor of the wrong shape `[N, C, H, W]`.
    #[error("{what} has shape {found:?}, expected {expected:?}")]
    Shape {
        /// Name of the tensor, such as `output`.
        what: &'static str,
        /// Actual shape.
        found: [usize; 4],
        /// Expected shape.
        expected: [usize; 4],
    },
    /// An input halo that is narrower than the padding of the convolution.
    #[error(
        "input halo is {}x{} pixels, expected at least {}x{} (the padding of the convolution)",
        .found[0], .found[1], .expected[0], .expected[1]
    )]
    Halo {
        /// Actual halo `[vertical, horizontal]`.
        found: [usize; 2],
        /// Minimum halo `[vertical, horizontal]`.
        expected: [usize; 2],
    },
    /// A halo around a tensor of an operation that supports none.
    #[error("{what} has a halo of {}x{} pixels, expected none", .found[0], .found[1])]
    UnexpectedHalo {
        /// Name of the tensor, such as `gradient`.
        what: &'static str,
        /// Actual halo `[vertical, horizontal]`.
        found: [usize; 2],
    },
    /// A planar input where a blocked one is expected, or the reverse.
    #[error("expected {expected} input for algorithm `{algorithm}`, found {found} input")]
    InputLayout {
        /// Name of the algorithm.
        algorithm: &'static str,
        /// `planar` or `blocked`.
        found: &'static str,
        /// `planar` or `blocked`.
        expected: &'static str,
    },
    /// A convolution that the algorithm does not support.
    #[error("algorithm `{algorithm}` does not support {what}")]
    Algorithm {
        /// Name of the algorithm.
        algorithm: &'static str,
        /// Unsupported property of the convolution.
        what: &'static str,
    },
    /// An instruction set that this CPU or this build does not support.
    #[error("unsupported instruction set `{name}`, expected one of: {}", .available.join(", "))]
    Isa {
        /// Name as given by the caller.
        name: String,
        /// Names of the supported instruction sets.
        available: Vec<&'static str>,
    },
    /// A number of threads outside `1..=max`.
    #[error("invalid number of threads {found}, expected 1 to {max}")]
    Threads {
        /// Requested number of threads.
        found: usize,
        /// Maximum number of threads.
        max: usize,
    },
    /// The operating system failed to start a thread.
    #[error("cannot start a worker thread")]
    Spawn(#[source] std::io::Error),
}

pub(crate) fn check_len(what: &'static str, found: usize, expected: usize) -> Result<(), Error> {
    if found == expected { Ok(()) } else { Err(Error::Length { what, found, expected }) }
}

pub(crate) fn check_at_least(what: &'static str, found: usize, expected: usize) -> Result<(), Error> {
    if found >= expected { Ok(()) } else { Err(Error::TooShort { what, found, expected }) }
}

/// Returns an error unless `halo` is zero.
pub(crate) fn check_no_halo(what: &'static str, halo: [usize; 2]) -> Result<(), Error> {
    if halo == [0, 0] { Ok(()) } else { Err(Error::UnexpectedHalo { what, found: halo }) }
}

/// Returns the product of `factors`, a number of `f32` elements that a slice can hold.
pub(crate) fn product(what: &'static str, factors: &[usize]) -> Result<usize, Error> {
    let len = factors.iter().try_fold(1usize, |len, &factor| len.checked_mul(factor));
    len.filter(|&len| len <= isize::MAX as usize / 16).ok_or(Error::Overflow { what })
}
