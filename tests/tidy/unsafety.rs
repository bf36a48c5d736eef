//! Unsafe code is in listed files only, and each block has its proof.

use crate::code::{code, words};
use crate::tree::Tree;
use crate::{assert_clean, assert_finds};

/// The files that may contain unsafe code. A new entry needs a reason, in its file and in docs/safety.md.
const HOMES: [&str; 15] = [
    "ffi/",
    "bench/src/main.rs",
    "bench/compare/",
    "tests/",
    "transport/src/memory/",
    "transport/src/platform/process.rs",
    "transport/src/platform/reactor.rs",
    "transport/src/backend/tcp/",
    "transport/src/backend/shm/table",
    "transport/src/backend/shm/borrowing",
    "transport/src/backend/shm/duplex",
    "transport/src/backend/shm/fetcher",
    "transport/src/backend/shm/ring",
    "transport/src/backend/ucx/",
    "transport/src/backend/ib/",
];

/// The largest number of lines between a proof and its block.
const PROOF_DISTANCE_MAX: usize = 4;

#[test]
fn unsafe_code_stays_in_its_homes() {
    assert_clean(outside_homes, "Use a safe crate, or one of the homes listed in tests/tidy/unsafety.rs.");
    assert_finds(
        outside_homes,
        &[
            ("transport/src/bad.rs", "fn f() { unsafe { g() } }"),
            ("transport/src/good.rs", "//! unsafe\n#![forbid(unsafe_code)]\nconst X: &str = \"unsafe {\";"),
            ("transport/src/memory/host.rs", "unsafe impl Send for X {}"),
        ],
    );
}

#[test]
fn every_unsafe_block_has_its_proof() {
    assert_clean(
        unproven,
        "Write `// SAFETY:` above it, citing the invariant of docs/safety.md that makes it so.",
    );
    assert_finds(
        unproven,
        &[
            ("transport/src/memory/bad.rs", "// SAFETY: far away\n\n\n\n\nlet x = unsafe { g() };"),
            ("tests/src/bad.rs", "unsafe impl Send for X {}"),
            ("tests/src/good.rs", "// SAFETY: M1,\n// pinned.\nlet x = unsafe { g() };\nunsafe fn f() {}"),
            ("ffi/x-sys/src/bindings.rs", "unsafe { g() }"),
            ("ffi/x-sys/src/bad.rs", "unsafe { g() }"),
        ],
    );
}

fn outside_homes(tree: &Tree) -> Vec<String> {
    let mut problems = Vec::new();
    for file in tree.with("rs").filter(|file| !HOMES.iter().any(|home| file.path.starts_with(home))) {
        for (line, text) in code(&file.text).lines().enumerate() {
            if words(text, "unsafe").next().is_some() {
                problems.push(format!("{}: unsafe code outside its homes", file.at(line)));
            }
        }
    }
    problems
}

fn unproven(tree: &Tree) -> Vec<String> {
    let mut problems = Vec::new();
    for file in tree.with("rs").filter(|file| !file.is_generated()) {
        let lines: Vec<_> = file.text.lines().collect();
        for (line, text) in code(&file.text).lines().enumerate() {
            let opens = words(text, "unsafe").any(|at| {
                let rest = text[at + "unsafe".len()..].trim_start();
                rest.starts_with('{') || rest.starts_with("impl")
            });
            let near = &lines[line.saturating_sub(PROOF_DISTANCE_MAX)..=line];
            if opens && !near.iter().any(|line| line.contains("SAFETY:")) {
                problems.push(format!("{}: no proof within {PROOF_DISTANCE_MAX} lines above", file.at(line)));
            }
        }
    }
    problems
}
