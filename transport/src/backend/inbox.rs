//! The queue in which a link announces the peer's messages, in order, and its own end.

use std::collections::VecDeque;
use std::sync::MutexGuard;
use std::task::{Context, Poll, Waker};

use tokio::sync::Notify;

use crate::error::{Error, Result};
use crate::platform::mutex::Mutex;
use crate::transfer::message::Announced;

/// Announced messages, oldest first, and then the link's end.
#[derive(Debug, Default)]
pub struct Inbox {
    state: Mutex<InboxState>,
    /// Notified when the link drains or ends.
    changed: Notify,
}

#[derive(Debug, Default)]
struct InboxState {
    queue: VecDeque<Announced>,
    draining: Option<Error>,
    end: Option<Error>,
    waker: Option<Waker>,
    /// Woken at the end, and only then.
    at_end: Option<Waker>,
}

impl Inbox {
    /// Adds a message.
    pub fn announce(&self, announced: Announced) {
        self.announce_all([announced]);
    }

    /// Adds messages that arrived together.
    pub(crate) fn announce_all(&self, announced: impl IntoIterator<Item = Announced>) {
        let mut state = self.lock();
        if state.end.is_none() {
            state.queue.extend(announced);
        }
        wake(state);
    }

    /// Declares the link drained: everything from the peer has arrived and everything of ours has left. Once
    /// the peer declares the same, the handshake ends the link with `why`, after one second at the latest.
    /// For links alongside the handshake's stream, whose last records that stream's end could otherwise
    /// overtake. Only the first call counts, and none after the end.
    pub fn drain(&self, why: Error) {
        let mut state = self.lock();
        if state.end.is_none() {
            state.draining.get_or_insert(why);
        }
        drop(state);
        self.changed.notify_waiters();
    }

    /// Ends the inbox with `why`: nothing more is announced. Messages announced before can still be taken.
    /// Only the first call counts.
    pub fn end(&self, why: Error) {
        let mut state = self.lock();
        state.end.get_or_insert(why);
        let at_end = state.at_end.take();
        wake(state);
        self.changed.notify_waiters();
        if let Some(at_end) = at_end {
            at_end.wake();
        }
    }

    /// Wakes `waker` at the end, or now if the link has ended. Replaces the last call's waker.
    pub(crate) fn wake_at_end(&self, waker: Waker) {
        let mut state = self.lock();
        if state.end.is_none() {
            state.at_end = Some(waker);
            return;
        }
        drop(state);
        waker.wake();
    }

    /// Waits until the link drains, and returns the reason; `None` if it ended instead.
    pub(crate) async fn until_draining(&self) -> Option<Error> {
        self.until(|state| match state.end {
            Some(_) => Some(None),
            None => state.draining.clone().map(Some),
        })
        .await
    }

    /// Waits for the end.
    pub(crate) async fn until_ended(&self) {
        self.closed().await;
    }

    /// Waits for the end, and returns its reason.
    pub(crate) async fn closed(&self) -> Error {
        self.until(|state| state.end.clone()).await
    }

    async fn until<T>(&self, found: impl Fn(&InboxState) -> Option<T>) -> T {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            let found = found(&self.lock());
            match found {
                Some(found) => return found,
                None => changed.await,
            }
        }
    }

    /// Returns the reason of the end, if the link has ended.
    pub fn ended(&self) -> Option<Error> {
        self.lock().end.clone()
    }

    /// Returns the next message, or the end; otherwise stores the waker.
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

    fn lock(&self) -> MutexGuard<'_, InboxState> {
        self.state.lock()
    }
}

fn wake(mut state: MutexGuard<'_, InboxState>) {
    let waker = state.waker.take();
    drop(state);
    if let Some(waker) = waker {
        waker.wake();
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;

    use super::*;
    use crate::error::ErrorKind;

    fn why(detail: &'static str) -> Error {
        Error::new(ErrorKind::Closed, detail)
    }

    #[test]
    fn waiting_for_the_end_is_not_resolved_by_a_drain() {
        let inbox = Inbox::default();
        let mut cx = Context::from_waker(Waker::noop());
        let mut draining = pin!(inbox.until_draining());
        let mut ended = pin!(inbox.until_ended());
        assert!(draining.as_mut().poll(&mut cx).is_pending() && ended.as_mut().poll(&mut cx).is_pending());
        inbox.drain(why("first"));
        inbox.drain(why("second"));
        let Poll::Ready(Some(drained)) = draining.poll(&mut cx) else { panic!("the link is draining") };
        assert_eq!(drained.detail(), "first");
        assert!(ended.as_mut().poll(&mut cx).is_pending() && inbox.ended().is_none());
        assert!(inbox.poll_take(&mut cx).is_pending(), "more may be announced");
        inbox.end(why("the end"));
        assert!(ended.poll(&mut cx).is_ready());
        assert_eq!(inbox.ended().unwrap().detail(), "the end");
    }

    #[test]
    fn waiting_for_a_drain_resolves_at_the_end() {
        let inbox = Inbox::default();
        let mut cx = Context::from_waker(Waker::noop());
        let mut draining = pin!(inbox.until_draining());
        assert!(draining.as_mut().poll(&mut cx).is_pending());
        inbox.end(why("the end"));
        inbox.drain(why("too late"));
        let Poll::Ready(drained) = draining.poll(&mut cx) else { panic!("the link has ended") };
        assert!(drained.is_none());
        assert_eq!(inbox.ended().unwrap().detail(), "the end");
    }
}
