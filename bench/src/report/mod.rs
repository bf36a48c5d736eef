//! The document, as in `docs/bench.md` and its JSON Schema.

pub(crate) mod assertion;
pub(crate) mod headline;
pub(crate) mod history;
pub(crate) mod html;
pub(crate) mod table;

use serde::Serialize;

use crate::machine::fingerprint::Fingerprint;
use crate::results::row::Row;

/// The document of `--json`.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) schema: u32,
    /// Every case was measured, and none failed.
    pub(crate) complete: bool,
    /// Why it is not complete.
    pub(crate) error: Option<String>,
    pub(crate) fingerprint: Fingerprint,
    /// What makes the figures doubtful, such as a busy host.
    pub(crate) warnings: Vec<String>,
    pub(crate) results: Vec<Row>,
}

impl Report {
    /// Returns the document of a run that has just ended; `error` is why it is not complete.
    pub(crate) fn new(mut fingerprint: Fingerprint, results: Vec<Row>, error: Option<String>) -> Self {
        fingerprint.end();
        let warnings = fingerprint.warnings();
        Self { schema: 1, complete: error.is_none(), error, fingerprint, warnings, results }
    }
}
