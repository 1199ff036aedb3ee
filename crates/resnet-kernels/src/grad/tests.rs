use super::*;
use crate::reference;
use crate::testing::{assert_close, random};

const BASE: ConvShape = ConvShape { kernel: [3, 3], padding: [1, 1], ..ConvShape::pointwise(5, 7) };

/// Returns the input and weight gradients, computed with naive loops in `f64`.
fn naive(conv: &PlanarConv, x: &[f32], weights: &[f32], grad: &[f32]) -> [Vec<f32>; 2] {
    let shape = &conv.shape;
    let [n, c, h, w] = conv.input;
    let [_, _, oh, ow] = conv.output().unwrap();
    let (ig, og) = (shape.c_in / shape.groups, shape.c_out / shape.groups);
    let (mut gx, mut gw) = (vec![0f64; x.len()], vec![0f64; weights.len()]);
    for image in 0..n {
        for oc in 0..shape.c_out {
            for (o, g) in grad[(image * shape.c_out + oc) * oh * ow..][..oh * ow].iter().enumerate() {
                for tap in 0..ig * shape.kernel[0] * shape.kernel[1] {
                    let (ic, tap) = (
                        tap / (shape.kernel[0] * shape.kernel[1]),
                        tap % (shape.kernel[0] * shape.kernel[1]),
                    );
                    let (ky, kx) = (tap / shape.kernel[1], tap % shape.kernel[1]);
                    let y =
                        (o / ow * shape.stride[0] + ky * shape.dilation[0]).wrapping_sub(shape.padding[0]);
                    let left =
                        (o % ow * shape.stride[1] + kx * shape.dilation[1]).wrapping_sub(shape.padding[1]);
                    if y < h && left < w {
                        let at = ((image * c + oc / og * ig + ic) * h + y) * w + left;
                        let weight = ((oc * ig + ic) * shape.kernel[0] + ky) * shape.kernel[1] + kx;
                        gx[at] += f64::from(*g) * f64::from(weights[weight]);
                        gw[weight] += f64::from(*g) * f64::from(x[at]);
                    }
                }
            }
        }
    }
    [gx, gw].map(|values| values.into_iter().map(|v| v as f32).collect())
}

fn check(shape: ConvShape, batch: usize, size: [usize; 2]) {
    let input = [batch, shape.c_in, size[0], size[1]];
    for isa in Isa::available() {
        let mut results = Vec::new();
        for threads in [1, 2] {
            let pool = ThreadPool::new(threads).unwrap();
            let conv = PlanarConv { shape, input, isa, precision: Precision::F32, pool: &pool };
            let x = random(input.iter().product(), 1);
            let weights = random(shape.weight_len().unwrap(), 2);
            let grad = random(conv.output().unwrap().iter().product(), 3);
            let y = conv.forward(&x, &weights).unwrap();
            let gx = conv.grad_input(&grad, &weights).unwrap();
            let gw = conv.grad_weights(&x, &grad).unwrap();
            let what = |part: &str| format!("{part} of {shape:?} {size:?} {}", isa.name());
            let conv_weights = ConvWeights { weights: &weights, bias: None };
            assert_close(
                &what("output"),
                &y,
                &reference::conv(&shape, conv_weights, input, &x).unwrap(),
                5e-6,
            );
            let [expected_x, expected_w] = naive(&conv, &x, &weights, &grad);
            assert_close(&what("input gradient"), &gx, &expected_x, 5e-6);
            assert_close(&what("weight gradient"), &gw, &expected_w, 5e-6);
            results.push([y, gx, gw]);
        }
        assert_eq!(results[0], results[1], "{shape:?} depends on the number of threads");
    }
}

