//! `resnet-cli predict`.

use std::fs;
use std::path::Path;

use resnet_model::{safetensors, synthetic, zoo};
use serde_json::Value;

use crate::cli::{checkpoint, command, digits, file, resnet_cli, run};
use crate::fakehub::{FakeHub, Fault};

fn s(path: impl AsRef<Path>) -> String {
    path.as_ref().to_str().unwrap().to_owned()
}

fn predict(args: &[&str]) -> crate::cli::Output {
    let weights = s(digits());
    let mut all = vec!["predict", "--weights", &weights];
    all.extend(args);
    resnet_cli(&all)
}

#[test]
fn digits_are_recognized() {
    let images = s(file("examples/images"));
    let output = predict(&["--format", "json", "--top-k", "2", &images]);
    let rows: Value = serde_json::from_str(output.ok()).unwrap();
    let rows = rows.as_array().unwrap();
    assert_eq!(rows.len(), fs::read_dir(&images).unwrap().count());
    for row in rows {
        let name =
            Path::new(row["image"].as_str().unwrap()).file_stem().unwrap().to_str().unwrap().to_owned();
        let expected = name.split('-').nth(1).unwrap();
        let best = &row["predictions"][0];
        assert_eq!(best["label"], expected, "{name}");
        assert_eq!(best["index"].to_string(), expected, "{name}");
        assert!(best["score"].as_f64().unwrap() > 0.9, "{name}");
        assert_eq!(row["predictions"].as_array().unwrap().len(), 2);
    }
    assert_eq!(output.stderr, "");
}

#[test]
fn formats_agree() {
    let image = s(file("examples/images/digit-7-a.png"));
    let text = predict(&[&image, "--top-k", "1"]);
    assert!(text.ok().lines().nth(1).unwrap().ends_with("  7"), "{text:?}");
    let csv = predict(&[&image, "--top-k", "1", "--format", "csv"]);
    assert!(csv.ok().lines().nth(1).unwrap().contains(",1,7,,7,0.9"), "{csv:?}");
    let ndjson = predict(&[&image, &image, "--format", "ndjson", "--batch-size", "1"]);
    assert_eq!(ndjson.ok().lines().count(), 2);
    let logits = predict(&[&image, "--output-type", "logit", "--format", "json"]);
    let logits: Value = serde_json::from_str(logits.ok()).unwrap();
    assert!(logits[0]["predictions"][0]["score"].as_f64().unwrap() > 1.0);
}

#[test]
fn invalid_images_are_reported_and_skipped() {
    let dir = tempfile::tempdir().unwrap();
    let good = s(file("examples/images/digit-3-a.png"));
    let text = s(dir.path().join("text.png"));
    fs::write(&text, "not an image").unwrap();
    let output = predict(&[&good, &text, &s(dir.path().join("missing.png")), &good, "--format", "ndjson"]);
    assert_eq!(output.code, 3);
    assert_eq!(output.stdout.lines().count(), 2);
    let errors: Vec<&str> = output.stderr.lines().collect();
    assert!(errors[0].starts_with("error: ") && errors[0].contains("text.png"), "{errors:?}");
    assert!(errors[1].starts_with("error: ") && errors[1].contains("missing.png"), "{errors:?}");
    assert_eq!(errors[2], "2 of 4 images failed");
}

#[test]
fn dash_reads_an_image_from_standard_input() {
    let bytes = fs::read(file("examples/images/digit-5-a.png")).unwrap();
    let output = run(&mut command(&["predict", "--weights", &s(digits()), "--top-k", "1", "-"]), &bytes);
    assert!(output.ok().contains("  5"), "{output:?}");
    let output = run(&mut command(&["predict", "--weights", &s(digits()), "-"]), b"");
    output.fails_with(&["standard input"]);
}

