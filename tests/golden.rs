//! Our numbers against PyTorch's: golden files made by `golden/generate.py`.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use resnet_model::engine::{EngineOptions, Isa, Precision};
use resnet_model::{
    Arch, Checkpoint, Labels, Meta, Network, Preprocess, RawTensor, Runtime, param_specs, safetensors,
    synthetic, zoo,
};
use sha2::{Digest, Sha256};

/// The largest difference over the largest magnitude that counts as the same, on every path.
const TOLERANCE: f32 = 1e-4;

pub(crate) fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden")
}

fn tensors(file: &str) -> BTreeMap<String, RawTensor> {
    safetensors::open(&folder().join(file)).unwrap().tensors.into_iter().collect()
}

fn candle(tensor: &RawTensor) -> Tensor {
    tensor.to_candle("golden", DType::F32, &Device::Cpu).unwrap()
}

#[track_caller]
fn check(what: &str, found: &Tensor, expected: &Tensor) {
    assert_eq!(found.dims(), expected.dims(), "{what}");
    let max = |t: &Tensor| t.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
    let difference = max(&(found - expected).unwrap()) / max(expected);
    assert!(difference <= TOLERANCE, "{what}: {difference:e}");
}

/// Every way to run a network for inference.
fn runtimes(checkpoint: &Checkpoint, size: [usize; 2]) -> Vec<(String, Runtime)> {
    let mut runtimes = Vec::new();
    for isa in Isa::available() {
        for precision in [Precision::F32, Precision::Exact] {
            let options =
                EngineOptions { threads: 2, isa, precision, input: Some(size), ..EngineOptions::default() };
            let runtime = Runtime::new(checkpoint, &Device::Cpu, options).unwrap();
            runtimes.push((format!("{} {precision:?}", isa.name()), runtime));
        }
    }
    for (name, network) in
        [("candle", Network::load as fn(_, _, _) -> _), ("candle, folded", Network::load_folded)]
    {
        let network = network(checkpoint, DType::F32, &Device::Cpu).unwrap();
        runtimes.push((name.to_owned(), Runtime::Network(Box::new(network))));
    }
    runtimes
}

fn formula_input(dims: &[usize]) -> Tensor {
    Tensor::from_vec(synthetic::input(dims.iter().product()), dims, &Device::Cpu).unwrap()
}

#[test]
fn the_formula_is_the_same_in_both_languages() {
    let roles: HashMap<String, param_specs::ParamSpec> = zoo::arch("resnet50")
        .unwrap()
        .graph()
        .unwrap()
        .param_specs()
        .into_iter()
        .map(|p| (p.name.clone(), p))
        .collect();
    let table = std::fs::read_to_string(folder().join("formula.tsv")).unwrap();
    for row in table.lines().skip(1) {
        let [name, shape, first, hash] = row.split('\t').collect::<Vec<_>>().try_into().unwrap();
        let shape: Vec<usize> = shape.split('x').map(|d| d.parse().unwrap()).collect();
        let values = match roles.get(name) {
            Some(param) => {
                assert_eq!(param.shape, shape, "{name}");
                synthetic::values(param)
            }
            None => synthetic::input(shape.iter().product()),
        };
        assert_eq!(values[0], first.parse::<f32>().unwrap(), "{name}");
        let bytes = values.iter().flat_map(|v| v.to_le_bytes());
        let found =
            bytes.fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
        assert_eq!(format!("{found:016x}"), hash, "{name}");
    }
}

#[test]
fn logits_of_full_networks_are_pytorchs() {
    for (model, expected) in tensors("logits.safetensors") {
        let (name, dims) = match model.split_once("_n2_") {
            Some((name, _)) => (name, [2, 3, 193, 161]),
            None => (model.as_str(), [1, 3, 224, 224]),
        };
        let checkpoint = synthetic::checkpoint(&zoo::arch(name).unwrap()).unwrap();
        let (x, expected) = (formula_input(&dims), candle(&expected));
        for precision in [Precision::F32, Precision::Exact] {
            let options = EngineOptions { precision, ..EngineOptions::default() };
            let runtime = Runtime::new(&checkpoint, &Device::Cpu, options).unwrap();
            check(
                &format!("{model} {precision:?}"),
                &runtime.features(&x, &["logits"]).unwrap()[0],
                &expected,
            );
        }
        let network = Network::load_folded(&checkpoint, DType::F32, &Device::Cpu).unwrap();
        check(&format!("{model} candle"), &network.forward(&x).unwrap(), &expected);
    }
}

