//! DLPack: objects to send that have no buffer protocol, and received frames for those that ask for tensors.
//!
//! The invariant: a tensor's deleter is called once, by the one that owns the tensor. A capsule owns it until its
//! name is changed.

#![expect(unsafe_code, reason = "DLPack's structures are C's")]

use std::ffi::{CStr, c_int, c_void};
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::Arc;

use pyo3::exceptions::{PyBufferError, PyTypeError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::frame::{Memory, release};

/// Devices whose memory the CPU reads: host memory, and host memory that CUDA or ROCm has pinned.
const HOST_DEVICES: [i32; 3] = [HOST.0, 3, 11];
/// The device of frames: its type, and its number.
pub(crate) const HOST: (i32, i32) = (1, 0);

const LEGACY: &CStr = c"dltensor";
const LEGACY_USED: &CStr = c"used_dltensor";
const VERSIONED: &CStr = c"dltensor_versioned";
const VERSIONED_USED: &CStr = c"used_dltensor_versioned";

const VERSION: Version = Version { major: 1, minor: 0 };
const READ_ONLY: u64 = 1;
const IS_COPIED: u64 = 2;

#[repr(C)]
struct Version {
    major: u32,
    minor: u32,
}

#[repr(C)]
struct DlTensor {
    data: *mut c_void,
    device_type: i32,
    device_id: i32,
    dimensions: i32,
    type_code: u8,
    type_bits: u8,
    type_lanes: u16,
    shape: *mut i64,
    strides: *mut i64,
    byte_offset: u64,
}

#[repr(C)]
struct Legacy {
    tensor: DlTensor,
    context: *mut c_void,
    deleter: Option<unsafe extern "C" fn(*mut Self)>,
}

#[repr(C)]
struct Versioned {
    version: Version,
    context: *mut c_void,
    deleter: Option<unsafe extern "C" fn(*mut Self)>,
    flags: u64,
    tensor: DlTensor,
}

/// A tensor that this process owns, with contiguous bytes in host memory.
pub(crate) struct Tensor {
    managed: Managed,
    pub(crate) base: NonNull<u8>,
    pub(crate) len: usize,
}

#[derive(Clone, Copy)]
enum Managed {
    Legacy(NonNull<Legacy>),
    Versioned(NonNull<Versioned>),
}

// SAFETY: other threads only move it. A thread that is attached calls its deleter (`release`).
unsafe impl Send for Tensor {}

impl Tensor {
    /// Takes the tensor of an object that exports one. `None` if it exports none.
    ///
    /// # Errors
    /// `BufferError` if its bytes are on a device, are not contiguous, or are read-only and to be written.
    pub(crate) fn of(object: &Bound<'_, PyAny>, writable: bool) -> PyResult<Option<Self>> {
        let name = || object.get_type().name().map_or_else(|_| "object".to_owned(), |name| name.to_string());
        if !object.hasattr("__dlpack__")? {
            return match object.hasattr("__cuda_array_interface__")? {
                true => Err(on_device(&name(), "a CUDA device")),
                false => Ok(None),
            };
        }
        if object.hasattr("__dlpack_device__")? {
            let (device, number): (i32, i32) = object.call_method0("__dlpack_device__")?.extract()?;
            if !HOST_DEVICES.contains(&device) {
                return Err(on_device(&name(), &format!("device {number} of DLPack's type {device}")));
            }
        }
        Self::from_capsule(&capsule(object)?, writable).map(Some)
    }

    fn from_capsule(capsule: &Bound<'_, PyAny>, writable: bool) -> PyResult<Self> {
        let (managed, used) = if let Some(versioned) = pointer::<Versioned>(capsule, VERSIONED) {
            // SAFETY: a capsule of this name has such a tensor, whose version is in the same place in all versions.
            let major = unsafe { (*versioned.as_ptr()).version.major };
            if major != VERSION.major {
                return Err(refused(&format!("is of DLPack {major}; version 1 is known")));
            }
            (Managed::Versioned(versioned), VERSIONED_USED)
        } else if let Some(legacy) = pointer::<Legacy>(capsule, LEGACY) {
            (Managed::Legacy(legacy), LEGACY_USED)
        } else {
            return Err(PyTypeError::new_err("__dlpack__ returned no capsule of a tensor"));
        };
        if writable {
            managed.check_writable()?;
        }
        let (base, len) = managed.tensor().bytes()?;
        // SAFETY: the capsule is valid, and this thread is attached. From here on the tensor is ours.
        if unsafe { ffi::PyCapsule_SetName(capsule.as_ptr(), used.as_ptr()) } != 0 {
            return Err(PyErr::fetch(capsule.py()));
        }
        Ok(Self { managed, base, len })
    }

    /// Lets go of the object.
    pub(crate) fn release(self, _attached: Python<'_>) {
        match self.managed {
            Managed::Legacy(managed) => {
                // SAFETY: it lives until its deleter is called, which is here and once.
                if let Some(deleter) = unsafe { managed.as_ref() }.deleter {
                    // SAFETY: as above.
                    unsafe { deleter(managed.as_ptr()) };
                }
            }
            Managed::Versioned(managed) => {
                // SAFETY: it lives until its deleter is called, which is here and once.
                if let Some(deleter) = unsafe { managed.as_ref() }.deleter {
                    // SAFETY: as above.
                    unsafe { deleter(managed.as_ptr()) };
                }
            }
        }
    }
}

impl Managed {
    fn tensor(&self) -> &DlTensor {
        match self {
            // SAFETY: the capsule, or who has its tensor, keeps it alive, and nothing writes it.
            Self::Legacy(managed) => &unsafe { managed.as_ref() }.tensor,
            // SAFETY: as above.
            Self::Versioned(managed) => &unsafe { managed.as_ref() }.tensor,
        }
    }

    fn check_writable(&self) -> PyResult<()> {
        let Self::Versioned(managed) = self else {
            return Err(refused("is of DLPack before 1.0, which does not tell whether it may be written"));
        };
        // SAFETY: the capsule keeps it alive, and nothing writes it.
        let flags = unsafe { managed.as_ref() }.flags;
        if flags & READ_ONLY != 0 { Err(refused("is read-only")) } else { Ok(()) }
    }
}

impl DlTensor {
    /// Returns where its bytes are, and how many.
    fn bytes(&self) -> PyResult<(NonNull<u8>, usize)> {
        if !HOST_DEVICES.contains(&self.device_type) {
            return Err(on_device("tensor", &format!("a device of DLPack's type {}", self.device_type)));
        }
        let dimensions = usize::try_from(self.dimensions).map_err(|_| refused("has no shape"))?;
        let shape = self.numbers(self.shape, dimensions).ok_or_else(|| refused("has no shape"))?;
        let mut count = 1_i64;
        let mut is_contiguous = true;
        let strides = self.numbers(self.strides, dimensions);
        for (at, &extent) in shape.iter().enumerate().rev() {
            // The stride of a single element has no meaning.
            is_contiguous &= extent == 1 || strides.is_none_or(|strides| strides[at] == count);
            count = count
                .checked_mul(extent)
                .filter(|count| *count >= 0)
                .ok_or_else(|| refused("is too long"))?;
        }
        let element_bits = u64::from(self.type_bits) * u64::from(self.type_lanes);
        let bits = count.unsigned_abs().checked_mul(element_bits).ok_or_else(|| refused("is too long"))?;
        let len = isize::try_from(bits.div_ceil(8)).map_err(|_| refused("is too long"))?.unsigned_abs();
        if len == 0 {
            return Ok((NonNull::dangling(), 0));
        }
        if !is_contiguous {
            return Err(refused("is not contiguous in C's order: make it so before, as by .contiguous()"));
        }
        let offset = usize::try_from(self.byte_offset).map_err(|_| refused("is too long"))?;
        let base = NonNull::new(self.data.cast::<u8>().wrapping_add(offset));
        Ok((base.ok_or_else(|| refused("has no memory"))?, len))
    }

    fn numbers(&self, start: *mut i64, count: usize) -> Option<&[i64]> {
        if count == 0 {
            return Some(&[]);
        }
        // SAFETY: it is null, or has a number for each dimension, which live and do not change as long as the tensor.
        (!start.is_null()).then(|| unsafe { slice::from_raw_parts(start, count) })
    }
}

/// Asks the object for its tensor.
fn capsule<'py>(object: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    let py = object.py();
    let arguments = PyDict::new(py);
    arguments.set_item("max_version", (VERSION.major, VERSION.minor))?;
    match object.call_method("__dlpack__", (), Some(&arguments)) {
        // Before DLPack 1.0 there was no such argument.
        Err(error) if error.is_instance_of::<PyTypeError>(py) => object.call_method0("__dlpack__"),
        result => result,
    }
}

