//! The measurements and reports of `towline bench`.

use serde_json::Value;

use crate::command::{Finished, start, towline};
use crate::schema::assert_fits;
use crate::shm::best;

pub(crate) const SHORT: [&str; 6] = ["--duration", "0.02", "--repeat", "1", "--warmup", "0.01"];

pub(crate) fn bench(line: &str) -> Finished {
    let mut words = vec!["bench"];
    words.extend(line.split_whitespace());
    words.extend(SHORT);
    towline(&words)
}

/// Returns the rows of a document, which must match its schema.
#[track_caller]
pub(crate) fn rows(finished: &Finished) -> Vec<Value> {
    finished.exits_with(0);
    let document = finished.document();
    assert_fits(&document);
    document["results"].as_array().unwrap().clone()
}

/// Checks the rows of every pattern.
#[track_caller]
pub(crate) fn measures_every_pattern(transport: &str) {
    let line = format!(
        "--transport {transport} --pattern latency,bandwidth,bidirectional,rate,get,put,connect,incast,alltoall \
         --size 8,100000 --verify --json"
    );
    let rows = rows(&bench(&line));
    assert_eq!(rows.len(), 18);
    let (name, options) = transport.split_once('?').unwrap_or((transport, ""));
    for row in rows {
        assert_eq!(row["transport"], name);
        assert_eq!(row["options"]["tls"].is_string(), options == "tls=on", "{row}");
        assert_eq!(row["verified"], true);
        assert!(row["samples"].as_u64().unwrap() > 0, "{row}");
        assert!(row["p50_us"].as_f64().unwrap() > 0.0, "{row}");
        let pattern = row["pattern"].as_str().unwrap();
        assert_eq!(row["gb_per_s"].is_null(), ["latency", "connect"].contains(&pattern), "{row}");
        assert_eq!(row["messages_per_s"].is_null(), pattern == "latency", "{row}");
        let of_many = ["incast", "alltoall"].contains(&pattern);
        assert_eq!(row["cold_us"].is_null(), of_many || pattern == "connect", "{row}");
        assert_eq!(row["fairness"].is_null(), !of_many, "{row}");
        let kinds = ceilings(&row);
        let socket = ["tcp", "ucx"].contains(&row["path"].as_str().unwrap())
            && !["connect", "bidirectional", "alltoall"].contains(&pattern);
        assert_eq!(kinds.contains(&"socket"), socket, "{row}");
        let tls_socket = socket && options == "tls=on" && pattern != "incast";
        assert_eq!(kinds.contains(&"tls_socket"), tls_socket, "{row}");
        assert_eq!(kinds.contains(&"memcpy"), ["bandwidth", "get", "put"].contains(&pattern), "{row}");
    }
}

/// Returns the kinds of the ceilings beside a row.
pub(crate) fn ceilings(row: &Value) -> Vec<&str> {
    let ceilings = row["ceilings"].as_array().unwrap();
    ceilings.iter().filter_map(|ceiling| ceiling["kind"].as_str()).collect()
}

#[test]
fn a_run_without_warmup_works() {
    let patterns = "latency,bandwidth,bidirectional,rate,get,put,connect,incast,alltoall";
    let line = ["bench", "--transport", "tcp", "--pattern", patterns, "--size", "1000", "--json"];
    let rows =
        rows(&towline(&[&line[..], &["--duration", "0.02", "--repeat", "1", "--warmup", "0"]].concat()));
    assert_eq!(rows.len(), 9);
    assert!(rows.iter().all(|row| row["samples"].as_u64() > Some(0)), "{rows:#?}");
}

#[test]
fn mem_is_measured_within_one_process() {
    measures_every_pattern("mem");
}

#[test]
fn tcp_is_measured_between_two_processes() {
    measures_every_pattern("tcp");
}

#[test]
fn tls_is_measured_between_two_processes_beside_a_bare_tls_socket() {
    measures_every_pattern("tcp?tls=on");
}

#[test]
fn every_pattern_runs_over_several_streams() {
    let line = "--transport tcp --streams 3 --pattern latency,bandwidth,bidirectional,rate,get,put,connect,incast,alltoall \
                --size 100000 --verify --json --assert tcp.bandwidth.100000[streams=3].gb_per_s>0";
    let rows = rows(&bench(line));
    assert_eq!(rows.len(), 9);
    for row in rows {
        assert_eq!((&row["streams"], &row["options"]["streams"]), (&3.into(), &"3".into()), "{row}");
        assert!(row["samples"].as_u64().unwrap() > 0, "{row}");
    }
}

#[test]
fn a_sleeping_end_is_compared_with_a_blocking_socket() {
    let rows =
        rows(&bench("--transport tcp --pattern latency,bandwidth --size 64K --wait sleep,adaptive --json"));
    assert_eq!(rows.len(), 4);
    for row in rows {
        let ceilings = ceilings(&row);
        assert_eq!(ceilings.contains(&"blocking_socket"), row["wait"] == "sleep", "{row}");
        assert!(ceilings.contains(&"socket"), "{row}");
    }
}

