//! The runs of the tools: a server on a free port of loopback, its client, and the end of both.

use std::net::{Ipv4Addr, TcpListener};
use std::time::{Duration, Instant};

use super::keep::keeper;
use super::tool_process::ToolProcess;
use super::tool_run::ToolRun;
use super::ucx_perftest::UCX_PREFIX;
use super::{Job, RequestedTool, Tool, ToolCommands, ToolFigures};
use crate::case::Case;
use crate::case::Pace;
use crate::failure::Failure;
use crate::results::sample::Repeat;
use crate::terminal::progress::Progress;

/// How long a run may take besides its measurement, which may be slower than ours by [`SLOWER_MAX`].
const GRACE: Duration = Duration::from_secs(60);
const SLOWER_MAX: u32 = 20;

/// How long a server may take until it listens.
const LISTENS_WITHIN: Duration = Duration::from_secs(20);

/// How long a server may take to end after its client.
const FOLLOWS_WITHIN: Duration = Duration::from_secs(5);

/// Another program may take the free port before the tool, so a first failure is repeated.
const ATTEMPTS: u32 = 2;

/// The tools of this run, all of them installed.
#[derive(Debug)]
pub(crate) struct PeerTools {
    tools: Vec<(&'static dyn Tool, Option<String>)>,
    keeper: Vec<String>,
}

impl PeerTools {
    /// Reads the version of every tool. Refuses a tool that is not installed.
    pub(crate) async fn find(asked: &[RequestedTool]) -> Result<Self, Failure> {
        let asked = RequestedTool::unique(asked);
        for tool in &asked {
            tool.check()?;
        }
        let mut found = Vec::new();
        for RequestedTool(tool) in asked {
            found.push((tool, version(tool).await));
        }
        Ok(Self { tools: found, keeper: keeper()? })
    }

    /// Runs each tool once, after one repeat of ours.
    pub(crate) async fn turn(
        &self,
        case: &Case,
        repeat: &Repeat,
        pace: Pace,
        progress: &mut Progress,
    ) -> Result<Vec<ToolRun>, Failure> {
        let messages = repeat.sample.times.len().max(1);
        let share = pace.warmup.as_secs_f64() / pace.duration.as_secs_f64();
        let warmup = (messages as f64 * share).ceil() as u64;
        let job = Job { messages, warmup, ..Job::of(case, &repeat.path) };
        let limit = SLOWER_MAX * (pace.warmup + pace.duration) + GRACE;
        let mut turns = Vec::with_capacity(self.tools.len());
        for (tool, version) in &self.tools {
            progress.show(&format!("{case}, {}", tool.name()));
            let outcome = match tool.commands(&job) {
                Err(why) => Err(why),
                Ok(_) => {
                    let (mut commands, figures) = several_attempts(*tool, job, &self.keeper, limit, progress)
                        .await
                        .map_err(|why| Failure::run(why).during(tool.name()))?;
                    remark(&mut commands, case);
                    Ok((commands, figures))
                }
            };
            turns.push(ToolRun { tool: tool.name(), version: version.clone(), outcome });
        }
        Ok(turns)
    }
}

/// Adds the options of our case that no tool has to the note.
fn remark(commands: &mut ToolCommands, case: &Case) {
    if case.frames > 1 {
        commands.note.push_str("; one buffer a message, ours has more");
    }
    let is_passed =
        |key: &str| commands.environment.iter().any(|(name, _)| name.strip_prefix(UCX_PREFIX) == Some(key));
    let mut omitted = case.transport.clone();
    // The accepted versions do not change the measurement.
    omitted.options.retain(|key, _| !is_passed(key) && key != "versions");
    if !omitted.options.is_empty() {
        commands.note.push_str(&format!("; without our {}", omitted.options()));
    }
}

async fn version(tool: &dyn Tool) -> Option<String> {
    let mut child = ToolProcess::start(&[], &tool.version_command(), &[]).ok()?;
    let ended = child.finish(Instant::now() + LISTENS_WITHIN).await.ok()?;
    tool.version(&ended.out)
}

async fn several_attempts(
    tool: &dyn Tool,
    job: Job<'_>,
    keeper: &[String],
    limit: Duration,
    progress: &mut Progress,
) -> Result<(ToolCommands, ToolFigures), String> {
    let mut attempt = 1;
    loop {
        match attempt_once(tool, job, keeper, limit).await {
            Err(why) if attempt < ATTEMPTS => progress.keep(&format!("{}: {why}: once more", tool.name())),
            outcome => return outcome,
        }
        attempt += 1;
    }
}

async fn attempt_once(
    tool: &dyn Tool,
    job: Job<'_>,
    keeper: &[String],
    limit: Duration,
) -> Result<(ToolCommands, ToolFigures), String> {
    let job = Job { port: free_port()?, ..job };
    let commands = tool.commands(&job)?;
    let mut server = ToolProcess::start(keeper, &commands.server, &commands.environment)?;
    server.listens(job.port, Instant::now() + LISTENS_WITHIN).await?;
    let ended = {
        let mut client = ToolProcess::start(keeper, &commands.client, &commands.environment)?;
        client.finish(Instant::now() + limit).await?
    };
    let figures = match tool.read(&job, &ended.out) {
        Ok(figures) if ended.status.success() => figures,
        Err(why) if ended.status.success() || ended.err.trim().is_empty() => return Err(why),
        _ => return Err(ended.reason()),
    };
    // A server that does not end is killed when its handle is dropped.
    let _ = server.finish(Instant::now() + FOLLOWS_WITHIN).await;
    Ok((commands, figures))
}

fn free_port() -> Result<u16, String> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
    let address = listener.and_then(|listener| listener.local_addr());
    address.map(|address| address.port()).map_err(|error| format!("no free port on loopback: {error}"))
}

