//! iceoryx2's publish-subscribe, by our program on its library: `bench/compare/`, a separate workspace.

use std::path::PathBuf;

use serde::Deserialize;

use super::{Job, Tool, ToolCommands, ToolFigures, built, on_search_path, printed, program_of};
use crate::case::{Pattern, Wait};
use crate::results::tool_row::Completion;

const PROGRAM: &str = "iceoryx2_pingpong";

/// The folder in which `cargo xtask install` builds it, below the build folder.
const BUILT: &str = "compare/release";

#[derive(Debug)]
pub(super) struct Iceoryx2;

/// The program's output.
#[derive(Debug, Deserialize)]
struct IceoryxOutput {
    p50_us: f64,
}

impl Tool for Iceoryx2 {
    fn name(&self) -> &'static str {
        "iceoryx2"
    }

    fn program(&self) -> Option<PathBuf> {
        built(BUILT, PROGRAM).or_else(|| on_search_path(PROGRAM))
    }

    fn remedy(&self) -> &'static str {
        "iceoryx2_pingpong is neither built nor on the search path: cargo xtask install"
    }

    fn version_command(&self) -> Vec<String> {
        program_of(self, PROGRAM, "--version")
    }

    fn version(&self, output: &str) -> Option<String> {
        Some(output.trim().strip_prefix("iceoryx2 ")?.to_owned())
    }

    fn commands(&self, job: &Job<'_>) -> Result<ToolCommands, String> {
        if job.path == "mem" {
            return Err("it runs between two processes, and ours over mem".to_owned());
        }
        if job.pattern != Pattern::Latency {
            return Err("it only plays ping pong: it measures latency".to_owned());
        }
        let mut note = "loaned samples, neither written nor read".to_owned();
        if job.path != "shm" {
            note.push_str(&format!("; over shared memory, ours over {}", job.path));
        }
        if job.wait != Wait::Spin {
            note.push_str("; it polls");
        }
        let Job { size_bytes, messages, warmup, port, .. } = *job;
        Ok(ToolCommands {
            environment: Vec::new(),
            server: program_of(self, PROGRAM, &format!("serve {port}")),
            client: program_of(self, PROGRAM, &format!("ping {port} {size_bytes} {messages} {warmup}")),
            completion: Completion::Receiver,
            note,
        })
    }

    fn read(&self, _: &Job<'_>, output: &str) -> Result<ToolFigures, String> {
        let IceoryxOutput { p50_us } = printed(output)?;
        Ok(ToolFigures { p50_us: Some(p50_us), ..ToolFigures::default() })
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::job;
    use super::*;

    #[test]
    fn its_line_is_read() {
        let job = job(Pattern::Latency, 65536);
        let figures = Iceoryx2.read(&job, include_str!("recorded/iceoryx2_pingpong.json")).unwrap();
        assert_eq!((figures.p50_us, figures.gb_per_s), (Some(0.29), None));
        assert_eq!(Iceoryx2.version(include_str!("recorded/iceoryx2_version.txt")).unwrap(), "0.10.0");
        assert!(Iceoryx2.read(&job, "").unwrap_err().contains("printed nothing"));
        assert!(Iceoryx2.read(&job, "{\"samples\":7}").unwrap_err().contains("no figures"));
        assert_eq!(Iceoryx2.version("usage: …"), None);
    }

    #[test]
    fn it_plays_ping_pong_between_processes_and_nothing_else() {
        let asked = |path, wait| Iceoryx2.commands(&Job { path, wait, ..job(Pattern::Latency, 64) }).unwrap();
        let commands = asked("shm", Wait::Spin);
        assert_eq!(commands.server[1..], ["serve", "7000"]);
        assert_eq!(commands.client[1..], ["ping", "7000", "64", "1000", "100"]);
        assert!(commands.client[0].ends_with(PROGRAM) && !commands.note.contains("ours"), "{commands:?}");
        let other = asked("tcp", Wait::Sleep);
        assert!(other.note.ends_with("; over shared memory, ours over tcp; it polls"), "{}", other.note);
        assert!(Iceoryx2.commands(&job(Pattern::Bandwidth, 64)).unwrap_err().contains("ping pong"));
    }
}
