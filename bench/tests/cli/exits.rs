//! The exit codes and files of the command: files are written as a whole or not at all, and a failed write
//! causes no panic.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::command::{Finished, Running, start, towline};
use crate::interruptions::{TIMEOUT, children, signal};
use crate::schema::assert_fits;
use crate::signals::ending_signals;

const QUICK: [&str; 6] = ["--duration", "0.02", "--repeat", "1", "--warmup", "0"];

fn document(path: &Path) -> Value {
    let document = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    assert_fits(&document);
    document
}

#[test]
fn a_failed_case_is_a_marked_row_and_the_others_continue() {
    let folder = TempDir::new().unwrap();
    let [json, html, kept] = ["run.json", "run.html", "kept.json"].map(|name| folder.path().join(name));
    let files = [("--json-file", &json), ("--html", &html), ("--save-histograms", &kept)];
    let files = files.iter().flat_map(|(option, path)| [(*option).to_owned(), path.display().to_string()]);
    let line = ["bench", "--transport", "mem,tcp", "--pattern", "latency", "--json"].map(str::to_owned);
    let line: Vec<String> = line.into_iter().chain(files).chain(QUICK.map(str::to_owned)).collect();
    let words: Vec<&str> = line.iter().map(String::as_str).collect();
    let whole = towline(&words);
    whole.exits_with(0);
    assert_eq!(whole.document()["complete"], true);

    // The serving process of the second case is killed.
    let mut words = words;
    words.extend(["--assert", "mem.latency.8.p50_us>0"]);
    let at = words.iter().position(|word| *word == "0.02").unwrap();
    words[at] = "1";
    let bench = start(&words);
    let begin = Instant::now();
    let child = loop {
        match children(&bench).first() {
            Some(child) => break *child,
            None => assert!(begin.elapsed() < TIMEOUT, "no serving process"),
        }
        thread::sleep(Duration::from_millis(2));
    };
    signal(child, Signal::KILL);
    let finished = bench.finish();
    finished.exits_with(1);
    assert!(finished.err.contains("1 of 2 cases failed"), "{}", finished.err);
    assert!(finished.err.contains("holds: mem.latency.8.p50_us>0"), "{}", finished.err);
    for document in [finished.document(), document(&json), document(&kept)] {
        assert_eq!(document["complete"], false);
        let [mem, tcp] = &document["results"].as_array().unwrap()[..] else { panic!("{document}") };
        assert!(mem["error"].is_null() && mem["p50_us"].as_f64() > Some(0.0), "{mem}");
        let why = tcp["error"].as_str().unwrap();
        assert!(why.contains("signal: 9") && tcp["p50_us"].is_null() && tcp["samples"] == 0, "{tcp}");
    }
    assert!(fs::read_to_string(&html).unwrap().contains("This run is not complete"));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 3, "no temporary is left");
}

#[test]
fn an_interrupted_run_keeps_what_was_measured_in_whole_files() {
    for (by, code) in ending_signals() {
        let folder = TempDir::new().unwrap();
        let json = folder.path().join("run.json");
        fs::write(&json, "what was there").unwrap();
        let name = json.display().to_string();
        let line = ["bench", "--transport", "mem,tcp", "--pattern", "latency", "--json-file", &name];
        let bench = start(&[&line[..], &["--repeat", "1", "--duration", "1"]].concat());
        // The second case is running: the first is done.
        let begin = Instant::now();
        while children(&bench).is_empty() {
            assert!(begin.elapsed() < TIMEOUT, "no serving process");
            thread::sleep(Duration::from_millis(2));
        }
        assert_eq!(fs::read_to_string(&json).unwrap(), "what was there", "until there is something better");
        signal(bench.id(), by);
        bench.finish().exits_with(code);
        let document = document(&json);
        assert_eq!(document["complete"], false);
        let [mem, tcp] = &document["results"].as_array().unwrap()[..] else { panic!("{document}") };
        assert!(mem["p50_us"].as_f64() > Some(0.0), "{mem}");
        assert_eq!(tcp["error"], "interrupted", "{tcp}");
    }
}

