//! Unpacks files of Debian packages without installing them.

use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use crate::install::apt_get;
use crate::process::{Outcome, run};

/// Updates apt-get's lists. A failure is only reported: it may come from one dead mirror of several, and the
/// downloads detect the rest.
pub(crate) fn update(deadline: Instant) {
    if let Err(message) = run(&mut apt_get(&["update"]), deadline) {
        eprintln!("{message}");
    }
}

/// Unpacks the files of packages into a folder.
pub(crate) fn unpack(packages: &[String], folder: &Path, deadline: Instant) -> Outcome {
    let archives = folder.with_added_extension("archives");
    let wrong = |error: io::Error| format!("{}: {error}", archives.display());
    fs::create_dir_all(&archives).map_err(wrong)?;
    let mut download = Command::new("apt-get");
    download.args(["--quiet", "download"]).args(packages).current_dir(&archives).stdout(io::stderr());
    run(&mut download, deadline)?;
    let each = "for archive in \"$1\"/*.deb; do dpkg --extract \"$archive\" \"$2\" || exit; done";
    run(Command::new("sh").args(["-c", each, "sh"]).arg(&archives).arg(folder), deadline)?;
    fs::remove_dir_all(&archives).map_err(wrong)
}
