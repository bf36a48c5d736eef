//! Where a command's result goes: a document for machines, or text for people.

use std::fs::OpenOptions;
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

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
    /// Whether anybody wants the document.
    pub(crate) fn is_asked_for(&self) -> bool {
        self.json || self.json_file.is_some()
    }

    /// Refuses a file that cannot be written, before the work.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        self.json_file.as_ref().map_or(Ok(()), |path| check_file("--json-file", path))
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
            write_file("--json-file", path, &json)?;
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

/// Refuses a file for `option` that cannot be written; what it holds stays.
pub(crate) fn check_file(option: &str, path: &Path) -> Result<(), Failure> {
    let open = OpenOptions::new().create(true).truncate(false).write(true).open(path);
    open.map(drop).map_err(|error| Failure::usage(format!("{option} {}: {error}", path.display())))
}

/// Writes the file for `option` anew.
pub(crate) fn write_file(option: &str, path: &Path, text: &str) -> Result<(), Failure> {
    std::fs::write(path, text).map_err(|error| Failure::run(format!("{option} {}: {error}", path.display())))
}
