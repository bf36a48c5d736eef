//! The project's own rules, which the compiler does not check: layers, sizes, names, leftovers, unsafe code
//! and its proofs, dead files, links, retired words.
//!
//! A check is a function from a [`Tree`] to the problems it found. Each check runs on this repository and on
//! a planted fault, since a check that cannot fail proves nothing.

mod code;
mod dead_files;
mod documents;
mod layers;
mod leftovers;
mod links;
mod locks;
mod names;
mod paths;
mod shape;
mod tree;
mod unsafety;
mod words;

use tree::Tree;

/// Runs a check on this repository.
#[track_caller]
fn assert_clean(check: fn(&Tree) -> Vec<String>, remedy: &str) {
    let problems = check(Tree::of_repository());
    assert!(problems.is_empty(), "\n{}\n\n{remedy}\n", problems.join("\n"));
}

/// Runs a check on planted files. It must report exactly those whose path contains the word `bad`.
#[track_caller]
fn assert_finds(check: fn(&Tree) -> Vec<String>, files: &[(&str, &str)]) {
    let problems = check(&Tree::of(files));
    for (path, _) in files {
        let found = problems.iter().any(|problem| problem.starts_with(path));
        assert_eq!(found, path.contains("bad"), "{path} in {problems:#?}");
    }
}
