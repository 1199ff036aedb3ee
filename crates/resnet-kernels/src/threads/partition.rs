//! Partition of a mutable buffer into disjoint chunks, one per task.

use std::marker::PhantomData;
use std::ops::Range;

use super::ThreadPool;

/// Pointer that can be sent to tasks; soundness is argued at each dereference.
pub(super) struct Pointer<T>(pub(super) *mut T);

// SAFETY: sharing a pointer is harmless; every dereference has its own argument.
unsafe impl<T: Send> Sync for Pointer<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for Pointer<T> {}

impl<T> Pointer<T> {
    /// Returns the pointer. A method, so that closures capture the struct, which is `Sync`, and not its field.
    pub(super) fn get(&self) -> *mut T {
        self.0
    }
}

/// Axis split into chunks of nearly equal length, so that all threads finish at the same time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Axis {
    pub len: usize,
    /// Granularity: chunk bounds are multiples of this.
    pub unit: usize,
    /// Maximum number of units per chunk.
    pub max_units: usize,
}

impl Axis {
    pub(crate) fn chunks(&self) -> usize {
        self.len.div_ceil(self.unit).div_ceil(self.max_units)
    }

    /// Returns the range of chunk `number`. Ranges of different chunks are disjoint and within the axis.
    pub(super) fn chunk(&self, number: usize) -> Range<usize> {
        let (units, chunks) = (self.len.div_ceil(self.unit), self.chunks());
        let bound = |number: usize| (units * number / chunks * self.unit).min(self.len);
        bound(number)..bound(number + 1)
    }
}

/// Order in which tasks are numbered, which decides what stays in a thread's cache from one task to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TaskOrder {
    /// Consecutive tasks share image and rows, which the thread mostly wrote itself in the previous layer.
    Rows,
    /// Consecutive tasks share channels, whose weights no other thread reads.
    Channels,
}

/// Partition of a buffer `[outer][inner][run]` into tasks.
///
/// A task owns a range of outer indices (images) × a range of inner indices (channel blocks) × a range of positions
/// within each of their runs (rows).
#[derive(Clone, Debug)]
pub(crate) struct Partition<'a> {
    pub order: TaskOrder,
    pub outer: Axis,
    /// Elements between consecutive outer indices.
    pub outer_stride: usize,
    /// Ascending bounds; the inner range is split at these only.
    pub inner_bounds: &'a [usize],
    /// Maximum number of intervals of `inner_bounds` per task.
    pub inner_group: usize,
    /// Elements between consecutive inner indices; at least the length of a run.
    pub inner_stride: usize,
    /// First position of the part of a run that is partitioned.
    pub run_start: usize,
    pub run: Axis,
}

/// Part of the shared buffer that a task owns.
#[derive(Debug)]
pub(crate) struct Chunk<'a> {
    data: *mut f32,
    outer_stride: usize,
    inner_stride: usize,
    /// Owned outer indices.
    pub(crate) outer: Range<usize>,
    /// Owned inner indices.
    pub(crate) inner: Range<usize>,
    /// Intervals of `inner_bounds` that make up `inner`.
    pub(crate) groups: Range<usize>,
    /// Owned positions within the run of every owned index.
    pub(crate) run: Range<usize>,
    lifetime: PhantomData<&'a mut [f32]>,
}

/// Exclusive access to the same positions of consecutive channel blocks: the output of a register tile.
#[derive(Debug)]
pub(crate) struct TileOutput<'a> {
    data: *mut f32,
    /// Elements between consecutive blocks.
    pub(crate) stride: usize,
    /// Number of blocks.
    pub(crate) blocks: usize,
    /// Positions within each block that may be read and written.
    pub(crate) run: Range<usize>,
    lifetime: PhantomData<&'a mut [f32]>,
}

impl Partition<'_> {
    /// Number of tasks.
    pub(crate) fn tasks(&self) -> usize {
        self.outer.chunks() * self.groups().chunks() * self.run.chunks()
    }

    fn groups(&self) -> Axis {
        Axis { len: self.inner_bounds.len().saturating_sub(1), unit: 1, max_units: self.inner_group }
    }

    /// Returns the ranges of a task. No position belongs to two tasks, since along each of the three axes different
    /// numbers have disjoint ranges.
    fn task(&self, index: usize) -> [Range<usize>; 4] {
        let (groups, chunks) = (self.groups().chunks(), self.run.chunks());
        let (group, rest) = match self.order {
            TaskOrder::Rows => (index % groups, index / groups),
            TaskOrder::Channels => {
                let each = self.outer.chunks() * chunks;
                (index / each, index % each)
            }
        };
        let group = self.groups().chunk(group);
        let run = self.run.chunk(rest % chunks);
        let outer = self.outer.chunk(rest / chunks);
        let inner = self.inner_bounds[group.start]..self.inner_bounds[group.end];
        [outer, inner, group, self.run_start + run.start..self.run_start + run.end]
    }

    /// Panics unless all runs are disjoint and inside a buffer of length `len`. A failure is a bug in this crate.
    fn assert_disjoint(&self, len: usize) {
        assert!(self.inner_bounds.is_sorted() && self.run_start + self.run.len <= self.inner_stride);
        let inner = self.inner_bounds.last().map_or(0, |end| end * self.inner_stride);
        assert!(inner <= self.outer_stride && self.outer.len * self.outer_stride <= len);
    }
}

