//! `--rate`: messages leave by a schedule, and their times count from their due times.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use rustix::process::Signal;

use crate::bench::{bench, rows};
use crate::command::{start, towline};
use crate::interruptions::signal;

/// How long the far end is stopped, and how long it then runs.
const STILL: Duration = Duration::from_millis(200);
const RUNS: Duration = Duration::from_millis(400);

/// Returns the result of `work` while process `id` is stopped from time to time.
fn beside_a_halting<T>(id: u32, work: impl FnOnce() -> T) -> T {
    let (done, ended) = mpsc::channel::<()>();
    thread::scope(|scope| {
        scope.spawn(move || {
            while ended.recv_timeout(RUNS) == Err(mpsc::RecvTimeoutError::Timeout) {
                signal(id, Signal::STOP);
                thread::sleep(STILL);
                signal(id, Signal::CONT);
            }
        });
        // Dropped when `work` ends in any way.
        let _done = done;
        work()
    })
}

#[test]
fn open_loop_times_include_a_stall_of_the_peer() {
    let mut serve = start(&["serve", "tcp://127.0.0.1:0"]);
    let (address, _rest) = serve.first_line();
    let line =
        format!("bench --connect {address} --pattern latency --duration 1 --repeat 1 --json --rate 1000");
    let words: Vec<&str> = line.split(' ').collect();
    let rows = rows(&beside_a_halting(serve.id(), || towline(&words)));
    let [row] = &rows[..] else { panic!("{rows:?}") };
    // A second contains a whole stop. Half of the messages due in it wait for at least half of it: a tenth of
    // all.
    assert!(row["p99_us"].as_f64().unwrap() >= 100_000.0, "{row}");
    let samples = row["samples"].as_u64().unwrap();
    assert!((900..=1000).contains(&samples), "{row}");
}

#[test]
fn a_row_of_an_open_loop_has_the_rate_and_a_note() {
    for transport in ["mem", "tcp"] {
        for wait in ["spin", "adaptive", "sleep"] {
            let line = format!(
                "--transport {transport} --pattern latency,bandwidth,rate --size 8,100000 --frames 2 --verify \
                 --wait {wait} --rate 500 --json --assert {transport}.rate.8[rate=500].samples>0"
            );
            let rows = rows(&bench(&line));
            assert_eq!(rows.len(), 6);
            for row in rows {
                assert_eq!((&row["rate"], &row["verified"]), (&500.into(), &true.into()), "{row}");
                // 500 a second in a fiftieth of a second.
                assert!((1..=10).contains(&row["samples"].as_u64().unwrap()), "{row}");
                let (reached, p50) =
                    (row["messages_per_s"].as_f64().unwrap(), row["p50_us"].as_f64().unwrap());
                assert!(reached > 0.0 && reached <= 500.0 && p50 > 0.0, "{row}");
                let (latency, note) = (row["pattern"] == "latency", row["note"].as_str().unwrap_or_default());
                assert_eq!(note.contains("whole round trips"), latency, "{row}");
                assert_eq!(note.contains(" of 500 messages a second"), reached < 475.0, "{row}");
                assert_eq!(row["gb_per_s"].is_null(), latency, "{row}");
                let ceilings = row["ceilings"].as_array().unwrap();
                let socket = ceilings.iter().find(|ceiling| ceiling["kind"] == "socket");
                assert_eq!(socket.is_some(), transport == "tcp", "{row}");
            }
        }
    }
}

#[test]
fn an_unreachable_rate_ends_and_is_reported() {
    let run = bench("--transport tcp --pattern rate --size 64K --rate 4000000000");
    run.exits_with(0);
    assert!(run.out.contains("rate at 4000000000/s"), "{}", run.out);
    assert!(run.out.contains("tcp.rate.64K, adaptive: only "), "{}", run.out);
    assert!(run.out.contains("of 4000000000 messages a second"), "{}", run.out);
}
