//! Waiting in tests: with a limit and a message, or one poll at a time.

use std::fmt::Debug;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

/// Longer than anything takes that is not stuck, even on a busy machine.
pub const TIMEOUT: Duration = Duration::from_secs(20);

/// Returns the output of `future`. Panics if it does not end within [`TIMEOUT`].
pub async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> T {
    within(TIMEOUT, what, future).await
}

/// Returns the output of `future`. Panics if it does not end within `limit`.
pub async fn within<T>(limit: Duration, what: &str, future: impl Future<Output = T>) -> T {
    let result = tokio::time::timeout(limit, future).await;
    result.unwrap_or_else(|_| panic!("{what} did not end within {limit:?}"))
}

/// Asserts that `future` does not end within 200 ms.
pub async fn pending<T: Debug>(what: &str, future: impl Future<Output = T>) {
    if let Ok(early) = tokio::time::timeout(Duration::from_millis(200), future).await {
        panic!("{what} ended already: {early:?}");
    }
}

/// Waits until `condition` holds. Panics if that takes longer than [`TIMEOUT`].
pub async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let limit = Instant::now() + TIMEOUT;
    while !condition() {
        assert!(Instant::now() < limit, "not within {TIMEOUT:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Polls at most `times` times, 100 µs apart, with a waker that does nothing.
pub async fn polled<F: Future>(mut future: Pin<&mut F>, times: usize) -> Option<F::Output> {
    for _ in 0..times {
        if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return Some(value);
        }
        tokio::time::sleep(Duration::from_micros(100)).await;
    }
    None
}

/// Returns all outputs, in order. Each poll polls the futures in order, so that the first poll submits them
/// in order.
pub async fn all<F: Future>(futures: impl IntoIterator<Item = F>) -> Vec<F::Output> {
    let mut futures: Vec<_> = futures.into_iter().map(|future| (Box::pin(future), None)).collect();
    poll_fn(|cx| {
        let mut open = false;
        for (future, done) in &mut futures {
            if done.is_none() {
                match future.as_mut().poll(cx) {
                    Poll::Ready(value) => *done = Some(value),
                    Poll::Pending => open = true,
                }
            }
        }
        if open { Poll::Pending } else { Poll::Ready(()) }
    })
    .await;
    futures.into_iter().filter_map(|(_, done)| done).collect()
}

/// Runs `future` on this thread without tokio: the thread parks between polls.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Arc::new(Unpark(thread::current())).into();
    let (mut future, mut cx) = (pin!(future), Context::from_waker(&waker));
    loop {
        match future.as_mut().poll(&mut cx) {
            Poll::Ready(value) => return value,
            Poll::Pending => thread::park(),
        }
    }
}