#[test]
fn gradients_match_naive_loops() {
    check(BASE, 2, [9, 6]);
    check(ConvShape { stride: [2, 2], ..BASE }, 2, [9, 6]);
    check(ConvShape { stride: [2, 2], ..BASE }, 1, [8, 7]);
    check(ConvShape { kernel: [1, 1], padding: [0, 0], stride: [2, 2], ..BASE }, 2, [7, 8]);
    check(
        ConvShape { kernel: [7, 7], padding: [3, 3], stride: [2, 2], c_in: 3, c_out: 20, ..BASE },
        1,
        [17, 14],
    );
    check(ConvShape { kernel: [1, 7], padding: [0, 3], ..BASE }, 1, [4, 9]);
    check(ConvShape { kernel: [3, 2], padding: [0, 2], stride: [3, 1], ..BASE }, 1, [11, 5]);
    check(ConvShape { dilation: [2, 3], padding: [2, 3], ..BASE }, 1, [9, 10]);
    check(ConvShape { dilation: [2, 3], padding: [2, 1], stride: [2, 2], ..BASE }, 1, [12, 13]);
    check(ConvShape { padding: [4, 4], ..BASE }, 1, [3, 3]);
    check(ConvShape { padding: [0, 0], ..BASE }, 3, [3, 3]);
}

#[test]
fn wide_layers_and_groups() {
    let wide = ConvShape { c_in: 40, c_out: 72, ..BASE };
    check(wide, 2, [24, 24]);
    check(ConvShape { stride: [2, 2], ..wide }, 2, [14, 13]);
    check(ConvShape { groups: 8, ..wide }, 1, [9, 6]);
    check(ConvShape { groups: 4, c_in: 8, c_out: 128, stride: [2, 2], ..BASE }, 1, [9, 6]);
    check(ConvShape { groups: 16, c_in: 16, c_out: 16, ..BASE }, 2, [5, 5]);
}

#[test]
fn mismatched_lengths_and_shapes_are_rejected() {
    let pool = ThreadPool::new(1).unwrap();
    let (isa, precision) = (Isa::best(), Precision::F32);
    let conv = PlanarConv { shape: BASE, input: [1, 5, 4, 4], isa, precision, pool: &pool };
    let message = |result: Result<Vec<f32>, Error>| result.unwrap_err().to_string();
    assert_eq!(message(conv.forward(&[0.0; 3], &[0.0; 315])), "input has length 3, expected 80");
    assert_eq!(message(conv.grad_input(&[0.0; 112], &[0.0; 3])), "weights has length 3, expected 315");
    assert_eq!(message(conv.grad_weights(&[0.0; 80], &[0.0; 1])), "gradient has length 1, expected 112");
    let wrong = PlanarConv { input: [1, 4, 4, 4], ..conv };
    assert_eq!(message(wrong.forward(&[], &[])), "input has shape [1, 4, 4, 4], expected [1, 5, 4, 4]");
}

