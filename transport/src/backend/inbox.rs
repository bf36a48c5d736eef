//! Where a link leaves what the peer sent, in order, and its own end.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use tokio::sync::Notify;

use crate::error::{Error, Result};
use crate::message::Announced;

/// Announced messages, oldest first, and after them the link's end.
#[derive(Debug, Default)]
pub struct Inbox {
    state: Mutex<State>,
    ended: Notify,
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Announced>,
    end: Option<Error>,
    waker: Option<Waker>,
}

impl Inbox {
    /// Adds a message.
    pub fn announce(&self, announced: Announced) {
        self.announce_all([announced]);
    }

    /// Adds messages that came together.
    pub(crate) fn announce_all(&self, announced: impl IntoIterator<Item = Announced>) {
        let mut state = self.lock();
        if state.end.is_none() {
            state.queue.extend(announced);
        }
        wake(state);
    }

    /// Says that nothing more will come, and why. What was announced can still be taken; only the first word counts.
    pub fn end(&self, why: Error) {
        let mut state = self.lock();
        state.end.get_or_insert(why);
        wake(state);
        self.ended.notify_waiters();
    }

    /// Waits for the end.
    pub(crate) async fn until_ended(&self) {
        let mut notified = std::pin::pin!(self.ended.notified());
        notified.as_mut().enable();
        if self.ended().is_none() {
            notified.await;
        }
    }

    /// Why nothing more will come, if that is so.
    pub fn ended(&self) -> Option<Error> {
        self.lock().end.clone()
    }

    /// The next message, or the end; otherwise remembers whom to wake.
    pub(crate) fn poll_take(&self, cx: &mut Context<'_>) -> Poll<Result<Announced>> {
        let mut state = self.lock();
        if let Some(announced) = state.queue.pop_front() {
            return Poll::Ready(Ok(announced));
        }
        if let Some(end) = &state.end {
            return Poll::Ready(Err(end.clone()));
        }
        if !state.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            state.waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn wake(mut state: MutexGuard<'_, State>) {
    let waker = state.waker.take();
    drop(state);
    if let Some(waker) = waker {
        waker.wake();
    }
}
