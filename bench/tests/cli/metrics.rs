//! The metrics of `towline serve --metrics`.

use std::io::{BufRead, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::command::{LIMIT, Running, start, towline};
use crate::readers::{Format, read};

/// Returns a serving process, its address, and the URL of its metrics.
pub(crate) fn serve() -> (Running, String, String) {
    let mut serving = start(&["serve", "tcp://127.0.0.1:0", "--metrics", "127.0.0.1:0"]);
    let (address, mut rest) = serving.first_line();
    let mut line = String::new();
    rest.read_line(&mut line).unwrap();
    let url = line.trim().strip_prefix("metrics at http://").unwrap().to_owned();
    (serving, address, url.strip_suffix("/metrics").unwrap().to_owned())
}

/// Returns the page of metrics.
pub(crate) fn page(at: &str, format: Format) -> String {
    let request = format!("GET /metrics HTTP/1.1\r\nHost: {at}\r\nAccept: {}\r\n\r\n", format.accept());
    let answer = ask(at, request.as_bytes());
    let (head, page) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(head.contains(&format!("\r\nContent-Type: {}\r\n", format.content_type())), "{head}");
    assert!(head.contains(&format!("\r\nContent-Length: {}\r\n", page.len())), "{head}");
    page.to_owned()
}

/// Returns the server's answer to `request`.
fn ask(at: &str, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(at).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream.write_all(request).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// Returns the value of the one line that begins with `name`.
pub(crate) fn value(page: &str, name: &str) -> f64 {
    let mut lines = page.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    let value = lines.next().unwrap_or_else(|| panic!("no {name} in {page}"));
    assert_eq!(lines.next(), None, "{name} twice");
    value.parse().unwrap()
}

#[test]
fn the_metrics_count_the_bytes_of_a_run() {
    let (_serving, address, at) = serve();
    let run = ["bench", "--connect", &address, "--pattern", "bandwidth", "--size", "100000", "--repeat", "1"];
    towline(&[&run[..], &["--duration", "0.1", "--json"]].concat()).exits_with(0);
    for format in [Format::Plain, Format::OpenMetrics] {
        let page = page(&at, format);
        assert_eq!(page.ends_with("# EOF\n"), format == Format::OpenMetrics, "{page}");
        assert!(value(&page, "towline_received_bytes_count") > 0.0);
        assert!(value(&page, "towline_received_bytes_sum") >= 100_000.0);
        assert!(value(&page, "towline_system_calls_total") > 0.0);
        assert!(value(&page, "towline_connections_opened_total{role=\"acceptor\",path=\"tcp\"}") >= 1.0);
        let all = value(&page, "towline_received_bytes_count");
        assert_eq!(
            value(&page, "towline_received_bytes_bucket{le=\"+Inf\"}"),
            all,
            "every value is in the last bucket"
        );
        if let Some((families, histograms)) = read(&page, format) {
            assert!(families >= 14 && histograms >= 4, "{families}, {histograms}: {page}");
        }
    }
}

#[test]
fn other_requests_are_refused_with_a_status() {
    let (_serving, _, at) = serve();
    let long = [b"GET /metrics HTTP/1.1\r\nx: ".as_slice(), &[b'x'; 20_000]].concat();
    for (request, expected) in [
        (
            b"GET /metrics HTTP/1.0\r\n\r\n".as_slice(),
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4;",
        ),
        (b"GET /metrics?x=1 HTTP/1.1\r\n\r\n", "HTTP/1.1 200"),
        (b"GET http://127.0.0.1:1/metrics HTTP/1.1\r\n\r\n", "HTTP/1.1 200"),
        (b"GET / HTTP/1.1\r\n\r\n", "HTTP/1.1 404"),
        (
            b"POST /metrics HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc",
            "HTTP/1.1 405 Method Not Allowed\r\nAllow: GET, HEAD\r\n",
        ),
        (b"nonsense\r\n\r\n", "HTTP/1.1 400"),
        (&long, "HTTP/1.1 431"),
    ] {
        let answer = ask(&at, request);
        assert!(answer.starts_with(expected), "{expected}: {answer}");
    }
}

#[test]
fn a_head_request_is_answered_without_the_page() {
    let (_serving, _, at) = serve();
    for path in ["/metrics", "/nothing"] {
        let [get, head] =
            ["GET", "HEAD"].map(|method| ask(&at, format!("{method} {path} HTTP/1.1\r\n\r\n").as_bytes()));
        let (begin, body) = get.split_once("\r\n\r\n").unwrap();
        assert!(!body.is_empty());
        assert_eq!(head, format!("{begin}\r\n\r\n"));
    }
}

#[test]
fn metrics_are_served_at_a_name_and_on_every_interface() {
    for (at, host) in [("localhost:0", "localhost"), (":0", "127.0.0.1"), ("*:0", "127.0.0.1")] {
        let mut serving = start(&["serve", "tcp://127.0.0.1:0", "--metrics", at, "--json"]);
        let (_, mut rest) = serving.first_line();
        let mut document = "{".to_owned();
        while !document.contains('}') {
            assert_ne!(rest.read_line(&mut document).unwrap(), 0, "{document}");
        }
        let document: serde_json::Value = serde_json::from_str(&document).unwrap();
        let url = document["metrics"].as_str().unwrap();
        let (_, port) = url.strip_suffix("/metrics").unwrap().rsplit_once(':').unwrap();
        assert!(!page(&format!("{host}:{port}"), Format::Plain).is_empty(), "{at}: {url}");
    }
}

#[test]
fn idle_clients_do_not_block_others() {
    let (_serving, _, at) = serve();
    let clients: Vec<_> = (0..300)
        .map(|number| {
            let mut client = TcpStream::connect(&at).unwrap();
            if number % 2 == 0 {
                // An evicted connection may fail.
                let _ = client.write_all(b"GET /metrics HTTP/1.1\r\n");
            }
            client
        })
        .collect();
    let mut times: Vec<_> = (0..5)
        .map(|_| {
            let began = Instant::now();
            assert!(page(&at, Format::OpenMetrics).ends_with("# EOF\n"));
            began.elapsed()
        })
        .collect();
    times.sort();
    assert!(times[2] < Duration::from_secs(1), "beside {} clients: {times:?}", clients.len());
}

#[test]
fn an_unsupported_place_is_wrong_usage() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let at = taken.local_addr().unwrap().to_string();
    towline(&["serve", "tcp://127.0.0.1:0", "--metrics", &at]).is_wrong_usage(&format!("--metrics {at}"));
    towline(&["serve", "tcp://127.0.0.1:0", "--metrics", "nowhere"]).is_wrong_usage("nowhere");
}
