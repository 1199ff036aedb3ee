//! The invariants of `crates/README.md` that a machine can check.

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// All files under `folder` with this extension, with their text.
fn files(folder: &str, extension: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == extension) {
                let name = path.strip_prefix(root()).unwrap().display().to_string();
                found.push((name, fs::read_to_string(&path).unwrap()));
            }
        }
    }
    assert!(!found.is_empty(), "nothing under {folder}");
    found
}

/// Source files of the crates, tests inside the crates left out.
fn sources() -> Vec<(String, String)> {
    let mut sources = files("crates", "rs");
    sources.retain(|(name, _)| {
        name.contains("/src/") && !name.ends_with("tests.rs") && !name.contains("/tests/")
    });
    sources
}

/// The part of a file above its inline tests.
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

#[test]
fn arrows_only_go_down() {
    let forbidden = [
        (
            "crates/resnet-kernels/Cargo.toml",
            vec!["candle", "resnet-model", "resnet-convert", "resnet-cli", "rayon"],
        ),
        ("crates/resnet-image/Cargo.toml", vec!["candle", "resnet-", "rayon", "anyhow"]),
        (
            "crates/resnet-model/Cargo.toml",
            vec!["resnet-convert", "resnet-cli", "clap", "anyhow", "indicatif"],
        ),
        ("crates/resnet-convert/Cargo.toml", vec!["resnet-cli", "resnet-kernels"]),
    ];
    let mut offenders = Vec::new();
    for (manifest, names) in forbidden {
        let text = fs::read_to_string(root().join(manifest)).unwrap();
        for line in text.lines().filter(|line| line.contains("workspace") || line.contains("version")) {
            offenders
                .extend(names.iter().filter(|n| line.starts_with(**n)).map(|n| format!("{manifest}: {n}")));
        }
    }
    none("dependencies that point up", offenders);
}

#[test]
fn tensor_names_come_from_the_graph() {
    // Who may spell names: the families, the zoo's foreign dialects, and files that show examples of them.
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
fn unsafe_code_is_where_it_is_argued() {
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
    none("files with unsafe code outside of its places", offenders);
}

#[test]
fn the_mean_of_imagenet_has_one_home() {
    let mut homes = sources();
    homes.retain(|(_, text)| text.contains("0.485"));
    let homes: Vec<String> = homes.into_iter().map(|(name, _)| name).collect();
    assert_eq!(homes, ["crates/resnet-image/src/preprocess.rs"]);
}

#[test]
fn libraries_know_no_environment_and_no_terminal() {
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
    none("libraries that reach outside", offenders);
}

#[test]
fn nothing_is_left_open() {
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
    none("open ends", offenders);
}

#[test]
fn the_top_level_is_what_the_map_says() {
    let known = [
        "Cargo.toml",
        "Cargo.lock",
        "README.md",
        "CHANGELOG.md",
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
