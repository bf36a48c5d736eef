//! The process or thread of the serving side: a child process, a thread for `mem`, or one that is already
//! running.

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

/// How long a child may take until it prints its address.
const READY_WITHIN: Duration = Duration::from_secs(10);

/// A serving side, until this is dropped.
#[derive(Debug)]
pub(crate) enum Serving {
    /// A `towline serve` that this process started.
    Process(Process),
    /// A thread of this process.
    Thread {
        /// Its address.
        address: Address,
        /// Dropping this ends the thread.
        _stop: oneshot::Sender<()>,
    },
    /// A `towline serve` that was already running.
    Elsewhere(Address),
}

/// A child process.
#[derive(Debug)]
pub(crate) struct Process {
    address: Address,
    child: Child,
}

impl Serving {
    /// Starts the serving side that `case` needs, or uses the one that is running.
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

    /// Returns the clock of the near end's CPU time.
    pub(crate) fn near_clock(&self) -> CpuClock {
        if matches!(self, Self::Thread { .. }) { CpuClock::Thread } else { CpuClock::Process }
    }

    /// Returns the failure to report: the death of the serving process, if it died, or else `failure`.
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
        Err(_) => return Err(Failure::run("the serving process did not print its address within 10 s")),
    };
    if line.is_empty() {
        let status = child.ended().map_or_else(|| "still running".to_owned(), |status| status.to_string());
        return Err(Failure::run(format!(
            "the serving process printed no address ({status}): its errors are above"
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