/// Compares the blocked kernels with the planar ones, which are tested against naive loops.
fn check_blocked(shape: ConvShape, batch: usize, size: [usize; 2]) {
    use crate::conv::Input;
    let input = [batch, shape.c_in, size[0], size[1]];
    for isa in Isa::available() {
        let mut results: Vec<[Vec<f32>; 4]> = Vec::new();
        for threads in [1, 2] {
            let pool = ThreadPool::new(threads).unwrap();
            let planar = PlanarConv { shape, input, isa, precision: Precision::F32, pool: &pool };
            let conv = BlockedConv { shape, input, isa, pool: &pool };
            let (from, to) = (Blocked::new(input).unwrap(), conv.output().unwrap());
            let x = random(input.iter().product(), 1);
            let weights = random(shape.weight_len().unwrap(), 2);
            let grad = random(planar.output().unwrap().iter().product(), 3);
            let (mut bx, mut bg) = (vec![0.0; from.len()], vec![0.0; to.len()]);
            from.pack(&x, &mut bx, &pool).unwrap();
            to.pack(&grad, &mut bg, &pool).unwrap();
            let mut buffers = BufferPool::default();
            // Fills the pool with NaN: stale content must not matter.
            for len in [from.len(), to.len(), shape.weight_len().unwrap() * 4, 100_000] {
                let mut buffer = buffers.take(len);
                buffer.fill(f32::NAN);
                buffers.put(buffer);
            }
            let unpack = |layout: Blocked, data: &[f32]| {
                let mut out = vec![0.0; layout.dims().iter().product()];
                layout.unpack(&data[..layout.len()], &mut out, &pool).unwrap();
                out
            };
            let view = Input::Blocked(View { layout: from, data: &bx });
            let y = unpack(to, &conv.forward(view, &weights, &mut buffers).unwrap());
            let gx = conv.grad_input(&bg, &weights, None, &mut buffers).unwrap();
            let once = unpack(from, &gx);
            let twice = unpack(from, &conv.grad_input(&bg, &weights, Some(gx), &mut buffers).unwrap());
            let gw = conv.grad_weights(view, &bg, &mut buffers).unwrap();
            let what = |part: &str| format!("{part} of {shape:?} {size:?} {}", isa.name());
            assert_close(&what("output"), &y, &planar.forward(&x, &weights).unwrap(), 1e-5);
            let expected = planar.grad_input(&grad, &weights).unwrap();
            assert_close(&what("input gradient"), &once, &expected, 1e-5);
            let doubled: Vec<f32> = expected.iter().map(|g| 2.0 * g).collect();
            assert_close(&what("added input gradient"), &twice, &doubled, 1e-5);
            assert_close(&what("weight gradient"), &gw, &planar.grad_weights(&x, &grad).unwrap(), 1e-5);
            if shape.groups == 1 {
                let data = Input::Planar { dims: input, data: &x };
                let by_planar = unpack(to, &conv.forward(data, &weights, &mut buffers).unwrap());
                assert_close(&what("output of planar input"), &by_planar, &y, 1e-5);
                let by_planar = conv.grad_weights(data, &bg, &mut buffers).unwrap();
                assert_close(&what("weight gradient of planar input"), &by_planar, &gw, 1e-5);
            }
            results.push([y, once, twice, gw]);
        }
        assert_eq!(results[0], results[1], "{shape:?} depends on the number of threads");
    }
}

#[test]
fn blocked_gradients_match_planar_gradients() {
    check_blocked(BASE, 2, [9, 6]);
    check_blocked(ConvShape { stride: [2, 2], ..BASE }, 2, [9, 6]);
    check_blocked(ConvShape { kernel: [1, 1], padding: [0, 0], stride: [2, 2], ..BASE }, 2, [7, 8]);
    check_blocked(ConvShape { kernel: [1, 7], padding: [0, 3], ..BASE }, 1, [4, 9]);
    check_blocked(ConvShape { dilation: [2, 3], padding: [2, 1], stride: [2, 2], ..BASE }, 1, [12, 13]);
    check_blocked(ConvShape { padding: [0, 0], ..BASE }, 3, [3, 3]);
    check_blocked(ConvShape { padding: [4, 4], ..BASE }, 1, [3, 3]);
    let wide = ConvShape { c_in: 40, c_out: 72, ..BASE };
    check_blocked(wide, 2, [24, 24]);
    check_blocked(ConvShape { c_in: 72, c_out: 136, kernel: [1, 1], padding: [0, 0], ..BASE }, 2, [7, 9]);
    check_blocked(ConvShape { stride: [2, 2], ..wide }, 2, [14, 13]);
    check_blocked(ConvShape { groups: 8, ..wide }, 1, [9, 6]);
    check_blocked(ConvShape { groups: 4, c_in: 8, c_out: 128, stride: [2, 2], ..BASE }, 1, [9, 6]);
}