#[test]
fn feature_maps_are_pytorchs() {
    let golden = tensors("taps.safetensors");
    for (name, dims) in [("resnet18", [1, 3, 48, 48]), ("resnet50", [1, 3, 40, 33])] {
        let checkpoint = synthetic::checkpoint(&zoo::arch(name).unwrap()).unwrap();
        let taps: Vec<String> = checkpoint.graph().taps().iter().map(|t| t.name.clone()).collect();
        let taps: Vec<&str> = taps.iter().map(String::as_str).collect();
        for (path, runtime) in runtimes(&checkpoint, [dims[2], dims[3]]) {
            let found = runtime.features(&formula_input(&dims), &taps).unwrap();
            for (tap, found) in taps.iter().zip(&found) {
                check(&format!("{name} {tap} {path}"), found, &candle(&golden[&format!("{name}.{tap}")]));
            }
        }
    }
}

#[test]
fn narrow_networks_of_every_kind_are_pytorchs() {
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(folder().join("narrow")).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 12, "{files:?}");
    for file in files {
        let name = file.file_stem().unwrap().to_string_lossy().into_owned();
        let contents = safetensors::open(&file).unwrap();
        let arch: Arch = serde_json::from_str(&contents.metadata["arch"]).unwrap();
        let graph = arch.graph().unwrap();
        let mut golden: BTreeMap<String, RawTensor> = contents.tensors.into_iter().collect();
        let x = candle(&golden.remove("input").unwrap());
        let taps: Vec<&str> = graph.taps().iter().map(|t| t.name.as_str()).collect();
        let expected: Vec<Tensor> = taps.iter().map(|&tap| candle(&golden.remove(tap).unwrap())).collect();
        let preprocess = Preprocess::torchvision(32, 32);
        let checkpoint = Checkpoint::new(Meta::new(arch, preprocess), golden).unwrap();
        for (path, runtime) in runtimes(&checkpoint, [x.dims()[2], x.dims()[3]]) {
            for ((tap, found), expected) in
                taps.iter().zip(runtime.features(&x, &taps).unwrap()).zip(&expected)
            {
                check(&format!("{name} {tap} {path}"), &found, expected);
            }
        }
    }
}

#[test]
fn names_shapes_and_order_are_those_of_state_dict() {
    let table = std::fs::read_to_string(folder().join("zoo.tsv")).unwrap();
    assert!(table.lines().count() > 5);
    for row in table.lines().skip(1) {
        let [model, tensors, parameters, digest] = row.split('\t').collect::<Vec<_>>().try_into().unwrap();
        let graph = zoo::arch(model).unwrap().graph().unwrap();
        let params = graph.param_specs();
        assert_eq!(params.len().to_string(), tensors, "{model}");
        assert_eq!(graph.param_count().to_string(), parameters, "{model}");
        let shape = |shape: &[usize]| match shape {
            [] => "scalar".to_owned(),
            shape => shape.iter().map(usize::to_string).collect::<Vec<_>>().join("x"),
        };
        let listing: String = params.iter().map(|p| format!("{} {}\n", p.name, shape(&p.shape))).collect();
        let whole = folder().join(format!("zoo-{model}.txt"));
        if whole.exists() {
            let expected = std::fs::read_to_string(whole).unwrap();
            for (found, expected) in listing.lines().zip(expected.lines()) {
                assert_eq!(found, expected, "{model}");
            }
        }
        let found: String = Sha256::digest(&listing).iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(found, digest, "{model}");
    }
}

#[test]
fn the_bundled_digits_model_is_as_accurate_as_in_pytorch() {
    let checkpoint = Checkpoint::open(&folder().join("../../weights/digits_resnet20.safetensors")).unwrap();
    let meta = checkpoint.meta();
    assert_eq!(meta.labels, Labels::Names((0..10).map(|d| d.to_string()).collect()));
    let golden = tensors("digits.safetensors");
    let expected = candle(&golden["logits"]);
    let labels = golden["labels"].to_f32("labels").unwrap();
    let images = golden["images"].to_f32("images").unwrap();
    let (mean, std) = (meta.preprocess.mean[0], meta.preprocess.std[0]);
    let pixels: Vec<f32> = images.iter().map(|v| (v / 255.0 - mean) / std).collect();
    let n = labels.len();
    let x = Tensor::from_vec(pixels, (n, 1, 28, 28), &Device::Cpu).unwrap();
    let runtime =
        Runtime::new(&checkpoint, &Device::Cpu, EngineOptions { batch: 50, ..EngineOptions::default() })
            .unwrap();
    let mut correct = 0;
    for start in (0..n).step_by(50) {
        let part = |t: &Tensor| t.narrow(0, start, 50.min(n - start)).unwrap();
        let found = &runtime.features(&part(&x), &["logits"]).unwrap()[0];
        check("digits", found, &part(&expected));
        let classes = |t: &Tensor| t.argmax(1).unwrap().to_vec1::<u32>().unwrap();
        assert_eq!(classes(found), classes(&part(&expected)));
        correct += classes(found).iter().zip(&labels[start..]).filter(|(c, l)| **c as f32 == **l).count();
    }
    // What weights/README.md says: 99.45 %.
    assert_eq!((correct, n), (1989, 2000));
}
