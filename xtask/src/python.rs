//! The Python package: an environment for its tests, its wheel, and its tests.

use std::fs;
use std::io::stderr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use crate::process::{Outcome, run, target_directory};

/// Its name in `TOWLINE_REQUIRE`.
pub(crate) const NAME: &str = "python";
const PACKAGE: &str = "ffi/python";
const REQUIREMENTS: &str = "ffi/python/tests/requirements.txt";
/// zig links for the old C library of every Linux that the wheel is for.
const WHEEL_TOOLS: [&str; 2] = ["maturin==1.16.0", "ziglang==0.15.2"];

/// Returns the folder of the environment.
fn environment() -> PathBuf {
    target_directory().join("python")
}

fn program(name: &str) -> PathBuf {
    environment().join("bin").join(name)
}

/// Returns pip of an environment, with the arguments of every installation.
fn pip(environment: &Path) -> Command {
    let mut pip = Command::new(environment.join("bin/pip"));
    pip.args(["install", "--quiet", "--disable-pip-version-check"]).stdout(stderr());
    pip
}

/// Makes an empty environment.
fn make(environment: &Path, deadline: Instant) -> Outcome {
    run(Command::new("python3").args(["-m", "venv"]).arg(environment).stdout(stderr()), deadline)
}

/// Returns true if the environment is complete. pip installs pytest's program after the others.
pub(crate) fn is_there() -> bool {
    ["maturin", "pytest"].iter().all(|name| program(name).is_file())
}

/// Makes the environment. pip skips what is installed already.
pub(crate) fn install(deadline: Instant) -> Outcome {
    if !program("pip").is_file() {
        make(&environment(), deadline)?;
    }
    run(pip(&environment()).args(["--requirement", REQUIREMENTS]), deadline)
}

/// Builds the package without optimization, installs it, and runs its tests. It shares the build output of the
/// workspace, and so its dependencies. Skips without the environment, which `install` reports.
pub(crate) fn test(deadline: Instant) -> Outcome {
    if !is_there() {
        println!("skipped: the tests of {PACKAGE}: `cargo xtask install` makes their Python environment");
        return Ok(());
    }
    let wheels = empty_folder("python-wheels")?;
    let mut build = Command::new(program("maturin"));
    build
        .args(["build", "--profile", "dev", "--locked", "--manifest-path"])
        .arg(format!("{PACKAGE}/Cargo.toml"));
    build.arg("--interpreter").arg(program("python")).arg("--out").arg(&wheels);
    run(build.env("CARGO_TARGET_DIR", target_directory()), deadline)?;
    run(pip(&environment()).args(["--force-reinstall", "--no-deps"]).args(files(&wheels)?), deadline)?;
    run(Command::new(program("python")).args(["-m", "pytest"]).current_dir(PACKAGE), deadline)
}

/// Builds the wheel that is published, for every Linux since glibc 2.17, and imports it in an empty environment.
/// Prints its path.
pub(crate) fn wheel(deadline: Instant) -> Outcome {
    let tools = target_directory().join("python-wheel-tools");
    if !tools.join("bin/pip").is_file() {
        make(&tools, deadline)?;
    }
    run(pip(&tools).args(WHEEL_TOOLS), deadline)?;
    let wheels = empty_folder("wheels")?;
    let mut build = Command::new(tools.join("bin/maturin"));
    build.args(["build", "--release", "--locked", "--zig", "--compatibility", "manylinux2014", "--strip"]);
    build.arg("--manifest-path").arg(format!("{PACKAGE}/Cargo.toml")).arg("--out").arg(&wheels);
    // maturin finds zig as a module of the Python that is first on the search path.
    let search_path = std::env::var_os("PATH").unwrap_or_default();
    let folders = [tools.join("bin")].into_iter().chain(std::env::split_paths(&search_path));
    build.env("PATH", std::env::join_paths(folders).map_err(|error| error.to_string())?);
    run(build.env("CARGO_TARGET_DIR", target_directory()), deadline)?;
    let trial = empty_folder("python-wheel-trial")?;
    make(&trial, deadline)?;
    let built = files(&wheels)?;
    run(pip(&trial).args(["--no-index", "--no-deps"]).args(&built), deadline)?;
    let python = || Command::new(trial.join("bin/python"));
    run(python().args(["-c", "import towline; print(towline.Endpoint().backends())"]), deadline)?;
    run(python().args(["-m", "towline", "--version"]), deadline)?;
    built.iter().for_each(|wheel| println!("{}", wheel.display()));
    Ok(())
}

/// Makes an empty folder below the build output.
fn empty_folder(name: &str) -> Result<PathBuf, String> {
    let folder = target_directory().join(name);
    let make = || {
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        fs::create_dir_all(&folder)
    };
    make().map_err(|error| format!("{}: {error}", folder.display()))?;
    Ok(folder)
}

fn files(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let failed = |error: std::io::Error| format!("{}: {error}", folder.display());
    fs::read_dir(folder)
        .map_err(failed)?
        .map(|entry| entry.map(|entry| entry.path()).map_err(failed))
        .collect()
}
