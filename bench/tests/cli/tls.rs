//! The command over TLS: which peers it accepts, what it refuses, and its ceilings.

use std::io::{BufRead, BufReader};
use std::process::Command;

use rustix::process::Signal;
use tempfile::TempDir;
use towline_tests::certificates::{Authority, Kind};

use crate::bench::{bench, ceilings, rows};
use crate::command::{Running, spawn, start, towline};
use crate::interruptions::signal;

/// The files of two ends signed by one authority, and those of another authority.
#[derive(Debug)]
struct Files(TempDir);

impl Files {
    fn new() -> Self {
        let files = Self(TempDir::new().unwrap());
        for (name, authority, seed) in [("ours", Authority::new(1), 2), ("untrusted", Authority::new(9), 3)] {
            let certificate = authority.sign(&["127.0.0.1"], seed, Kind::Usual);
            files.write(&format!("{name}-ca.pem"), &authority.pem());
            files.write(&format!("{name}.pem"), &certificate.chain);
            files.write(&format!("{name}-key.pem"), &certificate.key);
        }
        files
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.0.path().join(name), text).unwrap();
    }

    /// Replaces `@` in a command line by the directory of the files.
    fn line(&self, line: &str) -> String {
        line.replace('@', &format!("{}/", self.0.path().display()))
    }

    /// Returns a serving process and its address.
    fn serve(&self, line: &str) -> (Running, String) {
        let line = self.line(&format!("serve {line}"));
        let mut serve = start(&line.split_whitespace().collect::<Vec<_>>());
        let (address, _rest) = serve.first_line();
        (serve, address)
    }
}

#[test]
fn sighup_reloads_certificates_and_keeps_the_old_on_failure() {
    for listener in ["serve", "scheduler"] {
        let files = Files::new();
        let line = files.line(&format!("{listener} tls://127.0.0.1:0 {MUTUAL}"));
        let mut serve = start(&line.split_whitespace().collect::<Vec<_>>());
        let (address, _rest) = serve.first_line();
        let mut errors = BufReader::new(serve.0.stderr.take().unwrap()).lines().map_while(Result::ok);
        let look = if listener == "serve" { "explain" } else { "top --once --interval 0.05" };
        let connects = |whose: &str| {
            let line = files.line(&format!("{look} {address} {}", MUTUAL.replace("ours", whose)));
            towline(&line.split_whitespace().collect::<Vec<_>>()).code == Some(0)
        };
        assert!(connects("ours") && !connects("untrusted"), "{listener}");
        for part in ["-ca", "", "-key"] {
            let text = std::fs::read_to_string(files.line(&format!("@untrusted{part}.pem"))).unwrap();
            files.write(&format!("ours{part}.pem"), &text);
        }
        signal(serve.id(), Signal::HUP);
        assert!(errors.any(|line| line.contains("read anew")), "{listener} ended");
        assert!(connects("untrusted"), "{listener}");
        files.write("ours-key.pem", "no key");
        signal(serve.id(), Signal::HUP);
        assert!(
            errors.any(|line| line.contains("are unchanged") && line.contains("key")),
            "{listener} ended"
        );
        assert!(connects("untrusted"), "{listener}");
    }
}

const MUTUAL: &str = "--cert @ours.pem --key @ours-key.pem --ca @ours-ca.pem";

#[test]
fn a_serving_side_over_tls_is_measured_and_explained() {
    let files = Files::new();
    // Within a host, data that need not leave it goes through shared memory.
    for (scheme, path, encryption) in [("tls", "tcp", "tls"), ("towlines", "shm", "none")] {
        let (_serve, address) = files.serve(&format!("{scheme}://127.0.0.1:0 {MUTUAL}"));
        assert!(address.starts_with(&format!("{scheme}://127.0.0.1:")), "{address}");

        let line =
            format!("--connect {address} {MUTUAL} --pattern latency,bandwidth --size 4K --verify --json");
        for row in rows(&bench(&files.line(&line))) {
            assert_eq!((&row["path"], &row["options"]["tls"]), (&path.into(), &"on".into()), "{row}");
            assert_eq!(ceilings(&row).contains(&"tls_socket"), encryption == "tls", "{row}");
        }

        let line = files.line(&format!("explain {address} {MUTUAL} --json"));
        let explain = towline(&line.split_whitespace().collect::<Vec<_>>());
        explain.exits_with(0);
        let document = explain.document();
        let candidates = document["candidates"].as_array().unwrap();
        let chosen = candidates.iter().find(|candidate| candidate["transport"] == path).unwrap();
        assert_eq!(
            (&chosen["state"], &chosen["encryption"]),
            (&"chosen".into(), &encryption.into()),
            "{chosen}"
        );
        assert!(chosen["share"].as_f64().unwrap() > 0.0, "{chosen}");
    }
}

#[test]
fn a_listener_without_ca_accepts_every_peer() {
    let files = Files::new();
    let (_serve, address) = files.serve("tls://127.0.0.1:0 --cert @ours.pem --key @ours-key.pem");
    let line = format!("--connect {address} --ca @ours-ca.pem --pattern latency --json");
    assert_eq!(rows(&bench(&files.line(&line))).len(), 1);
}

