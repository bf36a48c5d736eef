//! A worker: it follows its orders, one after another.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use towline::{Address, Buffer, Endpoint};

use super::back::Back;
use super::tally::Tally;
use super::{Answer, Counted, Order, Spent};
use crate::ceiling::blocking;
use crate::ceiling::socket::{Course, Near};
use crate::data::messages::Load;
use crate::data::payload::{Cargo, Payload};
use crate::failure::Failure;
use crate::peer;
use crate::peer::{Peer, Request, Usage};
use crate::process::cpu_clock::CpuClock;

#[derive(Debug)]
pub(super) struct Worker {
    endpoint: Endpoint,
    clock: CpuClock,
    flows: Vec<Flow>,
    /// What messages are made of.
    memory: Buffer,
    tally: Arc<Tally>,
    /// What the last peer sends, if it does.
    back: Option<Back>,
    lanes: JoinSet<Result<(), Failure>>,
    /// What takes the others' messages.
    serving: JoinSet<Result<(), Failure>>,
    /// What this end had spent when it began.
    begun_cpu_s: f64,
    bare: Option<Near>,
}

/// Messages to one peer.
#[derive(Debug)]
struct Flow {
    peer: Peer,
    host: String,
    load: Load,
    window: usize,
    /// What the far end had spent before.
    before: Usage,
}

impl Worker {
    pub(super) fn new(endpoint: Endpoint, clock: CpuClock) -> Self {
        Self {
            endpoint,
            clock,
            flows: Vec::new(),
            memory: Buffer::new(),
            tally: Arc::default(),
            back: None,
            lanes: JoinSet::new(),
            serving: JoinSet::new(),
            begun_cpu_s: 0.0,
            bare: None,
        }
    }

    /// Until there are no more orders, or it cannot go on.
    pub(super) async fn work(mut self, mut orders: mpsc::UnboundedReceiver<Order>, answer: impl Fn(Answer)) {
        loop {
            let outcome = match self.unless_lost(orders.recv()).await {
                Ok(None) => return,
                Ok(Some(order)) => self.follow(order).await,
                Err(failure) => Err(failure),
            };
            match outcome {
                Ok(done) => answer(done),
                Err(failure) => return answer(Answer::Failed { why: failure.to_string() }),
            }
        }
    }

    /// What comes of `awaited`, unless a message is lost before.
    async fn unless_lost<T>(&mut self, awaited: impl Future<Output = T>) -> Result<T, Failure> {
        let mut awaited = std::pin::pin!(awaited);
        loop {
            tokio::select! {
                biased;
                Some(end) = self.lanes.join_next() => ended(end)?,
                outcome = &mut awaited => return Ok(outcome),
            }
        }
    }

    async fn follow(&mut self, order: Order) -> Result<Answer, Failure> {
        match order {
            Order::Listen { address } => self.listen(&address).await,
            Order::Meet { addresses, mutual, cargo } => self.meet(&addresses, mutual.as_deref(), cargo).await,
            Order::Run => self.run().await,
            Order::Count { duration_us } => self.count(Duration::from_micros(duration_us)).await,
            Order::Stop => self.stop().await,
            Order::Open { course } => self.open(course).await,
            Order::Pour => self.pour().await,
        }
    }

    async fn listen(&mut self, address: &str) -> Result<Answer, Failure> {
        let listener = self.endpoint.listen(&address.parse()?).await?;
        let address = listener.address().to_string();
        self.serving.spawn(peer::serve(listener, self.clock));
        Ok(Answer::Listening { address })
    }

    async fn meet(
        &mut self,
        addresses: &[String],
        mutual: Option<&str>,
        cargo: Cargo,
    ) -> Result<Answer, Failure> {
        let memory = Payload::default().prepare(cargo.layout, cargo.places.from)?;
        let load = Load::new(memory.clone(), cargo);
        for address in addresses.iter().map(String::as_str).chain(mutual) {
            let address: Address = address.parse()?;
            let peer = Peer::new(self.endpoint.connect(&address).await?);
            peer.require(&Request::Sink(cargo)).await?;
            let (host, load) = (address.host().to_owned(), load.clone());
            self.flows.push(Flow { peer, host, load, window: cargo.layout.window, before: Usage::default() });
        }
        if mutual.is_some()
            && let Some(Flow { peer, .. }) = self.flows.last()
        {
            self.back = Some(Back { peer: peer.clone(), cargo, tally: Arc::default() });
        }
        self.memory = memory;
        let mut paths: Vec<&str> =
            self.flows.iter().map(|flow| flow.peer.connection.path().chosen()).collect();
        paths.dedup();
        Ok(Answer::Met { path: paths.join("+") })
    }

