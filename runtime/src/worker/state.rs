//! A worker as a state machine. Input: messages of the scheduler, and results of fetches and attempts.
//! Output: values to fetch, attempts to begin, and messages to send.
//!
//! It uses no clock, socket or thread, and holds no data: the driver stores the values. Invariants: a value
//! stays while the scheduler counts on it or an attempt in progress uses it. Each value is fetched once at a
//! time. A fetch takes memory only if there is room, or if nothing else could proceed.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use rustc_hash::FxHashMap;

use crate::error::{ErrorKind, Failure};
use crate::protocol::{
    Assignment, Attempt, FromWorker, FunctionId, Input, Key, Priority, TaskArguments, WorkerId,
};

/// Maximum number of concurrent fetches.
pub(crate) const FETCHES_MAX: usize = 16;

#[derive(Debug)]
pub(crate) struct WorkerState {
    slots: usize,
    bytes_max: u64,
    /// Attempts that were not ended, dropped or returned. A sorted map, so that iteration is deterministic.
    attempts: BTreeMap<Attempt, AttemptState>,
    values: FxHashMap<Key, ValueEntry>,
    ready: BinaryHeap<Reverse<(Priority, Attempt)>>,
    fetch_queue: BinaryHeap<Reverse<(Priority, Key)>>,
    /// Slots in use, including those of dropped attempts that still run.
    running: usize,
    fetching: usize,
    /// Bytes of values that are here or being fetched.
    bytes: u64,
    /// Bytes reserved for values that clients are sending.
    reserved_bytes: u64,
    actions: Vec<WorkerAction>,
}

#[derive(Debug)]
struct AttemptState {
    assignment: Assignment,
    missing: usize,
    is_running: bool,
}

/// A value that is here or needed here.
#[derive(Debug)]
struct ValueEntry {
    bytes: u64,
    presence: Presence,
    /// Attempts in progress that need it.
    users: Vec<Attempt>,
    /// The scheduler counts on it.
    is_kept: bool,
}

#[derive(Debug)]
enum Presence {
    Local,
    /// It is at these holders. Those in `tried` did not send it; while fetching, the last of them is in use.
    Missing {
        holders: Vec<WorkerId>,
        tried: Vec<WorkerId>,
    },
    Fetching {
        holders: Vec<WorkerId>,
        tried: Vec<WorkerId>,
    },
}

/// An action for the driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum WorkerAction {
    Send(FromWorker),
    Fetch {
        key: Key,
        from: WorkerId,
        /// The largest size that is accepted.
        bytes: u64,
    },
    Begin(Start),
    /// The value is no longer needed here.
    Discard(Key),
}

/// An attempt to begin: its inputs are here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Start {
    pub(crate) key: Key,
    pub(crate) attempt: Attempt,
    pub(crate) function: FunctionId,
    pub(crate) inputs: Vec<Key>,
    pub(crate) arguments: TaskArguments,
}

impl WorkerState {
    pub(crate) fn new(slots: usize, bytes_max: u64) -> Self {
        Self {
            slots: slots.max(1),
            bytes_max,
            attempts: BTreeMap::new(),
            values: FxHashMap::default(),
            ready: BinaryHeap::new(),
            fetch_queue: BinaryHeap::new(),
            running: 0,
            fetching: 0,
            bytes: 0,
            reserved_bytes: 0,
            actions: Vec::new(),
        }
    }

    /// Takes the actions since the last call. Call it after all input is applied.
    pub(crate) fn take_actions(&mut self) -> Vec<WorkerAction> {
        self.fetch();
        self.begin();
        std::mem::take(&mut self.actions)
    }

    /// Returns the bytes of the values that are here or being fetched.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Returns the memory limit, in bytes.
    pub(crate) fn bytes_max(&self) -> u64 {
        self.bytes_max
    }

    /// Returns the number of slots in use.
    #[cfg(feature = "metrics")]
    pub(crate) fn running(&self) -> usize {
        self.running
    }

    // ---- Messages of the scheduler ----

