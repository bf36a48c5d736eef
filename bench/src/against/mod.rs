//! The tools of others that `--against` runs in turn with ours: one file a tool, and one line in [`TOOLS`].

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

/// Every tool that can be asked for.
const TOOLS: [&dyn Tool; 5] =
    [&iperf3::Iperf3, &ucx_perftest::UcxPerftest, &fi_pingpong::FiPingpong, &iceoryx2::Iceoryx2, &dask::Dask];

/// A tool of somebody else: a server and a client of it move messages as ours do.
pub(crate) trait Tool: fmt::Debug + Sync {
    /// Its name everywhere.
    fn name(&self) -> &'static str;

    /// Its program, if this machine has it.
    fn program(&self) -> Option<PathBuf> {
        on_search_path(self.name())
    }

    /// Why it has no program, and what to do.
    fn remedy(&self) -> &'static str;

    /// A program that comes with it, with arguments, that prints the version.
    fn version_command(&self) -> Vec<String>;

    /// The version in what that prints.
    fn version(&self, output: &str) -> Option<String>;

    /// How it does `job`, or why it cannot.
    fn commands(&self, job: &Job<'_>) -> Result<ToolCommands, String>;

    /// What its client's output says about `job`.
    fn read(&self, job: &Job<'_>, output: &str) -> Result<ToolFigures, String>;
}

/// What a tool is to do: what ours just did, as far as a tool can be told.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Job<'a> {
    pub(crate) pattern: Pattern,
    /// What carries our bytes.
    pub(crate) path: &'a str,
    /// What was asked for, with its options.
    pub(crate) transport: &'a Transport,
    pub(crate) size_bytes: usize,
    pub(crate) window: usize,
    pub(crate) wait: Wait,
    /// As many as ours timed.
    pub(crate) messages: u64,
    /// As many again, before those.
    pub(crate) warmup: u64,
    /// A free port on loopback.
    pub(crate) port: u16,
}

/// The two commands of one run.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ToolCommands {
    /// Of both.
    pub(crate) environment: Vec<(String, String)>,
    pub(crate) server: Vec<String>,
    pub(crate) client: Vec<String>,
    pub(crate) completion: Completion,
    /// How it differs from ours.
    pub(crate) note: String,
}

/// What a run of a tool gave, in the units of a row.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ToolFigures {
    pub(crate) gb_per_s: Option<f64>,
    pub(crate) p50_us: Option<f64>,
    pub(crate) cpu_s_per_gb: Option<CpuCost>,
}

impl<'a> Job<'a> {
    /// A message of `case`, over `path`.
    fn of(case: &'a Case, path: &'a str) -> Self {
        let Case { pattern, size, window, wait, ref transport, .. } = *case;
        Self { pattern, path, transport, size_bytes: size.0, window, wait, messages: 1, warmup: 1, port: 1 }
    }

    /// Why a tool that only knows TCP cannot do it, if so.
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
    /// Refuses a tool that is not here, with the line that installs it.
    pub(crate) fn check(self) -> Result<(), Failure> {
        match self.0.program() {
            Some(_) => Ok(()),
            None => Err(Failure::usage(format!("--against {}: {}", self.0.name(), self.0.remedy()))),
        }
    }

    /// The tools without repetitions.
    pub(crate) fn unique(asked: &[Self]) -> Vec<Self> {
        let mut kept: Vec<Self> = Vec::new();
        for tool in asked {
            if !kept.iter().any(|known| known.0.name() == tool.0.name()) {
                kept.push(*tool);
            }
        }
        kept
    }

    /// The entry of a case that has not run yet. What `auto` will choose is not known then: whatever suits the tool may be it.
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
            .ok_or_else(|| format!("`{text}` is no peer tool: choose from {}", names()))
    }
}

/// What can be asked for.
pub(crate) fn names() -> String {
    TOOLS.map(Tool::name).join(", ")
}

fn on_search_path(program: &str) -> Option<PathBuf> {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&folders).map(|folder| folder.join(program)).find(|file| is_program(file))
}

/// What `spec xtask install` made, in `folder` of one of those that this program lies in.
fn built(folder: &str, program: &str) -> Option<PathBuf> {
    let own = std::env::current_exe().ok()?;
    own.ancestors().map(|above| above.join(folder).join(program)).find(|file| is_program(file))
}

fn is_program(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    file.metadata().is_ok_and(|about| about.is_file() && about.permissions().mode() & 0o111 != 0)
}

/// A program of ours on a tool's library, wherever that has it, with `arguments`.
fn program_of(tool: &dyn Tool, name: &str, arguments: &str) -> Vec<String> {
    let program = tool.program().unwrap_or_else(|| name.into());
    [program.to_string_lossy().into_owned()].into_iter().chain(words(arguments)).collect()
}

/// What it printed: one line of JSON.
fn printed<T: DeserializeOwned>(output: &str) -> Result<T, String> {
    let line = output.lines().next().ok_or("it printed nothing")?;
    serde_json::from_str(line).map_err(|error| format!("it printed no figures: {error}"))
}

/// The words of a command.
fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::tests::case;

    /// A job that every tool's tests use.
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
    fn nothing_of_others_stays_within_a_process() {
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