#[test]
fn errors_are_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let empty = dir.path().join("empty");
    fs::create_dir(&empty).unwrap();
    predict(&[&s(&empty)]).fails_with(&["empty", "no images"]);

    let huge = dir.path().join("huge.png");
    let mut header = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR".to_vec();
    header.extend([60_000u32.to_be_bytes(), 60_000u32.to_be_bytes()].concat());
    header.extend([8, 2, 0, 0, 0]);
    let crc = crc32fast::hash(&header[12..]);
    header.extend(crc.to_be_bytes());
    fs::write(&huge, header).unwrap();
    predict(&[&s(&huge)]).fails_with(&["huge.png", "60000"]);

    let image = s(file("examples/images/digit-3-a.png"));
    let cli = |args: &[&str]| resnet_cli(&[&["predict"], args, &[image.as_str()]].concat());
    cli(&["--weights", "nothing.pth"]).fails_with(&["nothing.pth", "no such file"]);
    cli(&["--weights", &s(dir.path().join("empty"))]).fails_with(&["folder"]);
    let depth = cli(&["--depth", "77"]);
    assert!(
        depth.code == 2 && depth.stderr.contains("--depth 77: expected 18, 34, 50, 101 or 152"),
        "{depth:?}"
    );
    let id = cli(&["--model", "timm/resnet18.a1_in1k"]);
    assert!(id.code == 2 && id.stderr.contains("use --weights timm/resnet18.a1_in1k"), "{id:?}");
    let unknown = cli(&["--model", "resnet51"]);
    assert_eq!(unknown.code, 2, "{unknown:?}");
    assert!(unknown.stderr.contains("unknown model `resnet51`; did you mean"), "{unknown:?}");
    cli(&["--model", "plain34"]).fails_with(&["no published weights of `plain34`"]);
    cli(&["--weights", &s(digits()), "--device", "metal"])
        .fails_with(&["--device metal", "--features metal"]);

    let text = dir.path().join("text.pth");
    fs::write(&text, "weights").unwrap();
    cli(&["--weights", &s(&text)]).fails_with(&["text.pth"]);
}

#[test]
fn usage_errors_exit_with_2() {
    for args in [
        &["predict"][..],
        &["predict", "x.png"],
        &["predict", "--depth", "18", "--model", "resnet18", "x.png"],
        &["predict", "--depth", "18", "--top-k", "0", "x.png"],
        &["predict", "--depth", "18", "--device", "gpu", "x.png"],
        &["predict", "--depth", "x", "x.png"],
        &["nonsense"],
    ] {
        let output = resnet_cli(args);
        assert_eq!((output.code, output.stdout.as_str()), (2, ""), "{args:?} {output:?}");
    }
}

#[test]
fn weights_of_another_depth_are_rejected() {
    let dir = tempfile::tempdir().unwrap();
    let weights = s(checkpoint(dir.path(), "resnet18"));
    let image = s(file("examples/images/digit-3-a.png"));
    resnet_cli(&["predict", "--depth", "18", "--weights", &weights, &image]).ok();
    resnet_cli(&["predict", "--depth", "34", "--weights", &weights, &image]).fails_with(&[
        "resnet18.safetensors",
        "contains resnet18",
        "the model is resnet34",
    ]);
}

/// A Hub that serves ResNet-18 with formula weights as timm's repositories do.
pub(crate) fn hub() -> FakeHub {
    const REPO: &str = "timm/resnet18.tv_in1k";
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let checkpoint = synthetic::checkpoint(&zoo::arch("resnet18").unwrap()).unwrap();
    // Without our metadata, like files of other tools.
    safetensors::write(
        &path,
        resnet_model::file::Existing::Keep,
        &Default::default(),
        checkpoint.tensors(),
        &mut |_| {},
    )
    .unwrap();
    let hub = FakeHub::start();
    hub.add_file(REPO, "model.safetensors", fs::read(path).unwrap());
    let config = r#"{"architecture": "resnet18", "num_classes": 1000, "pretrained_cfg": {"input_size": [3, 224, 224],
        "interpolation": "bilinear", "crop_pct": 0.875, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}}"#;
    hub.add_file(REPO, "config.json", config);
    hub
}

#[test]
fn depth_selects_weights_on_the_hub() {
    let hub = hub();
    let cache = tempfile::tempdir().unwrap();
    let images = [file("examples/images/digit-3-a.png"), file("examples/images/digit-4-a.png")];
    let predict = |extra: &[(&str, &str)]| {
        let mut command = command(&["predict", "--depth", "18", "--format", "json", "--top-k", "3"]);
        command.args(&images).env("HF_ENDPOINT", hub.url()).env("HF_HUB_CACHE", cache.path());
        extra.iter().for_each(|(name, value)| {
            command.env(name, value);
        });
        run(&mut command, &[])
    };
    let first = predict(&[]);
    let rows: Value = serde_json::from_str(first.ok()).unwrap();
    assert_eq!(rows.as_array().unwrap().len(), 2);
    let prediction = &rows[0]["predictions"][2];
    assert!(prediction["synset"].as_str().unwrap().starts_with('n'), "{prediction}");
    assert!(prediction["label"].as_str().is_some_and(|label| !label.is_empty()), "{prediction}");

    let requests = hub.requests().len();
    assert_eq!(predict(&[]).ok(), first.stdout);
    assert_eq!(predict(&[("HF_HUB_OFFLINE", "1")]).ok(), first.stdout);
    assert_eq!(hub.requests().len(), requests, "cached files need no request");
}

