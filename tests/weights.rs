//! `resnet_weights::open`: local files, folders and repositories give the same answer, and assumptions are reported.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use resnet_model::file::Existing;
use resnet_model::{Checkpoint, RawTensor, safetensors, synthetic, zoo};
use resnet_weights::hub::Config;
use resnet_weights::{Error, Options, Provenance, Report};
use tempfile::TempDir;

use crate::fakehub::FakeHub;

const CONFIG: &str = r#"{"architecture": "resnet18", "num_classes": 1000, "pretrained_cfg": {"input_size": [3, 288, 288],
    "interpolation": "bicubic", "crop_pct": 1.0, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}}"#;
const REPO: &str = "me/net";

/// Writes tensors without our metadata, like files of other programs.
fn write(path: &Path, tensors: &BTreeMap<String, RawTensor>) {
    safetensors::write(path, Existing::Replace, &Default::default(), tensors, &mut |_| {}).unwrap();
}

fn resnet18() -> Checkpoint {
    synthetic::checkpoint(&zoo::arch("resnet18").unwrap()).unwrap()
}

fn folder(weights: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    write(&dir.path().join(weights), resnet18().tensors());
    dir
}

/// Serves the files of a folder.
fn serve(dir: &Path) -> FakeHub {
    let hub = FakeHub::start();
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        hub.add_file(REPO, entry.file_name().to_str().unwrap(), fs::read(entry.path()).unwrap());
    }
    hub
}

fn hub_config(hub: &FakeHub, cache: &TempDir) -> Config {
    Config { endpoint: hub.url(), cache_dir: Some(cache.path().into()), ..Config::default() }
}

fn open(options: &Options, config: &Config) -> Result<(Checkpoint, Report), Error> {
    resnet_weights::open(options, config, &mut |_| {})
}

fn open_path(path: &Path) -> (Checkpoint, Report) {
    let weights = Some(path.to_str().unwrap().to_owned());
    open(&Options { weights, ..Options::default() }, &Config::default()).unwrap()
}

fn open_repo(config: &Config) -> Result<(Checkpoint, Report), Error> {
    open(&Options { weights: Some(REPO.into()), ..Options::default() }, config)
}

#[test]
fn local_and_hub_copies_agree() {
    let dir = folder("model.safetensors");
    fs::write(dir.path().join("config.json"), CONFIG).unwrap();
    let (hub, cache) = (serve(dir.path()), tempfile::tempdir().unwrap());
    let (remote, report) = open_repo(&hub_config(&hub, &cache)).unwrap();
    assert_eq!(report.preprocess_from, Provenance::Config("config.json".into()));
    assert!(report.preprocess.contains("bicubic") && report.preprocess.contains("288×288"), "{report:?}");
    for path in [dir.path().to_owned(), dir.path().join("model.safetensors")] {
        let (local, other) = open_path(&path);
        assert_eq!(local.meta().preprocess, remote.meta().preprocess);
        assert_eq!(local.meta().labels, remote.meta().labels);
        assert_eq!(local.meta().arch, remote.meta().arch);
        assert_eq!(other.preprocess_from, report.preprocess_from);
        assert_eq!(other.assumptions(), report.assumptions());
    }
}

