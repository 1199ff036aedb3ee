//! `resnet-cli inspect` and `diff`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use resnet_model::file::Existing;
use resnet_model::{Checkpoint, RawTensor, safetensors};
use serde_json::Value;

use crate::cli::checkpoint;

fn s(path: impl AsRef<Path>) -> String {
    path.as_ref().to_str().unwrap().to_owned()
}

/// Exit status, standard output and standard error.
fn resnet_cli(args: &[&str]) -> (i32, String, String) {
    let out = crate::cli::resnet_cli(args);
    (out.code, out.stdout, out.stderr)
}

fn golden(name: &str) -> String {
    s(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/checkpoints").join(name))
}

/// Writes a changed copy of a checkpoint, without its metadata.
fn changed(from: &Path, to: &str, change: impl Fn(&mut BTreeMap<String, RawTensor>)) -> PathBuf {
    let mut tensors = Checkpoint::open(from).unwrap().tensors().clone();
    change(&mut tensors);
    let path = from.with_file_name(to);
    safetensors::write(&path, Existing::Replace, &BTreeMap::new(), &tensors, &mut |_| {}).unwrap();
    path
}

#[track_caller]
fn fits(text: &str) {
    let long = text.lines().find(|line| line.chars().count() > 80);
    assert!(long.is_none() || text.lines().next() == long, "{long:?} is too long");
}

#[test]
fn inspect_shows_the_network_and_every_tensor() {
    let (code, text, _) = resnet_cli(&["inspect", &golden("wrapped-module.pth")]);
    assert_eq!(code, 0);
    fits(&text);
    for expected in [
        "  container     PyTorch zip, ",
        "  known by      ",
        "  names         torchvision, under `",
        "  preprocess    ",
        " (from a default)",
        "→ conv1.weight",
    ] {
        assert!(text.contains(expected), "no {expected:?} in\n{text}");
    }
    let (_, json, _) = resnet_cli(&["inspect", "--json", "--stats", &golden("huggingface.safetensors")]);
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["container"], "safetensors");
    let first = &json["tensors"][0];
    assert!(first["becomes"].is_string() && first["stats"]["mean"].is_number(), "{first}");
    assert_eq!(json["tensors"].as_array().unwrap().len(), json["report"]["tensors"]);
    let (_, text, _) = resnet_cli(&["inspect", "--stats", &golden("huggingface.safetensors")]);
    fits(&text);
    assert!(text.contains("    F32  [") && text.contains("  mean "), "{text}");
}

#[test]
fn inspect_shows_files_that_are_not_networks() {
    let dir = tempfile::tempdir().unwrap();
    let tensors = BTreeMap::from([
        (
            "encoder\u{1b}[2J".to_owned(),
            RawTensor::from_f32(vec![3], &[1.0, f32::NAN, f32::INFINITY]).unwrap(),
        ),
        ("n".to_owned(), RawTensor::scalar_i64(7)),
    ]);
    let path = dir.path().join("other.safetensors");
    safetensors::write(&path, Existing::Keep, &BTreeMap::new(), &tensors, &mut |_| {}).unwrap();
    let (code, text, error) = resnet_cli(&["inspect", "--stats", &s(&path)]);
    assert_eq!(code, 0, "{error}");
    fits(&text);
    for expected in ["  not a network", "encoder\\u{1b}[2J", "1 NaN  1 infinite", "1 F32"] {
        assert!(text.contains(expected), "no {expected:?} in\n{text}");
    }
    assert!(!text.contains('\u{1b}'));
    // A folder with one checkpoint.
    let (code, _, error) = resnet_cli(&["inspect", &s(dir.path())]);
    assert_eq!((code, error.as_str()), (0, ""));
    let (code, _, error) = resnet_cli(&["inspect", &s(tempfile::tempdir().unwrap().path())]);
    assert_eq!(code, 1);
    assert!(error.contains("no weights; expected model.safetensors"), "{error}");
}

#[test]
fn diff_compares_under_canonical_names() {
    let index = std::fs::read_to_string(golden("index.tsv")).unwrap();
    let mut count = 0;
    for line in index.lines().skip(1) {
        let [file, _, _, expected, absent, _] = line.split('\t').collect::<Vec<_>>()[..] else {
            panic!("{line}")
        };
        // Files with a missing tensor differ.
        let code = if absent == "-" { 0 } else { 1 };
        let (found, text, error) = resnet_cli(&["diff", &golden(expected), &golden(file)]);
        assert_eq!(found, code, "{file}: {text}{error}");
        count += 1;
    }
    assert!(count >= 24, "{count} files");
}

#[test]
fn diff_separates_dtypes_from_values() {
    let dir = tempfile::tempdir().unwrap();
    let a = checkpoint(dir.path(), "resnet20_cifar");
    let b = changed(&a, "b.safetensors", |tensors| {
        let shape = tensors["fc.bias"].shape().to_vec();
        let zeros = std::sync::Arc::new(vec![0; 2 * shape[0]]);
        tensors
            .insert("fc.bias".into(), RawTensor::new(resnet_model::raw::Dtype::F16, shape, zeros).unwrap());
    });
    let zero = changed(&a, "a.safetensors", |tensors| {
        let shape = tensors["fc.bias"].shape().to_vec();
        tensors.insert("fc.bias".into(), RawTensor::from_f32(shape.clone(), &vec![0.0; shape[0]]).unwrap());
    });
    let (code, text, _) = resnet_cli(&["diff", &s(&zero), &s(&b)]);
    assert_eq!(code, 1);
    assert!(text.contains("different dtypes, equal values: 1\n  fc.bias  A F32, B F16"), "{text}");
    assert!(!text.contains("values differ"), "{text}");
}

#[test]
fn diff_reports_every_difference() {
    let dir = tempfile::tempdir().unwrap();
    let a = checkpoint(dir.path(), "resnet20_cifar");
    let b = changed(&a, "b.safetensors", |tensors| {
        let mut values = tensors["conv1.weight"].to_f32("w").unwrap();
        values[5] += 0.25;
        let shape = tensors["conv1.weight"].shape().to_vec();
        tensors.insert("conv1.weight".into(), RawTensor::from_f32(shape, &values).unwrap());
        tensors.insert("extra\u{7}".into(), RawTensor::scalar_i64(1));
        tensors.remove("fc.bias");
        let fc = tensors["fc.weight"].reshape(vec![64, 10]).unwrap();
        tensors.insert("fc.weight".into(), fc);
    });
    let (code, text, _) = resnet_cli(&["diff", &s(&a), &s(&b)]);
    assert_eq!(code, 1);
    fits(&text);
    for expected in [
        "under their names in the files",
        "only in A: 1\n  fc.bias  F32  [10]",
        "only in B: 1\n  extra\\u{7}  I64  []",
        "different shapes: 1\n  fc.weight  A [10, 64], B [64, 10]",
        "different values: 1\n  conv1.weight  2.500e-1 (rel. ",
        "1 of 432 values differ",
    ] {
        assert!(text.contains(expected), "no {expected:?} in\n{text}");
    }
    let (code, json, _) = resnet_cli(&["diff", "--json", &s(&a), &s(&b)]);
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(
        (code, &json["same"], &json["differing"][0]["values"]),
        (1, &Value::from(false), &Value::from(1))
    );
    let same = resnet_cli(&["diff", &s(&a), &s(changed(&a, "c.safetensors", |_| {}))]);
    assert_eq!(same.0, 0, "{}{}", same.1, same.2);
    let (code, _, error) = resnet_cli(&["diff", &s(&a), &s(dir.path().join("gone"))]);
    assert_eq!(code, 2, "{error}");
}
