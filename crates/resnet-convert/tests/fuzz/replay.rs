//! Replays the corpora and findings of `fuzz/`.

use std::path::{Path, PathBuf};

use super::{TARGETS, run};

fn files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return vec![] };
    let mut files: Vec<PathBuf> = entries.map(|e| e.unwrap().path()).collect();
    files.sort();
    files
}

#[test]
fn corpora_and_findings_of_every_target() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz");
    for (name, _) in TARGETS {
        let corpus = files(&root.join("corpus").join(name));
        assert!(!corpus.is_empty(), "no corpus of {name}");
        for file in corpus.iter().chain(&files(&root.join("regressions").join(name))) {
            // Printed if the test fails.
            println!("{}", file.display());
            run(name, &std::fs::read(file).unwrap());
        }
    }
}