#[test]
fn assumptions_are_reported_and_overridden() {
    let dir = folder("m.safetensors");
    let path = dir.path().join("m.safetensors");
    let (_, report) = open_path(&path);
    let flags: Vec<&str> = report.assumptions().iter().map(|a| a.flag).collect();
    assert!(flags.ends_with(&["--preprocess", "--labels"]), "{:?}", report.assumptions());

    // The manifest, selected by --model or by the name of the file.
    let weights = Some(path.to_str().unwrap().to_owned());
    let model = Some("resnet18.a1_in1k".to_owned());
    let manifest = Provenance::Manifest("resnet18.a1_in1k".into());
    let options = Options { weights: weights.clone(), model, ..Options::default() };
    let (checkpoint, report) = open(&options, &Config::default()).unwrap();
    assert_eq!((checkpoint.meta().preprocess.crop, report.preprocess_from), ([288; 2], manifest.clone()));
    let named = dir.path().join("resnet18.a1_in1k.safetensors");
    fs::copy(&path, &named).unwrap();
    assert_eq!(open_path(&named).1.preprocess_from, manifest);

    // Overrides.
    let labels = dir.path().join("labels.txt");
    fs::write(&labels, (0..1000).map(|i| format!("class {i}\n")).collect::<String>()).unwrap();
    let preprocess = Some("resnet18.a1_in1k".to_owned());
    let options = Options { weights, preprocess, labels: Some(labels), ..Options::default() };
    let (checkpoint, report) = open(&options, &Config::default()).unwrap();
    assert_eq!(checkpoint.meta().labels.get(7).unwrap().name, "class 7");
    assert_eq!((report.preprocess_from, report.labels_from), (Provenance::Override, Provenance::Override));
}

#[test]
fn config_keys_that_change_the_network_are_errors() {
    let dir = folder("model.safetensors");
    let config = r#"{"model_type": "resnet", "hidden_act": "gelu"}"#;
    fs::write(dir.path().join("config.json"), config).unwrap();
    let weights = Some(dir.path().to_str().unwrap().to_owned());
    let error = open(&Options { weights, ..Options::default() }, &Config::default()).unwrap_err();
    assert!(matches!(&error, Error::ConfigKey { key, .. } if key == "hidden_act"), "{error}");
}

#[test]
fn sharded_repositories_and_folders() {
    let dir = tempfile::tempdir().unwrap();
    let tensors = resnet18().tensors().clone();
    let mut shards = [BTreeMap::new(), BTreeMap::new()];
    let mut map = serde_json::Map::new();
    for (i, (name, tensor)) in tensors.iter().enumerate() {
        map.insert(name.clone(), format!("model-0000{}-of-00002.safetensors", i % 2 + 1).into());
        shards[i % 2].insert(name.clone(), tensor.clone());
    }
    for (i, shard) in shards.iter().enumerate() {
        write(&dir.path().join(format!("model-0000{}-of-00002.safetensors", i + 1)), shard);
    }
    let index = serde_json::json!({"metadata": {}, "weight_map": map});
    fs::write(dir.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
    assert_eq!(open_path(dir.path()).0.tensors().len(), tensors.len());
    let (hub, cache) = (serve(dir.path()), tempfile::tempdir().unwrap());
    assert_eq!(open_repo(&hub_config(&hub, &cache)).unwrap().0.tensors().len(), tensors.len());
}

#[test]
fn what_worked_online_works_offline() {
    let dir = folder("pytorch_model.bin");
    let (hub, cache) = (serve(dir.path()), tempfile::tempdir().unwrap());
    let mut config = hub_config(&hub, &cache);
    open_repo(&config).unwrap();
    let requests = hub.requests().len();
    open_repo(&config).unwrap();
    assert_eq!(hub.requests().len(), requests, "a cached repository costs no request");
    config.offline = true;
    open_repo(&config).unwrap();
    // A cache of a program that does not record which files are missing.
    fs::remove_dir_all(cache.path().join("models--me--net/.no_exist")).unwrap();
    open_repo(&config).unwrap();
}

#[test]
fn repositories_and_folders_without_weights() {
    let hub = FakeHub::start();
    hub.add_file(REPO, "README.md", *b"");
    let (cache, empty) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let error = open_repo(&hub_config(&hub, &cache)).unwrap_err().to_string();
    assert!(error.contains(REPO) && error.contains("model.safetensors.index.json"), "{error}");
    let weights = Some(empty.path().to_str().unwrap().to_owned());
    let error = open(&Options { weights, ..Options::default() }, &Config::default()).unwrap_err().to_string();
    assert!(error.contains("folder") && error.contains("model.safetensors"), "{error}");
}
