//! `ucx` in the command: measured beside UCX's own tool, or reported as missing.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::against::{needs, ran, there};
use crate::bench::{bench, measures_every_pattern, rows};
use crate::command::{Finished, spawn, towline};

/// A transport that is the same on every machine, and with every version.
const OVER_TCP: &str = "ucx?TLS=tcp&NET_DEVICES=lo&versions=any";

/// Returns the entry of ucx in a document of `info`.
fn of_ucx(info: &Finished) -> Value {
    let document = info.document();
    let backends = document["backends"].as_array().unwrap();
    backends.iter().find(|backend| backend["name"] == "ucx").unwrap().clone()
}

/// Returns that entry if ucx is ready here.
fn ready() -> Option<Value> {
    let ucx = of_ucx(&towline(&["info", "--json"]));
    (ucx["state"] == "ready" || needs("ucx", &ucx["reason"].to_string())).then_some(ucx)
}

#[test]
fn ucx_is_measured_between_two_processes() {
    if ready().is_some() {
        measures_every_pattern(OVER_TCP);
    }
}

#[test]
fn ucx_perftest_runs_beside_ucx_with_the_same_library_and_settings() {
    let (Some(ucx), true) = (ready(), there("ucx_perftest")) else { return };
    for (pattern, size, completion, figure, test) in [
        ("latency", 64, "receiver", "p50_us", "-t ucp_am_lat"),
        ("bandwidth", 128 << 10, "sender", "gb_per_s", "-t ucp_am_bw"),
    ] {
        let line = format!("--transport {OVER_TCP} --pattern {pattern} --size {size} --against ucx_perftest");
        let finished = bench(&format!("{line} --wait spin --json"));
        let row = rows(&finished).remove(0);
        let entry = &row["against"][0];
        ran(&row, entry, "ucx_perftest", completion, figure);
        assert_eq!((&row["path"], &entry["version"]), (&"ucx".into(), &ucx["version"]));
        assert_eq!(finished.document()["fingerprint"]["versions"]["ucx"], ucx["version"]);
        let command = entry["command"].as_str().unwrap();
        for part in ["UCX_TLS=tcp ", "UCX_NET_DEVICES=lo ", test] {
            assert!(command.contains(part), "{part}: {command}");
        }
        assert_eq!(command.matches(" -e").count(), 2, "at both ends: {command}");
        let without =
            entry["note"].as_str().unwrap().split("; ").filter(|part| part.starts_with("without our"));
        assert_eq!(without.collect::<Vec<_>>(), ["without our TCP_RX_SEG_SIZE=256k"], "{entry}");
        assert!(row["cpu_s_per_gb"]["send"].as_f64().unwrap() > 0.0, "{row}");
    }
}

#[test]
fn info_lists_the_library_of_ucx() {
    let Some(ucx) = ready() else { return };
    let library = Path::new(ucx["library"].as_str().unwrap());
    assert!(library.is_absolute() && library.is_file(), "{ucx}");
    assert!(library.file_name().unwrap().to_string_lossy().starts_with("libucp"), "{ucx}");
    let holds = |list: &str, wanted: &str| {
        ucx[list].as_array().unwrap().iter().any(|item| item.as_str().unwrap().contains(wanted))
    };
    assert!(holds("devices", "tcp/lo") && holds("memory", "host"), "{ucx}");
    assert_ne!(holds("memory", "cuda"), holds("notes", "CUDA"), "it says why, if it has none: {ucx}");
    let text = towline(&["info"]).out;
    for list in ["devices", "memory", "notes"] {
        for item in ucx[list].as_array().unwrap() {
            assert!(text.contains(item.as_str().unwrap()), "{item}: {text}");
        }
    }
    assert!(text.contains(ucx["library"].as_str().unwrap()), "{text}");
}

#[test]
fn an_unanswered_query_of_ucx_is_reported() {
    if ready().is_none() {
        return;
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_towline"));
    let info = spawn(command.args(["info", "--json"]).env("UCX_TLS", "no_such_transport")).finish();
    info.exits_with(0);
    let ucx = of_ucx(&info);
    assert!(ucx["notes"][0].as_str().unwrap().contains("no context can be created"), "{ucx}");
    assert_eq!((&ucx["state"], &ucx["devices"]), (&"ready".into(), &Value::Array(Vec::new())), "{ucx}");
}

#[test]
fn a_setting_that_ucx_does_not_know_is_wrong_usage() {
    if ready().is_some() {
        bench("--transport ucx?NO_SUCH_SETTING=1").is_wrong_usage("has no setting NO_SUCH_SETTING");
    }
}

#[test]
fn without_ucx_the_reason_and_remedy_are_shown() {
    // The loader finds this library first.
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("libucp.so.0"), "this is no library").unwrap();
    let run = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_towline"));
        spawn(command.args(arguments).env("LD_LIBRARY_PATH", folder.path())).finish()
    };
    let remedy = "apt install libucx0";
    let refused = run(&["bench", "--transport", "ucx"]);
    refused.is_wrong_usage("--transport: ucx is not ready on this machine: ");
    assert!(
        refused.err.contains("libucp.so.0 cannot be loaded") && refused.err.contains(remedy),
        "{}",
        refused.err
    );
    assert_eq!(refused.err.matches(remedy).count(), 1, "{}", refused.err);
    let ucx = of_ucx(&run(&["info", "--json"]));
    assert_eq!(ucx["state"], "unavailable", "{ucx}");
    assert!(ucx["reason"].as_str().unwrap().contains("libucp.so.0") && ucx["version"].is_null(), "{ucx}");
    assert!(ucx["remedy"].as_str().unwrap().contains(remedy), "{ucx}");
}
