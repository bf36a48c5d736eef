//! Dask distributed's shuffle over its tcp, by our program `bench/compare/dask_shuffle.py` on its library.

use std::path::PathBuf;

use serde::Deserialize;

use super::{Job, Tool, ToolCommands, ToolFigures, built, on_search_path, printed, program_of};
use crate::case::Pattern;
use crate::results::tool_row::Completion;

const PROGRAM: &str = "dask_shuffle";

/// The folder in which `cargo xtask install` puts the library and its environment, below the build folder.
const BUILT: &str = "compare/dask/bin";

/// The most timed rounds: the tool should run about as long as ours.
const ROUNDS_MAX: u64 = 10;

#[derive(Debug)]
pub(super) struct Dask;

/// The program's output.
#[derive(Debug, Deserialize)]
struct DaskOutput {
    gb_per_s: f64,
}

impl Tool for Dask {
    fn name(&self) -> &'static str {
        "dask"
    }

    fn program(&self) -> Option<PathBuf> {
        built(BUILT, PROGRAM).or_else(|| on_search_path(PROGRAM))
    }

    fn remedy(&self) -> &'static str {
        "dask_shuffle is neither installed nor on the search path: cargo xtask install"
    }

    fn version_command(&self) -> Vec<String> {
        program_of(self, PROGRAM, "--version")
    }

    fn version(&self, output: &str) -> Option<String> {
        Some(output.trim().strip_prefix("distributed ")?.to_owned())
    }

    fn commands(&self, job: &Job<'_>) -> Result<ToolCommands, String> {
        if job.path == "mem" {
            return Err("it runs between two processes, and ours over mem".to_owned());
        }
        if job.pattern != Pattern::Shuffle {
            return Err("it only shuffles".to_owned());
        }
        let mut note =
            "numpy arrays over its tcp, as many bytes; those that go from worker to worker count".to_owned();
        if job.path != "tcp" {
            note.push_str(&format!("; ours over {}", job.path));
        }
        let Job { size_bytes, window, messages, port, .. } = *job;
        let (part_bytes, rounds) = (size_bytes / (window * window), messages.min(ROUNDS_MAX));
        Ok(ToolCommands {
            environment: Vec::new(),
            server: program_of(self, PROGRAM, &format!("serve {port}")),
            client: program_of(self, PROGRAM, &format!("run {port} {window} {part_bytes} {rounds}")),
            completion: Completion::Receiver,
            note,
        })
    }

    fn read(&self, _: &Job<'_>, output: &str) -> Result<ToolFigures, String> {
        let DaskOutput { gb_per_s } = printed(output)?;
        Ok(ToolFigures { gb_per_s: Some(gb_per_s), ..ToolFigures::default() })
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::job;
    use super::*;

    #[test]
    fn it_moves_as_many_bytes_in_as_many_parts() {
        let job = Job { messages: 3, ..job(Pattern::Shuffle, 1 << 20) };
        let commands = Dask.commands(&job).unwrap();
        assert_eq!(commands.client[1..], ["run", "7000", "16", "4096", "3"]);
        let refused = Dask.commands(&Job { pattern: Pattern::Bandwidth, ..job }).unwrap_err();
        assert_eq!(refused, "it only shuffles");
        assert!(Dask.commands(&Job { path: "shm", ..job }).unwrap().note.ends_with("ours over shm"));
    }

    #[test]
    fn its_line_is_read() {
        let job = job(Pattern::Shuffle, 1 << 20);
        let figures = Dask.read(&job, r#"{"gb_per_s": 0.5, "crossed": 0.5, "rounds": 2}"#).unwrap();
        assert_eq!(figures.gb_per_s, Some(0.5));
        assert!(Dask.read(&job, "").unwrap_err().contains("printed nothing"));
        assert_eq!(Dask.version("distributed 2026.8.0\n").unwrap(), "2026.8.0");
    }
}
