//! The first frame of a GIF file, on its canvas.

use std::num::NonZeroU64;

use gif::{ColorOutput, DecodeOptions, MemoryLimit};
use image::RgbImage;

use super::sniff::Format;
use super::{MAX_MEMORY, check_size, damaged};
use crate::Result;

pub(super) fn decode(bytes: &[u8]) -> Result<RgbImage> {
    let wrong = |e: gif::DecodingError| damaged(Format::Gif, e);
    let mut options = DecodeOptions::new();
    options.set_color_output(ColorOutput::Indexed);
    if let Some(limit) = NonZeroU64::new(MAX_MEMORY as u64) {
        options.set_memory_limit(MemoryLimit::Bytes(limit));
    }
    let mut decoder = options.read_info(bytes).map_err(wrong)?;
    check_size(usize::from(decoder.width()), usize::from(decoder.height()))?;
    let canvas = (usize::from(decoder.width()), usize::from(decoder.height()));
    let global = decoder.global_palette().map(<[u8]>::to_vec);
    let header = decoder.next_frame_info().map_err(wrong)?.ok_or_else(|| damaged(Format::Gif, "no frame"))?;
    let (left, top) = (usize::from(header.left), usize::from(header.top));
    let (across, down) = (usize::from(header.width), usize::from(header.height));
    // As in Pillow, a frame that sticks out enlarges the canvas.
    let (width, height) = (canvas.0.max(left + across), canvas.1.max(top + down));
    check_size(width, height)?;
    check_size(across, down)?;
    // Around the frame lies its transparent colour, or else the first.
    let around = header.transparent.unwrap_or(0);
    let palette = header.palette.clone().or(global);
    let mut indices = vec![0u8; across * down];
    decoder.read_into_buffer(&mut indices).map_err(wrong)?;
    let colour = |index: u8| match &palette {
        Some(colours) => colours.as_chunks::<3>().0.get(usize::from(index)).copied().unwrap_or_default(),
        None => [index; 3],
    };
    let colours: [[u8; 3]; 256] = std::array::from_fn(|i| colour(i as u8));
    let mut out = RgbImage::from_pixel(width as u32, height as u32, image::Rgb(colours[usize::from(around)]));
    for (line, indices) in out.chunks_exact_mut(3 * width).skip(top).zip(indices.chunks_exact(across)) {
        for (out, &index) in line.as_chunks_mut::<3>().0[left..].iter_mut().zip(indices) {
            *out = colours[usize::from(index)];
        }
    }
    Ok(out)
}
