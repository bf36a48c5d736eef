//! Where the serving side runs: a process of its own, a thread of this one for `mem`, or elsewhere.

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::Duration;

use tokio::sync::oneshot;
use towline::{Address, Endpoint};

use super::{CpuClock, serve};
use crate::bench::case::{Case, Wait};
use crate::failure::Failure;
use crate::trust::Trust;

/// A child that has not said where it listens by then never will.
const READY_WITHIN: Duration = Duration::from_secs(10);

/// A serving side, for as long as this lives.
#[derive(Debug)]
pub(crate) enum Serving {
    /// A `towline serve` that this process started.
    Process(Process),
    /// A thread of this process.
    Thread {
        /// Where it listens.
        address: Address,
        /// The thread ends when this is dropped.
        _stop: oneshot::Sender<()>,
    },
    /// A `towline serve` that somebody else started.
    Elsewhere(Address),
}

/// A child process; it is killed by its own id when this is dropped, and ends by itself when this process does.
#[derive(Debug)]
pub(crate) struct Process {
    address: Address,
    child: Child,
    _lifeline: Option<ChildStdin>,
}

impl Serving {
    /// Starts what `case` needs, or takes the one that is already there.
    pub(crate) async fn start(
        case: &Case,
        trust: &Trust,
        elsewhere: Option<&Address>,
    ) -> Result<Self, Failure> {
        match elsewhere {
            Some(address) => Ok(Self::Elsewhere(address.clone())),
            None if case.transport.name == "mem" => thread(case.wait).await,
            None => process(case, trust).await.map(Self::Process),
        }
    }

    pub(crate) fn address(&self) -> &Address {
        match self {
            Self::Process(process) => &process.address,
            Self::Thread { address, .. } | Self::Elsewhere(address) => address,
        }
    }

    /// Whose CPU time the near end is.
    pub(crate) fn near_clock(&self) -> CpuClock {
        if matches!(self, Self::Thread { .. }) { CpuClock::Thread } else { CpuClock::Process }
    }

    /// What to say about a failure: if the serving process died, that is the reason.
    pub(crate) fn explain(&mut self, failure: Failure) -> Failure {
        let Self::Process(process) = self else { return failure };
        match process.ended() {
            Some(status) => {
                Failure::run(format!("the serving process {} died ({status})", process.child.id()))
            }
            None => failure,
        }
    }
}

impl Process {
    /// Its exit status, if it has ended or does so within a moment.
    fn ended(&mut self) -> Option<ExitStatus> {
        for _ in 0..50 {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Some(status);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        None
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only for a child that has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn process(case: &Case, trust: &Trust) -> Result<Process, Failure> {
    let failed = |what: &str, error: &dyn std::fmt::Display| {
        Failure::run(format!("{what} the serving process: {error}"))
    };
    let executable = std::env::current_exe().map_err(|error| failed("find", &error))?;
    let asked = format!("{}://127.0.0.1:0{}", case.transport.scheme(), case.transport.query());
    let mut child = Command::new(executable)
        .args(["serve", &asked, "--wait", case.wait.name(), "--until-stdin-ends"])
        .args(trust.serving_options())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| failed("start", &error))?;
    let output = child.stdout.take();
    let lifeline = child.stdin.take();
    // From here on a failure kills the child.
    let mut process = Process { address: parse(&asked)?, child, _lifeline: lifeline };
    let read = tokio::task::spawn_blocking(move || {
        let mut line = String::new();
        output.map(|output| BufReader::new(output).read_line(&mut line));
        line
    });
    let line = match tokio::time::timeout(READY_WITHIN, read).await {
        Ok(line) => line.map_err(|error| failed("read", &error))?,
        Err(_) => return Err(Failure::run("the serving process did not say where it listens within 10 s")),
    };
    if line.is_empty() {
        let status = process.ended().map_or_else(|| "still running".to_owned(), |status| status.to_string());
        return Err(Failure::run(format!(
            "the serving process gave no address ({status}): its own words stand above"
        )));
    }
    process.address = parse(line.trim())?;
    Ok(process)
}

async fn thread(wait: Wait) -> Result<Serving, Failure> {
    let (ready, address) = oneshot::channel();
    let (stop, mut stopped) = oneshot::channel::<()>();
    let work = async move {
        let listener = async {
            let endpoint = Endpoint::builder().wait(wait.into()).build()?;
            endpoint.listen(&"mem://".parse()?).await
        };
        match listener.await {
            Err(error) => drop(ready.send(Err(error))),
            Ok(listener) => {
                if ready.send(Ok(listener.address().clone())).is_ok() {
                    tokio::select! {
                        _ = serve(listener, CpuClock::Thread) => {}
                        _ = &mut stopped => {}
                    }
                }
            }
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::run(format!("a runtime for the serving thread: {error}")))?;
    std::thread::Builder::new()
        .name("serve".to_owned())
        .spawn(move || runtime.block_on(work))
        .map_err(|error| Failure::run(format!("the serving thread: {error}")))?;
    let address = address.await.map_err(|_| Failure::run("the serving thread ended at once"))??;
    Ok(Serving::Thread { address, _stop: stop })
}

fn parse(text: &str) -> Result<Address, Failure> {
    text.parse().map_err(|error| Failure::run(format!("the serving process's address: {error}")))
}
