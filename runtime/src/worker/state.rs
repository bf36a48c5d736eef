//! A worker as a state machine: it is told what the scheduler said and what became of fetches and runs, and answers with what
//! is to be fetched, run and said.
//!
//! It knows no clock, socket, thread or byte of data; the shell has the values. The invariants: a value is here as long as the
//! scheduler counts on it or a run that was not ended uses it; each is fetched once at a time; memory is taken for a fetch only
//! where there is room, or where nothing else could go on.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use rustc_hash::FxHashMap;

use crate::error::{ErrorKind, Failure};
use crate::protocol::{
    Arguments, Assignment, Attempt, FromWorker, FunctionId, Input, Key, Priority, WorkerId,
};

/// Values that are fetched at the same time.
pub(crate) const FETCHES_MAX: usize = 16;

#[derive(Debug)]
pub(crate) struct State {
    slots: usize,
    bytes_max: u64,
    /// Runs that were not ended, dropped or given back. In order, so that nothing depends on that of a hash map.
    runs: BTreeMap<Attempt, Job>,
    values: FxHashMap<Key, Held>,
    ready: BinaryHeap<Reverse<(Priority, Attempt)>>,
    wanted: BinaryHeap<Reverse<(Priority, Key)>>,
    /// Slots in use, also by what was dropped meanwhile.
    running: usize,
    fetching: usize,
    /// Of values that are here, and that are on their way here.
    bytes: u64,
    /// Of values that clients are giving.
    expected_bytes: u64,
    actions: Vec<Action>,
}

#[derive(Debug)]
struct Job {
    order: Assignment,
    missing: usize,
    is_running: bool,
}

/// A value that is here, or shall be.
#[derive(Debug)]
struct Held {
    bytes: u64,
    whereabouts: Whereabouts,
    /// Runs that need it and were not ended.
    users: Vec<Attempt>,
    /// The scheduler counts on it.
    is_kept: bool,
}

#[derive(Debug)]
enum Whereabouts {
    Here,
    /// With these, of which those `tried` did not give it; in the second case it is being fetched from the last of them.
    Wanted {
        holders: Vec<WorkerId>,
        tried: Vec<WorkerId>,
    },
    Coming {
        holders: Vec<WorkerId>,
        tried: Vec<WorkerId>,
    },
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Say(FromWorker),
    Fetch {
        key: Key,
        from: WorkerId,
        /// It has no more bytes than this.
        bytes: u64,
    },
    Begin(Start),
    /// Nobody needs the value here.
    Discard(Key),
}

/// A run to begin: its inputs are here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Start {
    pub(crate) key: Key,
    pub(crate) run: Attempt,
    pub(crate) function: FunctionId,
    pub(crate) inputs: Vec<Key>,
    pub(crate) arguments: Arguments,
}

impl State {
    pub(crate) fn new(slots: usize, bytes_max: u64) -> Self {
        Self {
            slots: slots.max(1),
            bytes_max,
            runs: BTreeMap::new(),
            values: FxHashMap::default(),
            ready: BinaryHeap::new(),
            wanted: BinaryHeap::new(),
            running: 0,
            fetching: 0,
            bytes: 0,
            expected_bytes: 0,
            actions: Vec::new(),
        }
    }

    /// What is to be done since this was asked last. To be asked when all that happened was told.
    pub(crate) fn take_actions(&mut self) -> Vec<Action> {
        self.fetch();
        self.begin();
        std::mem::take(&mut self.actions)
    }

    /// Bytes of the values that are here or on their way.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Their limit.
    pub(crate) fn bytes_max(&self) -> u64 {
        self.bytes_max
    }

    /// Slots in use.
    pub(crate) fn running(&self) -> usize {
        self.running
    }

    // ---- What the scheduler says ----

    pub(crate) fn ordered(&mut self, order: Assignment) {
        let mut missing = 0;
        for Input { key, bytes, holders } in &order.inputs {
            let held = self.values.entry(*key).or_insert_with(|| Held {
                bytes: *bytes,
                whereabouts: Whereabouts::Wanted { holders: Vec::new(), tried: Vec::new() },
                users: Vec::new(),
                is_kept: false,
            });
            held.users.push(order.run);
            match &mut held.whereabouts {
                Whereabouts::Here => continue,
                Whereabouts::Wanted { holders: known, .. } => {
                    known.clone_from(holders);
                    self.wanted.push(Reverse((order.priority, *key)));
                }
                Whereabouts::Coming { holders: known, .. } => known.clone_from(holders),
            }
            missing += 1;
        }
        if missing == 0 {
            self.ready.push(Reverse((order.priority, order.run)));
        }
        self.runs.insert(order.run, Job { order, missing, is_running: false });
    }

    /// The run is no longer wanted. One that is running goes on, and is forgotten when it ends.
    pub(crate) fn dropped(&mut self, run: Attempt) {
        if let Some(job) = self.runs.remove(&run) {
            self.let_go(&job.order);
        }
    }