/// Returns a capsule's pointer, if this is its name.
fn pointer<T>(capsule: &Bound<'_, PyAny>, name: &CStr) -> Option<NonNull<T>> {
    // SAFETY: both are valid, and this thread is attached.
    let is_valid = unsafe { ffi::PyCapsule_IsValid(capsule.as_ptr(), name.as_ptr()) };
    if is_valid == 0 {
        return None;
    }
    // SAFETY: as above, and the capsule has that name.
    NonNull::new(unsafe { ffi::PyCapsule_GetPointer(capsule.as_ptr(), name.as_ptr()) }.cast())
}

fn refused(why: &str) -> PyErr {
    PyBufferError::new_err(format!("the tensor {why}"))
}

fn on_device(object: &str, device: &str) -> PyErr {
    PyBufferError::new_err(format!(
        "the {object} is in the memory of {device}, which cannot be sent or received into yet: copy it to the host \
         before, as by .get() (CuPy), .cpu() (PyTorch) or .copy_to_host() (Numba)"
    ))
}

/// A tensor of bytes that was exported, and what it keeps alive.
#[repr(C)]
struct Exported<T> {
    /// At its start, so that its address is the whole's.
    managed: T,
    memory: Arc<Memory>,
    _shape_and_stride: Arc<[i64; 2]>,
}

