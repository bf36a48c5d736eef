//! NumPy's allocator in an arena (NEP 49), so that read-only arrays are lent to other processes of the host.
//!
//! The invariant: an address that NumPy has is that of a block in [`BLOCKS`], or of `malloc`. NumPy alone writes the
//! blocks, and Rust reads them as foreign memory. The functions that NumPy calls use nothing of Python's: they may run
//! on any thread, attached or not.

#![expect(unsafe_code, reason = "an allocator of C's is one of pointers")]

use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_void};
use std::process;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError, TryLockError};

use pyo3::exceptions::{PyImportError, PyRuntimeError, PyValueError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyCapsule, PyDict, PyMemoryView};
use towline::Buffer;
use towline::memory::{Arena, ForeignBlock};

use crate::error::OrRaise;

/// Shorter arrays, in bytes, stay with `malloc`: a copy is as fast as a lease.
const BLOCK_LEN_MIN: usize = 64 << 10;
/// The alignment of every block, which few addresses of `malloc` have.
const BLOCK_ALIGNMENT: usize = 4096;
/// How many views of views are followed down to an array that has memory.
const VIEWS_MAX: usize = 16;

/// The process's arena, and its blocks by address. Held for moments only: an arena grows outside of it.
static BLOCKS: Mutex<Option<Blocks>> = Mutex::new(None);
/// The process that made them. A forked child uses neither the arena nor the parent's blocks, and never waits for
/// the lock: a thread that does not exist there may hold it.
static PROCESS: AtomicU32 = AtomicU32::new(0);
/// The number of arrays that found no room.
static FALLBACKS: AtomicU64 = AtomicU64::new(0);

struct Blocks {
    arena: Arena,
    bytes_max: usize,
    by_address: BTreeMap<usize, ForeignBlock>,
}

/// Calls `work` with the blocks, this process's or the parent's. `None` if there are none, or they are locked for ever.
fn with_blocks<T>(work: impl FnOnce(&mut Blocks) -> T) -> Option<T> {
    let mut blocks = if is_own() {
        BLOCKS.lock().unwrap_or_else(PoisonError::into_inner)
    } else {
        match BLOCKS.try_lock() {
            Ok(blocks) => blocks,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        }
    };
    blocks.as_mut().map(work)
}

/// Returns true if this process made the arena.
fn is_own() -> bool {
    PROCESS.load(Ordering::Relaxed) == process::id()
}

/// Makes the process's arena, unless it has one of this size.
#[pyfunction]
pub(crate) fn make_numpy_arena(py: Python<'_>, bytes_max: usize) -> PyResult<()> {
    if is_own() {
        return match with_blocks(|blocks| blocks.bytes_max) {
            Some(present) if present != bytes_max => Err(PyValueError::new_err(format!(
                "NumPy has an arena of {present} bytes in this process already: another size, {bytes_max} bytes, needs another \
                 process"
            ))),
            _ => Ok(()),
        };
    }
    let arena = Arena::new(bytes_max).or_raise(py)?;
    let Ok(mut current) = BLOCKS.try_lock() else {
        return Err(PyRuntimeError::new_err(
            "another thread was making NumPy's arena when this process was forked",
        ));
    };
    // The parent's blocks are not this process's to drop.
    std::mem::forget(current.replace(Blocks { arena, bytes_max, by_address: BTreeMap::new() }));
    PROCESS.store(process::id(), Ordering::Relaxed);
    Ok(())
}

