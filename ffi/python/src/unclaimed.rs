//! What ended for a call that was cancelled at that very moment: a received message, an accepted connection.
//!
//! The invariant: a value is claimed by one call, or is here for the next one, in the order of arrival.

use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

use towline::Result;

/// Values that no call has claimed, and the calls that wait for one.
pub(crate) struct Unclaimed<T>(Arc<Mutex<State<T>>>);

struct State<T> {
    values: BTreeMap<u64, T>,
    waiting: BTreeMap<u64, Waker>,
    /// The last number that was given to a value or a call.
    last: u64,
}

/// A value that is there for one call. Dropped without [`take`](Self::take), it is there for the next one.
pub(crate) struct Claim<T> {
    value: Option<T>,
    number: u64,
    unclaimed: Unclaimed<T>,
}

/// A call that waits. Dropping it ends the wait.
struct Waiting<T> {
    number: u64,
    unclaimed: Unclaimed<T>,
}

impl<T> Unclaimed<T> {
    /// Returns the oldest value, if there is one.
    pub(crate) fn pop(&self) -> Option<T> {
        self.state().values.pop_first().map(|(_number, value)| value)
    }

    /// Waits for a value: one that is here, or the one that `next` ends with.
    pub(crate) async fn next(self, next: impl Future<Output = Result<T>>) -> Result<Claim<T>> {
        let waiting = Waiting { number: self.number(), unclaimed: self.clone() };
        let mut next = pin!(next);
        poll_fn(|cx| {
            let mut state = self.state();
            if let Some((number, value)) = state.values.pop_first() {
                return Poll::Ready(Ok(Claim { value: Some(value), number, unclaimed: self.clone() }));
            }
            state.waiting.insert(waiting.number, cx.waker().clone());
            drop(state);
            let value = std::task::ready!(next.as_mut().poll(cx))?;
            Poll::Ready(Ok(Claim { value: Some(value), number: self.number(), unclaimed: self.clone() }))
        })
        .await
    }

    fn number(&self) -> u64 {
        let mut state = self.state();
        state.last += 1;
        state.last
    }

    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Claim<T> {
    /// Returns the value, unless it was taken before.
    pub(crate) fn take(&mut self) -> Option<T> {
        self.value.take()
    }

    /// Puts a value in the place of the one that was taken.
    pub(crate) fn put(&mut self, value: T) {
        self.value = Some(value);
    }
}

impl<T> Drop for Claim<T> {
    fn drop(&mut self) {
        let Some(value) = self.value.take() else { return };
        let mut state = self.unclaimed.state();
        state.values.insert(self.number, value);
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        waiting.into_values().for_each(Waker::wake);
    }
}

impl<T> Drop for Waiting<T> {
    fn drop(&mut self) {
        self.unclaimed.state().waiting.remove(&self.number);
    }
}

impl<T> Clone for Unclaimed<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Default for Unclaimed<T> {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(State { values: BTreeMap::new(), waiting: BTreeMap::new(), last: 0 })))
    }
}

impl<T> std::fmt::Debug for Unclaimed<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Unclaimed").finish_non_exhaustive()
    }
}
