//! The progress of a run on stderr: one changing line on a terminal, a line every few seconds elsewhere.

use std::io::{IsTerminal, Write, stderr};
use std::time::{Duration, Instant};

/// How often a line is written if it cannot be replaced.
const EVERY: Duration = Duration::from_secs(5);

/// The progress of a long run.
#[derive(Debug)]
pub(crate) struct Progress {
    terminal: bool,
    shown_at: Instant,
    shown: bool,
}

impl Progress {
    pub(crate) fn start() -> Self {
        Self { terminal: stderr().is_terminal(), shown_at: Instant::now(), shown: false }
    }

    /// Shows `line`, if it is time to.
    pub(crate) fn show(&mut self, line: &str) {
        // Failures to write are ignored.
        if self.terminal {
            let _ = write!(stderr(), "\r\x1b[K{line}");
            self.shown = true;
        } else if self.shown_at.elapsed() >= EVERY {
            self.shown_at = Instant::now();
            let _ = writeln!(stderr(), "towline: {line}");
        }
    }

    /// Writes a line that stays.
    pub(crate) fn keep(&mut self, line: &str) {
        self.clear();
        let _ = writeln!(stderr(), "towline: {line}");
    }

    fn clear(&mut self) {
        if std::mem::take(&mut self.shown) {
            let _ = write!(stderr(), "\r\x1b[K");
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}
