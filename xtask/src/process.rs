//! Runs commands with a deadline. At the deadline, the command and all its descendants are ended.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, getpid, kill_process, set_child_subreaper};

/// The result of a task or stage. The error is one sentence for the user.
pub(crate) type Outcome = Result<(), String>;

const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// Time between SIGTERM and SIGKILL for the processes of a command past its deadline.
const TERMINATION_GRACE: Duration = Duration::from_secs(3);

/// Returns the root of the repository.
pub(crate) fn root() -> &'static Path {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().unwrap_or(package)
}

/// Returns the folder of the build output.
pub(crate) fn target_directory() -> PathBuf {
    root().join(std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into()))
}

/// Returns the target triple of this machine.
pub(crate) fn host_triple() -> String {
    format!("{}-unknown-linux-gnu", std::env::consts::ARCH)
}

/// Returns a command of the cargo that runs this program, in the root of the repository.
pub(crate) fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments).current_dir(root());
    command
}

/// Finds a program on the search path or in the folders of system administration tools.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let search_path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&search_path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|folder| folder.join(name))
        .find(|program| program.is_file())
}

/// Runs a command to its end, or ends it at the deadline. Its output is inherited; its input is empty.
pub(crate) fn run(command: &mut Command, deadline: Instant) -> Outcome {
    let line = describe(command);
    eprintln!("$ {line}");
    let mut child =
        command.stdin(Stdio::null()).spawn().map_err(|error| format!("{line}: cannot start: {error}"))?;
    loop {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => return Ok(()),
            Ok(Some(status)) => return Err(format!("{line}: {status}")),
            Ok(None) if Instant::now() < deadline => sleep(POLL_INTERVAL),
            Ok(None) => {
                end_descendants();
                return Err(format!("{line}: ended at its time limit"));
            }
            Err(error) => return Err(format!("{line}: cannot wait: {error}")),
        }
    }
}

fn describe(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or_default();
    let mut line = String::new();
    for (name, value) in command.get_envs() {
        if let Some(value) = value.filter(|_| name != "PATH") {
            line += &format!("{}={:?} ", name.to_string_lossy(), value.to_string_lossy());
        }
    }
    line += &program.to_string_lossy();
    for argument in command.get_args() {
        line += " ";
        line += &argument.to_string_lossy();
    }
    line
}

/// Ends every descendant. They share this process's group, so that Ctrl-C reaches them; they are found
/// through their parents instead.
fn end_descendants() {
    // Children of a process that ends first become children of this one, and are found in the next round.
    let _ = set_child_subreaper(Some(getpid()));
    let mut terminated = BTreeSet::new();
    let deadline = Instant::now() + TERMINATION_GRACE;
    loop {
        let alive = descendants();
        let kill = Instant::now() >= deadline;
        for &process in &alive {
            if kill || terminated.insert(process) {
                let signal = if kill { Signal::KILL } else { Signal::TERM };
                if let Some(process) = Pid::from_raw(process) {
                    let _ = kill_process(process, signal);
                }
            }
        }
        // A process that survives a second of SIGKILL belongs to another user (through sudo).
        if alive.is_empty() || Instant::now() >= deadline + Duration::from_secs(1) {
            return;
        }
        sleep(POLL_INTERVAL);
    }
}

/// Returns the living descendants of this process.
fn descendants() -> BTreeSet<i32> {
    let pairs: Vec<_> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let process = entry.ok()?.file_name().to_str()?.parse::<i32>().ok()?;
            // proc_pid_stat(5): `pid (name) state parent …`; the name may contain any character.
            let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
            let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
            let state = fields.next()?;
            let parent = fields.next()?.parse::<i32>().ok()?;
            (state != "Z").then_some((process, parent))
        })
        .collect();
    let own = getpid().as_raw_nonzero().get();
    let mut found = BTreeSet::new();
    loop {
        let before = found.len();
        for (process, parent) in &pairs {
            if *parent == own || found.contains(parent) {
                found.insert(*process);
            }
        }
        if found.len() == before {
            return found;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One test for both cases: the deadline of one would end the command of the other.
    #[test]
    fn a_command_passes_fails_or_ends_at_its_deadline_with_all_it_started() {
        let started = Instant::now();
        let soon = started + Duration::from_secs(60);
        assert!(run(&mut Command::new("true"), soon).is_ok());
        assert!(run(&mut Command::new("false"), soon).unwrap_err().contains("exit status: 1"));
        assert!(run(&mut Command::new("no-such-program"), soon).unwrap_err().contains("cannot start"));

        let mut command = Command::new("sh");
        command.args(["-c", "sleep 61 & sleep 61"]);
        let error = run(&mut command, Instant::now() + Duration::from_millis(200)).unwrap_err();
        assert!(error.ends_with("ended at its time limit"), "{error}");
        assert!(descendants().is_empty(), "left behind: {:?}", descendants());
        assert!(started.elapsed() < Duration::from_secs(30));
    }
}
