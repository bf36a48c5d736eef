//! The coordinator's side: starts workers, sends commands to all of them, and waits for every reply.

use std::io::{BufRead, BufReader};
use std::process::ChildStdout;
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio::sync::{mpsc, oneshot};

use super::worker::Worker;
use super::{WorkerCommand, WorkerReply};
use crate::case::{Case, Wait};
use crate::failure::Failure;
use crate::process::child::Child;
use crate::process::cpu_clock::CpuClock;
use crate::process::runtime_thread;
use crate::security::trust::Trust;

/// How long the death of a worker may take to show, so that its failure is not attributed to its peers.
const DEATHS_SHOW_WITHIN: Duration = Duration::from_millis(50);

/// Workers, until this is dropped.
#[derive(Debug)]
pub(crate) struct Workers {
    workers: Vec<WorkerHandle>,
    /// Replies by worker; `None` if that worker has ended.
    answers: mpsc::UnboundedReceiver<(usize, Option<WorkerReply>)>,
}

/// A worker as the coordinator holds it.
#[derive(Debug)]
enum WorkerHandle {
    Process(Child),
    Thread {
        orders: mpsc::UnboundedSender<WorkerCommand>,
        /// Dropping this ends the thread.
        _stop: oneshot::Sender<()>,
    },
}

/// The channel of the workers' replies.
type Answers = mpsc::UnboundedSender<(usize, Option<WorkerReply>)>;

impl Workers {
    /// Starts `count` workers for `case`.
    pub(crate) fn start(count: usize, case: &Case, trust: &Trust) -> Result<Self, Failure> {
        let (give, answers) = mpsc::unbounded_channel();
        let start = |index| match case.transport.name {
            "mem" => thread(index, case.wait, trust, give.clone()),
            _ => process(index, case.wait, trust, give.clone()),
        };
        let workers = (0..count).map(start).collect::<Result<Vec<_>, Failure>>()?;
        Ok(Self { workers, answers })
    }

    pub(crate) fn count(&self) -> usize {
        self.workers.len()
    }

    /// Sends all workers the same command, and waits for all replies.
    pub(crate) async fn all<T>(
        &mut self,
        order: WorkerCommand,
        read: impl Fn(WorkerReply) -> Option<T>,
    ) -> Result<Vec<T>, Failure> {
        self.each(vec![order; self.count()], read).await
    }

    /// Sends each worker its command, and waits for all replies.
    pub(crate) async fn each<T>(
        &mut self,
        orders: Vec<WorkerCommand>,
        read: impl Fn(WorkerReply) -> Option<T>,
    ) -> Result<Vec<T>, Failure> {
        for (worker, order) in self.workers.iter_mut().zip(orders) {
            // A worker that has ended is reported below.
            let _ = worker.send(order);
        }
        let mut replies: Vec<Option<T>> = Vec::new();
        replies.resize_with(self.count(), || None);
        for _ in 0..self.count() {
            let (index, answer) = self.next().await?;
            match read(answer) {
                Some(answer) => replies[index] = Some(answer),
                None => return Err(self.failure(index, "sent an unexpected answer").await),
            }
        }
        replies.into_iter().collect::<Option<_>>().ok_or_else(|| Failure::run("a worker answered twice"))
    }

    /// Waits for `time` while the workers send.
    pub(crate) async fn rest(&mut self, time: Duration) -> Result<(), Failure> {
        match tokio::time::timeout(time, self.next()).await {
            Err(_) => Ok(()),
            Ok(Ok((index, _))) => Err(self.failure(index, "sent an unexpected reply").await),
            Ok(Err(failure)) => Err(failure),
        }
    }

    /// Returns the next reply; a worker's failure is an error.
    async fn next(&mut self) -> Result<(usize, WorkerReply), Failure> {
        match self.answers.recv().await {
            Some((index, Some(WorkerReply::Failed { why }))) => Err(self.failure(index, &why).await),
            Some((index, Some(answer))) => Ok((index, answer)),
            Some((index, None)) => Err(self.failure(index, "ended early").await),
            None => Err(Failure::run("all workers have ended")),
        }
    }

    /// Returns the failure to report for worker `index`: a worker's death, if one died, or else `why`.
    async fn failure(&mut self, index: usize, why: &str) -> Failure {
        tokio::time::sleep(DEATHS_SHOW_WITHIN).await;
        for (index, worker) in self.workers.iter_mut().enumerate() {
            if let WorkerHandle::Process(child) = worker
                && let Some(status) = child.status().filter(|status| !status.success())
            {
                return Failure::run(format!("worker {index}, process {}, died ({status})", child.id()));
            }
        }
        Failure::run(format!("worker {index}: {why}"))
    }
}

impl WorkerHandle {
    fn send(&mut self, order: WorkerCommand) -> Result<(), Failure> {
        let gone = |_| Failure::run("it has ended");
        match self {
            Self::Process(child) => {
                let line = serde_json::to_string(&order).map_err(|error| Failure::run(error.to_string()))?;
                child.write_line(&line).map_err(|error| Failure::run(error.to_string()))
            }
            Self::Thread { orders, .. } => orders.send(order).map_err(gone),
        }
    }
}

fn process(index: usize, wait: Wait, trust: &Trust, answers: Answers) -> Result<WorkerHandle, Failure> {
    let mut arguments = vec!["work".into(), "--wait".into(), wait.name().into()];
    arguments.extend(trust.arguments());
    let failed = |error| Failure::run(format!("start worker {index}: {error}"));
    let (child, output) = Child::start(arguments).map_err(failed)?;
    let read = move || {
        output.into_iter().for_each(|output| pass_on(index, output, &answers));
        // This fails only if the coordinator is gone.
        let _ = answers.send((index, None));
    };
    std::thread::Builder::new().name(format!("worker-{index}")).spawn(read).map_err(failed)?;
    Ok(WorkerHandle::Process(child))
}

/// Forwards a process's replies, until it ends or writes something else.
fn pass_on(index: usize, output: ChildStdout, answers: &Answers) {
    for line in BufReader::new(output).lines() {
        let Ok(answer) = line.map_err(drop).and_then(|line| serde_json::from_str(&line).map_err(drop)) else {
            return;
        };
        if answers.send((index, Some(answer))).is_err() {
            return;
        }
    }
}

fn thread(index: usize, wait: Wait, trust: &Trust, answers: Answers) -> Result<WorkerHandle, Failure> {
    let failed = |error: std::io::Error| Failure::run(format!("start worker {index}: {error}"));
    let endpoint = trust.endpoint(wait)?;
    let (orders, given) = mpsc::unbounded_channel();
    let (stop, stopped) = oneshot::channel::<()>();
    let work = move |runtime: &Runtime| {
        let say = |answer| drop(answers.send((index, Some(answer))));
        runtime.block_on(async {
            tokio::select! {
                () = Worker::new(endpoint, CpuClock::Thread).work(given, say) => {}
                _ = stopped => {}
            }
        });
        // This fails only if the coordinator is gone.
        let _ = answers.send((index, None));
    };
    runtime_thread::spawn(&format!("worker-{index}"), work).map_err(failed)?;
    Ok(WorkerHandle::Thread { orders, _stop: stop })
}
