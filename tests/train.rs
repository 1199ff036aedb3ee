//! `resnet-cli train` and `eval`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use resnet_model::file::Existing;
use resnet_model::{Checkpoint, Labels, safetensors};
use serde_json::Value;

use crate::cli::{command, digits, file, resnet_cli};

fn s(path: impl AsRef<Path>) -> String {
    path.as_ref().to_str().unwrap().to_owned()
}

/// Writes the first `count` test digits as PNGs in folders named after `name(digit)`, in `folder/data`.
pub(crate) fn data(folder: &Path, count: usize, name: impl Fn(u8) -> String) -> PathBuf {
    let contents = safetensors::open(&file("tests/golden/digits.safetensors")).unwrap();
    let read = |wanted: &str| {
        let (_, tensor) = contents.tensors.iter().find(|(name, _)| name == wanted).unwrap();
        tensor.read().unwrap()
    };
    let (images, labels) = (read("images"), read("labels"));
    let root = folder.join("data");
    for (i, (pixels, label)) in images.chunks_exact(28 * 28).zip(labels).take(count).enumerate() {
        let folder = root.join(name(label));
        fs::create_dir_all(&folder).unwrap();
        let image = image::GrayImage::from_raw(28, 28, pixels.to_vec()).unwrap();
        image.save(folder.join(format!("{i:04}.png"))).unwrap();
    }
    root
}

/// Odd and even digits: two classes that the bundled network was not trained for.
fn parity(digit: u8) -> String {
    if digit.is_multiple_of(2) { "even".into() } else { "odd".into() }
}

pub(crate) fn settings(folder: &Path, text: &str) -> String {
    let path = folder.join("settings.toml");
    fs::write(&path, text).unwrap();
    s(path)
}

#[test]
fn a_bundled_backbone_is_fine_tuned_on_new_classes() {
    let dir = tempfile::tempdir().unwrap();
    let data = s(data(dir.path(), 300, parity));
    let out = s(dir.path().join("run"));
    let config = settings(
        dir.path(),
        "epochs = 4\nbatch_size = 16\nval_fraction = 0.2\n[augment]\ncrop = \"center\"\nhflip = 0.0\n[schedule]\nlr = 0.05\n",
    );
    let weights = s(digits());
    let run = resnet_cli(&[
        "train",
        "--weights",
        &weights,
        "--config",
        &config,
        "--out",
        &out,
        "--train",
        "layer3",
        &data,
    ]);
    assert!(run.ok().contains("model.safetensors"), "{run:?}");
    assert!(run.stderr.contains("new, randomly initialized: fc.weight, fc.bias"), "{run:?}");
    assert!(run.stderr.contains("epoch 4: loss"), "{run:?}");
    let model = dir.path().join("run/model.safetensors");
    let meta = Checkpoint::open(&model).unwrap().meta().clone();
    assert_eq!(meta.labels, Labels::Names(vec!["even".into(), "odd".into()]));
    assert!(meta.metrics["top1"] > 95.0, "{:?}", meta.metrics);
    assert!(dir.path().join("run/curves.svg").exists());
    let lines = fs::read_to_string(dir.path().join("run/metrics.jsonl")).unwrap();
    let events: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(events.iter().filter(|e| e["event"] == "epoch").count(), 4);

    let model = s(model);
    let predicted = resnet_cli(&[
        "predict",
        "--weights",
        &model,
        "--top-k",
        "1",
        "--format",
        "csv",
        &s(file("examples/images/digit-7-a.png")),
    ]);
    assert!(predicted.ok().contains(",odd,"), "{predicted:?}");
    let evaluated = resnet_cli(&["eval", "--format", "json", "--per-class", "--confusion", &model, &data]);
    let figures: Value = serde_json::from_str(evaluated.ok()).unwrap();
    assert_eq!(figures["images"], 300);
    assert!(figures["top1"].as_f64().unwrap() > 95.0, "{figures}");
    let of_classes: u64 =
        figures["classes"].as_array().unwrap().iter().map(|c| c["images"].as_u64().unwrap()).sum();
    assert_eq!(of_classes, 300);
    let ensemble = resnet_cli(&["eval", "--ten-crop", "--sizes", "28,30", &model, &model, &data]);
    assert!(ensemble.ok().contains("images  300"), "{ensemble:?}");
    // The same network with its classes in the other order.
    let trained = Checkpoint::open(Path::new(&model)).unwrap();
    let reordered = s(dir.path().join("reordered.safetensors"));
    let swapped = trained.with_class_order(&[1, 0]).unwrap().unwrap();
    swapped.save(Path::new(&reordered), Existing::Keep, &mut |_| {}).unwrap();
    for order in [[&model, &reordered], [&reordered, &model]] {
        let ensemble = resnet_cli(&["eval", "--format", "json", order[0], order[1], &data]);
        let ensemble: Value = serde_json::from_str(ensemble.ok()).unwrap();
        assert_eq!(ensemble["top1"], figures["top1"]);
    }
    let other = resnet_cli(&["eval", &weights, &data]);
    other.fails_with(&["the network has no class `even`"]);
    let again = resnet_cli(&["train", "--weights", &weights, "--out", &out, &data]);
    assert!(again.code == 1 && again.stderr.contains("already contains a run"), "{again:?}");
}