    /// The run is wanted elsewhere, if it has not begun here.
    pub(crate) fn recalled(&mut self, run: Attempt) {
        if self.runs.get(&run).is_some_and(|job| !job.is_running) {
            self.give_back(run, Vec::new());
        }
    }

    /// The scheduler no longer counts on the value.
    pub(crate) fn freed(&mut self, key: Key) {
        if let Some(held) = self.values.get_mut(&key) {
            held.is_kept = false;
            self.discard_unused(key);
        }
    }

    // ---- What became of it ----

    /// A fetch brought a value of so many bytes, or none.
    pub(crate) fn fetched(&mut self, key: Key, bytes: Option<u64>) {
        self.fetching -= 1;
        let Some(held) = self.values.get_mut(&key) else { return self.actions.push(Action::Discard(key)) };
        let Whereabouts::Coming { holders, tried } = &mut held.whereabouts else { return };
        let (holders, tried) = (std::mem::take(holders), std::mem::take(tried));
        self.bytes -= held.bytes;
        match bytes {
            Some(bytes) => {
                held.whereabouts = Whereabouts::Here;
                held.bytes = bytes;
                self.bytes += bytes;
                if !held.users.is_empty() {
                    held.is_kept = true;
                    self.actions.push(Action::Say(FromWorker::Has { key }));
                    self.arrived(key);
                }
                self.discard_unused(key);
            }
            None if held.users.is_empty() => {
                self.values.remove(&key);
                // A run of its own that was dropped may have left it meanwhile.
                self.actions.push(Action::Discard(key));
            }
            None if holders.iter().any(|holder| !tried.contains(holder)) => {
                held.whereabouts = Whereabouts::Wanted { holders, tried };
                self.want(key);
            }
            None => {
                held.whereabouts = Whereabouts::Wanted { holders: Vec::new(), tried: Vec::new() };
                let lacking: Vec<_> = tried.iter().map(|holder| (key, *holder)).collect();
                for run in self.waiting_for(key) {
                    self.give_back(run, lacking.clone());
                }
            }
        }
    }

