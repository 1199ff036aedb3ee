use super::*;
use crate::arch::{Block, Padding, ResNet};
use crate::parameters::{Initialization, Trainable};
use crate::{Arch, Parameters, synthetic, zoo};

/// Returns a loss of the logits.
fn weighted_loss(logits: &Tensor) -> Tensor {
    let flat = logits.flatten_all().unwrap();
    let weights = synthetic::input(flat.elem_count());
    let weights = Tensor::from_vec(weights, flat.elem_count(), &Device::Cpu).unwrap();
    (flat.sqr().unwrap() * weights).unwrap().sum_all().unwrap()
}

/// Returns loss and gradients by name, from the candle graph and from the tape.
fn both(
    parameters: &Parameters,
    trained: &Trainable,
    statistics: Statistics,
    dropping: DropConfig,
    x: &Tensor,
) -> [Vec<(String, Vec<f32>)>; 2] {
    [false, true].map(|use_tape| {
        let parameters = parameters.copy().unwrap();
        let network = parameters.network(trained, statistics).unwrap();
        let (loss, store) = match use_tape {
            false => {
                let loss = weighted_loss(&network.candle_train_forward(x, dropping).unwrap());
                (loss.clone(), loss.backward().unwrap())
            }
            true => {
                let tape = network.train_forward(x, dropping, &SingleProcess).unwrap();
                assert!(matches!(tape.recorded, Recorded::Steps(_)));
                let loss = weighted_loss(tape.logits());
                (loss.clone(), tape.gradients(&loss).unwrap())
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
        let (distance, length) = (length(&difference), length(expected));
        assert!(distance <= 2e-3 * length + 1e-6, "{name}: `{param}` distance {distance}, norm {length}");
    }
}

#[test]
fn gradients_match_the_candle_graph() {
    let batch = Statistics::default();
    check("resnet18", [2, 64, 96], Trainable::All, batch);
    check("resnet18", [2, 64, 64], Trainable::From("layer4".into()), batch);
    check("resnet18", [2, 64, 64], Trainable::All, Statistics::Running);
    check("resnet20_cifar", [4, 32, 32], Trainable::All, batch);
    check("resnext50_32x4d", [2, 33, 40], Trainable::Head, batch);
}

#[test]
fn other_operations_match_the_candle_graph() {
    // Squeeze-and-excitation; average pooling in shortcuts, with incomplete windows.
    check("seresnet50", [3, 64, 64], Trainable::From("layer4".into()), Statistics::default());
    check("seresnet18", [2, 64, 64], Trainable::All, Statistics::Running);
    check("resnet26d", [3, 72, 64], Trainable::All, Statistics::Running);
    // Blur; group norm and weight standardization.
    check("resnetblur18", [2, 64, 64], Trainable::From("layer4".into()), Statistics::Running);
    check("resnetv2_50x1_bit", [2, 64, 64], Trainable::From("stages.3".into()), Statistics::Running);
    // One-sided padding.
    let net = ResNet { padding: Padding::OneSided, ..ResNet::imagenet(Block::Basic, &[1, 1]) };
    let (batch, none) = (Statistics::default(), DropConfig::default());
    check_arch("one-sided", Arch::ResNet(net), [2, 64, 48], Trainable::All, batch, none);
}

const SOME: DropConfig = DropConfig { dropout: 0.3, drop_path: 0.5, seed: 7 };

/// Residual adds after norms (also of the shortcut), without norms, after attention gates, and in pre-activation blocks.
#[test]
fn dropout_and_drop_path_match_the_candle_graph() {
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
fn gradients_with_drop_path_match_finite_differences() {
    let arch = zoo::arch("resnet20_cifar").unwrap();
    let parameters = Parameters::new(&arch, Initialization::default(), &Device::Cpu).unwrap();
    let x = Tensor::from_vec(synthetic::input(4 * 3 * 16 * 16), (4, 3, 16, 16), &Device::Cpu).unwrap();
    let at = |parameters: &Parameters| {
        let network = parameters.network(&Trainable::All, Statistics::Running).unwrap();
        let tape = network.train_forward(&x, SOME, &SingleProcess).unwrap();
        let loss = weighted_loss(tape.logits());
        (f64::from(loss.to_scalar::<f32>().unwrap()), tape.gradients(&loss).unwrap())
    };
    let (_, gradients) = at(&parameters);
    for name in ["layer1.1.conv2.weight", "layer2.0.bn2.weight", "layer3.0.bn1.bias", "fc.weight"] {
        let gradient = gradients.get(parameters.var(name).unwrap()).unwrap();
        let slope = f64::from(gradient.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap());
        // A step along the gradient with 0.1 % of the norm of the parameter.
        let length =
            |t: &Tensor| t.sqr().unwrap().sum_all().unwrap().sqrt().unwrap().to_scalar::<f32>().unwrap();
        let var = parameters.var(name).unwrap();
        let step = f64::from((length(var).max(1.0)) / length(gradient)) * 1e-3;
        let along = |by: f64| {
            let moved = parameters.copy().unwrap();
            let var = moved.var(name).unwrap();
            var.set(&(var.as_tensor() + (gradient * by).unwrap()).unwrap()).unwrap();
            at(&moved).0
        };
        let found = (along(step) - along(-step)) / (2.0 * step);
        assert!((found - slope).abs() < 0.02 * slope, "{name}: {found}, expected {slope}");
    }
}

#[test]
fn buffers_are_reused_between_steps() {
    let parameters =
        Parameters::new(&zoo::arch("resnet20_cifar").unwrap(), Initialization::default(), &Device::Cpu)
            .unwrap();
    let network = parameters.network(&Trainable::All, Statistics::default()).unwrap();
    let x = Tensor::from_vec(synthetic::input(4 * 3 * 32 * 32), (4, 3, 32, 32), &Device::Cpu).unwrap();
    let held: Vec<usize> = (0..3)
        .map(|_| {
            let tape = network.train_forward(&x, DropConfig::default(), &SingleProcess).unwrap();
            let loss = tape.logits().sqr().unwrap().sum_all().unwrap();
            tape.gradients(&loss).unwrap();
            lock(&network.buffers).bytes()
        })
        .collect();
    assert!(held[0] > 0 && held[1] == held[0] && held[2] == held[0], "{held:?}");
}