/// The arena's size and use. `None` if this process has none.
#[pyfunction]
pub(crate) fn numpy_arena_stats(py: Python<'_>) -> PyResult<Option<Bound<'_, PyDict>>> {
    if !is_own() {
        return Ok(None);
    }
    let Some((arena, arrays)) = with_blocks(|blocks| (blocks.arena.clone(), blocks.by_address.len())) else {
        return Ok(None);
    };
    let stats = arena.stats();
    let dict = PyDict::new(py);
    dict.set_item("bytes_max", stats.bytes_max)?;
    dict.set_item("bytes", stats.bytes)?;
    dict.set_item("in_use_bytes", stats.in_use_bytes)?;
    dict.set_item("lent_bytes", stats.lent_bytes)?;
    dict.set_item("leases", stats.leases)?;
    dict.set_item("arrays", arrays)?;
    dict.set_item("fallbacks", FALLBACKS.load(Ordering::Relaxed))?;
    Ok(Some(dict))
}

/// Returns a buffer of `len` bytes from `base` on, if they are in a block, `object` is read-only, and so are the arrays
/// that it is a view of.
pub(crate) fn lendable(object: &Bound<'_, PyAny>, base: NonNull<u8>, len: usize) -> Option<Buffer> {
    if len < BLOCK_LEN_MIN {
        return None;
    }
    if !is_own() {
        return None;
    }
    let start = base.addr().get();
    let buffer = with_blocks(|blocks| {
        let (address, block) = blocks.by_address.range(..=start).next_back()?;
        let from = start - address;
        let end = from.checked_add(len).filter(|end| *end <= block.len())?;
        Some(block.buffer().slice(from..end))
    })??;
    is_frozen(object).unwrap_or(false).then_some(buffer)
}

/// Returns true if an array, and every array that it is a view of, is read-only.
fn is_frozen(object: &Bound<'_, PyAny>) -> PyResult<bool> {
    let mut object = object.clone();
    for _ in 0..VIEWS_MAX {
        if object.cast::<PyMemoryView>().is_ok() {
            object = object.getattr("obj")?;
            continue;
        }
        if object.getattr("flags")?.getattr("writeable")?.is_truthy()? {
            return Ok(false);
        }
        let base = object.getattr("base")?;
        if base.is_none() {
            return Ok(true);
        }
        object = base;
    }
    Ok(false)
}

/// `PyDataMemAllocator` of NumPy's `ndarraytypes.h`.
#[repr(C)]
struct Allocator {
    context: *mut c_void,
    malloc: unsafe extern "C" fn(*mut c_void, usize) -> *mut c_void,
    calloc: unsafe extern "C" fn(*mut c_void, usize, usize) -> *mut c_void,
    realloc: unsafe extern "C" fn(*mut c_void, *mut c_void, usize) -> *mut c_void,
    free: unsafe extern "C" fn(*mut c_void, *mut c_void, usize),
}

/// `PyDataMem_Handler` of NumPy's `ndarraytypes.h`.
#[repr(C)]
struct Handler {
    name: [c_char; 127],
    version: u8,
    allocator: Allocator,
}

// SAFETY: it has no context, and is never written.
unsafe impl Sync for Handler {}

static HANDLER: Handler = Handler {
    name: name(b"towline_arena"),
    version: 1,
    allocator: Allocator { context: ptr::null_mut(), malloc, calloc, realloc, free },
};

const fn name(text: &[u8]) -> [c_char; 127] {
    let mut name = [0; 127];
    let mut at = 0;
    while at < text.len() {
        name[at] = text[at] as c_char;
        at += 1;
    }
    name
}

const HANDLER_NAME: &CStr = c"mem_handler";
/// The position of `PyDataMem_SetHandler` in the table of NumPy's functions, since 1.22.
const SET_HANDLER: usize = 304;

/// Sets NumPy's allocator in the current context, to the arena's or, with `None`, to NumPy's own. `api` is NumPy's
/// `_ARRAY_API`. Returns the one before.
///
/// # Errors
/// `ImportError` if `api` is something else.
#[pyfunction]
pub(crate) fn set_numpy_handler<'py>(
    api: &Bound<'py, PyCapsule>,
    handler: Option<&Bound<'py, PyCapsule>>,
) -> PyResult<Bound<'py, PyAny>> {
    let py = api.py();
    // SAFETY: the capsule is valid, and this thread is attached. NumPy's has no name, so another is refused.
    let table = unsafe { ffi::PyCapsule_GetPointer(api.as_ptr(), ptr::null()) }.cast::<*const c_void>();
    if table.is_null() {
        drop(PyErr::take(py));
        return Err(PyImportError::new_err(
            "NumPy has no table of functions: NumPy 1.22 to 2.x is supported",
        ));
    }
    // SAFETY: NumPy's table has an entry there since 1.22, as the caller has checked.
    let entry = unsafe { *table.wrapping_add(SET_HANDLER) };
    // SAFETY: the entry is `PyObject *PyDataMem_SetHandler(PyObject *)`, in all versions of NumPy's table.
    let set = unsafe {
        std::mem::transmute::<*const c_void, unsafe extern "C" fn(*mut ffi::PyObject) -> *mut ffi::PyObject>(
            entry,
        )
    };
    let handler = handler.map_or(ptr::null_mut(), |handler| handler.as_ptr());
    // SAFETY: the handler is null or a valid capsule, of which NumPy takes a reference, and this thread is attached.
    let before = unsafe { set(handler) };
    // SAFETY: the result is a new reference of this call, or null with an error set.
    unsafe { Bound::from_owned_ptr_or_err(py, before) }
}

