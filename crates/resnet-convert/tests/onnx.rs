//! ONNX: import of many exporters' graphs, export, and round trips.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::build::onnx as build;
use resnet_convert::{Conversion, ConvertOptions, Export, Float, Format, IdentifiedBy, Report};
use resnet_model::arch::{Arch, Attention, Block, Norm, Padding, ResNet, ResNetV2};
use resnet_model::engine::{self, Engine};
use resnet_model::file::Existing;
use resnet_model::{Checkpoint, RawTensor, safetensors, synthetic, zoo};

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/onnx")
}

/// Returns the output of a checkpoint for images `[N, C, H, W]`.
fn logits(checkpoint: &Checkpoint, x: &[f32], dims: [usize; 4]) -> Vec<f32> {
    Engine::new(checkpoint, engine::EngineOptions::default()).unwrap().output(x, dims).unwrap().values
}

/// Returns the maximum absolute error relative to the largest expected magnitude.
fn difference(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(0f32, |m, v| m.max(v.abs()));
    let errors = found.iter().zip(expected).map(|(a, b)| (a - b).abs());
    errors.fold(0f32, |m, d| if d.is_nan() { f32::NAN } else { m.max(d) }) / largest
}

/// `tests/golden/onnx_files.py` describes these files.
#[test]
fn exports_of_every_kind_are_identified() {
    let contents = safetensors::open(&golden().join("logits.safetensors")).unwrap();
    let stored: BTreeMap<String, RawTensor> = contents.tensors.into_iter().collect();
    let usual: [usize; 4] = stored["input"].shape().try_into().unwrap();
    let index = std::fs::read_to_string(golden().join("index.tsv")).unwrap();
    let mut count = 0;
    for line in index.lines().skip(1) {
        let [file, network, _] = line.split('\t').collect::<Vec<_>>()[..] else { panic!("{line}") };
        let opened = resnet_convert::open(&golden().join(file), &ConvertOptions::default());
        let (checkpoint, report) = opened.unwrap_or_else(|e| panic!("{file}: {e}"));
        let arch: Arch =
            serde_json::from_str(&contents.metadata[network.split('-').next().unwrap()]).unwrap();
        assert_eq!(checkpoint.meta().arch, arch, "{file}");
        assert_eq!((report.container, report.identified.by), (Format::Onnx, IdentifiedBy::Graph), "{file}");
        assert!(report.dropped.is_empty(), "{file}: {:?}", report.dropped);
        // VGG requires a fixed image size, Inception a large one.
        let dims = match network {
            "vgg" => [2, 3, 56, 56],
            _ if network.starts_with("inception") => [2, 3, 80, 80],
            _ => usual,
        };
        let input = synthetic::input(dims.iter().product());
        let expected = stored[network].to_f32(network).unwrap();
        let error = difference(&logits(&checkpoint, &input, dims), &expected);
        assert!(error < 1e-5, "{file}: {error}");
        count += 1;
    }
    assert_eq!(stored["input"].to_f32("input").unwrap(), synthetic::input(usual.iter().product()));
    assert!(count >= 15, "{count} files");
}

#[test]
fn weights_keep_their_bits() {
    // Norms and names are those of PyTorch.
    let open = |file: &str| resnet_convert::open(&golden().join(file), &ConvertOptions::default()).unwrap().0;
    let kept = open("torchscript-norms.onnx");
    let external = open("dynamo-external.onnx");
    for name in ["layer1.0.conv1.weight", "fc.weight", "fc.bias"] {
        let (a, b) = (kept.tensor(name).unwrap(), external.tensor(name).unwrap());
        assert_eq!(a.shape(), b.shape(), "{name}");
        // The exporter folded the norms of one file into the convolutions.
        assert_eq!(a.read().unwrap() == b.read().unwrap(), name.starts_with("fc"), "{name}");
    }
    for name in ["bn1.running_var", "layer2.0.downsample.1.weight"] {
        assert_eq!(kept.values(name).unwrap().len(), kept.tensor(name).unwrap().shape()[0]);
    }
}

#[test]
fn preprocessing_in_the_graph_is_converted() {
    let (checkpoint, report) =
        resnet_convert::open(&golden().join("prepared.onnx"), &ConvertOptions::default()).unwrap();
    let preprocess = &checkpoint.meta().preprocess;
    let near =
        |found: &[f32], expected: [f32; 3]| found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6);
    assert!(near(&preprocess.mean, [0.485, 0.456, 0.406]), "{preprocess:?}");
    assert!(near(&preprocess.std, [0.229, 0.224, 0.225]), "{preprocess:?}");
    assert!(report.notes.iter().any(|n| n.contains("normalizes images of values from 0 to 255")), "{report}");
}

