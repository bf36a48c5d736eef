//! Where what a command has to say goes: a document for machines, text for people, and sentences on stderr.

use std::fmt;
use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde::Serialize;
use tempfile::NamedTempFile;

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
        let wrong = |error: &dyn fmt::Display| Failure::run(format!("the result: {error}"));
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

/// Says a sentence on stderr. Whether anybody reads it is no concern of the command's: `eprintln!` would panic where stderr
/// is a pipe without a reader, or a full disk.
pub(crate) fn say(sentence: impl fmt::Display) {
    let _ = writeln!(io::stderr(), "towline: {sentence}");
}

/// Refuses a file for `option` that cannot be written; what is there stays.
pub(crate) fn check_file(option: &str, path: &Path) -> Result<(), Failure> {
    let check = || {
        if fs::metadata(path).is_ok_and(|there| there.is_dir()) {
            return Err(ErrorKind::IsADirectory.into());
        }
        if fs::metadata(path).is_ok_and(|there| there.is_file()) {
            OpenOptions::new().write(true).open(path)?;
        }
        beside(path).map(drop)
    };
    check().map_err(|error| Failure::usage(format!("{option} {}: {error}", path.display())))
}

/// Writes the file for `option` anew, whole or not at all: whoever reads it meanwhile, or after a failure, finds what was there.
pub(crate) fn write_file(option: &str, path: &Path, text: &str) -> Result<(), Failure> {
    replace(path, text.as_bytes())
        .map_err(|error| Failure::run(format!("{option} {}: {error}", path.display())))
}

fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    // A link stays, and what it names is replaced.
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let Some(mut file) = beside(&path)? else { return fs::write(path, bytes) };
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    match file.persist(&path) {
        // A file that is mounted by itself, as into a container, takes no other's place.
        Err(error) if error.error.kind() == ErrorKind::ResourceBusy => fs::write(path, bytes),
        persisted => Ok(persisted.map(drop)?),
    }
}

/// A temporary file beside `path`, with the permissions of what is there. Nothing where `path` must be written as it is: a pipe
/// or a device, or a file in a folder that takes no others.
fn beside(path: &Path) -> io::Result<Option<NamedTempFile>> {
    let there = match fs::metadata(path) {
        Ok(there) if !there.is_file() => return Ok(None),
        Ok(there) => Some(there.permissions()),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    let folder =
        path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    // Less what the user's mask takes, as of any new file.
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

    #[test]
    fn a_file_is_replaced_whole_and_keeps_its_permissions_and_its_links() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("file"), folder.path().join("link"));
        check_file("--x", &file).unwrap();
        assert!(!file.exists(), "a check leaves nothing");
        write_file("--x", &file, "first").unwrap();
        fs::set_permissions(&file, Permissions::from_mode(0o640)).unwrap();
        symlink(&file, &link).unwrap();
        let mut earlier = fs::File::open(&file).unwrap();
        check_file("--x", &link).unwrap();
        write_file("--x", &link, "second").unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "second");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o640);
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        let mut text = String::new();
        io::Read::read_to_string(&mut earlier, &mut text).unwrap();
        assert_eq!(text, "first", "whoever had it open still has it whole");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "no temporary is left");
    }

    #[test]
    fn what_is_no_file_is_written_as_it_is_and_a_folder_is_refused() {
        check_file("--x", Path::new("/dev/null")).unwrap();
        write_file("--x", Path::new("/dev/null"), "nothing").unwrap();
        assert!(!fs::metadata("/dev/null").unwrap().is_file());
        let folder = tempfile::tempdir().unwrap();
        assert!(check_file("--x", folder.path()).is_err());
        assert!(check_file("--x", &folder.path().join("none/file")).is_err());
    }
}
