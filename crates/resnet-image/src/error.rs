//! Errors of decoding and preprocessing.

use std::io;
use std::path::{Path, PathBuf};

use crate::decode::{ImageFormat, MAX_FILE, MAX_MEMORY, MAX_PIXELS, MAX_SIDE};

/// A result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of decoding or preprocessing. The message includes the cause, which [`source`](std::error::Error::source)
/// therefore does not return.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An error in the file at `path`.
    #[error("`{}`: {error}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The error.
        error: Box<Error>,
    },
    /// A failure to read the file.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// A file larger than [`MAX_FILE`].
    #[error("file has {bytes} bytes, expected at most {MAX_FILE}")]
    FileTooLarge {
        /// The file size in bytes.
        bytes: u64,
    },
    /// A file of a format that is not decoded.
    #[error("unsupported image format: found {found}, expected PNG, JPEG, WebP, BMP or GIF")]
    UnsupportedFormat {
        /// The format according to the magic bytes, or the first bytes.
        found: String,
    },
    /// A file of a supported format that cannot be decoded.
    #[error("damaged or unsupported {format} file: {reason}")]
    Damaged {
        /// The file's format.
        format: ImageFormat,
        /// The decoder's message.
        reason: String,
    },
    /// An image whose width or height is 0.
    #[error("image has {width}×{height} pixels, expected at least 1×1")]
    EmptyImage {
        /// Width in pixels.
        width: usize,
        /// Height in pixels.
        height: usize,
    },
    /// An image larger than [`MAX_SIDE`] or [`MAX_PIXELS`].
    #[error(
        "image has {width}×{height} pixels, expected at most {MAX_SIDE} per side and {MAX_PIXELS} in total"
    )]
    ImageTooLarge {
        /// Width in pixels.
        width: usize,
        /// Height in pixels.
        height: usize,
    },
    /// An image whose decoding would exceed the memory limit.
    #[error("decoding takes {} MiB of memory, expected at most {} MiB", bytes >> 20, MAX_MEMORY >> 20)]
    MemoryLimit {
        /// The memory needed in bytes.
        bytes: usize,
    },
    /// A region that is empty or not inside its image.
    #[error(
        "region of {}×{} pixels at ({}, {}) is not inside the image of {width}×{height} pixels",
        region[2], region[3], region[0], region[1]
    )]
    Region {
        /// The region, `[x, y, width, height]`.
        region: [u32; 4],
        /// Width of the image in pixels.
        width: u32,
        /// Height of the image in pixels.
        height: u32,
    },
    /// An image so narrow that its shorter side would be resized to 0 pixels.
    #[error("image of {width}×{height} pixels is too narrow: its shorter side would be resized to 0 pixels")]
    TooNarrow {
        /// Width in pixels.
        width: usize,
        /// Height in pixels.
        height: usize,
    },
    /// A preprocessing field with an invalid or unsupported value.
    #[error("invalid preprocessing: `{field}` is {found}, expected {expected}")]
    Preprocess {
        /// The field.
        field: &'static str,
        /// Its value.
        found: String,
        /// The values supported.
        expected: String,
    },
    /// An output buffer whose length is not that of the preprocessed image.
    #[error(
        "output buffer has {found} elements, expected {}×{}×{}",
        expected[0], expected[1], expected[2]
    )]
    OutputLength {
        /// The buffer's length.
        found: usize,
        /// The shape `[C, H, W]` of the preprocessed image.
        expected: [usize; 3],
    },
}

impl Error {
    /// Adds the path of the file that the error is about.
    pub(crate) fn at(self, path: &Path) -> Error {
        Error::File { path: path.to_owned(), error: Box::new(self) }
    }
}