/// Exports `len` bytes of a frame's memory as a tensor, in a capsule.
pub(crate) fn export(
    py: Python<'_>,
    memory: Arc<Memory>,
    len: usize,
    is_versioned: bool,
    is_copied: bool,
) -> PyResult<Bound<'_, PyAny>> {
    let numbers = Arc::new([i64::try_from(len).unwrap_or(i64::MAX), 1]);
    let shape = Arc::as_ptr(&numbers).cast::<i64>().cast_mut();
    let data = if len == 0 { ptr::null_mut() } else { memory.as_ptr().cast_mut().cast() };
    let tensor = DlTensor {
        data,
        device_type: HOST.0,
        device_id: HOST.1,
        dimensions: 1,
        type_code: 1,
        type_bits: 8,
        type_lanes: 1,
        shape,
        strides: shape.wrapping_add(1),
        byte_offset: 0,
    };
    let context = ptr::null_mut();
    if is_versioned {
        let read_only = if memory.is_read_only() { READ_ONLY } else { 0 };
        let flags = read_only | if is_copied { IS_COPIED } else { 0 };
        let managed = Versioned { version: VERSION, context, deleter: Some(delete), flags, tensor };
        new_capsule(py, Exported { managed, memory, _shape_and_stride: numbers }, VERSIONED, drop_versioned)
    } else {
        let managed = Legacy { tensor, context, deleter: Some(delete) };
        new_capsule(py, Exported { managed, memory, _shape_and_stride: numbers }, LEGACY, drop_legacy)
    }
}

fn new_capsule<'py, T>(
    py: Python<'py>,
    exported: Exported<T>,
    name: &'static CStr,
    destructor: ffi::PyCapsule_Destructor,
) -> PyResult<Bound<'py, PyAny>> {
    let exported = Box::into_raw(Box::new(exported));
    // SAFETY: the pointer is not null, the name is static, and this thread is attached.
    let capsule = unsafe { ffi::PyCapsule_New(exported.cast(), name.as_ptr(), Some(destructor)) };
    if capsule.is_null() {
        // SAFETY: the pointer is the box's, which nothing else got.
        drop(unsafe { Box::from_raw(exported) });
        return Err(PyErr::fetch(py));
    }
    // SAFETY: a new reference, of this call.
    Ok(unsafe { Bound::from_owned_ptr(py, capsule) })
}

/// The deleter of an exported tensor. Its owner calls it once, on any thread, attached or not.
///
/// # Safety
/// `managed` is the tensor of an `Exported<T>`.
unsafe extern "C" fn delete<T>(managed: *mut T) {
    // SAFETY: the tensor is at the start of its `Exported`, and the pointer is that of the whole box.
    drop(unsafe { Box::from_raw(managed.cast::<Exported<T>>()) });
}

/// # Safety
/// As a capsule's destructor has it.
unsafe extern "C" fn drop_versioned(capsule: *mut ffi::PyObject) {
    // SAFETY: Python calls it with a capsule that `new_capsule` made.
    unsafe { drop_capsule::<Versioned>(capsule, VERSIONED) };
}

/// # Safety
/// As a capsule's destructor has it.
unsafe extern "C" fn drop_legacy(capsule: *mut ffi::PyObject) {
    // SAFETY: Python calls it with a capsule that `new_capsule` made.
    unsafe { drop_capsule::<Legacy>(capsule, LEGACY) };
}

/// Frees the tensor of a capsule that nobody has taken it from.
///
/// # Safety
/// The capsule is of `new_capsule`, for this `T` and name, and this thread is attached.
unsafe fn drop_capsule<T>(capsule: *mut ffi::PyObject, name: &CStr) {
    // SAFETY: the capsule is valid, by the caller's promise.
    let is_ours: c_int = unsafe { ffi::PyCapsule_IsValid(capsule, name.as_ptr()) };
    if is_ours == 0 {
        return;
    }
    // SAFETY: as above, and it has that name.
    let exported = unsafe { ffi::PyCapsule_GetPointer(capsule, name.as_ptr()) }.cast::<Exported<T>>();
    // SAFETY: the name says that nobody has taken the box.
    let mut exported = unsafe { Box::from_raw(exported) };
    release(&mut exported.memory);
}
