//! Connections.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};

use pyo3::prelude::*;
use pyo3::types::PyDict;
use towline::{Error, ErrorKind, Prefetch};

use crate::error::{OrRaise, exception};
use crate::event_loop::{EventLoop, Outcome};
use crate::incoming::Arrived;
use crate::message::{self, Form};
use crate::region::{Region, RemoteRegion};
use crate::unclaimed::Unclaimed;
use crate::view::View;

/// A connection to one peer.
#[pyclass(frozen, module = "towline._towline", weakref)]
#[derive(Debug)]
pub(crate) struct Connection {
    connection: towline::Connection,
    endpoint: towline::Endpoint,
    /// Messages that arrived for a call that was cancelled at that moment.
    unclaimed: Unclaimed<Arrived>,
    /// Whether the driver receives ahead of the calls.
    prefetches: AtomicBool,
}

impl Connection {
    pub(crate) fn new(endpoint: towline::Endpoint, connection: towline::Connection) -> Self {
        Self { connection, endpoint, unclaimed: Unclaimed::default(), prefetches: AtomicBool::new(false) }
    }

    /// Receives the next message. If the driver has received it already, a poll on the event loop moves no
    /// payload.
    fn receive<'py>(
        &self,
        py: Python<'py>,
        event_loop: &EventLoop,
        form: Form,
    ) -> PyResult<Bound<'py, PyAny>> {
        let (connection, unclaimed) = (self.connection.clone(), self.unclaimed.clone());
        let received = async move {
            let whole = async { connection.recv().await.map(Arrived::Whole) };
            let mut claim = unclaimed.next(whole).await?;
            if let Some(message) = claim.take() {
                // Nothing is awaited for one that is whole, so that it cannot be lost.
                claim.put(Arrived::Whole(message.accept().await?));
            }
            Ok(Outcome::Received(claim, form))
        };
        if self.prefetches.load(Ordering::Relaxed) {
            event_loop.watch(py, received)
        } else {
            event_loop.start(py, &self.endpoint, received)
        }
    }
}