    pub(crate) fn assigned(&mut self, assignment: Assignment) {
        let mut missing = 0;
        for Input { key, bytes, holders } in &assignment.inputs {
            let entry = self.values.entry(*key).or_insert_with(|| ValueEntry {
                bytes: *bytes,
                presence: Presence::Missing { holders: Vec::new(), tried: Vec::new() },
                users: Vec::new(),
                is_kept: false,
            });
            entry.users.push(assignment.attempt);
            match &mut entry.presence {
                Presence::Local => continue,
                Presence::Missing { holders: known, .. } => {
                    known.clone_from(holders);
                    self.fetch_queue.push(Reverse((assignment.priority, *key)));
                }
                Presence::Fetching { holders: known, .. } => known.clone_from(holders),
            }
            missing += 1;
        }
        if missing == 0 {
            self.ready.push(Reverse((assignment.priority, assignment.attempt)));
        }
        self.attempts.insert(assignment.attempt, AttemptState { assignment, missing, is_running: false });
    }

    /// Drops an attempt. One that is running goes on, and its result is discarded when it ends.
    pub(crate) fn dropped(&mut self, attempt: Attempt) {
        if let Some(state) = self.attempts.remove(&attempt) {
            self.release_inputs(&state.assignment);
        }
    }

    /// Returns the attempt to the scheduler, unless it is running.
    pub(crate) fn recalled(&mut self, attempt: Attempt) {
        if self.attempts.get(&attempt).is_some_and(|state| !state.is_running) {
            self.return_attempt(attempt, Vec::new());
        }
    }

    /// The scheduler no longer counts on the value.
    pub(crate) fn freed(&mut self, key: Key) {
        if let Some(entry) = self.values.get_mut(&key) {
            entry.is_kept = false;
            self.discard_unused(key);
        }
    }

    // ---- Results of fetches and attempts ----

    /// A fetch ended with a value of this size, or with none.
    pub(crate) fn fetched(&mut self, key: Key, bytes: Option<u64>) {
        self.fetching -= 1;
        let Some(entry) = self.values.get_mut(&key) else {
            return self.actions.push(WorkerAction::Discard(key));
        };
        let Presence::Fetching { holders, tried } = &mut entry.presence else { return };
        let (holders, tried) = (std::mem::take(holders), std::mem::take(tried));
        self.bytes -= entry.bytes;
        match bytes {
            Some(bytes) => {
                entry.presence = Presence::Local;
                entry.bytes = bytes;
                self.bytes += bytes;
                if !entry.users.is_empty() {
                    entry.is_kept = true;
                    self.actions.push(WorkerAction::Send(FromWorker::HasCopy { key }));
                    self.arrived(key);
                }
                self.discard_unused(key);
            }
            None if entry.users.is_empty() => {
                self.values.remove(&key);
                // A dropped attempt of this worker may have stored it meanwhile.
                self.actions.push(WorkerAction::Discard(key));
            }
            None if holders.iter().any(|holder| !tried.contains(holder)) => {
                entry.presence = Presence::Missing { holders, tried };
                self.queue_fetch(key);
            }
            None => {
                entry.presence = Presence::Missing { holders: Vec::new(), tried: Vec::new() };
                let lacking: Vec<_> = tried.iter().map(|holder| (key, *holder)).collect();
                for attempt in self.attempts_waiting_for(key) {
                    self.return_attempt(attempt, lacking.clone());
                }
            }
        }
    }

    /// An attempt ended, with a result of this size or a failure.
    pub(crate) fn ended(&mut self, attempt: Attempt, key: Key, result: Result<u64, Failure>, micros: u32) {
        self.running -= 1;
        let Some(state) = self.attempts.remove(&attempt) else {
            // Dropped while it ran. Its result may be kept for another attempt.
            return self.discard_unused(key);
        };
        let result = result.and_then(|bytes| match self.bytes_max {
            max if bytes > max => {
                let detail = format!("its result takes {bytes} bytes, and the worker has {max}");
                Err(Failure::new(ErrorKind::TooLarge, detail))
            }
            _ => Ok(bytes),
        });
        match result {
            Ok(bytes) => {
                self.keep(key, bytes);
                self.actions.push(WorkerAction::Send(FromWorker::Done { key, attempt, bytes, micros }));
            }
            Err(failure) => {
                self.discard_unused(key);
                self.actions.push(WorkerAction::Send(FromWorker::Failed { key, attempt, failure }));
            }
        }
        self.release_inputs(&state.assignment);
    }

