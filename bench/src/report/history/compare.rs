//! Reads an earlier run, and compares rows with those of the same case.

use std::fmt;

use hdrhistogram::Histogram;
use serde_json::{Map, Value};

use crate::machine::fingerprint::Fingerprint;
use crate::results::histogram::HistogramCounts;
use crate::results::row::Row;

/// The keys that identify a case. Its figures and its path may differ.
const IDENTITY: [&str; 16] = [
    "transport",
    "options",
    "pattern",
    "size_bytes",
    "from",
    "to",
    "wait",
    "processes",
    "frames",
    "streams",
    "window",
    "buffers",
    "workers",
    "rate",
    "verified",
    "read",
];

/// The keys of the fingerprint that two runs should have in common.
const MACHINE: [&str; 5] = ["host", "cpu", "kernel", "cores", "memory_bytes"];

/// Quantiles of the times in a comparison.
const QUANTILES: [(&str, f64); 3] = [("p50", 0.5), ("p90", 0.9), ("p99", 0.99)];

/// An earlier run.
#[derive(Debug)]
pub(crate) struct EarlierRun {
    fingerprint: Value,
    rows: Vec<EarlierRow>,
}

#[derive(Debug)]
struct EarlierRow {
    row: Map<String, Value>,
    times: Option<Histogram<u64>>,
}

/// A row compared with its earlier row.
#[derive(Debug)]
pub(super) struct Comparison {
    /// The judged figure.
    figure: &'static str,
    before: f64,
    now: f64,
    /// How much worse it is, in percent of the earlier figure; negative if it is better.
    pub(super) worse_percent: f64,
    /// Changes of the times' quantiles, in percent.
    longer_percent: Vec<(&'static str, f64)>,
}

impl EarlierRun {
    /// Reads a document, with or without histograms.
    pub(super) fn read(text: &str) -> Result<Self, String> {
        let document: Value =
            serde_json::from_str(text).map_err(|error| format!("it is not JSON: {error}"))?;
        if document["schema"] != 1 {
            return Err(
                "it is not a document of schema 1, as --save-histograms and --json-file write it".to_owned()
            );
        }
        let rows = document["results"].as_array().ok_or("it has no results")?;
        // A failed row has nothing to compare with.
        let measured = rows.iter().filter(|row| row["error"].is_null());
        let rows = measured.map(|row| {
            let row = row.as_object().ok_or("one of its results is not a row")?.clone();
            let times = match row.get("histogram") {
                None | Some(Value::Null) => None,
                Some(kept) => Some(
                    serde_json::from_value::<HistogramCounts>(kept.clone())
                        .map_err(|error| format!("one of its histograms: {error}"))?
                        .to_histogram(),
                ),
            };
            Ok(EarlierRow { row, times })
        });
        let rows = rows.collect::<Result<Vec<_>, String>>()?;
        Ok(Self { fingerprint: document["fingerprint"].clone(), rows })
    }

    /// Returns true if the earlier run has the row.
    pub(super) fn has(&self, row: &Row) -> bool {
        self.find(row).is_some()
    }

