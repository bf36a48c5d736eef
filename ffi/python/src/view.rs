//! Objects of Python's whose memory is sent or received into: views by the buffer protocol, or by DLPack.
//!
//! The invariant: a view is released by a thread that is attached to the interpreter. [`View`] proves it by its
//! lifetime. [`PinnedView`] may be dropped anywhere, and is then kept until such a thread calls
//! [`release_orphans`].

#![expect(unsafe_code, reason = "the buffer protocol is one of pointers")]

use std::mem::MaybeUninit;
use std::ptr::{self, NonNull};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use pyo3::ffi;
use pyo3::prelude::*;
use towline::memory::Pins;
use towline::{Buffer, BufferMut};

use crate::dlpack::Tensor;
use crate::numpy;

/// A view of an object's contiguous bytes. While it lives, the object keeps them where they are.
pub(crate) struct View<'py> {
    /// `None` once it is pinned.
    view: Option<PinnedView>,
    py: Python<'py>,
}

/// A view whose bytes an operation reads.
pub(crate) struct PinnedView(Option<Owner>);

/// What keeps an object's bytes where they are.
enum Owner {
    Buffer(Box<RawView>),
    Tensor(Tensor),
}

/// A filled view. It has the layout of its field. Dropping the memory releases nothing.
#[repr(transparent)]
struct RawView(ffi::Py_buffer);

// SAFETY: other threads only move it. A thread that is attached releases it (`release`).
unsafe impl Send for RawView {}

/// Views that were dropped by other threads: the event loop that sent them was closed before they had left.
static ORPHANS: Mutex<Vec<PinnedView>> = Mutex::new(Vec::new());
static HAS_ORPHANS: AtomicBool = AtomicBool::new(false);

/// Releases the views whose event loops are gone.
pub(crate) fn release_orphans(attached: Python<'_>) {
    if !HAS_ORPHANS.swap(false, Ordering::Acquire) {
        return;
    }
    let orphans = ORPHANS.try_lock().map(|mut orphans| std::mem::take(&mut *orphans));
    if orphans.is_err() {
        HAS_ORPHANS.store(true, Ordering::Release);
    }
    for view in orphans.unwrap_or_default() {
        view.release(attached);
    }
}

impl<'py> View<'py> {
    /// Takes a view of `object`.
    ///
    /// # Errors
    /// `TypeError` or `BufferError` if it has no contiguous bytes in host memory.
    pub(crate) fn of(object: &Bound<'py, PyAny>) -> PyResult<Self> {
        Self::with(object, false)
    }

    /// Takes a view of `object`, to write to.
    ///
    /// # Errors
    /// `TypeError` or `BufferError` if it has no contiguous, writable bytes in host memory.
    pub(crate) fn writable(object: &Bound<'py, PyAny>) -> PyResult<Self> {
        Self::with(object, true)
    }

    fn with(object: &Bound<'py, PyAny>, writable: bool) -> PyResult<Self> {
        // SAFETY: the object is valid, and this thread is attached.
        let has_buffer = unsafe { ffi::PyObject_CheckBuffer(object.as_ptr()) } != 0;
        if !has_buffer && let Some(tensor) = Tensor::of(object, writable)? {
            return Ok(Self { view: Some(PinnedView(Some(Owner::Tensor(tensor)))), py: object.py() });
        }
        let flags = if writable { ffi::PyBUF_WRITABLE } else { ffi::PyBUF_SIMPLE };
        // The view may point into itself, so it never moves.
        let mut view = Box::new(MaybeUninit::<RawView>::uninit());
        let filled = view.as_mut_ptr().cast();
        // SAFETY: both pointers are valid, and this thread is attached, as `object` proves.
        let failed = unsafe { ffi::PyObject_GetBuffer(object.as_ptr(), filled, flags) };
        if failed != 0 {
            return Err(PyErr::fetch(object.py()));
        }
        // SAFETY: the call succeeded, so it filled the view.
        let view = unsafe { view.assume_init() };
        Ok(Self { view: Some(PinnedView(Some(Owner::Buffer(view)))), py: object.py() })
    }

