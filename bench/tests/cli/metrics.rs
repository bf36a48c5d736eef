//! What `towline serve --metrics` tells, and to whom.

use std::io::{BufRead, Read, Write};
use std::net::TcpStream;

use crate::command::{LIMIT, Running, start, towline};

/// A serving process with its address, and where its metrics are.
pub(crate) fn serve() -> (Running, String, String) {
    let mut serving = start(&["serve", "tcp://127.0.0.1:0", "--metrics", "127.0.0.1:0"]);
    let (address, mut rest) = serving.first_line();
    let mut line = String::new();
    rest.read_line(&mut line).unwrap();
    let url = line.trim().strip_prefix("metrics at http://").unwrap().to_owned();
    (serving, address, url.strip_suffix("/metrics").unwrap().to_owned())
}

/// The page that it gives.
pub(crate) fn page(at: &str) -> String {
    ask(at, b"GET /metrics HTTP/1.0\r\n\r\n")
}

/// What the server answers to `request`.
fn ask(at: &str, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(at).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream.write_all(request).unwrap();
    let mut answer = Vec::new();
    // A server that refuses a long request may close before it read all of it: what it said counts.
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8(answer).unwrap()
}

/// The value of the one line that begins with `name`.
pub(crate) fn value(page: &str, name: &str) -> f64 {
    let mut lines = page.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    let value = lines.next().unwrap_or_else(|| panic!("no {name} in {page}"));
    assert_eq!(lines.next(), None, "{name} twice");
    value.parse().unwrap()
}

#[test]
fn what_a_run_moved_is_in_the_metrics() {
    let (_serving, address, at) = serve();
    let run = ["bench", "--connect", &address, "--pattern", "bandwidth", "--size", "100000", "--repeat", "1"];
    towline(&[&run[..], &["--duration", "0.1", "--json"]].concat()).exits_with(0);
    let answer = ask(&at, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
    let (head, page) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
    assert!(head.contains("Content-Type: application/openmetrics-text; version=1.0.0"), "{head}");
    assert!(head.contains(&format!("Content-Length: {}", page.len())), "{head}");
    assert!(page.ends_with("# EOF\n"), "{page}");
    assert!(value(page, "towline_received_bytes_count") > 0.0);
    assert!(value(page, "towline_received_bytes_sum") >= 100_000.0);
    assert!(value(page, "towline_system_calls_total") > 0.0);
    assert!(value(page, "towline_connections_opened_total{role=\"acceptor\",path=\"tcp\"}") >= 1.0);
}

#[test]
fn whoever_asks_otherwise_is_told() {
    let (_serving, _, at) = serve();
    let long = [b"GET /metrics HTTP/1.1\r\n".as_slice(), &[b'x'; 20_000]].concat();
    for (request, says) in [
        (b"GET / HTTP/1.1\r\n\r\n".as_slice(), "HTTP/1.1 404"),
        (b"POST /metrics HTTP/1.1\r\n\r\n", "HTTP/1.1 405"),
        (b"\r\n\r\n", "HTTP/1.1 405"),
        (&long, "HTTP/1.1 431"),
    ] {
        let answer = ask(&at, request);
        // A reset may overtake the answer to what was too long to be read.
        assert!(
            answer.starts_with(says) || (request.len() > 10_000 && answer.is_empty()),
            "{says}: {answer}"
        );
    }
    assert!(page(&at).ends_with("# EOF\n"));
}

#[test]
fn a_place_that_cannot_be_had_is_wrong_usage() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let at = taken.local_addr().unwrap().to_string();
    towline(&["serve", "tcp://127.0.0.1:0", "--metrics", &at]).is_wrong_usage(&format!("metrics at {at}"));
    towline(&["serve", "tcp://127.0.0.1:0", "--metrics", "nowhere"]).is_wrong_usage("nowhere");
}
