//! Where a command's result goes: a document for machines, or text for people.

use std::fs::OpenOptions;
use std::io::{self, ErrorKind, Write};
use std::path::PathBuf;

use serde::Serialize;

use crate::failure::Failure;

/// The options that every command's result takes.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct Output {
    /// Print the result as JSON, and nothing else
    #[arg(long)]
    json: bool,
    /// Write the result as JSON to FILE as well
    #[arg(long, value_name = "FILE")]
    json_file: Option<PathBuf>,
}

impl Output {
    /// Refuses a file that cannot be written, before the work.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        let Some(path) = &self.json_file else { return Ok(()) };
        let open = OpenOptions::new().create(true).truncate(false).write(true).open(path);
        open.map(drop).map_err(|error| Failure::usage(format!("--json-file {}: {error}", path.display())))
    }

    /// Gives `document` to whom it was promised; people get what `text` writes.
    pub(crate) fn give<T: Serialize>(
        &self,
        document: &T,
        text: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> Result<(), Failure> {
        let wrong = |error: &dyn std::fmt::Display| Failure::run(format!("the result: {error}"));
        let mut json = serde_json::to_string_pretty(document).map_err(|error| wrong(&error))?;
        json.push('\n');
        if let Some(path) = &self.json_file {
            std::fs::write(path, &json)
                .map_err(|error| Failure::run(format!("--json-file {}: {error}", path.display())))?;
        }
        let mut out = io::stdout().lock();
        let printed = if self.json { out.write_all(json.as_bytes()) } else { text(&mut out) };
        match printed.and_then(|()| out.flush()) {
            // Whoever reads may have seen enough.
            Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(wrong(&error)),
            _ => Ok(()),
        }
    }
}
