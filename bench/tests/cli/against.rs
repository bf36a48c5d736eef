//! `--against`: every tool runs once, and its entry reports the run.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use towline_tests::need;

use crate::bench::{bench, rows};
use crate::command::spawn;

/// Returns true if `tool` is installed; otherwise the test skips, or fails if the tool is required.
pub(crate) fn there(tool: &str) -> bool {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    if std::env::split_paths(&folders).any(|folder| folder.join(tool).is_file()) {
        return true;
    }
    needs(tool, "it is not on the search path")
}

/// Skips a test that needs `tool`, or fails if it is required.
pub(crate) fn needs(tool: &str, why: &str) -> bool {
    need::skipped(tool, why);
    false
}

/// Returns the row and the entry of the only tool.
fn entry(line: &str) -> (Value, Value) {
    let mut rows = rows(&bench(&format!("--transport tcp --wait sleep --json {line}")));
    assert_eq!(rows.len(), 1);
    let row = rows.remove(0);
    let entries = row["against"].as_array().unwrap();
    assert_eq!(entries.len(), 1, "{row}");
    (row.clone(), entries[0].clone())
}

/// Checks the entry of a tool that ran.
#[track_caller]
pub(crate) fn ran(row: &Value, entry: &Value, tool: &str, completion: &str, figure: &str) {
    assert_eq!((&entry["tool"], &entry["completion"]), (&tool.into(), &completion.into()), "{entry}");
    assert!(entry["version"].as_str().unwrap().starts_with(|c: char| c.is_ascii_digit()), "{entry}");
    let size = row["size_bytes"].to_string();
    let command = entry["command"].as_str().unwrap();
    assert!(command.contains(tool) && command.contains(&size), "{command}");
    assert!(!entry["note"].as_str().unwrap().is_empty(), "{entry}");
    let other = if figure == "gb_per_s" { "p50_us" } else { "gb_per_s" };
    assert!(entry[other].is_null(), "{entry}");
    let (ours, theirs) = (row[figure].as_f64().unwrap(), entry[figure].as_f64().unwrap());
    let ratio = entry["ratio"].as_f64().unwrap();
    assert!(theirs > 0.0 && (ratio / (ours / theirs) - 1.0).abs() < 1e-3, "{ours} {entry}");
}

#[test]
fn iperf3_streams_beside_ours_with_its_cpu_time() {
    if !there("iperf3") {
        return;
    }
    let (row, entry) = entry("--pattern bandwidth --size 128K --against iperf3");
    ran(&row, &entry, "iperf3", "receiver", "gb_per_s");
    let cpu = &entry["cpu_s_per_gb"];
    assert!(cpu["send"].as_f64().unwrap() >= 0.0 && cpu["recv"].as_f64().unwrap() >= 0.0, "{entry}");
}

#[test]
fn ucx_perftest_runs_beside_a_latency_and_a_bandwidth() {
    if !there("ucx_perftest") {
        return;
    }
    let (row, entry_of_latency) = entry("--pattern latency --size 64 --against ucx_perftest");
    ran(&row, &entry_of_latency, "ucx_perftest", "receiver", "p50_us");
    let (row, entry) = entry("--pattern bandwidth --size 128K --against ucx_perftest");
    ran(&row, &entry, "ucx_perftest", "sender", "gb_per_s");
    assert!(entry["command"].as_str().unwrap().starts_with("UCX_TLS=tcp UCX_NET_DEVICES=lo "), "{entry}");
}

#[test]
fn fi_pingpong_runs_beside_a_latency() {
    if !there("fi_pingpong") {
        return;
    }
    let (row, entry) = entry("--pattern latency --size 64 --against fi_pingpong");
    ran(&row, &entry, "fi_pingpong", "receiver", "p50_us");
}

