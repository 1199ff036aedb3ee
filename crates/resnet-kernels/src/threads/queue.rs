//! Work-stealing queue of task indices.

use std::sync::atomic::{AtomicU64, Ordering};

/// One range of task indices per thread: the owner takes from the start, other threads steal from the end.
pub(super) struct TaskQueue(Box<[TaskRange]>);

/// `start << 32 | end`, on its own cache line.
#[repr(align(64))]
struct TaskRange(AtomicU64);

impl TaskQueue {
    /// Maximum number of tasks.
    pub(super) const MAX_TASKS: usize = u32::MAX as usize;

    pub(super) fn new(threads: usize) -> Self {
        Self((0..threads).map(|_| TaskRange(AtomicU64::new(0))).collect())
    }

    /// Replaces the remaining tasks with `0..tasks`, at most [`TaskQueue::MAX_TASKS`].
    pub(super) fn reset(&self, tasks: usize) {
        let bound = |thread: usize| tasks as u64 * thread as u64 / self.0.len() as u64;
        for (thread, range) in self.0.iter().enumerate() {
            // Threads that take tasks either join later or find the previous tasks exhausted.
            range.0.store(bound(thread) << 32 | bound(thread + 1), Ordering::Relaxed);
        }
    }

    /// Returns the next task for `thread`, or `None` when none is left. Every task is returned once.
    pub(super) fn take(&self, thread: usize) -> Option<usize> {
        let threads = self.0.len();
        (0..threads).find_map(|step| self.0[(thread + step) % threads].take(step == 0))
    }
}

impl TaskRange {
    fn take(&self, own: bool) -> Option<usize> {
        let update = |range: u64| {
            let (start, end) = (range >> 32, range & 0xffff_ffff);
            let rest = if own { (start + 1) << 32 | end } else { start << 32 | (end.wrapping_sub(1)) };
            (start < end).then_some(rest)
        };
        let range = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, update).ok()?;
        Some(if own { (range >> 32) as usize } else { (range & 0xffff_ffff) as usize - 1 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_take_their_range_in_order_and_then_steal() {
        let queue = TaskQueue::new(2);
        queue.reset(5);
        let take = |thread| queue.take(thread);
        assert_eq!([take(0), take(1), take(0)], [Some(0), Some(2), Some(1)]);
        assert_eq!([take(0), take(0), take(1)], [Some(4), Some(3), None]);
        queue.reset(1);
        assert_eq!([take(0), take(1)], [Some(0), None]);
    }
}
