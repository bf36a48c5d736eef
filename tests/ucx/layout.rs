//! Compares the bindings with the headers, as the C compiler reads them: offsets of fields, sizes of structs,
//! values of names.

use std::fmt::Write;
use std::fs;
use std::process::Command;

use libtest_mimic::{Completion, Failed};
use towline_tests::need;

use towline_tests::libraries::Installed;

const BINDINGS: &str = include_str!("../../ffi/ucx-sys/src/bindings.rs");
/// A line of the headers that the bindings were made from.
const BOUND: &str = "\n#define UCP_API_MINOR    13\n";
/// Names whose values change in later versions, and which no call may pass: the version, and two list ends.
const MOVES: [&str; 3] = ["UCP_API_MINOR", "UCS_MEMORY_TYPE_LAST", "UCS_MEMORY_TYPE_UNKNOWN"];

pub(crate) fn headers_have_the_layout_that_is_bound(installed: &Installed) -> Result<Completion, Failed> {
    let path = installed.headers.join("ucp/api/ucp_version.h");
    let Ok(version) = fs::read_to_string(&path) else {
        return need::skip("bindings", &format!("there is no {}", path.display()));
    };
    let folder = tempfile::tempdir()?;
    let source = folder.path().join("layout.c");
    fs::write(&source, assertions(version.contains(BOUND)))?;
    let mut command = Command::new("cc");
    command.args(["-std=gnu11", "-fsyntax-only", "-I"]).arg(&installed.headers).arg(&source);
    let output = command.output()?;
    let log_output = String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(Completion::Completed) } else { Err(log_output.into_owned().into()) }
}

/// Translates bindgen's checks from Rust to C. A later header may have more fields and names.
fn assertions(exact: bool) -> String {
    let mut text = String::from("#include <stddef.h>\n#include <ucp/api/ucp.h>\n");
    let mut checks = [0; 2];
    for check in BINDINGS.split("[\"").skip(1) {
        let (label, rest) = check.split_once("\"]").unwrap();
        let value = rest.split_once("usize]").and_then(|(before, _)| before.rsplit_once("- ")).unwrap().1;
        if label.contains("__bindgen") {
            continue;
        }
        let (what, of) = label.rsplit_once(' ').unwrap();
        let (kind, field) = of.split_once("::").unwrap_or((of, ""));
        let kind = if kind.ends_with("_t") { kind.to_owned() } else { format!("struct {kind}") };
        let is_it = match what {
            "Size of" if exact => format!("sizeof({kind}) == {value}"),
            "Size of" => format!("sizeof({kind}) >= {value}"),
            "Alignment of" => format!("_Alignof({kind}) == {value}"),
            "Offset of field:" => format!("offsetof({kind}, {field}) == {value}"),
            other => panic!("{other}"),
        };
        writeln!(text, "_Static_assert({is_it}, \"{label}\");").unwrap();
        checks[0] += 1;
    }
    for constant in BINDINGS.split("\npub const UC").skip(1) {
        let (name, rest) = constant.split_once(": ").unwrap();
        let value = rest.split_once(" = ").and_then(|(_, rest)| rest.split_once(';')).unwrap().0;
        let name = format!("UC{name}");
        if exact || !MOVES.contains(&name.as_str()) {
            writeln!(text, "_Static_assert({name} == {value}, \"{name}\");").unwrap();
            checks[1] += 1;
        }
    }
    // Fail if the parser above finds no checks.
    assert!(checks[0] > 100 && checks[1] > 100, "{checks:?}");
    text
}
