use super::*;
use std::sync::atomic::AtomicBool;

#[test]
fn every_task_runs_once() {
    for threads in [1, 2, 5] {
        let pool = ThreadPool::new(threads).unwrap();
        for tasks in [0, 1, 2, 7, 1000] {
            let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
            let busy: Vec<AtomicBool> = (0..threads).map(|_| AtomicBool::new(false)).collect();
            pool.run(tasks, |worker, index| {
                assert!(!busy[worker].swap(true, Ordering::SeqCst));
                counts[index].fetch_add(1, Ordering::SeqCst);
                busy[worker].store(false, Ordering::SeqCst);
            });
            assert!(counts.iter().all(|count| count.load(Ordering::SeqCst) == 1));
        }
    }
}

#[test]
fn sleeping_workers_wake() {
    let pool = ThreadPool::new(3).unwrap();
    for _ in 0..20 {
        std::thread::sleep(SPIN * 4);
        let sum = AtomicUsize::new(0);
        pool.run(100, |_, index| {
            sum.fetch_add(index, Ordering::Relaxed);
        });
        assert_eq!(sum.into_inner(), 4950);
    }
}

#[test]
fn task_panics_propagate_and_the_pool_stays_usable() {
    let pool = ThreadPool::new(2).unwrap();
    for bad in [0, 3, 63] {
        let result = catch_unwind(AssertUnwindSafe(|| {
            pool.run(64, |_, index| assert_ne!(index, bad, "task {bad}"));
        }));
        let panic = result.unwrap_err();
        assert!(panic.downcast_ref::<String>().unwrap().contains(&format!("task {bad}")));
        let sum = AtomicUsize::new(0);
        pool.run(10, |_, index| {
            sum.fetch_add(index, Ordering::Relaxed);
        });
        assert_eq!(sum.into_inner(), 45);
    }
}

#[test]
fn concurrent_and_nested_calls_do_not_deadlock() {
    let pool = ThreadPool::new(3).unwrap();
    let sum = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..200 {
                    pool.run(8, |_, _| {
                        pool.run(4, |worker, _| {
                            assert_eq!(worker, 0);
                            sum.fetch_add(1, Ordering::Relaxed);
                        });
                    });
                }
            });
        }
    });
    assert_eq!(sum.into_inner(), 4 * 200 * 8 * 4);
}

#[test]
fn chunks_cover_the_partition_once() {
    let pool = ThreadPool::new(2).unwrap();
    let (outer_stride, inner_stride) = (5 * 12 + 3, 12);
    for (outer_most, inner_group, run_most, order) in [
        (1, 1, 2, TaskOrder::Rows),
        (2, 2, 3, TaskOrder::Channels),
        (3, 9, 100, TaskOrder::Rows),
        (2, 1, 1, TaskOrder::Rows),
    ] {
        let partition = Partition {
            order,
            outer: Axis { len: 3, unit: 1, max_units: outer_most },
            outer_stride,
            inner_bounds: &[0, 2, 3, 5],
            inner_group,
            inner_stride,
            run_start: 1,
            run: Axis { len: 10, unit: 3, max_units: run_most },
        };
        let mut data = vec![0.0; 3 * outer_stride];
        pool.run_partitioned(&mut data, &partition, |_, mut chunk| {
            let (inner, run) = (chunk.inner.clone(), chunk.run.clone());
            for (outer, inner) in chunk.outer.clone().flat_map(|o| inner.clone().map(move |i| (o, i))) {
                chunk.slice(outer, inner, run.clone()).iter_mut().for_each(|x| *x += 1.0);
            }
        });
        for (index, x) in data.iter().enumerate() {
            let (cell, position) = (index % outer_stride / inner_stride, index % outer_stride % inner_stride);
            let owned = cell < 5 && (1..11).contains(&position);
            assert_eq!(*x, if owned { 1.0 } else { 0.0 }, "{index}");
        }
    }
}

#[test]
fn chunk_lengths_are_balanced_multiples_of_the_unit() {
    let lengths = |len, unit, max_units| {
        let axis = Axis { len, unit, max_units };
        (0..axis.chunks()).map(|number| axis.chunk(number).len()).collect::<Vec<_>>()
    };
    assert_eq!(lengths(14, 1, 4), [3, 4, 3, 4]);
    assert_eq!(lengths(28, 4, 2), [4, 8, 8, 8]);
    assert_eq!(lengths(7, 4, 1), [4, 3]);
    assert_eq!(lengths(5, 1, 9), [5]);
}

#[test]
#[should_panic(expected = "assertion failed")]
fn chunks_reject_positions_they_do_not_own() {
    let pool = ThreadPool::new(1).unwrap();
    let partition = Partition {
        order: TaskOrder::Rows,
        outer: Axis { len: 1, unit: 1, max_units: 1 },
        outer_stride: 8,
        inner_bounds: &[0, 1, 2],
        inner_group: 1,
        inner_stride: 4,
        run_start: 0,
        run: Axis { len: 4, unit: 4, max_units: 1 },
    };
    pool.run_partitioned(&mut [0.0; 8], &partition, |_, mut chunk| {
        let foreign = 1 - chunk.inner.start;
        chunk.slice(0, foreign, 0..4);
    });
}

#[test]
fn invalid_thread_counts_are_rejected() {
    assert_eq!(
        ThreadPool::new(0).unwrap_err().to_string(),
        "invalid number of threads 0, expected 1 to 1024"
    );
    assert!(ThreadPool::new(MAX_THREADS + 1).is_err());
}
