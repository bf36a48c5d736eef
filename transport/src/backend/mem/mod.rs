//! `mem`: the reference backend, inside one process. It moves buffers and copies nothing. Every other backend
//! must pass the same conformance cases.

mod link;

use std::collections::HashMap;
use std::sync::{Arc, MutexGuard};

use self::link::{Pair, PairEnd};
use super::{Backend, Caps, Identity, LinkContext, Machine, Opened, Opening, Prediction, Probe, Role, Speed};
use crate::address::Address;
use crate::backend::machine::gb_per_s;
use crate::error::{Error, ErrorKind, Result};
use crate::platform::environment::Environment;
use crate::platform::mutex::Mutex;
use crate::platform::process::PerProcess;

/// The backend `mem`: inside one process. It hands buffers over and copies nothing.
///
/// ```
/// use towline::backend::{Backend, Mem, Probe};
/// use towline::Caps;
///
/// let Probe::Ready { caps, .. } = Mem.probe() else { unreachable!("mem works everywhere") };
/// assert!(caps.contains(Caps::MOVES_OWNERSHIP) && !caps.contains(Caps::CROSS_PROCESS));
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Mem;

const CAPS: Caps = Caps::ONE_SIDED
    .union(Caps::SOFT_REVOKE)
    .union(Caps::MOVES_OWNERSHIP)
    .union(Caps::ANY_PLACE)
    .union(Caps::FLOW_CONTROL);

/// Ends whose other end has not been opened yet, by both offers.
static WAITING: PerProcess<Mutex<HashMap<Vec<u8>, PairEnd>>> = PerProcess::new(Mutex::default);

fn waiting() -> MutexGuard<'static, HashMap<Vec<u8>, PairEnd>> {
    WAITING.get().lock()
}

/// Removes the waiting other end of an end that was dropped.
fn remove_waiting(name: &[u8]) {
    waiting().remove(name);
}

impl crate::backend::sealed::Sealed for Mem {}

impl Backend for Mem {
    fn name(&self) -> &'static str {
        "mem"
    }

    fn probe(&self) -> Probe {
        Probe::Ready { caps: CAPS, version: None }
    }

    fn offer(&self, _: Role, _: &Address, environment: &Arc<dyn Environment>) -> Result<Vec<u8>> {
        let mut nonce = vec![0; 16];
        environment.random(&mut nonce);
        Ok(nonce)
    }

    fn reach(&self, local: &Identity, peer: &Identity) -> Result<(), String> {
        if local.same_process(peer) { Ok(()) } else { Err("the peer is another process".into()) }
    }

    /// A message of any length is one hand-off between threads.
    fn predict(&self, machine: &Machine, _: &Identity, _: &Identity) -> Option<Prediction> {
        let p50_us = machine.hand_off_us?;
        let speed = Speed { gb_per_s: gb_per_s(1 << 20, p50_us), p50_us };
        Some(Prediction { speed, basis: "a hand-off between two threads" })
    }

    fn is_private(&self) -> bool {
        true
    }

    fn open<'a>(&'a self, context: &'a mut LinkContext) -> Opening<'a> {
        Box::pin(async { open(context) })
    }
}

fn open(context: &LinkContext) -> Result<Opened> {
    let (first, second) = match context.role {
        Role::Connector => (&context.offer, &context.peer_offer),
        Role::Acceptor => (&context.peer_offer, &context.offer),
    };
    if first.len() != 16 || second.len() != 16 {
        return Err(Error::new(ErrorKind::Corrupt, "the peer's offer is not 16 bytes").by("mem"));
    }
    let name = [first.as_slice(), second].concat();
    let mut waiting = waiting();
    let end = match waiting.remove(&name) {
        Some(end) => end,
        None => {
            let (mine, theirs) = Pair::split(name.clone());
            waiting.insert(name, theirs);
            mine
        }
    };
    Ok(Opened::new(end.attach(context.inbox.clone(), context.regions.clone())))
}
