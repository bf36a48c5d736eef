//! Events of the library, for Python's `logging`.
//!
//! The invariant: what happens here on a thread of the library never attaches to the interpreter. Events are
//! queued, and a thread of an event loop takes them.

use std::collections::VecDeque;
use std::fmt::{Debug, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use pyo3::prelude::*;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::{Context, SubscriberExt};

/// How many events wait for a thread of an event loop. Later ones are dropped and counted.
const QUEUED_MAX: usize = 1000;

/// The levels of Python's `logging`.
const LEVELS: [(u8, Level); 5] =
    [(40, Level::ERROR), (30, Level::WARN), (20, Level::INFO), (10, Level::DEBUG), (0, Level::TRACE)];

/// The level of `logging`, the module of the library, and the text.
type Logged = (u8, String, String);

struct Queue {
    events: VecDeque<Logged>,
    dropped: u64,
    /// Wakes the event loop that was made last.
    waker: Option<Waker>,
    /// A forked child's events are its parent's, whose lock may be held for ever.
    process: u32,
}

static QUEUE: Mutex<Queue> =
    Mutex::new(Queue { events: VecDeque::new(), dropped: 0, waker: None, process: 0 });
static HAS_EVENTS: AtomicBool = AtomicBool::new(false);

fn queue() -> MutexGuard<'static, Queue> {
    QUEUE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Queues events for `logging` from now on, from `level` of `logging` on. Returns whether this call began it.
#[pyfunction]
pub(crate) fn start_log(level: u8) -> bool {
    let (_, most) = LEVELS.into_iter().find(|(least, _)| level >= *least).unwrap_or((0, Level::TRACE));
    let subscriber = tracing_subscriber::registry().with(LevelFilter::from_level(most)).with(Queueing);
    let has_begun = tracing::subscriber::set_global_default(subscriber).is_ok();
    if has_begun {
        queue().process = std::process::id();
    }
    has_begun
}

/// Takes the queued events, and how many were dropped since the last call.
#[pyfunction]
pub(crate) fn take_log() -> (Vec<Logged>, u64) {
    if !HAS_EVENTS.swap(false, Ordering::Acquire) {
        return (Vec::new(), 0);
    }
    let mut queue = queue();
    (queue.events.drain(..).collect(), std::mem::take(&mut queue.dropped))
}

/// Lets events wake the event loop that has this waker.
pub(crate) fn wake_by(waker: Waker) {
    if let Ok(mut queue) = QUEUE.try_lock() {
        queue.waker = Some(waker);
    }
}

/// Forgets that waker, whose event loop ends.
pub(crate) fn forget(waker: &Waker) {
    if let Ok(mut queue) = QUEUE.try_lock()
        && queue.waker.as_ref().is_some_and(|current| current.will_wake(waker))
    {
        queue.waker = None;
    }
}

/// Passes queued events to `logging`.
pub(crate) fn emit(py: Python<'_>) -> PyResult<()> {
    if HAS_EVENTS.load(Ordering::Relaxed) {
        py.import("towline._log")?.call_method0("emit")?;
    }
    Ok(())
}

struct Queueing;

impl<S: Subscriber> Layer<S> for Queueing {
    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        let mut text = Text::default();
        event.record(&mut text);
        let metadata = event.metadata();
        let level =
            LEVELS.into_iter().find(|(_, level)| level == metadata.level()).map_or(0, |(level, _)| level);
        let Ok(mut queue) = QUEUE.try_lock() else { return };
        if queue.process != std::process::id() {
            return;
        }
        if queue.events.len() == QUEUED_MAX {
            queue.dropped += 1;
            return;
        }
        queue.events.push_back((level.max(5), metadata.target().replace("::", "."), text.0));
        let was_empty = !HAS_EVENTS.swap(true, Ordering::Release);
        let waker = queue.waker.clone().filter(|_| was_empty);
        drop(queue);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// An event's message, and its other fields behind it.
#[derive(Default)]
struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        // Writing to a String never fails.
        let _ = match (field.name(), self.0.is_empty()) {
            ("message", true) => write!(self.0, "{value:?}"),
            ("message", false) => {
                self.0.insert_str(0, &format!("{value:?} "));
                Ok(())
            }
            (name, true) => write!(self.0, "{name}={value:?}"),
            (name, false) => write!(self.0, " {name}={value:?}"),
        };
    }
}
