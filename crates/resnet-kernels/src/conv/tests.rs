use super::*;
use crate::layout::LANES;
use crate::reference;
use crate::simd::{AlignedVec, Isa};
use crate::testing::{assert_close, random};
use proptest::prelude::*;

/// Test case: everything but the algorithm and the instruction set.
#[derive(Clone, Copy, Debug)]
struct Case {
    shape: ConvShape,
    batch: usize,
    size: [usize; 2],
    bias: bool,
    residual: Added,
    activation: Activation,
    max_pool: Option<PoolSpec>,
    /// Extra halo of input, residual and output.
    spare: [usize; 3],
    threads: usize,
    chunked_sums: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Added {
    Nothing,
    Tensor,
    InPlace,
}

impl Case {
    fn new(shape: ConvShape, size: [usize; 2]) -> Self {
        Self {
            shape,
            batch: 1,
            size,
            bias: true,
            residual: Added::Nothing,
            activation: Activation::None,
            max_pool: None,
            spare: [0; 3],
            threads: 1,
            chunked_sums: false,
        }
    }

    fn input(&self) -> Vec<f32> {
        random(self.batch * self.shape.c_in * self.size[0] * self.size[1], 3)
    }

    /// Returns the output `[N, C, H, W]` of a plan; asserts that nothing outside the tensor was written.
    fn run(&self, plan: Plan, input: &[f32]) -> Vec<f32> {
        let Self { shape, batch, size, .. } = *self;
        let input_is_finite = input.iter().all(|x| x.is_finite());
        let pool = ThreadPool::new(self.threads).unwrap();
        let weights = random(shape.weight_len().unwrap(), 1);
        let bias = random(shape.c_out, 2);
        let conv_weights = ConvWeights { weights: &weights, bias: self.bias.then_some(&bias[..]) };
        let epilogue = Epilogue { activation: self.activation, max_pool: self.max_pool };
        let conv = PackedConv::new(shape, plan, conv_weights, epilogue).unwrap();
        let conv = if self.chunked_sums { conv.with_chunked_sums() } else { conv };
        let dims = [batch, shape.c_in, size[0], size[1]];
        let out_dims = conv.output_dims(dims).unwrap();
        let layout = |dims, spare: usize| Blocked::new(dims).unwrap().with_halo([spare, spare * 2]).unwrap();

        let [h, w] = conv.input_halo();
        let halo = [h + self.spare[0], w + self.spare[0]];
        let input_layout = Blocked::new(dims).unwrap().with_halo(halo).unwrap();
        let mut blocked = AlignedVec::zeroed(input_layout.len()).unwrap();
        input_layout.pack(input, &mut blocked, &pool).unwrap();
        let input = match plan.algorithm {
            Algorithm::Planar => Input::Planar { dims, data: input },
            _ => Input::Blocked(View { layout: input_layout, data: &blocked }),
        };

        let added = random(out_dims.iter().product(), 4);
        let added_layout = layout(out_dims, self.spare[1]);
        let mut added_blocked = AlignedVec::zeroed(added_layout.len()).unwrap();
        added_layout.pack(&added, &mut added_blocked, &pool).unwrap();
        let output_layout = layout(out_dims, self.spare[2]);
        let mut output = AlignedVec::zeroed(output_layout.len()).unwrap();
        output.fill(f32::NAN);
        let residual = match self.residual {
            Added::Nothing => Residual::None,
            Added::Tensor => Residual::Add(View { layout: added_layout, data: &added_blocked }),
            Added::InPlace => {
                output_layout.pack(&added, &mut output, &pool).unwrap();
                Residual::InPlace
            }
        };
        output_layout.clear_halo(&mut output).unwrap();
        let mut scratch = AlignedVec::zeroed(conv.scratch_len(dims, self.threads).unwrap()).unwrap();
        scratch.fill(f32::NAN);
        let view = ViewMut { layout: output_layout, data: &mut output };
        conv.run(input, residual, view, &mut scratch, &pool).unwrap();

        let mut planar = vec![0.0; added.len()];
        output_layout.unpack(&output, &mut planar, &pool).unwrap();
        if !input_is_finite {
            // Zero weights times infinity: padding channels are NaN too.
            return planar;
        }
        let mut again = AlignedVec::zeroed(output.len()).unwrap();
        output_layout.pack(&planar, &mut again, &pool).unwrap();
        let unchanged = again.iter().zip(&output[..]).all(|(a, b)| a == b || a.is_nan() && b.is_nan());
        assert!(unchanged, "halo or padding channels written by {self:?} {plan:?}");
        planar
    }