impl ThreadPool {
    /// Runs `task(worker, chunk)` for every task of `partition`, each with exclusive access to its chunk of `data`.
    pub(crate) fn run_partitioned(
        &self,
        data: &mut [f32],
        partition: &Partition,
        task: impl Fn(usize, Chunk) + Sync,
    ) {
        partition.assert_disjoint(data.len());
        let (outer_stride, inner_stride) = (partition.outer_stride, partition.inner_stride);
        let data = Pointer(data.as_mut_ptr());
        self.run(partition.tasks(), |worker, index| {
            let [outer, inner, groups, run] = partition.task(index);
            let data = data.get();
            task(
                worker,
                Chunk { data, outer_stride, inner_stride, outer, inner, groups, run, lifetime: PhantomData },
            );
        });
    }

    /// As [`ThreadPool::run_partitioned`], with `per_worker` elements of `scratch` for each running task.
    pub(crate) fn run_with_scratch(
        &self,
        data: &mut [f32],
        partition: &Partition,
        (scratch, per_worker): (&mut [f32], usize),
        task: impl Fn(&mut [f32], Chunk) + Sync,
    ) {
        assert!(scratch.len() / self.threads() >= per_worker);
        let scratch = Pointer(scratch.as_mut_ptr());
        self.run_partitioned(data, partition, |worker, chunk| {
            // SAFETY: `worker` is less than the number of threads, so the range is inside the borrowed slice by the
            // assertion; no two running tasks have the same worker index, so the range is not aliased.
            let scratch =
                unsafe { std::slice::from_raw_parts_mut(scratch.get().add(worker * per_worker), per_worker) };
            task(scratch, chunk);
        });
    }
}

impl Chunk<'_> {
    /// Returns positions `run` of one run. Panics unless this chunk owns them.
    pub(crate) fn slice(&mut self, outer: usize, inner: usize, run: Range<usize>) -> &mut [f32] {
        assert!(self.outer.contains(&outer) && self.inner.contains(&inner));
        assert!(self.run.start <= run.start && run.start <= run.end && run.end <= self.run.end);
        let start = outer * self.outer_stride + inner * self.inner_stride + run.start;
        // SAFETY: the assertions put the positions inside this chunk. They are inside the buffer (`assert_disjoint`),
        // belong to no other task (`Partition::task`), and `&mut self` prevents this task from borrowing them twice.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(start), run.len()) }
    }

    /// Returns the owned positions of `blocks` inner indices from `inner` on. Panics unless this chunk owns them.
    pub(crate) fn tile_output(&mut self, outer: usize, inner: usize, blocks: usize) -> TileOutput<'_> {
        assert!(self.outer.contains(&outer) && self.inner.start <= inner && inner + blocks <= self.inner.end);
        let start = outer * self.outer_stride + inner * self.inner_stride;
        // SAFETY: the start is inside the buffer: `assert_disjoint` has checked the ranges of `outer` and `inner`.
        let data = unsafe { self.data.add(start) };
        TileOutput { data, stride: self.inner_stride, blocks, run: self.run.clone(), lifetime: PhantomData }
    }
}

impl<'a> TileOutput<'a> {
    /// Uses all of `data` as `blocks` overlapping blocks that start `stride` elements apart and have equal lengths.
    pub(crate) fn from_slice(data: &'a mut [f32], stride: usize, blocks: usize) -> Self {
        let before = blocks.saturating_sub(1) * stride;
        assert!(before <= data.len());
        Self { run: 0..data.len() - before, data: data.as_mut_ptr(), stride, blocks, lifetime: PhantomData }
    }

    /// Returns a pointer to the first block. Position `p` of block `b`, at `b * stride + p`, may be read and written
    /// through it for `b < blocks` and `p` in `run`, as long as `self` is borrowed.
    pub(crate) fn as_mut_ptr(&mut self) -> *mut f32 {
        self.data
    }
}
