//! The conductor's side: starts workers, gives orders to all of them, and waits for every answer.

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

/// A worker that died is told from those that lost it after so long.
const DEATHS_SHOW_WITHIN: Duration = Duration::from_millis(50);

/// Workers, for as long as this lives.
#[derive(Debug)]
pub(crate) struct Workers {
    workers: Vec<WorkerHandle>,
    /// By worker; `None` is its end.
    answers: mpsc::UnboundedReceiver<(usize, Option<WorkerReply>)>,
}

/// How one worker is held.
#[derive(Debug)]
enum WorkerHandle {
    Process(Child),
    Thread {
        orders: mpsc::UnboundedSender<WorkerCommand>,
        /// The thread ends when this is dropped.
        _stop: oneshot::Sender<()>,
    },
}

/// Where one worker's answers go.
type Answers = mpsc::UnboundedSender<(usize, Option<WorkerReply>)>;

impl Workers {
    /// Starts `count` of them, as `case` needs them.
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

    /// Gives all of them the same order.
    pub(crate) async fn all<T>(
        &mut self,
        order: WorkerCommand,
        read: impl Fn(WorkerReply) -> Option<T>,
    ) -> Result<Vec<T>, Failure> {
        self.each(vec![order; self.count()], read).await
    }

    /// Gives each of them its order, and waits until all have answered.
    pub(crate) async fn each<T>(
        &mut self,
        orders: Vec<WorkerCommand>,
        read: impl Fn(WorkerReply) -> Option<T>,
    ) -> Result<Vec<T>, Failure> {
        for (worker, order) in self.workers.iter_mut().zip(orders) {
            // One that has ended says so below.
            let _ = worker.tell(order);
        }
        let mut said: Vec<Option<T>> = Vec::new();
        said.resize_with(self.count(), || None);
        for _ in 0..self.count() {
            let (index, answer) = self.next().await?;
            match read(answer) {
                Some(answer) => said[index] = Some(answer),
                None => return Err(self.failure(index, "gave an answer to another question").await),
            }
        }
        said.into_iter().collect::<Option<_>>().ok_or_else(|| Failure::run("a worker answered twice"))
    }

    /// Lets them work for `time`.
    pub(crate) async fn rest(&mut self, time: Duration) -> Result<(), Failure> {
        match tokio::time::timeout(time, self.next()).await {
            Err(_) => Ok(()),
            Ok(Ok((index, _))) => Err(self.failure(index, "spoke without being asked").await),
            Ok(Err(failure)) => Err(failure),
        }
    }

    /// The next answer that is no failure.
    async fn next(&mut self) -> Result<(usize, WorkerReply), Failure> {
        match self.answers.recv().await {
            Some((index, Some(WorkerReply::Failed { why }))) => Err(self.failure(index, &why).await),
            Some((index, Some(answer))) => Ok((index, answer)),
            Some((index, None)) => Err(self.failure(index, "ended before its time").await),
            None => Err(Failure::run("no worker is left")),
        }
    }

    /// What to say when worker `index` has a reason to give up: if one died, that is the reason.
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
    fn tell(&mut self, order: WorkerCommand) -> Result<(), Failure> {
        let gone = |_| Failure::run("it has ended");
        match self {
            Self::Process(child) => {
                let line = serde_json::to_string(&order).map_err(|error| Failure::run(error.to_string()))?;
                child.tell(&line).map_err(|error| Failure::run(error.to_string()))
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
        // Nobody waits for a worker's end any more where this fails.
        let _ = answers.send((index, None));
    };
    std::thread::Builder::new().name(format!("worker-{index}")).spawn(read).map_err(failed)?;
    Ok(WorkerHandle::Process(child))
}

/// Passes a process's answers on, until it ends or says what is none.
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
        // Nobody waits for a worker's end any more where this fails.
        let _ = answers.send((index, None));
    };
    runtime_thread::spawn(&format!("worker-{index}"), work).map_err(failed)?;
    Ok(WorkerHandle::Thread { orders, _stop: stop })
}
