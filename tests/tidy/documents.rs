//! Documents keep their form, and name only files and tests that exist.

use std::collections::BTreeSet;

use crate::tree::{File, Tree};
use crate::{assert_clean, assert_finds};

const DESIGN: &str = "docs/design/";
const SAFETY: &str = "docs/safety.md";
const README: &str = "README.md";
const EXAMPLE: &str = "examples/examples/hello.rs";
const OPENING_LINES_MAX: usize = 5;

#[test]
fn design_pages_open_with_their_decision() {
    assert_clean(
        bad_openings,
        "Start with `# NNNN Title`, then a paragraph of at most five lines: `Decision: … Consequence: …`.",
    );
    let opening = "Decision: a.\nConsequence: b.\n\nWhy.\n";
    assert_finds(
        bad_openings,
        &[
            ("docs/design/0001-good.md", &format!("# 0001 Good\n\n{opening}")),
            ("docs/design/0002-bad.md", &format!("# 2. Bad\n\n{opening}")),
            ("docs/design/0003-bad.md", "# 0003 Bad\n\nDecision: a.\n\nConsequence: b.\n"),
            ("docs/design/0004-bad.md", "# 0004 Bad\n\nDecision: a\nb\nc\nd\ne.\nConsequence: f.\n"),
            ("docs/other.md", "# Other\n"),
        ],
    );
}

#[test]
fn files_that_documents_name_exist() {
    assert_clean(missing_files, "Write the path as it is now, from any of its folders on.");
    assert_finds(
        missing_files,
        &[
            ("a/src/one/two.rs", ""),
            ("docs/good.md", "`two.rs`, `one/two.rs`, `f.rs: x`\n```\n`none.rs`\n```\n"),
            ("docs/bad.md", "see `o.rs`"),
            ("docs/b/bad.md", "see `three/two.rs`"),
            ("docs/design/0001-history.md", "then `gone.rs`"),
        ],
    );
}

#[test]
fn tests_that_prove_safety_exist() {
    assert_clean(missing_tests, "Write the test's name as it is now.");
    let tests = ("tests/a.rs", "fn a_claim_holds() {}");
    let problems = |text| missing_tests(&Tree::of(&[tests, (SAFETY, text)])).len();
    assert_eq!(problems("- Enforced by: `a_b_c`.\n- Tested by: `a.rs`,\n  `a_claim_holds`.\n\n`d_e_f`\n"), 0);
    assert_eq!(problems("- Tested by: `x`,\n  `a_claim_fails`.\n"), 1);
}

#[test]
fn the_readme_shows_the_example_that_it_names() {
    assert_clean(other_example, "Copy the code of one to the other.");
    let example = (EXAMPLE, "//! Says hello.\n\nfn main() {}\n");
    let problems = |text| other_example(&Tree::of(&[example, (README, text)])).len();
    assert_eq!(problems("```rust\nfn main() {}\n```\n"), 0);
    assert_eq!(problems("```rust\nfn main() { }\n```\n"), 1);
}

fn bad_openings(tree: &Tree) -> Vec<String> {
    let pages = tree.with("md").filter(|file| file.path.starts_with(DESIGN));
    let bad = pages.filter(|file| !opens_well(file));
    bad.map(|file| format!("{}: the opening", file.path)).collect()
}

fn opens_well(file: &File) -> bool {
    let number = file.path.strip_prefix(DESIGN).and_then(|name| name.split_once('-'));
    let title = number.map(|(number, _)| format!("# {number} "));
    let mut lines = file.text.lines();
    let has_title = lines.next().zip(title).is_some_and(|(line, title)| line.starts_with(&title));
    let opening: Vec<_> = lines.skip(1).take_while(|line| !line.is_empty()).collect();
    let text = opening.join(" ");
    let has_both = text.starts_with("Decision: ") && text.contains(" Consequence: ");
    has_title && has_both && opening.len() <= OPENING_LINES_MAX
}

/// Design pages are left out: they record what was.
fn other_example(tree: &Tree) -> Vec<String> {
    let text = |path| tree.find(path).map_or("", |file| &file.text);
    let code = text(EXAMPLE).split_once("\n\n").map_or("", |(_, code)| code);
    let is_shown = text(README).contains(&format!("```rust\n{code}```\n"));
    (!is_shown).then(|| format!("{README}: another example than {EXAMPLE}")).into_iter().collect()
}

fn missing_files(tree: &Tree) -> Vec<String> {
    let exists = |path: &str| {
        tree.with("rs").any(|file| {
            file.path.strip_suffix(path).is_some_and(|folder| folder.is_empty() || folder.ends_with('/'))
        })
    };
    let mut problems = Vec::new();
    for file in tree.with("md").filter(|file| !file.path.starts_with(DESIGN)) {
        for (line, name) in names(&file.text) {
            let is_path = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '/' | '.');
            if name.ends_with(".rs") && name.chars().all(is_path) && !exists(name) {
                problems.push(format!("{}: no file {name}", file.at(line)));
            }
        }
    }
    problems
}

fn missing_tests(tree: &Tree) -> Vec<String> {
    let functions: BTreeSet<&str> = tree.with("rs").flat_map(|file| functions(&file.text)).collect();
    let Some(safety) = tree.find(SAFETY) else { return Vec::new() };
    let mut is_tested_by = false;
    let tested_by: BTreeSet<usize> = safety
        .text
        .lines()
        .enumerate()
        .filter(|(_, text)| {
            is_tested_by = text.starts_with("- Tested by:") || is_tested_by && text.starts_with("  ");
            is_tested_by
        })
        .map(|(line, _)| line)
        .collect();
    let is_test = |name: &str| {
        let is_identifier = name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
        is_identifier && name.matches('_').count() >= 2
    };
    names(&safety.text)
        .into_iter()
        .filter(|(line, name)| tested_by.contains(line) && is_test(name) && !functions.contains(name))
        .map(|(line, name)| format!("{}: no test {name}", safety.at(line)))
        .collect()
}

/// The functions that a Rust file declares.
fn functions(text: &str) -> impl Iterator<Item = &str> {
    text.split("fn ").skip(1).map(|rest| {
        let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
        &rest[..end]
    })
}

/// Inline code of a document, with its lines. Code blocks are not read.
fn names(text: &str) -> Vec<(usize, &str)> {
    let mut names = Vec::new();
    let mut in_code = false;
    for (line, text) in text.lines().enumerate() {
        let is_fence = text.trim_start().starts_with("```");
        in_code ^= is_fence;
        if !in_code && !is_fence {
            names.extend(text.split('`').skip(1).step_by(2).map(|name| (line, name)));
        }
    }
    names
}