#[test]
fn auto_reports_the_path() {
    let rows = rows(&bench("--transport auto --pattern latency --json"));
    assert_eq!((&rows[0]["transport"], &rows[0]["processes"]), (&"auto".into(), &2.into()));
    assert_eq!(rows[0]["path"], best().as_str());
}

#[test]
fn each_wait_is_a_row() {
    let rows = rows(&bench(
        "--transport mem,tcp --pattern bandwidth --size 64K --frames 3 --wait adaptive,sleep --json",
    ));
    let modes: Vec<(&str, &str)> =
        rows.iter().map(|row| (row["transport"].as_str().unwrap(), row["wait"].as_str().unwrap())).collect();
    assert_eq!(modes, [("mem", "adaptive"), ("mem", "sleep"), ("tcp", "adaptive"), ("tcp", "sleep")]);
    assert!(rows.iter().all(|row| row["frames"] == 3 && row["window"] == 16));
}

#[test]
fn messages_from_one_buffer_arrive_and_the_row_says_so() {
    let line =
        "--pattern bandwidth,put,get,bidirectional --size 100000 --window 4 --buffers 1 --verify --json";
    let rows = rows(&bench(&format!("--transport mem,tcp {line}")));
    assert_eq!(rows.len(), 8);
    assert!(rows.iter().all(|row| row["buffers"] == 1 && row["window"] == 4 && row["verified"] == true));
}

#[test]
fn a_row_says_whether_the_receiver_reads() {
    let line = "--transport mem,tcp --pattern latency,bandwidth,bidirectional,rate,get,put,incast --size 100000 --read --json";
    let rows =
        rows(&bench(&format!("{line} --assert mem.bandwidth.100000[read=true].ceiling.memcpy.share>0")));
    assert_eq!(rows.len(), 14);
    for row in rows {
        assert_eq!(
            (&row["read"], &row["verified"]),
            (&(row["pattern"] != "put").into(), &false.into()),
            "{row}"
        );
        assert!(row["samples"].as_u64().unwrap() > 0, "{row}");
    }
}

#[test]
fn without_json_it_is_a_table() {
    let table = bench("--transport mem --pattern latency");
    table.exits_with(0);
    assert!(table.out.contains("transport") && table.out.contains("latency"), "{}", table.out);
}

#[test]
fn an_assertion_decides_the_exit_code() {
    let line = "--transport mem --pattern bandwidth --size 64K --assert mem.bandwidth.64K.gb_per_s";
    let holds = bench(&format!("{line}>0"));
    holds.exits_with(0);
    assert!(holds.err.contains("holds: mem.bandwidth.64K.gb_per_s>0"), "{}", holds.err);
    let broken = bench(&format!("{line}>1e9"));
    broken.exits_with(1);
    assert!(
        broken.err.contains("does not hold: mem.bandwidth.64K.gb_per_s>1e9: gb_per_s is"),
        "{}",
        broken.err
    );
    assert!(broken.out.contains("bandwidth"), "the result is printed all the same: {}", broken.out);
}

#[test]
fn a_running_serving_side_is_measured() {
    let mut serve = start(&["serve", "towline://127.0.0.1:0"]);
    let (address, _rest) = serve.first_line();
    assert!(address.starts_with("towline://127.0.0.1:"), "{address}");

    let best = best();
    let rows = rows(&bench(&format!("--connect {address} --pattern latency,put --size 4K --json")));
    assert!(rows.iter().all(|row| row["transport"] == "auto" && row["path"] == best.as_str()));
}

#[test]
fn a_peer_without_the_token_is_refused() {
    let file = std::env::temp_dir().join(format!("towline-token-{}", std::process::id()));
    std::fs::write(&file, "a secret of the tests").unwrap();
    let file_name = file.to_string_lossy().into_owned();
    let mut serve = start(&["serve", "tcp://127.0.0.1:0", "--token-file", &file_name]);
    let (address, _rest) = serve.first_line();
    let line = format!("--connect {address} --pattern latency --json");
    let unauthenticated = bench(&line);
    unauthenticated.exits_with(1);
    assert!(unauthenticated.err.contains("unauthenticated"), "{}", unauthenticated.err);
    rows(&bench(&format!("{line} --token-file {file_name}")));
    std::fs::remove_file(&file).unwrap();
}

#[test]
fn a_run_without_a_peer_fails() {
    for line in ["explain tcp://127.0.0.1:1", "bench --pattern latency --connect tcp://127.0.0.1:1"] {
        let words: Vec<&str> = line.split_whitespace().collect();
        let finished = towline(&words);
        finished.exits_with(1);
        assert!(finished.err.contains("refused: no listener at that address"), "{}", finished.err);
    }
}
