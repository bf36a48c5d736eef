//! Pages of metrics, read by other parsers: Prometheus' own (`promtool`), and those of its Python client.

use std::io::Write;
use std::process::{Command, Output, Stdio};

use towline_tests::provided::folder;

use crate::against::needs;

/// The format of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Plain,
    OpenMetrics,
}

impl Format {
    /// Returns the header of a scraper for it.
    pub(crate) fn accept(self) -> &'static str {
        match self {
            Self::Plain => "text/plain;version=0.0.4",
            Self::OpenMetrics => "application/openmetrics-text;version=1.0.0",
        }
    }

    pub(crate) fn content_type(self) -> &'static str {
        match self {
            Self::Plain => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// Prometheus computes no quantile of a histogram without `+Inf`, but the lenient parser of plain text
/// accepts it.
const PYTHON: &str = r#"
import importlib, sys
module = {"Plain": "prometheus_client.parser", "OpenMetrics": "prometheus_client.openmetrics.parser"}[sys.argv[1]]
families = list(importlib.import_module(module).text_string_to_metric_families(sys.stdin.read()))
for family in families:
    assert family.type in ("counter", "gauge", "histogram"), family
    if family.type != "histogram":
        continue
    buckets, counts = {}, {}
    for sample in family.samples:
        labels = tuple(sorted((key, value) for key, value in sample.labels.items() if key != "le"))
        if sample.name.endswith("_bucket"):
            buckets.setdefault(labels, []).append((float(sample.labels["le"]), sample.value))
        elif sample.name.endswith("_count"):
            counts[labels] = sample.value
    assert buckets.keys() == counts.keys(), family
    for labels, count in counts.items():
        assert buckets[labels] == sorted(buckets[labels]), (family.name, labels)
        assert buckets[labels][-1] == (float("inf"), count), (family.name, labels, buckets[labels], count)
print(len(families), sum(family.type == "histogram" for family in families))
"#;

/// Checks that every installed parser of `format` accepts `page`. Returns the numbers of families and of
/// histograms, if a parser reports them.
#[track_caller]
pub(crate) fn read(page: &str, format: Format) -> Option<(usize, usize)> {
    if format == Format::Plain {
        promtool(page);
    }
    let modules = folder("prometheus_client-0.26.0");
    if !modules.is_dir() {
        needs("prometheus_client", &format!("{} was not fetched", modules.display()));
        return None;
    }
    let mut python = Command::new("python3");
    python.args(["-c", PYTHON, &format!("{format:?}")]).env("PYTHONPATH", modules);
    let output = give(&mut python, page);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}\n{page}");
    let counts = String::from_utf8_lossy(&output.stdout).into_owned();
    let (all, histograms) = counts.trim().split_once(' ').unwrap();
    Some((all.parse().unwrap(), histograms.parse().unwrap()))
}

/// Checks that promtool reports no problem of style either.
#[track_caller]
fn promtool(page: &str) {
    let fetched = folder("promtool").join("promtool");
    let program = if fetched.is_file() { fetched } else { "promtool".into() };
    if Command::new(&program).arg("--version").output().is_err() {
        needs("promtool", "it was not fetched, and is not on the search path");
        return;
    }
    let output = give(Command::new(&program).args(["check", "metrics"]), page);
    let errors = [output.stdout.as_slice(), &output.stderr].concat();
    assert!(output.status.success() && errors.is_empty(), "{}\n{page}", String::from_utf8_lossy(&errors));
}

/// Returns the output of `command` with `page` at its standard input.
#[track_caller]
fn give(command: &mut Command, page: &str) -> Output {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // Both read to the end before they print anything, or fail with a reason.
    let _ = child.stdin.take().unwrap().write_all(page.as_bytes());
    child.wait_with_output().unwrap()
}
