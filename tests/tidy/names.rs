//! Names of types: no two types of a crate have one name.

use std::collections::BTreeMap;

use crate::code::{code, is_word};
use crate::tree::Tree;
use crate::{assert_clean, assert_finds};

/// The sources of the crates that are checked.
const CRATES: [&str; 4] = ["transport/src/", "runtime/src/", "ffi/ucx-sys/src/", "bench/src/"];
/// Names of one type for each subcommand of `towline`, which are always used with their module.
const FOR_EACH_SUBCOMMAND: [&str; 2] = ["Document", "Options"];
/// Where a name may stand a second time: the file of the second type, its names, and the reason.
const ALLOWED: &[(&str, &[&str], &str)] = &[
    (
        "transport/src/api/blocking.rs",
        &["Arena", "Connection", "Endpoint", "Incoming", "Listener", "Receipt"],
        "the blocking twin of the public API has its names, as in reqwest and zbus",
    ),
    (
        "transport/src/backend/mod.rs",
        &["Sealed"],
        "the same trait, public with the feature `internals` and private without it",
    ),
    (
        "transport/src/backend/tcp/never_encrypted.rs",
        &["Encrypted"],
        "the same type in a build without the feature `tls`",
    ),
    (
        "transport/src/handshake/without_tls.rs",
        &["Tls", "TlsStream"],
        "the same types in a build without the feature `tls`",
    ),
    (
        "bench/src/ceiling/without_tls_socket.rs",
        &["TlsSession"],
        "the same type in a build without the feature `tls`",
    ),
    (
        "bench/src/commands/without_metrics.rs",
        &["Exporter", "MetricsAddress"],
        "the same types in a build without the feature `metrics`",
    ),
];

#[test]
fn no_two_types_of_a_crate_have_one_name() {
    assert_clean(second_types, "Say in the name what the type is: `PoolState`, not `State`.");
    assert_finds(
        second_types,
        &[
            ("transport/src/a.rs", "pub(crate) struct State {}\nmod tests {\n    struct Fake;\n}"),
            ("transport/src/bad.rs", "enum State {}"),
            ("transport/src/c/bad.rs", "mod tests {\n    struct Fake<T>(T);\n}"),
            ("transport/src/d/bad.rs", "pub unsafe trait Fake {}"),
            ("transport/src/e/bad.rs", "pub type State<T> = Vec<T>;"),
            ("transport/src/good.rs", "// struct State;\nimpl A for B {\n    type State = ();\n}"),
            ("transport/src/api/blocking.rs", "pub struct Arena;"),
            ("transport/src/memory/good.rs", "pub struct Arena;\nstruct StateOfB;"),
            ("bench/src/a.rs", "struct Options;\nstruct Case;"),
            ("bench/src/good.rs", "struct Options;"),
            ("bench/src/z/bad.rs", "struct Case;"),
            ("runtime/src/good.rs", "struct State;"),
            ("xtask/src/good.rs", "struct State;"),
        ],
    );
}

#[test]
fn each_allowed_second_type_exists() {
    let defined = |path, name: &&str| {
        let file = Tree::of_repository().find(path);
        file.is_some_and(|file| types(&file.text).iter().any(|(_, found)| found == name))
    };
    for (path, names, _) in ALLOWED {
        let gone: Vec<_> = names.iter().filter(|name| !defined(path, name)).collect();
        assert!(gone.is_empty(), "{path} has no {gone:?}: shorten ALLOWED");
    }
}

/// Types that have the name of a type before them.
fn second_types(tree: &Tree) -> Vec<String> {
    let mut problems = Vec::new();
    for source in CRATES {
        let mut first = BTreeMap::new();
        for file in tree.with("rs").filter(|file| file.path.starts_with(source) && !file.is_generated()) {
            for (line, name) in types(&file.text) {
                let is_allowed = source == "bench/src/" && FOR_EACH_SUBCOMMAND.contains(&&*name)
                    || ALLOWED.iter().any(|(path, names, _)| *path == file.path && names.contains(&&*name));
                if is_allowed {
                    continue;
                }
                if let Some(first) = first.get(&name) {
                    problems.push(format!("{}: a second `{name}`, after {first}", file.at(line)));
                } else {
                    first.insert(name, file.at(line));
                }
            }
        }
    }
    problems
}

/// The lines and names of the types that a file defines. Associated types are not counted.
fn types(text: &str) -> Vec<(usize, String)> {
    let mut types = Vec::new();
    for (line, text) in code(text).lines().enumerate() {
        let is_nested = text.starts_with(' ');
        let mut words = text.split_whitespace();
        let keyword =
            words.find(|word| !word.starts_with("pub") && !word.ends_with(')') && *word != "unsafe");
        let is_type = match keyword {
            Some("struct" | "enum" | "union" | "trait") => true,
            Some("type") => !is_nested,
            _ => false,
        };
        if let Some(name) = words.next().filter(|_| is_type) {
            let len = name.find(|character| !is_word(character)).unwrap_or(name.len());
            types.push((line, name[..len].to_owned()));
        }
    }
    types
}
