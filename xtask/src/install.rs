//! Installs what the tests, the fuzz targets and `bench --against` need beyond cargo: packages, programs of
//! `bench/compare/` that wrap a library without a tool, wheels for software without a package, the files of a
//! package whose installation would start a server, and an emulated machine for a missing device.
//!
//! None of it is needed to build or use Towline: without it, tests skip and print the reason.

use std::fmt;
use std::io::stderr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::dask;
use crate::machine;
use crate::packages;
use crate::process::{Outcome, cargo, find_program, run, target_directory};
use crate::promtool;
use crate::python;
use crate::wheel;

/// The variable that turns a skip into a failure: a comma-separated list of [`Need::name`]s and other test
/// requirements.
const REQUIRE: &str = "TOWLINE_REQUIRE";
const INSTALL_LIMIT: Duration = Duration::from_secs(5 * 60);

#[derive(Debug)]
struct Need {
    /// Its name in `TOWLINE_REQUIRE`.
    name: &'static str,
    /// The file whose presence shows that it is installed.
    sign: Sign,
    package: &'static str,
    purpose: &'static str,
}

#[derive(Clone, Copy, Debug)]
enum Sign {
    Program(&'static str),
    /// A library on the linker's path.
    Library(&'static str),
    Header(&'static str),
}

impl Sign {
    fn is_here(self) -> bool {
        let machine = format!("/usr/lib/{}-linux-gnu", std::env::consts::ARCH);
        let libraries = [machine.as_str(), "/usr/lib64", "/usr/lib", "/usr/local/lib"];
        match self {
            Self::Program(name) => find_program(name).is_some(),
            Self::Library(name) => libraries.iter().any(|folder| Path::new(folder).join(name).exists()),
            Self::Header(name) => Path::new("/usr/include").join(name).is_file(),
        }
    }
}

impl fmt::Display for Sign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Program(name) | Self::Library(name) | Self::Header(name)) = self;
        f.write_str(name)
    }
}

/// Programs of `bench/compare/`: the name of each in `TOWLINE_REQUIRE`, and its path below the build folder.
const COMPARED: [(&str, &str); 2] =
    [("iceoryx2", "release/iceoryx2_pingpong"), ("dask", "dask/bin/dask_shuffle")];

/// What the test command installs besides. `.ci/run` requires all these names.
const NEEDS: [Need; 11] = [
    Need {
        name: "netns",
        sign: Sign::Program("ip"),
        package: "iproute2",
        purpose: "network namespaces for connect time-outs",
    },
    Need {
        name: "iperf3",
        sign: Sign::Program("iperf3"),
        package: "iperf3",
        purpose: "a peer tool that bench runs beside tcp",
    },
    Need {
        name: "ucx_perftest",
        sign: Sign::Program("ucx_perftest"),
        package: "ucx-utils",
        purpose: "a peer tool that bench runs beside tcp",
    },
    Need {
        name: "fi_pingpong",
        sign: Sign::Program("fi_pingpong"),
        package: "libfabric-bin",
        purpose: "a peer tool that bench runs beside tcp",
    },
    Need {
        name: "dask",
        sign: Sign::Program("python3"),
        package: "python3-venv",
        purpose: "runs Dask, whose shuffle bench compares with ours",
    },
    Need {
        name: "chromium",
        sign: Sign::Program("chromium"),
        package: "chromium",
        purpose: "a browser that reads the pages of bench --html",
    },
    Need {
        name: "c++",
        sign: Sign::Program("c++"),
        package: "g++",
        purpose: "builds libFuzzer for the fuzz targets",
    },
    Need {
        name: "ucx",
        sign: Sign::Library("libucp.so.0"),
        package: "libucx0",
        purpose: "the older of the two tested UCX versions",
    },
    Need {
        name: "ucx",
        sign: Sign::Program("pip3"),
        package: "python3-pip",
        purpose: "fetches the newer UCX and the parsers of metrics",
    },
    Need {
        name: "bindings",
        sign: Sign::Header("ucp/api/ucp.h"),
        package: "libucx-dev",
        purpose: "headers that bindings are made from",
    },
    Need {
        name: "bindings",
        sign: Sign::Library("libclang-14.so.1"),
        package: "libclang1-14",
        purpose: "reads headers for bindgen",
    },
];

/// Runs the task: installs everything, and fails if anything stays missing.
pub(crate) fn install_all() -> Outcome {
    provide(true, Instant::now() + 2 * INSTALL_LIMIT, |_| true)
}

/// Installs what is missing, if `may_install`. Reports what stays missing, and fails if any of it is
/// required.
pub(crate) fn prepare(may_install: bool, deadline: Instant) -> Outcome {
    provide(may_install, deadline, is_required).map_err(|missing| format!("{REQUIRE} names it: {missing}"))
}

