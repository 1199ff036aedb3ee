//! The binary: output, exit codes, files.

use std::process::{Command, Output};

use resnet_model::arch::Block;
use serde_json::Value;

use super::{File, file};
use crate::build::network::{safetensors, small, tensors, zip};

fn run(args: &[&str], at: &File) -> Output {
    Command::new(env!("CARGO_BIN_EXE_resnet-convert")).args(args).current_dir(at.dir()).output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

fn network() -> Vec<u8> {
    zip(&tensors(&small(Block::Basic, 3)), &["state_dict"])
}

#[test]
fn a_checkpoint_is_converted_in_its_folder_and_reported() {
    let at = file("net.pth", &network());
    let out = run(&["net.pth"], &at);
    assert_eq!((out.status.code(), text(&out.stderr)), (Some(0), ""));
    let report = text(&out.stdout);
    for expected in [
        "net.pth → net.safetensors\n",
        "architecture an 8-layer ResNet (2×basic 8, 1×basic 16), 7,291 parameters, 3\n               classes\n",
        "format       PyTorch zip\n",
        "names        torchvision, under `state_dict.`\n",
        "renamed      50 (state_dict.conv1.weight → conv1.weight, …)",
    ] {
        assert!(report.contains(expected), "no {expected:?} in\n{report}");
    }
    assert_eq!(at.folder(), ["net.pth", "net.safetensors"]);

    let again = run(&["net.pth"], &at);
    assert_eq!((again.status.code(), text(&again.stdout)), (Some(1), ""));
    assert_eq!(text(&again.stderr), "error: `net.safetensors` already exists\nhint: --force overwrites it\n");
    assert_eq!(run(&["--force", "net.pth"], &at).status.code(), Some(0));
}

#[test]
fn json_lists_reports_and_errors() {
    let at = file("net.pth", &network());
    let out = run(&["--json", "--dtype", "f16", "-o", "x.safetensors", "net.pth"], &at);
    let report = &serde_json::from_slice::<Value>(&out.stdout).unwrap()[0];
    assert_eq!(report["output"], "x.safetensors");
    assert_eq!(report["container"], "torch-zip");
    assert_eq!(report["cast"]["to"], "f16");
    assert_eq!(report["dtypes"]["I64"], 8);
    assert_eq!(report["renamed"][0]["to"], "conv1.weight");
}

#[test]
fn a_failed_input_does_not_stop_the_others() {
    let at = file("a.pth", &network());
    std::fs::write(at.dir().join("b.pth"), safetensors(&tensors(&small(Block::Bottleneck, 2)))).unwrap();
    std::fs::write(at.dir().join("c.pth"), "no checkpoint at all, just text").unwrap();
    let out = run(&["a.pth", "c.pth", "b.pth", "--output-dir", "out", "--json"], &at);
    assert_eq!(out.status.code(), Some(1));
    assert_eq!(text(&out.stderr), "error: `c.pth`: text file, not a checkpoint [format]\n");
    let reports: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(reports.as_array().unwrap().len(), 3);
    assert_eq!((&reports[1]["file"], &reports[1]["code"]), (&"c.pth".into(), &"format".into()));
    let mut written: Vec<_> =
        std::fs::read_dir(at.dir().join("out")).unwrap().map(|e| e.unwrap().file_name()).collect();
    written.sort();
    assert_eq!(written, ["a.safetensors", "b.safetensors"]);
}

#[test]
fn unsafe_globals_are_named_in_the_error() {
    for evil in [
        &b"cposix\nsystem\n(Vtouch CANARY\ntR."[..],
        b"\x80\x04\x95\x1b\0\0\0\0\0\0\0\x8c\x05posix\x8c\x06system\x93\x8c\x06CANARY\x85R.",
    ] {
        let at = file("evil.pkl", evil);
        let out = run(&["evil.pkl"], &at);
        assert_eq!((out.status.code(), text(&out.stdout)), (Some(1), ""));
        let error = text(&out.stderr);
        assert!(error.starts_with("error: `evil.pkl`: byte ") && error.contains("`posix.system`"), "{error}");
        assert_eq!(at.folder(), ["evil.pkl"]);
    }
}

#[test]
fn labels_preprocessing_and_invalid_usage() {
    let at = file("net.pth", &network());
    let put = |name: &str, text: &str| std::fs::write(at.dir().join(name), text).unwrap();
    for (name, labels) in [
        ("l.txt", "cat\ndog\nnewt\n"),
        ("l.json", r#"["cat","dog","newt"]"#),
        ("m.json", r#"{"0":"cat","1":"dog","2":"newt"}"#),
    ] {
        put(name, labels);
        let out = run(&["net.pth", "--force", "--labels", name], &at);
        assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
        let made = resnet_model::Checkpoint::open(&at.dir().join("net.safetensors")).unwrap();
        assert_eq!(made.meta().labels.get(2).unwrap().name, "newt");
    }
    put("bad.json", r#"{"0":"cat","2":"dog"}"#);
    put("few.txt", "cat\n");
    put("p.json", "{}");
    for (args, code, expected) in [
        (&["net.pth", "--force", "--labels", "bad.json"][..], 1, "expected class index 1, found 2"),
        (&["net.pth", "--force", "--labels", "few.txt"], 1, "labels: 1 label for a network with 3 classes"),
        (&["net.pth", "--force", "--labels", "none"], 1, "--labels: `none`: No such file"),
        (&["net.pth", "--force", "--preprocess", "p.json"], 1, "--preprocess: `p.json`: missing field"),
        (&["net.pth", "--arch", "resnet19"], 1, "unknown model `resnet19`; did you mean resnet18"),
        (&["gone.pth"], 1, "`gone.pth`: No such file"),
        (&["."], 1, "is a directory, not a file"),
        (&[], 2, "required"),
        (&["--dtype", "f8", "net.pth"], 2, "invalid value 'f8'"),
        (&["net.pth", "net.pth", "-o", "x"], 2, "use --output-dir for several"),
    ] {
        let out = run(args, &at);
        assert_eq!(out.status.code(), Some(code), "{args:?}: {}", text(&out.stderr));
        assert!(text(&out.stderr).contains(expected), "{args:?}: {}", text(&out.stderr));
    }
    let help = run(&["--help"], &at);
    assert_eq!(help.status.code(), Some(0));
    assert!(text(&help.stdout).lines().all(|l| l.chars().count() <= 80), "{}", text(&help.stdout));
}

/// Invalid usage is reported before anything is written.
#[test]
fn conflicting_flags_are_errors() {
    let at = file("net.pth", &network());
    std::fs::create_dir(at.dir().join("other")).unwrap();
    std::fs::copy(&at.path, at.dir().join("other/net.bin")).unwrap();
    std::fs::write(at.dir().join("labels.txt"), "a\nb\n").unwrap();
    for (args, code, expected) in [
        (
            &["net.pth", "other/net.bin", "--output-dir", "out", "--force"][..],
            2,
            "error: `net.pth` and `other/net.bin` have the same output file; convert them to different folders\n",
        ),
        (
            &["net.pth", "-o", "x.h5"],
            1,
            "error: `x.h5`: unsupported output extension, expected .safetensors, .onnx, .pth, .pt or .bin\n",
        ),
        (
            &["net.pth", "--batch", "2"],
            1,
            "error: `net.safetensors`: --keep-norms and --batch require an .onnx output\n",
        ),
        (
            &["net.pth", "--labels", "labels.txt"],
            1,
            "error: --labels: 2 labels for a network with 3 classes\n",
        ),
        (&["net.pth", "-o", "no/x.onnx"], 1, "error: `no/x.onnx`: no such directory: `no`\n"),
    ] {
        let out = run(args, &at);
        assert_eq!((out.status.code(), text(&out.stderr)), (Some(code), expected));
        assert_eq!(at.folder(), ["labels.txt", "net.pth", "other"]);
    }
}

#[test]
fn reports_fit_a_terminal() {
    let at = file("net.pth", &zip(&tensors(&small(Block::Bottleneck, 1000)), &[&"wrapped".repeat(30)]));
    let out = run(&["net.pth"], &at);
    let report = text(&out.stdout);
    assert!(report.lines().all(|line| line.chars().count() <= 80), "{report}");
}

/// `resnet-convert *.pth | head -1`: a closed pipe does not stop the conversions.
#[cfg(unix)]
#[test]
fn a_closed_pipe_is_not_an_error() {
    let at = file("a.pth", &network());
    std::fs::copy(&at.path, at.dir().join("b.pth")).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_resnet-convert"))
        .args(["a.pth", "b.pth"])
        .current_dir(at.dir())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let out = child.wait_with_output().unwrap();
    assert_eq!((out.status.code(), text(&out.stderr)), (Some(0), ""));
    assert_eq!(at.folder(), ["a.pth", "a.safetensors", "b.pth", "b.safetensors"]);
}