    fn reference(&self, input: &[f32]) -> Vec<f32> {
        let Self { shape, batch, size, .. } = *self;
        let weights = random(shape.weight_len().unwrap(), 1);
        let bias = random(shape.c_out, 2);
        let conv_weights = ConvWeights { weights: &weights, bias: self.bias.then_some(&bias[..]) };
        let mut output =
            reference::conv(&shape, conv_weights, [batch, shape.c_in, size[0], size[1]], input).unwrap();
        if self.residual != Added::Nothing {
            let added = random(output.len(), 4);
            output.iter_mut().zip(added).for_each(|(x, added)| *x += added);
        }
        if self.activation == Activation::Relu {
            output.iter_mut().for_each(|x| *x = if *x < 0.0 { 0.0 } else { *x });
        }
        match &self.max_pool {
            None => output,
            Some(spec) => {
                let [h, w] = shape.output_hw(size).unwrap();
                reference::max_pool(spec, [batch, shape.c_out, h, w], &output).unwrap()
            }
        }
    }

    /// Compares all supported algorithms on all instruction sets with the reference.
    fn check(&self) {
        let input = self.input();
        let expected = self.reference(&input);
        for isa in Isa::available() {
            for algorithm in self.algorithms() {
                for chunked_sums in [false, true] {
                    let found = Case { chunked_sums, ..*self }.run(Plan { algorithm, isa }, &input);
                    let wide = matches!(algorithm, Algorithm::Winograd4 | Algorithm::Winograd2x4);
                    let tolerance = if wide { 6e-6 } else { 2e-6 };
                    let what = format!("{self:?} {algorithm:?} {} chunked sums: {chunked_sums}", isa.name());
                    assert_close(&what, &found, &expected, tolerance);
                }
            }
        }
    }

