//! The newer UCX that tests run with: a wheel, unpacked below the build output.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use crate::process::{Outcome, find_program, run, target_directory};

/// The word for it in `TOWLINE_REQUIRE`.
pub(crate) const NAME: &str = "ucx";
const PACKAGE: &str = "libucx-cu12";
const VERSION: &str = "1.22.0";

/// The library in it. `tests/ucx/libraries.rs` looks there too.
pub(crate) fn library() -> PathBuf {
    folder().join("libucx/lib/libucp.so.0")
}

fn folder() -> PathBuf {
    target_directory().join(format!("{PACKAGE}-{VERSION}"))
}

/// Fetches what is not there yet, whole or not at all.
pub(crate) fn fetch(deadline: Instant) -> Outcome {
    if library().is_file() {
        return Ok(());
    }
    let pip = find_program("pip3").ok_or("there is no pip3")?;
    let partial = folder().with_added_extension("partial");
    let wrong = |error: std::io::Error| format!("{}: {error}", partial.display());
    if partial.exists() {
        fs::remove_dir_all(&partial).map_err(wrong)?;
    }
    let mut command = Command::new(pip);
    command.args(["install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-compile"]);
    command.args(["--only-binary=:all:", "--target"]).arg(&partial).arg(format!("{PACKAGE}=={VERSION}"));
    run(&mut command, deadline)?;
    fs::rename(&partial, folder()).map_err(wrong)
}
