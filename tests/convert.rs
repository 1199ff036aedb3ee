//! `resnet-cli convert`, `download` and `cache`.

use std::fs;
use std::process::Command;

use resnet_model::{Checkpoint, Labels};
use tempfile::TempDir;

use crate::cli::{Output, checkpoint, command, run};
use crate::fakehub::FakeHub;
use crate::predict::hub;

const ID: &str = "timm/resnet18.tv_in1k";

fn with_hub(args: &[&str], hub: &FakeHub, folder: &TempDir) -> Output {
    let mut command: Command = command(args);
    command.env("HF_ENDPOINT", hub.url()).env("HF_HUB_CACHE", folder.path().join("hub"));
    run(command.current_dir(folder.path()), &[])
}

#[test]
fn hub_ids_are_downloaded_and_converted() {
    let (hub, folder) = (hub(), tempfile::tempdir().unwrap());
    let downloaded = with_hub(&["download", ID], &hub, &folder);
    assert!(downloaded.ok().trim_end().ends_with("model.safetensors"), "{downloaded:?}");
    // Standard error is not a terminal.
    let progress =
        ["note: downloading model.safetensors (", "note: downloaded 50 %", "note: downloaded 100 %"];
    assert!(progress.iter().all(|line| downloaded.stderr.contains(line)), "{downloaded:?}");
    assert_eq!(with_hub(&["--quiet", "download", ID], &hub, &folder).stderr, "");

    let requests = hub.requests().len();
    let converted = with_hub(&["convert", ID], &hub, &folder);
    assert!(converted.ok().contains("resnet18"), "{converted:?}");
    assert_eq!(hub.requests().len(), requests, "cached files need no request");
    let meta = Checkpoint::open(&folder.path().join("resnet18.tv_in1k.safetensors")).unwrap().meta().clone();
    assert_eq!((meta.preprocess.crop, meta.labels), ([224; 2], Labels::ImageNet1k));
    let again = with_hub(&["convert", ID], &hub, &folder);
    assert!(again.code == 1 && again.stderr.contains("already exists"), "{again:?}");
    let missing = with_hub(&["convert", "me/nothing"], &hub, &folder);
    assert!(missing.code == 1 && missing.stderr.contains("me/nothing"), "{missing:?}");
}

#[test]
fn configuration_files_next_to_a_checkpoint_are_converted() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("source");
    fs::create_dir(&source).unwrap();
    let own = Checkpoint::open(&checkpoint(folder.path(), "resnet18")).unwrap();
    let tensors = own.tensors();
    let path = source.join("model.safetensors");
    let replace = resnet_model::file::Existing::Replace;
    resnet_model::safetensors::write(&path, replace, &Default::default(), tensors, &mut |_| {}).unwrap();
    let config = r#"{"architecture": "resnet18", "pretrained_cfg": {"input_size": [3, 288, 288], "interpolation": "bicubic",
        "crop_pct": 1.0, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}}"#;
    fs::write(source.join("config.json"), config).unwrap();
    for (input, output) in [("source", "source.safetensors"), ("source/model.safetensors", "out.safetensors")]
    {
        let mut command = command(&["convert", input, "-o", output]);
        run(command.current_dir(folder.path()), &[]).ok();
        let converted = Checkpoint::open(&folder.path().join(output)).unwrap();
        assert_eq!(converted.meta().preprocess.crop, [288; 2], "{input}");
    }
}

#[test]
fn the_cache_is_listed_verified_and_pruned() {
    let (hub, folder) = (hub(), tempfile::tempdir().unwrap());
    with_hub(&["download", ID], &hub, &folder).ok();
    let cache = |args: &[&str]| with_hub(&[&["cache"], args].concat(), &hub, &folder);
    assert!(cache(&["list"]).ok().contains("timm/resnet18.tv_in1k  1 commits  main"));
    assert_eq!(cache(&["verify"]).ok(), "timm/resnet18.tv_in1k: ok\n");
    let missing = cache(&["verify", "me/nothing"]);
    assert!(missing.code == 2 && missing.stderr.contains("not in the cache"), "{missing:?}");

    // A commit without a branch, a blob that only it uses, and a partial download; all of them old.
    let repo = folder.path().join("hub/models--timm--resnet18.tv_in1k");
    let (commit, blob) = ("0".repeat(40), repo.join("blobs").join("1".repeat(40)));
    let snapshot = repo.join("snapshots").join(&commit);
    let partial = repo.join("blobs").join(format!("{}.x.incomplete", "2".repeat(40)));
    fs::create_dir(&snapshot).unwrap();
    fs::write(&blob, "old").unwrap();
    fs::write(&partial, "old").unwrap();
    assert_eq!(cache(&["prune", ID]).ok(), "timm/resnet18.tv_in1k: removed 0 bytes\n");
    let damaged = cache(&["verify", ID]);
    assert!(damaged.code == 1 && damaged.stdout.contains(&"1".repeat(40)), "{damaged:?}");
    let old = std::time::SystemTime::now() - std::time::Duration::from_secs(7200);
    for path in fs::read_dir(repo.join("blobs")).unwrap().map(|entry| entry.unwrap().path()) {
        fs::File::options().write(true).open(path).unwrap().set_modified(old).unwrap();
    }
    fs::File::open(&snapshot).unwrap().set_modified(old).unwrap();
    let pruned = cache(&["prune", "--all"]);
    assert!(pruned.ok().contains("removed 6 bytes"), "{pruned:?}");
    assert!(!snapshot.exists() && !blob.exists() && !partial.exists());
    // What is in use still needs no request.
    let requests = hub.requests().len();
    with_hub(&["download", ID], &hub, &folder).ok();
    assert_eq!(hub.requests().len(), requests);
}