#[test]
fn omitted_parts_are_reported() {
    for (file, note) in [
        ("tensorflow.onnx", "takes images as [N, H, W, C]"),
        ("tensorflow.onnx", "ends with Softmax"),
        ("tensorflow-official.onnx", "ends with ArgMax"),
        ("tensorflow-auto.onnx", "SAME padding is fixed"),
        ("torchscript-17.onnx", "batch norms are folded in the file"),
    ] {
        let (_, report) = resnet_convert::open(&golden().join(file), &ConvertOptions::default()).unwrap();
        assert!(report.notes.iter().any(|n| n.contains(note)), "{file}: {:?}", report.notes);
    }
}

/// Zero padding before a max pool has no effect only after a ReLU.
#[test]
fn unsupported_pools_are_rejected_with_their_node() {
    let pool = |before: &str, attributes: &[Vec<u8>]| {
        let graph = [
            build::node(before, &["x"], "v"),
            build::node_with("MaxPool", &["v"], "y", attributes),
            build::end(11, "x"),
            build::end(12, "y"),
        ];
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pool.onnx");
        std::fs::write(&path, build::model(&graph.concat())).unwrap();
        resnet_convert::open(&path, &ConvertOptions::default()).unwrap_err().to_string()
    };
    let (three, two) = (build::ints("kernel_shape", &[3, 3]), build::ints("strides", &[2, 2]));
    let one_sided = [three.clone(), two.clone(), build::ints("pads", &[0, 0, 1, 1])];
    let up = [three.clone(), two.clone(), build::int("ceil_mode", 1)];
    for attributes in [&one_sided, &up] {
        let error = pool("Sigmoid", attributes);
        for part in ["MaxPool", "asymmetric padding or ceil_mode", "expected a ReLU before it"] {
            assert!(error.contains(part), "no {part:?} in {error}");
        }
        assert!(!pool("Relu", attributes).contains("ReLU"));
    }
    let far = [build::ints("kernel_shape", &[1, 1]), two, build::int("ceil_mode", 1)];
    assert!(pool("Relu", &far).contains("windows outside the image"));
}

#[test]
fn attention_is_rejected() {
    let nodes = [
        build::node("MatMul", &["x", "x"], "scores"),
        build::node("Softmax", &["scores"], "weights"),
        build::node("MatMul", &["weights", "x"], "y"),
        build::end(11, "x"),
        build::end(12, "y"),
    ];
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("attention.onnx");
    std::fs::write(&path, build::model(&nodes.concat())).unwrap();
    let error = resnet_convert::open(&path, &ConvertOptions::default()).unwrap_err().to_string();
    assert!(error.contains("y (MatMul): unsupported attention (as in CLIP image encoders)"), "{error}");
}

#[test]
fn a_given_architecture_is_compared_node_by_node() {
    let open = |arch: &str| {
        let options = ConvertOptions { arch: Some(zoo::arch(arch).unwrap()), ..ConvertOptions::default() };
        resnet_convert::open(&golden().join("torchscript-17.onnx"), &options).unwrap_err().to_string()
    };
    let error = open("resnet18");
    for part in ["compared with resnet18", "`conv1` (7×7 convolution, 3 → 64 channels", "3 → 4 channels"]
    {
        assert!(error.contains(part), "no {part:?} in {error}");
    }
}

/// Writes a checkpoint as ONNX and reads it again.
fn round_trip(checkpoint: &Checkpoint, options: &ConvertOptions) -> (Checkpoint, Report) {
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (dir.path().join("a.safetensors"), dir.path().join("b.onnx"));
    checkpoint.save(&first, Existing::Keep, &mut |_| {}).unwrap();
    let job = Conversion { input: &first, output: &second, existing: Existing::Keep, options };
    resnet_convert::convert(job, &mut |p| assert!(p.done <= p.total)).unwrap();
    let (back, report) = resnet_convert::open(&second, &ConvertOptions::default()).unwrap();
    // Read all tensors before the folder is deleted.
    let tensors = back.tensors().iter().map(|(name, t)| {
        let bytes = std::sync::Arc::new(t.read().unwrap());
        (name.clone(), RawTensor::new(t.dtype(), t.shape().to_vec(), bytes).unwrap())
    });
    (Checkpoint::new(back.meta().clone(), tensors.collect()).unwrap(), report)
}

