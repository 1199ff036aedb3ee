//! The glossary: words and phrases that are not used here, with their replacements.

use super::{files, none};

/// Phrases and their replacements, in lower case. A phrase matches whole words; `*` at its end matches any ending.
const PHRASES: &[(&str, &str)] = &[
    ("told", "reported, specified"),
    ("tells", "reports, specifies"),
    ("tell apart", "distinguish"),
    ("so manieth", "n-th"),
    ("begins anew", "is initialized"),
    ("anew", "again"),
    ("odd one", "exception"),
    ("lies in", "is in"),
    ("lies behind", "is after"),
    ("lies under", "is in"),
    ("lies beside", "is next to"),
    ("lie behind", "are after"),
    ("behind the", "after the"),
    ("behind a", "after a"),
    ("beside", "next to, compared with"),
    ("whom", "name the classes"),
    ("thereof", "of it"),
    ("somebody", "name the caller"),
    ("nobody", "name the caller"),
    ("held out", "validation"),
    ("held_out", "val"),
    ("held-out", "validation"),
    ("rectifier*", "ReLU"),
    ("deviations", "std, differences"),
    ("insists", "requires"),
    ("insist", "require"),
    ("in words", "as text"),
    ("of its own", "own, separate"),
    ("of their own", "own, separate"),
    ("yardstick", "reference"),
    // British spelling; PyTorch, candle and std use American.
    ("normalis*", "normaliz…"),
    ("initialis*", "initializ…"),
    ("optimise*", "optimize…"),
    ("optimising", "optimizing"),
    ("optimisation*", "optimization"),
    ("quantis*", "quantiz…"),
    ("recognis*", "recogniz…"),
    ("synchronis*", "synchroniz…"),
    ("standardis*", "standardiz…"),
    ("serialis*", "serializ…"),
    ("parallelise*", "parallelize…"),
    ("organis*", "organiz…"),
    ("colour*", "color"),
    ("grey*", "gray"),
    ("behaviour*", "behavior"),
    ("centre*", "center"),
    ("neighbour*", "neighbor"),
    ("licence*", "license"),
];

/// Openings that name no noun: a doc comment starts with a noun phrase or a third-person verb.
const OPENINGS: &[&str] = &["What", "How", "Whether", "Which", "Who", "Whose", "Where"];

/// Returns `true` if `line` (lower case) contains `phrase` as whole words.
fn contains(line: &str, phrase: &str) -> bool {
    let (phrase, open) = phrase.strip_suffix('*').map_or((phrase, false), |p| (p, true));
    let is_word = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric());
    line.match_indices(phrase).any(|(at, _)| {
        let (before, after) = (&line[..at], &line[at + phrase.len()..]);
        !is_word(before.chars().next_back()) && (open || !is_word(after.chars().next()))
    })
}

fn checked() -> Vec<(String, String)> {
    let mut all = files("crates", "rs");
    all.extend(files("crates", "md"));
    all.extend(files("tests", "rs"));
    all.extend(files("examples", "rs"));
    all.extend(files("docs", "md"));
    all.retain(|(name, _)| name != "tests/tidy/language.rs");
    for name in ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "Makefile"] {
        all.push((name.into(), std::fs::read_to_string(super::root().join(name)).unwrap()));
    }
    all
}

#[test]
fn the_glossary_is_followed() {
    let mut offenders = vec![];
    for (name, text) in checked() {
        for (number, line) in text.lines().enumerate() {
            // Names of stored data stay as they are: aliases of old checkpoints, files of golden images.
            if line.contains("alias")
                || line.contains("\"held_out\"")
                || line.contains("\"grey")
                || line.contains("grey-")
                || line.contains("-grey")
            {
                continue;
            }
            let lower = line.to_lowercase();
            for (phrase, replacement) in PHRASES {
                if contains(&lower, phrase) {
                    offenders.push(format!("{name}:{}: `{phrase}`; use: {replacement}", number + 1));
                }
            }
        }
    }
    none("words outside the glossary", offenders);
}

#[test]
fn doc_comments_start_with_a_noun_or_a_verb() {
    let mut offenders = vec![];
    for (name, text) in files("crates", "rs") {
        let mut in_doc = false;
        for (number, line) in text.lines().enumerate() {
            let line = line.trim_start();
            let doc = line.strip_prefix("///").or_else(|| line.strip_prefix("//!"));
            let first = doc.and_then(|doc| doc.split_whitespace().next());
            if !in_doc && first.is_some_and(|word| OPENINGS.contains(&word)) {
                offenders.push(format!("{name}:{}: {line}", number + 1));
            }
            in_doc = doc.is_some();
        }
    }
    none("doc comments that open with a question word", offenders);
}

#[test]
fn phrases_match_whole_words() {
    assert!(contains("as told by", "told"));
    assert!(!contains("a stoldier", "told"));
    assert!(contains("normalised", "normalis*"));
    assert!(!contains("abnormalised", "normalis*"));
    assert!(contains("(held_out)", "held_out"));
}