    async fn run(&mut self) -> Result<Answer, Failure> {
        for flow in &mut self.flows {
            flow.before = flow.peer.usage().await?;
        }
        self.begun_cpu_s = self.clock.seconds();
        if let Some(back) = &self.back {
            self.lanes.spawn(back.begin().await?);
        }
        for flow in &self.flows {
            // A lane takes a number in the same step as it sends, so numbers leave in order.
            let next = Arc::new(AtomicU64::new(0));
            for _ in 0..flow.window {
                let (connection, load) = (flow.peer.connection.clone(), flow.load.clone());
                let (next, tally) = (next.clone(), self.tally.clone());
                self.lanes.spawn(async move {
                    while !tally.stopped() {
                        let message = load.message(next.fetch_add(1, Ordering::Relaxed));
                        let sent = Instant::now();
                        connection.deliver(message).await?;
                        tally.confirm(sent, Instant::now());
                    }
                    Ok(())
                });
            }
        }
        let back = self.back.iter().map(|back| &back.tally);
        let tallies: Vec<Arc<Tally>> = back.chain([&self.tally]).cloned().collect();
        for tally in tallies {
            self.unless_lost(tally.begun()).await?;
        }
        Ok(Answer::Running)
    }

    async fn count(&mut self, duration: Duration) -> Result<Answer, Failure> {
        let back = self.back.as_ref().map(|back| back.tally.count(duration));
        let out = self.tally.count(duration);
        let out = self.counted(out).await?;
        let back = match back {
            Some(back) => Some(self.counted(back).await?),
            None => None,
        };
        Ok(Answer::Counted { out, back })
    }

    async fn counted(&mut self, counted: oneshot::Receiver<Counted>) -> Result<Counted, Failure> {
        self.unless_lost(counted).await?.map_err(|_| Failure::run("it did not count"))
    }

    async fn stop(&mut self) -> Result<Answer, Failure> {
        self.tally.stop();
        if let Some(back) = &self.back {
            back.enough().await?;
        }
        while let Some(end) = self.lanes.join_next().await {
            ended(end)?;
        }
        let cpu_s = self.clock.seconds() - self.begun_cpu_s;
        let (mut far_cpu_s, mut bytes_copied) = ((f64::INFINITY, 0.0), 0);
        for flow in &self.flows {
            let after = flow.peer.usage().await?;
            far_cpu_s = (flow.before.cpu_s.min(far_cpu_s.0), after.cpu_s.max(far_cpu_s.1));
            bytes_copied += after.bytes_copied + flow.peer.own_usage(self.clock).bytes_copied;
        }
        let came = self.back.as_ref().map_or(0, |back| back.tally.confirmed());
        let messages = self.tally.confirmed() + came;
        Ok(Answer::Stopped(Spent { messages, cpu_s, far_cpu_s, bytes_copied }))
    }

    async fn open(&mut self, course: Course) -> Result<Answer, Failure> {
        let flow = self.flows.first().ok_or_else(|| Failure::run("a bare socket to nobody"))?;
        self.bare = Some(flow.peer.open_socket(&flow.host, course).await?);
        Ok(Answer::Opened)
    }

    async fn pour(&mut self) -> Result<Answer, Failure> {
        let near = self.bare.take().ok_or_else(|| Failure::run("no bare socket"))?;
        let memory = self.memory.clone();
        let ceiling = blocking(move || near.measure(memory.as_slice().unwrap_or_default())).await?;
        let ceiling = ceiling.map_err(|error| Failure::run(error.to_string()))?;
        Ok(Answer::Poured { gb_per_s: ceiling.gb_per_s.unwrap_or_default() })
    }
}

fn ended(lane: Result<Result<(), Failure>, tokio::task::JoinError>) -> Result<(), Failure> {
    lane.map_err(|error| Failure::run(format!("a lane of messages: {error}")))?
}
