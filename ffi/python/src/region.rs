//! Memory that the peer reads or writes without this end's code.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use pyo3::prelude::*;
use pyo3::types::PyBytes;
use towline::{Buffer, BufferMut, Connection, Error, ErrorKind, Result};

use crate::endpoint::seconds;
use crate::error::{OrRaise, exception};
use crate::event_loop::{EventLoop, Outcome};
use crate::view::View;

/// The right to read or write a peer's memory. Its bytes travel in a message of the peer's.
#[pyclass(frozen, module = "towline", eq, hash)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct RemoteRegion(towline::RemoteRegion);

/// Exposed memory. Dropping it ends the peer's access.
#[pyclass(frozen, module = "towline._towline", weakref)]
#[derive(Debug)]
pub(crate) struct Region {
    /// `None` once it is closed.
    exposed: Mutex<Option<Exposed>>,
    endpoint: towline::Endpoint,
    #[pyo3(get)]
    remote: RemoteRegion,
}

#[derive(Debug)]
enum Exposed {
    /// Memory of Python's, which the peer reads.
    Read(towline::Region<Buffer>),
    /// Memory that Python gets once the peer no longer writes it.
    Write(towline::Region<BufferMut>),
}

#[pymethods]
impl RemoteRegion {
    #[new]
    fn new(content: &Bound<'_, PyAny>) -> PyResult<Self> {
        let bytes = View::of(content)?.to_vec();
        towline::RemoteRegion::from_bytes(&bytes).map(Self).or_raise(content.py())
    }

    fn __bytes__<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.0.to_bytes())
    }

    fn __len__(&self) -> usize {
        self.0.len().try_into().unwrap_or(usize::MAX)
    }

    /// Whether it may be written, by `put`. Otherwise it may be read, by `get`.
    #[getter]
    fn writable(&self) -> bool {
        self.0.access() == towline::RegionAccess::Write
    }

    fn __repr__(&self) -> String {
        let access = if self.writable() { "write" } else { "read" };
        format!("<towline.RemoteRegion of {} bytes to {access}>", self.0.len())
    }
}

#[pymethods]
impl Region {
    /// Ends the peer's access, and waits until none is under way. Returns a frame of what the peer wrote, or `None`
    /// for a region that the peer could read or that is closed already.
    fn close<'py>(&self, py: Python<'py>, event_loop: &EventLoop) -> PyResult<Bound<'py, PyAny>> {
        let exposed = self.exposed.lock().unwrap_or_else(PoisonError::into_inner).take();
        let closed = event_loop.start(py, &self.endpoint, async move {
            Ok(match exposed {
                Some(Exposed::Read(region)) => {
                    drop(region.revoke().await);
                    Outcome::Nothing
                }
                Some(Exposed::Write(region)) => Outcome::Frame(region.revoke().await),
                None => Outcome::Nothing,
            })
        });
        event_loop.release(py);
        closed
    }
}

impl Region {
    /// Lets the peer read an object's bytes.
    pub(crate) fn read(
        endpoint: &towline::Endpoint,
        connection: &Connection,
        event_loop: &EventLoop,
        object: &Bound<'_, PyAny>,
        lifetime: Option<f64>,
    ) -> PyResult<Self> {
        let (py, lifetime) = (object.py(), duration(lifetime)?);
        event_loop.release(py);
        let memory = View::of(object)?.pin(&event_loop.pins);
        let region = connection.expose(memory, lifetime).or_raise(py)?;
        Ok(Self::new(endpoint, region.remote(), Exposed::Read(region)))
    }

    /// Lets the peer write memory of `size` zeroes.
    pub(crate) fn write(
        py: Python<'_>,
        endpoint: &towline::Endpoint,
        connection: &Connection,
        size: usize,
        lifetime: Option<f64>,
    ) -> PyResult<Self> {
        let lifetime = duration(lifetime)?;
        let region = py.detach(|| -> Result<_> {
            let memory = endpoint.pool().take_zeroed(size)?;
            Ok(connection.expose_mut(memory, lifetime)?)
        });
        let region = region.or_raise(py)?;
        Ok(Self::new(endpoint, region.remote(), Exposed::Write(region)))
    }

    fn new(endpoint: &towline::Endpoint, remote: towline::RemoteRegion, exposed: Exposed) -> Self {
        let remote = RemoteRegion(remote);
        Self { exposed: Mutex::new(Some(exposed)), endpoint: endpoint.clone(), remote }
    }
}

impl RemoteRegion {
    /// Reads `size` bytes at `offset`, or all behind `offset`, into memory of their own, or into a writable object.
    pub(crate) fn get<'py>(
        self,
        py: Python<'py>,
        endpoint: &towline::Endpoint,
        connection: &Connection,
        event_loop: &EventLoop,
        (offset, size): (u64, Option<u64>),
        into: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        event_loop.release(py);
        let size = size.unwrap_or_else(|| self.0.len().saturating_sub(offset));
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        let mut destination = None;
        if let Some(object) = into {
            let view = View::writable(object)?;
            if view.len() < size {
                let why = format!("{size} bytes are to be read, and the buffer has {}", view.len());
                return Err(exception(py, &Error::new(ErrorKind::Invalid, why)));
            }
            destination = Some(view.pin_mut(&event_loop.pins));
        }
        let (connection, pool) = (connection.clone(), endpoint.pool().clone());
        let got = event_loop.start(py, endpoint, async move {
            let got = connection.get(&self.0, offset, pool.take(size)?).await?;
            let Some(mut destination) = destination else { return Ok(Outcome::Frame(got)) };
            destination.fill_from(&got.freeze())?;
            Ok(Outcome::Nothing)
        });
        event_loop.release(py);
        got
    }

    /// Writes a buffer at `offset`.
    pub(crate) fn put<'py>(
        self,
        py: Python<'py>,
        endpoint: &towline::Endpoint,
        connection: &Connection,
        event_loop: &EventLoop,
        offset: u64,
        from: Buffer,
    ) -> PyResult<Bound<'py, PyAny>> {
        let connection = connection.clone();
        let put = event_loop.start(py, endpoint, async move {
            connection.put(&self.0, offset, from).await?;
            Ok(Outcome::Nothing)
        });
        event_loop.release(py);
        put
    }
}

/// Returns a lifetime; by default one that does not end.
fn duration(lifetime: Option<f64>) -> PyResult<Duration> {
    lifetime.map_or(Ok(Duration::MAX), seconds)
}
