//! Buffers reused between layers and training steps.

use std::collections::BTreeMap;

use crate::simd::AlignedVec;

/// Pool of free buffers by length.
///
/// Every training step needs buffers of the same lengths; faulting in fresh pages would take longer than computing
/// their content.
#[derive(Debug, Default)]
pub struct BufferPool {
    free: BTreeMap<usize, Vec<AlignedVec>>,
}

/// Rounds a length up to its size class. Classes are an eighth of a power of two apart, so that layers of similar size
/// share buffers.
fn class(len: usize) -> usize {
    let step = (len.max(1).ilog2().saturating_sub(3)).max(6);
    len.checked_next_multiple_of(1 << step).unwrap_or(len)
}

impl BufferPool {
    /// Returns a buffer of at least `len` elements with arbitrary content.
    pub fn take(&mut self, len: usize) -> AlignedVec {
        let class = class(len);
        match self.free.get_mut(&class).and_then(Vec::pop) {
            Some(buffer) => buffer,
            None => AlignedVec::zeroed_or_abort(class),
        }
    }

    /// Returns a buffer of at least `len` elements, the first `len` of which are 0.
    pub fn zeroed(&mut self, len: usize) -> AlignedVec {
        let mut buffer = self.take(len);
        buffer[..len].fill(0.0);
        buffer
    }

    /// Returns `buffer` to the pool.
    pub fn put(&mut self, buffer: AlignedVec) {
        if !buffer.is_empty() {
            self.free.entry(buffer.len()).or_default().push(buffer);
        }
    }

    /// Returns the size of all free buffers in bytes.
    pub fn bytes(&self) -> usize {
        self.free.iter().map(|(len, buffers)| len * buffers.len() * size_of::<f32>()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_reused() {
        let mut pool = BufferPool::default();
        let mut first = pool.take(1000);
        first.fill(1.0);
        let (address, len) = (first.as_ptr(), first.len());
        assert!((1000..1200).contains(&len));
        pool.put(first);
        assert_eq!(pool.bytes(), len * 4);
        let again = pool.zeroed(990);
        assert_eq!((again.as_ptr(), pool.bytes()), (address, 0));
        assert!(again[..990].iter().all(|x| *x == 0.0) && again[990..].iter().all(|x| *x == 1.0));
        for len in [0, 1, 63, 64, 65, 12_345_678] {
            let class = class(len);
            assert!(class >= len && class <= len + len / 8 + 64, "{len} becomes {class}");
        }
    }
}
