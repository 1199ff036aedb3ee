//! Aligned memory for activations and packed weights.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::ptr::NonNull;

use crate::error::Error;

/// Size of a cache line in bytes, which is that of a pixel block.
const LINE: usize = 64;

/// Size and alignment of huge pages, which back large allocations on Linux. Weights of deep layers are read once per
/// image: with 4 KiB pages, the hardware prefetcher stops at every page boundary, and a TLB miss costs as much again.
const HUGE: usize = 2 << 20;

/// Fixed-length `f32` buffer aligned to a cache line, so that a pixel block is one line.
///
/// `Vec<f32>` is aligned to 16 bytes only, with which every 64-byte access straddles two lines.
pub struct AlignedVec {
    data: NonNull<f32>,
    len: usize,
}

// SAFETY: `AlignedVec` owns its memory, as `Vec<f32>` does.
unsafe impl Send for AlignedVec {}
// SAFETY: a shared `AlignedVec` only gives shared access to `f32` values.
unsafe impl Sync for AlignedVec {}

impl AlignedVec {
    /// Allocates `len` zeros.
    ///
    /// # Errors
    ///
    /// [`Error::Allocation`] if the memory is not available.
    pub fn zeroed(len: usize) -> Result<Self, Error> {
        let error = Error::Allocation { len };
        let Some(layout) = Self::layout(len) else {
            return if len == 0 { Ok(Self::default()) } else { Err(error) };
        };
        // SAFETY: the size of the layout is not zero.
        let data = NonNull::new(unsafe { alloc(layout) }).ok_or(error)?;
        if layout.align() == HUGE {
            advise_huge(data, layout.size());
        }
        // SAFETY: the allocation has `layout.size()` writable bytes.
        unsafe { data.as_ptr().write_bytes(0, layout.size()) };
        Ok(Self { data: data.cast(), len })
    }

    /// As [`AlignedVec::zeroed`], but aborts if the memory is not available, as `Vec` does.
    pub(crate) fn zeroed_or_abort(len: usize) -> Self {
        Self::zeroed(len)
            .unwrap_or_else(|_| handle_alloc_error(Self::layout(len).unwrap_or(Layout::new::<f32>())))
    }

    /// Returns the layout for `len` elements, or `None` if `len` is 0 or too large. Rounds up to huge pages if that wastes
    /// little.
    fn layout(len: usize) -> Option<Layout> {
        let size = len.checked_mul(size_of::<f32>())?;
        let rounded = size.checked_next_multiple_of(HUGE)?;
        let layout = match rounded - size <= size / 16 {
            true => Layout::from_size_align(rounded, HUGE),
            false if size >= HUGE => Layout::from_size_align(size, HUGE),
            false => Layout::from_size_align(size, LINE),
        };
        layout.ok().filter(|_| len > 0)
    }
}

#[cfg(target_os = "linux")]
fn advise_huge(data: NonNull<u8>, size: usize) {
    unsafe extern "C" {
        fn madvise(address: *mut u8, length: usize, advice: i32) -> i32;
    }
    const MADV_HUGEPAGE: i32 = 14;
    // SAFETY: the range was just allocated and starts at a page boundary; the advice does not change the content. The
    // call fails on kernels without huge pages, which is harmless.
    unsafe { madvise(data.as_ptr(), size / HUGE * HUGE, MADV_HUGEPAGE) };
}

#[cfg(not(target_os = "linux"))]
fn advise_huge(_data: NonNull<u8>, _size: usize) {}

impl Drop for AlignedVec {
    fn drop(&mut self) {
        if let Some(layout) = Self::layout(self.len) {
            // SAFETY: `zeroed` allocated with the same layout, which depends on the length only.
            unsafe { dealloc(self.data.as_ptr().cast(), layout) };
        }
    }
}

impl std::ops::Deref for AlignedVec {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        // SAFETY: `len` initialized values owned by `self`; if `len` is 0, the pointer is dangling but aligned.
        unsafe { std::slice::from_raw_parts(self.data.as_ptr(), self.len) }
    }
}

impl std::ops::DerefMut for AlignedVec {
    fn deref_mut(&mut self) -> &mut [f32] {
        // SAFETY: as for `deref`; `self` is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.data.as_ptr(), self.len) }
    }
}

impl Clone for AlignedVec {
    fn clone(&self) -> Self {
        let mut copy = Self::zeroed_or_abort(self.len);
        copy.copy_from_slice(self);
        copy
    }
}

impl Default for AlignedVec {
    fn default() -> Self {
        Self { data: NonNull::dangling(), len: 0 }
    }
}

impl std::fmt::Debug for AlignedVec {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.debug_struct("AlignedVec").field("len", &self.len).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_zeroed() {
        for len in [0, 1, 15, 1000, 400_000, 524_288, 1_300_000] {
            let mut memory = AlignedVec::zeroed(len).unwrap();
            assert_eq!(memory.len(), len);
            assert!(len == 0 || (memory.as_ptr() as usize).is_multiple_of(LINE));
            assert!(memory.iter().all(|x| *x == 0.0));
            memory.fill(1.0);
            assert_eq!(memory.clone()[..], memory[..]);
        }
    }

    #[test]
    fn failed_allocations_are_errors() {
        for len in [usize::MAX, isize::MAX as usize / 4, usize::MAX / 32] {
            let error = AlignedVec::zeroed(len).unwrap_err().to_string();
            assert_eq!(
                error,
                format!("cannot allocate {len} f32 elements, try a smaller batch or image size")
            );
        }
    }
}
