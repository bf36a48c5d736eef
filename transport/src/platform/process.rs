//! Detects forks: which process made a value. A child forked without `exec` inherits copies of everything and
//! must not use what its parent still uses.
//!
//! The invariant (M10): a process neither locks, nor polls, nor drops what it inherited. Each process has a
//! generation. It is a word in a page that the kernel wipes in the child, so a check is one load. Where the
//! kernel cannot wipe a page, the generation is the process ID, which costs a system call.

#![expect(
    unsafe_code,
    reason = "a page that the kernel wipes on fork, and leaked values that outlive every reader"
)]

use std::future::{Future, poll_fn};
use std::ops::{Deref, DerefMut};
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};
use std::task::Poll;

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
use rustix::process::getpid;

use crate::error::{Error, ErrorKind, Failed, Result};

/// The process that made a value.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Process {
    generation: u64,
    /// The word that a fork wipes; `None` where the generation is the process ID.
    word: Option<&'static AtomicU64>,
}

impl Process {
    /// Returns the current process.
    pub(crate) fn current() -> Self {
        let Some(word) = word() else { return Self { generation: number(), word: None } };
        let generation = match word.load(Ordering::Relaxed) {
            0 => renew(word),
            generation => generation,
        };
        Self { generation, word: Some(word) }
    }

    /// Returns whether the caller runs in this process.
    pub(crate) fn is_this(&self) -> bool {
        self.generation == self.word.map_or_else(number, |word| word.load(Ordering::Relaxed))
    }

    /// Fails in any other process, which inherited the value by a fork.
    ///
    /// # Errors
    /// `Unsupported`, with the remedy.
    pub(crate) fn check(&self) -> Result<()> {
        if self.is_this() { Ok(()) } else { Err(inherited()) }
    }

    /// Runs `work` to its result. In a process that inherited it, `work` is neither polled nor dropped, and
    /// this fails.
    pub(crate) async fn run<T>(self, work: impl Future<Output = T>) -> Result<T> {
        let mut work = Own::of(self, Box::pin(work));
        poll_fn(|cx| match self.check() {
            Ok(()) => work.as_mut().poll(cx).map(Ok),
            Err(error) => Poll::Ready(Err(error)),
        })
        .await
    }
}

/// The error of a call in a forked child on a value of its parent.
fn inherited() -> Error {
    let why = "this process was forked from the one that owns this connection; open its own endpoint after fork, or use spawn";
    Error::new(ErrorKind::Unsupported, why)
}

fn number() -> u64 {
    getpid().as_raw_nonzero().get() as u64
}

/// Returns the word that reads zero after a fork, until it is [renewed](renew). `None` if there is no such
/// page.
fn word() -> Option<&'static AtomicU64> {
    /// Marks that no page is available.
    static NONE: AtomicU64 = AtomicU64::new(0);
    static WORD: AtomicPtr<AtomicU64> = AtomicPtr::new(ptr::null_mut());
    let mut known = WORD.load(Ordering::Acquire);
    if known.is_null() {
        let page = wiped_page();
        let made = page.unwrap_or_else(|| ptr::from_ref(&NONE).cast_mut());
        known = match WORD.compare_exchange(known, made, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => made,
            Err(first) => {
                if let Some(page) = page {
                    unmap(page);
                }
                first
            }
        };
    }
    // SAFETY: M10: not null, and either a static or a page that is never unmapped once it is known here.
    let word = unsafe { &*known };
    (!ptr::eq(word, &NONE)).then_some(word)
}

const PAGE_LEN: usize = 4096;

/// Maps a page of zeroes that a fork zeroes again.
fn wiped_page() -> Option<*mut AtomicU64> {
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: M10: a new private mapping at an address of the kernel's choice replaces nothing.
    let page = unsafe { mmap_anonymous(ptr::null_mut(), PAGE_LEN, protection, MapFlags::PRIVATE) }.ok()?;
    // SAFETY: M10: it changes what a child finds in this page, which nothing refers to yet.
    match unsafe { madvise(page, PAGE_LEN, Advice::LinuxWipeOnFork) } {
        Ok(()) => Some(page.cast()),
        Err(_) => {
            unmap(page.cast());
            None
        }
    }
}

fn unmap(page: *mut AtomicU64) {
    // SAFETY: M10: a page of `wiped_page` that nothing refers to. Its failure would cost the page alone.
    let _ = unsafe { munmap(page.cast(), PAGE_LEN) };
}

/// Sets a wiped word to a generation that no ancestor had, and returns it.
fn renew(word: &AtomicU64) -> u64 {
    /// Not wiped: the last generation of the ancestors.
    static LAST: AtomicU64 = AtomicU64::new(0);
    let next = LAST.fetch_add(1, Ordering::Relaxed) + 1;
    match word.compare_exchange(0, next, Ordering::Relaxed, Ordering::Relaxed) {
        Ok(_) => next,
        Err(first) => first,
    }
}

