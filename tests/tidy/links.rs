//! Every document is linked, and every link leads to a file.

use crate::tree::{File, Tree};
use crate::{assert_clean, assert_finds};

/// The documents that a reader opens first.
const ENTRY_PAGES: [&str; 3] = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"];
/// Lists all documents.
const INDEX: &str = "docs/README.md";

#[test]
fn the_entry_pages_exist() {
    assert_clean(missing_entry_pages, "These are the pages a newcomer opens first.");
    assert_eq!(missing_entry_pages(&Tree::of(&[("README.md", "")])).len(), 2);
}

#[test]
fn every_document_is_linked() {
    assert_clean(unlinked, "Link it from README.md, ARCHITECTURE.md, CONTRIBUTING.md or another document.");
    assert_finds(
        unlinked,
        &[
            ("README.md", "[safety](docs/safety.md#m1) [all](docs/design/)"),
            ("docs/safety.md", "[self](bad.md.html) [wire](./wire.md \"The wire\")"),
            ("docs/wire.md", "[up](../README.md)"),
            ("docs/design/0001-seam.md", ""),
            ("docs/bad.md", "[self](bad.md)"),
        ],
    );
}

#[test]
fn the_index_names_every_document() {
    assert_clean(unindexed, "Add a line to docs/README.md, under its reader.");
    assert_finds(
        unindexed,
        &[
            (INDEX, "[safety](safety.md) [seam](design/0001-seam.md) [all](design/)"),
            ("docs/safety.md", "[wire](bad.md)"),
            ("docs/bad.md", ""),
            ("docs/design/0001-seam.md", ""),
            ("docs/design/0002-bad.md", ""),
        ],
    );
}

#[test]
fn every_link_leads_to_a_file() {
    assert_clean(broken, "Correct the path: it counts from the folder of the document.");
    assert_finds(
        broken,
        &[
            ("docs/bad.md", "[x](docs/good.md)"),
            (
                "docs/good.md",
                "[x](#here) [y](https://example.org/z) [z](../docs/bad.md)\n```\n[a](b)\n```\n`[a](b)`",
            ),
        ],
    );
}

fn missing_entry_pages(tree: &Tree) -> Vec<String> {
    let missing = ENTRY_PAGES.iter().filter(|path| tree.find(path).is_none());
    missing.map(|path| format!("{path}: does not exist yet")).collect()
}

fn unlinked(tree: &Tree) -> Vec<String> {
    let documents = || tree.with("md").filter(|file| file.path.starts_with("docs/"));
    let entry_pages = || ENTRY_PAGES.iter().filter_map(|path| tree.find(path));
    let links: Vec<(&File, String)> = documents()
        .chain(entry_pages())
        .flat_map(|file| links(file).into_iter().map(move |(_, target)| (file, target)))
        .collect();
    documents()
        .filter(|file| {
            // A link to a folder covers all files in it.
            let shows = |target: &str| target == file.path || target == file.folder();
            !links.iter().any(|(from, target)| from.path != file.path && shows(target))
        })
        .map(|file| format!("{}: no document links to it", file.path))
        .collect()
}

fn unindexed(tree: &Tree) -> Vec<String> {
    let listed: Vec<_> = tree.find(INDEX).map(links).unwrap_or_default();
    tree.with("md")
        .filter(|file| file.path.starts_with("docs/") && file.path != INDEX)
        .filter(|file| !listed.iter().any(|(_, target)| *target == file.path))
        .map(|file| format!("{}: {INDEX} does not list it", file.path))
        .collect()
}

fn broken(tree: &Tree) -> Vec<String> {
    let mut problems = Vec::new();
    for file in tree.with("md") {
        for (line, target) in links(file) {
            if !target.is_empty() && !tree.has(&target) {
                problems.push(format!("{}: no file {target}", file.at(line)));
            }
        }
    }
    problems
}

/// Returns the links of a document to files of the repository, from its root, with their lines. Code is
/// skipped.
fn links(file: &File) -> Vec<(usize, String)> {
    let mut links = Vec::new();
    let mut in_code = false;
    for (line, text) in file.text.lines().enumerate() {
        if text.trim_start().starts_with("```") {
            in_code = !in_code;
        }
        if in_code {
            continue;
        }
        let prose: String = text.split('`').step_by(2).collect::<Vec<_>>().join("`");
        for rest in prose.split("](").skip(1) {
            let target = rest.split([')', ' ', '#']).next().unwrap_or_default();
            if !target.is_empty() && !target.contains(':') {
                links.push((line, from_root(file.folder(), target)));
            }
        }
    }
    links
}

fn from_root(folder: &str, target: &str) -> String {
    let mut parts: Vec<_> = folder.split('/').collect();
    for part in target.split('/') {
        match part {
            ".." => drop(parts.pop()),
            _ => parts.push(part),
        }
    }
    parts.retain(|part| !part.is_empty() && *part != ".");
    parts.join("/")
}
