use super::*;
use crate::graph::{AdaptiveAvgPool, AvgPool, Blur, Conv, Divisor, PoolSpec, Rounding};
use candle_core::{DType, Device, Var};

#[test]
fn max_pool_padding_is_minus_infinity() {
    let x = Tensor::full(-1f32, (1, 1, 3, 3), &Device::Cpu).unwrap();
    let pool = PoolSpec { padding: [1; 2], ..PoolSpec::square(3, 2) };
    let y = max_pool(&x, &pool).unwrap();
    assert_eq!(y.dims(), [1, 1, 2, 2]);
    assert_eq!(y.flatten_all().unwrap().to_vec1::<f32>().unwrap(), [-1.0; 4]);
}

#[test]
fn convolution_axes_may_differ() {
    let x = Tensor::arange(0f32, 2.0 * 5.0 * 6.0, &Device::Cpu).unwrap().reshape((1, 2, 5, 6)).unwrap();
    let w = Tensor::ones((1, 2, 1, 3), candle_core::DType::F32, &Device::Cpu).unwrap();
    let spec = Conv { kernel: [1, 3], padding: [0, 1], stride: [2, 1], ..Conv::square(2, 1, 1) };
    let y = conv(&x, &w, None, &spec).unwrap();
    assert_eq!(y.dims(), [1, 1, 3, 6]);
    // Row 2, column 0: elements 12 and 13 of the first channel, 42 and 43 of the second.
    assert_eq!(y.flatten_all().unwrap().to_vec1::<f32>().unwrap()[6], (12 + 13 + 42 + 43) as f32);
}

fn rows(y: &Tensor) -> Vec<Vec<f32>> {
    y.squeeze(0).unwrap().squeeze(0).unwrap().to_vec2().unwrap()
}

fn counting(h: usize, w: usize) -> Tensor {
    Tensor::arange(0f32, (h * w) as f32, &Device::Cpu).unwrap().reshape((1, 1, h, w)).unwrap()
}

#[test]
fn avg_pool_divisors_follow_the_spec() {
    let check = |rounding, divisor, padding, expected: Vec<Vec<f32>>| {
        let window = PoolSpec { padding: [padding; 2], ..PoolSpec::square(2, 2) };
        let y = avg_pool(&counting(3, 3), &AvgPool { window, rounding, divisor }).unwrap();
        assert_eq!(rows(&y), expected);
    };
    check(Rounding::Floor, Divisor::Window, 0, vec![vec![2.0]]);
    check(Rounding::Ceil, Divisor::Pixels, 0, vec![vec![2.0, 3.5], vec![6.5, 8.0]]);
    check(Rounding::Floor, Divisor::Window, 1, vec![vec![0.0, 0.75], vec![2.25, 6.0]]);
    check(Rounding::Floor, Divisor::Pixels, 1, vec![vec![0.0, 1.5], vec![4.5, 6.0]]);
}

#[test]
fn blur_reflects_the_border() {
    let y = blur(&counting(3, 4), &Blur { stride: 2 }).unwrap();
    // Along the width 0 1 2 3 becomes (1 + 0 + 1) / 4 and 2; along the height 0 4 8 becomes 2 and 6.
    assert_eq!(rows(&y), [[2.5, 4.0], [6.5, 8.0]]);
}

#[test]
fn adaptive_avg_pool_windows_overlap_for_small_inputs() {
    let y = adaptive_avg_pool(&counting(1, 3), &AdaptiveAvgPool { output: [1, 2] }).unwrap();
    assert_eq!(rows(&y), [[0.5, 1.5]]);
}

#[test]
fn avg_pool_and_blur_have_gradients() {
    let x = Var::from_tensor(&counting(4, 4)).unwrap();
    let window = PoolSpec { padding: [1; 2], ..PoolSpec::square(3, 1) };
    let pool = AvgPool { window, rounding: Rounding::Floor, divisor: Divisor::Window };
    let y = blur(&avg_pool(&x, &pool).unwrap(), &Blur { stride: 2 }).unwrap();
    let gradients = y.sum_all().unwrap().backward().unwrap();
    assert_eq!(gradients.get(&x).unwrap().dims(), [1, 1, 4, 4]);
}

