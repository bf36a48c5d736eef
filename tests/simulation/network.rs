//! `mem` with a simulated network between its ends. Each connection has its own delays, and one submission of
//! a run may cut its connection.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use towline::backend::{Backend, Caps, Identity, Link, LinkContext, LinkStats, Op, Opening, Probe, Role};
use towline::environment::Environment;
use towline::{Address, Error, ErrorKind, Result};

use crate::rng::Rng;
use crate::simulation::Host;

/// The network of one run.
#[derive(Debug)]
pub(crate) struct Network {
    pub(crate) rng: Rng,
    /// Submissions left until one cuts its connection.
    pub(crate) cut_in: Option<u64>,
}

/// The in-process backend of one host over that network.
#[derive(Clone, Debug)]
pub(crate) struct NetworkedBackend {
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) host: Host,
    pub(crate) network: Arc<Mutex<Network>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl towline::backend::sealed::Sealed for NetworkedBackend {}

impl Backend for NetworkedBackend {
    fn name(&self) -> &'static str {
        self.backend.name()
    }

    fn probe(&self) -> Probe {
        self.backend.probe()
    }

    fn offer(&self, role: Role, address: &Address, environment: &Arc<dyn Environment>) -> Result<Vec<u8>> {
        self.backend.offer(role, address, environment)
    }

    fn reach(&self, local: &Identity, peer: &Identity) -> Result<(), String> {
        self.backend.reach(local, peer)
    }

    fn prepare(&self, context: &mut LinkContext) -> Result<()> {
        self.backend.prepare(context)
    }

    fn open<'a>(&'a self, context: &'a mut LinkContext) -> Opening<'a> {
        Box::pin(async {
            let rng = Rng::new(lock(&self.network).rng.next(), 0);
            let queue = DelayQueue { ops: VecDeque::new(), is_draining: false, ended: None, rng };
            let (host, network) = (self.host.clone(), self.network.clone());
            let opened = self.backend.open(context).await?;
            let wrap = |link| {
                let shared = DelayedLinkShared { link, queue: Mutex::new(queue), host, network };
                Arc::new(DelayedLink(Arc::new(shared))) as Arc<dyn Link>
            };
            Ok(opened.wrapped(wrap))
        })
    }
}

/// A link that delays its operations and keeps their order.
#[derive(Debug)]
struct DelayedLink(Arc<DelayedLinkShared>);

#[derive(Debug)]
struct DelayedLinkShared {
    link: Arc<dyn Link>,
    queue: Mutex<DelayQueue>,
    host: Host,
    network: Arc<Mutex<Network>>,
}

#[derive(Debug)]
struct DelayQueue {
    ops: VecDeque<Op>,
    /// A task submits the queued operations.
    is_draining: bool,
    ended: Option<Error>,
    rng: Rng,
}

impl Link for DelayedLink {
    fn caps(&self) -> Caps {
        self.0.link.caps()
    }

    fn submit(&self, op: Op) {
        if lock(&self.0.network).is_cut() {
            self.end(Error::new(ErrorKind::PeerLost, "the simulated network was cut"));
        }
        let mut queue = lock(&self.0.queue);
        if let Some(why) = queue.ended.clone() {
            drop(queue);
            return op.fail(why);
        }
        if queue.is_draining {
            return queue.ops.push_back(op);
        }
        if !queue.rng.one_in(4) {
            drop(queue);
            return self.0.link.submit(op);
        }
        queue.ops.push_back(op);
        queue.is_draining = true;
        drop(queue);
        self.0.host.spawn(Box::pin(drain(self.0.clone())));
    }

    fn tick(&self) {
        self.0.link.tick();
    }

    fn end(&self, why: Error) {
        let mut queue = lock(&self.0.queue);
        queue.ended.get_or_insert_with(|| why.clone());
        let ops = std::mem::take(&mut queue.ops);
        drop(queue);
        self.0.link.end(why.clone());
        ops.into_iter().for_each(|op| op.fail(why.clone()));
    }

    fn stats(&self) -> LinkStats {
        self.0.link.stats()
    }
}

impl Network {
    fn is_cut(&mut self) -> bool {
        self.cut_in = self.cut_in.and_then(|left| left.checked_sub(1));
        self.cut_in == Some(0)
    }
}

/// Submits queued operations in order, some at a time, until the queue is empty.
async fn drain(shared: Arc<DelayedLinkShared>) {
    loop {
        let (time_us, count) = {
            let rng = &mut lock(&shared.queue).rng;
            (rng.below(3000), 1 + rng.below(64))
        };
        shared.host.simulation.sleep(Duration::from_micros(time_us as u64)).await;
        for _ in 0..count {
            let next = {
                let mut queue = lock(&shared.queue);
                let next = queue.ops.pop_front();
                queue.is_draining = next.is_some();
                next
            };
            match next {
                Some(op) => shared.link.submit(op),
                None => return,
            }
        }
    }
}
