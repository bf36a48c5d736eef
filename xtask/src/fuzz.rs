//! `cargo xtask fuzz`: runs the targets of `fuzz/` under libFuzzer, from their committed corpora and earlier
//! crashes.
//!
//! It builds them as cargo-fuzz does, but with the stable compiler. It needs only a C++ compiler, which
//! builds libFuzzer. `cargo fuzz run TARGET` does the same with a nightly compiler.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::process::{Outcome, cargo, find_program, host_triple, root, run as run_command, target_directory};

pub(crate) const TARGETS: [&str; 7] =
    ["addresses", "control", "expressions", "frames", "handshake", "lent_frames", "one_sided"];

/// Compiler flags for libFuzzer: counters at edges, and traced comparisons. Overflows panic.
const COVERAGE: &str = "--cfg fuzzing -Cdebug-assertions -Ccodegen-units=1 -Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares";
/// Limits of one allocation, of the whole process, and of an input.
const LIMITS: [&str; 3] = ["-malloc_limit_mb=64", "-rss_limit_mb=1024", "-max_len=4096"];
/// Seconds after which one input counts as a hang.
const HANG: &str = "-timeout=10";
/// The effort for each target in continuous integration.
const STAGE: Effort = Effort { runs: Some(50_000), seconds: Some(15) };

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Executions of each target
    #[arg(long, value_name = "N")]
    runs: Option<u64>,
    /// Seconds for each target; 60 if neither option is given
    #[arg(long, value_name = "S")]
    seconds: Option<u64>,
    /// Without AddressSanitizer: several times as fast
    #[arg(long)]
    fast: bool,
    /// Add new inputs to the committed corpora, and minimise these without losing coverage
    #[arg(long)]
    keep: bool,
    /// Run only these targets
    #[arg(value_name = "TARGET", value_parser = TARGETS)]
    targets: Vec<String>,
}

/// Limits of a run; the first one reached ends it. Without either, it never ends.
#[derive(Clone, Copy, Debug)]
struct Effort {
    runs: Option<u64>,
    seconds: Option<u64>,
}

impl Effort {
    fn arguments(self) -> impl Iterator<Item = String> {
        let runs = self.runs.map(|runs| format!("-runs={runs}"));
        runs.into_iter().chain(self.seconds.map(|seconds| format!("-max_total_time={seconds}")))
    }
}

pub(crate) fn run(arguments: &Arguments) -> Outcome {
    let Arguments { runs, seconds, fast, keep, targets } = arguments;
    let unbounded = runs.is_none() && seconds.is_none();
    let effort = Effort { runs: *runs, seconds: if unbounded { Some(60) } else { *seconds } };
    let all = TARGETS.map(str::to_owned);
    let targets = if targets.is_empty() { &all[..] } else { targets };
    // libFuzzer observes the effort itself. The deadline ends a target that never returns to it.
    let deadline = Instant::now() + Duration::from_secs(24 * 60 * 60);
    fuzz(targets, effort, *fast, *keep, deadline)
}

/// Runs the stage of `ci`: with AddressSanitizer, the whole corpus, and a bounded number of executions.
pub(crate) fn stage(deadline: Instant) -> Outcome {
    let manifest = manifest();
    run_command(cargo(&["fmt", "--check", "--manifest-path"]).arg(&manifest), deadline)?;
    fuzz(&TARGETS.map(str::to_owned), STAGE, false, false, deadline)
}

fn manifest() -> PathBuf {
    root().join("fuzz/Cargo.toml")
}

fn fuzz(targets: &[String], effort: Effort, fast: bool, keep: bool, deadline: Instant) -> Outcome {
    let folder = build(fast, deadline)?;
    let scratch = target_directory().join("fuzz-found");
    let artifacts = root().join("fuzz/artifacts");
    let mut failed = Vec::new();
    for target in targets {
        let [corpus, crashes] =
            ["fuzz/corpus", "fuzz/crashes"].map(|folder| root().join(folder).join(target));
        let found = scratch.join(target);
        let artifacts = artifacts.join(target);
        for folder in [&found, &artifacts] {
            fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        }
        // libFuzzer writes new inputs to the first folder and only reads the others.
        let mut command = program(&folder.join(target));
        command.args(LIMITS).arg(HANG).args(effort.arguments()).arg("-print_final_stats=1");
        command.arg(format!("-artifact_prefix={}/", artifacts.display()));
        command.arg(&found).arg(&corpus).args(crashes.is_dir().then_some(&crashes));
        if let Err(why) = run_command(&mut command, deadline) {
            eprintln!("{why}: the input is in {}", artifacts.display());
            failed.push(target.as_str());
        } else if keep {
            merge(&folder.join(target), &[&corpus, &found], &corpus, deadline)?;
        }
    }
    if failed.is_empty() { Ok(()) } else { Err(format!("failed targets: {}", failed.join(", "))) }
}

/// Replaces `corpus` by few and small inputs of `sources` with the same coverage.
fn merge(program_at: &Path, sources: &[&Path], corpus: &Path, deadline: Instant) -> Outcome {
    let kept = corpus.with_extension("kept");
    let wrong = |error: std::io::Error| format!("{}: {error}", kept.display());
    fs::create_dir_all(&kept).map_err(wrong)?;
    let mut command = program(program_at);
    run_command(command.arg("-set_cover_merge=1").args(LIMITS).arg(&kept).args(sources), deadline)?;
    fs::remove_dir_all(corpus).and_then(|()| fs::rename(&kept, corpus)).map_err(wrong)
}

fn program(path: &Path) -> std::process::Command {
    let mut command = std::process::Command::new(path);
    command.current_dir(root());
    command
}

/// Builds all targets and returns their folder.
fn build(fast: bool, deadline: Instant) -> Result<PathBuf, String> {
    if std::env::var_os("CXX").is_none() && find_program("c++").is_none() {
        return Err("a C++ compiler builds libFuzzer, and there is no c++: sudo apt-get install g++".into());
    }
    let (name, sanitizer) = if fast { ("fuzz-fast", "") } else { ("fuzz", " -Zsanitizer=address") };
    let target = target_directory().join(name);
    let triple = host_triple();
    let mut command =
        cargo(&["build", "--release", "--locked", "--bins", "--target", &triple, "--manifest-path"]);
    command.arg(manifest()).arg("--target-dir").arg(&target);
    command.env("RUSTC_BOOTSTRAP", "1").env("RUSTFLAGS", format!("{COVERAGE}{sanitizer}"));
    run_command(&mut command, deadline)?;
    Ok(target.join(triple).join("release"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stages::FUZZ;

    #[test]
    fn every_target_is_run_and_has_a_corpus() {
        let names = |folder: &str| {
            let entries = fs::read_dir(root().join("fuzz").join(folder)).unwrap();
            let mut names: Vec<_> =
                entries.map(|entry| entry.unwrap().path().file_stem().unwrap().to_owned()).collect();
            names.sort();
            names
        };
        assert_eq!(names("fuzz_targets"), TARGETS);
        assert_eq!(names("corpus"), TARGETS);
        assert!(STAGE.seconds.unwrap() * TARGETS.len() as u64 <= FUZZ.limit.as_secs() / 2);
    }
}
