//! One mutable buffer handed out to many tasks in chunks that cannot overlap.

use std::marker::PhantomData;
use std::ops::Range;

use super::ThreadPool;

/// A pointer that tasks may chunk; what makes that sound is argued where it is dereferenced.
pub(super) struct Pointer<T>(pub(super) *mut T);

// SAFETY: a pointer is a number; every dereference carries its own argument.
unsafe impl<T: Send> Sync for Pointer<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for Pointer<T> {}

impl<T> Pointer<T> {
    /// A method, so that closures capture the whole struct, which is `Sync`, and not its field.
    pub(super) fn get(&self) -> *mut T {
        self.0
    }
}

/// An axis and the chunks it is cut into: of nearly equal length, so that all threads are done at the same time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Axis {
    pub len: usize,
    /// Borders are multiples of this.
    pub unit: usize,
    /// Units that a piece has at most.
    pub max_units: usize,
}

impl Axis {
    pub(crate) fn chunks(&self) -> usize {
        self.len.div_ceil(self.unit).div_ceil(self.max_units)
    }

    /// The range of a piece: disjoint and within the axis for different numbers below [`Axis::chunks`].
    pub(super) fn chunk(&self, number: usize) -> Range<usize> {
        let (units, chunks) = (self.len.div_ceil(self.unit), self.chunks());
        let border = |number: usize| (units * number / chunks * self.unit).min(self.len);
        border(number)..border(number + 1)
    }
}

/// What a thread keeps while its tasks go on: tasks are numbered along the other axes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TaskOrder {
    /// The image, then the part of the run (rows): what the layer before wrote there is in the thread's cache.
    Rows,
    /// The inner indices (channels): no other thread reads their weights.
    Channels,
}

/// How a buffer `[outer][inner][run]` is cut into tasks.
///
/// A task owns the product of a range of outer indices (images), a range of inner indices (channel blocks) and a range
/// of positions in the run of each such cell (rows).
#[derive(Clone, Debug)]
pub(crate) struct Partition<'a> {
    pub order: TaskOrder,
    pub outer: Axis,
    /// Elements from one outer index to the next.
    pub outer_stride: usize,
    /// Ascending borders between which the inner range is never partition.
    pub inner_bounds: &'a [usize],
    /// Intervals of `inner_bounds` that a task gets at most.
    pub inner_group: usize,
    /// Elements from one inner index to the next; a run lies within.
    pub inner_stride: usize,
    /// First position of the part of the run that is partition.
    pub run_start: usize,
    pub run: Axis,
}

/// What a task owns of the shared buffer.
#[derive(Debug)]
pub(crate) struct Chunk<'a> {
    data: *mut f32,
    outer_stride: usize,
    inner_stride: usize,
    /// Owned outer indices.
    pub(crate) outer: Range<usize>,
    /// Owned inner indices.
    pub(crate) inner: Range<usize>,
    /// The intervals of `inner_bounds` that `inner` consists of.
    pub(crate) groups: Range<usize>,
    /// Owned positions in the run of every owned cell.
    pub(crate) run: Range<usize>,
    lifetime: PhantomData<&'a mut [f32]>,
}

/// Exclusive access to the same positions of several cells in a row: what a tile kernel writes to.
#[derive(Debug)]
pub(crate) struct TileOutput<'a> {
    data: *mut f32,
    /// Elements from one block to the next.
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

    /// The indices and positions of a task: different tasks never chunk a position of a cell, since ranges of
    /// each of the three axes are disjoint for different numbers along it.
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

    /// Panics unless cells are disjoint and inside a buffer of `len`; a mistake of this crate, never of its user.
    fn assert_disjoint(&self, len: usize) {
        assert!(self.inner_bounds.is_sorted() && self.run_start + self.run.len <= self.inner_stride);
        let inner = self.inner_bounds.last().map_or(0, |end| end * self.inner_stride);
        assert!(inner <= self.outer_stride && self.outer.len * self.outer_stride <= len);
    }
}

impl ThreadPool {
    /// Runs `task(worker, chunk)` for every task of `cut`, each with exclusive access to its chunk of `data`.
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

    /// As [`ThreadPool::run_partitioned`], with a private piece of `scratch`, `per_worker` long, for each running task.
    pub(crate) fn run_partitioned_with_scratch(
        &self,
        data: &mut [f32],
        partition: &Partition,
        (scratch, per_worker): (&mut [f32], usize),
        task: impl Fn(&mut [f32], Chunk) + Sync,
    ) {
        assert!(scratch.len() / self.threads() >= per_worker);
        let scratch = Pointer(scratch.as_mut_ptr());
        self.run_partitioned(data, partition, |worker, chunk| {
            // SAFETY: `worker` is below the number of threads, so the piece lies inside the borrowed slice by the
            // assertion; no two running tasks have the same worker number, so the piece is not aliased.
            let private =
                unsafe { std::slice::from_raw_parts_mut(scratch.get().add(worker * per_worker), per_worker) };
            task(private, chunk);
        });
    }
}

impl Chunk<'_> {
    /// Positions `run` of one cell. Panics unless this chunk owns them.
    pub(crate) fn slice(&mut self, outer: usize, inner: usize, run: Range<usize>) -> &mut [f32] {
        assert!(self.outer.contains(&outer) && self.inner.contains(&inner));
        assert!(self.run.start <= run.start && run.start <= run.end && run.end <= self.run.end);
        let start = outer * self.outer_stride + inner * self.inner_stride + run.start;
        // SAFETY: the assertions put the positions inside this chunk. They are inside the buffer (`assert_disjoint`),
        // belong to no other task (`Partition::task`), and `&mut self` keeps this task from holding them twice.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(start), run.len()) }
    }

    /// The owned positions of `blocks` cells from `inner` on. Panics unless this chunk owns them.
    pub(crate) fn tile_output(&mut self, outer: usize, inner: usize, blocks: usize) -> TileOutput<'_> {
        assert!(self.outer.contains(&outer) && self.inner.start <= inner && inner + blocks <= self.inner.end);
        let start = outer * self.outer_stride + inner * self.inner_stride;
        // SAFETY: the cell starts inside the buffer: `outer` and `inner` are in the range `assert_disjoint` checked.
        let data = unsafe { self.data.add(start) };
        TileOutput { data, stride: self.inner_stride, blocks, run: self.run.clone(), lifetime: PhantomData }
    }
}

impl<'a> TileOutput<'a> {
    /// All of `data` as `blocks` blocks that start `stride` apart and may overlap: each ends where the last one does, or as
    /// far before as it starts before it.
    pub(crate) fn from_slice(data: &'a mut [f32], stride: usize, blocks: usize) -> Self {
        let before = blocks.saturating_sub(1) * stride;
        assert!(before <= data.len());
        Self { run: 0..data.len() - before, data: data.as_mut_ptr(), stride, blocks, lifetime: PhantomData }
    }

    /// Start of the first block. Position `p` of block `b`, at `b * stride + p`, may be read and written through it for
    /// `b < blocks` and `p` in `run`, as long as `self` is borrowed.
    pub(crate) fn as_mut_ptr(&mut self) -> *mut f32 {
        self.data
    }
}