    /// Reserves memory for a value from a client, if there is room and the value is not here. Nothing else
    /// uses it until `release_reservation`.
    pub(crate) fn reserve(&mut self, key: Key, bytes: u64) -> Result<(), Failure> {
        if matches!(self.values.get(&key), Some(ValueEntry { presence: Presence::Local, .. })) {
            return Err(Failure::new(ErrorKind::Invalid, "the worker has a value of that key"));
        }
        if self.bytes_with(bytes) > self.bytes_max {
            let detail = format!("the worker has no room for {bytes} bytes");
            return Err(Failure::new(ErrorKind::TooLarge, detail));
        }
        self.reserved_bytes += bytes;
        Ok(())
    }

    /// The reserved value was stored, or will not arrive.
    pub(crate) fn release_reservation(&mut self, bytes: u64) {
        self.reserved_bytes -= bytes;
    }

    /// A client's value of this size was stored.
    pub(crate) fn stored(&mut self, key: Key, bytes: u64) {
        self.keep(key, bytes);
        self.actions.push(WorkerAction::Send(FromWorker::Done { key, attempt: 0, bytes, micros: 0 }));
    }

    // ---- Internals ----

    /// Returns the memory in use with this many bytes more.
    fn bytes_with(&self, bytes: u64) -> u64 {
        self.bytes.saturating_add(self.reserved_bytes).saturating_add(bytes)
    }

    fn keep(&mut self, key: Key, bytes: u64) {
        let entry = self.values.entry(key).or_insert(ValueEntry {
            bytes: 0,
            presence: Presence::Local,
            users: Vec::new(),
            is_kept: true,
        });
        if !matches!(entry.presence, Presence::Missing { .. }) {
            self.bytes -= entry.bytes;
        }
        (entry.bytes, entry.is_kept) = (bytes, true);
        self.bytes += bytes;
        if !matches!(entry.presence, Presence::Local) {
            entry.presence = Presence::Local;
            self.arrived(key);
        }
    }

    /// Counts the input as present for the attempts that wait for it.
    fn arrived(&mut self, key: Key) {
        for attempt in self.attempts_waiting_for(key) {
            if let Some(state) = self.attempts.get_mut(&attempt) {
                state.missing -= 1;
                if state.missing == 0 {
                    self.ready.push(Reverse((state.assignment.priority, attempt)));
                }
            }
        }
    }

    /// Returns the attempts that need a missing value: none of them has begun.
    fn attempts_waiting_for(&self, key: Key) -> Vec<Attempt> {
        self.values.get(&key).map_or_else(Vec::new, |entry| entry.users.clone())
    }

    fn return_attempt(&mut self, attempt: Attempt, lacking: Vec<(Key, WorkerId)>) {
        let Some(state) = self.attempts.remove(&attempt) else { return };
        self.release_inputs(&state.assignment);
        self.actions.push(WorkerAction::Send(FromWorker::Returned {
            key: state.assignment.key,
            attempt,
            lacking,
        }));
    }

    fn release_inputs(&mut self, assignment: &Assignment) {
        for input in &assignment.inputs {
            if let Some(entry) = self.values.get_mut(&input.key) {
                entry.users.retain(|user| *user != assignment.attempt);
                self.discard_unused(input.key);
            }
        }
    }

    /// Discards a value that is not needed, unless a fetch is in progress.
    fn discard_unused(&mut self, key: Key) {
        match self.values.get(&key) {
            Some(ValueEntry { users, is_kept: false, presence, bytes }) if users.is_empty() => match presence
            {
                Presence::Local => self.bytes -= bytes,
                Presence::Missing { .. } => {}
                // It is discarded when the fetch ends.
                Presence::Fetching { .. } => return,
            },
            Some(_) => return,
            None => {}
        }
        self.values.remove(&key);
        self.actions.push(WorkerAction::Discard(key));
    }

