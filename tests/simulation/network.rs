//! `mem` with a network between its ends: every connection has delays of its own, and one submission of a run may cut it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use towline::backend::{Backend, Caps, Identity, Link, LinkContext, LinkStats, Op, Opening, Probe, Role};
use towline::environment::Environment;
use towline::{Address, Error, ErrorKind, Result};

use crate::dice::Dice;
use crate::world::Host;

/// What the network of one run does.
#[derive(Debug)]
pub(crate) struct Network {
    pub(crate) dice: Dice,
    /// Submissions until the one that costs its connection.
    pub(crate) cut_in: Option<u64>,
}

/// The in-process backend over that network, for one host.
#[derive(Clone, Debug)]
pub(crate) struct Networked {
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) host: Host,
    pub(crate) network: Arc<Mutex<Network>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl towline::backend::sealed::Sealed for Networked {}

impl Backend for Networked {
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
            let dice = Dice::new(lock(&self.network).dice.next(), 0);
            let line = Line { queue: VecDeque::new(), carrying: false, ended: None, dice };
            let (host, network) = (self.host.clone(), self.network.clone());
            let opened = self.backend.open(context).await?;
            let wrap = |link| {
                let ends = Ends { link, line: Mutex::new(line), host, network };
                Arc::new(Wire(Arc::new(ends))) as Arc<dyn Link>
            };
            Ok(opened.wrapped(wrap))
        })
    }
}

/// A link whose operations are under way for a while, in order.
#[derive(Debug)]
struct Wire(Arc<Ends>);

#[derive(Debug)]
struct Ends {
    link: Arc<dyn Link>,
    line: Mutex<Line>,
    host: Host,
    network: Arc<Mutex<Network>>,
}

#[derive(Debug)]
struct Line {
    queue: VecDeque<Op>,
    /// A task carries what is queued.
    carrying: bool,
    ended: Option<Error>,
    dice: Dice,
}

impl Link for Wire {
    fn caps(&self) -> Caps {
        self.0.link.caps()
    }

    fn submit(&self, op: Op) {
        if lock(&self.0.network).is_cut() {
            self.end(Error::new(ErrorKind::PeerLost, "the simulated network was cut"));
        }
        let mut line = lock(&self.0.line);
        if let Some(why) = line.ended.clone() {
            drop(line);
            return op.fail(why);
        }
        if line.carrying {
            return line.queue.push_back(op);
        }
        if !line.dice.once_in(4) {
            drop(line);
            return self.0.link.submit(op);
        }
        line.queue.push_back(op);
        line.carrying = true;
        drop(line);
        self.0.host.spawn(Box::pin(carry(self.0.clone())));
    }

    fn tick(&self) {
        self.0.link.tick();
    }

    fn end(&self, why: Error) {
        let mut line = lock(&self.0.line);
        line.ended.get_or_insert_with(|| why.clone());
        let queue = std::mem::take(&mut line.queue);
        drop(line);
        self.0.link.end(why.clone());
        queue.into_iter().for_each(|op| op.fail(why.clone()));
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

/// Hands queued operations on, in order, some at a time.
async fn carry(ends: Arc<Ends>) {
    loop {
        let (time_us, count) = {
            let dice = &mut lock(&ends.line).dice;
            (dice.below(3000), 1 + dice.below(64))
        };
        ends.host.world.sleep(Duration::from_micros(time_us as u64)).await;
        for _ in 0..count {
            let next = {
                let mut line = lock(&ends.line);
                let next = line.queue.pop_front();
                line.carrying = next.is_some();
                next
            };
            match next {
                Some(op) => ends.link.submit(op),
                None => return,
            }
        }
    }
}
