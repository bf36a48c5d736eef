//! Tests of waiting for free memory.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::{Duration, Instant};

use crate::api::blocking;
use crate::error::{ErrorKind, Result};
use crate::memory::{Arena, BufferMut};

const PART: usize = 64 << 10;
/// Longer than anything takes that is not stuck.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Reports each wake-up to a channel.
struct ChannelWaker(Mutex<Sender<()>>);

impl Wake for ChannelWaker {
    fn wake(self: Arc<Self>) {
        let _ = self.0.lock().unwrap().send(());
    }
}

/// A waiting `take_within`, polled without an executor.
struct TestWaiter<'a> {
    taking: Pin<Box<dyn Future<Output = Result<BufferMut>> + 'a>>,
    waker: Waker,
    woken: Receiver<()>,
}

impl<'a> TestWaiter<'a> {
    fn new(arena: &'a Arena, len: usize, limit: Duration) -> Self {
        let (sender, woken) = channel();
        let waker = Waker::from(Arc::new(ChannelWaker(Mutex::new(sender))));
        Self { taking: Box::pin(arena.take_within(len, limit)), waker, woken }
    }

    fn poll(&mut self) -> Poll<Result<BufferMut>> {
        self.taking.as_mut().poll(&mut Context::from_waker(&self.waker))
    }

    fn wait(&mut self) -> Result<BufferMut> {
        loop {
            if let Poll::Ready(taken) = self.poll() {
                return taken;
            }
            self.woken.recv_timeout(TIMEOUT).expect("the waiter is woken");
        }
    }
}

fn assert_thread_ends(arena: &Arena) {
    let limit = Instant::now() + TIMEOUT;
    while arena.0.state().wait_queue.has_thread() {
        assert!(Instant::now() < limit, "the thread stays though no waiter is left");
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn the_first_waiter_is_served_first_whatever_its_length() {
    let arena = Arena::new(16 * PART).unwrap();
    let mut taken: Vec<_> = (0..16).map(|_| arena.take(PART).unwrap()).collect();
    let mut waiters: Vec<_> =
        [8, 1, 3].map(|parts| TestWaiter::new(&arena, parts * PART, Duration::MAX)).into_iter().collect();
    waiters.iter_mut().for_each(|waiter| assert!(waiter.poll().is_pending()));
    // Enough for the second and the third waiter at every poll.
    for _ in 0..7 {
        drop(taken.remove(0));
        assert!(waiters[1].poll().is_pending() && waiters[2].poll().is_pending());
    }
    assert!(waiters[0].poll().is_pending());
    drop(taken.remove(0));
    let large = waiters[0].wait().unwrap();
    assert_eq!(large.capacity(), 8 * PART);
    assert!(waiters[1].poll().is_pending() && waiters[2].poll().is_pending(), "nothing is free");
    drop(taken.remove(0));
    let small = waiters[1].wait().unwrap();
    drop(taken);
    let last = waiters[2].wait().unwrap();
    assert_eq!(arena.stats().in_use_bytes, 12 * PART);
    drop((large, small, last));
    drop(waiters);
    assert_thread_ends(&arena);
}

#[test]
fn a_waiter_that_times_out_lets_the_next_one_move_up() {
    let arena = Arena::new(4 * PART).unwrap();
    let taken = arena.take(2 * PART).unwrap();
    let mut first = TestWaiter::new(&arena, 4 * PART, Duration::MAX);
    let mut second = TestWaiter::new(&arena, 3 * PART, Duration::from_millis(20));
    let mut third = TestWaiter::new(&arena, 2 * PART, Duration::MAX);
    for waiter in [&mut first, &mut second, &mut third] {
        assert!(waiter.poll().is_pending());
    }
    let began = Instant::now();
    let error = second.wait().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
    assert!(began.elapsed() >= Duration::from_millis(19));
    let said = error.to_string();
    for detail in ["196608 bytes of an arena of 262144", "131072 are in use", "peers hold 0", "drop buffers"]
    {
        assert!(said.contains(detail), "{said}");
    }
    assert!(third.poll().is_pending(), "the first waiter is still before it");
    drop(first);
    assert_eq!(third.wait().unwrap().capacity(), 2 * PART);
    drop((second, third, taken));
    assert_thread_ends(&arena);
}

#[test]
fn lengths_that_can_never_be_free_fail_at_once() {
    let arena = Arena::new(8 * PART).unwrap();
    let refused = |len: usize| {
        let error = pin!(arena.take_within(len, Duration::MAX)).poll_now().unwrap_err();
        error.kind() == ErrorKind::TooLarge
    };
    assert!(refused(8 * PART + 1) && refused(usize::MAX));
    let all = arena.take(8 * PART).unwrap();
    assert!(refused(8 * PART + 1));
    let mut waiter = TestWaiter::new(&arena, 8 * PART, Duration::MAX);
    assert!(waiter.poll().is_pending());
    drop(all);
    assert_eq!(waiter.wait().unwrap().capacity(), 8 * PART);
    assert_eq!(pin!(arena.take_within(0, Duration::ZERO)).poll_now().unwrap().capacity(), 0);
}

/// Polls a future once and returns its output.
trait PollNow: Future {
    fn poll_now(self: Pin<&mut Self>) -> Self::Output;
}

impl<F: Future> PollNow for F {
    fn poll_now(self: Pin<&mut Self>) -> F::Output {
        match self.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(value) => value,
            Poll::Pending => panic!("the future is pending"),
        }
    }
}

#[test]
fn every_waiting_thread_is_served() {
    const THREADS: usize = 8;
    const TURNS: usize = 300;
    let arena = Arena::new(16 * PART).unwrap();
    let took: Vec<_> = (0..THREADS)
        .map(|number| {
            let arena = blocking::Arena::from(arena.clone());
            thread::spawn(move || {
                for turn in 0..TURNS {
                    let parts = 1 + (number * 5 + turn * 3) % 16;
                    let mut taken = arena.take_within(parts * PART, TIMEOUT).unwrap();
                    taken.extend_from_slice(&[number as u8; 100]).unwrap();
                    assert_eq!(taken.freeze().as_slice().unwrap(), [number as u8; 100]);
                }
            })
        })
        .collect();
    for thread in took {
        thread.join().unwrap();
    }
    assert_eq!(arena.stats().in_use_bytes, 0);
    assert_thread_ends(&arena);
}