    /// A run ended, with a value of so many bytes or a failure.
    pub(crate) fn ended(&mut self, run: Attempt, key: Key, result: Result<u64, Failure>, micros: u32) {
        self.running -= 1;
        let Some(job) = self.runs.remove(&run) else {
            // Dropped while it ran; what it made may be what is kept of another run.
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
                self.actions.push(Action::Say(FromWorker::Done { key, run, bytes, micros }));
            }
            Err(failure) => {
                self.discard_unused(key);
                self.actions.push(Action::Say(FromWorker::Failed { key, run, failure }));
            }
        }
        self.let_go(&job.order);
    }

    /// A client will give a value of so many bytes, if there is room and it is not here. Until `gave`, nothing else has that room.
    pub(crate) fn expect(&mut self, key: Key, bytes: u64) -> Result<(), Failure> {
        if matches!(self.values.get(&key), Some(Held { whereabouts: Whereabouts::Here, .. })) {
            return Err(Failure::new(ErrorKind::Invalid, "the worker has a value of that key"));
        }
        if self.bytes_with(bytes) > self.bytes_max {
            let detail = format!("the worker has no room for {bytes} bytes");
            return Err(Failure::new(ErrorKind::TooLarge, detail));
        }
        self.expected_bytes += bytes;
        Ok(())
    }

    /// What was expected is given, or will not be.
    pub(crate) fn gave(&mut self, bytes: u64) {
        self.expected_bytes -= bytes;
    }

    /// A client gave a value of so many bytes.
    pub(crate) fn given(&mut self, key: Key, bytes: u64) {
        self.keep(key, bytes);
        self.actions.push(Action::Say(FromWorker::Done { key, run: 0, bytes, micros: 0 }));
    }

    // ---- Within ----

    /// What there would be with so many bytes more.
    fn bytes_with(&self, bytes: u64) -> u64 {
        self.bytes.saturating_add(self.expected_bytes).saturating_add(bytes)
    }

    fn keep(&mut self, key: Key, bytes: u64) {
        let held = self.values.entry(key).or_insert(Held {
            bytes: 0,
            whereabouts: Whereabouts::Here,
            users: Vec::new(),
            is_kept: true,
        });
        if !matches!(held.whereabouts, Whereabouts::Wanted { .. }) {
            self.bytes -= held.bytes;
        }
        (held.bytes, held.is_kept) = (bytes, true);
        self.bytes += bytes;
        if !matches!(held.whereabouts, Whereabouts::Here) {
            held.whereabouts = Whereabouts::Here;
            self.arrived(key);
        }
    }

    /// Runs that waited for it have one input less to wait for.
    fn arrived(&mut self, key: Key) {
        for run in self.waiting_for(key) {
            if let Some(job) = self.runs.get_mut(&run) {
                job.missing -= 1;
                if job.missing == 0 {
                    self.ready.push(Reverse((job.order.priority, run)));
                }
            }
        }
    }

    /// Runs that need it, which is not here: so none of them has begun.
    fn waiting_for(&self, key: Key) -> Vec<Attempt> {
        self.values.get(&key).map_or_else(Vec::new, |held| held.users.clone())
    }

    fn give_back(&mut self, run: Attempt, lacking: Vec<(Key, WorkerId)>) {
        let Some(job) = self.runs.remove(&run) else { return };
        self.let_go(&job.order);
        self.actions.push(Action::Say(FromWorker::Returned { key: job.order.key, run, lacking }));
    }

    fn let_go(&mut self, order: &Assignment) {
        for input in &order.inputs {
            if let Some(held) = self.values.get_mut(&input.key) {
                held.users.retain(|user| *user != order.run);
                self.discard_unused(input.key);
            }
        }
    }

    /// Forgets a value that nobody needs, and has the shell do so where it may have it.
    fn discard_unused(&mut self, key: Key) {
        match self.values.get(&key) {
            Some(Held { users, is_kept: false, whereabouts, bytes }) if users.is_empty() => match whereabouts
            {
                Whereabouts::Here => self.bytes -= bytes,
                Whereabouts::Wanted { .. } => {}
                // It is forgotten when it has come.
                Whereabouts::Coming { .. } => return,
            },
            Some(_) => return,
            None => {}
        }
        self.values.remove(&key);
        self.actions.push(Action::Discard(key));
    }

    /// Has it fetched for the most urgent of the runs that wait for it.
    fn want(&mut self, key: Key) {
        let priorities = self.waiting_for(key).into_iter().map(|run| self.runs[&run].order.priority);
        if let Some(priority) = priorities.min() {
            self.wanted.push(Reverse((priority, key)));
        }
    }

    fn fetch(&mut self) {
        while self.fetching < FETCHES_MAX
            && let Some(Reverse((_, key))) = self.wanted.peek()
        {
            let key = *key;
            let held = self.values.get(&key);
            let Some(held) = held.filter(|held| matches!(held.whereabouts, Whereabouts::Wanted { .. }))
            else {
                self.wanted.pop();
                continue;
            };
            let bytes = held.bytes;
            let has_room = self.bytes_with(bytes) <= self.bytes_max;
            if !has_room && (self.fetching > 0 || self.running > 0 || !self.ready.is_empty()) {
                return;
            }
            self.wanted.pop();
            let Some(held) = self.values.get_mut(&key) else { continue };
            let Whereabouts::Wanted { holders, tried } = &mut held.whereabouts else { continue };
            let (holders, mut tried) = (std::mem::take(holders), std::mem::take(tried));
            match holders.iter().find(|holder| !tried.contains(holder)) {
                Some(from) => {
                    let from = *from;
                    tried.push(from);
                    held.whereabouts = Whereabouts::Coming { holders, tried };
                    self.fetching += 1;
                    self.bytes += held.bytes;
                    self.actions.push(Action::Fetch { key, from, bytes: held.bytes });
                }
                None => {
                    let lacking: Vec<_> = tried.iter().map(|holder| (key, *holder)).collect();
                    for run in self.waiting_for(key) {
                        self.give_back(run, lacking.clone());
                    }
                }
            }
        }
    }

    fn begin(&mut self) {
        while self.running < self.slots
            && let Some(Reverse((_, run))) = self.ready.pop()
        {
            let Some(job) = self.runs.get_mut(&run) else { continue };
            job.is_running = true;
            self.running += 1;
            let Assignment { key, run, function, inputs, arguments, .. } = &job.order;
            self.actions.push(Action::Begin(Start {
                key: *key,
                run: *run,
                function: *function,
                inputs: inputs.iter().map(|input| input.key).collect(),
                arguments: arguments.clone(),
            }));
        }
    }

    /// That what is here by its own account is here, and takes what it says.
    #[cfg(test)]
    pub(crate) fn check(&self, is_here: impl Fn(Key) -> bool) {
        let wanted = |held: &Held| matches!(held.whereabouts, Whereabouts::Wanted { .. });
        let bytes = self.values.values().filter(|held| !wanted(held)).map(|held| held.bytes).sum::<u64>();
        assert_eq!(self.bytes, bytes, "{self:?}");
        for (key, held) in &self.values {
            assert!(!matches!(held.whereabouts, Whereabouts::Here) || is_here(*key), "{key:?} is not here");
            assert!(held.users.iter().all(|user| self.runs.contains_key(user)), "{key:?} has lost users");
            assert!(
                held.is_kept || !held.users.is_empty() || !matches!(held.whereabouts, Whereabouts::Here),
                "nobody needs {key:?}"
            );
        }
        for (run, job) in &self.runs {
            let lacks = |input: &&Input| !matches!(self.values[&input.key].whereabouts, Whereabouts::Here);
            assert_eq!(job.missing, job.order.inputs.iter().filter(lacks).count(), "run {run}");
        }
        assert!(self.running <= self.slots && self.fetching <= FETCHES_MAX);
    }

    /// That nothing is left of what it was told.
    #[cfg(test)]
    pub(crate) fn check_empty(&self) {
        let is_empty = self.runs.is_empty() && self.values.is_empty() && self.bytes == 0;
        assert!(is_empty && self.running == 0 && self.fetching == 0, "something is left: {self:?}");
    }
}
