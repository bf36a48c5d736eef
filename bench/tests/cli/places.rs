//! The places of the bytes at both ends, as rows report them.

use serde_json::Value;

use crate::bench::{bench, rows};
use crate::command::start;

/// Runs every pattern but `connect` from one place to another, with each byte checked.
#[track_caller]
fn moved(transport: &str, places: &str) -> Vec<Value> {
    let line = format!(
        "--transport {transport} --pattern latency,bandwidth,bidirectional,rate,get,put,incast,alltoall --size 8,100000 \
         --workers 2 --frames 2 {places} --verify --json"
    );
    let rows = rows(&bench(&line));
    assert_eq!(rows.len(), 16);
    rows
}

fn ends_of(row: &Value) -> (&str, &str) {
    (row["from"].as_str().unwrap(), row["to"].as_str().unwrap())
}

#[test]
fn bytes_move_between_all_places() {
    for transport in ["mem", "tcp", "shm"] {
        for (places, ends) in [
            ("--place arena", ("arena", "arena")),
            ("--from arena", ("arena", "host")),
            ("--to arena", ("host", "arena")),
            ("--from host --to host", ("host", "host")),
        ] {
            for row in moved(transport, places) {
                assert_eq!(ends_of(&row), ends, "{row}");
                assert!(row["samples"].as_u64().unwrap() > 0, "{row}");
            }
        }
    }
}

#[test]
fn the_row_and_the_table_name_the_places() {
    let line = "--transport mem --pattern latency,connect --size 64K --place arena";
    let json = bench(&format!("{line} --json --assert mem.latency.64K[from=arena,to=arena].p50_us>0"));
    let rows = rows(&json);
    assert_eq!(
        (ends_of(&rows[0]), ends_of(&rows[1])),
        (("arena", "arena"), ("host", "host")),
        "connect has no places"
    );
    let table = bench(line);
    table.exits_with(0);
    assert!(table.out.contains("latency in arena"), "{}", table.out);
}

#[test]
fn handed_over_memory_is_not_copied() {
    for transport in ["mem", "shm"] {
        let line = format!(
            "--transport {transport} --pattern latency,bandwidth,incast --size 4K,4M --place arena --json"
        );
        for row in rows(&bench(&line)) {
            // Announcements and protocol bytes are copied if they go through a ring.
            let words = 512.0 / row["size_bytes"].as_f64().unwrap();
            assert!(row["copies"].as_f64().unwrap() <= words, "{row}");
        }
    }
}

#[test]
fn untrusted_memory_is_copied_and_so_is_another_place() {
    let line = "--pattern bandwidth --size 4M --json";
    for row in rows(&bench(&format!("--transport shm --from arena {line}"))) {
        assert!((0.9..1.1).contains(&row["copies"].as_f64().unwrap()), "it stays nowhere but in host: {row}");
    }
    for (trust, handed_over) in [("", false), ("--trust-user", true)] {
        let words: Vec<&str> =
            ["serve", "shm://127.0.0.1:0"].into_iter().chain(trust.split_whitespace()).collect();
        let mut serve = start(&words);
        let (address, _rest) = serve.first_line();
        for row in rows(&bench(&format!("--connect {address} --place arena {trust} {line}"))) {
            assert_eq!(ends_of(&row), ("arena", "arena"), "{row}");
            assert_eq!(row["copies"].as_f64().unwrap() < 0.01, handed_over, "{row}");
        }
    }
}

#[test]
fn a_running_serving_side_uses_the_place() {
    let mut serve = start(&["serve", "tcp://127.0.0.1:0"]);
    let (address, _rest) = serve.first_line();
    let line = format!(
        "--connect {address} --pattern latency,bandwidth,get,put,alltoall --size 64K --place arena --verify --json"
    );
    for row in rows(&bench(&line)) {
        assert_eq!(ends_of(&row), ("arena", "arena"), "{row}");
    }
}