#[cfg(test)]
mod tests {
    use super::super::tests::job;
    use super::super::words;
    use super::*;
    use crate::case::Pattern;
    use crate::results::tool_row::Completion;

    const LONG: Duration = Duration::from_secs(60);

    /// A tool whose server and client are shell scripts.
    #[derive(Debug)]
    struct Scripts(&'static str, &'static str);

    impl Tool for Scripts {
        fn name(&self) -> &'static str {
            "scripts"
        }

        fn remedy(&self) -> &'static str {
            "none"
        }

        fn version_command(&self) -> Vec<String> {
            words("echo 7")
        }

        fn version(&self, output: &str) -> Option<String> {
            Some(output.trim().to_owned())
        }

        fn commands(&self, _: &Job<'_>) -> Result<ToolCommands, String> {
            let script = |text: &str| vec!["sh".to_owned(), "-c".to_owned(), text.to_owned()];
            Ok(ToolCommands {
                environment: Vec::new(),
                server: script(self.0),
                client: script(self.1),
                completion: Completion::Sender,
                note: String::new(),
            })
        }

        fn read(&self, _: &Job<'_>, output: &str) -> Result<ToolFigures, String> {
            output
                .trim()
                .parse()
                .map(|rate| ToolFigures { gb_per_s: Some(rate), ..ToolFigures::default() })
                .map_err(|_| "no figure".to_owned())
        }
    }

    #[tokio::test]
    async fn a_server_that_cannot_listen_is_tried_again_and_then_a_failure() {
        let tool = Scripts("echo taken >&2; exit 1", "echo 1");
        let job = job(Pattern::Bandwidth, 8);
        let failed = several_attempts(&tool, job, &[], LONG, &mut Progress::start()).await.unwrap_err();
        assert!(failed.contains("ended instead of listening") && failed.contains("taken"), "{failed}");
        assert_eq!(version(&tool).await.unwrap(), "7");
    }

    #[test]
    fn options_that_a_tool_lacks_are_noted() {
        let mut case = crate::case::tests::case("tcp", Pattern::Bandwidth, 8);
        case.frames = 3;
        case.transport.options.insert("tls".into(), "on".into());
        let mut commands = Scripts("", "").commands(&job(Pattern::Bandwidth, 8)).unwrap();
        remark(&mut commands, &case);
        assert_eq!(commands.note, "; one buffer a message, ours has more; without our ?tls=on");
        let options = [("TLS", "tcp"), ("integrity", "crc32c"), ("versions", "any")];
        case.transport.options = options.map(|(key, value)| (key.into(), value.into())).into();
        (commands.note, commands.environment) = (String::new(), vec![("UCX_TLS".into(), "tcp".into())]);
        remark(&mut commands, &Case { frames: 1, ..case });
        assert_eq!(commands.note, "; without our ?integrity=crc32c", "the passed settings are not noted");
        assert_eq!(words("a  b"), ["a", "b"]);
    }
}
