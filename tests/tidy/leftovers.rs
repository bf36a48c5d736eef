//! The repository contains no unfinished work, and no path of one person's machine.

use crate::code::{code, is_word, words};
use crate::tree::{File, Tree};
use crate::{assert_clean, assert_finds};

/// Marks of unfinished work, in any text. They are split, so that this file contains none.
const MARKS: [&str; 3] = [concat!("FIX", "ME"), concat!("TO", "DO"), concat!("XX", "X")];
/// Unfinished code.
const STUBS: [&str; 4] = ["todo!", "unimplemented!", "dbg!", "#[ignore"];
/// A library's output goes through `tracing`.
const PRINTS: [&str; 4] = ["println!", "print!", "eprintln!", "eprint!"];
/// Folders that exist on one machine only. They are split, so that this file contains none.
const MACHINE_FOLDERS: [&str; 3] = [concat!("/wo", "rk/"), concat!("/ro", "ot/"), concat!("/ho", "me/")];

#[test]
fn nothing_is_left_unfinished() {
    assert_clean(unfinished, "Finish it, or write an issue and delete the mark.");
    assert_finds(
        unfinished,
        &[
            ("docs/bad.md", concat!("later: TO", "DO")),
            ("bench/src/bad.rs", "fn f() { todo!() }"),
            ("tests/src/bad.rs", "#[ignore = \"flaky\"]\nfn f() {}"),
            ("bench/src/good.rs", concat!("fn f() { g(\"dbg!\"); mktemp(\"a.XXXX", "XX\") }")),
        ],
    );
}

#[test]
fn the_library_does_not_print() {
    assert_clean(prints, "Use `tracing`, or return it.");
    assert_finds(
        prints,
        &[
            ("transport/src/bad.rs", "fn f() { eprintln!() }"),
            ("transport/src/good.rs", "/// println!(\"{x}\");\nfn f() {}"),
            ("bench/src/main.rs", "fn main() { println!() }"),
        ],
    );
}

#[test]
fn lint_exceptions_are_expected_with_a_reason() {
    assert_clean(
        allowances,
        "Write `#[expect(lint, reason = \"…\")]`: it warns when it is no longer needed.",
    );
    assert_finds(
        allowances,
        &[
            ("transport/src/bad.rs", "#![allow(dead_code)]"),
            ("transport/src/b/bad.rs", "#[cfg_attr(test,\n    allow(dead_code))]"),
            ("transport/src/good.rs", "#[expect(dead_code, reason = \"x\")] fn allow() { self.allow(1) }"),
        ],
    );
}

#[test]
fn no_path_of_one_machine_is_written_down() {
    assert_clean(
        machine_paths,
        "Use a path from the repository's root, a temporary folder, or an environment variable.",
    );
    assert_finds(
        machine_paths,
        &[
            ("docs/bad.md", concat!("see `/ho", "me/me/x`")),
            ("bad.toml", concat!("path=/wo", "rk/x")),
            ("docs/good.md", concat!("frame/wo", "rk/x and ./wo", "rk/y and $A/ro", "ot/z")),
        ],
    );
}

fn unfinished(tree: &Tree) -> Vec<String> {
    let mut problems = Vec::new();
    for file in &tree.files {
        problems.extend(find(file, &file.text, &MARKS));
        if file.is("rs") {
            problems.extend(find(file, &code(&file.text), &STUBS));
        }
    }
    problems
}

fn prints(tree: &Tree) -> Vec<String> {
    library(tree).flat_map(|file| find(file, &code(&file.text), &PRINTS)).collect()
}

fn allowances(tree: &Tree) -> Vec<String> {
    let mut problems = Vec::new();
    for file in library(tree) {
        for (line, text) in code(&file.text).lines().enumerate() {
            let is_attribute = |at: usize| !text[..at].ends_with('.') && !text[..at].ends_with("fn ");
            if words(text, "allow(").any(is_attribute) {
                problems.push(format!("{}: a lint is allowed", file.at(line)));
            }
        }
    }
    problems
}

fn machine_paths(tree: &Tree) -> Vec<String> {
    let mut problems = Vec::new();
    for file in &tree.files {
        for (line, text) in file.text.lines().enumerate() {
            let is_absolute = |at: usize| {
                let before = text[..at].chars().next_back();
                !before.is_some_and(|c| is_word(c) || matches!(c, '-' | '.' | '~' | ')' | '}' | '*'))
            };
            for folder in MACHINE_FOLDERS {
                if text.match_indices(folder).any(|(at, _)| is_absolute(at)) {
                    problems.push(format!("{}: {folder}…", file.at(line)));
                }
            }
        }
    }
    problems
}

fn library(tree: &Tree) -> impl Iterator<Item = &File> {
    tree.with("rs").filter(|file| file.path.starts_with("transport/src/"))
}

fn find(file: &File, text: &str, needles: &[&str]) -> Vec<String> {
    let mut problems = Vec::new();
    for (line, text) in text.lines().enumerate() {
        for needle in needles {
            if words(text, needle).next().is_some() {
                problems.push(format!("{}: {needle}", file.at(line)));
            }
        }
    }
    problems
}