/// A value that only the process that made it drops. In any other process it is a copy of something in use,
/// and is leaked.
#[derive(Clone, Debug)]
pub(crate) struct Own<T> {
    process: Process,
    /// `None` only while dropping.
    value: Option<T>,
}

impl<T> Own<T> {
    /// Wraps a value of the current process.
    pub(crate) fn new(value: T) -> Self {
        Self::of(Process::current(), value)
    }

    /// Wraps a value of `process`.
    pub(crate) fn of(process: Process, value: T) -> Self {
        Self { process, value: Some(value) }
    }

    /// Returns the process that made the value.
    pub(crate) fn process(&self) -> Process {
        self.process
    }
}

impl<T> Deref for Own<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.value.as_ref().unwrap_or_else(|| unreachable!("taken out by drop only"))
    }
}

impl<T> DerefMut for Own<T> {
    fn deref_mut(&mut self) -> &mut T {
        self.value.as_mut().unwrap_or_else(|| unreachable!("taken out by drop only"))
    }
}

impl<T> Drop for Own<T> {
    fn drop(&mut self) {
        if !self.process.is_this() {
            std::mem::forget(self.value.take());
        }
    }
}

/// A static that each process creates for itself: an inherited one may be locked for ever, and describes the
/// parent.
#[derive(Debug)]
pub(crate) struct PerProcess<T: 'static> {
    make: fn() -> T,
    made: AtomicPtr<(u64, T)>,
}

impl<T: Send + Sync> PerProcess<T> {
    pub(crate) const fn new(make: fn() -> T) -> Self {
        Self { make, made: AtomicPtr::new(ptr::null_mut()) }
    }

    /// Returns the current process's value.
    pub(crate) fn get(&'static self) -> &'static T {
        let now = Process::current().generation;
        let mut known = self.made.load(Ordering::Acquire);
        loop {
            // SAFETY: M10: null, or a box that was leaked below and is never freed once it is known here.
            if let Some((generation, value)) = unsafe { known.as_ref() }
                && *generation == now
            {
                return value;
            }
            let made = Box::into_raw(Box::new((now, (self.make)())));
            match self.made.compare_exchange(known, made, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => known = made,
                Err(first) => {
                    // SAFETY: M10: the box of this turn, to which no other reference exists.
                    drop(unsafe { Box::from_raw(made) });
                    known = first;
                }
            }
        }
    }
}

/// The result of a call in a process that only inherited its subject.
pub(crate) trait Inherited {
    fn inherited() -> Self;
}

impl<T> Inherited for Result<T> {
    fn inherited() -> Self {
        Err(inherited())
    }
}

/// The memory stays with the inherited copy of the operation, which nothing touches.
impl<T, M: Default> Inherited for Result<T, Failed<M>> {
    fn inherited() -> Self {
        Err(Failed { error: inherited(), returned: M::default() })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// The process of an inherited value, as the child sees it.
    fn ancestor() -> Process {
        Process { generation: u64::MAX, ..Process::current() }
    }

    #[test]
    fn only_the_current_process_passes_the_check() {
        assert!(Process::current().is_this());
        Process::current().check().expect("its own");
        assert_eq!(ancestor().check().expect_err("another's").kind(), ErrorKind::Unsupported);
        let by_number = Process { generation: number(), word: None };
        assert!(by_number.is_this());
        assert!(!Process { generation: number() + 1, word: None }.is_this());
    }

    #[test]
    fn a_wiped_word_is_renewed_once_with_a_number_never_used() {
        let before = Process::current().generation;
        let word = AtomicU64::new(0);
        let renewed = renew(&word);
        assert!(renewed > before && word.load(Ordering::Relaxed) == renewed);
        assert_eq!(renew(&word), renewed, "the first to renew it decides");
    }

    #[test]
    fn an_inherited_value_is_not_dropped() {
        let held = std::sync::Arc::new(());
        drop(Own::new(held.clone()));
        assert_eq!(std::sync::Arc::strong_count(&held), 1);
        drop(Own::of(ancestor(), held.clone()));
        assert_eq!(std::sync::Arc::strong_count(&held), 2);
    }

    #[test]
    fn threads_of_a_process_share_its_static() {
        static COUNT: PerProcess<Mutex<usize>> = PerProcess::new(Mutex::default);
        let add = || *COUNT.get().lock().expect("no holder panics") += 1;
        std::thread::scope(|scope| (0..8).for_each(|_| drop(scope.spawn(add))));
        assert_eq!(*COUNT.get().lock().expect("no holder panics"), 8);
    }
}
