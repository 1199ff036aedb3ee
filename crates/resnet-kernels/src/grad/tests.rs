use super::*;
use crate::reference;
use crate::testing::{assert_close, random};

const BASE: ConvShape = ConvShape { kernel: [3, 3], padding: [1, 1], ..ConvShape::pointwise(5, 7) };

/// Both gradients by naive loops in f64: every product of the forward sum, taken apart.
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
            let pool = Pool::new(threads).unwrap();
            let conv = PlanarConv { shape, input, isa, pool: &pool };
            let x = random(input.iter().product(), 1);
            let weights = random(shape.weight_len().unwrap(), 2);
            let grad = random(conv.output().unwrap().iter().product(), 3);
            let y = conv.forward(&x, &weights).unwrap();
            let gx = conv.grad_input(&grad, &weights).unwrap();
            let gw = conv.grad_weights(&x, &grad).unwrap();
            let what = |part: &str| format!("{part} of {shape:?} {size:?} {}", isa.name());
            let params = Parameters { weights: &weights, bias: None };
            assert_close(&what("output"), &y, &reference::conv(&shape, params, input, &x).unwrap(), 5e-6);
            let [expected_x, expected_w] = naive(&conv, &x, &weights, &grad);
            assert_close(&what("input gradient"), &gx, &expected_x, 5e-6);
            assert_close(&what("weight gradient"), &gw, &expected_w, 5e-6);
            results.push([y, gx, gw]);
        }
        assert_eq!(results[0], results[1], "{shape:?} depends on the number of threads");
    }
}

#[test]
fn gradients_are_those_of_naive_loops() {
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
fn lengths_and_shapes_must_fit() {
    let pool = Pool::new(1).unwrap();
    let conv = PlanarConv { shape: BASE, input: [1, 5, 4, 4], isa: Isa::best(), pool: &pool };
    let message = |result: Result<Vec<f32>, Error>| result.unwrap_err().to_string();
    assert_eq!(message(conv.forward(&[0.0; 3], &[0.0; 315])), "input has 3 elements, expected 80");
    assert_eq!(message(conv.grad_input(&[0.0; 112], &[0.0; 3])), "weights has 3 elements, expected 315");
    assert_eq!(message(conv.grad_weights(&[0.0; 80], &[0.0; 1])), "gradient has 1 elements, expected 112");
    let wrong = PlanarConv { input: [1, 4, 4, 4], ..conv };
    assert_eq!(message(wrong.forward(&[], &[])), "input has shape [1, 4, 4, 4], expected [1, 5, 4, 4]");
}
