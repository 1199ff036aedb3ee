//! The invariants of `crates/README.md` that can be checked automatically.

mod language;

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Returns the names and contents of all files under `folder` with this extension.
fn files(folder: &str, extension: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == extension) {
                let name = path.strip_prefix(root()).unwrap().display().to_string().replace('\\', "/");
                found.push((name, fs::read_to_string(&path).unwrap()));
            }
        }
    }
    assert!(!found.is_empty(), "nothing under {folder}");
    found
}

/// Returns the source files of the crates without their tests.
fn sources() -> Vec<(String, String)> {
    let mut sources = files("crates", "rs");
    sources.retain(|(name, _)| {
        name.contains("/src/") && !name.ends_with("tests.rs") && !name.contains("/tests/")
    });
    sources
}

/// Returns the part of a file before its inline tests.
fn without_tests(text: &str) -> &str {
    text.split("#[cfg(test)]").next().unwrap_or_default()
}

#[track_caller]
fn none(what: &str, offenders: Vec<String>) {
    assert!(offenders.is_empty(), "{what}:\n  {}", offenders.join("\n  "));
}

#[test]
fn files_stay_readable() {
    let long = |(name, text): (String, String)| {
        let lines = text.lines().count();
        (lines > 500).then(|| format!("{name}: {lines} lines"))
    };
    let offenders = files("crates", "rs").into_iter().chain(files("tests", "rs")).filter_map(long);
    none("files of more than 500 lines", offenders.collect());
}

/// Crates and those of ours that each may depend on: the arrows of the design. Siblings do not know each other.
const ARROWS: &[(&str, &[&str])] = &[
    ("resnet-kernels", &[]),
    ("resnet-image", &[]),
    ("resnet-hub", &[]),
    ("resnet-model", &["resnet-kernels", "resnet-image"]),
    ("resnet-onnx", &["resnet-model", "resnet-image"]),
    ("resnet-convert", &["resnet-onnx", "resnet-model", "resnet-image"]),
    ("resnet-weights", &["resnet-convert", "resnet-hub", "resnet-model", "resnet-image"]),
    ("resnet-train", &["resnet-model", "resnet-image"]),
    ("resnet-serve", &["resnet-model", "resnet-image"]),
];

/// External crates that only some crates may depend on.
const CONFINED: &[(&str, &[&str])] = &[
    ("candle", &["resnet-model", "resnet-train", "resnet-serve", "resnet-cli"]),
    ("anyhow", &["resnet-cli", "resnet-convert"]),
    ("clap", &["resnet-cli", "resnet-convert"]),
    ("indicatif", &["resnet-cli", "resnet-convert"]),
];

/// Returns the names in the `[dependencies]` table of a crate's manifest.
fn dependencies(name: &str) -> Vec<String> {
    let text = fs::read_to_string(root().join("crates").join(name).join("Cargo.toml")).unwrap();
    let table = text.split("\n[dependencies]\n").nth(1).unwrap_or_default();
    let table = table.split("\n[").next().unwrap_or_default();
    let lines = table.lines().filter(|line| !line.starts_with('#') && line.contains('='));
    lines.map(|line| line.split(['.', ' ', '=']).next().unwrap_or_default().to_owned()).collect()
}

#[test]
fn dependencies_only_point_down() {
    let mut offenders = Vec::new();
    for entry in fs::read_dir(root().join("crates")).unwrap() {
        let entry = entry.unwrap();
        if !entry.path().is_dir() {
            continue;
        }
        let name = entry.file_name().into_string().unwrap();
        let allowed = ARROWS.iter().find(|(krate, _)| *krate == name).map(|(_, allowed)| *allowed);
        let is_top = matches!(name.as_str(), "resnet-cli" | "resnet-python");
        assert!(allowed.is_some() || is_top, "{name} is not in the table of arrows");
        let found = dependencies(&name);
        assert!(!found.is_empty(), "{name} has no dependencies");
        for dependency in found {
            let is_ours = dependency.starts_with("resnet-");
            if is_ours && !is_top && !allowed.unwrap_or_default().contains(&dependency.as_str()) {
                offenders.push(format!("{name} depends on {dependency}"));
            }
            for (confined, users) in CONFINED {
                if dependency.starts_with(confined) && !users.contains(&name.as_str()) {
                    offenders.push(format!("{name} depends on {dependency}"));
                }
            }
        }
    }
    none("dependencies that point up or aside", offenders);
}

