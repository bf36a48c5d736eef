//! Installs Dask into an environment of its own, with the program of `bench/compare/`.

use std::fs;
use std::io::stderr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use crate::process::{Outcome, run};

/// Installs it below `folder`, as `bench/compare/requirements.txt` specifies. pip skips what is installed
/// already.
pub(crate) fn install(folder: &Path, deadline: Instant) -> Outcome {
    let environment = folder.join("dask");
    let folder = environment.join("bin");
    if !folder.join("pip").is_file() {
        run(Command::new("python3").args(["-m", "venv"]).arg(&environment).stdout(stderr()), deadline)?;
    }
    let mut pip = Command::new(folder.join("pip"));
    pip.args(["install", "--quiet", "--disable-pip-version-check"]);
    pip.args(["--requirement", "bench/compare/requirements.txt"]);
    run(pip.stdout(stderr()), deadline)?;
    let failed = |error: std::io::Error| format!("dask_shuffle: {error}");
    let program = fs::read_to_string("bench/compare/dask_shuffle.py").map_err(failed)?;
    let (path, python) = (folder.join("dask_shuffle"), folder.join("python"));
    fs::write(&path, format!("#!{}\n{program}", python.display())).map_err(failed)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).map_err(failed)
}
