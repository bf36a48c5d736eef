//! The options `--json` and `--json-file`, which every command has, and the writing of its result.

use std::io::{self, Write};

use serde::Serialize;

use super::output_file::OutputFile;
use super::print::print;
use crate::failure::Failure;

/// The output options of every command.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct Output {
    /// Print the result as JSON, and nothing else
    #[arg(long, help_heading = "Output")]
    json: bool,
    /// Write the result as JSON to FILE as well
    #[arg(long, value_name = "FILE", value_parser = OutputFile::json("--json-file"), help_heading = "Output")]
    json_file: Option<OutputFile>,
}

impl Output {
    /// Returns true if stdout is for the document.
    pub(crate) fn is_on_stdout(&self) -> bool {
        self.json
    }

    /// Returns true if a document is requested.
    pub(crate) fn is_asked_for(&self) -> bool {
        self.json || self.json_file.is_some()
    }

    /// Refuses a file that cannot be written, before the run.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        self.json_file.as_ref().map_or(Ok(()), OutputFile::check)
    }

    /// Returns the file of the document.
    pub(crate) fn file(&self) -> Option<&OutputFile> {
        self.json_file.as_ref()
    }

    /// Writes `document` to its file and, if requested, to stdout; otherwise `text` writes to stdout.
    pub(crate) fn give<T: Serialize>(
        &self,
        document: &T,
        text: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> Result<(), Failure> {
        let mut json = serde_json::to_string_pretty(document)
            .map_err(|error| Failure::run(format!("the result: {error}")))?;
        json.push('\n');
        if let Some(file) = &self.json_file {
            file.write(&json)?;
        }
        print(|out| if self.json { out.write_all(json.as_bytes()) } else { text(out) })
    }
}
