//! Help, exit statuses, completions, manual pages and `doctor`.

use std::process::Stdio;

use serde_json::Value;

use crate::cli::{command, digits, file, resnet_cli};

const COMMANDS: [&str; 15] = [
    "cache",
    "convert",
    "download",
    "predict",
    "list",
    "info",
    "summary",
    "inspect",
    "diff",
    "train",
    "eval",
    "verify",
    "bench",
    "doctor",
    "completions",
];

#[test]
fn help_documents_commands_and_exit_statuses() {
    let help = resnet_cli(&["--help"]);
    for part in
        COMMANDS.iter().copied().chain(["Exit status:", "3  some images could not be read", "--quiet"])
    {
        assert!(help.ok().contains(part), "{part}: {}", help.stdout);
    }
    assert!(help.stdout.lines().all(|line| line.chars().count() <= 100), "{}", help.stdout);
}

#[test]
fn long_help_of_commands_is_shown() {
    for (name, part) in [
        ("predict", "Folders are searched recursively"),
        ("list", "Pareto front"),
        ("summary", "--depth 1 shows one line per stage"),
        ("inspect", "how it was identified"),
        ("diff", "exit status is 0 if the files are the same"),
        ("train", "one subfolder of images per class"),
        ("eval", "an ensemble"),
        ("verify", "`logits` [N, K]"),
        ("bench", "FMA throughput"),
    ] {
        let help = resnet_cli(&[name, "--help"]).ok().split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(help.contains(part), "{name}: {help}");
        // The first line is the entry in the list of commands.
        assert!(
            resnet_cli(&["--help"]).ok().contains(help.split(" Usage: ").next().unwrap().get(..16).unwrap())
        );
    }
}

#[test]
fn a_closed_pipe_is_not_an_error() {
    for args in
        [&["list"][..], &["list", "--json"], &["info", "resnet50", "--json"], &["completions", "bash"]]
    {
        let mut child = command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]), "{args:?}");
    }
    for format in ["csv", "json"] {
        let mut predict = command(&["predict", "--format", format, "--weights"]);
        predict.arg(digits()).arg(file("examples/images"));
        let mut child = predict.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]), "{format}");
    }
}

#[test]
fn completions_and_manual_pages_cover_every_command() {
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = resnet_cli(&["completions", shell]);
        assert!(COMMANDS.iter().all(|name| script.ok().contains(name)), "{shell}");
    }
    assert_eq!(resnet_cli(&["completions", "nosuch"]).code, 2);
    let dir = tempfile::tempdir().unwrap();
    resnet_cli(&["man", dir.path().to_str().unwrap()]).ok();
    for name in COMMANDS {
        let page = std::fs::read_to_string(dir.path().join(format!("resnet-cli-{name}.1"))).unwrap();
        assert!(page.contains(".SH OPTIONS") || page.contains("OPTIONS"), "{name}");
    }
}

#[test]
fn doctor_describes_the_environment_without_secrets() {
    let run = |args: &[&str]| {
        let mut command = command(args);
        command.env("HF_TOKEN", "hf_secret").env("HF_HUB_CACHE", "/cache/of/the/hub");
        crate::cli::run(&mut command, &[])
    };
    let json = run(&["doctor", "--json"]);
    let found: Value = serde_json::from_str(json.ok()).unwrap();
    assert_eq!(found["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(found["hub"]["cache"], "/cache/of/the/hub");
    assert_eq!(found["hub"]["token"], true);
    assert!(found["isa"].as_array().unwrap().contains(&"portable".into()), "{found}");
    let text = run(&["doctor"]);
    assert!(text.ok().contains("/cache/of/the/hub") && text.stdout.contains("portable"), "{text:?}");
    assert!(!json.stdout.contains("secret") && !text.stdout.contains("secret"));
}
