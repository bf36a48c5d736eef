//! Requirements that a machine may lack. A test that cannot run skips and prints the reason; it fails if its
//! need is required.
//!
//! Each skip is recorded for the `cargo test` that runs it. The test `skipped` of `xtask`, which cargo runs
//! last, prints the record, because a passing test's output is not shown.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use libtest_mimic::{Completion, Failed};

/// A comma-separated list of needs whose absence is a failure.
const REQUIRE: &str = "TOWLINE_REQUIRE";

/// Ends a test that cannot run because the machine lacks `need`.
///
/// # Errors
/// If `TOWLINE_REQUIRE` names the need.
pub fn skip(need: &str, reason: &str) -> Result<Completion, Failed> {
    record(need, reason)?;
    Ok(Completion::ignored_with(format!("needs {need}: {reason}")))
}

/// Records that a test, or a part of one, does not run because the machine lacks `need`.
///
/// # Panics
/// If `TOWLINE_REQUIRE` names the need.
#[track_caller]
pub fn skipped(need: &str, reason: &str) {
    if let Err(required) = record(need, reason) {
        panic!("{required}");
    }
    eprintln!("skipped: needs {need}: {reason}");
}

fn record(need: &str, reason: &str) -> Result<(), String> {
    let required = std::env::var(REQUIRE).unwrap_or_default();
    if required.split(',').any(|word| word.trim() == need) {
        return Err(format!("{REQUIRE} requires {need}, which is missing: {reason}"));
    }
    if let Some(record) = Record::of_this_run()
        && let Err(error) = record.add(need, reason)
    {
        eprintln!("{}: {error}", record.0.display());
    }
    Ok(())
}

/// The skips of one `cargo test`: a file with a line for each.
#[derive(Debug)]
pub struct Record(PathBuf);

impl Record {
    /// Returns the record of the `cargo` that runs this process, below its build output. `None` if no cargo
    /// runs it.
    pub fn of_this_run() -> Option<Self> {
        let program = std::env::current_exe().ok()?;
        let folder = program.parent()?.parent()?.join("skipped");
        let mut process = Process::read("self")?;
        while process.name != "cargo" {
            process = Process::read(&process.parent.to_string())?;
        }
        Some(Self(folder.join(format!("{}-{}", process.id, process.started))))
    }

    fn add(&self, need: &str, reason: &str) -> io::Result<()> {
        fs::create_dir_all(self.0.parent().unwrap_or_else(|| Path::new(".")))?;
        let line = format!("{need}: {}\n", reason.split_whitespace().collect::<Vec<_>>().join(" "));
        // Each line is one write, so that lines of several processes and threads do not mix.
        OpenOptions::new().create(true).append(true).open(&self.0)?.write_all(line.as_bytes())
    }

    /// Takes the record: each need with its reason, and the number of its skips. Removes the records of ended
    /// runs too.
    pub fn take(&self) -> BTreeMap<String, usize> {
        let text = fs::read_to_string(&self.0).unwrap_or_default();
        let mut counts = BTreeMap::new();
        for line in text.lines() {
            *counts.entry(line.to_owned()).or_default() += 1;
        }
        let records = self.0.parent().and_then(|folder| fs::read_dir(folder).ok());
        for record in records.into_iter().flatten().flatten() {
            let name = record.file_name().to_string_lossy().into_owned();
            let is_over = name.split_once('-').is_none_or(|(id, started)| {
                Process::read(id).is_none_or(|process| process.started != started)
            });
            if is_over || record.path() == self.0 {
                // Another run may have removed it.
                let _ = fs::remove_file(record.path());
            }
        }
        counts
    }
}

/// The status of a process in `/proc`.
#[derive(Debug)]
struct Process {
    id: u32,
    name: String,
    parent: u32,
    /// In ticks since the machine started. It distinguishes processes that had the same id.
    started: String,
}

impl Process {
    fn read(id: &str) -> Option<Self> {
        // proc_pid_stat(5): `pid (name) state parent …`; the name may contain any character.
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
        let (head, tail) = stat.rsplit_once(')')?;
        let (id, name) = head.split_once(" (")?;
        let mut fields = tail.split_whitespace();
        let parent = fields.nth(1)?.parse().ok()?;
        Some(Self {
            id: id.parse().ok()?,
            name: name.to_owned(),
            parent,
            started: fields.nth(17)?.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_counts_skips_and_is_removed_with_ended_runs() {
        let folder = tempfile::tempdir().unwrap();
        let record = Record(folder.path().join("1-0"));
        fs::write(folder.path().join("2-no process started then"), "left: behind\n").unwrap();
        for reason in ["none", "none\n  here", "none"] {
            record.add("ucx", reason).unwrap();
        }
        let told = record.take();
        assert_eq!(
            told.into_iter().collect::<Vec<_>>(),
            [("ucx: none".into(), 2), ("ucx: none here".into(), 1)]
        );
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        assert!(record.take().is_empty());
    }

    #[test]
    fn the_run_that_a_test_belongs_to_is_found() {
        let process = Process::read("self").unwrap();
        assert_eq!(process.id, std::process::id());
        assert!(process.started.parse::<u64>().unwrap() > 0);
        assert_eq!(process.parent, std::os::unix::process::parent_id());
    }
}
