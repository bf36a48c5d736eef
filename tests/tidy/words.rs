//! Retired words: terms that the project replaced do not return to code or documents.

use crate::tree::Tree;
use crate::{assert_clean, assert_finds};

/// One line for each word, with its replacement.
const RETIRED: &str = include_str!("retired_words.txt");
/// Where retired words stay: records of the past.
const EXEMPT: [&str; 2] = ["CHANGELOG.md", "bench/results/"];

#[test]
fn retired_words_stay_retired() {
    assert_clean(retired_words, "Use the replacement, or take the word off tests/tidy/retired_words.txt.");
    // Split, so that this file holds none.
    assert_finds(
        retired_words,
        &[
            ("docs/bad.md", concat!("One par", "cel.")),
            ("src/bad.rs", concat!("struct Send", "Par", "cels;")),
            ("src/b/bad.rs", concat!("fn take_par", "cel() {}")),
            ("src/c/bad.rs", concat!("const PAR", "CEL_LEN: u8 = 1;")),
            ("src/good.rs", concat!("fn par", "celled() {} // par cel")),
            ("src/good.toml", concat!("par", "cel = 1")),
            ("CHANGELOG.md", concat!("Par", "cel becomes packet.")),
            ("bench/results/2026.md", concat!("par", "cels")),
        ],
    );
}

#[test]
fn each_retired_word_has_a_replacement() {
    let retired: Vec<_> = retired().collect();
    assert!(!retired.is_empty());
    assert!(retired.iter().all(|(word, term)| !word.is_empty() && !term.is_empty()), "{retired:?}");
    assert!(retired.is_sorted(), "{retired:?}");
}

fn retired_words(tree: &Tree) -> Vec<String> {
    let retired: Vec<_> = retired().collect();
    let mut problems = Vec::new();
    for file in tree.with("rs").chain(tree.with("md")) {
        if EXEMPT.iter().any(|path| file.path.starts_with(path)) {
            continue;
        }
        for (line, text) in file.text.lines().enumerate() {
            for word in words(text) {
                if let Some((_, term)) = retired.iter().find(|(retired, _)| is_form(&word, retired)) {
                    problems.push(format!("{}: {word} is now {term}", file.at(line)));
                }
            }
        }
    }
    problems
}

fn retired() -> impl Iterator<Item = (&'static str, &'static str)> {
    let lines = RETIRED.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    lines.map(|line| {
        let (word, term) = line.split_once(": ").unwrap_or((line, ""));
        (word.trim(), term.trim())
    })
}

/// Whether `word` is `retired` or its plural.
fn is_form(word: &str, retired: &str) -> bool {
    word.strip_prefix(retired).is_some_and(|rest| rest.is_empty() || rest == "s")
}

/// The words of a line in lower case. Identifiers are split at underscores and at changes of case.
fn words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut after_lower = false;
    for character in text.chars() {
        let ends = !character.is_alphabetic() || (after_lower && character.is_uppercase());
        if ends && !word.is_empty() {
            words.push(std::mem::take(&mut word));
        }
        if character.is_alphabetic() {
            word.extend(character.to_lowercase());
        }
        after_lower = character.is_lowercase();
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

#[test]
fn identifiers_are_split_into_words() {
    assert_eq!(words("a SendQueue, READ_MAX: `x_1y`"), ["a", "send", "queue", "read", "max", "x", "y"]);
}
