use super::*;
use crate::arch::{Block, Padding, ResNet};
use crate::parameters::{Initialization, Trainable};
use crate::{Arch, Parameters, synthetic, zoo};

/// A loss of some logits.
fn weigh(logits: &Tensor) -> Tensor {
    let flat = logits.flatten_all().unwrap();
    let weights = synthetic::input(flat.elem_count());
    let weights = Tensor::from_vec(weights, flat.elem_count(), &Device::Cpu).unwrap();
    (flat.sqr().unwrap() * weights).unwrap().sum_all().unwrap()
}

/// Loss and gradients by name, over candle's graph and over the tape.
fn both(
    parameters: &Parameters,
    trained: &Trainable,
    statistics: Statistics,
    dropping: DropConfig,
    x: &Tensor,
) -> [Vec<(String, Vec<f32>)>; 2] {
    [false, true].map(|tape| {
        let parameters = parameters.copy().unwrap();
        let network = parameters.network(trained, statistics).unwrap();
        let (loss, store) = match tape {
            false => {
                let loss = weigh(&network.candle_train_forward(x, dropping).unwrap());
                (loss.clone(), loss.backward().unwrap())
            }
            true => {
                let backward = network.train_forward(x, dropping, &SingleProcess).unwrap();
                assert!(matches!(backward.recorded, Recorded::Steps(_)));
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

fn check(name: &str, size: [usize; 3], trained: Trainable, statistics: Statistics) {
    check_dropping(name, size, trained, statistics, DropConfig::default());
}

fn check_dropping(
    name: &str,
    size: [usize; 3],
    trained: Trainable,
    statistics: Statistics,
    dropping: DropConfig,
) {
    check_arch(name, zoo::arch(name).unwrap(), size, trained, statistics, dropping);
}

fn check_arch(
    name: &str,
    arch: Arch,
    size: [usize; 3],
    trained: Trainable,
    statistics: Statistics,
    dropping: DropConfig,
) {
    let arch = arch.with_classes(5);
    let parameters = Parameters::new(&arch, Initialization::default(), &Device::Cpu).unwrap();
    let [n, h, w] = size;
    let x = Tensor::from_vec(synthetic::input(n * 3 * h * w), (n, 3, h, w), &Device::Cpu).unwrap();
    let [expected, found] = both(&parameters, &trained, statistics, dropping, &x);
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
    check("resnet18", [2, 64, 96], Trainable::All, batch);
    check("resnet18", [2, 64, 64], Trainable::From("layer4".into()), batch);
    check("resnet18", [2, 64, 64], Trainable::All, Statistics::Running);
    check("resnet20_cifar", [4, 32, 32], Trainable::All, batch);
    check("resnext50_32x4d", [2, 33, 40], Trainable::Head, batch);
}

#[test]
fn gates_and_means_have_kernels_and_other_operations_are_candles() {
    // Squeeze and excitation; average pooling in shortcuts, some of which reach over the border.
    check("seresnet50", [3, 64, 64], Trainable::From("layer4".into()), Statistics::default());
    check("seresnet18", [2, 64, 64], Trainable::All, Statistics::Running);
    check("resnet26d", [3, 72, 64], Trainable::All, Statistics::Running);
    // Blurred strides; a norm of groups and standardised weights.
    check("resnetblur18", [2, 64, 64], Trainable::From("layer4".into()), Statistics::Running);
    check("resnetv2_50x1_bit", [2, 64, 64], Trainable::From("stages.3".into()), Statistics::Running);
    // Padding on one side.
    let net = ResNet { padding: Padding::OneSided, ..ResNet::imagenet(Block::Basic, &[1, 1]) };
    let (batch, none) = (Statistics::default(), DropConfig::default());
    check_arch("one-sided", Arch::ResNet(net), [2, 64, 48], Trainable::All, batch, none);
}

const SOME: DropConfig = DropConfig { dropout: 0.3, drop_path: 0.5, seed: 7 };

/// Sums behind norms, also of a shortcut; sums alone, behind gates and before the next block's norm.
#[test]
fn what_is_left_out_is_what_candles_graph_leaves_out() {
    for (name, size) in [
        ("resnet20_cifar", [6, 32, 32]),
        ("resnet18d", [4, 64, 64]),
        ("seresnet18", [4, 64, 64]),
        ("resnetv2_18", [4, 64, 64]),
    ] {
        check_dropping(name, size, Trainable::All, Statistics::Running, SOME);
    }
    check_dropping("resnet20_cifar", [8, 32, 32], Trainable::All, Statistics::default(), SOME);
    check_dropping("resnet18", [4, 64, 64], Trainable::From("layer4".into()), Statistics::Running, SOME);
    check_dropping("resnet18", [4, 64, 64], Trainable::Head, Statistics::Running, SOME);
}

#[test]
fn gradients_of_what_is_not_left_out_are_slopes() {
    let arch = zoo::arch("resnet20_cifar").unwrap();
    let parameters = Parameters::new(&arch, Initialization::default(), &Device::Cpu).unwrap();
    let x = Tensor::from_vec(synthetic::input(4 * 3 * 16 * 16), (4, 3, 16, 16), &Device::Cpu).unwrap();
    let at = |parameters: &Parameters| {
        let network = parameters.network(&Trainable::All, Statistics::Running).unwrap();
        let backward = network.train_forward(&x, SOME, &SingleProcess).unwrap();
        let loss = weigh(backward.logits());
        (f64::from(loss.to_scalar::<f32>().unwrap()), backward.gradients(&loss).unwrap())
    };
    let (_, gradients) = at(&parameters);
    for name in ["layer1.1.conv2.weight", "layer2.0.bn2.weight", "layer3.0.bn1.bias", "fc.weight"] {
        let gradient = gradients.get(parameters.var(name).unwrap()).unwrap();
        let slope = f64::from(gradient.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap());
        // A way along the gradient, one per mille of the parameter long.
        let length =
            |t: &Tensor| t.sqr().unwrap().sum_all().unwrap().sqrt().unwrap().to_scalar::<f32>().unwrap();
        let var = parameters.var(name).unwrap();
        let way = f64::from((length(var).max(1.0)) / length(gradient)) * 1e-3;
        let along = |by: f64| {
            let moved = parameters.copy().unwrap();
            let var = moved.var(name).unwrap();
            var.set(&(var.as_tensor() + (gradient * by).unwrap()).unwrap()).unwrap();
            at(&moved).0
        };
        let found = (along(way) - along(-way)) / (2.0 * way);
        assert!((found - slope).abs() < 0.02 * slope, "{name}: {found}, expected {slope}");
    }
}

#[test]
fn memory_is_used_again_from_step_to_step() {
    let parameters =
        Parameters::new(&zoo::arch("resnet20_cifar").unwrap(), Initialization::default(), &Device::Cpu)
            .unwrap();
    let network = parameters.network(&Trainable::All, Statistics::default()).unwrap();
    let x = Tensor::from_vec(synthetic::input(4 * 3 * 32 * 32), (4, 3, 32, 32), &Device::Cpu).unwrap();
    let held: Vec<usize> = (0..3)
        .map(|_| {
            let backward = network.train_forward(&x, DropConfig::default(), &SingleProcess).unwrap();
            let loss = backward.logits().sqr().unwrap().sum_all().unwrap();
            backward.gradients(&loss).unwrap();
            lock(&network.buffers).bytes()
        })
        .collect();
    assert!(held[0] > 0 && held[1] == held[0] && held[2] == held[0], "{held:?}");
}
