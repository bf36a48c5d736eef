//! Earlier runs: `--save-histograms` writes a run with its raw times, `--compare` compares with an earlier
//! run.

mod compare;
mod saved;

use std::path::{Path, PathBuf};

pub(crate) use self::compare::EarlierRun;
use self::saved::SavedRun;
use super::Report;
use crate::failure::Failure;
use crate::results::row::Row;
use crate::terminal::output_file::OutputFile;
use crate::terminal::print::say;

/// The options for earlier runs.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct History {
    /// Write the document to FILE, with the raw histogram of every row's times
    #[arg(long, value_name = "FILE", value_parser = OutputFile::json("--save-histograms"), help_heading = "Output")]
    save_histograms: Option<OutputFile>,
    /// Compare every row with the same one in FILE, of --save-histograms or --json-file, and fail if it is
    /// worse
    #[arg(long, value_name = "FILE", help_heading = "Comparison")]
    compare: Option<PathBuf>,
    /// How much worse than in --compare a row may be: GB/s if it has that figure, else the median time
    #[arg(long, value_name = "PERCENT", default_value_t = 10.0, requires = "compare", value_parser = percent, help_heading = "Comparison")]
    threshold: f64,
}

impl History {
    /// Refuses a file that cannot be written, before the work.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        self.save_histograms.as_ref().map_or(Ok(()), OutputFile::check)
    }

    /// Returns the file of `--save-histograms`.
    pub(crate) fn file(&self) -> Option<&OutputFile> {
        self.save_histograms.as_ref()
    }

    /// Returns the file of `--compare`.
    pub(crate) fn compared(&self) -> Option<&Path> {
        self.compare.as_deref()
    }

    /// Reads the earlier run, which must have a row of this one.
    pub(crate) fn open(&self, planned: &[Row]) -> Result<Option<EarlierRun>, Failure> {
        let Some(path) = &self.compare else { return Ok(None) };
        let wrong = |why: String| Failure::usage(format!("--compare {}: {why}", path.display()));
        let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
        let earlier = EarlierRun::read(&text).map_err(wrong)?;
        if !planned.iter().any(|row| earlier.has(row)) {
            return Err(wrong(format!("it has no row of this run: {}", earlier.names())));
        }
        Ok(Some(earlier))
    }

    /// Writes the run.
    pub(crate) fn save(&self, report: &Report) -> Result<(), Failure> {
        let Some(file) = &self.save_histograms else { return Ok(()) };
        let wrong = |error| Failure::run(format!("--save-histograms: {error}"));
        file.write(&SavedRun::of(report).to_text().map_err(wrong)?)
    }

    /// Compares every row on stderr; a row that is worse beyond the threshold fails the run.
    pub(crate) fn judge(&self, earlier: Option<&EarlierRun>, report: &Report) -> Result<(), Failure> {
        let Some(earlier) = earlier else { return Ok(()) };
        if let Some(other) = earlier.measured_elsewhere(&report.fingerprint) {
            say(format_args!("the earlier run was measured on something else: {other}"));
        }
        let (mut compared, mut worse) = (0, 0);
        for row in report.results.iter().filter(|row| row.error.is_none()) {
            match earlier.beside(row) {
                None => say(format_args!("not in the earlier run: {}", row.name())),
                Some(comparison) => {
                    compared += 1;
                    let beyond = comparison.worse_percent > self.threshold;
                    worse += usize::from(beyond);
                    let word = if beyond { "worse" } else { "compared" };
                    say(format_args!("{word}: {}: {comparison}", row.name()));
                }
            }
        }
        match worse {
            0 => Ok(()),
            _ => Err(Failure::run(format!(
                "{worse} of {compared} rows are worse than before by more than {} %",
                self.threshold
            ))),
        }
    }
}

fn percent(text: &str) -> Result<f64, String> {
    text.parse::<f64>()
        .ok()
        .filter(|percent| percent.is_finite() && *percent >= 0.0)
        .ok_or_else(|| format!("`{text}` is not a percentage: write a number from 0, such as 5"))
}
