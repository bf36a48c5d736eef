//! The form of files: their length, white space, and lints.

use crate::tree::Tree;
use crate::{assert_clean, assert_finds};

const RUST_LINES_MAX: usize = 600;
const MARKDOWN_LINES_MAX: usize = 400;
const README_LINES_MAX: usize = 150;
const MARKDOWN_COLUMNS_MAX: usize = 110;

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
fn the_readme_stays_short() {
    assert_clean(long_readme, "Move details to docs/; README.md answers in two minutes.");
    let problems = |path, lines| long_readme(&Tree::of(&[(path, &"\n".repeat(lines))])).len();
    assert_eq!(problems("README.md", 151), 1);
    assert_eq!(problems("README.md", 150), 0);
    assert_eq!(problems("docs/README.md", 151), 0);
}

#[test]
fn markdown_stays_narrow() {
    assert_clean(wide_markdown, "Wrap prose at 110 columns, and shorten table cells.");
    let wide = format!("{}µ", "a ".repeat(55));
    assert_finds(
        wide_markdown,
        &[
            ("docs/bad.md", &format!("```\n{wide}\n```\n{wide}\n")),
            ("b/bad.md", &format!("| {wide} |\n")),
            ("c/bad.md", &format!("[{wide}](x.md) and more\n")),
            ("docs/good.md", &format!("{}µ\n```\n{wide}\n```\n", "a".repeat(109))),
            ("b/good.md", &format!("- [{wide}](x.md), [y](y.md).\n")),
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

fn long_readme(tree: &Tree) -> Vec<String> {
    let lines = tree.find("README.md").map_or(0, |file| file.text.lines().count());
    let is_long = lines > README_LINES_MAX;
    is_long.then(|| format!("README.md: {lines} lines, at most {README_LINES_MAX}")).into_iter().collect()
}

fn wide_markdown(tree: &Tree) -> Vec<String> {
    let mut problems = Vec::new();
    for file in tree.with("md") {
        let wide = wide_lines(&file.text);
        if let Some(first) = wide.first() {
            let lines = wide.len();
            problems
                .push(format!("{}: the first of {lines} lines over {MARKDOWN_COLUMNS_MAX}", file.at(*first)));
        }
    }
    problems
}

/// Lines over the limit, outside code blocks. A line of links alone may be as long as its targets.
fn wide_lines(text: &str) -> Vec<usize> {
    let mut wide = Vec::new();
    let mut in_code = false;
    for (line, text) in text.lines().enumerate() {
        let is_fence = text.trim_start().starts_with("```");
        in_code ^= is_fence;
        let is_wide = text.chars().count() > MARKDOWN_COLUMNS_MAX;
        if is_wide && !in_code && !is_fence && !is_links(text) {
            wide.push(line);
        }
    }
    wide
}

/// Whether a line holds links and punctuation alone.
fn is_links(text: &str) -> bool {
    let mut rest = text;
    let mut around = String::new();
    while let Some((before, link)) = rest.split_once('[')
        && let Some((_, link)) = link.split_once("](")
        && let Some((_, after)) = link.split_once(')')
    {
        around += before;
        rest = after;
    }
    around += rest;
    !around.contains(char::is_alphanumeric)
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
