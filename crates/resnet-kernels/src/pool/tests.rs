use super::*;
use crate::layout::Blocked;
use crate::reference;
use crate::simd::AlignedVec;
use crate::testing::{assert_close, random};

fn blocked(dims: [usize; 4], halo: usize, planar: &[f32], pool: &ThreadPool) -> (Blocked, AlignedVec) {
    let layout = Blocked::new(dims).unwrap().with_halo([halo, halo]).unwrap();
    let mut data = AlignedVec::zeroed(layout.len()).unwrap();
    layout.pack(planar, &mut data, pool).unwrap();
    (layout, data)
}

fn check(spec: PoolSpec, dims: [usize; 4], poison: &[(usize, f32)]) {
    let mut planar = random(dims.iter().product(), 5);
    poison.iter().for_each(|(index, value)| planar[*index] = *value);
    let [h, w] = spec.output_hw([dims[2], dims[3]]).unwrap();
    let out_dims = [dims[0], dims[1], h, w];
    for isa in Isa::available() {
        for (halo, threads) in [(0, 1), (1, 2)] {
            let pool = ThreadPool::new(threads).unwrap();
            let (layout, data) = blocked(dims, halo, &planar, &pool);
            let run = |pooling: &dyn Fn(View, ViewMut) -> Result<(), Error>| {
                let layout_out = Blocked::new(out_dims).unwrap().with_halo([halo, 0]).unwrap();
                let mut out = AlignedVec::zeroed(layout_out.len()).unwrap();
                pooling(View { layout, data: &data }, ViewMut { layout: layout_out, data: &mut out })
                    .unwrap();
                let mut back = vec![0.0; out_dims.iter().product()];
                layout_out.unpack(&out, &mut back, &pool).unwrap();
                back
            };
            let what = format!("{spec:?} {dims:?} {}", isa.name());
            let max = run(&|input, output| max_pool(isa, &spec, input, output, &pool));
            assert_close(&what, &max, &reference::max_pool(&spec, dims, &planar).unwrap(), 0.0);
            for count_include_pad in [false, true] {
                let avg = AvgPoolSpec { window: spec, count_include_pad };
                let found = run(&|input, output| avg_pool(isa, &avg, input, output, &pool));
                assert_close(&what, &found, &reference::avg_pool(&avg, dims, &planar).unwrap(), 1e-6);
            }
        }
    }
}

const THREE: PoolSpec = PoolSpec { kernel: [3, 3], stride: [2, 2], padding: [1, 1], ceil_mode: false };

#[test]
fn pooling_matches_the_reference() {
    for size in [1, 2, 7, 8, 15, 56] {
        check(THREE, [2, 20, size, size + 1], &[]);
        check(PoolSpec { ceil_mode: true, ..THREE }, [1, 16, size, size + 1], &[]);
    }
    let two = PoolSpec { kernel: [2, 2], stride: [2, 2], padding: [0, 0], ceil_mode: false };
    check(two, [1, 5, 7, 8], &[]);
    check(PoolSpec { ceil_mode: true, ..two }, [1, 5, 7, 8], &[]);
    check(PoolSpec { stride: [1, 1], ..THREE }, [1, 33, 5, 6], &[]);
    check(PoolSpec { padding: [0, 0], ceil_mode: true, ..THREE }, [1, 16, 8, 8], &[]);
    check(PoolSpec { kernel: [5, 3], stride: [3, 1], padding: [2, 0], ceil_mode: true }, [1, 16, 9, 8], &[]);
    check(PoolSpec { kernel: [2, 2], stride: [3, 3], padding: [1, 1], ceil_mode: true }, [1, 16, 6, 7], &[]);
}

#[test]
fn nan_propagates_and_padding_does_not() {
    for poison in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        check(THREE, [1, 16, 7, 7], &[(0, poison), (24, poison), (100, poison)]);
    }
    let negative = vec![-3.0; 16];
    let expected = reference::max_pool(&THREE, [1, 1, 4, 4], &negative).unwrap();
    assert_eq!(expected, vec![-3.0; 4]);
}

#[test]
fn global_average_pool_matches_the_reference() {
    for isa in Isa::available() {
        for (dims, threads) in [([2, 20, 7, 7], 1), ([1, 100, 1, 1], 3), ([3, 64, 5, 2], 2)] {
            let pool = ThreadPool::new(threads).unwrap();
            let planar = random(dims.iter().product(), 6);
            let (layout, data) = blocked(dims, 1, &planar, &pool);
            let mut out = vec![f32::NAN; dims[0] * dims[1]];
            global_avg_pool(isa, View { layout, data: &data }, &mut out, &pool).unwrap();
            let spec =
                PoolSpec { kernel: [dims[2], dims[3]], stride: [1, 1], padding: [0, 0], ceil_mode: false };
            let expected =
                reference::avg_pool(&AvgPoolSpec { window: spec, count_include_pad: true }, dims, &planar)
                    .unwrap();
            assert_close(isa.name(), &out, &expected, 1e-6);
            assert!(global_avg_pool(isa, View { layout, data: &data }, &mut out[1..], &pool).is_err());
        }
    }
}

#[test]
fn invalid_windows_are_rejected() {
    let message = |spec: PoolSpec, size| spec.output_hw(size).unwrap_err().to_string();
    assert_eq!(
        message(PoolSpec { stride: [2, 0], ..THREE }, [4, 4]),
        "horizontal stride is zero, expected at least 1"
    );
    let padding = "invalid pooling padding 2, expected at most half the kernel size 3";
    assert_eq!(message(PoolSpec { padding: [1, 2], ..THREE }, [4, 4]), padding);
    let small = "input width 2 with padding 0 is smaller than the kernel extent 3";
    assert_eq!(message(PoolSpec { padding: [0, 0], ..THREE }, [4, 2]), small);
}
