//! Announced messages, whose payload has no destination yet.

use std::sync::{Mutex, PoisonError};

use pyo3::prelude::*;
use pyo3::types::PyBytes;
use towline::{Buffer, Destination, Error, ErrorKind, Message, Place, Result};

use crate::error::exception;
use crate::event_loop::{EventLoop, Outcome};
use crate::message::Form;
use crate::view::View;

/// The next message of a connection, as far as it has arrived.
pub(crate) enum Arrived {
    Announced(towline::Incoming),
    /// A call that was cancelled has received it.
    Whole(Message),
}

impl Arrived {
    fn header(&self) -> &[u8] {
        match self {
            Self::Announced(incoming) => incoming.header(),
            Self::Whole(message) => message.header(),
        }
    }

    fn sizes(&self) -> Vec<usize> {
        match self {
            Self::Announced(incoming) => incoming.frames().iter().map(|frame| frame.len).collect(),
            Self::Whole(message) => message.frames().iter().map(Buffer::len).collect(),
        }
    }

    /// Receives it, each frame in memory of its own.
    pub(crate) async fn accept(self) -> Result<Message> {
        match self {
            Self::Announced(incoming) => {
                let destinations =
                    incoming.frames().iter().map(|_| Destination::Place(Place::Host)).collect();
                Ok(incoming.accept_into(destinations).await?)
            }
            Self::Whole(message) => Ok(message),
        }
    }

    /// Receives it, and lets go of the destinations' memory.
    async fn accept_into(self, destinations: Vec<Destination>) -> Result<()> {
        match self {
            Self::Announced(incoming) => incoming.accept_into(destinations).await.map(drop)?,
            Self::Whole(message) => {
                for (destination, frame) in destinations.into_iter().zip(message.frames()) {
                    if let Destination::Buffer(mut buffer) = destination {
                        buffer.fill_from(frame)?;
                    }
                }
            }
        }
        Ok(())
    }
}

/// An announced message: accept it, or reject it. Dropping it rejects it.
#[pyclass(frozen, module = "towline._towline", weakref)]
pub(crate) struct Incoming {
    /// `None` once it is accepted or rejected.
    arrived: Mutex<Option<Arrived>>,
    endpoint: towline::Endpoint,
    #[pyo3(get)]
    header: Py<PyBytes>,
    /// The length of each frame, in bytes.
    #[pyo3(get)]
    sizes: Vec<usize>,
}

impl Incoming {
    pub(crate) fn new(py: Python<'_>, endpoint: towline::Endpoint, arrived: Arrived) -> Self {
        let header = PyBytes::new(py, arrived.header()).unbind();
        let sizes = arrived.sizes();
        Self { arrived: Mutex::new(Some(arrived)), endpoint, header, sizes }
    }

    fn take(&self, py: Python<'_>) -> PyResult<Arrived> {
        let arrived = self.arrived.lock().unwrap_or_else(PoisonError::into_inner).take();
        arrived.ok_or_else(|| invalid(py, "the message was accepted or rejected before".to_owned()))
    }

    /// The destination of a frame of `size` bytes: a writable object, or none.
    fn destination(
        &self,
        event_loop: &EventLoop,
        index: usize,
        object: &Bound<'_, PyAny>,
    ) -> PyResult<Destination> {
        if object.is_none() {
            return Ok(Destination::Discard);
        }
        let (view, size) = (View::writable(object)?, self.sizes[index]);
        if view.len() < size {
            let why = format!("frame {index} has {size} bytes and its buffer has {}", view.len());
            return Err(invalid(object.py(), why));
        }
        Ok(Destination::Buffer(view.pin_mut(&event_loop.pins)))
    }
}

#[pymethods]
impl Incoming {
    /// Receives the message into memory of its own.
    fn accept<'py>(&self, py: Python<'py>, event_loop: &EventLoop) -> PyResult<Bound<'py, PyAny>> {
        let arrived = self.take(py)?;
        event_loop.start(py, &self.endpoint, async move {
            Ok(Outcome::Message(arrived.accept().await?, Form::Whole))
        })
    }

    /// Receives each frame into a writable object. `None` discards the frame.
    fn accept_into<'py>(
        &self,
        py: Python<'py>,
        event_loop: &EventLoop,
        buffers: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        event_loop.release(py);
        let objects = buffers.try_iter()?.collect::<PyResult<Vec<_>>>()?;
        if objects.len() != self.sizes.len() {
            let why = format!("{} buffers for a message of {} frames", objects.len(), self.sizes.len());
            return Err(invalid(py, why));
        }
        let destinations = objects
            .iter()
            .enumerate()
            .map(|(index, object)| self.destination(event_loop, index, object))
            .collect::<PyResult<_>>()?;
        let arrived = self.take(py)?;
        let accepted = event_loop.start(py, &self.endpoint, async move {
            arrived.accept_into(destinations).await?;
            Ok(Outcome::Nothing)
        });
        event_loop.release(py);
        accepted
    }

    /// Rejects the message: its payload is not received.
    fn reject(&self, py: Python<'_>) -> PyResult<()> {
        let arrived = self.take(py)?;
        py.detach(|| drop(arrived));
        Ok(())
    }
}

fn invalid(py: Python<'_>, why: String) -> PyErr {
    exception(py, &Error::new(ErrorKind::Invalid, why))
}
