//! `resnet-cli verify` and `bench`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use resnet_model::file::Existing;
use resnet_model::{Checkpoint, RawTensor, Runtime, safetensors};
use serde_json::Value;

use crate::cli::{checkpoint, resnet_cli};

fn s(path: impl AsRef<Path>) -> String {
    path.as_ref().to_str().unwrap().to_owned()
}

/// Writes a checkpoint and a file with its outputs for an input, the logits changed by `change`.
fn stage(folder: &Path, change: impl Fn(f32) -> f32) -> (PathBuf, PathBuf) {
    let path = checkpoint(folder, "resnet20_cifar");
    let runtime = Runtime::new(
        &Checkpoint::open(&path).unwrap(),
        &candle_core::Device::Cpu,
        resnet_model::engine::EngineOptions::default(),
    )
    .unwrap();
    let dims = [2, 3, 32, 32];
    let input = resnet_model::synthetic::input(dims.iter().product());
    let x = candle_core::Tensor::from_slice(&input, &dims, &candle_core::Device::Cpu).unwrap();
    let results = runtime.features(&x, &["layer3", "logits"]).unwrap();
    let logits: Vec<f32> = results[1].flatten_all().unwrap().to_vec1().unwrap();
    let logits: Vec<f32> = logits.into_iter().map(change).collect();
    let tensors = BTreeMap::from([
        ("input".to_owned(), RawTensor::from_f32(dims.to_vec(), &input).unwrap()),
        ("layer3".to_owned(), RawTensor::from_candle(&results[0]).unwrap()),
        ("logits".to_owned(), RawTensor::from_f32(vec![2, 10], &logits).unwrap()),
    ]);
    let expected = folder.join("expected.safetensors");
    safetensors::write(&expected, Existing::Replace, &BTreeMap::new(), &tensors, &mut |_| {}).unwrap();
    (path, expected)
}

#[test]
fn outputs_within_the_tolerance_pass() {
    let dir = tempfile::tempdir().unwrap();
    let (path, expected) = stage(dir.path(), |v| v);
    let output = resnet_cli(&["verify", &s(&path), "--against", &s(&expected)]);
    assert!(output.ok().contains("layer3") && output.stdout.matches("  ok").count() == 2, "{output:?}");

    let (path, expected) = stage(dir.path(), |v| v * 1.001);
    let output = resnet_cli(&["verify", &s(&path), "--against", &s(&expected)]);
    assert_eq!(output.code, 1);
    assert!(output.stdout.contains("DIFFERS"), "{output:?}");
    let tolerant = ["verify", &s(&path), "--against", &s(&expected), "--tolerance", "1e-2", "--json"];
    let rows: Value = serde_json::from_str(resnet_cli(&tolerant).ok()).unwrap();
    assert_eq!(rows[1]["name"], "logits");
    assert!((rows[1]["relative"].as_f64().unwrap() - 1e-3).abs() < 1e-5, "{rows}");
}

#[test]
fn files_that_cannot_be_compared_are_reported() {
    let dir = tempfile::tempdir().unwrap();
    let (path, expected) = stage(dir.path(), |v| v);
    resnet_cli(&["verify", &s(&path), "--against", &s(&path)]).fails_with(&["no tensor `input`"]);
    resnet_cli(&["verify", &s(&path), "--against", "nothing.safetensors"])
        .fails_with(&["nothing.safetensors"]);
    let other = checkpoint(dir.path(), "resnet32_cifar");
    let output = resnet_cli(&["verify", &s(&other), "--against", &s(&expected)]);
    assert_eq!(output.code, 1);
}

#[test]
fn bench_measures_every_combination() {
    let args = [
        "bench",
        "--model",
        "resnet20_cifar",
        "--size",
        "32",
        "--iters",
        "2",
        "--batch",
        "1,3",
        "--threads",
        "1,2",
    ];
    let args = [&args[..], &["--isa", "all", "--layers", "--json"]].concat();
    let rows: Value = serde_json::from_str(resnet_cli(&args).ok()).unwrap();
    let rows = rows.as_array().unwrap();
    assert_eq!(rows.len(), 4 * resnet_model::engine::Isa::available().len());
    for row in rows {
        assert_eq!(row["model"], "resnet20_cifar");
        for key in
            ["batch", "threads", "median_ms", "p10_ms", "p90_ms", "images_per_s", "gflops", "peak_gflops"]
        {
            assert!(row[key].as_f64().unwrap() > 0.0, "{key} of {row}");
        }
        assert!(row["isa"].is_string() && row["layers"].as_array().unwrap().len() > 20, "{row}");
    }
    let table = resnet_cli(&["bench", "--depth", "18", "--size", "32", "--iters", "1"]);
    assert!(table.ok().lines().nth(2).unwrap().starts_with("resnet18 "), "{table:?}");
    assert!(table.stdout.lines().all(|line| line.chars().count() <= 100), "{table:?}");
}
