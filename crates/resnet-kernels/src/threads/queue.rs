//! Numbers of tasks, handed out to threads.

use std::sync::atomic::{AtomicU64, Ordering};

/// For each thread a range of tasks: it takes from the start, and others, when theirs are done, from the end.
pub(super) struct Queue(Box<[Piece]>);

/// `start << 32 | end`, on a cache line of its own.
#[repr(align(64))]
struct Piece(AtomicU64);

impl Queue {
    /// Most tasks.
    pub(super) const MOST: usize = u32::MAX as usize;

    pub(super) fn new(threads: usize) -> Self {
        Self((0..threads).map(|_| Piece(AtomicU64::new(0))).collect())
    }

    /// Replaces what is left by the tasks `0..tasks`, at most [`Queue::MOST`].
    pub(super) fn fill(&self, tasks: usize) {
        let border = |thread: usize| tasks as u64 * thread as u64 / self.0.len() as u64;
        for (thread, piece) in self.0.iter().enumerate() {
            // Whoever takes tasks was let in later, or finds the last ones gone.
            piece.0.store(border(thread) << 32 | border(thread + 1), Ordering::Relaxed);
        }
    }

    /// The next task for `thread`; each is given out once. `None` when none is left.
    pub(super) fn take(&self, thread: usize) -> Option<usize> {
        let threads = self.0.len();
        (0..threads).find_map(|step| self.0[(thread + step) % threads].take(step == 0))
    }
}

impl Piece {
    fn take(&self, own: bool) -> Option<usize> {
        let update = |piece: u64| {
            let (start, end) = (piece >> 32, piece & 0xffff_ffff);
            let rest = if own { (start + 1) << 32 | end } else { start << 32 | (end.wrapping_sub(1)) };
            (start < end).then_some(rest)
        };
        let piece = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, update).ok()?;
        Some(if own { (piece >> 32) as usize } else { (piece & 0xffff_ffff) as usize - 1 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_take_their_share_in_order_and_then_help() {
        let queue = Queue::new(2);
        queue.fill(5);
        let take = |thread| queue.take(thread);
        assert_eq!([take(0), take(1), take(0)], [Some(0), Some(2), Some(1)]);
        assert_eq!([take(0), take(0), take(1)], [Some(4), Some(3), None]);
        queue.fill(1);
        assert_eq!([take(0), take(1)], [Some(0), None]);
    }
}
