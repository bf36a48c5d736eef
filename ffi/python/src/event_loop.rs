//! The calls in progress of one asyncio loop, and what wakes it.

use std::collections::HashMap;
use std::future::Future;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use towline::memory::Pins;
use towline::{CompletionQueue, Result};

use crate::connection::{Connection, Untaken};
use crate::endpoint::Listener;
use crate::error::{OrRaise, exception};
use crate::message::Form;
use crate::view::PinnedView;

/// What an operation ends with.
pub(crate) enum Outcome {
    Nothing,
    Connected(towline::Endpoint, towline::Connection),
    Listening(towline::Endpoint, towline::Listener),
    Received(towline::Message, Form, Untaken),
    Text(String),
}

/// The calls of one asyncio loop.
///
/// The loop watches the descriptor (`fileno`) and calls `advance` when it is readable.
#[pyclass(frozen, module = "towline", weakref)]
pub(crate) struct EventLoop {
    queue: CompletionQueue<Outcome>,
    pub(crate) pins: Pins<PinnedView>,
    /// The asyncio loop, which holds this object by its callback. `None` once the collector broke that cycle.
    event_loop: Mutex<Option<Py<PyAny>>>,
    futures: Mutex<HashMap<u64, Py<PyAny>>>,
    last: AtomicU64,
}

/// A call in progress: the asyncio future of its result, and the key that cancels it.
#[pyclass(frozen, module = "towline")]
pub(crate) struct Pending {
    #[pyo3(get)]
    key: u64,
    #[pyo3(get)]
    future: Py<PyAny>,
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
        Ok(Self {
            queue,
            pins,
            event_loop: Mutex::new(Some(event_loop)),
            futures: Mutex::default(),
            last: AtomicU64::new(0),
        })
    }

    fn fileno(&self) -> i32 {
        self.queue.as_fd().as_raw_fd()
    }

    /// Releases objects that were sent, and sets the futures of calls that have ended.
    fn advance(&self, py: Python<'_>) -> PyResult<()> {
        self.release(py);
        for (key, result) in self.queue.drain() {
            let Some(future) = lock(&self.futures).remove(&key) else { continue };
            let future = future.bind(py);
            if future.call_method0("done")?.is_truthy()? {
                // It was cancelled, and its task has not come to cancel the call yet.
                if let Ok(Outcome::Received(message, _, untaken)) = result {
                    lock(&untaken).push_back(message);
                }
                continue;
            }
            match object(py, result) {
                Ok(value) => future.call_method1("set_result", (value,))?,
                Err(error) => future.call_method1("set_exception", (error.into_value(py),))?,
            };
        }
        Ok(())
    }

    /// Drops a call, as if it were never awaited.
    fn cancel(&self, py: Python<'_>, key: u64) {
        let future = lock(&self.futures).remove(&key);
        py.detach(|| self.queue.cancel(key));
        drop(future);
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
        if let Ok(futures) = self.futures.try_lock() {
            futures.values().try_for_each(|future| visit.call(future))?;
        }
        Ok(())
    }

    fn __clear__(&self) {
        let event_loop = lock(&self.event_loop).take();
        let futures = std::mem::take(&mut *lock(&self.futures));
        drop((event_loop, futures));
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
        let event_loop = lock(&self.event_loop).as_ref().map(|event_loop| event_loop.clone_ref(py));
        let event_loop =
            event_loop.ok_or_else(|| pyo3::exceptions::PyRuntimeError::new_err("the loop is gone"))?;
        let future = event_loop.call_method0(py, "create_future")?;
        lock(&self.futures).insert(key, future.clone_ref(py));
        Ok(Bound::new(py, Pending { key, future })?.into_any())
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
        Outcome::Listening(endpoint, listener) => {
            Bound::new(py, Listener::new(endpoint, listener))?.into_any()
        }
        Outcome::Received(message, form, _) => form.object(py, message)?,
        Outcome::Text(text) => text.into_pyobject(py)?.into_any(),
    })
}
