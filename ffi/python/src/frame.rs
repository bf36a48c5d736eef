//! Received memory, as an object with the buffer protocol.

#![expect(unsafe_code, reason = "the buffer protocol is one of pointers")]

use std::ffi::c_int;
use std::ptr::NonNull;
use std::sync::Arc;
use std::task::Waker;

use pyo3::exceptions::{PyBufferError, PyOverflowError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyMemoryView;
use towline::memory::{Access, Pins};
use towline::{Buffer, BufferMut, Result};

use crate::dlpack;
use crate::error::OrRaise;
use crate::freeing;

/// Received bytes: an object with the buffer protocol. It is writable, and has memory of its own, unless it is an
/// array that its sender lent (``towline.numpy``). NumPy, pandas, PyArrow and PyTorch use it without a copy, by
/// the buffer protocol or by DLPack.
#[pyclass(frozen, module = "towline", weakref)]
#[derive(Debug)]
pub(crate) struct Frame {
    /// Python code alone uses the bytes, through the buffer protocol and DLPack. Tensors share them.
    memory: Arc<Memory>,
    len: usize,
}

/// The memory of a frame.
#[derive(Debug)]
pub(crate) enum Memory {
    /// Of the frame alone, and writable.
    Own(BufferMut),
    /// Of a peer, which may write it, and read-only.
    Lent(Buffer),
}

impl Memory {
    pub(crate) fn as_ptr(&self) -> *const u8 {
        match self {
            Self::Own(buffer) => buffer.as_ptr(),
            Self::Lent(buffer) => buffer.as_ptr(),
        }
    }

    pub(crate) fn is_read_only(&self) -> bool {
        matches!(self, Self::Lent(_))
    }

    fn len(&self) -> usize {
        match self {
            Self::Own(buffer) => buffer.len(),
            Self::Lent(buffer) => buffer.len(),
        }
    }
}

impl Frame {
    /// Takes the memory over if this is its only handle, or if it is lent as foreign memory. Copies it otherwise.
    pub(crate) fn new(py: Python<'_>, buffer: Buffer) -> PyResult<Self> {
        let len = buffer.len();
        if buffer.access() == Access::Foreign {
            return Ok(Self { memory: Arc::new(Memory::Lent(buffer)), len });
        }
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
        Ok(Self::of(buffer))
    }

    /// Takes memory over.
    pub(crate) fn of(memory: BufferMut) -> Self {
        Self { len: memory.len(), memory: Arc::new(Memory::Own(memory)) }
    }

    /// Returns a memoryview of a new frame.
    pub(crate) fn view<'py>(py: Python<'py>, buffer: Buffer) -> PyResult<Bound<'py, PyMemoryView>> {
        PyMemoryView::from(Bound::new(py, Self::new(py, buffer)?)?.as_any())
    }
}

/// A copy of a frame's memory.
fn copied(memory: &Arc<Memory>) -> Result<BufferMut> {
    let base = NonNull::new(memory.as_ptr().cast_mut()).unwrap_or(NonNull::dangling());
    // SAFETY: the handle is the owner, and keeps the bytes where they are (M1). They are initialised (M4), and only
    // Python's code and copies of foreign memory use them (M5).
    let source = unsafe { Pins::new(Waker::noop().clone()).pin(base, memory.len(), memory.clone()) };
    let mut copy = BufferMut::with_alignment(memory.len(), 64)?;
    copy.fill_from(&source)?;
    Ok(copy)
}

/// Lets go of a frame's memory, as an attached thread must: the freeing thread frees much of it.
pub(crate) fn release(memory: &mut Arc<Memory>) {
    if memory.len() >= LONG && Arc::strong_count(memory) == 1 {
        freeing::free(std::mem::replace(memory, Arc::new(Memory::Own(BufferMut::new()))));
    }
}

impl Drop for Frame {
    fn drop(&mut self) {
        release(&mut self.memory);
    }
}

/// From this length on, in bytes, memory is a mapping of its own, and to free it may take more than 100 µs.
const LONG: usize = 2 << 20;

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

    /// The device of the memory, as DLPack has it: the CPU.
    fn __dlpack_device__(&self) -> (i32, i32) {
        dlpack::HOST
    }

    /// The bytes as a DLPack tensor of one dimension, which shares the memory.
    #[pyo3(signature = (*, stream=None, max_version=None, dl_device=None, copy=None))]
    fn __dlpack__<'py>(
        &self,
        py: Python<'py>,
        stream: Option<&Bound<'py, PyAny>>,
        max_version: Option<(u32, u32)>,
        dl_device: Option<(i32, i32)>,
        copy: Option<bool>,
    ) -> PyResult<Bound<'py, PyAny>> {
        if stream.is_some() {
            return Err(PyBufferError::new_err("the frame is in host memory: it has no stream"));
        }
        if let Some(device) = dl_device
            && device != dlpack::HOST
        {
            let why =
                format!("the frame is in host memory (1, 0): it cannot be exported to device {device:?}");
            return Err(PyBufferError::new_err(why));
        }
        let is_copied = copy == Some(true);
        let memory = if is_copied {
            Arc::new(Memory::Own(py.detach(|| copied(&self.memory)).or_raise(py)?))
        } else {
            self.memory.clone()
        };
        let is_versioned = max_version.is_some_and(|(major, _)| major >= 1);
        if memory.is_read_only() && !is_versioned {
            let why =
                "the frame is read-only, which DLPack tells from version 1.0 on: ask for that, or for a copy";
            return Err(PyBufferError::new_err(why));
        }
        dlpack::export(py, memory, self.len, is_versioned, is_copied)
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
        let start = frame.memory.as_ptr().cast_mut().cast();
        let read_only = c_int::from(frame.memory.is_read_only());
        // SAFETY: the view is valid, by the protocol. The memory stays where it is while the object lives, which
        // the view holds. Nothing here reads or writes it: Python code is its only user (M2), or others write it (M5).
        let failed = unsafe { ffi::PyBuffer_FillInfo(view, slf.as_ptr(), start, len, read_only, flags) };
        if failed == 0 { Ok(()) } else { Err(PyErr::fetch(slf.py())) }
    }
}
