use super::*;
use crate::arch::{Block, ResNet, Shortcut, Stage, Stem, StrideIn};
use crate::{Arch, Network, synthetic, zoo};

fn input(dims: [usize; 4]) -> Vec<f32> {
    synthetic::input(dims.iter().product())
}

fn options(threads: usize, isa: Isa, precision: Precision) -> EngineOptions {
    EngineOptions { threads, isa, precision, input: Some([64, 64]), ..EngineOptions::default() }
}

/// Returns the largest difference relative to the largest magnitude.
fn difference(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let max = expected.iter().fold(0f32, |m, v| m.max(v.abs()));
    found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max) / max
}

/// Compares all taps of the engine with candle, for every instruction set and precision.
#[track_caller]
fn check(arch: &Arch, dims: [usize; 4]) {
    let checkpoint = synthetic::checkpoint(arch).unwrap();
    let network = Network::load(&checkpoint, DType::F32, &Device::Cpu).unwrap();
    let x = input(dims);
    let taps: Vec<&str> = network.graph().taps().iter().map(|t| t.name.as_str()).collect();
    let tensor = Tensor::from_slice(&x, &dims, &Device::Cpu).unwrap();
    let expected = network.features(&tensor, &taps).unwrap();
    for isa in Isa::available() {
        for precision in [Precision::F32, Precision::Exact] {
            let engine = Engine::new(&checkpoint, options(2, isa, precision)).unwrap();
            let found = engine.run(&x, dims, &taps).unwrap();
            for ((tap, found), expected) in taps.iter().zip(&found).zip(&expected) {
                assert_eq!(found.shape, expected.dims(), "{arch} {tap}");
                let expected = expected.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                let difference = difference(&found.values, &expected);
                assert!(
                    difference < 2e-5,
                    "{arch} {dims:?} {tap} {} {precision:?}: {difference}",
                    isa.name()
                );
            }
        }
    }
}

#[test]
fn named_networks_match_candle() {
    for (name, dims) in [
        ("resnet18", [2, 3, 64, 64]),
        ("resnet50", [1, 3, 65, 47]),
        ("resnext50_32x4d", [1, 3, 33, 64]),
        ("plain18", [1, 3, 64, 64]),
        ("resnet20_cifar", [3, 3, 32, 32]),
        ("plain20_cifar", [1, 3, 29, 31]),
        ("seresnet18", [2, 3, 64, 64]),
        ("ecaresnet26t", [1, 3, 64, 48]),
        ("resnetaa50d", [1, 3, 64, 64]),
        ("resnetblur18", [1, 3, 64, 64]),
        ("resnet50_gn", [2, 3, 64, 64]),
        ("resnetrs50", [1, 3, 64, 64]),
        ("resnetv2_50", [1, 3, 64, 64]),
        ("resnetv2_50d_gn", [1, 3, 64, 64]),
        ("test_resnet", [2, 3, 64, 64]),
    ] {
        check(&zoo::arch(name).unwrap(), dims);
    }
}

#[test]
fn narrow_networks_of_every_shape_match_candle() {
    for shortcut in [Shortcut::None, Shortcut::ZeroPad, Shortcut::Projection, Shortcut::ProjectionAll] {
        for (block, stride_in) in [
            (Block::Basic, StrideIn::Conv3x3),
            (Block::Bottleneck, StrideIn::Conv3x3),
            (Block::Bottleneck, StrideIn::Conv1x1),
        ] {
            for (stem, in_channels) in
                [(Stem::Conv7 { width: 8 }, 3), (Stem::Conv3 { width: 5 }, 1), (Stem::Conv3 { width: 8 }, 19)]
            {
                let stage = |depth, width| Stage { block, depth, width };
                let net = ResNet {
                    stem,
                    stages: vec![stage(1, 8), stage(2, 20), stage(1, 33)],
                    shortcut,
                    stride_in,
                    in_channels,
                    num_classes: 7,
                    ..ResNet::imagenet(block, &[])
                };
                check(&Arch::ResNet(net), [2, in_channels, 31, 18]);
            }
        }
    }
}

