use super::*;
use crate::parameters::{Initialisation, Trained};
use crate::{Parameters, synthetic, zoo};

/// Loss and gradients by name, over candle's graph and over the tape.
fn both(
    parameters: &Parameters,
    trained: &Trained,
    statistics: Statistics,
    x: &Tensor,
) -> [Vec<(String, Vec<f32>)>; 2] {
    [false, true].map(|tape| {
        let parameters = parameters.copy().unwrap();
        let network = parameters.network(trained, statistics).unwrap();
        let weigh = |logits: &Tensor| {
            let flat = logits.flatten_all().unwrap();
            let weights = synthetic::input(flat.elem_count());
            let weights = Tensor::from_vec(weights, flat.elem_count(), &Device::Cpu).unwrap();
            (flat.sqr().unwrap() * weights).unwrap().sum_all().unwrap()
        };
        let (loss, store) = match tape {
            false => {
                let loss = weigh(&network.forward_train(x).unwrap());
                (loss.clone(), loss.backward().unwrap())
            }
            true => {
                let backward = network.record(x, Dropping::default(), &Alone).unwrap();
                let loss = weigh(backward.logits());
                (loss.clone(), backward.gradients(&loss).unwrap())
            }
        };
        let mut found = vec![("loss".to_owned(), vec![loss.to_scalar::<f32>().unwrap()])];
        for param in parameters.list() {
            let var = parameters.var(&param.name).unwrap();
            let values = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            if param.role.is_trainable() {
                if let Some(gradient) = store.get(var) {
                    found.push((param.name.clone(), values(gradient)));
                }
            } else if var.dtype() == DType::F32 {
                found.push((param.name.clone(), values(var)));
            }
        }
        found
    })
}

fn check(name: &str, size: [usize; 3], trained: Trained, statistics: Statistics) {
    let arch = zoo::arch(name).unwrap().with_classes(5);
    let parameters = Parameters::new(&arch, Initialisation::default(), &Device::Cpu).unwrap();
    let [n, h, w] = size;
    let x = Tensor::from_vec(synthetic::input(n * 3 * h * w), (n, 3, h, w), &Device::Cpu).unwrap();
    let [expected, found] = both(&parameters, &trained, statistics, &x);
    let names = |list: &[(String, Vec<f32>)]| list.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&found), names(&expected), "{name}");
    for ((param, found), (_, expected)) in found.iter().zip(&expected) {
        let length = |values: &[f32]| values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
        let difference: Vec<f32> = found.iter().zip(expected).map(|(a, b)| a - b).collect();
        let (apart, length) = (length(&difference), length(expected));
        assert!(apart <= 2e-3 * length + 1e-6, "{name}: `{param}` differs by {apart} of {length}");
    }
}

#[test]
fn steps_are_those_of_candles_graph() {
    let batch = Statistics::default();
    check("resnet18", [2, 64, 96], Trained::All, batch);
    check("resnet18", [2, 64, 64], Trained::From("layer4".into()), batch);
    check("resnet18", [2, 64, 64], Trained::All, Statistics::Running);
    check("resnet20_cifar", [4, 32, 32], Trained::All, batch);
    check("resnext50_32x4d", [2, 33, 40], Trained::Head, batch);
}

#[test]
fn operations_without_kernels_are_candles() {
    // Squeeze and excitation, a deep stem with average pooling in its shortcuts, another kind of norm.
    check("seresnet50", [3, 64, 64], Trained::From("layer4".into()), Statistics::default());
    check("resnet26d", [3, 64, 64], Trained::From("layer4".into()), Statistics::Running);
}

#[test]
fn memory_is_used_again_from_step_to_step() {
    let parameters =
        Parameters::new(&zoo::arch("resnet20_cifar").unwrap(), Initialisation::default(), &Device::Cpu)
            .unwrap();
    let network = parameters.network(&Trained::All, Statistics::default()).unwrap();
    let x = Tensor::from_vec(synthetic::input(4 * 3 * 32 * 32), (4, 3, 32, 32), &Device::Cpu).unwrap();
    let held: Vec<usize> = (0..3)
        .map(|_| {
            let backward = network.record(&x, Dropping::default(), &Alone).unwrap();
            let loss = backward.logits().sqr().unwrap().sum_all().unwrap();
            backward.gradients(&loss).unwrap();
            lock(&network.memory).bytes()
        })
        .collect();
    assert!(held[0] > 0 && held[1] == held[0] && held[2] == held[0], "{held:?}");
}