/// Returns a network with the same operations, but fewer channels and blocks.
fn narrow(arch: Arch) -> Option<Arch> {
    match arch {
        Arch::ResNet(mut net) => {
            if !net.pruned.is_empty() || net.groups > 32 {
                return None;
            }
            // Group norm has 32 groups, even in the narrowest layer.
            let by = if net.norm == Norm::Group { 2 } else { 8 };
            net.stages.iter_mut().for_each(|s| (s.depth, s.width) = (s.depth.min(2), s.width / by));
            net.stem = match net.stem {
                resnet_model::arch::Stem::Conv7 { width } => {
                    resnet_model::arch::Stem::Conv7 { width: width / by }
                }
                resnet_model::arch::Stem::Deep { widths } => {
                    resnet_model::arch::Stem::Deep { widths: widths.map(|w| w / by) }
                }
                resnet_model::arch::Stem::Conv3 { width } => {
                    resnet_model::arch::Stem::Conv3 { width: width / by }
                }
                stem => stem,
            };
            if net.groups > 1 {
                (net.groups, net.group_width) = (2, 32);
            }
            if let Attention::Se { reduction } = &mut net.attention {
                *reduction = (*reduction).min(4);
            }
            Some(Arch::ResNet(ResNet { num_classes: 7, ..net }))
        }
        // ONNX has no operator for their norms.
        Arch::ResNetV2(net) if net.norm.activates() => None,
        Arch::ResNetV2(mut net) => {
            net.stages.iter_mut().for_each(|s| {
                s.depth = s.depth.min(2);
                s.channels = if net.norm == Norm::Group { 128 } else { s.channels.min(64) };
            });
            Some(Arch::ResNetV2(ResNetV2 { num_classes: 7, ..net }))
        }
        // Fixed sizes, too large for a test.
        _ => None,
    }
}

/// A round trip of every narrowed network of the zoo keeps the network and its output.
#[test]
fn written_models_are_read_back() {
    let mut seen: Vec<Arch> = Vec::new();
    let padded = [Padding::OneSidedPool, Padding::OneSidedBlocks, Padding::OneSided].map(|padding| {
        ("padded", Arch::ResNet(ResNet { padding, ..ResNet::imagenet(Block::Bottleneck, &[1, 1, 1, 1]) }))
    });
    for (name, arch) in zoo::all().into_iter().chain(padded) {
        let Some(arch) = narrow(arch) else { continue };
        if seen.contains(&arch) {
            continue;
        }
        seen.push(arch.clone());
        let checkpoint = synthetic::checkpoint(&arch).unwrap();
        let dims = [1, arch.in_channels(), 64, 64];
        let x = synthetic::input(dims.iter().product());
        let expected = logits(&checkpoint, &x, dims);
        for keep_norms in [false, true] {
            let onnx = Export { keep_norms, batch: None };
            let (back, report) =
                round_trip(&checkpoint, &ConvertOptions { onnx, ..ConvertOptions::default() });
            assert_eq!(back.meta(), checkpoint.meta(), "{name}");
            assert_eq!(report.identified.by, IdentifiedBy::Metadata, "{name}");
            let error = difference(&logits(&back, &x, dims), &expected);
            assert!(error < 1e-5, "{name}, norms kept: {keep_norms}: {error}");
        }
    }
    assert!(seen.len() > 40, "{}", seen.len());
}

#[test]
fn f16_weights_are_written_as_f16() {
    let arch = narrow(zoo::arch("resnet50").unwrap()).unwrap();
    let checkpoint = synthetic::checkpoint(&arch).unwrap();
    let options = ConvertOptions { dtype: Some(Float::F16), ..ConvertOptions::default() };
    let (back, _) = round_trip(&checkpoint, &options);
    let dims = [2, 3, 64, 64];
    let x = synthetic::input(dims.iter().product());
    let error = difference(&logits(&back, &x, dims), &logits(&checkpoint, &x, dims));
    assert!(error < 5e-3 && error > 1e-6, "{error}");
    assert_eq!(format!("{:?}", back.tensor("conv1.weight").unwrap().dtype()), "F16");
}

#[test]
fn a_failed_write_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (input, output) = (golden().join("mxnet.onnx"), dir.path().join("out.onnx"));
    std::fs::write(&output, b"mine").unwrap();
    let options = ConvertOptions::default();
    let job = Conversion { input: &input, output: &output, existing: Existing::Keep, options: &options };
    assert!(resnet_convert::convert(job, &mut |_| {}).unwrap_err().to_string().contains("exists"));
    assert_eq!(std::fs::read(&output).unwrap(), b"mine");
    let job = Conversion { existing: Existing::Replace, ..job };
    resnet_convert::convert(job, &mut |_| {}).unwrap();
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    assert_eq!(resnet_convert::open(&output, &options).unwrap().1.container, Format::Onnx);
}