#[test]
fn results_do_not_depend_on_threads_or_earlier_calls() {
    let checkpoint = synthetic::checkpoint(&zoo::arch("resnet18").unwrap()).unwrap();
    let dims = [2, 3, 97, 64];
    let x = input(dims);
    let engine = |threads| Engine::new(&checkpoint, options(threads, Isa::best(), Precision::F32)).unwrap();
    let one = engine(1).run(&x, dims, &["layer2", "logits"]).unwrap();
    let three = engine(3);
    three.run(&input([1, 3, 224, 224]), [1, 3, 224, 224], &["logits"]).unwrap();
    for _ in 0..3 {
        assert_eq!(three.run(&x, dims, &["layer2", "logits"]).unwrap(), one);
    }
}

#[test]
fn batches_match_single_images() {
    let checkpoint = synthetic::checkpoint(&zoo::arch("resnet18").unwrap()).unwrap();
    let taps = ["logits", "layer1", "layer4", "layer1"];
    let engine = |threads| Engine::new(&checkpoint, options(threads, Isa::best(), Precision::F32)).unwrap();
    let single = engine(1);
    assert!((5..single.program.steps.len()).contains(&single.program.batched_from));
    // A remainder after an image per thread, fewer images than threads, more than one chunk.
    for (threads, n) in [(2, 5), (3, 2), (2, 18)] {
        let x = input([n, 3, 64, 64]);
        let engine = engine(threads);
        let found = engine.run(&x, [n, 3, 64, 64], &taps).unwrap();
        assert_eq!(engine.run_single_threaded(&x, [n, 3, 64, 64], &taps).unwrap(), found);
        for (i, x) in x.chunks_exact(x.len() / n).enumerate() {
            let one = single.run(x, [1, 3, 64, 64], &taps).unwrap();
            for (all, one) in found.iter().zip(&one) {
                assert_eq!(all.shape, [&[n], &one.shape[1..]].concat());
                let len = one.values.len();
                assert_eq!(all.values[i * len..][..len], one.values, "{threads} threads, image {i} of {n}");
            }
        }
    }
}

#[test]
fn several_threads_share_an_engine() {
    let checkpoint = synthetic::checkpoint(&zoo::arch("resnet18").unwrap()).unwrap();
    let engine = Engine::new(&checkpoint, options(2, Isa::best(), Precision::F32)).unwrap();
    let run = |n: usize| engine.run(&input([n, 3, 64, 64]), [n, 3, 64, 64], &["logits"]).unwrap();
    let expected: Vec<_> = (1..5).map(run).collect();
    std::thread::scope(|scope| {
        for (i, expected) in expected.iter().enumerate() {
            scope.spawn(move || (0..5).for_each(|_| assert_eq!(&run(i + 1), expected)));
        }
    });
}

#[test]
fn invalid_inputs_are_errors_with_both_shapes() {
    let checkpoint = synthetic::checkpoint(&zoo::arch("resnet18").unwrap()).unwrap();
    let engine = Engine::new(&checkpoint, options(1, Isa::best(), Precision::F32)).unwrap();
    let check = |dims: [usize; 4], expected: &str| {
        let elements =
            dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).filter(|&n| n < 1 << 20).unwrap_or(0);
        let x = vec![0.0; elements];
        for result in [engine.run(&x, dims, &["logits"]), engine.run_single_threaded(&x, dims, &["logits"])] {
            let error = result.unwrap_err().to_string();
            assert!(error.contains(expected), "{dims:?}: {error}");
        }
    };
    check([1, 1, 64, 64], "input has shape [1, 1, 64, 64], expected [N, 3, H, W]");
    check([0, 3, 64, 64], "expected [N, 3, H, W]");
    check([1, 3, 0, 64], "1 to 1048576 pixels");
    check([usize::MAX, 3, usize::MAX, 64], "expected [N, 3, H, W]");
    let error = engine.run(&input([1, 3, 64, 64]), [1, 3, 64, 64], &["layer9"]).unwrap_err().to_string();
    assert!(error.contains("unknown tap `layer9`"), "{error}");
    assert!(Engine::new(&checkpoint, options(0, Isa::best(), Precision::F32)).is_err());
}
