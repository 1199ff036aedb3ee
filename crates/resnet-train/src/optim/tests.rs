use super::*;

/// Takes three steps on two small tensors, the first one with weight decay.
fn run(config: &OptimizerConfig, clip: Option<f64>) -> Vec<f32> {
    let device = &Device::Cpu;
    let weight = Var::new(&[[0.5f32, -1.0], [2.0, 0.25]], device).unwrap();
    let bias = Var::new(&[0.1f32, -0.2], device).unwrap();
    let state = |name: &str, var: &Var, decay: f64| ParamState {
        name: name.into(),
        var: var.clone(),
        lr_scale: 1.0,
        weight_decay: decay,
        buffers: (0..2 - usize::from(config.kind == OptimizerKind::Sgd))
            .map(|_| Var::from_tensor(&var.as_detached_tensor().zeros_like().unwrap()).unwrap())
            .collect(),
    };
    let params = vec![state("weight", &weight, config.weight_decay), state("bias", &bias, 0.0)];
    let mut optimizer = Optimizer { config: config.clone(), params, steps: 0 };
    let x = Tensor::new(&[[1f32], [2.0]], device).unwrap();
    for _ in 0..3 {
        let y = (weight.matmul(&x).unwrap().squeeze(1).unwrap() + bias.as_tensor()).unwrap();
        let gradients = y.sqr().unwrap().sum_all().unwrap().backward().unwrap();
        let grad = optimizer.grad_norm(&gradients, clip).unwrap();
        optimizer.step(&gradients, 0.02, grad.scale).unwrap();
    }
    let values = |var: &Var| var.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    [values(&weight), values(&bias)].concat()
}

#[test]
fn updates_match_pytorch() {
    let check = |what: &str, config: OptimizerConfig, expected: [f32; 6]| {
        for (a, b) in run(&config, None).iter().zip(expected) {
            assert!((a - b).abs() < 2e-6, "{what}: {a}, expected {b}");
        }
    };
    let base = OptimizerConfig { weight_decay: 0.1, ..OptimizerConfig::default() };
    // By torch.optim of torch 2.15 and timm's Lamb with max_grad_norm=None.
    check(
        "sgd",
        OptimizerConfig { nesterov: false, ..base.clone() },
        [0.746_238_4, -0.485_121_6, 1.563_876_4, -0.580_244_4, 0.352_349_04, -0.614_560_4],
    );
    check(
        "nesterov",
        base.clone(),
        [0.775_237_4, -0.417_440_4, 1.502_596_7, -0.684_647_4, 0.384_628_74, -0.667_569_34],
    );
    check(
        "adamw",
        OptimizerConfig { kind: OptimizerKind::AdamW, ..base.clone() },
        [0.556_731_46, -0.934_286_65, 1.928_230_2, 0.188_709_05, 0.159_845_25, -0.259_913_83],
    );
    check(
        "lamb",
        OptimizerConfig { kind: OptimizerKind::Lamb, ..base },
        [0.560_380_7, -0.930_057_9, 1.923_605_6, 0.184_760_54, 0.159_834_39, -0.259_908_26],
    );
}

#[test]
fn large_gradients_are_clipped() {
    let config = OptimizerConfig { momentum: 0.0, weight_decay: 0.0, ..OptimizerConfig::default() };
    let distance: f32 = run(&config, Some(1e-3))
        .iter()
        .zip([0.5f32, -1.0, 2.0, 0.25, 0.1, -0.2])
        .map(|(a, b)| (a - b).powi(2))
        .sum();
    // Three steps of length 0.02 × 1e-3, nearly in one direction.
    assert!((distance.sqrt() / 6e-5 - 1.0).abs() < 0.01, "{}", distance.sqrt());
}

#[test]
fn weight_decay_and_lr_depend_on_the_layer() {
    let arch = resnet_model::zoo::arch("resnet20_cifar").unwrap();
    let parameters = Parameters::new(&arch, Default::default(), &Device::Cpu).unwrap();
    let config = OptimizerConfig { layer_decay: 0.5, weight_decay: 0.1, ..OptimizerConfig::default() };
    let optimizer = Optimizer::new(&config, &parameters, &Trainable::All).unwrap();
    let check = |name: &str, scale: f64, decay: f64| {
        let param = optimizer.params.iter().find(|param| param.name == name).unwrap();
        assert_eq!((param.lr_scale, param.weight_decay), (scale, decay), "{name}");
    };
    let all = OptimizerConfig { decay_norm_and_bias: true, ..config };
    let paper = Optimizer::new(&all, &parameters, &Trainable::All).unwrap();
    assert!(paper.params.iter().all(|param| param.weight_decay == 0.1));
    // Taps: stem, layer1, layer2, layer3, pooled and perhaps the logits.
    let head = optimizer.params.iter().find(|param| param.name == "fc.weight").unwrap().lr_scale;
    check("fc.bias", head, 0.0);
    check("layer3.0.conv1.weight", head * 0.25, 0.1);
    check("layer3.0.bn1.weight", head * 0.25, 0.0);
    check("conv1.weight", head * 0.03125, 0.1);
}
