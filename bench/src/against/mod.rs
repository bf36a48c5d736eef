//! Peer tools that `--against` runs in turn with ours: one file for each, and one line in [`TOOLS`].

mod dask;
mod fi_pingpong;
mod iceoryx2;
mod iperf3;
pub(crate) mod keep;
mod run;
mod tool_process;
mod tool_run;
mod ucx_perftest;

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

pub(crate) use self::run::PeerTools;
use serde::de::DeserializeOwned;

pub(crate) use self::tool_run::tool_rows;
use crate::case::{Case, Pattern, Transport, Wait};
use crate::failure::Failure;
use crate::results::row::CpuCost;
use crate::results::tool_row::{Completion, ToolRow};

/// Every tool.
const TOOLS: [&dyn Tool; 5] =
    [&iperf3::Iperf3, &ucx_perftest::UcxPerftest, &fi_pingpong::FiPingpong, &iceoryx2::Iceoryx2, &dask::Dask];

/// A peer tool: its server and its client move messages as ours do.
pub(crate) trait Tool: fmt::Debug + Sync {
    /// Returns its name.
    fn name(&self) -> &'static str;

    /// Returns its program, if this machine has it.
    fn program(&self) -> Option<PathBuf> {
        on_search_path(self.name())
    }

    /// Returns why the program is missing, and how to install it.
    fn remedy(&self) -> &'static str;

    /// Returns a command that prints the version.
    fn version_command(&self) -> Vec<String>;

    /// Parses the version from the output of that command.
    fn version(&self, output: &str) -> Option<String>;

    /// Returns the commands for `job`, or why the tool cannot do it.
    fn commands(&self, job: &Job<'_>) -> Result<ToolCommands, String>;

    /// Parses the figures of `job` from the client's output.
    fn read(&self, job: &Job<'_>, output: &str) -> Result<ToolFigures, String>;
}

/// The work of a tool: that of ours, as far as the tool has options for it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Job<'a> {
    pub(crate) pattern: Pattern,
    /// The backend that carried our bytes.
    pub(crate) path: &'a str,
    /// The requested transport with its options.
    pub(crate) transport: &'a Transport,
    pub(crate) size_bytes: usize,
    pub(crate) window: usize,
    pub(crate) wait: Wait,
    /// The number of messages that ours timed.
    pub(crate) messages: u64,
    /// The number of messages before those.
    pub(crate) warmup: u64,
    /// A free port on loopback.
    pub(crate) port: u16,
}

/// The two commands of one run.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ToolCommands {
    /// The environment of both commands.
    pub(crate) environment: Vec<(String, String)>,
    pub(crate) server: Vec<String>,
    pub(crate) client: Vec<String>,
    pub(crate) completion: Completion,
    /// How the tool differs from ours.
    pub(crate) note: String,
}

/// The figures of a run of a tool, in the units of a row.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ToolFigures {
    pub(crate) gb_per_s: Option<f64>,
    pub(crate) p50_us: Option<f64>,
    pub(crate) cpu_s_per_gb: Option<CpuCost>,
}

impl<'a> Job<'a> {
    /// Returns the job for a message of `case` over `path`.
    fn of(case: &'a Case, path: &'a str) -> Self {
        let Case { pattern, size, window, wait, ref transport, .. } = *case;
        Self { pattern, path, transport, size_bytes: size.0, window, wait, messages: 1, warmup: 1, port: 1 }
    }

    /// Returns an error if a tool that only knows TCP cannot do it.
    fn over_tcp(&self) -> Result<(), String> {
        match self.path {
            "tcp" => Ok(()),
            path => Err(format!("it runs over tcp here, and ours over {path}")),
        }
    }
}

/// A tool that `--against` names.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RequestedTool(&'static dyn Tool);

impl RequestedTool {
    /// Refuses a tool that is not installed, with the command that installs it.
    pub(crate) fn check(self) -> Result<(), Failure> {
        match self.0.program() {
            Some(_) => Ok(()),
            None => Err(Failure::usage(format!("--against {}: {}", self.0.name(), self.0.remedy()))),
        }
    }