fn provide(may_install: bool, deadline: Instant, required: impl Fn(&str) -> bool) -> Outcome {
    let mut missing = missing();
    if may_install && !missing.is_empty() {
        install(&missing, deadline.min(Instant::now() + INSTALL_LIMIT));
        missing = self::missing();
    }
    if may_install {
        for provide in [
            build_compared,
            |deadline| dask::install(&compared(), deadline),
            wheel::fetch,
            promtool::fetch,
            machine::fetch,
            python::install,
        ] {
            if let Err(message) = provide(deadline.min(Instant::now() + INSTALL_LIMIT)) {
                eprintln!("{message}");
            }
        }
    }
    let mut unmet = Vec::new();
    for Need { name, sign, package, purpose } in missing {
        eprintln!("{sign} is missing (package {package}, {purpose}): what needs {name} cannot run");
        unmet.push(*name);
    }
    for (name, program) in COMPARED.iter().filter(|(_, program)| !compared().join(program).is_file()) {
        eprintln!(
            "{program} is not there (bench/compare, for bench --against {name}): what needs {name} cannot run"
        );
        unmet.push(name);
    }
    for wheel in wheel::missing() {
        eprintln!("{} was not fetched: what needs {} cannot run", wheel.folder().display(), wheel.name);
        unmet.push(wheel.name);
    }
    if !promtool::is_there() {
        eprintln!("{0} was not fetched: what needs {0} cannot run", promtool::NAME);
        unmet.push(promtool::NAME);
    }
    if !machine::is_there() {
        eprintln!("{} was not made: what needs {} cannot run", machine::folder().display(), machine::NAME);
        unmet.push(machine::NAME);
    }
    if !python::is_there() {
        eprintln!("the Python environment was not made: what needs {} cannot run", python::NAME);
        unmet.push(python::NAME);
    }
    unmet.retain(|name| required(name));
    if unmet.is_empty() { Ok(()) } else { Err(format!("still missing: {}", unmet.join(", "))) }
}

fn missing() -> Vec<&'static Need> {
    NEEDS.iter().filter(|need| !need.sign.is_here()).collect()
}

/// Returns why `name` is missing on this machine, if it is.
pub(crate) fn lack_of(name: &str) -> Option<String> {
    let lack = missing().into_iter().find(|need| need.name == name)?;
    Some(format!("{} is missing (package {})", lack.sign, lack.package))
}

/// Returns true if the absence of `name` is a failure.
pub(crate) fn is_required(name: &str) -> bool {
    names(&std::env::var(REQUIRE).unwrap_or_default(), name)
}

fn names(required: &str, name: &str) -> bool {
    required.split(',').any(|word| word.trim() == name)
}

fn install(needs: &[&Need], deadline: Instant) {
    let packages: Vec<_> = needs.iter().map(|need| need.package).collect();
    let by_hand = format!("sudo apt-get install {}", packages.join(" "));
    if find_program("apt-get").is_none() {
        eprintln!("cannot install {}: there is no apt-get here", packages.join(", "));
        return;
    }
    if !rustix::process::geteuid().is_root() && run(quiet(&mut sudo(&["true"])), deadline).is_err() {
        eprintln!("cannot install without being root or sudo without a password; by hand: {by_hand}");
        return;
    }
    for need in needs {
        eprintln!("installing {} ({}) with apt-get", need.package, need.purpose);
    }
    packages::update(deadline);
    let mut command = apt_get(&["install", "--yes", "--no-install-recommends"]);
    if let Err(message) = run(command.args(&packages), deadline) {
        eprintln!("{message}; by hand: {by_hand}");
    }
}

/// Returns the build folder of `bench/compare/`, which `towline bench --against` reads.
fn compared() -> PathBuf {
    target_directory().join("compare")
}

/// Builds the programs of `bench/compare/`. Runs always, as cargo knows which are up to date.
fn build_compared(deadline: Instant) -> Outcome {
    let manifest = ["build", "--release", "--locked", "--manifest-path", "bench/compare/Cargo.toml"];
    run(cargo(&manifest).arg("--target-dir").arg(compared()).stdout(stderr()), deadline)
}

/// Returns an apt-get command. It writes to standard error, because standard output belongs to the tests.
pub(crate) fn apt_get(arguments: &[&str]) -> Command {
    let program = ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "--quiet"];
    let mut command = if rustix::process::geteuid().is_root() {
        let mut command = Command::new(program[0]);
        command.args(&program[1..]);
        command
    } else {
        sudo(&program)
    };
    command.args(arguments).stdout(stderr());
    command
}

fn sudo(arguments: &[&str]) -> Command {
    let mut command = Command::new("sudo");
    command.arg("--non-interactive").args(arguments);
    command
}

fn quiet(command: &mut Command) -> &mut Command {
    command.stdout(Stdio::null()).stderr(Stdio::null())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requirements_are_whole_words_of_a_comma_list() {
        assert!(names("ucx, netns", "netns"));
        assert!(!names("netns2,ucx", "netns"));
        assert!(!names("", "netns"));
    }
}