    /// Returns the names of all earlier rows.
    pub(super) fn names(&self) -> String {
        let word = |row: &EarlierRow, key: &str| match row.row.get(key) {
            Some(Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
            None => "?".to_owned(),
        };
        let name = |row: &EarlierRow| {
            ["transport", "pattern", "size_bytes", "wait"].map(|key| word(row, key)).join(" ")
        };
        self.rows.iter().map(name).collect::<Vec<_>>().join(", ")
    }

    /// Returns how the machine of the earlier run differs from this one.
    pub(super) fn measured_elsewhere(&self, fingerprint: &Fingerprint) -> Option<String> {
        let now = serde_json::to_value(fingerprint).ok()?;
        let differing = MACHINE.iter().filter(|key| self.fingerprint[**key] != now[**key]);
        let differences: Vec<String> =
            differing.map(|key| format!("{key} {}, now {}", self.fingerprint[*key], now[*key])).collect();
        (!differences.is_empty()).then(|| differences.join("; "))
    }

    /// Compares `row` with its earlier row, if both have a figure.
    pub(super) fn beside(&self, row: &Row) -> Option<Comparison> {
        let earlier = self.find(row)?;
        let of = |key: &str| earlier.row.get(key).and_then(Value::as_f64).filter(|figure| *figure > 0.0);
        let (figure, before, now) =
            match (of("gb_per_s").zip(row.reached_gb_per_s()), of("p50_us").zip(row.p50_us)) {
                (Some((before, now)), _) => ("GB/s", before, now),
                (None, Some((before, now))) => ("p50 µs", before, now),
                (None, None) => return None,
            };
        let more_percent = (now / before - 1.0) * 100.0;
        let worse_percent = if figure == "GB/s" { -more_percent } else { more_percent };
        let longer = |(before, now): (&Histogram<u64>, &Histogram<u64>)| {
            let longer = |(name, quantile): (&'static str, f64)| {
                let [before, now] =
                    [before, now].map(|times| times.value_at_quantile(quantile).max(1) as f64);
                (name, (now / before - 1.0) * 100.0)
            };
            QUANTILES.map(longer).to_vec()
        };
        let longer_percent = earlier.times.as_ref().zip(row.times.as_ref()).map(longer).unwrap_or_default();
        Some(Comparison { figure, before, now, worse_percent, longer_percent })
    }

    fn find(&self, row: &Row) -> Option<&EarlierRow> {
        let row = serde_json::to_value(row).ok()?;
        let same = |earlier: &&EarlierRow| {
            IDENTITY.iter().all(|key| earlier.row.get(*key).unwrap_or(&Value::Null) == &row[*key])
        };
        self.rows.iter().find(same)
    }
}

impl fmt::Display for Comparison {
    /// `3.9 GB/s, before 4 (2.5 % worse); times p50 +3 %, p90 +1 %, p99 -4 %`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { figure, before, now, worse_percent, longer_percent } = self;
        let (percent, word) = (worse_percent.abs(), if *worse_percent > 0.0 { "worse" } else { "better" });
        write!(f, "{now} {figure}, before {before} ({percent:.1} % {word})")?;
        for (at, (name, longer)) in longer_percent.iter().enumerate() {
            write!(f, "{} {name} {longer:+.0} %", if at == 0 { "; times" } else { "," })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::saved::SavedRun;
    use super::*;
    use crate::report::Report;
    use crate::results::row::tests::bandwidth_row;

    fn report() -> Report {
        Report::new(Fingerprint::read([]), vec![bandwidth_row()], None)
    }

    #[test]
    fn a_run_is_the_same_as_itself() {
        let report = report();
        let earlier = EarlierRun::read(&SavedRun::of(&report).to_text().unwrap()).unwrap();
        assert!(earlier.measured_elsewhere(&report.fingerprint).is_none());
        let comparison = earlier.beside(&report.results[0]).unwrap();
        assert_eq!((comparison.figure, comparison.worse_percent), ("GB/s", 0.0));
        assert_eq!(comparison.longer_percent, [("p50", 0.0), ("p90", 0.0), ("p99", 0.0)]);
        assert_eq!(
            comparison.to_string(),
            "4 GB/s, before 4 (0.0 % better); times p50 +0 %, p90 +0 %, p99 +0 %"
        );
    }

    #[test]
    fn less_bandwidth_and_more_latency_are_worse() {
        // A document without histograms can be compared too.
        let mut report = report();
        let earlier = EarlierRun::read(&serde_json::to_string(&report).unwrap()).unwrap();
        let row = &mut report.results[0];
        row.gb_per_s = Some(3.0);
        let slower = earlier.beside(row).unwrap();
        assert!((slower.worse_percent - 25.0).abs() < 1e-9 && slower.longer_percent.is_empty());
        assert_eq!(slower.to_string(), "3 GB/s, before 4 (25.0 % worse)");
        (row.gb_per_s, row.p50_us) = (None, row.p50_us.map(|p50_us| p50_us * 1.5));
        let later = earlier.beside(row).unwrap();
        assert!((later.worse_percent - 50.0).abs() < 0.1, "{later}");
        (row.gb_per_s, row.rate) = (Some(4.0), Some(1000));
        assert!(earlier.beside(row).is_none(), "another load");
        row.rate = None;
        (row.gb_per_s, row.p50_us) = (None, None);
        assert!(earlier.beside(row).is_none(), "nothing to compare");
    }

    #[test]
    fn only_the_same_case_is_compared() {
        let mut report = report();
        let earlier = EarlierRun::read(&serde_json::to_string(&report).unwrap()).unwrap();
        report.results[0].path = Some("elsewhere".into());
        assert!(earlier.has(&report.results[0]), "what carried the bytes may change");
        report.results[0].window = 3;
        assert!(!earlier.has(&report.results[0]));
        assert_eq!(earlier.names(), "tcp bandwidth 1048576 adaptive");
        report.fingerprint.cores += 1;
        assert!(earlier.measured_elsewhere(&report.fingerprint).unwrap().starts_with("cores "));
    }

    #[test]
    fn what_is_no_document_is_refused() {
        for (text, expected) in [
            ("", "not JSON"),
            ("{}", "not a document of schema 1"),
            ("{\"schema\":2}", "not a document of schema 1"),
            ("{\"schema\":1}", "no results"),
            ("{\"schema\":1,\"results\":[7]}", "not a row"),
            ("{\"schema\":1,\"results\":[{\"histogram\":7}]}", "one of its histograms"),
        ] {
            let why = EarlierRun::read(text).map(drop).unwrap_err();
            assert!(why.contains(expected), "{text}: {why}");
        }
    }
}