/// Deterministic values without ties and away from 0, where ReLU has no derivative.
fn sample(shape: &[usize], seed: &str) -> Tensor {
    let elements = shape.iter().product::<usize>();
    let values: Vec<f64> = (0..elements)
        .map(|i| {
            let value = crate::random::uniform(seed, i) * 2.0 - 1.0;
            value + 0.05 * value.signum()
        })
        .collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// Compares the gradients of the composed operation in f64 with central differences, and those of our custom operation
/// in f32 with the composed ones in f64.
fn check_gradients(what: &str, inputs: &[Tensor], f: &dyn Fn(&[Tensor]) -> Tensor) {
    let y = f(inputs);
    let mixed = sample(y.dims(), "mixture");
    let loss = |inputs: &[Tensor]| {
        (f(inputs) * mixed.to_dtype(inputs[0].dtype()).unwrap()).unwrap().sum_all().unwrap()
    };
    let gradients = |dtype: DType| -> Vec<Tensor> {
        let vars: Vec<Var> =
            inputs.iter().map(|t| Var::from_tensor(&t.to_dtype(dtype).unwrap()).unwrap()).collect();
        let tensors: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
        let mut store = loss(&tensors).backward().unwrap();
        tensors.iter().map(|t| store.remove(t).unwrap().to_dtype(DType::F64).unwrap()).collect()
    };
    let scalar = |t: Tensor| t.to_scalar::<f64>().unwrap();
    let exact = gradients(DType::F64);
    for (which, gradient) in exact.iter().enumerate() {
        let direction = sample(inputs[which].dims(), "direction");
        let step = 1e-5;
        let moved = |step: f64| {
            let mut inputs = inputs.to_vec();
            inputs[which] = (&inputs[which] + (&direction * step).unwrap()).unwrap();
            scalar(loss(&inputs))
        };
        let difference = (moved(step) - moved(-step)) / (2.0 * step);
        let product = scalar((gradient * &direction).unwrap().sum_all().unwrap());
        let error = (difference - product).abs() / difference.abs().max(1e-3);
        assert!(error < 1e-6, "{what}, input {which}: gradient {product}, central difference {difference}");
    }
    for (which, (single, double)) in gradients(DType::F32).iter().zip(&exact).enumerate() {
        let max = |t: &Tensor| scalar(t.abs().unwrap().max_all().unwrap());
        let error = max(&(single - double).unwrap()) / max(double).max(1e-6);
        assert!(error < 2e-5, "{what}, input {which}: relative f32 error {error}");
    }
}

#[test]
fn convolutions_have_gradients() {
    let base = Conv { ..Conv::square(4, 6, 3) };
    for (spec, size) in [
        (base, [7, 6]),
        (Conv { stride: [2, 2], ..base }, [7, 6]),
        (Conv { stride: [2, 2], ..base }, [6, 9]),
        (Conv { kernel: [1, 1], padding: [0, 0], stride: [2, 2], ..base }, [6, 7]),
        (Conv { groups: 2, ..base }, [5, 5]),
        (Conv { kernel: [1, 5], padding: [0, 2], ..base }, [4, 6]),
        (Conv { stride: [2, 1], dilation: [1, 2], padding: [0, 2], ..base }, [8, 6]),
    ] {
        let inputs =
            [sample(&[2, 4, size[0], size[1]], "x"), sample(&spec.weight_shape(), "w"), sample(&[6], "b")];
        check_gradients(&format!("{spec:?}"), &inputs, &|t| conv(&t[0], &t[1], Some(&t[2]), &spec).unwrap());
    }
}

#[test]
fn pooling_and_relu_have_gradients() {
    let window = PoolSpec { padding: [1; 2], ..PoolSpec::square(3, 2) };
    let oblong = PoolSpec { kernel: [2, 3], stride: [1, 2], padding: [1, 0] };
    for pool in [window, oblong, PoolSpec::square(2, 2)] {
        check_gradients(&format!("{pool:?}"), &[sample(&[2, 3, 7, 8], "x")], &|t| {
            max_pool(&t[0], &pool).unwrap()
        });
        let avg = AvgPool { window: pool, rounding: Rounding::Ceil, divisor: Divisor::Pixels };
        check_gradients(&format!("{avg:?}"), &[sample(&[2, 3, 7, 8], "x")], &|t| {
            avg_pool(&t[0], &avg).unwrap()
        });
    }
    check_gradients("relu", &[sample(&[2, 3, 4], "x")], &|t| relu(&t[0]).unwrap());
}

#[test]
fn max_pool_gradient_goes_to_the_first_of_equal_maxima() {
    let x = Var::from_tensor(&Tensor::ones((1, 1, 4, 4), DType::F32, &Device::Cpu).unwrap()).unwrap();
    let pool = PoolSpec { padding: [1; 2], ..PoolSpec::square(3, 2) };
    let y = max_pool(x.as_tensor(), &pool).unwrap().sum_all().unwrap();
    let gradient = y.backward().unwrap().get(&x).unwrap().clone();
    // From torch.nn.functional.max_pool2d(x, 3, 2, 1).sum().backward().
    assert_eq!(rows(&gradient), [[1., 1., 0., 0.], [1., 1., 0., 0.], [0.; 4], [0.; 4]]);
}

#[test]
fn batch_norm_has_gradients() {
    let given = Moments { mean: sample(&[3], "mean"), var: sample(&[3], "var").sqr().unwrap() };
    for (shape, relu, of_batch) in
        [(vec![4, 3, 5, 2], false, true), (vec![2, 3, 3, 3], true, true), (vec![6, 3], true, false)]
    {
        let inputs = [sample(&shape, "x"), sample(&[3], "w"), sample(&[3], "b"), sample(&shape, "r")];
        for residual in [false, true] {
            let what = format!("relu {relu}, residual {residual}, batch statistics {of_batch}");
            let count = if residual { 4 } else { 3 };
            check_gradients(&what, &inputs[..count], &|t| {
                let dtype = t[0].dtype();
                let given = Moments {
                    mean: given.mean.to_dtype(dtype).unwrap(),
                    var: given.var.to_dtype(dtype).unwrap(),
                };
                let affine = Affine { weight: &t[1], bias: &t[2], eps: 1e-3, residual: t.get(3), relu };
                normalize(&t[0], affine, (!of_batch).then_some(&given)).unwrap().0
            });
        }
    }
}