#[test]
fn batch_norm_and_gradients_match_the_formula() {
    let dims = [3, 20, 5, 7];
    let layout = Blocked::new(dims).unwrap();
    let pool = ThreadPool::new(2).unwrap();
    let pack = |seed: u64, offset: f32| {
        let planar: Vec<f32> = random(dims.iter().product(), seed).iter().map(|v| v + offset).collect();
        let mut blocked = vec![0.0; layout.len()];
        layout.pack(&planar, &mut blocked, &pool).unwrap();
        (planar, blocked)
    };
    // An offset with which the difference of sums of squares would cancel.
    let ((x, bx), (r, br), (g, bg)) = (pack(1, 100.0), pack(2, 0.0), pack(3, 0.0));
    let (weight, bias) = (random(20, 4), random(20, 5));
    let area = 35;
    let values = |data: &[f32], channel: usize| -> Vec<f64> {
        (0..3).flat_map(|n| data[(n * 20 + channel) * area..][..area].iter().map(|v| f64::from(*v))).collect()
    };
    for isa in Isa::available() {
        let norm = BatchNorm { layout, isa, pool: &pool };
        let [mean, var] = norm.moments(&bx).unwrap();
        let scale: Vec<f64> = var.iter().map(|v| 1.0 / (v + 1e-5).sqrt()).collect();
        let factor: Vec<f32> = scale.iter().zip(&weight).map(|(s, w)| (s * f64::from(*w)) as f32).collect();
        let mean32: Vec<f32> = mean.iter().map(|m| *m as f32).collect();
        let (mut by, mut y) = (vec![0.0; layout.len()], vec![0.0; x.len()]);
        norm.forward(&bx, [&mean32, &factor, &bias], Some(&br), true, &mut by).unwrap();
        layout.unpack(&by, &mut y, &pool).unwrap();
        let saved = BatchNormGrad {
            x: &bx,
            relu_output: Some(&by),
            mean: &mean,
            inv_std: &scale,
            weight: &weight,
            batch_stats: true,
        };
        let mut masked = bg.clone();
        let [gw, gb] = norm.grad_parameters(&saved, &mut masked).unwrap();
        let mut out = vec![0.0; layout.len()];
        norm.grad_input(&saved, [&gw, &gb], &masked, &mut out).unwrap();
        norm.grad_input_in_place(&saved, [&gw, &gb], &mut masked).unwrap();
        assert_eq!(out, masked);
        let mut gx = vec![0.0; x.len()];
        layout.unpack(&out, &mut gx, &pool).unwrap();
        for channel in 0..20 {
            let (x, r, g) = (values(&x, channel), values(&r, channel), values(&g, channel));
            let count = x.len() as f64;
            let m = x.iter().sum::<f64>() / count;
            let v = x.iter().map(|x| (x - m) * (x - m)).sum::<f64>() / count;
            assert!(
                (mean[channel] - m).abs() < 1e-6 * m && (var[channel] / v - 1.0).abs() < 1e-5,
                "{channel}"
            );
            let s = 1.0 / (v + 1e-5).sqrt();
            let (w, b) = (f64::from(weight[channel]), f64::from(bias[channel]));
            let expected: Vec<f64> =
                x.iter().zip(&r).map(|(x, r)| ((x - m) * s * w + b + r).max(0.0)).collect();
            let close = |found: f64, expected: f64, what: &str| {
                assert!((found - expected).abs() < 2e-4, "{what} {channel}: {found}, expected {expected}");
            };
            values(&y, channel).iter().zip(&expected).for_each(|(f, e)| close(*f, *e, "output"));
            let g: Vec<f64> = g.iter().zip(&expected).map(|(g, y)| if *y > 0.0 { *g } else { 0.0 }).collect();
            let (plain, product) =
                (g.iter().sum::<f64>(), g.iter().zip(&x).map(|(g, x)| g * (x - m) * s).sum::<f64>());
            close(gb[channel], plain, "bias gradient");
            close(gw[channel], product, "weight gradient");
            for (found, (g, x)) in values(&gx, channel).iter().zip(g.iter().zip(&x)) {
                let expected = w * s * (g - plain / count - (x - m) * s * product / count);
                close(*found, expected, "input gradient");
            }
        }
    }
}