/// Returns the capsule of the arena's allocator, for [`set_numpy_handler`].
#[pyfunction]
pub(crate) fn numpy_handler(py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
    let handler = (&raw const HANDLER).cast_mut().cast();
    // SAFETY: the handler and the name are static, NumPy only reads them, and this thread is attached.
    let capsule = unsafe { ffi::PyCapsule_New(handler, HANDLER_NAME.as_ptr(), None) };
    // SAFETY: a new reference of this call, or null with an error set.
    unsafe { Bound::from_owned_ptr_or_err(py, capsule) }
}

/// Takes a block, if it is long enough and there is room.
fn take(len: usize) -> Option<NonNull<u8>> {
    if len < BLOCK_LEN_MIN || !is_own() {
        return None;
    }
    let arena = with_blocks(|blocks| blocks.arena.clone())?;
    let Ok(block) = arena.take_foreign(len) else {
        FALLBACKS.fetch_add(1, Ordering::Relaxed);
        return None;
    };
    let base = block.base();
    with_blocks(|blocks| blocks.by_address.insert(base.addr().get(), block));
    Some(base)
}

/// What an address is.
enum Owner {
    Malloc,
    /// A block of this length, in bytes.
    Block(usize),
    /// Memory of the parent's, or of nobody knows whom, in a forked child.
    Unknown,
}

fn owner(address: *mut c_void) -> Owner {
    if !address.addr().is_multiple_of(BLOCK_ALIGNMENT) {
        return Owner::Malloc;
    }
    match with_blocks(|blocks| blocks.by_address.get(&address.addr()).map(ForeignBlock::len)) {
        Some(Some(len)) => Owner::Block(len),
        Some(None) => Owner::Malloc,
        None => Owner::Unknown,
    }
}

/// # Safety
/// As C's `malloc` has it.
unsafe extern "C" fn malloc(_context: *mut c_void, len: usize) -> *mut c_void {
    match take(len) {
        Some(block) => block.as_ptr().cast(),
        // SAFETY: it may be called with any length.
        None => unsafe { libc::malloc(len) },
    }
}

/// # Safety
/// As C's `calloc` has it.
unsafe extern "C" fn calloc(_context: *mut c_void, count: usize, each: usize) -> *mut c_void {
    let Some(block) = count.checked_mul(each).and_then(|len| take(len).map(|block| (block, len))) else {
        // SAFETY: it may be called with any numbers.
        return unsafe { libc::calloc(count, each) };
    };
    let (base, len) = block;
    // SAFETY: the block is as long, and nobody else has its address yet. An earlier array may have left its bytes.
    unsafe { base.write_bytes(0, len) };
    base.as_ptr().cast()
}

/// # Safety
/// As C's `realloc` has it, for an address of this allocator.
unsafe extern "C" fn realloc(_context: *mut c_void, address: *mut c_void, len: usize) -> *mut c_void {
    let before = match owner(address) {
        // SAFETY: the address is of `malloc`, or null.
        Owner::Malloc => return unsafe { libc::realloc(address, len) },
        Owner::Block(before) => before,
        Owner::Unknown => return ptr::null_mut(),
    };
    // Always another block: a peer may have this one.
    // SAFETY: it may be called with any length.
    let moved = unsafe { malloc(ptr::null_mut(), len) };
    if !moved.is_null() {
        // SAFETY: both are as long as the shorter, they are not the same, and NumPy writes neither meanwhile.
        unsafe { ptr::copy_nonoverlapping(address.cast::<u8>(), moved.cast::<u8>(), before.min(len)) };
        // SAFETY: the address is of this allocator, and was not freed.
        unsafe { free(ptr::null_mut(), address, before) };
    }
    moved
}

/// # Safety
/// As C's `free` has it, for an address of this allocator.
unsafe extern "C" fn free(_context: *mut c_void, address: *mut c_void, _len: usize) {
    match owner(address) {
        // SAFETY: the address is of `malloc`, or null.
        Owner::Malloc => unsafe { libc::free(address) },
        // Dropped outside the lock. A peer's lease keeps the memory.
        Owner::Block(_) if is_own() => drop(with_blocks(|blocks| blocks.by_address.remove(&address.addr()))),
        Owner::Block(_) | Owner::Unknown => {}
    }
}
