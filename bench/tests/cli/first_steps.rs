//! The first steps of a user: default addresses, a peer that is not up yet, the wrong kind of peer, a token.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use tempfile::TempDir;
use towline::Endpoint;
use towline_runtime::{Registry, Worker};

use crate::command::{start, towline};

/// Returns an address of this machine where nothing listens: its port was free a moment ago.
fn free_address() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    format!("tcp://{}", listener.local_addr().unwrap())
}

#[test]
fn listeners_and_clients_have_default_addresses() {
    for (listener, connector, address) in
        [("serve", "explain", "towline://127.0.0.1:7000"), ("scheduler", "top", "towline://127.0.0.1:7100")]
    {
        for command in [listener, connector] {
            let help = towline(&[command, "--help"]).out;
            assert!(help.contains(&format!("[default: {address}]")), "{help}");
        }
        // Another process of this machine may have the port.
        let mut running = start(&[listener]);
        let (printed, _out) = running.first_line();
        if printed.is_empty() {
            running.finish().is_wrong_usage(address);
        } else {
            assert_eq!(printed, address);
        }
    }
}

#[test]
fn wait_for_retries_until_the_peer_is_up() {
    for (listener, lines) in [
        ("serve", &["explain @", "bench --pattern connect --duration 0.02 --repeat 1 --connect @"][..]),
        ("scheduler", &["top @ --once --interval 0.05"][..]),
    ] {
        for line in lines {
            let address = free_address();
            let line = format!("{} --wait-for 60", line.replace('@', &address));
            let early = start(&line.split_whitespace().collect::<Vec<_>>());
            std::thread::sleep(Duration::from_millis(300));
            let mut listening = start(&[listener, &address]);
            let (printed, _out) = listening.first_line();
            assert_eq!(printed, address);
            let finished = early.finish();
            finished.exits_with(0);
            let waited = finished.err.matches("waiting for the peer, up to 60 s").count();
            assert!(waited <= 1, "{line}: {}", finished.err);
        }
    }
}

#[test]
fn wait_for_has_a_limit_and_retries_no_other_failure() {
    for line in ["explain", "top --once", "bench --connect"] {
        let line = format!("{line} {} --wait-for 0.3", free_address());
        let finished = towline(&line.split_whitespace().collect::<Vec<_>>());
        finished.exits_with(1);
        assert!(finished.err.contains("waiting for the peer, up to 0.3 s"), "{line}: {}", finished.err);
        assert!(finished.err.contains("--wait-for 0.3: "), "{line}: {}", finished.err);
    }
    let folder = TempDir::new().unwrap();
    let token = folder.path().join("secret").display().to_string();
    towline(&["token", &token]).exits_with(0);
    let mut serve = start(&["serve", "tcp://127.0.0.1:0", "--token-file", &token]);
    let (address, _out) = serve.first_line();
    let without_token = towline(&["explain", &address, "--wait-for", "100"]);
    without_token.exits_with(1);
    assert!(
        without_token.err.contains("unauthenticated") && !without_token.err.contains("--wait-for"),
        "{}",
        without_token.err
    );
}

#[test]
fn the_wrong_kind_of_peer_is_named() {
    let mut serve = start(&["serve", "tcp://127.0.0.1:0"]);
    let (serving, _out) = serve.first_line();
    let mut scheduler = start(&["scheduler", "tcp://127.0.0.1:0"]);
    let (scheduling, _out) = scheduler.first_line();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let endpoint = Endpoint::new().unwrap();
    let address = scheduling.parse().unwrap();
    let port = free_address();
    let builder = Worker::builder(Registry::new()).slots(1).listen(port.parse().unwrap());
    let _worker = runtime.block_on(builder.start(&endpoint, &address)).unwrap();
    for (line, says) in [
        (
            format!("top {serving} --once"),
            "the other end is no scheduler: it sends back what it gets, as `towline serve`",
        ),
        (format!("top {port} --once"), "the other end is no scheduler, but a worker"),
        (
            format!("explain {scheduling}"),
            "the other end is not `towline serve` but a scheduler of the task runtime: `towline top` connects to it",
        ),
        (format!("explain {port}"), "the other end is not `towline serve` but a worker of the task runtime"),
        (format!("bench --pattern latency --connect {scheduling}"), "not `towline serve` but a scheduler"),
    ] {
        let finished = towline(&line.split_whitespace().collect::<Vec<_>>());
        finished.exits_with(1);
        assert!(finished.err.contains(says), "{line}: {}", finished.err);
    }
    // Both still serve peers of the right kind.
    towline(&["top", &scheduling, "--once", "--interval", "0.05"]).exits_with(0);
    towline(&["explain", &serving]).exits_with(0);
}

#[test]
fn token_files_are_private_and_short_tokens_cause_a_warning() {
    let folder = TempDir::new().unwrap();
    let [made, short] = ["made", "short"].map(|name| folder.path().join(name));
    let name = made.to_str().unwrap();
    let token = towline(&["token", name, "--json"]);
    token.exits_with(0);
    assert_eq!(token.document(), serde_json::json!({"schema": 1, "file": name}));
    let text = fs::read_to_string(&made).unwrap();
    assert!(text.len() == 65 && text.trim().bytes().all(|digit| digit.is_ascii_hexdigit()), "{text}");
    assert_eq!(fs::metadata(&made).unwrap().permissions().mode() & 0o777, 0o600);
    towline(&["token", name]).is_wrong_usage("the file exists");
    assert_eq!(fs::read_to_string(&made).unwrap(), text, "it stays as it was");

    fs::write(&short, "secret\n").unwrap();
    for (file, is_warned_of) in [(name, false), (short.to_str().unwrap(), true)] {
        let mut serve = start(&["serve", "tcp://127.0.0.1:0", "--token-file", file]);
        let (address, _out) = serve.first_line();
        let explain = towline(&["explain", &address, "--token-file", file]);
        explain.exits_with(0);
        let warnings = explain
            .err
            .matches("can be guessed by a peer that answers one handshake: `towline token")
            .count();
        assert_eq!(warnings, usize::from(is_warned_of), "{}", explain.err);
    }
}