    /// Returns the tools, each once.
    pub(crate) fn unique(asked: &[Self]) -> Vec<Self> {
        let mut kept: Vec<Self> = Vec::new();
        for tool in asked {
            if !kept.iter().any(|known| known.0.name() == tool.0.name()) {
                kept.push(*tool);
            }
        }
        kept
    }

    /// Returns the row of a case that has not run yet. With `auto` the path is not known, so any path that
    /// suits the tool counts.
    pub(crate) fn planned(self, case: &Case) -> ToolRow {
        let candidates = case.transport.paths().into_iter().map(|path| self.0.commands(&Job::of(case, path)));
        match candidates.reduce(Result::or) {
            Some(Ok(commands)) => ToolRow::planned(self.0.name(), Some(commands.completion), None),
            Some(Err(why)) => ToolRow::planned(self.0.name(), None, Some(why)),
            None => ToolRow::planned(self.0.name(), None, Some("nothing carries it".to_owned())),
        }
    }
}

impl FromStr for RequestedTool {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        TOOLS
            .into_iter()
            .find(|tool| tool.name() == text)
            .map(Self)
            .ok_or_else(|| format!("`{text}` is not a peer tool: choose from {}", names()))
    }
}

/// Returns the names of all tools.
pub(crate) fn names() -> String {
    TOOLS.map(Tool::name).join(", ")
}

fn on_search_path(program: &str) -> Option<PathBuf> {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&folders).map(|folder| folder.join(program)).find(|file| is_program(file))
}

/// Returns a program that `cargo xtask install` built in `folder`, in one of the folders above this program.
fn built(folder: &str, program: &str) -> Option<PathBuf> {
    let own = std::env::current_exe().ok()?;
    own.ancestors().map(|above| above.join(folder).join(program)).find(|file| is_program(file))
}

fn is_program(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    file.metadata().is_ok_and(|about| about.is_file() && about.permissions().mode() & 0o111 != 0)
}

/// Returns the command of our program on a tool's library, with `arguments`.
fn program_of(tool: &dyn Tool, name: &str, arguments: &str) -> Vec<String> {
    let program = tool.program().unwrap_or_else(|| name.into());
    [program.to_string_lossy().into_owned()].into_iter().chain(words(arguments)).collect()
}

/// Parses a program's output: one line of JSON.
fn printed<T: DeserializeOwned>(output: &str) -> Result<T, String> {
    let line = output.lines().next().ok_or("it printed nothing")?;
    serde_json::from_str(line).map_err(|error| format!("it printed no figures: {error}"))
}

/// Splits a command line into words.
fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::tests::case;

    /// Returns a job for the tools' tests.
    pub(super) fn job(pattern: Pattern, size_bytes: usize) -> Job<'static> {
        let case = Box::leak(Box::new(case("tcp", pattern, size_bytes)));
        Job { messages: 1000, warmup: 100, port: 7000, ..Job::of(case, "tcp") }
    }

    #[test]
    fn a_tool_is_known_by_its_name() {
        for tool in TOOLS {
            let RequestedTool(found) = tool.name().parse().unwrap();
            assert_eq!(found.name(), tool.name());
        }
        assert!("netperf".parse::<RequestedTool>().unwrap_err().contains("choose from iperf3, ucx_perftest"));
        let twice: Vec<RequestedTool> =
            ["iperf3", "fi_pingpong", "iperf3"].map(|name| name.parse().unwrap()).into();
        assert_eq!(RequestedTool::unique(&twice).len(), 2);
    }

    #[test]
    fn no_tool_runs_over_mem() {
        for tool in TOOLS {
            for pattern in Pattern::OFFERED {
                let job = Job { path: "mem", ..job(pattern, 8) };
                assert!(!tool.commands(&job).unwrap_err().is_empty(), "{tool:?} {pattern:?}");
            }
        }
    }

    #[test]
    fn a_program_can_be_executed() {
        assert!(is_program(Path::new("/bin/sh")));
        assert!(!is_program(Path::new("/etc/passwd")) && !is_program(Path::new("/bin")));
    }
}
