//! Wheels that tests use, each unpacked below the build output: the newer UCX, and a parser of metrics.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use crate::process::{Outcome, find_program, run, target_directory};

/// One version of a wheel, without its dependencies.
#[derive(Debug)]
pub(crate) struct Wheel {
    /// Its name in `TOWLINE_REQUIRE`.
    pub(crate) name: &'static str,
    package: &'static str,
    version: &'static str,
    /// A file of the wheel that shows it is complete.
    sign: &'static str,
}

/// `tests/src/libraries.rs` and `bench/tests/cli/readers.rs` use the same folders.
const WHEELS: [Wheel; 2] = [
    Wheel { name: "ucx", package: "libucx-cu12", version: "1.22.0", sign: "libucx/lib/libucp.so.0" },
    Wheel {
        name: "prometheus_client",
        package: "prometheus_client",
        version: "0.26.0",
        sign: "prometheus_client/parser.py",
    },
];

/// Returns the wheels that are not fetched.
pub(crate) fn missing() -> impl Iterator<Item = &'static Wheel> {
    WHEELS.iter().filter(|wheel| !wheel.is_there())
}

/// Fetches the wheels that are missing.
pub(crate) fn fetch(deadline: Instant) -> Outcome {
    // A failure does not stop the others.
    let failures: Vec<_> = missing().filter_map(|wheel| wheel.fetch(deadline).err()).collect();
    if failures.is_empty() { Ok(()) } else { Err(failures.join("; ")) }
}

impl Wheel {
    pub(crate) fn folder(&self) -> PathBuf {
        target_directory().join(format!("{}-{}", self.package, self.version))
    }

    fn is_there(&self) -> bool {
        self.folder().join(self.sign).is_file()
    }

    /// Fetches the wheel. Its folder appears only once it is complete.
    fn fetch(&self, deadline: Instant) -> Outcome {
        let pip = find_program("pip3").ok_or("there is no pip3")?;
        let partial = self.folder().with_added_extension("partial");
        let wrong = |error: std::io::Error| format!("{}: {error}", partial.display());
        if partial.exists() {
            fs::remove_dir_all(&partial).map_err(wrong)?;
        }
        let mut command = Command::new(pip);
        command.args(["install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-compile"]);
        command.args(["--only-binary=:all:", "--target"]).arg(&partial);
        run(command.arg(format!("{}=={}", self.package, self.version)), deadline)?;
        fs::rename(&partial, self.folder()).map_err(wrong)
    }
}
