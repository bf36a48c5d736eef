//! What the scheduler knows of its workers and clients, and of functions.

use std::collections::BTreeSet;
use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::queue::Queue;
use super::state::Violation;
use super::task::Index;
use crate::protocol::{FUNCTIONS_MAX, FunctionId, NAME_LEN_MAX, NEW_FUNCTIONS_MAX, Offer, Types};

/// A worker is given what fills its slots for so long, and waits for more from there on.
pub(crate) const HORIZON_MICROS: u64 = 5_000;
/// The most that a worker is given at once, in tasks, and in bytes as they are told.
const SENT_MAX: usize = 1024;
const SENT_BYTES_MAX: usize = 4 << 20;
/// The same, where its slots are not taken yet: half of what may wait for it.
const RUNNING_BYTES_MAX: usize = 128 << 20;

#[derive(Debug)]
pub(crate) struct WorkerEntry {
    pub(crate) offer: Offer,
    /// Ready tasks that shall run here.
    pub(crate) queue: Queue,
    /// What it was given, in a set whose order is always the same.
    pub(crate) sent: BTreeSet<Index>,
    pub(crate) sent_micros: u64,
    pub(crate) sent_bytes: usize,
    /// Those of them that were asked back.
    pub(crate) recalled: usize,
    /// The one among them that is a suspect.
    pub(crate) suspect: Option<Index>,
    /// What clients are giving it.
    pub(crate) expected: BTreeSet<Index>,
    pub(crate) holds: BTreeSet<Index>,
    pub(crate) bytes: u64,
    /// Functions whose names it was told.
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

    /// How long it has work for, in µs.
    pub(crate) fn wait_micros(&self) -> u64 {
        (self.queue.micros() + self.sent_micros) / self.slots()
    }

    /// Whether it should be given more: a task beyond its slots, so that none of them waits for the next. What is told of many
    /// large tasks waits here, where it takes no memory, and not in the worker's send queue.
    pub(crate) fn has_room(&self) -> bool {
        if self.sent.len() as u64 <= self.slots() {
            return self.sent_bytes < RUNNING_BYTES_MAX;
        }
        let has_time = self.sent_micros < HORIZON_MICROS * self.slots();
        has_time && self.sent.len() < SENT_MAX && self.sent_bytes < SENT_BYTES_MAX
    }

    /// So much is here that only what uses it up should run.
    pub(crate) fn is_full(&self) -> bool {
        self.bytes > self.offer.memory_bytes_max / 5 * 4
    }

    /// What it was given beyond what it can be running.
    pub(crate) fn surplus(&self) -> usize {
        self.sent.len().saturating_sub(self.slots() as usize + self.recalled)
    }
}

/// What the scheduler knows of a client.
#[derive(Debug, Default)]
pub(crate) struct ClientEntry {
    /// The client's ids of functions, as ours.
    pub(crate) functions: Vec<FunctionId>,
    /// Those of them that it was the first to name.
    new_functions: usize,
    /// What its tasks take here.
    pub(crate) bytes: u64,
}

impl ClientEntry {
    /// Its next function has that name.
    pub(crate) fn name(
        &mut self,
        functions: &mut Functions,
        name: &str,
        types: Types,
    ) -> Result<(), Violation> {
        if self.functions.len() == FUNCTIONS_MAX {
            return Err(Violation::limit("it names more functions than there can be"));
        }
        let known = functions.len();
        let function = functions.intern(name, types)?;
        self.new_functions += functions.len() - known;
        if self.new_functions > NEW_FUNCTIONS_MAX {
            return Err(Violation::limit("it names more functions that nobody knows than a client may"));
        }
        self.functions.push(function);
        Ok(())
    }
}

/// Functions by name, and how long each takes.
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
    /// The function's id, which is new where nobody named it before.
    fn intern(&mut self, name: &str, types: Types) -> Result<FunctionId, Violation> {
        if name.is_empty() || name.len() > NAME_LEN_MAX {
            return Err(Violation::protocol("that is no function's name"));
        }
        let name = Arc::<str>::from(name);
        if let Some(id) = self.ids.get(&(name.clone(), types)) {
            return Ok(*id);
        }
        if self.known.len() == FUNCTIONS_MAX {
            return Err(Violation::limit("the scheduler knows as many functions as it can"));
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

    /// What a run of it will take: as the last ones did. Of one that never ran, as much as fills a slot.
    pub(crate) fn micros(&self, id: FunctionId) -> u64 {
        self.known[id as usize].micros.unwrap_or(HORIZON_MICROS)
    }

    pub(crate) fn record_duration(&mut self, id: FunctionId, micros: u32) {
        let known = &mut self.known[id as usize].micros;
        let micros = u64::from(micros).max(1);
        *known = Some(known.map_or(micros, |before| (3 * before + micros) / 4).max(1));
    }
}
