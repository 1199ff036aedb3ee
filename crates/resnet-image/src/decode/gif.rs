//! The first frame of a GIF file, on its canvas, as Pillow decodes it.

use std::num::NonZeroU64;

use gif::{ColorOutput, DecodeOptions, MemoryLimit};
use image::RgbImage;

use super::{ImageFormat, MAX_MEMORY, check_size, damaged};
use crate::Result;

pub(super) fn decode(bytes: &[u8]) -> Result<RgbImage> {
    let invalid = |e: gif::DecodingError| damaged(ImageFormat::Gif, e);
    let mut options = DecodeOptions::new();
    options.set_color_output(ColorOutput::Indexed);
    if let Some(limit) = NonZeroU64::new(MAX_MEMORY as u64) {
        options.set_memory_limit(MemoryLimit::Bytes(limit));
    }
    let mut decoder = options.read_info(bytes).map_err(invalid)?;
    check_size(usize::from(decoder.width()), usize::from(decoder.height()))?;
    let canvas = (usize::from(decoder.width()), usize::from(decoder.height()));
    let global = decoder.global_palette().map(<[u8]>::to_vec);
    let header = decoder
        .next_frame_info()
        .map_err(invalid)?
        .ok_or_else(|| damaged(ImageFormat::Gif, "the file has no frame"))?;
    let (left, top) = (usize::from(header.left), usize::from(header.top));
    let frame = (usize::from(header.width), usize::from(header.height));
    // As in Pillow, a frame that exceeds the canvas enlarges it.
    let (width, height) = (canvas.0.max(left + frame.0), canvas.1.max(top + frame.1));
    check_size(width, height)?;
    check_size(frame.0, frame.1)?;
    // The canvas around the frame has the transparent color, if any, or else the first.
    let background = header.transparent.unwrap_or(0);
    let palette = header.palette.clone().or(global);
    let mut indices = vec![0u8; frame.0 * frame.1];
    decoder.read_into_buffer(&mut indices).map_err(invalid)?;
    let color = |index: u8| match &palette {
        Some(colors) => colors.as_chunks::<3>().0.get(usize::from(index)).copied().unwrap_or_default(),
        None => [index; 3],
    };
    let colors: [[u8; 3]; 256] = std::array::from_fn(|i| color(i as u8));
    let mut out =
        RgbImage::from_pixel(width as u32, height as u32, image::Rgb(colors[usize::from(background)]));
    for (line, indices) in out.chunks_exact_mut(3 * width).skip(top).zip(indices.chunks_exact(frame.0)) {
        for (out, &index) in line.as_chunks_mut::<3>().0[left..].iter_mut().zip(indices) {
            *out = colors[usize::from(index)];
        }
    }
    Ok(out)
}
