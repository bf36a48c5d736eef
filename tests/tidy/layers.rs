//! Imports point downward only, in the order that ARCHITECTURE.md gives.

use crate::code::words;
use crate::paths::{is_below, paths};
use crate::tree::Tree;
use crate::{assert_clean, assert_finds};

/// The layers of the transport, from the lowest to the highest. A file may mention its own layer and lower
/// ones. Unit tests in files of their own may mention any.
const LAYERS: [&str; 13] = [
    "error",
    "platform",
    "memory",
    "transfer",
    "wire",
    "handshake",
    "address",
    "backend",
    "events",
    "metrics",
    "progress",
    "connect",
    "api",
];

/// The layers of the command, likewise: `commands` is the command line, `report` what prints, `patterns` what
/// runs.
const BENCH_LAYERS: [&str; 15] = [
    "failure",
    "data",
    "case",
    "terminal",
    "process",
    "machine",
    "security",
    "results",
    "ceiling",
    "peer",
    "patterns",
    "against",
    "report",
    "commands",
    "expressions",
];

/// The types of the public interface, by their names in lib.rs.
const PUBLIC_TYPES: [&str; 4] =
    ["crate::Endpoint", "crate::Listener", "crate::Connection", "crate::blocking"];

/// What the protocol may not mention: its bytes and its time are arguments.
const NOT_IN_WIRE: [&str; 8] = [
    "std::net",
    "std::os",
    "std::thread",
    "std::time::Instant",
    "std::time::SystemTime",
    "tokio",
    "rustix",
    "socket2",
];

const BACKENDS: [&str; 5] = ["mem", "tcp", "shm", "ucx", "ib"];

/// Packages that use the public interface only.
const USERS: [&str; 4] = ["bench/", "examples/", "tests/", "runtime/"];

/// Exceptions that may use the internals: fuzz targets and benchmarks.
const INSIDE: &str = "bench/benches/";

/// The package that implements the sealed trait `Backend`.
const IMPLEMENTERS: &str = "tests/";

#[test]
fn imports_point_downward() {
    assert_clean(upward_imports, "Move the shared thing down, or pass it in as an argument.");
    assert_finds(
        upward_imports,
        &[
            ("transport/src/wire/bad.rs", "use std::{fmt, time::{Duration, Instant}};"),
            ("transport/src/wire/worse_bad.rs", "fn f() { tokio::spawn(g()) }"),
            ("transport/src/wire/good.rs", "//! Unlike tokio::net.\nuse std::time::Duration;"),
            ("transport/src/memory/bad.rs", "use super::super::backend::mem;"),
            ("transport/src/memory/good.rs", "use crate::error::Error; use super::pool::Pool;"),
            ("transport/src/handshake/good.rs", "use crate::wire::handshake;"),
            ("transport/src/handshake/bad.rs", "use crate::{error::Error, address::Address};"),
            ("transport/src/backend/tcp/bad.rs", "use crate::{error::Error, progress};"),
            ("transport/src/connect/bad.rs", "use crate::Connection;"),
            ("transport/src/memory/tests/good.rs", "use crate::api::blocking;"),
            ("bench/src/results/bad.rs", "use crate::report::table;"),
            ("bench/src/data/bad.rs", "fn f() -> super::super::case::Case;"),
            ("bench/src/report/good.rs", "use crate::results::row::Row; use super::table;"),
        ],
    );
}

#[test]
fn a_backend_never_mentions_a_sibling() {
    assert_clean(
        sibling_imports,
        "What two backends share belongs above the seam or below it, written once.",
    );
    assert_finds(
        sibling_imports,
        &[
            ("transport/src/backend/shm/bad.rs", "use crate::backend::{Link, tcp::Tcp};"),
            ("transport/src/backend/ib/bad.rs", "fn f() -> super::super::mem::Mem;"),
            ("transport/src/backend/tcp/good.rs", "use super::link::Link; use crate::backend::tcp::x;"),
            ("transport/src/backend/faulty.rs", "use super::mem::Mem;"),
        ],
    );
}

#[test]
fn users_see_only_the_public_crate() {
    assert_clean(
        private_uses,
        "Use what lib.rs exports; if it is not enough, the interface lacks something.",
    );
    assert_finds(
        private_uses,
        &[
            ("tests/src/bad.rs", "#[path = \"../../transport/src/wire/mod.rs\"] mod wire;"),
            ("bench/src/bad.rs", "use towline::__internal::Driver;"),
            ("bench/src/good.rs", "use towline::Endpoint;"),
            ("bench/src/inside_bad.rs", "use towline::internals::Stream;"),
            ("runtime/src/bad.rs", "impl towline::backend::sealed::Sealed for Mine {}"),
            ("bench/benches/good.rs", "use towline::internals::decode;"),
            ("fuzz/src/good.rs", "use towline::internals::Stream;"),
            ("transport/Cargo.toml", "[dependencies]\nucx-sys.workspace = true"),
        ],
    );
    let upward = Tree::of(&[("transport/Cargo.toml", "[dependencies]\ntowline-bench.workspace = true")]);
    assert_eq!(private_uses(&upward).len(), 1);
}

