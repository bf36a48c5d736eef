//! What a machine may lack: a test that cannot run here skips with its reason, and fails where its need is required.
//!
//! Each skip is recorded for the `cargo test` that runs it. The test `skipped` of `xtask`, which cargo runs last, prints the
//! record: a test's own output is shown only where it fails.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use libtest_mimic::{Completion, Failed};

/// A comma list of needs whose lack is a failure.
const REQUIRE: &str = "TOWLINE_REQUIRE";

/// The end of a test that cannot run for the lack of `need`, and why.
///
/// # Errors
/// Where `TOWLINE_REQUIRE` asks for it.
pub fn skip(need: &str, reason: &str) -> Result<Completion, Failed> {
    record(need, reason)?;
    Ok(Completion::ignored_with(format!("needs {need}: {reason}")))
}

/// Records that a test, or a part of one, does not run for the lack of `need`, and why.
///
/// # Panics
/// Where `TOWLINE_REQUIRE` asks for it.
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
        return Err(format!("{REQUIRE} asks for {need}, and there is none: {reason}"));
    }
    if let Some(record) = Record::of_this_run()
        && let Err(error) = record.add(need, reason)
    {
        eprintln!("{}: {error}", record.0.display());
    }
    Ok(())
}

/// What one `cargo test` skipped: a file with a line for each.
#[derive(Debug)]
pub struct Record(PathBuf);

impl Record {
    /// That of the `cargo` that runs this process, below its build output; none where no cargo does.
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
        // One write each: lines of processes and threads do not mix.
        OpenOptions::new().create(true).append(true).open(&self.0)?.write_all(line.as_bytes())
    }

    /// Takes the record: each need with its reason, and how often it was told. Records of runs that are over go with it.
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
                // Another run may have done so.
                let _ = fs::remove_file(record.path());
            }
        }
        counts
    }
}

/// What `/proc` tells of a process.
#[derive(Debug)]
struct Process {
    id: u32,
    name: String,
    parent: u32,
    /// In ticks since the machine started, which tells processes of one number apart.
    started: String,
}

impl Process {
    fn read(id: &str) -> Option<Self> {
        // proc_pid_stat(5): `pid (name) state parent …`, and the name may hold anything.
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
    fn a_record_counts_what_is_told_and_goes_with_those_that_are_over() {
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
