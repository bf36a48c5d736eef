//! A backend wrapper that injects one fault: the n-th call fails. For tests of all layers above the backends.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{
    Backend, Caps, Identity, Inventory, Link, LinkContext, LinkStats, Machine, Op, Opening, Prediction,
    Preference, Probe, Progress, Role, WaitSource,
};
use crate::address::Address;
use crate::error::{Error, ErrorKind, Result};
use crate::platform::environment::Environment;

/// Wraps a backend so that the `n`-th call into it, or into any of its links, fails. A test increases `n`
/// until a run ends with [`fired`](Faults::fired) still false: then every call has failed once.
///
/// ```
/// use std::sync::Arc;
/// use towline::Endpoint;
/// use towline::backend::{Faults, Faulty, Mem};
///
/// let faults = Faults::nth(3);
/// let backend = Faulty::over(Arc::new(Mem), faults.clone());
/// let endpoint = Endpoint::builder().backends(vec![backend]).build()?;
/// // … use the endpoint …
/// assert!(!faults.fired());
/// # drop(endpoint);
/// # Ok::<(), towline::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Faulty {
    backend: Arc<dyn Backend>,
    faults: Faults,
}

/// The countdown to the fault.
#[derive(Clone, Debug)]
pub struct Faults {
    calls_left: Arc<AtomicU64>,
}

impl Faults {
    /// Fails the `n`-th call from now, counting from 1.
    pub fn nth(n: u64) -> Self {
        Self { calls_left: Arc::new(AtomicU64::new(n)) }
    }

    /// Returns true if the fault was injected.
    pub fn fired(&self) -> bool {
        self.calls_left.load(Ordering::Acquire) == 0
    }

    fn count_call(&self, what: &str) -> Result<()> {
        let count = |left: u64| left.checked_sub(1);
        match self.calls_left.fetch_update(Ordering::AcqRel, Ordering::Acquire, count) {
            Ok(1) => Err(Error::new(ErrorKind::Io, format!("an injected fault in {what}"))),
            _ => Ok(()),
        }
    }
}

impl Faulty {
    /// Wraps `backend` with `faults`.
    pub fn over(backend: Arc<dyn Backend>, faults: Faults) -> Arc<dyn Backend> {
        Arc::new(Self { backend, faults })
    }
}

impl crate::backend::sealed::Sealed for Faulty {}

impl Backend for Faulty {
    fn name(&self) -> &'static str {
        self.backend.name()
    }

    fn probe(&self) -> Probe {
        match self.faults.count_call("probe") {
            Ok(()) => self.backend.probe(),
            Err(error) => {
                Probe::Unavailable { reason: error.to_string(), remedy: "run without faults".into() }
            }
        }
    }

    fn inventory(&self) -> Inventory {
        self.backend.inventory()
    }

    fn check(&self, address: &Address) -> Result<()> {
        self.faults.count_call("check")?;
        self.backend.check(address)
    }

    fn offer(&self, role: Role, address: &Address, environment: &Arc<dyn Environment>) -> Result<Vec<u8>> {
        self.faults.count_call("offer")?;
        self.backend.offer(role, address, environment)
    }

    fn reach(&self, local: &Identity, peer: &Identity) -> Result<(), String> {
        self.faults.count_call("reach").map_err(|error| error.to_string())?;
        self.backend.reach(local, peer)
    }

    fn predict(&self, machine: &Machine, local: &Identity, peer: &Identity) -> Option<Prediction> {
        self.backend.predict(machine, local, peer)
    }

    fn preference(&self) -> Preference {
        self.backend.preference()
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
        self.faults.count_call("prepare")?;
        self.backend.prepare(context)
    }

    fn open<'a>(&'a self, context: &'a mut LinkContext) -> Opening<'a> {
        Box::pin(async {
            self.faults.count_call("open")?;
            let opened = self.backend.open(context).await?;
            Ok(opened.wrapped(|link| Arc::new(FaultyLink { link, faults: self.faults.clone() })))
        })
    }
}

/// A link whose submits and polls may fail. A failed submit fails its operation; a failed poll ends the link.
#[derive(Debug)]
struct FaultyLink {
    link: Arc<dyn Link>,
    faults: Faults,
}

impl Link for FaultyLink {
    fn caps(&self) -> Caps {
        self.link.caps()
    }

    fn submit(&self, op: Op) {
        // These operations have no result that could fail.
        if matches!(op, Op::Ack { .. } | Op::Expect { .. }) {
            return self.link.submit(op);
        }
        match self.faults.count_call("submit") {
            Ok(()) => self.link.submit(op),
            Err(error) => op.fail(error),
        }
    }

    fn progress(&self) -> Progress {
        let progress = self.link.progress();
        // Only polls that move data count: the number of other polls depends on timing.
        if progress == Progress::Moved
            && let Err(error) = self.faults.count_call("progress")
        {
            self.link.end(error);
        }
        progress
    }

    fn source(&self) -> Option<WaitSource<'_>> {
        self.link.source()
    }

    fn arm(&self) -> bool {
        self.link.arm()
    }

    fn tick(&self) {
        self.link.tick();
    }

    fn end(&self, why: Error) {
        self.link.end(why);
    }

    fn stats(&self) -> LinkStats {
        self.link.stats()
    }

    fn notes(&self) -> Vec<String> {
        self.link.notes()
    }
}