fn upward_imports(tree: &Tree) -> Vec<String> {
    let mut problems = Vec::new();
    for (folder, layers) in [("transport/src", &LAYERS[..]), ("bench/src", &BENCH_LAYERS[..])] {
        for file in tree.with("rs").filter(|file| !is_unit_test(&file.path)) {
            let layer = |name: &&str| is_in(&file.path, &format!("{folder}/{name}"));
            let Some(own) = layers.iter().position(layer) else { continue };
            for (line, path) in paths(&file.path, &file.text) {
                let is_above = |name: &&str| is_below(&path, &format!("crate::{name}"));
                if layers[own + 1..].iter().any(is_above) {
                    problems.push(format!("{}: {path} is above {}", file.at(line), layers[own]));
                }
            }
        }
    }
    problems.extend(uses_of_public_types(tree));
    problems.extend(effects_in_wire(tree));
    problems
}

/// Returns the uses of the public interface below the layer that defines it.
fn uses_of_public_types(tree: &Tree) -> Vec<String> {
    let mut problems = Vec::new();
    for file in tree.with("rs").filter(|file| !is_unit_test(&file.path)) {
        let layer = |name: &&&str| is_in(&file.path, &format!("transport/src/{name}"));
        let Some(own) = LAYERS.iter().find(layer).filter(|own| **own != "api") else { continue };
        for (line, path) in paths(&file.path, &file.text) {
            if PUBLIC_TYPES.iter().any(|name| is_below(&path, name)) {
                problems.push(format!("{}: {path} is above {own}", file.at(line)));
            }
        }
    }
    problems
}

/// Returns the uses of sockets, threads and clocks in the protocol.
fn effects_in_wire(tree: &Tree) -> Vec<String> {
    let mut problems = Vec::new();
    for file in tree.with("rs").filter(|file| is_in(&file.path, "transport/src/wire")) {
        for (line, path) in paths(&file.path, &file.text) {
            if !is_unit_test(&file.path) && NOT_IN_WIRE.iter().any(|name| is_below(&path, name)) {
                let reason = "wire is given bytes and time; it owns no socket, thread or clock";
                problems.push(format!("{}: {path}: {reason}", file.at(line)));
            }
        }
    }
    problems
}

/// Returns true if a file contains only unit tests.
fn is_unit_test(path: &str) -> bool {
    path.starts_with("transport/src/") && (path.contains("/tests/") || path.ends_with("/tests.rs"))
}

fn sibling_imports(tree: &Tree) -> Vec<String> {
    let mut problems = Vec::new();
    for file in tree.with("rs") {
        let own = |name: &&&str| is_in(&file.path, &format!("transport/src/backend/{name}"));
        let Some(own) = BACKENDS.iter().find(own) else { continue };
        for (line, path) in paths(&file.path, &file.text) {
            let sibling = BACKENDS
                .iter()
                .find(|name| *name != own && is_below(&path, &format!("crate::backend::{name}")));
            if let Some(sibling) = sibling {
                problems.push(format!("{}: {own} mentions {sibling}", file.at(line)));
            }
        }
    }
    problems
}

fn private_uses(tree: &Tree) -> Vec<String> {
    let mut problems = Vec::new();
    for file in tree.with("rs").filter(|file| USERS.iter().any(|user| file.path.starts_with(user))) {
        for (line, text) in file.text.lines().enumerate() {
            let includes = ["#[path", "include!("].iter().any(|word| text.trim_start().starts_with(word));
            if includes && text.contains("transport/") {
                problems.push(format!("{}: takes a file of transport/", file.at(line)));
            }
        }
        for (line, path) in paths(&file.path, &file.text) {
            let inside = is_below(&path, "towline::internals") && !file.path.starts_with(INSIDE);
            let sealed = is_below(&path, "towline::backend::sealed") && !file.path.starts_with(IMPLEMENTERS);
            if path.starts_with("towline::__") || inside || sealed {
                problems.push(format!("{}: {path} is not public", file.at(line)));
            }
        }
    }
    if let Some(manifest) = tree.find("transport/Cargo.toml") {
        for (line, text) in manifest.text.lines().enumerate() {
            if words(text, "towline-").next() == Some(0) {
                problems.push(format!("{}: the transport depends on a crate above it", manifest.at(line)));
            }
        }
    }
    problems
}

/// Returns true if a file is the module of this path or is in its folder.
fn is_in(file: &str, module: &str) -> bool {
    file.strip_prefix(module).is_some_and(|rest| rest == ".rs" || rest.starts_with('/'))
}