    fn algorithms(&self) -> Vec<Algorithm> {
        let supported = |algorithm: &Algorithm| algorithm.supports(&self.shape).is_ok();
        let pools = |algorithm: &Algorithm| self.max_pool.is_none() || *algorithm == Algorithm::Planar;
        Algorithm::ALL.into_iter().filter(supported).filter(pools).collect()
    }
}

const K1: ConvShape = ConvShape::pointwise(16, 16);
const K3: ConvShape = ConvShape { kernel: [3, 3], padding: [1, 1], ..K1 };

#[test]
fn sizes_around_tile_edges() {
    for size in [1, 2, 3, 4, 5, 7, 8, 9, 14, 15, 28, 56, 57] {
        Case::new(ConvShape { c_in: 20, c_out: 40, ..K3 }, [size, size.min(19)]).check();
        Case::new(ConvShape { c_in: 33, c_out: 70, ..K1 }, [size.min(15), size]).check();
    }
}

#[test]
fn channels_around_block_and_panel_bounds() {
    for (c_in, c_out) in
        [(1, 1), (3, 16), (4, 17), (15, 64), (16, 65), (17, 80), (31, 96), (64, 129), (48, 144)]
    {
        Case::new(ConvShape { c_in, c_out, ..K3 }, [6, 7]).check();
        Case::new(ConvShape { c_in, c_out, ..K1 }, [5, 9]).check();
    }
}

#[test]
fn kernels_strides_padding_and_dilation() {
    let check = |kernel, stride, padding, dilation, size| {
        Case::new(ConvShape { c_in: 18, c_out: 36, kernel, stride, padding, dilation, groups: 1 }, size)
            .check();
    };
    for (kernel, padding) in
        [([1, 7], [0, 3]), ([7, 1], [3, 0]), ([1, 3], [0, 1]), ([3, 1], [1, 0]), ([5, 5], [2, 2])]
    {
        check(kernel, [1, 1], padding, [1, 1], [17, 9]);
    }
    check([7, 7], [2, 2], [3, 3], [1, 1], [23, 30]);
    check([3, 3], [2, 2], [1, 1], [1, 1], [14, 15]);
    check([3, 3], [2, 2], [0, 0], [1, 1], [15, 14]);
    check([3, 3], [1, 1], [0, 0], [1, 1], [9, 8]);
    check([3, 3], [1, 1], [2, 3], [1, 1], [6, 5]);
    check([3, 3], [1, 1], [2, 2], [2, 2], [9, 11]);
    check([3, 3], [1, 1], [4, 4], [4, 4], [9, 7]);
    check([1, 1], [2, 2], [0, 0], [1, 1], [9, 8]);
    check([1, 1], [1, 2], [1, 0], [1, 1], [4, 6]);
    check([2, 2], [2, 2], [0, 0], [1, 1], [8, 6]);
    check([4, 4], [4, 4], [0, 0], [1, 1], [8, 13]);
    check([3, 5], [3, 1], [1, 2], [1, 2], [11, 13]);
}

#[test]
fn stems() {
    for c_in in [1, 3, 4] {
        let shape = ConvShape { c_in, c_out: 64, kernel: [7, 7], stride: [2, 2], padding: [3, 3], ..K1 };
        let spec = PoolSpec { kernel: [3, 3], stride: [2, 2], padding: [1, 1], ceil_mode: false };
        for size in [[1, 1], [6, 5], [33, 64], [75, 40]] {
            let case = Case { batch: 2, activation: Activation::Relu, ..Case::new(shape, size) };
            case.check();
            Case { max_pool: Some(spec), ..case }.check();
            Case {
                max_pool: Some(PoolSpec { ceil_mode: true, padding: [0, 0], ..spec }),
                threads: 2,
                ..case
            }
            .check_if_it_fits();
            Case { max_pool: Some(PoolSpec { stride: [4, 1], kernel: [2, 3], ..spec }), threads: 3, ..case }
                .check_if_it_fits();
        }
    }
    let dilated = ConvShape { c_in: 3, c_out: 24, kernel: [3, 3], dilation: [2, 2], padding: [2, 2], ..K1 };
    Case::new(dilated, [12, 11]).check();
}

impl Case {
    /// Skips pooling windows larger than the output of the convolution.
    fn check_if_it_fits(&self) {
        let hw = self.shape.output_hw(self.size).unwrap();
        if self.max_pool.is_none_or(|spec| spec.output_hw(hw).is_ok()) {
            self.check();
        }
    }
}

#[test]
fn groups() {
    let check = |channels: usize, c_out, groups, stride| {
        let shape = ConvShape { c_in: channels, c_out, groups, stride: [stride, stride], ..K3 };
        Case::new(shape, [7, 9]).check();
        Case::new(ConvShape { kernel: [1, 1], padding: [0, 0], ..shape }, [7, 9]).check();
    };
    check(128, 128, 32, 1);
    check(128, 128, 32, 2);
    check(256, 256, 32, 1);
    check(64, 64, 4, 1);
    check(64, 64, 2, 1);
    check(256, 128, 2, 1);
    check(32, 32, 32, 1);
    check(20, 60, 20, 1);
    check(24, 36, 3, 1);
    check(12, 40, 4, 1);
    check(160, 160, 2, 1);
}

#[test]
fn epilogues() {
    for residual in [Added::Nothing, Added::Tensor, Added::InPlace] {
        for activation in [Activation::None, Activation::Relu] {
            for (bias, spare) in [(false, [0, 0, 0]), (true, [1, 0, 2]), (true, [0, 2, 1])] {
                let case = Case { residual, activation, bias, spare, batch: 2, ..Case::new(K3, [5, 6]) };
                case.check();
                Case { shape: ConvShape { c_in: 3, c_out: 40, ..K3 }, ..case }.check();
                Case { shape: ConvShape { c_in: 40, c_out: 70, stride: [2, 2], ..K1 }, ..case }.check();
            }
        }
    }
}

#[test]
fn results_do_not_depend_on_threads() {
    let check = |shape: ConvShape, size, batch| {
        let case =
            Case { batch, residual: Added::Tensor, activation: Activation::Relu, ..Case::new(shape, size) };
        let input = case.input();
        for isa in Isa::available() {
            for algorithm in case.algorithms() {
                let run = |threads| Case { threads, ..case }.run(Plan { algorithm, isa }, &input);
                let bits = |data: Vec<f32>| data.into_iter().map(f32::to_bits).collect::<Vec<_>>();
                let one = bits(run(1));
                for threads in [2, 3, 5] {
                    assert_eq!(bits(run(threads)), one, "{shape:?} {algorithm:?} {}", isa.name());
                }
            }
        }
    };
    check(ConvShape { c_in: 64, c_out: 64, ..K3 }, [28, 29], 1);
    check(ConvShape { c_in: 32, c_out: 272, ..K3 }, [7, 7], 5);
    check(ConvShape { c_in: 64, c_out: 320, ..K1 }, [14, 14], 2);
    check(ConvShape { c_in: 3, c_out: 48, stride: [2, 2], ..K3 }, [45, 41], 2);
}

#[test]
fn chunked_sums_are_more_accurate() {
    let stem = ConvShape { c_in: 3, c_out: 64, kernel: [7, 7], stride: [2, 2], padding: [3, 3], ..K1 };
    for shape in [stem, ConvShape { c_in: 512, c_out: 64, ..K3 }, ConvShape { c_in: 2048, ..K1 }] {
        let case = Case::new(shape, [32, 32]);
        let (input, expected) = (case.input(), case.reference(&case.input()));
        let exact =
            Plan::choose(&shape, InputHint { batch: 1, input: [32, 32] }, Isa::best(), Precision::Exact);
        let [single, chunked] = [false, true].map(|chunked_sums| {
            let found = Case { chunked_sums, ..case }.run(exact, &input);
            found.iter().zip(&expected).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt()
        });
        assert!(chunked < 0.6 * single, "{shape:?}: error {chunked} with chunked sums, {single} without");
    }
}

#[test]
fn tile_blocks_span_images() {
    for (batch, size) in [(2, 7), (3, 9), (9, 4), (5, 13)] {
        for threads in [1, 2] {
            Case { batch, threads, ..Case::new(ConvShape { c_in: 48, c_out: 80, ..K3 }, [size, size]) }
                .check();
        }
    }
}

#[test]
fn winograd_error_is_bounded() {
    for channels in [64, 256] {
        let shape = ConvShape { c_in: channels, c_out: 64, ..K3 };
        let case = Case { bias: false, ..Case::new(shape, [14, 14]) };
        let input: Vec<f32> = case.input().into_iter().map(|x| x.max(0.0)).collect();
        let expected = case.reference(&input);
        let rms = |data: &mut dyn Iterator<Item = f64>| {
            (data.map(|x| x * x).sum::<f64>() / expected.len() as f64).sqrt()
        };
        let scale = rms(&mut expected.iter().map(|x| f64::from(*x)));
        for isa in Isa::available() {
            for (algorithm, bound) in
                [(Algorithm::Direct, 6e-7), (Algorithm::Winograd2, 8e-7), (Algorithm::Winograd4, 1.6e-6)]
            {
                let found = case.run(Plan { algorithm, isa }, &input);
                let error = rms(&mut found.iter().zip(&expected).map(|(f, e)| f64::from(f - e)));
                assert!(
                    error <= bound * scale,
                    "{algorithm:?} {} {channels}: {:e}",
                    isa.name(),
                    error / scale
                );
            }
        }
    }
}

#[test]
fn nan_and_infinity_propagate_as_in_a_direct_sum() {
    let case = Case::new(ConvShape { c_in: 16, c_out: 20, ..K3 }, [11, 13]);
    for value in [f32::NAN, f32::INFINITY] {
        let mut input = case.input();
        input[5 * 11 * 13 + 4 * 13 + 6] = value;
        let expected = case.reference(&input);
        for isa in Isa::available() {
            let direct = case.run(Plan { algorithm: Algorithm::Direct, isa }, &input);
            assert_close(isa.name(), &direct, &expected, 2e-6);
            let relu = Case { activation: Activation::Relu, ..case };
            let direct = relu.run(Plan { algorithm: Algorithm::Direct, isa }, &input);
            assert_close(isa.name(), &direct, &relu.reference(&input), 2e-6);
            for (algorithm, tile) in [(Algorithm::Winograd2, 2), (Algorithm::Winograd4, 4)] {
                let found = case.run(Plan { algorithm, isa }, &input);
                for (index, (f, e)) in found.iter().zip(&expected).enumerate() {
                    let (y, x) = (index / 13 % 11, index % 13);
                    let what = format!("{algorithm:?} {} {y} {x}: {f}, expected {e}", isa.name());
                    let tiled = |at: usize, from: usize, to: usize| {
                        at / tile >= from / tile && at / tile <= to / tile
                    };
                    if !e.is_finite() {
                        assert!(!f.is_finite(), "{what}");
                    } else if !(tiled(y, 3, 5) && tiled(x, 5, 7)) {
                        assert!((f - e).abs() < 1e-4, "{what}");
                    }
                }
            }
        }
    }
}

#[test]
fn kernel_names_have_the_documented_format() {
    for isa in Isa::available() {
        let weights = vec![0.0; 64 * 64 * 9];
        let conv_weights = ConvWeights { weights: &weights, bias: None };
        let shape = ConvShape { c_in: 64, c_out: 64, ..K3 };
        let plan = Plan { algorithm: Algorithm::Winograd4, isa };
        let name = PackedConv::new(shape, plan, conv_weights, Epilogue::default()).unwrap().kernel_name();
        let tile = match isa.name() {
            "avx512" => "64x6",
            "portable" => "16x2",
            _ => "16x6",
        };
        assert_eq!(name, format!("winograd4-f32-{tile}-{}", isa.name()));
    }
}

#[test]
fn invalid_calls_are_rejected() {
    let plan = Plan { algorithm: Algorithm::Direct, isa: Isa::best() };
    let weights = vec![0.0; 16 * 16 * 9];
    let conv_weights = ConvWeights { weights: &weights, bias: None };
    let error = |result: Result<PackedConv, Error>| result.unwrap_err().to_string();
    let new = |shape, plan, conv_weights, epilogue| PackedConv::new(shape, plan, conv_weights, epilogue);
    let short = ConvWeights { weights: &weights[1..], bias: None };
    assert_eq!(error(new(K3, plan, short, Epilogue::default())), "weights has length 2303, expected 2304");
    let bias = ConvWeights { bias: Some(&[0.0; 3]), ..conv_weights };
    assert_eq!(error(new(K3, plan, bias, Epilogue::default())), "bias has length 3, expected 16");
    let spec = PoolSpec { kernel: [3, 3], stride: [2, 2], padding: [1, 1], ceil_mode: false };
    let pooled = Epilogue { max_pool: Some(spec), ..Epilogue::default() };
    assert_eq!(
        error(new(K3, plan, conv_weights, pooled)),
        "algorithm `direct` does not support fused max pooling"
    );

    let conv = new(K3, plan, conv_weights, Epilogue::default()).unwrap();
    let pool = ThreadPool::new(1).unwrap();
    let halo = Blocked::new([1, 16, 4, 4]).unwrap().with_halo([1, 1]).unwrap();
    let dense = Blocked::new([1, 16, 4, 4]).unwrap();
    let input = vec![0.0; halo.len()];
    let check = |layout: Blocked, output: Blocked, message: &str| {
        let mut data = vec![0.0; output.len()];
        let input = Input::Blocked(View { layout, data: &input[..layout.len().min(input.len())] });
        let output = ViewMut { layout: output, data: &mut data };
        let error = conv.run(input, Residual::None, output, &mut [], &pool).unwrap_err();
        assert_eq!(error.to_string(), message);
    };
    check(dense, dense, "input halo is 0x0 pixels, expected at least 1x1 (the padding of the convolution)");
    check(
        halo,
        Blocked::new([1, 16, 4, 5]).unwrap(),
        "output has shape [1, 16, 4, 5], expected [1, 16, 4, 4]",
    );
    check(Blocked { c: 17, ..halo }, dense, "input has shape [1, 17, 4, 4], expected [1, 16, 4, 4]");
    check(Blocked { n: 2, ..halo }, Blocked { n: 2, ..dense }, "input has length 576, expected 1152");
    let huge = Blocked { n: usize::MAX / 4, ..halo };
    let mut data = vec![0.0; 16];
    let output = ViewMut { layout: Blocked { halo: [0, 0], ..huge }, data: &mut data };
    let view = Input::Blocked(View { layout: huge, data: &input });
    let overflow = conv.run(view, Residual::None, output, &mut [], &pool).unwrap_err();
    assert_eq!(overflow.to_string(), "activation length overflows the address space");
    let planar = Input::Planar { dims: [1, 16, 4, 4], data: &input[..256] };
    let output = ViewMut { layout: dense, data: &mut vec![0.0; dense.len()] };
    let kind = conv.run(planar, Residual::None, output, &mut [], &pool).unwrap_err();
    assert_eq!(kind.to_string(), "expected blocked input for algorithm `direct`, found planar input");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn random_shapes_match(
        (group_in, group_out, groups) in (1usize..24, 1usize..24, 1usize..4),
        kernel in [1usize..5, 1..5],
        stride in [1usize..3, 1..3],
        padding in [0usize..3, 0..3],
        dilation in [1usize..3, 1..3],
        size in [1usize..14, 1..14],
        (batch, threads) in (1usize..3, 1usize..4),
        spare in [0usize..2, 0..2, 0..2],
        (added, relu) in (0..3usize, any::<bool>()),
    ) {
        let shape = ConvShape { c_in: group_in * groups, c_out: group_out * groups, kernel, stride, padding, dilation, groups };
        let mut case = Case::new(shape, size);
        case.residual = [Added::Nothing, Added::Tensor, Added::InPlace][added];
        case.activation = if relu { Activation::Relu } else { Activation::None };
        prop_assume!(shape.output_hw(size).is_ok());
        Case { batch, threads, spare, ..case }.check();
    }

    #[test]
    fn random_three_by_three_match(
        (c_in, c_out) in (1usize..80, 1usize..80),
        padding in [0usize..3, 0..3],
        size in [1usize..20, 1..20],
        (batch, threads) in (1usize..4, 1usize..4),
    ) {
        let shape = ConvShape { c_in, c_out, padding, ..K3 };
        prop_assume!(shape.output_hw(size).is_ok());
        Case { batch, threads, ..Case::new(shape, size) }.check();
    }
}

#[test]
fn packed_weights_are_padded_to_whole_vectors() {
    let weights = vec![1.0; 17 * 5 * 9];
    let shape = ConvShape { c_in: 17, c_out: 5, ..K3 };
    let plan = Plan { algorithm: Algorithm::Direct, isa: Isa::best() };
    let conv =
        PackedConv::new(shape, plan, ConvWeights { weights: &weights, bias: None }, Epilogue::default())
            .unwrap();
    assert_eq!(conv.bytes(), (32 * 9 * LANES + LANES) * 4);
}