#[test]
fn the_bundled_network_has_the_accuracy_of_its_card() {
    let dir = tempfile::tempdir().unwrap();
    let data = s(data(dir.path(), 2000, |digit| digit.to_string()));
    let output = resnet_cli(&["eval", &s(digits()), &data]);
    assert!(output.ok().contains("top-1   99.45 %  (1989 correct)"), "{output:?}");
}

#[test]
fn a_killed_run_is_resumed_to_identical_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let data = s(data(dir.path(), 120, |digit| (digit % 3).to_string()));
    let config = settings(
        dir.path(),
        "epochs = 3\nbatch_size = 8\nsave_every = 1\nema_decay = 0.9\n[augment]\nmixup = 0.2\npad = 2\ncrop = \"pad\"\ndegrees = 10.0\n",
    );
    let train = |out: &str, more: &[&str]| {
        let fixed = [
            "train",
            "--scratch",
            "resnet20_cifar",
            "--gray",
            "--size",
            "16",
            "--config",
            &config,
            "--out",
            out,
        ];
        command(&[&fixed[..], more, &[&data]].concat())
    };
    let whole = s(dir.path().join("whole"));
    let output = crate::cli::run(&mut train(&whole, &[]), &[]);
    output.ok();

    let parts = dir.path().join("parts");
    let mut child = train(&s(&parts), &[]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let began = Instant::now();
    let states = || {
        fs::read_dir(&parts).map_or(0, |entries| {
            entries.flatten().filter(|e| e.file_name().to_string_lossy().starts_with("state-")).count()
        })
    };
    while states() < 2 {
        assert!(began.elapsed() < Duration::from_secs(120), "no state was saved");
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let resumed = crate::cli::run(&mut train(&s(&parts), &["--resume"]), &[]);
    resumed.ok();
    assert!(resumed.stderr.contains("resumed at step"), "{resumed:?}");
    let bytes = |run: &Path| fs::read(run.join("model.safetensors")).unwrap();
    assert!(bytes(&parts) == bytes(Path::new(&whole)), "the models differ");

    let other = crate::cli::run(&mut train(&s(&parts), &["--resume", "--epochs", "9"]), &[]);
    assert_eq!(other.code, 1);
    assert!(other.stderr.contains("config.epochs: 3 in the run, 9 now"), "{other:?}");
}

/// A full disk, simulated by the limit on the file size: the state has 2 MB.
#[cfg(unix)]
#[test]
fn a_full_disk_ends_a_run_and_keeps_earlier_files() {
    let dir = tempfile::tempdir().unwrap();
    let data = s(data(dir.path(), 60, |digit| (digit % 3).to_string()));
    let out = dir.path().join("run");
    let config = settings(dir.path(), "epochs = 2\nbatch_size = 16\nsave_every = 1\n");
    let train = |script: &str| {
        let mut command = std::process::Command::new("sh");
        command.args(["-c", &format!("{script} exec \"$0\" \"$@\"")]).arg(env!("CARGO_BIN_EXE_resnet-cli"));
        command.args(["train", "--scratch", "resnet20_cifar", "--gray", "--size", "12", "--config", &config]);
        command.arg("--out").arg(&out);
        command
    };
    let files = || -> BTreeMap<String, Vec<u8>> {
        let entries = fs::read_dir(&out).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let names = names.filter(|name| !["lock", "metrics.jsonl"].contains(&name.as_str()));
        names.map(|name| (name.clone(), fs::read(out.join(name)).unwrap())).collect()
    };
    // Blocks of 512 or 1024 bytes; writes beyond fail, as on a full disk.
    let full = "trap '' XFSZ; ulimit -f 1000;";
    let failed = crate::cli::run(train(full).arg(&data), &[]);
    assert!(failed.code == 1 && failed.stderr.contains("error: `"), "{failed:?}");
    assert!(failed.stderr.contains("state-000000000001.safetensors"), "{failed:?}");
    assert!(files().is_empty(), "{:?}", files().keys());
    // The second epoch fails: the network and state of the first one are kept.
    crate::cli::run(train("").arg(&data), &[]).ok();
    let mut before = files();
    assert_eq!(before.len(), 4, "{:?}", before.keys());
    let (last, contents) = before.pop_last().unwrap();
    fs::remove_file(out.join(&last)).unwrap();
    let failed = crate::cli::run(train(full).args(["--resume", &data]), &[]);
    assert!(failed.code == 1 && failed.stderr.contains(&last), "{failed:?}");
    assert!(files() == before, "{:?} changed", files().keys());
    crate::cli::run(train("").args(["--resume", &data]), &[]).ok();
    before.insert(last, contents);
    assert!(files() == before, "{:?} differ", files().keys());
}

/// Weight decay that overshoots 0 ever further: some good epochs, then NaN.
#[test]
fn a_run_that_diverges_keeps_a_network_that_predicts() {
    let dir = tempfile::tempdir().unwrap();
    let data = s(data(dir.path(), 60, parity));
    let out = s(dir.path().join("run"));
    let config = settings(
        dir.path(),
        "epochs = 60\nbatch_size = 16\n[optimizer]\nmomentum = 0.0\nweight_decay = 30.0\n\
         [schedule]\nlr = 1.2\nwarmup = 1.0\n",
    );
    let fixed =
        ["train", "--scratch", "resnet20_cifar", "--gray", "--size", "12", "--config", &config, "--out"];
    let failed = resnet_cli(&[&fixed[..], &[&out, &data]].concat());
    assert_eq!(failed.code, 1, "{failed:?}");
    for part in ["epoch 2: loss", "diverged at step", "at a learning rate of", "last good state is kept"] {
        assert!(failed.stderr.contains(part), "no `{part}` in {}", failed.stderr);
    }
    let model = s(dir.path().join("run/model.safetensors"));
    let image = s(file("examples/images/digit-7-a.png"));
    let predicted = resnet_cli(&["predict", "--weights", &model, "--top-k", "2", "--format", "csv", &image]);
    let answers = predicted.ok();
    assert!(answers.contains(",odd,") && answers.contains(",even,") && !answers.contains("NaN"), "{answers}");
}

#[test]
fn invalid_arguments_are_rejected() {
    let dir = tempfile::tempdir().unwrap();
    let data = s(data(dir.path(), 20, parity));
    let weights = s(digits());
    let out = s(dir.path().join("run"));
    let check = |args: &[&str], parts: &[&str]| {
        resnet_cli(&[&["train", "--weights", &weights, "--out", &out][..], args].concat()).fails_with(parts);
    };
    check(&["--epochs", "0", &data], &["setting `epochs` is 0"]);
    check(&["/nowhere", "--epochs", "1"], &["/nowhere"]);
    check(
        &["--config", &settings(dir.path(), "epoch = 3"), &data],
        &["settings.toml", "unknown field `epoch`"],
    );
    check(&[&s(dir.path().join("data/even"))], &["found no classes; expected at least two"]);
}
