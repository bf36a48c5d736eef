//! Memory of another language's runtime, lent to operations, and its owners once it is free again.
//!
//! The invariant: an owner is dropped by [`Pins::take_released`]'s caller, or together with the last handle of
//! its [`Pins`], and never by the thread that drops a buffer.

#![expect(unsafe_code, reason = "the memory is somebody else's, and the caller promises what it does")]

use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Waker;

use super::{Access, Allocation, Buffer, BufferMut, Place};
use crate::platform::mutex::Mutex;
use crate::platform::process::Process;

/// Lends the memory of another language's objects to operations without a copy, and returns each object's
/// owner once its bytes are free again.
///
/// A binding [`pin`](Self::pin)s an object to send, or [`pin_mut`](Self::pin_mut)s one to receive into:
/// the owner is what keeps the object's memory where it is, such as a reference or a view. Operations
/// drop buffers on any thread, and most languages allow only some threads to release an object. So the
/// last handle of the buffer queues the owner and wakes the waker, and a thread that may release objects
/// calls [`take_released`](Self::take_released). With
/// [`CompletionQueue::waker`](crate::CompletionQueue::waker) that is the thread of the event loop.
///
/// Clones are handles to the same queue. In a forked child, owners are neither queued nor dropped.
///
/// ```
/// use std::ptr::NonNull;
/// use std::task::Waker;
/// use towline::memory::{Access, Pins};
///
/// let pins = Pins::new(Waker::noop().clone());
/// let mut object = vec![7; 1000]; // an object of another language, and its owner at once
/// let (base, len) = (NonNull::new(object.as_mut_ptr()).expect("a Vec has an address"), object.len());
/// // SAFETY: a Vec that is moved keeps its bytes where they are, until it is dropped.
/// let buffer = unsafe { pins.pin(base, len, object) };
/// assert_eq!((buffer.access(), pins.pinned_bytes()), (Access::Foreign, 1000));
///
/// drop(buffer); // usually by an operation, on another thread
/// assert_eq!(pins.take_released().len(), 1);
/// assert_eq!(pins.pinned_bytes(), 0);
/// ```
pub struct Pins<T>(Arc<Shared<T>>);

struct Shared<T> {
    released: Mutex<Vec<T>>,
    /// The bytes whose owners are not released yet.
    bytes: AtomicU64,
    waker: Waker,
    process: Process,
}

impl<T: Send + 'static> Pins<T> {
    /// Makes an empty queue. `waker` is woken for each owner that is released.
    pub fn new(waker: Waker) -> Self {
        Self(Arc::new(Shared {
            released: Mutex::default(),
            bytes: AtomicU64::new(0),
            waker,
            process: Process::current(),
        }))
    }

    /// Makes a buffer of the memory that `owner` keeps in place. The memory is host memory that others may
    /// write at any time ([`Access::Foreign`]): if it changes while it is sent, the peer gets a mixture.
    ///
    /// # Safety
    ///
    /// Until `owner` is dropped, `base..base + len` stays allocated at that address and readable by the CPU,
    /// from any thread (M1). `len` is at most `isize::MAX`, and all bytes are initialised (M4). Rust code of
    /// this process writes them by atomic accesses alone (M5).
    pub unsafe fn pin(&self, base: NonNull<u8>, len: usize, owner: T) -> Buffer {
        let pinned = self.pinned(base, len, owner, false);
        if len == 0 {
            // An empty buffer would drop its allocation here and now; this queues the owner just the same.
            drop(pinned);
            return Buffer::new();
        }
        // SAFETY: the caller promises that the bytes are initialised (M4). The allocation is not writable, so
        // no `BufferMut` of it exists.
        unsafe { Buffer::from_allocation(Arc::new(pinned)) }
    }

    /// Makes a buffer to receive into, of the memory that `owner` keeps in place. As for [`pin`](Self::pin),
    /// others may read and write the memory at any time. What is received is copied there at the end.
    ///
    /// ```
    /// use std::ptr::NonNull;
    /// use std::task::Waker;
    /// use towline::memory::Pins;
    ///
    /// let pins = Pins::new(Waker::noop().clone());
    /// let mut object = vec![0; 4];
    /// let (base, len) = (NonNull::new(object.as_mut_ptr()).expect("a Vec has an address"), object.len());
    /// // SAFETY: a Vec that is moved keeps its bytes where they are, and nobody else uses them.
    /// let mut buffer = unsafe { pins.pin_mut(base, len, object) };
    /// buffer.extend_from_slice(b"line")?;
    /// drop(buffer);
    /// assert_eq!(pins.take_released(), [b"line"]);
    /// # Ok::<(), towline::Error>(())
    /// ```
    ///
    /// # Safety
    ///
    /// As for [`pin`](Self::pin), and the memory is writable by the CPU. Rust code of this process reads and
    /// writes it by atomic accesses alone (M5).
    pub unsafe fn pin_mut(&self, base: NonNull<u8>, len: usize, owner: T) -> BufferMut {
        let pinned = self.pinned(base, len, owner, true);
        if len == 0 {
            drop(pinned);
            return BufferMut::new();
        }
        BufferMut::from_allocation(Arc::new(pinned)).unwrap_or_else(|_| unreachable!("it has one handle"))
    }

    fn pinned(&self, base: NonNull<u8>, len: usize, owner: T, writable: bool) -> Pinned<T> {
        self.0.bytes.fetch_add(len as u64, Ordering::Relaxed);
        Pinned { base, len, writable, owner: Mutex::new(Some(owner)), pins: self.0.clone() }
    }

    /// Returns the owners whose memory is free again, in the order of their release. Never waits.
    pub fn take_released(&self) -> Vec<T> {
        if !self.0.process.is_this() {
            return Vec::new();
        }
        std::mem::take(&mut *self.0.released.lock())
    }

    /// Returns how many bytes are lent to operations, for a bound on what is under way.
    pub fn pinned_bytes(&self) -> u64 {
        self.0.bytes.load(Ordering::Relaxed)
    }
}

