//! Memory that others may write at any time, as an interpreter's arrays.

#![expect(unsafe_code, reason = "an allocation's promises are what every handle of it rests on")]

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::{self, JoinHandle};

use towline::memory::{Access, Allocation};
use towline::{Buffer, Place};

/// Words that its handles and the writer share.
#[derive(Clone, Debug)]
pub struct Foreign(Arc<[AtomicU64]>);

/// A thread that writes foreign memory until it is dropped.
#[derive(Debug)]
pub struct Writer {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Foreign {
    /// Creates memory of at least `len` bytes, each with this value.
    pub fn of(value: u8, len: usize) -> Self {
        let word = u64::from_ne_bytes([value; 8]);
        Self((0..len.div_ceil(8).max(1)).map(|_| AtomicU64::new(word)).collect())
    }

    /// Creates a buffer of foreign memory with these bytes. It starts at an odd address.
    pub fn filled(bytes: &[u8]) -> Buffer {
        let mut shifted = vec![0];
        shifted.extend_from_slice(bytes);
        shifted.resize(shifted.len().next_multiple_of(8), 0);
        let (words, _) = shifted.as_chunks();
        let memory = Self(words.iter().map(|word| AtomicU64::new(u64::from_ne_bytes(*word))).collect());
        memory.buffer().slice(1..=bytes.len())
    }

    /// Returns a buffer of all of the memory.
    pub fn buffer(&self) -> Buffer {
        // SAFETY: M4: atomics are initialised. Foreign memory has no `BufferMut`.
        unsafe { Buffer::from_allocation(Arc::new(self.clone())) }
    }

    /// Starts a thread that fills the memory with each of these values in turn.
    pub fn write_always(&self, values: [u8; 2]) -> Writer {
        let (memory, stop) = (self.0.clone(), Arc::new(AtomicBool::new(false)));
        let stopped = stop.clone();
        let thread = thread::spawn(move || {
            for value in values.iter().cycle() {
                let value = u64::from_ne_bytes([*value; 8]);
                for word in memory.iter() {
                    word.store(value, Relaxed);
                }
                if stopped.load(Relaxed) {
                    return;
                }
            }
        });
        Writer { stop, thread: Some(thread) }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        self.thread.take().map(JoinHandle::join);
    }
}

// SAFETY: M1: the words stay where they are while this value lives. M5: this process writes them by atomics
// alone, and through no handle.
unsafe impl Allocation for Foreign {
    fn base(&self) -> NonNull<u8> {
        NonNull::from(&*self.0).cast()
    }

    fn len(&self) -> usize {
        8 * self.0.len()
    }

    fn place(&self) -> Place {
        Place::Host
    }

    fn access(&self) -> Access {
        Access::Foreign
    }

    fn writable(&self) -> bool {
        false
    }
}
