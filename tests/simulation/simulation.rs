//! The simulated hosts: one thread, one clock, one order of tasks. The seed decides which task runs next, when
//! time passes, and which host stops.
//!
//! The invariant: only the seed decides. Ready tasks are a sorted set, so that the order of wake-ups, which may
//! come from a hash map of the library, has no effect.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use towline::environment::{Environment, Task};

use crate::rng::{Rng, Trace};

/// The limit on polls of one seed. A run beyond it is taken to loop.
const POLLS_MAX: u64 = 500_000;

/// The clock, timers and tasks of all hosts.
#[derive(Debug)]
pub(crate) struct Simulation {
    state: Mutex<State>,
    ready: Arc<Mutex<BTreeSet<u64>>>,
}

struct State {
    now: Duration,
    rng: Rng,
    trace: Trace,
    /// By number; without its task while the task is polled.
    tasks: BTreeMap<u64, Entry>,
    next_task: u64,
    timers: BTreeMap<(Duration, u64), Waker>,
    next_timer: u64,
    /// Stopped hosts, each with the end of its stop.
    stopped: BTreeMap<usize, Duration>,
}

struct Entry {
    host: usize,
    task: Option<Task>,
    waker: Waker,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("now", &self.now).finish_non_exhaustive()
    }
}

struct Ready {
    number: u64,
    queue: Arc<Mutex<BTreeSet<u64>>>,
}

impl Wake for Ready {
    fn wake(self: Arc<Self>) {
        lock(&self.queue).insert(self.number);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Simulation {
    pub(crate) fn new(seed: u64) -> Arc<Self> {
        let state = State {
            now: Duration::ZERO,
            rng: Rng::new(seed, 1),
            trace: Trace::EMPTY,
            tasks: BTreeMap::new(),
            next_task: 0,
            timers: BTreeMap::new(),
            next_timer: 0,
            stopped: BTreeMap::new(),
        };
        Arc::new(Self { state: Mutex::new(state), ready: Arc::default() })
    }

    pub(crate) fn now(&self) -> Duration {
        lock(&self.state).now
    }

    pub(crate) fn trace(&self) -> Trace {
        lock(&self.state).trace
    }

    /// Adds an event to the trace.
    pub(crate) fn note(&self, what: u64) {
        lock(&self.state).trace.add(what);
    }

    /// Returns the number of tasks that have not ended.
    pub(crate) fn living(&self) -> usize {
        lock(&self.state).tasks.len()
    }

    /// Runs no task of `host` for `time`.
    pub(crate) fn stop(&self, host: usize, time: Duration) {
        let mut state = lock(&self.state);
        let until = state.now + time;
        state.stopped.insert(host, until);
    }

    pub(crate) fn spawn(&self, host: usize, task: Task) {
        let mut state = lock(&self.state);
        let number = state.next_task;
        state.next_task += 1;
        let waker = Waker::from(Arc::new(Ready { number, queue: self.ready.clone() }));
        state.tasks.insert(number, Entry { host, task: Some(task), waker });
        drop(state);
        lock(&self.ready).insert(number);
    }

    pub(crate) fn sleep(self: &Arc<Self>, time: Duration) -> Sleep {
        Sleep { at: self.now() + time, simulation: self.clone(), entry: None }
    }

    /// Runs until `is_over` returns true, no task or timer is left, or the clock passes `limit`. Returns
    /// `is_over()`.
    pub(crate) fn run_until(&self, limit: Duration, is_over: impl Fn() -> bool) -> bool {
        for _ in 0..POLLS_MAX {
            if is_over() {
                return true;
            }
            if !self.turn() && !self.pass_time(limit) {
                return is_over();
            }
        }
        panic!("the run has not ended after {POLLS_MAX} polls");
    }

    /// Polls one task. Returns false if none may run now.
    fn turn(&self) -> bool {
        let mut state = lock(&self.state);
        let now = state.now;
        state.stopped.retain(|_, until| *until > now);
        let mut ready = lock(&self.ready);
        ready.retain(|number| state.tasks.contains_key(number));
        let may_run = |number: &&u64| !state.stopped.contains_key(&state.tasks[*number].host);
        let runnable: Vec<u64> = ready.iter().filter(may_run).copied().collect();
        if runnable.is_empty() {
            return false;
        }
        let number = runnable[state.rng.below(runnable.len())];
        ready.remove(&number);
        drop(ready);
        state.trace.add(number);
        let entry = state.tasks.get_mut(&number).expect("a ready task has an entry");
        let (mut task, waker) =
            (entry.task.take().expect("the task is not being polled"), entry.waker.clone());
        drop(state);
        if task.as_mut().poll(&mut Context::from_waker(&waker)).is_pending() {
            if let Some(entry) = lock(&self.state).tasks.get_mut(&number) {
                entry.task = Some(task);
            }
        } else {
            lock(&self.state).tasks.remove(&number);
            drop(task);
        }
        true
    }

    /// Moves the clock to the next timer or the next end of a stop. Returns false if there is none before
    /// `limit`.
    fn pass_time(&self, limit: Duration) -> bool {
        let mut state = lock(&self.state);
        let timer = state.timers.first_key_value().map(|((at, _), _)| *at);
        let Some(next) = timer.into_iter().chain(state.stopped.values().copied()).min() else { return false };
        if next > limit {
            return false;
        }
        state.now = state.now.max(next);
        let now = state.now;
        state.trace.add(now.as_nanos() as u64);
        let later = state.timers.split_off(&(now + Duration::from_nanos(1), 0));
        let due = std::mem::replace(&mut state.timers, later);
        drop(state);
        due.into_values().for_each(Waker::wake);
        true
    }
}

/// Completes once the clock has reached its time.
#[derive(Debug)]
pub(crate) struct Sleep {
    simulation: Arc<Simulation>,
    at: Duration,
    entry: Option<u64>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let simulation = self.simulation.clone();
        let mut state = lock(&simulation.state);
        if state.now >= self.at {
            return Poll::Ready(());
        }
        let entry = *self.entry.get_or_insert_with(|| {
            state.next_timer += 1;
            state.next_timer
        });
        state.timers.insert((self.at, entry), cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(entry) = self.entry {
            lock(&self.simulation.state).timers.remove(&(self.at, entry));
        }
    }
}

/// One host of the simulation, the environment of an endpoint.
#[derive(Clone, Debug)]
pub(crate) struct Host {
    pub(crate) simulation: Arc<Simulation>,
    pub(crate) number: usize,
}

impl Environment for Host {
    fn now(&self) -> Duration {
        self.simulation.now()
    }

    fn sleep_until(&self, at: Duration) -> Task {
        Box::pin(Sleep { simulation: self.simulation.clone(), at, entry: None })
    }

    fn random(&self, out: &mut [u8]) {
        let mut state = lock(&self.simulation.state);
        for byte in out {
            *byte = state.rng.next() as u8;
        }
    }

    fn spawn(&self, task: Task) {
        self.simulation.spawn(self.number, task);
    }
}
