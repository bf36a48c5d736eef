//! `--html`: the page of a run in a browser.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::against::there;
use crate::bench::bench;
use crate::command::{Finished, Running};

/// Runs headless Chromium on a page: the document is on stdout, the console on stderr.
fn look_at(page: &Path) -> Finished {
    let profile = TempDir::new().unwrap();
    let mut command = Command::new("chromium");
    command.args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]);
    command.args(["--disable-background-networking", "--disable-component-update", "--disable-sync"]);
    command.arg(format!("--user-data-dir={}", profile.path().display()));
    command.args(["--enable-logging=stderr", "--dump-dom"]).arg(format!("file://{}", page.display()));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let finished = Running(command.spawn().unwrap()).finish();
    finished.exits_with(0);
    finished
}

/// Returns the messages of the console.
fn console(finished: &Finished) -> Vec<&str> {
    finished.err.lines().filter(|line| line.contains(":CONSOLE:")).collect()
}

/// Returns the parts of `document` from each `begin` to the next `end`.
fn parts<'a>(document: &'a str, begin: &str, end: &str) -> Vec<&'a str> {
    let rests = document.match_indices(begin).map(|(at, _)| &document[at..]);
    rests.map(|rest| &rest[..rest.find(end).unwrap_or(rest.len())]).collect()
}

#[test]
fn a_browser_shows_every_row_and_plot_without_an_error() {
    if !there("chromium") {
        return;
    }
    let folder = TempDir::new().unwrap();
    let page = folder.path().join("run.html");
    let line = "--transport mem,tcp --pattern latency,bandwidth --size 8,64K";
    let run = bench(&format!("{line} --html {}", page.display()));
    run.exits_with(0);
    assert!(run.out.contains("bandwidth"), "the table is printed all the same: {}", run.out);

    let seen = look_at(&page);
    assert_eq!(console(&seen), Vec::<&str>::new());
    let document = &seen.out;
    assert!(document.contains("<h1>towline bench</h1>"), "{document}");
    for row in ["mem.latency.8", "mem.bandwidth.64K", "tcp.latency.64K", "tcp.bandwidth.8"] {
        assert!(document.contains(&format!("<tr data-row=\"{row}\">")), "{row}: {document}");
    }
    assert_eq!(document.matches("<tr data-row=").count(), 8);

    let over_size = parts(document, "<figure data-plot=\"over-size\"", "</figure>");
    assert_eq!(over_size.len(), 2, "medians of latency, rates of bandwidth");
    assert!(!over_size[1].contains("mem, adaptive"), "what is handed over has no bandwidth");
    for line in ["tcp, adaptive", "memcpy", "socket"] {
        let marks = format!("data-line=\"{line}\" data-marks=\"2\"");
        assert!(over_size[1].contains(&marks), "{line}: {}", over_size[1]);
    }
    assert!(
        !over_size[0].contains("memcpy") && over_size[0].contains("data-line=\"socket\" data-marks=\"2\"")
    );

    let distributions = parts(document, "<figure data-plot=\"distribution\"", "</figure>");
    assert_eq!(distributions.len(), 4, "each pattern at each size");
    for plot in distributions.iter().chain(&over_size) {
        assert!(plot.contains("role=\"img\" aria-label=\""), "{plot}");
        for line in parts(plot, "<g class=\"ours", "</g></g>") {
            let drawn = line.matches("<circle").count();
            assert!(line.contains(&format!("data-marks=\"{drawn}\"")) && drawn > 0, "{line}");
            // A run as short as this may time a single message, which has a mark and no line.
            let alone = plot.contains("data-plot=\"distribution\"") && drawn == 1;
            assert!(alone || line.contains("<path class=\"line\""), "{line}");
            assert!(!line.contains("NaN") && !line.contains("inf"), "{line}");
        }
    }
}

#[test]
fn an_error_of_the_browser_is_detected() {
    if !there("chromium") {
        return;
    }
    let folder = TempDir::new().unwrap();
    let page = folder.path().join("run.html");
    bench(&format!("--transport mem --pattern latency --html {}", page.display())).exits_with(0);
    let text = fs::read_to_string(&page).unwrap();
    fs::write(&page, text.replace("<main>", "<main><script>document.title = 'x'</script>")).unwrap();
    let complaints = look_at(&page);
    assert!(
        console(&complaints).iter().any(|line| line.contains("Content Security Policy")),
        "{}",
        complaints.err
    );
}

#[test]
fn a_page_is_written_whatever_is_measured() {
    let folder = TempDir::new().unwrap();
    let page = folder.path().join("run.html");
    let name = page.display();
    bench(&format!("--transport mem --pattern connect,get --size 8 --json --html {name}")).exits_with(0);
    let text = fs::read_to_string(&page).unwrap();
    assert!(text.starts_with("<!DOCTYPE html>") && text.ends_with("</html>\n"), "{text}");
    assert_eq!(text.matches("<tr data-row=").count(), 2, "{text}");
}
