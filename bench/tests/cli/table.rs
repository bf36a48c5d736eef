//! The table of `towline bench`, and its remarks on the figures.

use std::fs;
use std::io::{BufRead, BufReader};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tempfile::TempDir;

use crate::bench::{bench, rows};
use crate::command::start;
use crate::interruptions::signal;
use crate::schema::assert_fits;

const ONE: &str = "--transport mem --pattern latency";

#[test]
fn every_document_names_the_processor_and_the_load_of_its_host() {
    let folder = TempDir::new().unwrap();
    let [json, html] = ["run.json", "run.html"].map(|name| folder.path().join(name));
    let run = bench(&format!("{ONE} --json-file {} --html {}", json.display(), html.display()));
    run.exits_with(0);
    let document: serde_json::Value = serde_json::from_slice(&fs::read(&json).unwrap()).unwrap();
    assert_fits(&document);
    let fingerprint = &document["fingerprint"];
    let cpu = fingerprint["cpu"].as_str().unwrap();
    let page = fs::read_to_string(&html).unwrap();
    for text in [&run.out, &page] {
        assert!(text.contains(cpu), "{cpu}: {text}");
        if let Some(vendor) = fingerprint["cpu_vendor"].as_str() {
            assert!(text.contains(vendor), "{vendor}: {text}");
        }
    }
    for at in ["before", "after"] {
        let load = &fingerprint["load"][at]["load_average"];
        assert_eq!(load.as_array().map(Vec::len), Some(3), "{fingerprint}");
    }
    // A warning is in every form of the output.
    for warning in document["warnings"].as_array().unwrap() {
        let warning = warning.as_str().unwrap();
        assert!(run.err.contains(warning) && run.out.contains(warning), "{warning}: {} {}", run.err, run.out);
        // A quote is escaped on the page.
        assert!(page.contains(&warning.replace('\'', "&#39;")), "{warning}: {page}");
    }
}

#[test]
fn a_run_announces_its_time_and_prints_rows_as_they_finish() {
    let line = "bench --transport mem,tcp --pattern latency --repeat 1 --duration 2 --warmup 0";
    let mut run = start(&line.split(' ').collect::<Vec<_>>());
    let mut errors = BufReader::new(run.0.stderr.take().unwrap()).lines().map(Result::unwrap);
    let announced = errors.find(|line| line.contains("2 cases")).unwrap();
    assert!(announced.contains("1 repeat each: about "), "{announced}");
    let row = errors.find(|line| line.contains("1/2 ")).unwrap();
    assert!(row.contains("1/2 mem latency 8 (adaptive): handed over, p50 ") && row.contains(" µs"), "{row}");
    // The other case takes two seconds more.
    assert!(run.0.try_wait().unwrap().is_none(), "the run has not ended");
    signal(run.id(), Signal::INT);
    let finished = run.finish();
    finished.exits_with(130);
    assert!(finished.out.contains("tcp.latency.8, adaptive: not measured: interrupted"), "{}", finished.out);
}

#[test]
fn a_run_without_options_ends_within_a_minute() {
    let begin = Instant::now();
    let run = start(&["bench", "--json"]).finish();
    let elapsed = begin.elapsed();
    assert!(elapsed < Duration::from_secs(60), "{elapsed:?}: {}", run.err);
    assert!(run.err.contains(" s, at most a minute"), "{}", run.err);
    let document = run.document();
    assert_fits(&document);
    // A host that is too slow for a case still has its row.
    let rows = document["results"].as_array().unwrap();
    let slow = rows.iter().filter(|row| !row["error"].is_null()).count();
    assert!(rows.iter().all(|row| row["error"].as_str().is_none_or(|why| why.starts_with("slow: "))));
    assert!(rows.len() >= 8 && rows.iter().all(|row| (row["repeats"] == 0) != row["error"].is_null()));
    run.exits_with(i32::from(slow > 0));
    assert_eq!(document["complete"], slow == 0);
}

#[test]
fn the_table_has_a_headline_and_a_legend() {
    let run = bench("--transport mem,tcp --pattern latency,bandwidth --size 64K");
    run.exits_with(0);
    let at = |what: &str| run.out.find(what).unwrap_or_else(|| panic!("{what}: {}", run.out));
    let parts = ["this machine gives", "\nmemory ", "\ntcp ", "\ntransport ", "\nGB/s: ", "\nceiling: "];
    assert!(parts.map(at).is_sorted(), "{}", run.out);
    let answer = run.out.lines().find(|line| line.starts_with("tcp ")).unwrap();
    assert!(answer.contains(" GB/s at 64K") && answer.contains(" µs at 64K"), "{answer}");
    // An absolute figure stands beside each share.
    let row = run.out.lines().find(|line| line.contains("bandwidth") && line.contains("socket ")).unwrap();
    let ceiling = row.split("socket ").nth(1).unwrap();
    assert!(ceiling.contains(" GB/s ") && ceiling.ends_with(" %"), "{row}");
}

#[test]
fn handed_over_messages_have_a_rate_only_with_read() {
    let line = "--transport mem,tcp --pattern bandwidth --size 1M";
    let handed_over = |options: &str| -> Vec<bool> {
        let rows = rows(&bench(&format!("{line} {options} --json")));
        rows.iter().map(|row| row["handed_over"].as_bool().unwrap()).collect()
    };
    assert_eq!((handed_over(""), handed_over("--read")), (vec![true, false], vec![false; 2]));
    let run = bench(line);
    let row = |transport| {
        let is_row = |line: &&str| line.starts_with(transport) && line.contains("bandwidth");
        run.out.lines().find(is_row).unwrap_or_else(|| panic!("{transport}: {}", run.out))
    };
    assert!(row("mem ").contains("handed over") && !row("mem ").contains('%'), "{}", run.out);
    assert!(!row("tcp ").contains("handed over"), "{}", run.out);
    let line = run.err.lines().find(|line| line.contains("mem bandwidth")).unwrap();
    assert!(line.contains("handed over, p50 "), "{line}");
}
