//! An operation owns its memory and ends exactly once. Its halves are [`Operation`], held by the link, and
//! [`Completion`], held by the caller. Dropping the first fails the operation. Dropping the second detaches
//! it.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use crate::error::{Error, ErrorKind, Failed, Result};
use crate::platform::mutex::Mutex;

/// The sending half of one result, from a link to a waiting caller. Dropping it unresolved resolves it with
/// `Closed`.
pub struct Done<T>(Option<Sink<Result<T>>>);

impl<T> Done<T> {
    /// Makes the two halves of one result.
    pub fn new() -> (Self, Completion<Result<T>>) {
        let slot = Arc::new(CompletionSlot::default());
        (Self(Some(Sink::Slot(slot.clone()))), Completion(slot))
    }

    /// Calls `then` with the result, on the thread that resolves it, possibly under the link's poll lock.
    /// `then` must not call the link and must not wait. Copying staged frames is the longest work that it may
    /// do.
    pub fn with(then: impl FnOnce(Result<T>) + Send + 'static) -> Self {
        Self(Some(Sink::Hook(Box::new(then))))
    }

    /// Resolves it.
    pub fn resolve(mut self, result: Result<T>) {
        if let Some(sink) = self.0.take() {
            sink.end(result);
        }
    }
}

impl<T> Drop for Done<T> {
    fn drop(&mut self) {
        if let Some(sink) = self.0.take() {
            sink.end(Err(dropped()));
        }
    }
}

impl<T> fmt::Debug for Done<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Done")
    }
}

/// Memory `M` in flight, and the promise of a `T` for it. It ends once: by `finish`, by `fail`, or by being
/// dropped, which fails it. Each of them passes the memory on or returns it.
pub struct Operation<M, T = ()> {
    memory: Option<M>,
    sink: Option<Sink<Result<T, Failed<M>>>>,
}

impl<M, T> Operation<M, T> {
    /// Makes the two halves of one operation that owns `memory`.
    pub fn new(memory: M) -> (Self, Completion<Result<T, Failed<M>>>) {
        let slot = Arc::new(CompletionSlot::default());
        (Self { memory: Some(memory), sink: Some(Sink::Slot(slot.clone())) }, Completion(slot))
    }

    /// Calls `then` with the result, under the rules of [`Done::with`].
    pub fn with(memory: M, then: impl FnOnce(Result<T, Failed<M>>) + Send + 'static) -> Self {
        Self { memory: Some(memory), sink: Some(Sink::Hook(Box::new(then))) }
    }

    /// The memory, while it is in flight.
    pub fn memory(&self) -> &M {
        self.memory.as_ref().expect("an operation holds its memory until it ends")
    }

    /// The memory, while it is in flight.
    pub fn memory_mut(&mut self) -> &mut M {
        self.memory.as_mut().expect("an operation holds its memory until it ends")
    }

    /// Ends it with success: `make` converts the memory into the result.
    pub fn finish(mut self, make: impl FnOnce(M) -> T) {
        if let (Some(memory), Some(sink)) = (self.memory.take(), self.sink.take()) {
            sink.end(Ok(make(memory)));
        }
    }

    /// Ends it with `error` and returns the memory.
    pub fn fail(mut self, error: Error) {
        self.end_failed(error);
    }

    fn end_failed(&mut self, error: Error) {
        if let (Some(returned), Some(sink)) = (self.memory.take(), self.sink.take()) {
            sink.end(Err(Failed { error, returned }));
        }
    }
}

impl<M, T> Drop for Operation<M, T> {
    fn drop(&mut self) {
        self.end_failed(dropped());
    }
}

impl<M: fmt::Debug, T> fmt::Debug for Operation<M, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Operation").field(&self.memory).finish()
    }
}

fn dropped() -> Error {
    Error::new(ErrorKind::Closed, "the connection ended before the operation did")
}

/// The caller's half of an operation. Dropping it detaches the operation, which runs on.
#[must_use = "a completion does nothing unless it is awaited"]
pub struct Completion<V>(Arc<CompletionSlot<V>>);

impl<V> Completion<V> {
    /// Returns the result, if there is one; otherwise registers the waker.
    pub fn poll_take(&self, cx: &mut Context<'_>) -> Poll<V> {
        let mut state = self.0.lock();
        match std::mem::replace(&mut *state, CompletionState::Taken) {
            CompletionState::Done(value) => Poll::Ready(value),
            CompletionState::Waiting(Some(waker)) if waker.will_wake(cx.waker()) => {
                *state = CompletionState::Waiting(Some(waker));
                Poll::Pending
            }
            CompletionState::Waiting(_) => {
                *state = CompletionState::Waiting(Some(cx.waker().clone()));
                Poll::Pending
            }
            CompletionState::Taken => Poll::Pending,
        }
    }

    /// As [`try_take`](Self::try_take), but `None` if another thread holds the lock. In a forked child that
    /// thread holds it for ever.
    pub(crate) fn take_uncontended(&self) -> Option<V> {
        let mut state = self.0.0.try_lock()?;
        match std::mem::replace(&mut *state, CompletionState::Taken) {
            CompletionState::Done(value) => Some(value),
            CompletionState::Waiting(_) | CompletionState::Taken => None,
        }
    }

    /// The result, if it is there.
    pub fn try_take(&self) -> Option<V> {
        let mut state = self.0.lock();
        match std::mem::replace(&mut *state, CompletionState::Taken) {
            CompletionState::Done(value) => Some(value),
            other => {
                *state = other;
                None
            }
        }
    }
}

impl<V> Future for Completion<V> {
    type Output = V;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<V> {
        self.poll_take(cx)
    }
}

impl<V> fmt::Debug for Completion<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Completion")
    }
}

enum Sink<V> {
    Slot(Arc<CompletionSlot<V>>),
    Hook(Box<dyn FnOnce(V) + Send>),
}

impl<V> Sink<V> {
    fn end(self, value: V) {
        match self {
            Self::Slot(slot) => slot.end(value),
            Self::Hook(then) => then(value),
        }
    }
}

struct CompletionSlot<V>(Mutex<CompletionState<V>>);

enum CompletionState<V> {
    Waiting(Option<Waker>),
    Done(V),
    Taken,
}

impl<V> CompletionSlot<V> {
    fn lock(&self) -> std::sync::MutexGuard<'_, CompletionState<V>> {
        self.0.lock()
    }

    fn end(&self, value: V) {
        let before = std::mem::replace(&mut *self.lock(), CompletionState::Done(value));
        if let CompletionState::Waiting(Some(waker)) = before {
            waker.wake();
        }
    }
}

impl<V> Default for CompletionSlot<V> {
    fn default() -> Self {
        Self(Mutex::new(CompletionState::Waiting(None)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_operation_gives_its_memory_back() {
        let (operation, completion) = Operation::<_, ()>::new(vec![1, 2, 3]);
        drop(operation);
        let failed = completion.try_take().expect("ended").expect_err("failed");
        assert_eq!(failed.returned, [1, 2, 3]);
        assert_eq!(failed.error.kind(), ErrorKind::Closed);
    }

    #[test]
    fn an_operation_ends_once() {
        let (operation, completion) = Operation::new(7);
        operation.finish(|memory| memory + 1);
        assert_eq!(completion.try_take().expect("ended").expect("well"), 8);
        assert!(completion.try_take().is_none());
    }

    #[test]
    fn a_dropped_completion_detaches_its_operation() {
        let (operation, completion) = Operation::new(7);
        drop(completion);
        operation.finish(|memory| memory);
    }
}
