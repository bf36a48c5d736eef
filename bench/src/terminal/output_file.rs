//! An output file of the command.
//!
//! After a run the file holds that run's document, or does not exist. A run that fails before it has a document
//! writes one with `"complete": false` and the error, so no document of an older run remains. The file stays
//! unchanged in two cases: the command line is refused before the file is checked, or the process is killed.

use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::builder::{PathBufValueParser, TypedValueParser};
use serde::Serialize;
use tempfile::NamedTempFile;

use super::print::{print, reason, say};
use crate::failure::Failure;

/// Clones are the same file.
#[derive(Clone, Debug)]
pub(crate) struct OutputFile {
    option: &'static str,
    path: PathBuf,
    /// True if its document is JSON.
    json: bool,
    /// True if the file was checked and not yet written: its content is older than this run.
    pending: Arc<AtomicBool>,
}

/// The document of a run that failed before it had a result.
#[derive(Debug, Serialize)]
struct Failed {
    schema: u32,
    complete: bool,
    error: String,
}

impl OutputFile {
    /// Parses the value of `option`, which names a file for JSON.
    pub(crate) fn json(option: &'static str) -> impl TypedValueParser<Value = Self> {
        PathBufValueParser::new().map(move |path| Self::new(option, path, true))
    }

    /// Parses the value of `option`, which names a file for a page.
    pub(crate) fn page(option: &'static str) -> impl TypedValueParser<Value = Self> {
        PathBufValueParser::new().map(move |path| Self::new(option, path, false))
    }

    fn new(option: &'static str, path: PathBuf, json: bool) -> Self {
        Self { option, path, json, pending: Arc::default() }
    }

    /// Returns true if `path` is this file.
    pub(crate) fn is(&self, path: &Path) -> bool {
        let known = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
        known(&self.path) == known(path)
    }

    /// Returns true if it is `-`: stdout.
    pub(crate) fn is_stdout(&self) -> bool {
        !self.json && self.path.as_os_str() == "-"
    }

    /// Refuses a file that cannot be written, before the run. The old content stays for now.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        if self.is_stdout() {
            return Ok(());
        }
        let check = || {
            if fs::metadata(&self.path).is_ok_and(|there| there.is_dir()) {
                return Err(ErrorKind::IsADirectory.into());
            }
            if fs::metadata(&self.path).is_ok_and(|there| there.is_file()) {
                OpenOptions::new().write(true).open(&self.path)?;
            }
            beside(&self.path).map(drop)
        };
        check().map_err(|error| Failure::usage(self.sentence(&error)))?;
        self.pending.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Replaces the file as a whole or not at all: a reader meanwhile finds the old content.
    pub(crate) fn write(&self, text: &str) -> Result<(), Failure> {
        if self.is_stdout() {
            return print(|out| out.write_all(text.as_bytes()));
        }
        replace(&self.path, text.as_bytes()).map_err(|error| Failure::run(self.sentence(&error)))?;
        self.pending.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// Replaces content that is older than this failed run by a document with the error, or removes it.
    pub(crate) fn fail(&self, failure: &Failure) {
        if !self.pending.load(Ordering::Relaxed) {
            return;
        }
        let failed = Failed { schema: 1, complete: false, error: failure.to_string() };
        let document = serde_json::to_string_pretty(&failed).ok().filter(|_| self.json);
        if document.is_some_and(|text| self.write(&(text + "\n")).is_ok()) {
            return;
        }
        // A pipe or a device has no content to remove.
        let older = self.path.canonicalize().ok().filter(|path| path.is_file());
        if let Some(Err(error)) = older.map(fs::remove_file) {
            say(format_args!("{}, which may hold an earlier run", self.sentence(&error)));
        }
    }

    fn sentence(&self, error: &io::Error) -> String {
        format!("{} {}: {}", self.option, self.path.display(), reason(error))
    }
}

fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    // A symbolic link stays, and its target is replaced.
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let Some(mut file) = beside(&path)? else { return fs::write(path, bytes) };
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    match file.persist(&path) {
        // A file that is a mount point, as in a container, cannot be replaced by a rename.
        Err(error) if error.error.kind() == ErrorKind::ResourceBusy => fs::write(path, bytes),
        persisted => Ok(persisted.map(drop)?),
    }
}

/// Creates a temporary file beside `path`, with the permissions of the old file. Returns `None` if `path`
/// must be written in place: a pipe or a device, or a file in a folder that is not writable.
fn beside(path: &Path) -> io::Result<Option<NamedTempFile>> {
    let there = match fs::metadata(path) {
        Ok(there) if !there.is_file() => return Ok(None),
        Ok(there) => Some(there.permissions()),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    let folder =
        path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    // The umask applies, as to any new file.
    let usual = Permissions::from_mode(0o666);
    let made = tempfile::Builder::new().prefix(".towline-").permissions(usual).tempfile_in(folder);
    match (made, there) {
        (Ok(file), Some(there)) => {
            file.as_file().set_permissions(there)?;
            Ok(Some(file))
        }
        (Err(error), Some(_))
            if matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem) =>
        {
            Ok(None)
        }
        (made, _) => made.map(Some),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn file(path: impl Into<PathBuf>) -> OutputFile {
        OutputFile::new("--x", path.into(), true)
    }

    #[test]
    fn a_file_is_replaced_whole_and_keeps_its_permissions_and_its_links() {
        let folder = tempfile::tempdir().unwrap();
        let (path, link) = (folder.path().join("file"), folder.path().join("link"));
        file(&path).check().unwrap();
        assert!(!path.exists(), "a check leaves nothing");
        file(&path).write("first").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        symlink(&path, &link).unwrap();
        let mut earlier = fs::File::open(&path).unwrap();
        file(&link).check().unwrap();
        file(&link).write("second").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "second");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        let mut text = String::new();
        io::Read::read_to_string(&mut earlier, &mut text).unwrap();
        assert_eq!(text, "first", "whoever had it open still has it whole");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "no temporary is left");
    }

    #[test]
    fn devices_are_written_in_place_and_folders_refused() {
        file("/dev/null").check().unwrap();
        file("/dev/null").write("nothing").unwrap();
        assert!(!fs::metadata("/dev/null").unwrap().is_file());
        let folder = tempfile::tempdir().unwrap();
        assert!(file(folder.path()).check().is_err());
        assert!(file(folder.path().join("none/file")).check().is_err());
    }

    #[test]
    fn a_failure_replaces_only_what_is_older_than_the_run() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let failure = Failure::run("no peer");
        let (unchecked, written, failed) = (file(&path), file(&path), file(&path));
        fs::write(&path, "older").unwrap();
        unchecked.fail(&failure);
        assert_eq!(fs::read_to_string(&path).unwrap(), "older", "nothing was promised");
        written.check().unwrap();
        written.write("mine").unwrap();
        written.fail(&failure);
        assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
        failed.check().unwrap();
        failed.clone().fail(&failure);
        let document: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        assert_eq!(document, serde_json::json!({"schema": 1, "complete": false, "error": "no peer"}));
        let page = OutputFile::new("--x", path.clone(), false);
        page.check().unwrap();
        page.fail(&failure);
        assert!(!path.exists(), "a page of an older run");
    }
}
