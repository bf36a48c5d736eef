//! Every Rust file is compiled: it is a target of its package, or its parent has a `mod` line for it.

use crate::code::{code, words};
use crate::tree::{File, Tree};
use crate::{assert_clean, assert_finds};

#[test]
fn every_rust_file_is_compiled() {
    assert_clean(dead_files, "Add its `mod` line, or delete it.");
    assert_finds(
        dead_files,
        &[
            ("a/Cargo.toml", "[[test]]\npath = \"own/main.rs\"\n"),
            ("a/src/lib.rs", "mod good;\n// mod bad;\npub(crate) mod folder;\nmod sub;"),
            ("a/src/good.rs", ""),
            ("a/src/bad.rs", ""),
            ("a/src/folder.rs", "mod inner;"),
            ("a/src/folder/inner.rs", ""),
            ("a/src/folder/bad.rs", ""),
            ("a/src/sub/mod.rs", "mod good;"),
            ("a/src/sub/good.rs", ""),
            ("a/src/sub/good/bad.rs", ""),
            ("a/src/bin/tool.rs", ""),
            ("a/own/main.rs", "mod part;"),
            ("a/own/part.rs", ""),
            ("a/own/bad.rs", ""),
            ("a/tests/one.rs", "mod common;"),
            ("a/tests/common/mod.rs", ""),
            ("a/examples/two/main.rs", ""),
            ("bad.rs", ""),
        ],
    );
}

fn dead_files(tree: &Tree) -> Vec<String> {
    let packages: Vec<&str> = tree
        .files
        .iter()
        .filter(|file| file.path.rsplit('/').next() == Some("Cargo.toml"))
        .map(File::folder)
        .collect();
    let mut problems = Vec::new();
    for file in tree.with("rs") {
        let package = packages
            .iter()
            .filter(|folder| !folder.is_empty() && file.path.starts_with(&format!("{folder}/")))
            .max_by_key(|folder| folder.len());
        let Some(package) = package else {
            problems.push(format!("{}: belongs to no package", file.path));
            continue;
        };
        if !is_target(tree, package, &file.path) && !is_module(tree, package, file) {
            problems.push(format!("{}: nothing compiles it", file.path));
        }
    }
    problems
}

/// Returns true if cargo finds the file by itself, or the manifest names it.
fn is_target(tree: &Tree, package: &str, path: &str) -> bool {
    let inner = &path[package.len() + 1..];
    let manifest = tree.find(&format!("{package}/Cargo.toml")).map_or("", |file| &file.text);
    let named = manifest.lines().any(|line| {
        let words: Vec<_> = line.split(['=', '"']).map(str::trim).collect();
        matches!(words[..], ["path" | "build", "", path, ..] if path == inner)
    });
    let parts: Vec<_> = inner.split('/').collect();
    named
        || matches!(
            parts[..],
            ["build.rs"]
                | ["src", "lib.rs" | "main.rs"]
                | ["src", "bin", _]
                | ["src", "bin", _, "main.rs"]
                | ["tests" | "examples" | "benches", _]
                | ["tests" | "examples" | "benches", _, "main.rs"]
        )
}

/// Returns true if a parent has a `mod` line for the file.
fn is_module(tree: &Tree, package: &str, file: &File) -> bool {
    let folder = file.folder();
    let name = &file.path[folder.len() + 1..];
    // `a/b/mod.rs` and `a/b.rs` are both the module b in folder a.
    let (home, module) = match name {
        "mod.rs" => folder.rsplit_once('/').unwrap_or(("", folder)),
        _ => (folder, name.trim_end_matches(".rs")),
    };
    let declaration = format!("mod {module};");
    tree.with("rs").any(|parent| {
        let is_parent = if parent.folder() == home {
            parent.path == format!("{home}/mod.rs") || is_target(tree, package, &parent.path)
        } else {
            parent.path == format!("{home}.rs")
        };
        is_parent && words(&code(&parent.text), &declaration).next().is_some()
    })
}
