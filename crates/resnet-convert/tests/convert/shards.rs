//! Checkpoints in several files.

use std::path::Path;

use resnet_convert::{ConvertOptions, Format, source};
use resnet_model::arch::Block;

use super::{File, file};
use crate::build::network::{self, Named, small, tensors};

/// An index of these (tensor, file) pairs.
fn index(pairs: &[(&str, &str)]) -> String {
    let pairs: Vec<_> = pairs.iter().map(|(t, f)| format!(r#""{t}": "{f}""#)).collect();
    format!(r#"{{"metadata": {{"total_size": 1}}, "weight_map": {{{}}}}}"#, pairs.join(", "))
}

const NAMES: [&str; 2] = ["m-1-of-2", "m-2-of-2"];

/// Files of these tensors, each written by `save`, and their index.
pub(crate) fn write(parts: &[&[Named]; 2], save: impl Fn(&[Named]) -> Vec<u8>) -> File {
    let pairs: Vec<_> = (parts.iter().zip(NAMES))
        .flat_map(|(part, file)| part.iter().map(move |t| (t.name.as_str(), file)))
        .collect();
    let at = file("model.index.json", index(&pairs).as_bytes());
    for (part, name) in parts.iter().zip(NAMES) {
        std::fs::write(at.dir().join(name), save(part)).unwrap();
    }
    at
}

/// A network in two files and its index.
fn sharded(save: impl Fn(&[Named]) -> Vec<u8>) -> (File, Vec<Named>) {
    let all = tensors(&small(Block::Basic, 3));
    let (first, second) = all.split_at(20);
    (write(&[first, second], save), all)
}

#[test]
fn shards_of_both_kinds_are_read_as_one() {
    let forms = [
        (Format::Safetensors, sharded(network::safetensors)),
        (Format::TorchZip, sharded(|t| network::zip(t, &[]))),
    ];
    for (container, (at, all)) in forms {
        let (checkpoint, report) = resnet_convert::open(&at.path, &ConvertOptions::default()).unwrap();
        assert_eq!(report.container, container);
        assert!(report.notes.contains(&"read from 2 shards".to_owned()), "{:?}", report.notes);
        assert_eq!(checkpoint.tensors().len(), all.len());
        for t in &all {
            assert_eq!(checkpoint.tensor(&t.name).unwrap().read().unwrap(), t.bytes, "{}", t.name);
        }
    }
}

fn failure(at: &Path) -> String {
    source::read(at).unwrap_err().to_string()
}

#[test]
fn f13_an_index_names_only_files_in_its_folder() {
    let (at, _) = sharded(network::safetensors);
    let outside = file("x.safetensors", &std::fs::read(at.dir().join(NAMES[0])).unwrap());
    let absolute = outside.path.display().to_string();
    let parent = format!("../{}/x.safetensors", outside.dir().file_name().unwrap().to_str().unwrap());
    for name in [&absolute, &parent, "", ".", "..", "C:x", r"a\\b", "a/b", r"x\u0000", &"n".repeat(300)] {
        std::fs::write(&at.path, index(&[("w", name)])).unwrap();
        let error = failure(&at.path);
        assert!(
            error.contains("is not a plain file name") && error.contains("[shard-path]"),
            "{name}: {error}"
        );
    }
    std::fs::write(&at.path, index(&[("w", "gone")])).unwrap();
    assert!(failure(&at.path).contains("`gone`: No such file"));
    std::fs::create_dir(at.dir().join("folder")).unwrap();
    std::fs::write(&at.path, index(&[("w", "folder")])).unwrap();
    assert!(failure(&at.path).contains("is a directory, not a file"));
}

#[cfg(unix)]
#[test]
fn f13_links_stay_in_the_folder_or_in_the_cache() {
    use std::os::unix::fs::symlink;
    let (at, all) = sharded(network::safetensors);
    // Layout of the Hugging Face cache: a snapshot of links into `blobs`.
    let (blobs, snapshot) = (at.dir().join("blobs"), at.dir().join("snapshots/main"));
    std::fs::create_dir(&blobs).unwrap();
    std::fs::create_dir_all(&snapshot).unwrap();
    for (blob, name) in [("0", "model.index.json"), ("1", NAMES[0]), ("2", NAMES[1])] {
        std::fs::rename(at.dir().join(name), blobs.join(blob)).unwrap();
        symlink(format!("../../blobs/{blob}"), snapshot.join(name)).unwrap();
    }
    let path = snapshot.join("model.index.json");
    assert_eq!(source::read(&path).unwrap().tensors.len(), all.len());
    std::fs::rename(blobs.join("2"), at.dir().join("2")).unwrap();
    std::fs::remove_file(snapshot.join(NAMES[1])).unwrap();
    symlink("../../2", snapshot.join(NAMES[1])).unwrap();
    let error = failure(&path);
    assert!(error.contains("links outside the folder [shard-path]"), "{error}");
}

#[test]
fn an_index_and_its_shards_must_agree() {
    let (at, all) = sharded(network::safetensors);
    let good = std::fs::read_to_string(&at.path).unwrap();
    let first = format!(r#""{}": "{}""#, all[0].name, NAMES[0]);
    let check = |text: String, expected: &str| {
        std::fs::write(&at.path, text).unwrap();
        let error = failure(&at.path);
        assert!(error.contains(expected), "{error}");
    };
    assert!(good.contains(&first));
    let name = &all[0].name;
    check(
        good.replace(&first, &format!(r#"{first}, "x": "{}""#, NAMES[1])),
        "tensor `x` is not in `m-2-of-2`",
    );
    check(
        good.replace(&format!("{first}, "), ""),
        &format!("unexpected tensor `{name}`: not in the index, or in two"),
    );
    check(good.replace(&first, &format!("{first}, {first}")), "is in the index twice [duplicate-name]");
    let moved = format!(r#""{}": "{}""#, all[0].name, NAMES[1]);
    check(good.replace(&first, &moved), "the index has it in `m-2-of-2` [shard]");
    check(r#"{"weight_map": {}}"#.into(), "the index has no tensors [no-tensors]");
    check(r#"{"weight_map": {"a": 1}}"#.into(), "not an index of shards");
    check(r#"{"weight_map": []}"#.into(), "an object from tensor name to file name");
    check(r#"{"config": 1}"#.into(), "JSON without `weight_map`, not an index of shards [format]");
    check(format!(r#"{{"weight_map": {}"#, "[".repeat(100_000)), "not an index of shards");
    // A shard must not be an index, and all shards must have one format.
    check(index(&[("w", "model.index.json")]), "an index of shards must be opened by its path");
    std::fs::write(at.dir().join(NAMES[1]), network::zip(&all[20..], &[])).unwrap();
    check(good, "expected safetensors [shard]");
}