#[test]
fn offline_errors_name_the_variable() {
    let cache = tempfile::tempdir().unwrap();
    let mut command = command(&["predict", "--depth", "18", "x.png"]);
    command.env("HF_HUB_CACHE", cache.path()).env("HF_HUB_OFFLINE", "1");
    run(&mut command, &[]).fails_with(&["timm/resnet18.tv_in1k", "HF_HUB_OFFLINE"]);
}

#[test]
fn corrupted_downloads_are_not_cached() {
    let hub = hub();
    let cache = tempfile::tempdir().unwrap();
    hub.fault(Fault::Wrong);
    let mut command = command(&["predict", "--depth", "18", "--quiet"]);
    command.arg(file("examples/images/digit-3-a.png"));
    command.env("HF_ENDPOINT", hub.url()).env("HF_HUB_CACHE", cache.path());
    run(&mut command, &[]).fails_with(&["timm/resnet18.tv_in1k"]);
    hub.heal();
    run(&mut command, &[]).ok();
}

#[test]
fn output_goes_to_a_file_that_is_not_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let (image, path) = (s(file("examples/images/digit-3-a.png")), s(dir.path().join("out.csv")));
    let args = ["--format", "csv", "--top-k", "1", "--output", &path, &image];
    assert_eq!(predict(&args).ok(), "");
    let written = fs::read_to_string(&path).unwrap();
    assert!(written.starts_with("image,rank,") && written.contains(",1,3,,3,0.9"), "{written}");
    predict(&args).fails_with(&["out.csv", "already exists"]);
    predict(&[&args[..], &["--force"]].concat()).ok();
    let failing = [&args[..], &["--force", "--weights", "nothing.pth"]].concat();
    resnet_cli(&[&["predict"], &failing[..]].concat()).fails_with(&["nothing.pth"]);
    assert_eq!(fs::read_to_string(&path).unwrap(), written);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file is left");
}

#[test]
fn scores_below_the_minimum_are_omitted() {
    let image = s(file("examples/images/digit-3-a.png"));
    let output = predict(&["--min-score", "0.5", &image]);
    assert_eq!(output.ok().lines().count(), 2, "{output:?}");
    let output = predict(&["--min-score", "x", &image]);
    assert_eq!(output.code, 2);
    assert!(output.stderr.contains("expected a number"), "{output:?}");
}

#[test]
fn verbosity_changes_messages_only() {
    let dir = tempfile::tempdir().unwrap();
    let image = s(file("examples/images/digit-3-a.png"));
    fs::copy(&image, dir.path().join("a.png")).unwrap();
    fs::write(dir.path().join("b.tiff"), "").unwrap();
    let folder = s(dir.path());
    let normal = predict(&[&folder]);
    assert!(normal.stderr.contains("warning: ") && normal.stderr.contains("1 .tiff"), "{normal:?}");
    let quiet = predict(&["--quiet", &folder]);
    assert_eq!((quiet.ok(), quiet.stderr.as_str()), (normal.ok(), ""));
    let verbose = predict(&["-v", "--device", "cpu", &folder]);
    assert_eq!(verbose.ok(), normal.ok());
    for part in ["device: cpu", "architecture: resnet20_cifar", "preprocessing: {"] {
        assert!(verbose.stderr.contains(part), "{part}: {verbose:?}");
    }
}

#[test]
fn lists_name_images() {
    let dir = tempfile::tempdir().unwrap();
    let list = dir.path().join("list.txt");
    let images = ["digit-3-a.png", "digit-4-*.png"].map(|name| s(file("examples/images").join(name)));
    fs::write(&list, images.join("\n")).unwrap();
    let output = predict(&["--format", "ndjson", &format!("@{}", s(&list))]);
    assert_eq!(output.ok().lines().count(), 3, "{output:?}");
}
