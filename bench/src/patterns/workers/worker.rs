//! A worker: executes its commands in turn.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use towline::{Address, Buffer, Endpoint};

use super::confirmations::ConfirmationCounter;
use super::reverse::ReverseFlow;
use super::{MessageCount, WorkerCommand, WorkerCost, WorkerReply};
use crate::ceiling::blocking;
use crate::ceiling::socket::{SocketClient, SocketTest};
use crate::data::messages::MessageSource;
use crate::data::payload::{MessageSpec, Payload};
use crate::failure::Failure;
use crate::peer;
use crate::peer::{Peer, Request, Usage};
use crate::process::cpu_clock::CpuClock;

#[derive(Debug)]
pub(super) struct Worker {
    endpoint: Endpoint,
    clock: CpuClock,
    flows: Vec<Flow>,
    /// The payload of the messages.
    memory: Buffer,
    confirmations: Arc<ConfirmationCounter>,
    /// The messages of the mutual peer, if there is one.
    reverse: Option<ReverseFlow>,
    window_tasks: JoinSet<Result<(), Failure>>,
    /// The tasks that take the messages of other workers.
    serving: JoinSet<Result<(), Failure>>,
    /// CPU seconds of this end when it started to send.
    begun_cpu_s: f64,
    bare: Option<SocketClient>,
}

/// Messages to one peer.
#[derive(Debug)]
struct Flow {
    peer: Peer,
    host: String,
    load: MessageSource,
    window: usize,
    /// The far end's cost before the first message.
    before: Usage,
}

impl Worker {
    pub(super) fn new(endpoint: Endpoint, clock: CpuClock) -> Self {
        Self {
            endpoint,
            clock,
            flows: Vec::new(),
            memory: Buffer::new(),
            confirmations: Arc::default(),
            reverse: None,
            window_tasks: JoinSet::new(),
            serving: JoinSet::new(),
            begun_cpu_s: 0.0,
            bare: None,
        }
    }

    /// Executes commands until there are no more, or one fails.
    pub(super) async fn work(
        mut self,
        mut orders: mpsc::UnboundedReceiver<WorkerCommand>,
        answer: impl Fn(WorkerReply),
    ) {
        loop {
            let outcome = match self.unless_lost(orders.recv()).await {
                Ok(None) => return,
                Ok(Some(order)) => self.follow(order).await,
                Err(failure) => Err(failure),
            };
            match outcome {
                Ok(done) => answer(done),
                Err(failure) => return answer(WorkerReply::Failed { why: failure.to_string() }),
            }
        }
    }

    /// Returns the result of `awaited`, or the failure of a message that is lost before.
    async fn unless_lost<T>(&mut self, awaited: impl Future<Output = T>) -> Result<T, Failure> {
        let mut awaited = std::pin::pin!(awaited);
        loop {
            tokio::select! {
                biased;
                Some(end) = self.window_tasks.join_next() => ended(end)?,
                outcome = &mut awaited => return Ok(outcome),
            }
        }
    }

    async fn follow(&mut self, order: WorkerCommand) -> Result<WorkerReply, Failure> {
        match order {
            WorkerCommand::Listen { address } => self.listen(&address).await,
            WorkerCommand::Connect { addresses, mutual, spec } => {
                self.meet(&addresses, mutual.as_deref(), spec).await
            }
            WorkerCommand::Run => self.run().await,
            WorkerCommand::Count { duration_us } => self.count(Duration::from_micros(duration_us)).await,
            WorkerCommand::Stop => self.stop().await,
            WorkerCommand::Open { course } => self.open(course).await,
            WorkerCommand::Pour => self.pour().await,
        }
    }

    async fn listen(&mut self, address: &str) -> Result<WorkerReply, Failure> {
        let listener = self.endpoint.listen(&address.parse()?).await?;
        let address = listener.address().to_string();
        self.serving.spawn(peer::serve(listener, self.clock));
        Ok(WorkerReply::Listening { address })
    }

    async fn meet(
        &mut self,
        addresses: &[String],
        mutual: Option<&str>,
        spec: MessageSpec,
    ) -> Result<WorkerReply, Failure> {
        let memory = Payload::default().prepare(spec.layout, spec.places.from)?;
        let load = MessageSource::new(memory.clone(), spec);
        for address in addresses.iter().map(String::as_str).chain(mutual) {
            let address: Address = address.parse()?;
            let peer = Peer::new(self.endpoint.connect(&address).await?);
            peer.require(&Request::Sink(spec)).await?;
            let (host, load) = (address.host().to_owned(), load.clone());
            self.flows.push(Flow { peer, host, load, window: spec.layout.window, before: Usage::default() });
        }
        if mutual.is_some()
            && let Some(Flow { peer, .. }) = self.flows.last()
        {
            self.reverse = Some(ReverseFlow { peer: peer.clone(), spec, confirmations: Arc::default() });
        }
        self.memory = memory;
        let mut paths: Vec<&str> =
            self.flows.iter().map(|flow| flow.peer.connection.path().chosen()).collect();
        paths.dedup();
        Ok(WorkerReply::Connected { path: paths.join("+") })
    }