#[test]
fn a_closed_pipe_or_a_full_disk_causes_no_panic() {
    let lines: [&[&str]; 6] = [
        &["info"],
        &["--help"],
        &["bench", "--size", "8x"],
        &["bench", "--pattern", "latency", "--connect", "tcp://127.0.0.1:1"],
        &["explain", "tcp://127.0.0.1:1"],
        &["top", "tcp://127.0.0.1:1", "--once"],
    ];
    let assertions =
        ["bench", "--transport", "mem", "--pattern", "latency", "--assert", "mem.latency.8.p50_us>0"];
    let judged = [&assertions[..], &QUICK[..]].concat();
    for line in lines.into_iter().chain([&judged[..]]) {
        let expected = towline(line).code;
        for gone in [true, false] {
            let closed = || {
                if gone {
                    let (reader, writer) = std::io::pipe().unwrap();
                    drop(reader);
                    Stdio::from(writer)
                } else {
                    File::options().write(true).open("/dev/full").unwrap().into()
                }
            };
            for both in [true, false] {
                let mut command = Command::new(env!("CARGO_BIN_EXE_towline"));
                command.args(line).stdin(Stdio::null()).stderr(closed());
                command.stdout(if both { closed() } else { Stdio::null() });
                let code = Running(command.spawn().unwrap()).finish().code;
                // A result that could not be written fails the run.
                let allowed = [expected, if both && !gone { Some(1) } else { expected }];
                assert!(
                    allowed.contains(&code),
                    "{line:?}, gone {gone}, both {both}: {code:?} and not {expected:?}"
                );
            }
        }
    }
}

/// A document of an older run.
const OLDER: &str = r#"{"schema": 1, "complete": true}"#;

/// Checks that the document reports the error of stderr.
#[track_caller]
fn assert_failed(path: &Path, finished: &Finished) {
    let document: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    assert_eq!(document["complete"], false, "{document}");
    let error = document["error"].as_str().unwrap();
    assert!(!error.is_empty() && finished.err.contains(error), "{document}\n{}", finished.err);
}

#[test]
fn a_failed_run_leaves_no_document_of_an_older_one() {
    let folder = TempDir::new().unwrap();
    let json = folder.path().join("run.json");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = format!("tcp://{}", taken.local_addr().unwrap());
    let lines: [(&[&str], i32); 8] = [
        (&["explain", "tcp://127.0.0.1:1"], 1),
        (&["explain", "mem://x"], 2),
        (&["explain", "tcp://127.0.0.1:1", "--token-file", "/nonexistent"], 2),
        (&["top", "tcp://127.0.0.1:1", "--once"], 1),
        (&["serve", &taken], 2),
        (&["scheduler", &taken], 2),
        (&["bench", "--pattern", "latency", "--connect", "tcp://127.0.0.1:1"], 1),
        (&["bench", "--transport", "ib"], 2),
    ];
    for (line, code) in lines {
        for older in [Some(OLDER), None] {
            match older {
                Some(older) => fs::write(&json, older).unwrap(),
                None => fs::remove_file(&json).unwrap(),
            }
            let finished = towline(&[line, &["--json-file", &json.display().to_string()]].concat());
            finished.exits_with(code);
            assert_failed(&json, &finished);
        }
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary is left");
}

#[test]
fn bench_without_a_result_leaves_no_older_file() {
    let folder = TempDir::new().unwrap();
    let [json, html, kept] = ["run.json", "run.html", "kept.json"].map(|name| folder.path().join(name));
    let [json_name, html_name, kept_name] = [&json, &html, &kept].map(|path| path.display().to_string());
    let line = ["bench", "--transport", "ib"];
    let files = ["--json-file", &json_name, "--html", &html_name, "--save-histograms", &kept_name];
    let failed = |more: &[&str]| {
        [&json, &html, &kept].iter().for_each(|path| fs::write(path, OLDER).unwrap());
        towline(&[&line[..], &files, more].concat())
    };
    let finished = failed(&[]);
    finished.exits_with(2);
    assert_failed(&json, &finished);
    assert_failed(&kept, &finished);
    [&json, &kept].iter().for_each(|path| assert_eq!(document(path)["complete"], false));
    assert!(!html.exists(), "a page of an older run");
    // The file of `--compare` is no result of this run.
    let finished = failed(&["--compare", &kept_name]);
    assert_failed(&json, &finished);
    assert_eq!(fs::read_to_string(&kept).unwrap(), OLDER);
}

#[test]
fn an_interruption_fails_the_run_unless_the_document_was_written() {
    let folder = TempDir::new().unwrap();
    let json = folder.path().join("run.json");
    let name = json.display().to_string();
    fs::write(&json, OLDER).unwrap();
    let mut serve = start(&["serve", "tcp://127.0.0.1:0", "--json-file", &name]);
    let (address, _rest) = serve.first_line();
    signal(serve.id(), Signal::TERM);
    serve.finish().exits_with(143);
    let document: Value = serde_json::from_slice(&fs::read(&json).unwrap()).unwrap();
    assert_eq!((&document["complete"], &document["address"]), (&true.into(), &address.into()));

    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let explain =
        start(&["explain", &format!("tcp://{}", silent.local_addr().unwrap()), "--json-file", &name]);
    // The connection has started.
    let _held = silent.accept().unwrap();
    signal(explain.id(), Signal::TERM);
    let finished = explain.finish();
    finished.exits_with(143);
    assert_failed(&json, &finished);
}