#[test]
fn iceoryx2_runs_beside_a_latency_and_leaves_nothing() {
    let folders = Path::new(env!("CARGO_BIN_EXE_towline")).ancestors();
    let built = |folder: &Path| folder.join("compare/release/iceoryx2_pingpong").is_file();
    if !folders.into_iter().any(built) && !needs("iceoryx2", "cargo xtask install builds it") {
        return;
    }
    // The files that a killed run leaves.
    let mut dead = Command::new("true").spawn().unwrap();
    dead.wait().unwrap();
    let [of_killed, temporary] = [Path::new("/dev/shm"), &std::env::temp_dir()]
        .map(|folder| folder.join(format!("towline_iceoryx2_{}_left", dead.id())));
    fs::write(&of_killed, "").unwrap();
    fs::create_dir(&temporary).unwrap();
    let (row, entry) = entry("--pattern latency --size 64 --against iceoryx2");
    ran(&row, &entry, "iceoryx2", "receiver", "p50_us");
    let command = entry["command"].as_str().unwrap();
    assert!(command.contains("iceoryx2_pingpong serve ") && command.contains("ping "), "{command}");
    assert!(!of_killed.exists() && !temporary.exists());
    // Other runs may be active, each under its own name.
    for folder in [of_killed.parent().unwrap(), temporary.parent().unwrap()] {
        for left in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name()) {
            let owner =
                left.to_str().and_then(|left| left.strip_prefix("towline_iceoryx2_")?.split_once('_'));
            let dead = owner.is_some_and(|(owner, _)| !Path::new("/proc").join(owner).exists());
            assert!(!dead, "{} is left in {}", left.display(), folder.display());
        }
    }
}

#[test]
fn dask_shuffles_beside_ours() {
    let folders = Path::new(env!("CARGO_BIN_EXE_towline")).ancestors();
    let built = |folder: &Path| folder.join("compare/dask/bin/dask_shuffle").is_file();
    if !folders.into_iter().any(built) && !needs("dask", "cargo xtask install has it") {
        return;
    }
    let (row, entry) = entry("--pattern shuffle --size 4M --window 4 --against dask");
    assert_eq!((&entry["tool"], &entry["completion"]), (&"dask".into(), &"receiver".into()), "{entry}");
    assert!(entry["command"].as_str().unwrap().contains(" 4 262144 "), "as many bytes: {entry}");
    let (ours, theirs) = (row["gb_per_s"].as_f64().unwrap(), entry["gb_per_s"].as_f64().unwrap());
    assert!(
        theirs > 0.0 && (entry["ratio"].as_f64().unwrap() / (ours / theirs) - 1.0).abs() < 1e-3,
        "{entry}"
    );
}

#[test]
fn an_unsuitable_tool_has_null_figures_and_a_reason() {
    if !there("iperf3") {
        return;
    }
    let rows = rows(&bench("--transport mem --pattern latency --size 8 --against iperf3,iperf3 --json"));
    let entry = &rows[0]["against"][0];
    for key in ["command", "completion", "gb_per_s", "p50_us", "cpu_s_per_gb", "ratio"] {
        assert!(entry[key].is_null(), "{key}: {entry}");
    }
    assert!(entry["note"].as_str().unwrap().contains("ours over mem"), "{entry}");
    assert_eq!(rows[0]["against"].as_array().unwrap().len(), 1, "named twice, run once");
    let asked =
        "--transport tcp --pattern latency --against iperf3 --assert tcp.latency.8.against.iperf3.ratio<9";
    bench(asked).is_wrong_usage("iperf3 does not apply: it only streams");
}

#[test]
fn the_table_and_assertions_have_the_ratio() {
    if !there("iperf3") {
        return;
    }
    let line = "--transport tcp --pattern bandwidth --size 128K --against iperf3";
    let run = bench(&format!("{line} --assert tcp.bandwidth.128K.against.iperf3.ratio>0"));
    run.exits_with(0);
    assert!(run.err.contains("holds: tcp.bandwidth.128K.against.iperf3.ratio>0"), "{}", run.err);
    assert!(run.out.contains("ours over") && run.out.contains("iperf3 "), "{}", run.out);
}

#[test]
fn a_missing_tool_is_refused_with_its_install_command() {
    // In another folder than the build, so that it finds no tool beside itself.
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("towline");
    fs::copy(env!("CARGO_BIN_EXE_towline"), &program).unwrap();
    for (tool, says) in [
        ("iperf3", "it is not on the search path: apt install iperf3"),
        ("ucx_perftest", "it is not on the search path: apt install ucx-utils"),
        ("fi_pingpong", "it is not on the search path: apt install libfabric-bin"),
        ("iceoryx2", "iceoryx2_pingpong is neither built nor on the search path: cargo xtask install"),
        ("dask", "dask_shuffle is neither installed nor on the search path: cargo xtask install"),
    ] {
        let mut command = Command::new(&program);
        command.args(["bench", "--transport", "mem", "--against", tool]).env("PATH", "");
        spawn(&mut command).finish().is_wrong_usage(&format!("--against {tool}: {says}"));
    }
}
