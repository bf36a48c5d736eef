//! The calls in progress of one asyncio loop, and what wakes it.

use std::collections::HashMap;
use std::future::Future;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use pyo3::exceptions::PyRuntimeError;
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use towline::memory::Pins;
use towline::{BufferMut, CompletionQueue, Result};

use crate::connection::Connection;
use crate::endpoint::Listener;
use crate::error::{OrRaise, exception};
use crate::frame::Frame;
use crate::incoming::{Arrived, Incoming};
use crate::log;
use crate::message::Form;
use crate::unclaimed::Claim;
use crate::view::{PinnedView, release_orphans};

/// A message below this length, in bytes, is sent in less than 100 µs.
const SHORT: u64 = 32 << 10;

/// What an operation ends with.
pub(crate) enum Outcome {
    Nothing,
    Connected(towline::Endpoint, towline::Connection),
    Accepted(towline::Endpoint, Claim<towline::Connection>),
    Listening(towline::Endpoint, towline::Listener),
    /// It is whole.
    Received(Claim<Arrived>, Form),
    Announced(towline::Endpoint, Claim<Arrived>),
    Message(towline::Message, Form),
    Frame(BufferMut),
    Text(String),
}

/// The calls of one asyncio loop.
///
/// The loop watches the descriptor (`fileno`) and calls `advance` when it is readable.
#[pyclass(frozen, module = "towline._towline", weakref)]
pub(crate) struct EventLoop {
    queue: CompletionQueue<Outcome>,
    pub(crate) pins: Pins<PinnedView>,
    /// The asyncio loop, which holds this object by its callback. `None` once the collector broke that cycle.
    event_loop: Mutex<Option<Py<PyAny>>>,
    calls: Mutex<HashMap<u64, Py<Pending>>>,
    last: AtomicU64,
}

/// A call in progress. Its asyncio future ends with the call: with `None`, or with its exception.
///
/// The value is taken apart from the future: a task may be cancelled after the future has ended and before the
/// task runs, and the value must not be lost then.
#[pyclass(frozen, module = "towline._towline", weakref)]
pub(crate) struct Pending {
    key: u64,
    #[pyo3(get)]
    future: Py<PyAny>,
    outcome: Mutex<Option<Outcome>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[pymethods]
impl EventLoop {
    #[new]
    fn new(py: Python<'_>, event_loop: Py<PyAny>) -> PyResult<Self> {
        let queue = CompletionQueue::new().or_raise(py)?;
        let pins = Pins::new(queue.waker());
        log::wake_by(queue.waker());
        Ok(Self {
            queue,
            pins,
            event_loop: Mutex::new(Some(event_loop)),
            calls: Mutex::default(),
            last: AtomicU64::new(0),
        })
    }

    fn fileno(&self) -> i32 {
        self.queue.as_fd().as_raw_fd()
    }

    /// Releases objects that were sent, and sets the futures of calls that have ended.
    fn advance(&self, py: Python<'_>) -> PyResult<()> {
        let ended = self.queue.drain();
        // The objects of the calls that have ended are released before their futures are set.
        self.release(py);
        let mut first_error = Ok(());
        for (key, result) in ended {
            let Some(call) = lock(&self.calls).remove(&key) else { continue };
            // An error of one call must not lose the results of the others.
            let ended = call.get().end(py, result);
            first_error = first_error.and(ended);
        }
        let logged = log::emit(py);
        first_error.and(logged)
    }

    /// Drops a call, as if it were never awaited. A message that it received is there for the next call.
    fn cancel(&self, py: Python<'_>, call: &Pending) {
        let entry = lock(&self.calls).remove(&call.key);
        py.detach(|| self.queue.cancel(call.key));
        let outcome = lock(&call.outcome).take();
        drop((entry, outcome));
    }

    /// The number of calls in progress.
    fn __len__(&self) -> usize {
        self.queue.len()
    }

    /// The number of bytes of Python's objects that are being sent.
    fn pinned_bytes(&self) -> u64 {
        self.pins.pinned_bytes()
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        // The collector runs while no other Python code does: a lock that is taken is taken by this very call.
        if let Ok(event_loop) = self.event_loop.try_lock() {
            visit.call(&*event_loop)?;
        }
        if let Ok(calls) = self.calls.try_lock() {
            calls.values().try_for_each(|call| visit.call(call))?;
        }
        Ok(())
    }

    fn __clear__(&self) {
        let event_loop = lock(&self.event_loop).take();
        let calls = std::mem::take(&mut *lock(&self.calls));
        drop((event_loop, calls));
    }
}

#[pymethods]
impl Pending {
    /// Returns the value of the call, once, after its future has ended.
    fn take<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        match lock(&self.outcome).take() {
            Some(outcome) => object(py, Ok(outcome)),
            None => Err(PyRuntimeError::new_err("the call has not ended, or its value was taken")),
        }
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.future)
    }
}