    async fn run(&mut self) -> Result<WorkerReply, Failure> {
        for flow in &mut self.flows {
            flow.before = flow.peer.usage().await?;
        }
        self.begun_cpu_s = self.clock.seconds();
        if let Some(reverse) = &self.reverse {
            self.window_tasks.spawn(reverse.begin().await?);
        }
        for flow in &self.flows {
            // A task takes a number in the same step as it sends, so messages leave in order.
            let next = Arc::new(AtomicU64::new(0));
            for _ in 0..flow.window {
                let (connection, load) = (flow.peer.connection.clone(), flow.load.clone());
                let (next, confirmations) = (next.clone(), self.confirmations.clone());
                self.window_tasks.spawn(async move {
                    while !confirmations.stopped() {
                        let message = load.message(next.fetch_add(1, Ordering::Relaxed));
                        let sent = Instant::now();
                        connection.deliver(message).await?;
                        confirmations.confirm(sent, Instant::now());
                    }
                    Ok(())
                });
            }
        }
        let reverse = self.reverse.iter().map(|reverse| &reverse.confirmations);
        let tallies: Vec<Arc<ConfirmationCounter>> = reverse.chain([&self.confirmations]).cloned().collect();
        for confirmations in tallies {
            self.unless_lost(confirmations.begun()).await?;
        }
        Ok(WorkerReply::Running)
    }

    async fn count(&mut self, duration: Duration) -> Result<WorkerReply, Failure> {
        let reverse = self.reverse.as_ref().map(|reverse| reverse.confirmations.count(duration));
        let out = self.confirmations.count(duration);
        let out = self.counted(out).await?;
        let reverse = match reverse {
            Some(reverse) => Some(self.counted(reverse).await?),
            None => None,
        };
        Ok(WorkerReply::Counted { out, reverse })
    }

    async fn counted(&mut self, counted: oneshot::Receiver<MessageCount>) -> Result<MessageCount, Failure> {
        self.unless_lost(counted).await?.map_err(|_| Failure::run("it did not count"))
    }

    async fn stop(&mut self) -> Result<WorkerReply, Failure> {
        self.confirmations.stop();
        if let Some(reverse) = &self.reverse {
            reverse.enough().await?;
        }
        while let Some(end) = self.window_tasks.join_next().await {
            ended(end)?;
        }
        let cpu_s = self.clock.seconds() - self.begun_cpu_s;
        let (mut far_cpu_s, mut bytes_copied) = ((f64::INFINITY, 0.0), 0);
        for flow in &self.flows {
            let after = flow.peer.usage().await?;
            far_cpu_s = (flow.before.cpu_s.min(far_cpu_s.0), after.cpu_s.max(far_cpu_s.1));
            bytes_copied += after.bytes_copied + flow.peer.own_usage(self.clock).bytes_copied;
        }
        let received = self.reverse.as_ref().map_or(0, |reverse| reverse.confirmations.confirmed());
        let messages = self.confirmations.confirmed() + received;
        Ok(WorkerReply::Stopped(WorkerCost { messages, cpu_s, far_cpu_s, bytes_copied }))
    }

    async fn open(&mut self, course: SocketTest) -> Result<WorkerReply, Failure> {
        let flow = self.flows.first().ok_or_else(|| Failure::run("a bare socket without a peer"))?;
        self.bare = Some(flow.peer.open_socket(&flow.host, course).await?);
        Ok(WorkerReply::Opened)
    }

    async fn pour(&mut self) -> Result<WorkerReply, Failure> {
        let near = self.bare.take().ok_or_else(|| Failure::run("no bare socket"))?;
        let memory = self.memory.clone();
        let ceiling = blocking(move || near.measure(memory.as_slice().unwrap_or_default())).await?;
        let ceiling = ceiling.map_err(|error| Failure::run(error.to_string()))?;
        Ok(WorkerReply::Poured { gb_per_s: ceiling.gb_per_s.unwrap_or_default() })
    }
}

fn ended(lane: Result<Result<(), Failure>, tokio::task::JoinError>) -> Result<(), Failure> {
    lane.map_err(|error| Failure::run(format!("a lane of messages: {error}")))?
}