impl<T> Clone for Pins<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> fmt::Debug for Pins<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pins").field("bytes", &self.0.bytes).finish_non_exhaustive()
    }
}

/// One object's memory.
struct Pinned<T: Send + 'static> {
    base: NonNull<u8>,
    len: usize,
    writable: bool,
    /// `Some` until it is dropped.
    owner: Mutex<Option<T>>,
    pins: Arc<Shared<T>>,
}

// SAFETY: the address is only given away, and the memory is readable from any thread (M1). The owner is Send.
unsafe impl<T: Send> Send for Pinned<T> {}
// SAFETY: a shared reference only gives the address away (M1). The owner is behind a lock.
unsafe impl<T: Send> Sync for Pinned<T> {}

// SAFETY: the promises of `Pins::pin` and `Pins::pin_mut` (M1, M4). It is Foreign: others may write (M5).
unsafe impl<T: Send + 'static> Allocation for Pinned<T> {
    fn base(&self) -> NonNull<u8> {
        self.base
    }

    fn len(&self) -> usize {
        self.len
    }

    fn place(&self) -> Place {
        Place::Host
    }

    fn access(&self) -> Access {
        Access::Foreign
    }

    fn writable(&self) -> bool {
        self.writable
    }
}

impl<T: Send + 'static> Drop for Pinned<T> {
    fn drop(&mut self) {
        let Some(owner) = self.owner.lock().take() else { return };
        if !self.pins.process.is_this() {
            // In a forked child the object belongs to the parent, and the lock may be held for ever (M10).
            std::mem::forget(owner);
            return;
        }
        self.pins.bytes.fetch_sub(self.len as u64, Ordering::Relaxed);
        self.pins.released.lock().push(owner);
        self.pins.waker.wake_by_ref();
    }
}

impl<T: Send> fmt::Debug for Pinned<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pinned").field("base", &self.base).field("len", &self.len).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::task::Wake;
    use std::thread;

    use super::*;

    struct WakeCount(AtomicUsize);

    impl Wake for WakeCount {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn pin(pins: &Pins<Vec<u8>>, mut bytes: Vec<u8>) -> Buffer {
        let (base, len) = (NonNull::new(bytes.as_mut_ptr()).expect("not null"), bytes.len());
        // SAFETY: the Vec's bytes stay where they are until it is dropped, and nobody writes them.
        unsafe { pins.pin(base, len, bytes) }
    }

    #[test]
    fn owners_are_released_by_the_last_handle_in_order() {
        let count = Arc::new(WakeCount(AtomicUsize::new(0)));
        let pins = Pins::new(Waker::from(count.clone()));
        let (first, second) = (pin(&pins, vec![1; 10]), pin(&pins, vec![2; 20]));
        assert!(first.as_slice().is_none(), "others may write it");
        assert_eq!(first.to_vec().expect("host memory"), [1; 10]);
        let slice = second.slice(5..);
        drop(second);
        assert_eq!((pins.pinned_bytes(), pins.take_released().len()), (30, 0), "a slice is a handle too");
        thread::spawn(move || drop((slice, first))).join().expect("no panic");
        assert_eq!(pins.take_released(), [vec![2; 20], vec![1; 10]]);
        assert_eq!((pins.pinned_bytes(), count.0.load(Ordering::Relaxed)), (0, 2));
        assert!(pins.take_released().is_empty());
    }

    #[test]
    fn memory_to_receive_into_is_filled_and_released() {
        let pins = Pins::new(Waker::noop().clone());
        let mut bytes = vec![0; 301];
        let (base, len) = (NonNull::new(bytes.as_mut_ptr()).expect("not null"), bytes.len());
        // SAFETY: the Vec's bytes stay where they are until it is dropped, and nobody else uses them.
        let mut buffer = unsafe { pins.pin_mut(base, len, bytes) };
        assert!(buffer.as_mut_slice().is_none(), "others may write it");
        buffer.fill_from(&Buffer::from(vec![7; 300])).expect("there is room");
        assert_eq!((buffer.len(), pins.take_released().len()), (300, 0));
        drop(buffer.freeze());
        let released = pins.take_released().pop().expect("the last handle is dropped");
        assert_eq!((released[299], released[300]), (7, 0));
    }

    #[test]
    fn the_owner_of_an_empty_object_is_released_at_once() {
        let pins = Pins::new(Waker::noop().clone());
        assert!(pin(&pins, Vec::new()).is_empty());
        assert_eq!(pins.take_released(), [vec![]]);
    }
}