#[test]
fn crates_include_only_their_own_files() {
    let mut offenders = Vec::new();
    for (name, text) in sources() {
        let krate = name.split('/').take(2).collect::<Vec<_>>().join("/");
        for part in text.split("include_").skip(1) {
            let Some(path) =
                part.split('"').nth(1).filter(|_| part.starts_with("str!(") || part.starts_with("bytes!("))
            else {
                continue;
            };
            let mut folders: Vec<&str> = name.split('/').collect();
            folders.pop();
            for component in path.split('/') {
                if component == ".." {
                    folders.pop();
                } else {
                    folders.push(component);
                }
            }
            if !folders.join("/").starts_with(&format!("{krate}/")) {
                offenders.push(format!("{name}: {path}"));
            }
        }
    }
    none("files from outside the crate, which a published package lacks", offenders);
}

#[test]
fn tensor_names_come_from_the_graph() {
    // Tensor names may be spelled in the families and in the dialects of foreign files.
    let allowed = ["families/", "resnet-convert/src/dialect", "resnet-convert/src/identify"];
    let spelled = |text: &str| {
        let code = without_tests(text).lines().filter(|l| !l.trim_start().starts_with("//"));
        code.filter(|l| l.contains("conv1.weight") || l.contains("layer1.0") || l.contains(".downsample.0"))
            .count()
    };
    let mut offenders = sources();
    offenders.retain(|(name, text)| !allowed.iter().any(|a| name.contains(a)) && spelled(text) > 0);
    none("files that spell tensor names", offenders.into_iter().map(|(name, _)| name).collect());
}

#[test]
fn unsafe_code_is_confined() {
    let allowed = ["crates/resnet-kernels/src/simd/", "crates/resnet-kernels/src/threads"];
    let mut offenders = Vec::new();
    for (name, text) in sources() {
        let blocks = text
            .lines()
            .filter(|l| l.contains("unsafe {") || l.contains("unsafe fn") || l.contains("unsafe impl"));
        if blocks.count() > 0 && !allowed.iter().any(|a| name.starts_with(a)) {
            offenders.push(name);
        }
    }
    none("files with unsafe code outside the allowed folders", offenders);
}

#[test]
fn the_imagenet_mean_appears_once() {
    let mut homes = sources();
    homes.retain(|(_, text)| text.contains("0.485"));
    let homes: Vec<String> = homes.into_iter().map(|(name, _)| name).collect();
    assert_eq!(homes, ["crates/resnet-image/src/preprocess.rs"]);
}

#[test]
fn libraries_do_not_print_or_read_the_environment() {
    let words = [
        "std::env::var",
        "env::args",
        "process::exit",
        "println!",
        "eprintln!",
        "include_str!(\"../../../weights",
    ];
    let mut offenders = Vec::new();
    for (name, text) in sources() {
        let binary = name.contains("/main.rs") || name.starts_with("crates/resnet-cli/");
        let code =
            without_tests(&text).lines().filter(|l| !l.trim_start().starts_with("//")).collect::<String>();
        if !binary {
            offenders.extend(words.iter().filter(|w| code.contains(**w)).map(|w| format!("{name}: {w}")));
        }
    }
    none("libraries that print, exit or read the environment", offenders);
}

#[test]
fn no_placeholders_are_left() {
    let words = [
        concat!("to", "do!("),
        concat!("unimplemen", "ted!("),
        concat!("#[ig", "nore"),
        concat!("FIX", "ME"),
    ];
    let mut offenders = Vec::new();
    for (name, text) in
        files("crates", "rs").into_iter().chain(files("tests", "rs")).chain(files("examples", "rs"))
    {
        offenders.extend(words.iter().filter(|w| text.contains(**w)).map(|w| format!("{name}: {w}")));
    }
    none("placeholders", offenders);
}

#[test]
fn the_top_level_has_no_unknown_files() {
    let known = [
        "Cargo.toml",
        "Cargo.lock",
        "README.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "SECURITY.md",
        "rust-toolchain.toml",
        "deny.toml",
        "Makefile",
        "LICENSE-MIT",
        "LICENSE-APACHE",
        "crates",
        "weights",
        "examples",
        "fuzz",
        "tests",
        "docs",
        "target",
    ];
    let entries = fs::read_dir(root()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    none(
        "unknown top-level entries",
        entries.filter(|e| !e.starts_with('.') && !known.contains(&e.as_str())).collect(),
    );
}
