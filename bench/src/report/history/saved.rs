//! The document of `--save-histograms`: that of the run, with the raw times of each row.

use serde::Serialize;

use crate::machine::fingerprint::Fingerprint;
use crate::report::Report;
use crate::results::histogram::HistogramCounts;
use crate::results::row::Row;

/// The document with histograms, a superset of the document without.
#[derive(Debug, Serialize)]
pub(super) struct SavedRun<'a> {
    schema: u32,
    complete: bool,
    error: Option<&'a str>,
    fingerprint: &'a Fingerprint,
    warnings: &'a [String],
    results: Vec<SavedRow<'a>>,
}

#[derive(Debug, Serialize)]
struct SavedRow<'a> {
    #[serde(flatten)]
    row: &'a Row,
    histogram: Option<HistogramCounts>,
}

impl<'a> SavedRun<'a> {
    pub(super) fn of(report: &'a Report) -> Self {
        let saved = |row: &'a Row| SavedRow { row, histogram: row.times.as_ref().map(HistogramCounts::of) };
        Self {
            schema: report.schema,
            complete: report.complete,
            error: report.error.as_deref(),
            fingerprint: &report.fingerprint,
            warnings: &report.warnings,
            results: report.results.iter().map(saved).collect(),
        }
    }

    pub(super) fn to_text(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string(self).map(|text| text + "\n")
    }
}