/// The operations are linear: the dot product of an input and its gradient equals that of output and output gradient.
#[test]
fn average_pool_and_gate_gradients_are_adjoint() {
    let (pool, more) = (ThreadPool::new(1).unwrap(), ThreadPool::new(2).unwrap());
    let spec = |kernel, stride, padding, ceil_mode| crate::PoolSpec {
        kernel: [kernel; 2],
        stride: [stride; 2],
        padding: [padding; 2],
        ceil_mode,
    };
    let pack = |layout: Blocked, seed: u64| {
        let mut blocked = vec![0.0; layout.len()];
        layout.pack(&random(layout.dims().iter().product(), seed), &mut blocked, &pool).unwrap();
        blocked
    };
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum::<f64>();
    let layout = Blocked::new([2, 20, 5, 7]).unwrap();
    for isa in Isa::available() {
        for (spec, count_include_pad) in [
            (spec(2, 2, 0, false), true),
            (spec(2, 2, 0, true), false),
            (spec(3, 1, 1, false), true),
            (spec(3, 2, 1, true), true),
            (spec(3, 2, 1, false), false),
        ] {
            let avg = crate::AvgPoolSpec { window: spec, count_include_pad };
            let [h, w] = spec.output_hw([5, 7]).unwrap();
            let to = Blocked::new([2, 20, h, w]).unwrap();
            let grad = pack(to, 1);
            let gradient = |pool: &ThreadPool| {
                let mut out = vec![f32::NAN; layout.len()];
                let view = View { layout: to, data: &grad };
                grad_avg_pool(isa, &avg, layout, view, &mut out, pool).unwrap();
                out
            };
            let gx = gradient(&pool);
            assert_eq!(gx, gradient(&more));
            for seed in 2..5 {
                let (x, mut y) = (pack(layout, seed), vec![0.0; to.len()]);
                let target = crate::ViewMut { layout: to, data: &mut y };
                crate::avg_pool(isa, &avg, View { layout, data: &x }, target, &pool).unwrap();
                let (found, expected) = (dot(&x, &gx), dot(&y, &grad));
                assert!((found - expected).abs() < 1e-4, "{avg:?}: {found}, expected {expected}");
            }
        }
        let (x, grad, gate) = (pack(layout, 6), pack(layout, 7), random(40, 8));
        let [mut y, mut gx] = [(); 2].map(|()| vec![f32::NAN; layout.len()]);
        scale_channels(isa, layout, &x, &gate, &mut y, &pool).unwrap();
        scale_channels(isa, layout, &grad, &gate, &mut gx, &more).unwrap();
        let sum = dot(&y, &grad);
        let gate_grad = grad_gate(isa, layout, &x, &grad, &more).unwrap();
        for (what, found) in [("input", dot(&x, &gx)), ("gate", dot(&gate, &gate_grad))] {
            assert!((found - sum).abs() < 1e-4, "{what}: {found}, expected {sum}");
        }
        assert!(grad_gate(isa, layout, &x[1..], &grad, &pool).is_err());
        assert!(scale_channels(isa, layout, &x, &gate[1..], &mut y, &pool).is_err());
    }
}

#[test]
fn first_maximum_receives_the_gradient() {
    let layout = Blocked::new([1, 1, 3, 4]).unwrap();
    let spec = crate::PoolSpec { kernel: [3, 3], stride: [2, 2], padding: [1, 1], ceil_mode: false };
    let pool = ThreadPool::new(1).unwrap();
    let pack = |layout: Blocked, planar: &[f32]| {
        let mut blocked = vec![0.0; layout.len()];
        layout.pack(planar, &mut blocked, &pool).unwrap();
        blocked
    };
    let x = pack(layout, &[1.0, 5.0, 5.0, 0.0, 2.0, 0.0, 7.0, 7.0, 3.0, 3.0, 1.0, 0.0]);
    let small = Blocked::new([1, 1, 2, 2]).unwrap();
    let (y, grad) = (pack(small, &[5.0, 7.0, 3.0, 7.0]), pack(small, &[1.0, 2.0, 4.0, 8.0]));
    let mut out = vec![f32::NAN; layout.len()];
    let views =
        [View { layout, data: &x }, View { layout: small, data: &y }, View { layout: small, data: &grad }];
    for isa in Isa::available() {
        grad_max_pool(isa, &spec, views, &mut out, &pool).unwrap();
        let mut gx = [0.0; 12];
        layout.unpack(&out, &mut gx, &pool).unwrap();
        assert_eq!(gx, [0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 10.0, 0.0, 4.0, 0.0, 0.0, 0.0]);
    }
}
