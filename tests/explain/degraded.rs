//! A backend with a fault: it is unavailable, cannot be opened, or is slow.

use std::sync::Arc;
use std::time::Duration;

use towline::backend::{
    Backend, Caps, Identity, Link, LinkContext, LinkStats, Machine, Op, Opening, Prediction, Probe, Progress,
    Role, WaitSource,
};
use towline::environment::Environment;
use towline::{Address, Error, ErrorKind, Result};

/// The reason in every refusal.
pub(crate) const REASON: &str = "a limit of this test is 0";
pub(crate) const REMEDY: &str = "raise that limit";
/// The delay of each message of a slow backend.
pub(crate) const DELAY: Duration = Duration::from_millis(2);

/// The fault of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The machine lacks something.
    Missing,
    /// The backend has no offer.
    NoOffer,
    /// It does not reach the peer.
    Unreachable,
    /// It cannot be prepared.
    NotPrepared,
    /// It cannot be opened.
    NotOpened,
    /// Each message waits for [`DELAY`] before it leaves.
    Slow,
}

#[derive(Debug)]
pub(crate) struct Degraded {
    backend: Arc<dyn Backend>,
    fault: Fault,
}

impl Degraded {
    pub(crate) fn over(backend: Arc<dyn Backend>, fault: Fault) -> Arc<dyn Backend> {
        Arc::new(Self { backend, fault })
    }

    fn unless(&self, fault: Fault) -> Result<()> {
        if self.fault == fault { Err(Error::new(ErrorKind::Unavailable, REASON)) } else { Ok(()) }
    }
}

impl towline::backend::sealed::Sealed for Degraded {}

impl Backend for Degraded {
    fn name(&self) -> &'static str {
        self.backend.name()
    }

    fn probe(&self) -> Probe {
        match self.unless(Fault::Missing) {
            Ok(()) => self.backend.probe(),
            Err(_) => Probe::Unavailable { reason: REASON.into(), remedy: REMEDY.into() },
        }
    }

    fn offer(&self, role: Role, address: &Address, environment: &Arc<dyn Environment>) -> Result<Vec<u8>> {
        self.unless(Fault::NoOffer)?;
        self.backend.offer(role, address, environment)
    }

    fn reach(&self, local: &Identity, peer: &Identity) -> Result<(), String> {
        self.unless(Fault::Unreachable).map_err(|_| REASON.to_owned())?;
        self.backend.reach(local, peer)
    }

    fn predict(&self, machine: &Machine, local: &Identity, peer: &Identity) -> Option<Prediction> {
        self.backend.predict(machine, local, peer)
    }

    fn takes_stream(&self) -> bool {
        self.backend.takes_stream()
    }

    fn carries_control(&self) -> bool {
        self.backend.carries_control()
    }

    fn is_private(&self) -> bool {
        self.backend.is_private()
    }

    fn checks(&self) -> bool {
        self.backend.checks()
    }

    fn stripes(&self) -> bool {
        self.backend.stripes()
    }

    fn prepare(&self, context: &mut LinkContext) -> Result<()> {
        self.unless(Fault::NotPrepared)?;
        self.backend.prepare(context)
    }

    fn open<'a>(&'a self, context: &'a mut LinkContext) -> Opening<'a> {
        Box::pin(async move {
            self.unless(Fault::NotOpened)?;
            let opened = self.backend.open(context).await?;
            Ok(if self.fault == Fault::Slow { opened.wrapped(|link| Arc::new(Slow(link))) } else { opened })
        })
    }
}

#[derive(Debug)]
struct Slow(Arc<dyn Link>);

impl Link for Slow {
    fn caps(&self) -> Caps {
        self.0.caps()
    }

    fn submit(&self, op: Op) {
        if matches!(op, Op::Send { .. }) {
            std::thread::sleep(DELAY);
        }
        self.0.submit(op);
    }

    fn progress(&self) -> Progress {
        self.0.progress()
    }

    fn source(&self) -> Option<WaitSource<'_>> {
        self.0.source()
    }

    fn arm(&self) -> bool {
        self.0.arm()
    }

    fn tick(&self) {
        self.0.tick();
    }

    fn end(&self, why: Error) {
        self.0.end(why);
    }

    fn stats(&self) -> LinkStats {
        self.0.stats()
    }
}