    /// The number of bytes.
    pub(crate) fn len(&self) -> usize {
        self.view.as_ref().map_or(0, PinnedView::len)
    }

    /// Returns a copy of the bytes.
    pub(crate) fn to_vec(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.len());
        if let Some(view) = &self.view
            && view.len() > 0
        {
            // SAFETY: the view keeps its bytes readable, the Vec has room for them, and no object has its memory.
            // No slice of them is formed: without a GIL another thread may write them.
            unsafe { ptr::copy_nonoverlapping(view.base().as_ptr(), bytes.as_mut_ptr(), self.len()) };
            // SAFETY: the copy initialised them.
            unsafe { bytes.set_len(self.len()) };
        }
        bytes
    }

    /// Turns it into a buffer that shares the memory. Its object is released once `pins` returns the view, and at once
    /// if it is an array that may be lent.
    pub(crate) fn pin(mut self, pins: &Pins<PinnedView>) -> Buffer {
        if let Some(block) = self.lendable() {
            return block;
        }
        let Some(view) = self.view.take() else { return Buffer::new() };
        let (base, len) = (view.base(), view.len());
        // SAFETY: the view keeps its bytes there and readable until it is released, and an object's bytes are
        // initialised.
        unsafe { pins.pin(base, len, view) }
    }

    /// Returns the buffer of an array that may be lent.
    fn lendable(&self) -> Option<Buffer> {
        let view = self.view.as_ref()?;
        let Some(Owner::Buffer(raw)) = &view.0 else { return None };
        if raw.0.readonly == 0 || raw.0.obj.is_null() {
            return None;
        }
        // SAFETY: a filled view holds a reference to its object, and this thread is attached.
        let object = unsafe { Bound::from_borrowed_ptr(self.py, raw.0.obj) };
        numpy::lendable(&object, view.base(), view.len())
    }

    /// As [`pin`](Self::pin), for a view that is [`writable`](Self::writable), to receive into.
    pub(crate) fn pin_mut(mut self, pins: &Pins<PinnedView>) -> BufferMut {
        let Some(view) = self.view.take() else { return BufferMut::new() };
        let (base, len) = (view.base(), view.len());
        // SAFETY: the view keeps its bytes there, readable and writable, until it is released, and an object's
        // bytes are initialised. Only Python's code and copies of foreign memory use them (M5).
        unsafe { pins.pin_mut(base, len, view) }
    }
}

impl Drop for View<'_> {
    fn drop(&mut self) {
        if let Some(view) = self.view.take() {
            view.release(self.py);
        }
    }
}

impl PinnedView {
    fn base(&self) -> NonNull<u8> {
        match &self.0 {
            Some(Owner::Buffer(view)) => NonNull::new(view.0.buf.cast()).unwrap_or(NonNull::dangling()),
            Some(Owner::Tensor(tensor)) => tensor.base,
            None => NonNull::dangling(),
        }
    }

    fn len(&self) -> usize {
        match &self.0 {
            Some(Owner::Buffer(view)) => usize::try_from(view.0.len).unwrap_or(0),
            Some(Owner::Tensor(tensor)) => tensor.len,
            None => 0,
        }
    }

    /// Lets go of the object.
    pub(crate) fn release(mut self, attached: Python<'_>) {
        match self.0.take() {
            // SAFETY: the view was filled by `PyObject_GetBuffer`, and is released once. This thread is attached.
            Some(Owner::Buffer(mut view)) => unsafe { ffi::PyBuffer_Release(&mut view.0) },
            Some(Owner::Tensor(tensor)) => tensor.release(attached),
            None => {}
        }
    }
}

impl Drop for PinnedView {
    fn drop(&mut self) {
        let Some(view) = self.0.take() else { return };
        // In a forked child the lock may be held for ever. Then the object is the parent's, and is leaked.
        if let Ok(mut orphans) = ORPHANS.try_lock() {
            orphans.push(Self(Some(view)));
            HAS_ORPHANS.store(true, Ordering::Release);
        } else {
            std::mem::forget(view);
        }
    }
}
