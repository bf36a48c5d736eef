//! The scheduler's entries for workers, clients and functions.

use std::collections::BTreeSet;
use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::queue::Queue;
use super::state::Violation;
use super::task::Index;
use crate::protocol::{FUNCTIONS_MAX, FunctionId, NAME_LEN_MAX, NEW_FUNCTIONS_MAX, Offer, Types};

/// A worker receives tasks for this time, in µs, on all its slots; more tasks wait at the scheduler.
pub(crate) const HORIZON_MICROS: u64 = 5_000;
/// Limits for the tasks sent to a worker and not done: their number, and the bytes of their assignments.
const SENT_MAX: usize = 1024;
const SENT_BYTES_MAX: usize = 4 << 20;
/// The limit of bytes while the worker has free slots: half of what may queue for it.
const RUNNING_BYTES_MAX: usize = 128 << 20;

#[derive(Debug)]
pub(crate) struct WorkerEntry {
    pub(crate) offer: Offer,
    /// Ready tasks for this worker.
    pub(crate) queue: Queue,
    /// Tasks sent to it, in a set of deterministic order.
    pub(crate) sent: BTreeSet<Index>,
    pub(crate) sent_micros: u64,
    pub(crate) sent_bytes: usize,
    /// Number of them that were recalled.
    pub(crate) recalled: usize,
    /// The suspect among them.
    pub(crate) suspect: Option<Index>,
    /// Scattered data that clients are sending to it.
    pub(crate) expected: BTreeSet<Index>,
    pub(crate) holds: BTreeSet<Index>,
    pub(crate) bytes: u64,
    /// Number of functions declared to it.
    pub(crate) functions: usize,
    pub(crate) runs_done: u64,
}

impl WorkerEntry {
    pub(crate) fn new(offer: Offer) -> Self {
        Self {
            offer,
            queue: Queue::default(),
            sent: BTreeSet::new(),
            sent_micros: 0,
            sent_bytes: 0,
            recalled: 0,
            suspect: None,
            expected: BTreeSet::new(),
            holds: BTreeSet::new(),
            bytes: 0,
            functions: 0,
            runs_done: 0,
        }
    }

    fn slots(&self) -> u64 {
        u64::from(self.offer.slots.max(1))
    }

    /// Returns for how long it has work, in µs.
    pub(crate) fn wait_micros(&self) -> u64 {
        (self.queue.micros() + self.sent_micros) / self.slots()
    }

    /// Returns whether it should be sent more: one task beyond its slots, so that no slot waits for the next
    /// task. Many large assignments wait here, where they share memory, and not in the send queue.
    pub(crate) fn has_room(&self) -> bool {
        if self.sent.len() as u64 <= self.slots() {
            return self.sent_bytes < RUNNING_BYTES_MAX;
        }
        let has_time = self.sent_micros < HORIZON_MICROS * self.slots();
        has_time && self.sent.len() < SENT_MAX && self.sent_bytes < SENT_BYTES_MAX
    }

    /// Returns whether its memory is so full that only tasks with inputs should run on it.
    pub(crate) fn is_full(&self) -> bool {
        self.bytes > self.offer.memory_bytes_max / 5 * 4
    }

    /// Returns the number of tasks that it cannot be running yet.
    pub(crate) fn surplus(&self) -> usize {
        self.sent.len().saturating_sub(self.slots() as usize + self.recalled)
    }
}

/// The scheduler's entry for a client.
#[derive(Debug, Default)]
pub(crate) struct ClientEntry {
    /// The scheduler's ids of the client's functions, by the client's id.
    pub(crate) functions: Vec<FunctionId>,
    /// Number of functions that this client introduced.
    new_functions: usize,
    /// Memory that its tasks take, in bytes.
    pub(crate) bytes: u64,
}

impl ClientEntry {
    /// Declares the client's next function.
    pub(crate) fn name(
        &mut self,
        functions: &mut Functions,
        name: &str,
        types: Types,
    ) -> Result<(), Violation> {
        if self.functions.len() == FUNCTIONS_MAX {
            return Err(Violation::limit("the client declares more functions than the limit"));
        }
        let known = functions.len();
        let function = functions.intern(name, types)?;
        self.new_functions += functions.len() - known;
        if self.new_functions > NEW_FUNCTIONS_MAX {
            return Err(Violation::limit(
                "the client introduces more functions than the limit of one client",
            ));
        }
        self.functions.push(function);
        Ok(())
    }
}

/// Functions by name, and the duration of each.
#[derive(Debug, Default)]
pub(crate) struct Functions {
    ids: FxHashMap<(Arc<str>, Types), FunctionId>,
    known: Vec<FunctionEntry>,
}

#[derive(Debug)]
pub(crate) struct FunctionEntry {
    pub(crate) name: Arc<str>,
    pub(crate) types: Types,
    micros: Option<u64>,
}

impl Functions {
    /// Returns the function's id, which is new for an unknown function.
    fn intern(&mut self, name: &str, types: Types) -> Result<FunctionId, Violation> {
        if name.is_empty() || name.len() > NAME_LEN_MAX {
            return Err(Violation::protocol("an invalid function name"));
        }
        let name = Arc::<str>::from(name);
        if let Some(id) = self.ids.get(&(name.clone(), types)) {
            return Ok(*id);
        }
        if self.known.len() == FUNCTIONS_MAX {
            return Err(Violation::limit("the scheduler has reached its limit of functions"));
        }
        let id = self.known.len() as FunctionId;
        self.ids.insert((name.clone(), types), id);
        self.known.push(FunctionEntry { name, types, micros: None });
        Ok(id)
    }

    pub(crate) fn since(&self, sent: usize) -> &[FunctionEntry] {
        &self.known[sent..]
    }

    pub(crate) fn len(&self) -> usize {
        self.known.len()
    }

    pub(crate) fn name(&self, id: FunctionId) -> &Arc<str> {
        &self.known[id as usize].name
    }

    /// Returns the expected duration of an attempt, in µs: an average of the last ones. A function that never
    /// ran is taken to fill a slot.
    pub(crate) fn micros(&self, id: FunctionId) -> u64 {
        self.known[id as usize].micros.unwrap_or(HORIZON_MICROS)
    }

    pub(crate) fn record_duration(&mut self, id: FunctionId, micros: u32) {
        let known = &mut self.known[id as usize].micros;
        let micros = u64::from(micros).max(1);
        *known = Some(known.map_or(micros, |before| (3 * before + micros) / 4).max(1));
    }
}