    /// Queues a fetch with the priority of the most urgent attempt that waits for it.
    fn queue_fetch(&mut self, key: Key) {
        let priorities = self
            .attempts_waiting_for(key)
            .into_iter()
            .map(|attempt| self.attempts[&attempt].assignment.priority);
        if let Some(priority) = priorities.min() {
            self.fetch_queue.push(Reverse((priority, key)));
        }
    }

    fn fetch(&mut self) {
        while self.fetching < FETCHES_MAX
            && let Some(Reverse((_, key))) = self.fetch_queue.peek()
        {
            let key = *key;
            let entry = self.values.get(&key);
            let Some(entry) = entry.filter(|entry| matches!(entry.presence, Presence::Missing { .. })) else {
                self.fetch_queue.pop();
                continue;
            };
            let bytes = entry.bytes;
            let has_room = self.bytes_with(bytes) <= self.bytes_max;
            if !has_room && (self.fetching > 0 || self.running > 0 || !self.ready.is_empty()) {
                return;
            }
            self.fetch_queue.pop();
            let Some(entry) = self.values.get_mut(&key) else { continue };
            let Presence::Missing { holders, tried } = &mut entry.presence else { continue };
            let (holders, mut tried) = (std::mem::take(holders), std::mem::take(tried));
            match holders.iter().find(|holder| !tried.contains(holder)) {
                Some(from) => {
                    let from = *from;
                    tried.push(from);
                    entry.presence = Presence::Fetching { holders, tried };
                    self.fetching += 1;
                    self.bytes += entry.bytes;
                    self.actions.push(WorkerAction::Fetch { key, from, bytes: entry.bytes });
                }
                None => {
                    let lacking: Vec<_> = tried.iter().map(|holder| (key, *holder)).collect();
                    for attempt in self.attempts_waiting_for(key) {
                        self.return_attempt(attempt, lacking.clone());
                    }
                }
            }
        }
    }

    fn begin(&mut self) {
        while self.running < self.slots
            && let Some(Reverse((_, attempt))) = self.ready.pop()
        {
            let Some(state) = self.attempts.get_mut(&attempt) else { continue };
            state.is_running = true;
            self.running += 1;
            let Assignment { key, attempt, function, inputs, arguments, .. } = &state.assignment;
            self.actions.push(WorkerAction::Begin(Start {
                key: *key,
                attempt: *attempt,
                function: *function,
                inputs: inputs.iter().map(|input| input.key).collect(),
                arguments: arguments.clone(),
            }));
        }
    }

    /// Asserts the invariants. `is_local` returns whether the driver has a value.
    #[cfg(test)]
    pub(crate) fn check(&self, is_local: impl Fn(Key) -> bool) {
        let fetch_queue = |entry: &ValueEntry| matches!(entry.presence, Presence::Missing { .. });
        let bytes =
            self.values.values().filter(|entry| !fetch_queue(entry)).map(|entry| entry.bytes).sum::<u64>();
        assert_eq!(self.bytes, bytes, "{self:?}");
        for (key, entry) in &self.values {
            assert!(!matches!(entry.presence, Presence::Local) || is_local(*key), "{key:?} is not here");
            assert!(
                entry.users.iter().all(|user| self.attempts.contains_key(user)),
                "{key:?} has lost users"
            );
            assert!(
                entry.is_kept || !entry.users.is_empty() || !matches!(entry.presence, Presence::Local),
                "{key:?} is not needed"
            );
        }
        for (attempt, state) in &self.attempts {
            let lacks = |input: &&Input| !matches!(self.values[&input.key].presence, Presence::Local);
            assert_eq!(state.missing, state.assignment.inputs.iter().filter(lacks).count(), "run {attempt}");
        }
        assert!(self.running <= self.slots && self.fetching <= FETCHES_MAX);
    }

    /// Asserts that no attempt and no value is left.
    #[cfg(test)]
    pub(crate) fn check_empty(&self) {
        let is_empty = self.attempts.is_empty() && self.values.is_empty() && self.bytes == 0;
        assert!(is_empty && self.running == 0 && self.fetching == 0, "an attempt or value is left: {self:?}");
    }
}
