//! What the tests, the fuzz targets and `bench --against` need beyond cargo, and how it gets onto a machine that lacks it:
//! a package, or for what is a library and no tool, a build of `bench/compare/`.
//!
//! Nothing here is needed to build or to use Towline: without it, tests skip and say why.

use std::io::stderr;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::process::{Outcome, cargo, find_program, run, target_directory};

/// The variable that turns a skip into a failure: a comma list of [`Need::name`]s and of what else tests can lack.
const REQUIRE: &str = "TOWLINE_REQUIRE";
const INSTALL_LIMIT: Duration = Duration::from_secs(5 * 60);

#[derive(Debug)]
struct Need {
    /// The word for it in `TOWLINE_REQUIRE`.
    name: &'static str,
    binary: &'static str,
    package: &'static str,
    purpose: &'static str,
}

/// A program of `bench/compare/`, which is its word in `TOWLINE_REQUIRE` too.
const COMPARED: [(&str, &str); 1] = [("iceoryx2", "iceoryx2_pingpong")];

/// Everything the test command installs besides; `.ci/run` requires the names in the first column.
const NEEDS: [Need; 6] = [
    Need {
        name: "netns",
        binary: "ip",
        package: "iproute2",
        purpose: "network namespaces for connect time-outs",
    },
    Need {
        name: "iperf3",
        binary: "iperf3",
        package: "iperf3",
        purpose: "a peer tool that bench runs beside tcp",
    },
    Need {
        name: "ucx_perftest",
        binary: "ucx_perftest",
        package: "ucx-utils",
        purpose: "a peer tool that bench runs beside tcp",
    },
    Need {
        name: "fi_pingpong",
        binary: "fi_pingpong",
        package: "libfabric-bin",
        purpose: "a peer tool that bench runs beside tcp",
    },
    Need {
        name: "chromium",
        binary: "chromium",
        package: "chromium",
        purpose: "a browser that reads the pages of bench --html",
    },
    Need {
        name: "c++",
        binary: "c++",
        package: "g++",
        purpose: "what builds libFuzzer, for the fuzz targets",
    },
];

/// As a task: installs everything, and fails where something stays missing.
pub(crate) fn install_all() -> Outcome {
    provide(true, Instant::now() + 2 * INSTALL_LIMIT, |_| true)
}

/// Installs what is missing if it may. What stays missing is reported, and is an error only where it is required.
pub(crate) fn prepare(may_install: bool, deadline: Instant) -> Outcome {
    let required = std::env::var(REQUIRE).unwrap_or_default();
    provide(may_install, deadline, |name| names(&required, name))
        .map_err(|missing| format!("{REQUIRE} names it: {missing}"))
}

fn provide(may_install: bool, deadline: Instant, required: impl Fn(&str) -> bool) -> Outcome {
    let mut missing = missing();
    if may_install && !missing.is_empty() {
        install(&missing, deadline.min(Instant::now() + INSTALL_LIMIT));
        missing = self::missing();
    }
    if may_install && let Err(message) = build_compared(deadline.min(Instant::now() + INSTALL_LIMIT)) {
        eprintln!("{message}");
    }
    let mut unmet = Vec::new();
    for Need { name, binary, package, purpose } in missing {
        eprintln!("{binary} is missing (package {package}, {purpose}): what needs {name} cannot run");
        unmet.push(*name);
    }
    for (name, program) in
        COMPARED.iter().filter(|(_, program)| !compared().join("release").join(program).is_file())
    {
        eprintln!(
            "{program} is not built (bench/compare, for bench --against {name}): what needs {name} cannot run"
        );
        unmet.push(name);
    }
    unmet.retain(|name| required(name));
    if unmet.is_empty() { Ok(()) } else { Err(format!("still missing: {}", unmet.join(", "))) }
}

fn missing() -> Vec<&'static Need> {
    NEEDS.iter().filter(|need| find_program(need.binary).is_none()).collect()
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
        eprintln!("installing {} ({}) with apt-get; --no-install declines", need.package, need.purpose);
    }
    // A failed update may be one dead mirror among several: the installation tells.
    if let Err(message) = run(&mut apt_get(&["update"]), deadline) {
        eprintln!("{message}");
    }
    let mut command = apt_get(&["install", "--yes", "--no-install-recommends"]);
    if let Err(message) = run(command.args(&packages), deadline) {
        eprintln!("{message}; by hand: {by_hand}");
    }
}

/// Where `bench/compare/` is built, and `towline bench --against` looks.
fn compared() -> PathBuf {
    target_directory().join("compare")
}

/// Always: cargo knows what is built already, and whether it still is what the sources say.
fn build_compared(deadline: Instant) -> Outcome {
    let manifest = ["build", "--release", "--locked", "--manifest-path", "bench/compare/Cargo.toml"];
    run(cargo(&manifest).arg("--target-dir").arg(compared()).stdout(stderr()), deadline)
}

/// Standard output belongs to the tests, so apt-get writes to standard error.
fn apt_get(arguments: &[&str]) -> Command {
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
