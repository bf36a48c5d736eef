//! promtool, Prometheus' own parser of metrics. It is unpacked from its Debian package below the build
//! output, because an installation would start a server.

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use crate::packages;
use crate::process::{Outcome, find_program, target_directory};

/// The program's name, also in `TOWLINE_REQUIRE`.
pub(crate) const NAME: &str = "promtool";
const PACKAGE: &str = "prometheus";

/// Returns the program's folder. `bench/tests/cli/readers.rs` uses the same path.
fn folder() -> PathBuf {
    target_directory().join(NAME)
}

pub(crate) fn is_there() -> bool {
    folder().join(NAME).is_file() || find_program(NAME).is_some()
}

/// Fetches the program unless it is there; it appears only once it is complete. The download has 19 MB; 48 MB
/// unpacked are kept.
pub(crate) fn fetch(deadline: Instant) -> Outcome {
    if is_there() {
        return Ok(());
    }
    let partial = folder().with_added_extension("partial");
    let wrong = |error: std::io::Error| format!("{}: {error}", partial.display());
    if partial.exists() {
        fs::remove_dir_all(&partial).map_err(wrong)?;
    }
    packages::update(deadline);
    packages::unpack(&[PACKAGE.to_owned()], &partial, deadline)?;
    let keep = || {
        fs::create_dir_all(folder())?;
        fs::rename(partial.join("usr/bin").join(NAME), folder().join(NAME))?;
        fs::remove_dir_all(&partial)
    };
    keep().map_err(wrong)
}