impl Pending {
    /// Ends the future. Nothing happens if it was cancelled: its task has not come to cancel the call yet.
    fn end(&self, py: Python<'_>, result: Result<Outcome>) -> PyResult<()> {
        let future = self.future.bind(py);
        if future.call_method0("done")?.is_truthy()? {
            return Ok(());
        }
        match result {
            Ok(outcome) => {
                *lock(&self.outcome) = Some(outcome);
                future.call_method1("set_result", (py.None(),))?;
            }
            Err(error) => {
                future.call_method1("set_exception", (exception(py, &error).into_value(py),))?;
            }
        }
        Ok(())
    }
}

impl Drop for EventLoop {
    fn drop(&mut self) {
        log::forget(&self.queue.waker());
    }
}

impl EventLoop {
    /// Starts an operation that moves bytes. Returns its value, or a [`Pending`].
    pub(crate) fn start<'py>(
        &self,
        py: Python<'py>,
        endpoint: &towline::Endpoint,
        operation: impl Future<Output = Result<Outcome>> + Send + 'static,
    ) -> PyResult<Bound<'py, PyAny>> {
        let key = self.key();
        self.pending(py, key, |queue| py.detach(|| queue.start(endpoint, key, operation)))
    }

    /// Starts a send. A short message is sent without leaving the interpreter: to enter it again takes 5 ms
    /// while another thread computes.
    pub(crate) fn send<'py>(
        &self,
        py: Python<'py>,
        endpoint: &towline::Endpoint,
        connection: &towline::Connection,
        message: towline::Message,
    ) -> PyResult<Bound<'py, PyAny>> {
        let is_short = message.header().len() as u64 + message.payload_len() < SHORT;
        let connection = connection.clone();
        let sending = async move {
            connection.send(message).await?;
            Ok(Outcome::Nothing)
        };
        if !is_short {
            return self.start(py, endpoint, sending);
        }
        let key = self.key();
        self.pending(py, key, |queue| queue.start(endpoint, key, sending))
    }

    /// Starts an operation that only waits. Returns its value, or a [`Pending`].
    pub(crate) fn watch<'py>(
        &self,
        py: Python<'py>,
        operation: impl Future<Output = Result<Outcome>> + Send + 'static,
    ) -> PyResult<Bound<'py, PyAny>> {
        let key = self.key();
        self.pending(py, key, |queue| queue.watch(key, operation))
    }

    /// Releases the objects whose bytes have been sent.
    pub(crate) fn release(&self, py: Python<'_>) {
        self.pins.take_released().into_iter().for_each(|view| view.release(py));
        release_orphans(py);
    }

    fn key(&self) -> u64 {
        self.last.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn pending<'py>(
        &self,
        py: Python<'py>,
        key: u64,
        start: impl FnOnce(&CompletionQueue<Outcome>) -> Option<Result<Outcome>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        if let Some(result) = start(&self.queue) {
            return object(py, result);
        }
        // Results are taken by this very thread, so none can come before its future is here.
        let call = self.call(py, key).inspect_err(|_| self.queue.cancel(key))?;
        lock(&self.calls).insert(key, call.clone().unbind());
        Ok(call.into_any())
    }

    fn call<'py>(&self, py: Python<'py>, key: u64) -> PyResult<Bound<'py, Pending>> {
        let event_loop = lock(&self.event_loop).as_ref().map(|event_loop| event_loop.clone_ref(py));
        let event_loop = event_loop.ok_or_else(|| PyRuntimeError::new_err("the loop is gone"))?;
        let future = event_loop.call_method0(py, "create_future")?;
        Bound::new(py, Pending { key, future, outcome: Mutex::default() })
    }
}

/// Returns a result as Python's object.
fn object(py: Python<'_>, result: Result<Outcome>) -> PyResult<Bound<'_, PyAny>> {
    let outcome = result.map_err(|error| exception(py, &error))?;
    Ok(match outcome {
        Outcome::Nothing => py.None().into_bound(py),
        Outcome::Connected(endpoint, connection) => {
            Bound::new(py, Connection::new(endpoint, connection))?.into_any()
        }
        Outcome::Accepted(endpoint, mut claim) => {
            let connection = claim.take().ok_or_else(taken)?;
            Bound::new(py, Connection::new(endpoint, connection))?.into_any()
        }
        Outcome::Listening(endpoint, listener) => {
            Bound::new(py, Listener::new(endpoint, listener))?.into_any()
        }
        Outcome::Received(mut claim, form) => match claim.take() {
            Some(Arrived::Whole(message)) => form.object(py, message)?,
            _ => return Err(taken()),
        },
        Outcome::Announced(endpoint, mut claim) => {
            let incoming = claim.take().ok_or_else(taken)?;
            Bound::new(py, Incoming::new(py, endpoint, incoming))?.into_any()
        }
        Outcome::Message(message, form) => form.object(py, message)?,
        Outcome::Frame(memory) => Bound::new(py, Frame::of(memory))?.into_any(),
        Outcome::Text(text) => text.into_pyobject(py)?.into_any(),
    })
}

fn taken() -> PyErr {
    PyRuntimeError::new_err("the value was taken")
}
