//! How a file looks from outside: its length, its white space, its lints.

use crate::tree::Tree;
use crate::{assert_clean, assert_finds};

const RUST_LINES_MAX: usize = 600;
const MARKDOWN_LINES_MAX: usize = 400;

#[test]
fn files_stay_short() {
    assert_clean(long_files, "Look for the noun hiding inside, and give it a file of its own.");
    assert_finds(
        long_files,
        &[
            ("bench/src/bad.rs", &"\n".repeat(601)),
            ("bench/src/good.rs", &"\n".repeat(600)),
            ("docs/bad.md", &"\n".repeat(401)),
            ("ffi/x-sys/src/bindings.rs", &"\n".repeat(9000)),
        ],
    );
}

#[test]
fn white_space_is_clean() {
    assert_clean(stray_white_space, "Set the editor to strip it; cargo fmt does not reach into every file.");
    assert_finds(
        stray_white_space,
        &[
            ("bad.md", "a \n"),
            ("bad.rs", "a\n\tb\n"),
            ("bad.toml", "a"),
            ("docs/bad.md", "a\r\n"),
            ("good.sh", "a\tb\n"),
            ("good.rs", "a\n"),
            ("good.md", ""),
        ],
    );
}

#[test]
fn every_crate_takes_the_lints_of_the_workspace() {
    assert_clean(own_lints, "Add:\n[lints]\nworkspace = true");
    assert_finds(
        own_lints,
        &[
            ("bad/Cargo.toml", "[package]\n[lints]\n[x]\nworkspace = true\n"),
            ("good/Cargo.toml", "[package]\n\n[lints]\nworkspace = true\n"),
            ("Cargo.toml", "[workspace]\n"),
        ],
    );
}

fn long_files(tree: &Tree) -> Vec<String> {
    let mut problems = Vec::new();
    for (extension, lines_max) in [("rs", RUST_LINES_MAX), ("md", MARKDOWN_LINES_MAX)] {
        for file in tree.with(extension).filter(|file| !file.is_generated()) {
            let lines = file.text.lines().count();
            if lines > lines_max {
                problems.push(format!("{}: {lines} lines, at most {lines_max}", file.path));
            }
        }
    }
    problems
}

fn stray_white_space(tree: &Tree) -> Vec<String> {
    let mut problems = Vec::new();
    for file in ["rs", "md", "toml"].iter().flat_map(|extension| tree.with(extension)) {
        for (line, text) in file.text.split('\n').enumerate() {
            if text.trim_end() != text {
                problems.push(format!("{}: trailing white space", file.at(line)));
            }
            if text.contains('\t') {
                problems.push(format!("{}: a tab", file.at(line)));
            }
        }
        if !file.text.is_empty() && !file.text.ends_with('\n') {
            problems.push(format!("{}: no newline at the end", file.path));
        }
    }
    problems
}

fn own_lints(tree: &Tree) -> Vec<String> {
    let packages = tree.files.iter().filter(|file| {
        file.path.rsplit('/').next() == Some("Cargo.toml")
            && file.text.lines().any(|line| line == "[package]")
    });
    packages
        .filter(|file| !file.text.contains("[lints]\nworkspace = true"))
        .map(|file| format!("{}: no lints of the workspace", file.path))
        .collect()
}
