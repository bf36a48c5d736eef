//! How the command ends, and what it leaves: files whole or not at all, no panic where nobody reads, signals of a container.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::against::needs;
use crate::command::{Running, start, towline};
use crate::death::{SOON, children, signal};
use crate::schema::assert_fits;

const QUICK: [&str; 6] = ["--duration", "0.02", "--repeat", "1", "--warmup", "0"];

fn document(path: &Path) -> Value {
    let document = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    assert_fits(&document);
    document
}

#[test]
fn a_case_that_fails_is_a_marked_row_and_the_rest_goes_on() {
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

    // The serving process of the second case dies.
    let mut words = words;
    words.extend(["--assert", "mem.latency.8.p50_us>0"]);
    let at = words.iter().position(|word| *word == "0.02").unwrap();
    words[at] = "1";
    let bench = start(&words);
    let begin = Instant::now();
    let child = loop {
        match children(&bench).first() {
            Some(child) => break *child,
            None => assert!(begin.elapsed() < SOON, "no serving process"),
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
    for by in [Signal::INT, Signal::TERM] {
        let folder = TempDir::new().unwrap();
        let json = folder.path().join("run.json");
        fs::write(&json, "what was there").unwrap();
        let name = json.display().to_string();
        let line = ["bench", "--transport", "mem,tcp", "--pattern", "latency", "--json-file", &name];
        let bench = start(&[&line[..], &["--repeat", "1", "--duration", "1"]].concat());
        // The second case is under way: the first is done.
        let begin = Instant::now();
        while children(&bench).is_empty() {
            assert!(begin.elapsed() < SOON, "no serving process");
            thread::sleep(Duration::from_millis(2));
        }
        assert_eq!(fs::read_to_string(&json).unwrap(), "what was there", "until there is something better");
        signal(bench.id(), by);
        bench.finish().exits_with(130);
        let document = document(&json);
        assert_eq!(document["complete"], false);
        let [mem, tcp] = &document["results"].as_array().unwrap()[..] else { panic!("{document}") };
        assert!(mem["p50_us"].as_f64() > Some(0.0), "{mem}");
        assert_eq!(tcp["error"], "interrupted", "{tcp}");
    }
}

#[test]
fn a_reader_that_is_gone_or_a_full_disk_is_no_panic() {
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
            let nobody = || {
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
                command.args(line).stdin(Stdio::null()).stderr(nobody());
                command.stdout(if both { nobody() } else { Stdio::null() });
                let code = Running(command.spawn().unwrap()).finish().code;
                // A result that could not be written is a failed run.
                let allowed = [expected, if both && !gone { Some(1) } else { expected }];
                assert!(
                    allowed.contains(&code),
                    "{line:?}, gone {gone}, both {both}: {code:?} and not {expected:?}"
                );
            }
        }
    }
}

#[test]
fn a_command_that_runs_until_told_ends_well_when_terminated() {
    let mut serve = start(&["serve", "tcp://127.0.0.1:0"]);
    let (address, _rest) = serve.first_line();
    signal(serve.id(), Signal::TERM);
    serve.finish().exits_with(0);
    assert!(address.starts_with("tcp://"), "{address}");
}

/// As in a container: nothing ends the first process of a PID namespace by default.
#[test]
fn the_first_process_of_a_namespace_ends_when_terminated() {
    let mut scheduler = start(&["scheduler", "tcp://127.0.0.1:0"]);
    let (address, _rest) = scheduler.first_line();
    for line in [&["serve", "tcp://127.0.0.1:0"][..], &["top", &address, "--interval", "0.05"]] {
        let mut command = Command::new("unshare");
        command.args(["--pid", "--fork", "--kill-child", env!("CARGO_BIN_EXE_towline")]).args(line);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut outer = Running(match command.spawn() {
            Ok(child) => child,
            Err(error) => {
                needs("netns", &format!("unshare: {error}"));
                return;
            }
        });
        let mut out = BufReader::new(outer.0.stdout.take().unwrap());
        let mut first = String::new();
        if out.read_line(&mut first).unwrap() == 0 {
            let said = outer.finish().err;
            needs("netns", &format!("unshare --pid: {said}"));
            return;
        }
        let [inner] = children(&outer)[..] else { panic!("unshare has one child") };
        signal(inner, Signal::TERM);
        outer.finish().exits_with(0);
    }
}
