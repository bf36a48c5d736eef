//! Where the serving side runs: a process of its own, a thread of this one for `mem`, or elsewhere.

use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::time::Duration;

use tokio::sync::oneshot;
use towline::{Address, Endpoint};

use super::serve;
use crate::case::{Case, Wait};
use crate::failure::Failure;
use crate::process::child::Child;
use crate::process::cpu_clock::CpuClock;
use crate::process::runtime_thread;
use crate::security::trust::Trust;

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

/// A process of its own.
#[derive(Debug)]
pub(crate) struct Process {
    address: Address,
    child: Child,
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
        match process.child.ended() {
            Some(status) => {
                Failure::run(format!("the serving process {} died ({status})", process.child.id()))
            }
            None => failure,
        }
    }
}

async fn process(case: &Case, trust: &Trust) -> Result<Process, Failure> {
    let failed = |what: &str, error: &dyn std::fmt::Display| {
        Failure::run(format!("{what} the serving process: {error}"))
    };
    let asked = case.transport.local_address();
    let arguments = ["serve", &asked, "--wait", case.wait.name(), "--until-stdin-ends"].map(OsString::from);
    let own = trust.serving_arguments(case.transport.is_encrypted());
    let arguments = arguments.into_iter().chain(own);
    let (mut child, output) = Child::start(arguments).map_err(|error| failed("start", &error))?;
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
        let status = child.ended().map_or_else(|| "still running".to_owned(), |status| status.to_string());
        return Err(Failure::run(format!(
            "the serving process gave no address ({status}): its own words stand above"
        )));
    }
    Ok(Process { address: parse(line.trim())?, child })
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
    runtime_thread::spawn("serve", move |runtime| runtime.block_on(work))
        .map_err(|error| Failure::run(format!("the serving thread: {error}")))?;
    let address = address.await.map_err(|_| Failure::run("the serving thread ended at once"))??;
    Ok(Serving::Thread { address, _stop: stop })
}

fn parse(text: &str) -> Result<Address, Failure> {
    text.parse().map_err(|error| Failure::run(format!("the serving process's address: {error}")))
}