#[pymethods]
impl Connection {
    fn send<'py>(
        &self,
        py: Python<'py>,
        event_loop: &EventLoop,
        header: &Bound<'py, PyAny>,
        frames: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        event_loop.release(py);
        let message = message::from_objects(header, frames, &event_loop.pins)?;
        event_loop.send(py, &self.endpoint, &self.connection, message)
    }

    /// Receives messages ahead of `recv` from now on, on the endpoint's thread: at most so many, and so many bytes.
    fn prefetch(&self, py: Python<'_>, messages: usize, bytes: u64) -> PyResult<()> {
        let prefetch = Prefetch::default().writable(true).messages(messages).bytes(bytes);
        self.connection.prefetch(prefetch).or_raise(py)?;
        self.prefetches.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Sends any number of frames as one packed message.
    fn send_packed<'py>(
        &self,
        py: Python<'py>,
        event_loop: &EventLoop,
        frames: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        event_loop.release(py);
        let message = message::pack(frames, &event_loop.pins)?;
        event_loop.send(py, &self.endpoint, &self.connection, message)
    }

    fn recv<'py>(&self, py: Python<'py>, event_loop: &EventLoop) -> PyResult<Bound<'py, PyAny>> {
        self.receive(py, event_loop, Form::Whole)
    }

    /// Receives a packed message: a list of writable memoryviews.
    fn recv_packed<'py>(&self, py: Python<'py>, event_loop: &EventLoop) -> PyResult<Bound<'py, PyAny>> {
        self.receive(py, event_loop, Form::Packed)
    }

    /// Returns the next message before its payload is received.
    fn incoming<'py>(&self, py: Python<'py>, event_loop: &EventLoop) -> PyResult<Bound<'py, PyAny>> {
        if self.prefetches.load(Ordering::Relaxed) {
            let why = "this connection receives ahead, so its messages have their memory already: connect or \
                       accept with prefetch=None to choose it";
            return Err(exception(py, &Error::new(ErrorKind::Invalid, why)));
        }
        let (connection, endpoint, unclaimed) =
            (self.connection.clone(), self.endpoint.clone(), self.unclaimed.clone());
        event_loop.start(py, &self.endpoint, async move {
            let announced = async { connection.incoming().await.map(Arrived::Announced) };
            Ok(Outcome::Announced(endpoint, unclaimed.next(announced).await?))
        })
    }

    /// Lets the peer read an object's bytes, for so many seconds.
    #[pyo3(signature = (event_loop, object, lifetime=None))]
    fn expose(
        &self,
        event_loop: &EventLoop,
        object: &Bound<'_, PyAny>,
        lifetime: Option<f64>,
    ) -> PyResult<Region> {
        Region::read(&self.endpoint, &self.connection, event_loop, object, lifetime)
    }

    /// Lets the peer write memory of `size` bytes, for so many seconds.
    #[pyo3(signature = (size, lifetime=None))]
    fn expose_writable(&self, py: Python<'_>, size: usize, lifetime: Option<f64>) -> PyResult<Region> {
        Region::write(py, &self.endpoint, &self.connection, size, lifetime)
    }

    /// Reads the peer's memory, into a writable object or into memory of its own.
    #[pyo3(signature = (event_loop, remote, offset, size=None, into=None))]
    fn get<'py>(
        &self,
        py: Python<'py>,
        event_loop: &EventLoop,
        remote: &RemoteRegion,
        offset: u64,
        size: Option<u64>,
        into: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        remote.get(py, &self.endpoint, &self.connection, event_loop, (offset, size), into)
    }

    /// Writes the peer's memory.
    fn put<'py>(
        &self,
        py: Python<'py>,
        event_loop: &EventLoop,
        remote: &RemoteRegion,
        offset: u64,
        object: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        event_loop.release(py);
        let from = message::buffer(View::of(object)?, &event_loop.pins);
        remote.put(py, &self.endpoint, &self.connection, event_loop, offset, from)
    }

    /// Sends what is queued, and ends the connection in good order.
    fn close<'py>(&self, py: Python<'py>, event_loop: &EventLoop) -> PyResult<Bound<'py, PyAny>> {
        let connection = self.connection.clone();
        event_loop.start(py, &self.endpoint, async move {
            connection.close().await?;
            Ok(Outcome::Nothing)
        })
    }

    /// Ends the connection now.
    fn abort(&self, py: Python<'_>) {
        py.detach(|| self.connection.abort());
    }

    /// Why the connection has ended: an exception, or `None` if it has not.
    fn close_reason(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        let reason = self.connection.close_reason()?;
        Some(exception(py, &reason).into_value(py).into_any())
    }

    /// Whether the connection has ended.
    fn closed(&self) -> bool {
        self.connection.close_reason().is_some()
    }

    /// Which path was chosen, and why: a text.
    fn explain<'py>(&self, py: Python<'py>, event_loop: &EventLoop) -> PyResult<Bound<'py, PyAny>> {
        let connection = self.connection.clone();
        event_loop.start(py, &self.endpoint, async move {
            Ok(Outcome::Text(format!("{:#?}", connection.explain().await)))
        })
    }

    /// The backend that carries the connection.
    #[getter]
    fn path(&self) -> &'static str {
        self.connection.path().chosen()
    }

    #[getter]
    fn encryption(&self) -> &'static str {
        self.connection.path().encryption()
    }

    /// The candidates: `(name, state, reason)` of each.
    #[getter]
    fn candidates(&self) -> Vec<(String, String, String)> {
        let candidates = self.connection.path().candidates().iter();
        candidates
            .map(|candidate| {
                (candidate.name.to_owned(), format!("{:?}", candidate.state), candidate.reason.clone())
            })
            .collect()
    }

    /// This end's `(host, port)`, or `None` within a process.
    #[getter]
    fn local_address(&self) -> Option<(String, u16)> {
        self.connection.local_address().map(host_and_port)
    }

    /// The peer's `(host, port)`, or `None` within a process.
    #[getter]
    fn peer_address(&self) -> Option<(String, u16)> {
        self.connection.peer_address().map(host_and_port)
    }

    #[getter]
    fn peer(&self) -> String {
        self.connection.peer().to_string()
    }

    #[getter]
    fn is_same_host(&self) -> bool {
        self.connection.peer().same_host(self.endpoint.identity())
    }

    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let stats = self.connection.stats();
        let fields = [
            ("messages_sent", stats.messages_sent),
            ("messages_received", stats.messages_received),
            ("bytes_sent", stats.bytes_sent),
            ("bytes_received", stats.bytes_received),
            ("bytes_copied", stats.bytes_copied),
            ("bytes_bounced", stats.bytes_bounced),
            ("system_calls", stats.system_calls),
            ("credit_stalls", stats.credit_stalls),
        ];
        let dict = PyDict::new(py);
        fields.into_iter().try_for_each(|(name, count)| dict.set_item(name, count))?;
        Ok(dict)
    }
}

fn host_and_port(address: SocketAddr) -> (String, u16) {
    (address.ip().to_string(), address.port())
}
