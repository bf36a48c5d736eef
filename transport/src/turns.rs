//! Taking turns: a task gives way to its siblings, and to those that its runtime finds ready meanwhile.
//!
//! A task that wakes itself is behind its siblings too, but its runtime then has no reason to look at sockets before 61 turns
//! have passed: 30 ms where each moves a megabyte. `tokio::task::yield_now` has it look after every round, but wakes the last
//! one first, so that of 64 busy tasks some have half the turns of others (`docs/design/0008-scale.md`).

use std::collections::VecDeque;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use tokio::task::yield_now;

thread_local! {
    static LINE: Arc<Line> = Arc::default();
}

/// Those who gave way on one thread, the first one first.
#[derive(Debug, Default)]
struct Line(Mutex<VecDeque<Waker>>);

impl Line {
    fn wakers(&self) -> MutexGuard<'_, VecDeque<Waker>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the runtime keeps until it has looked. Whoever is first in line goes on when it ends, whichever way.
#[derive(Debug)]
struct Turn(Arc<Line>);

impl Wake for Turn {
    fn wake(self: Arc<Self>) {}
}

impl Drop for Turn {
    fn drop(&mut self) {
        let first = self.0.wakers().pop_front();
        if let Some(first) = first {
            first.wake();
        }
    }
}

/// Wakes the task when its siblings have run.
pub(crate) fn give_way<T>(cx: &mut Context<'_>) -> Poll<T> {
    let turn = LINE.with(|line| Arc::new(Turn(line.clone())));
    let waker = Waker::from(turn.clone());
    let _ = std::pin::pin!(yield_now()).poll(&mut Context::from_waker(&waker));
    drop(waker);
    if Arc::strong_count(&turn) > 1 {
        turn.0.wakers().push_back(cx.waker().clone());
    } else {
        // Nobody keeps it: there is no runtime here, or it is blocked.
        cx.waker().wake_by_ref();
    }
    Poll::Pending
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::os::unix::net::UnixStream;
    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::io::AsyncReadExt;
    use tokio::task::JoinSet;

    use super::*;

    /// Gives way once.
    async fn once() {
        let mut gave = false;
        poll_fn(|cx| if std::mem::replace(&mut gave, true) { Poll::Ready(()) } else { give_way(cx) }).await;
    }

    #[tokio::test]
    async fn everybody_has_a_turn_before_anybody_has_two() {
        for count in [2, 61, 64, 200] {
            let turns: Arc<Mutex<Vec<usize>>> = Arc::default();
            let mut tasks = JoinSet::new();
            for number in 0..count {
                let turns = turns.clone();
                tasks.spawn(async move {
                    for _ in 0..5 {
                        turns.lock().unwrap().push(number);
                        once().await;
                    }
                });
            }
            tasks.join_all().await;
            let turns = turns.lock().unwrap();
            assert!(turns.iter().copied().eq((0..5).flat_map(|_| 0..count)), "{count} tasks: {turns:?}");
        }
    }

    #[tokio::test]
    async fn a_busy_task_lets_one_run_that_becomes_ready() {
        let (near, mut far) = UnixStream::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        let mut near = tokio::net::UnixStream::from_std(near).unwrap();
        let turns = Arc::new(AtomicU32::new(0));
        let counted = turns.clone();
        let reader = tokio::spawn(async move {
            near.read_u8().await.unwrap();
            counted.load(Ordering::Relaxed)
        });
        once().await;
        std::io::Write::write_all(&mut far, &[7]).unwrap();
        while !reader.is_finished() {
            turns.fetch_add(1, Ordering::Relaxed);
            once().await;
        }
        assert!(reader.await.unwrap() <= 2, "it was left waiting");
    }

    #[test]
    fn without_a_runtime_it_is_a_turn_all_the_same() {
        #[derive(Default)]
        struct Woken(AtomicU32);
        impl Wake for Woken {
            fn wake(self: Arc<Self>) {
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        }
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(woken.clone());
        assert!(give_way::<()>(&mut Context::from_waker(&waker)).is_pending());
        assert_eq!(woken.0.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_runtime_that_ends_takes_nobodys_turn() {
        let runtime = || tokio::runtime::Builder::new_current_thread().build().unwrap();
        let ended = runtime();
        // It is polled once, gives way, and never has its turn.
        ended.block_on(async {
            drop(tokio::spawn(async {
                loop {
                    once().await
                }
            }))
        });
        drop(ended);
        runtime().block_on(async { once().await });
    }
}
