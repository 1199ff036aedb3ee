//! Checks the tables of `README.md`: their tests exist, and every supported format and dialect is listed.

use std::path::Path;

use crate::matrix::{COLUMNS, ROWS};

fn text(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// Returns everything in backticks that looks like a test name.
fn named(text: &str) -> Vec<&str> {
    let quoted = text.split('`').skip(1).step_by(2);
    quoted.filter(|t| t.contains("::") && !t.contains(' ')).collect()
}

#[test]
fn every_cell_names_its_test() {
    let readme = text("README.md");
    let mut rows = readme.lines().filter(|l| l.contains("::zip` |"));
    for row in ROWS {
        let cells: Vec<&str> = named(rows.next().unwrap_or_default());
        let expected: Vec<String> = COLUMNS.iter().map(|column| format!("{row}::{column}")).collect();
        assert_eq!(cells, expected);
    }
    assert_eq!(rows.next(), None);
}

#[test]
fn every_other_test_exists() {
    let readme = text("README.md");
    let in_matrix = |name: &str| {
        let name = name.strip_prefix("matrix::").unwrap_or(name);
        name.split_once("::").is_some_and(|(row, column)| ROWS.contains(&row) && COLUMNS.contains(&column))
    };
    let mut count = 0;
    for name in named(&readme).into_iter().filter(|n| !in_matrix(n)) {
        let (module, function) = name.rsplit_once("::").unwrap();
        let folder = if module.starts_with("identify") { "src" } else { "tests" };
        let source = text(&format!("{folder}/{}.rs", module.replace("::", "/")));
        assert!(source.contains(&format!("#[test]\nfn {function}()")), "there is no test {name}");
        count += 1;
    }
    assert!(count >= 10, "{count}");
}

/// Returns the string literals after each `mark` in `source`.
fn literals_after<'a>(source: &'a str, mark: &'a str) -> impl Iterator<Item = &'a str> {
    source.split(mark).skip(1).filter_map(|rest| rest.split('"').nth(1))
}

#[test]
fn every_container_and_dialect_is_in_the_table() {
    let readme = text("README.md");
    let (sources, tables) = (text("src/source.rs"), text("src/dialect/tables.rs"));
    let containers: Vec<&str> = literals_after(&sources, "            Format::").collect();
    assert_eq!(containers.len(), 9, "{containers:?}");
    let dialects: Vec<&str> = literals_after(&tables, "name: ").collect();
    assert!(dialects.len() > 15, "{dialects:?}");
    for name in containers.into_iter().filter(|c| *c != "numpy array") {
        assert!(readme.contains(&format!("| {name} |")) || name == "ONNX", "the container {name}");
    }
    for name in dialects {
        assert!(readme.lines().any(|l| l.starts_with(&format!("| {name}"))), "the dialect {name}");
    }
}
