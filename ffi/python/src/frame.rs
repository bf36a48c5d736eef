//! Received memory, as an object with the buffer protocol.

#![expect(unsafe_code, reason = "the buffer protocol is one of pointers")]

use std::ffi::c_int;

use pyo3::exceptions::{PyBufferError, PyOverflowError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyMemoryView;
use towline::{Buffer, BufferMut};

use crate::error::OrRaise;

/// Received bytes: an object with the buffer protocol. It is writable, and has memory of its own. NumPy,
/// pandas, PyArrow and PyTorch use it without a copy.
#[pyclass(frozen, module = "towline", weakref)]
#[derive(Debug)]
pub(crate) struct Frame {
    /// Python code alone uses the bytes, through the buffer protocol, as long as this is alive.
    buffer: BufferMut,
    len: usize,
}

impl Frame {
    /// Takes the memory over if this is its only handle, and copies it otherwise.
    pub(crate) fn new(py: Python<'_>, buffer: Buffer) -> PyResult<Self> {
        let len = buffer.len();
        let buffer = match buffer.try_into_mut() {
            Ok(buffer) => buffer,
            Err(buffer) => {
                let copy = || {
                    let mut own = BufferMut::with_capacity(len);
                    own.fill_from(&buffer).map(|()| own)
                };
                let copied = if len < SHORT { copy() } else { py.detach(copy) };
                copied.or_raise(py)?
            }
        };
        Ok(Self { buffer, len })
    }

    /// Returns a memoryview of a new frame.
    pub(crate) fn view<'py>(py: Python<'py>, buffer: Buffer) -> PyResult<Bound<'py, PyMemoryView>> {
        PyMemoryView::from(Bound::new(py, Self::new(py, buffer)?)?.as_any())
    }
}

/// Copies below this length, in bytes, take a few microseconds at most, less than leaving and entering the
/// interpreter may.
const SHORT: usize = 64 << 10;

#[pymethods]
impl Frame {
    fn __len__(&self) -> usize {
        self.len
    }

    fn __repr__(&self) -> String {
        format!("<towline.Frame of {} bytes>", self.len)
    }

    /// # Safety
    /// As the buffer protocol has it: `view` is valid, or null.
    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        if view.is_null() {
            return Err(PyBufferError::new_err("the view is null"));
        }
        let frame = slf.get();
        let len =
            isize::try_from(frame.len).map_err(|_| PyOverflowError::new_err("the frame is too long"))?;
        let start = frame.buffer.as_ptr().cast_mut().cast();
        // SAFETY: the view is valid, by the protocol. The memory stays where it is while the object lives, which
        // the view holds. Nothing here reads or writes it: Python code is its only user (M2).
        let failed = unsafe { ffi::PyBuffer_FillInfo(view, slf.as_ptr(), start, len, 0, flags) };
        if failed == 0 { Ok(()) } else { Err(PyErr::fetch(slf.py())) }
    }
}