#[test]
fn an_untrusted_certificate_fails_the_run() {
    let files = Files::new();
    let (_serve, address) = files.serve(&format!("tls://127.0.0.1:0 {MUTUAL}"));
    let plain = address.replace("tls://", "tcp://");
    for (end, expected) in [
        // Either end does not trust the other, or has no certificate.
        (
            format!("{address} --cert @ours.pem --key @ours-key.pem --ca @untrusted-ca.pem"),
            ["signed by no authority that this end trusts", "--ca"],
        ),
        (
            format!("{address} --cert @untrusted.pem --key @untrusted-key.pem --ca @ours-ca.pem"),
            ["trusts no authority that signed this end's certificate", "--ca"],
        ),
        (format!("{address} --ca @ours-ca.pem"), ["the listener requires a certificate", "--cert, --key"]),
        (plain, ["only over TLS", "tls:// or towlines://"]),
    ] {
        for line in [format!("explain {end}"), format!("bench --pattern latency --connect {end}")] {
            let line = files.line(&line);
            let finished = towline(&line.split_whitespace().collect::<Vec<_>>());
            finished.exits_with(1);
            assert!(finished.out.is_empty(), "{}", finished.out);
            for word in expected {
                assert!(finished.err.contains(word), "{line}: wanted {word}: {}", finished.err);
            }
        }
    }
    // A trusted peer can still connect.
    rows(&bench(&files.line(&format!("--connect {address} {MUTUAL} --pattern latency --json"))));
}

#[test]
fn impossible_tls_options_are_wrong_usage() {
    let files = Files::new();
    let pair = "--cert @ours.pem --key @ours-key.pem";
    for (line, expected) in [
        ("serve tls://127.0.0.1:0 --cert @ours.pem".to_owned(), "--key <FILE>"),
        ("serve tls://127.0.0.1:0 --key @ours-key.pem".to_owned(), "--cert <FILE>"),
        ("bench --connect tls://127.0.0.1:1 --ca @ours-ca.pem --cert @ours.pem".to_owned(), "--key <FILE>"),
        ("serve tls://127.0.0.1:0".to_owned(), "a certificate and its key (--cert, --key)"),
        ("serve tls://127.0.0.1:0 --ca @ours-ca.pem".to_owned(), "a TLS listener needs a certificate"),
        ("explain tls://127.0.0.1:1".to_owned(), "an authority to believe (--ca)"),
        ("bench --connect tls://127.0.0.1:1 --pattern latency".to_owned(), "an authority to believe (--ca)"),
        (format!("bench --connect tls://127.0.0.1:1 {pair}"), "no listener would be trusted"),
        ("serve tls://127.0.0.1:0 --cert @none.pem --key @ours-key.pem".to_owned(), "none.pem: No such file"),
        (
            "serve tls://127.0.0.1:0 --cert @ours-key.pem --key @ours-key.pem".to_owned(),
            "the PEM of the certificate contains no certificate",
        ),
        (
            "serve tls://127.0.0.1:0 --cert @ours.pem --key @ours.pem".to_owned(),
            "the private key cannot be read",
        ),
        ("serve tls://127.0.0.1:0 --cert @ours.pem --key @untrusted-key.pem".to_owned(), "cannot be used"),
        // TLS options without TLS are refused.
        (format!("serve tcp://127.0.0.1:0 {pair}"), "tcp://127.0.0.1:0 is not encrypted"),
        (
            "explain towline://127.0.0.1:1 --ca @ours-ca.pem".to_owned(),
            "towline://127.0.0.1:1 is not encrypted",
        ),
        (
            "bench --connect tcp://127.0.0.1:1 --ca @ours-ca.pem".to_owned(),
            "tcp://127.0.0.1:1 is not encrypted",
        ),
        (
            "bench --connect tcp://127.0.0.1:1 --transport tcp?tls=on".to_owned(),
            "connect to a towline:// address",
        ),
        ("bench --transport tcp --ca @ours-ca.pem".to_owned(), "go with --connect"),
        (format!("bench --transport tcp?tls=on {pair}"), "go with --connect"),
    ] {
        let line = files.line(&line);
        towline(&line.split_whitespace().collect::<Vec<_>>()).is_wrong_usage(expected);
    }
}

#[test]
fn assertions_know_the_bare_tls_socket() {
    let line = "--transport tcp,tcp?tls=on --pattern bandwidth --size 64K";
    let assert = "--assert tcp.bandwidth.64K[tls=on].ceiling.tls_socket.share";
    bench(&format!("{line} {assert}>0")).exits_with(0);
    let broken = bench(&format!("{line} {assert}>1000"));
    broken.exits_with(1);
    assert!(broken.err.contains("does not hold"), "{}", broken.err);
}

#[test]
fn a_temporary_certificate_is_deleted() {
    let directory = TempDir::new().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_towline"));
    let line = "bench --transport tcp?tls=on --pattern connect --duration 0.02 --repeat 1";
    command.args(line.split_whitespace()).env("TMPDIR", directory.path());
    spawn(&mut command).finish().exits_with(0);
    let left: Vec<_> = std::fs::read_dir(directory.path()).unwrap().flatten().collect();
    assert!(left.is_empty(), "{left:?}");
}
