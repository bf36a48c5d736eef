//! Where a link leaves what the peer sent, in order, and its own end.

use std::collections::VecDeque;
use std::sync::MutexGuard;
use std::task::{Context, Poll, Waker};

use tokio::sync::Notify;

use crate::error::{Error, Result};
use crate::platform::mutex::Mutex;
use crate::transfer::message::Announced;

/// Announced messages, oldest first, and after them the link's end.
#[derive(Debug, Default)]
pub struct Inbox {
    state: Mutex<State>,
    /// It parted, or ended.
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Announced>,
    draining: Option<Error>,
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

    /// Says that all of the peer's has come and all of ours has left, in good order: the link is not needed any more once the
    /// peer says the same. The handshake then ends it with `why`, at the latest after a second. For links beside the handshake's stream,
    /// whose last words may else be overtaken by its end. Only the first word counts, and none after the end.
    pub fn drain(&self, why: Error) {
        let mut state = self.lock();
        if state.end.is_none() {
            state.draining.get_or_insert(why);
        }
        drop(state);
        self.changed.notify_waiters();
    }

    /// Says that nothing more will come, and why. What was announced can still be taken; only the first word counts.
    pub fn end(&self, why: Error) {
        let mut state = self.lock();
        state.end.get_or_insert(why);
        wake(state);
        self.changed.notify_waiters();
    }

    /// Waits until the link parts, and tells why; `None` if it ended instead.
    pub(crate) async fn until_draining(&self) -> Option<Error> {
        self.until(|state| match state.end {
            Some(_) => Some(None),
            None => state.draining.clone().map(Some),
        })
        .await
    }

    /// Waits for the end.
    pub(crate) async fn until_ended(&self) {
        self.until(|state| state.end.as_ref().map(drop)).await;
    }

    async fn until<T>(&self, found: impl Fn(&State) -> Option<T>) -> T {
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
        self.state.lock()
    }
}

fn wake(mut state: MutexGuard<'_, State>) {
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
