//! Messages from and to Python's objects.

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList, PyTuple};
use towline::memory::Pins;
use towline::packing::{PACKED_BELOW, Packer, unpack};
use towline::{Buffer, Message};

use crate::error::OrRaise;
use crate::frame::Frame;
use crate::view::{PinnedView, View};

/// A frame below this length, in bytes, is copied: pinning it costs more.
const PINNED_FROM: usize = PACKED_BELOW;

/// How Python gets a message.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Form {
    /// The header and the frames.
    Whole,
    /// A writable memoryview of each packed frame.
    Packed,
}

impl Form {
    pub(crate) fn object(self, py: Python<'_>, message: Message) -> PyResult<Bound<'_, PyAny>> {
        Ok(match self {
            Self::Whole => to_objects(py, message)?.into_any(),
            Self::Packed => to_views(py, message)?.into_any(),
        })
    }
}

/// Makes a message of a header and objects with contiguous bytes. Large ones are not copied.
pub(crate) fn from_objects(
    header: &Bound<'_, PyAny>,
    frames: &Bound<'_, PyAny>,
    pins: &Pins<PinnedView>,
) -> PyResult<Message> {
    let header = View::of(header)?.to_vec();
    let frames = frames.try_iter()?.map(|frame| Ok(buffer(View::of(&frame?)?, pins)));
    Ok(Message::from_parts(header, frames.collect::<PyResult<_>>()?))
}

/// Makes a packed message of any number of objects with contiguous bytes. Large ones are not copied.
pub(crate) fn pack(frames: &Bound<'_, PyAny>, pins: &Pins<PinnedView>) -> PyResult<Message> {
    let mut packer = Packer::new();
    for frame in frames.try_iter()? {
        let view = View::of(&frame?)?;
        if view.len() < PINNED_FROM {
            packer.copy(&view.to_vec());
        } else {
            packer.push(view.pin(pins)).or_raise(frames.py())?;
        }
    }
    Ok(packer.finish())
}

fn to_objects(py: Python<'_>, message: Message) -> PyResult<Bound<'_, PyTuple>> {
    let (header, frames) = message.into_parts();
    let objects = PyList::empty(py);
    for frame in frames {
        objects.append(Bound::new(py, Frame::new(py, frame)?)?)?;
    }
    (PyBytes::new(py, &header), objects).into_pyobject(py)
}

fn to_views(py: Python<'_>, message: Message) -> PyResult<Bound<'_, PyList>> {
    let views = PyList::empty(py);
    for frame in unpack(message).or_raise(py)? {
        views.append(Frame::view(py, frame)?)?;
    }
    Ok(views)
}

/// Takes a view over. A large one is not copied.
pub(crate) fn buffer(view: View<'_>, pins: &Pins<PinnedView>) -> Buffer {
    if view.len() < PINNED_FROM { Buffer::from(view.to_vec()) } else { view.pin(pins) }
}
