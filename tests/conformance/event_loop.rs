//! A thread without an async runtime, as in `asyncio` or a C program. It sleeps in poll(2) on one descriptor,
//! and polls the futures that were woken.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Signal;
use towline::{BufferMut, Caps, Connection, ErrorKind, Message, RemoteRegion, Wait, Wakeups};

use crate::backends::Row;
use crate::callers::without_tokio;
use crate::content::{assert_bytes, assert_message, bytes, message, number};
use crate::forked::Forked;
use crate::peer::{ECHO, EXPOSE, EXPOSED_LEN, HEARTBEAT, IGNORE, Peer};
use crate::polls::{TIMEOUT, in_time};
use crate::suite::cases;
use crate::usage;

cases! {
    ANY:
        one_thread_with_one_descriptor_serves_both_ends,
        many_operations_are_under_way_at_once,
        an_idle_loop_takes_no_processor_time,
        cancelled_calls_lose_nothing,
        the_end_of_a_connection_wakes_the_loop,
        a_forked_child_takes_no_wakeup_of_its_parent;
    ONE_SIDED:
        gets_and_puts_end_in_the_loop;
    CROSS_PROCESS:
        a_killed_peer_wakes_the_loop;
}

const LENS: [usize; 5] = [0, 700, 20_000, 300_000, 2 << 20];

type Work = Pin<Box<dyn Future<Output = ()>>>;

/// A minimal event loop, as `asyncio` has.
struct EventLoop {
    wakeups: Wakeups,
    calls: BTreeMap<u64, (Waker, Work)>,
    last: u64,
}

/// An operation in progress, and its result.
struct Call<T> {
    key: u64,
    result: Rc<Cell<Option<T>>>,
}

impl EventLoop {
    fn new() -> Self {
        assert!(tokio::runtime::Handle::try_current().is_err(), "no runtime here");
        Self { wakeups: Wakeups::new().unwrap(), calls: BTreeMap::new(), last: 0 }
    }

    /// Polls the future once, so that operations are submitted in the order of the calls.
    fn start<T: 'static>(&mut self, future: impl Future<Output = T> + 'static) -> Call<T> {
        self.last += 1;
        let result = Rc::new(Cell::new(None));
        let sink = result.clone();
        let call = async move { sink.set(Some(future.await)) };
        self.calls.insert(self.last, (self.wakeups.waker(self.last), Box::pin(call)));
        self.poll(self.last);
        Call { key: self.last, result }
    }

    fn poll(&mut self, key: u64) {
        let Some((waker, call)) = self.calls.get_mut(&key) else { return };
        if let Poll::Ready(()) = call.as_mut().poll(&mut Context::from_waker(waker)) {
            self.calls.remove(&key);
        }
    }

    fn cancel<T>(&mut self, call: Call<T>) -> Option<T> {
        self.calls.remove(&call.key);
        call.result.take()
    }

    /// Sleeps until a wakeup, at most `limit`, and polls what was woken. Returns false without a wakeup.
    fn turn(&mut self, limit: Duration) -> bool {
        let limit = Timespec::try_from(limit).unwrap();
        if poll(&mut [PollFd::new(&self.wakeups, PollFlags::IN)], Some(&limit)).unwrap() == 0 {
            return false;
        }
        for key in self.wakeups.drain() {
            self.poll(key);
        }
        true
    }

    /// Runs until no wakeup comes for a while.
    fn run_until_idle(&mut self) {
        let limit = Instant::now() + TIMEOUT;
        while self.turn(Duration::from_millis(100)) {
            assert!(Instant::now() < limit, "wakeups do not end");
        }
    }

    /// Runs until `call` completes. Panics after `limit`.
    #[track_caller]
    fn within<T>(&mut self, limit: Duration, call: Call<T>) -> T {
        let end = Instant::now() + limit;
        loop {
            if let Some(result) = call.result.take() {
                return result;
            }
            let left = end.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "a call did not end within {limit:?}");
            self.turn(left);
        }
    }

    #[track_caller]
    fn end<T>(&mut self, call: Call<T>) -> T {
        self.within(TIMEOUT, call)
    }

    /// Connects two endpoints of this loop.
    fn pair(&mut self, row: &'static Row) -> (Connection, Connection) {
        self.pair_with_wait(row, Wait::default())
    }

    fn pair_with_wait(&mut self, row: &'static Row, wait: Wait) -> (Connection, Connection) {
        let [near, far] = [(); 2].map(|()| row.builder().wait(wait).build().unwrap());
        let listening = self.start(async move { far.listen(&row.address()).await.unwrap() });
        let listener = self.end(listening);
        let address = listener.address().clone();
        let accepting = self.start(async move { listener.accept().await.unwrap() });
        let connecting = self.start(async move { near.connect(&address).await.unwrap() });
        (self.end(connecting), self.end(accepting))
    }

    fn recv(&mut self, from: &Connection) -> Call<towline::Result<Message>> {
        let from = from.clone();
        self.start(async move { from.recv().await })
    }

    fn deliver(&mut self, to: &Connection, message: Message) -> Call<towline::Result<()>> {
        let to = to.clone();
        self.start(async move { to.deliver(message).await })
    }

    /// Sends a message from one end to the other.
    fn assert_carries(&mut self, from: &Connection, to: &Connection, at: usize, lengths: &[usize]) {
        let sending = self.deliver(from, message(at, lengths));
        let taking = self.recv(to);
        self.end(sending).unwrap();
        assert_message(&self.end(taking).unwrap(), at, lengths);
    }

    fn assert_receives_next(&mut self, from: &Connection, taking: Call<towline::Result<Message>>, at: usize) {
        let sending = self.deliver(from, message(at, &[700]));
        assert_message(&self.end(taking).unwrap(), at, &[700]);
        self.end(sending).unwrap();
    }

    /// Runs for a moment, without polling one call even if it is woken.
    fn run_without(&mut self, key: u64) {
        let held = self.calls.remove(&key);
        for _ in 0..20 {
            self.turn(Duration::from_millis(1));
        }
        self.calls.extend(held.map(|call| (key, call)));
    }
}

/// Runs `work` with an event loop on a thread of its own.
async fn with_event_loop<T: Send + 'static>(work: impl FnOnce(&mut EventLoop) -> T + Send + 'static) -> T {
    in_time("the loop", without_tokio(|| work(&mut EventLoop::new()))).await
}

async fn one_thread_with_one_descriptor_serves_both_ends(row: &'static Row) {
    with_event_loop(move |events| {
        for wait in [Wait::Sleep, Wait::Adaptive, Wait::Spin] {
            let (a, b) = events.pair_with_wait(row, wait);
            for (at, len) in LENS.into_iter().enumerate() {
                events.assert_carries(&a, &b, at, &[len, 10]);
                events.assert_carries(&b, &a, at, &[10, len]);
            }
            let closing = events.start(async move { a.close().await });
            let end = events.recv(&b);
            events.end(closing).unwrap();
            assert_eq!(events.end(end).unwrap_err().kind(), ErrorKind::Closed);
        }
        assert!(events.calls.is_empty());
    })
    .await;
}

async fn many_operations_are_under_way_at_once(row: &'static Row) {
    const COUNT: usize = 60;
    with_event_loop(move |events| {
        let (a, b) = events.pair(row);
        let ends = [(&a, &b), (&b, &a)];
        // Each message has a call that sends it, one that receives it, and one that awaits its receipt.
        let taking: Vec<_> = (0..2 * COUNT).map(|at| events.recv(ends[at % 2].1)).collect();
        let sending: Vec<_> = (0..2 * COUNT)
            .map(|at| {
                let from = ends[at % 2].0.clone();
                let message = message(at, &[LENS[at / 2 % LENS.len()]]);
                events.start(async move { from.send(message).await.unwrap() })
            })
            .collect();
        let receipts: Vec<_> = sending
            .into_iter()
            .map(|call| {
                let receipt = events.end(call);
                events.start(receipt.delivered())
            })
            .collect();
        let mut taken = [BTreeSet::new(), BTreeSet::new()];
        for (at, call) in taking.into_iter().enumerate() {
            let message = events.end(call).unwrap();
            let number = number(message.header());
            assert_message(&message, number, &[LENS[number / 2 % LENS.len()]]);
            assert_eq!(number % 2, at % 2, "sent by the other end");
            assert!(taken[at % 2].insert(number), "twice: {number}");
        }
        for call in receipts {
            events.end(call).unwrap();
        }
        assert!(taken.iter().all(|taken| taken.len() == COUNT));
        assert!(events.calls.is_empty());
    })
    .await;
}

async fn gets_and_puts_end_in_the_loop(row: &'static Row) {
    const LEN: usize = 1 << 20;
    const PARTS: usize = 8;
    const PART: usize = LEN / PARTS;
    const LIFETIME: Duration = Duration::from_secs(60);
    with_event_loop(move |events| {
        let (a, b) = events.pair(row);
        let readable = b.expose(bytes(1, LEN).into(), LIFETIME).unwrap();
        let writable = b.expose_mut(BufferMut::zeroed(LEN), LIFETIME).unwrap();
        let (from, to) = (readable.remote(), writable.remote());
        let getting: Vec<_> = (0..PARTS)
            .map(|part| {
                let a = a.clone();
                let into = BufferMut::with_capacity(PART);
                events.start(async move { a.get(&from, (part * PART) as u64, into).await })
            })
            .collect();
        let putting: Vec<_> = (0..PARTS)
            .map(|part| {
                let a = a.clone();
                let piece = bytes(part + 2, PART).into();
                events.start(async move { a.put(&to, (part * PART) as u64, piece).await })
            })
            .collect();
        for (part, call) in getting.into_iter().enumerate() {
            let got = events.end(call).unwrap();
            assert_eq!(got.len(), PART);
            assert_bytes(got.as_slice().unwrap(), 1, part * PART);
        }
        for call in putting {
            events.end(call).unwrap();
        }
        let revoking = events.start(async move { writable.revoke().await });
        let written = events.end(revoking);
        for (part, piece) in written.as_slice().unwrap().chunks(PART).enumerate() {
            assert_bytes(piece, part + 2, 0);
        }
    })
    .await;
}

async fn an_idle_loop_takes_no_processor_time(row: &'static Row) {
    const IDLE: Duration = Duration::from_secs(1);
    with_event_loop(move |events| {
        let (a, b) = events.pair(row);
        events.assert_carries(&a, &b, 0, &[700]);
        let waiting = [&a, &b, &b].map(|end| events.recv(end));
        events.run_until_idle();
        let (before, end) = (usage::processor_time(), Instant::now() + IDLE);
        let mut turns = 0;
        while events.turn(end.saturating_duration_since(Instant::now())) {
            turns += 1;
        }
        let spent = usage::processor_time() - before;
        assert!(spent < IDLE / 5, "{spent:?} of processor time in {IDLE:?} of waiting");
        assert!(turns < 20, "woken {turns} times without an event");
        // Assert that they were waiting.
        for (at, from) in [&b, &a, &a].into_iter().enumerate() {
            let sending = events.deliver(from, message(at, &[10]));
            events.end(sending).unwrap();
        }
        for (at, call) in waiting.into_iter().enumerate() {
            assert_message(&events.end(call).unwrap(), at, &[10]);
        }
    })
    .await;
}

async fn cancelled_calls_lose_nothing(row: &'static Row) {
    with_event_loop(move |events| {
        let (a, b) = events.pair(row);
        // The first call polls the link for the others, until it is cancelled.
        for at in 0..4 {
            let waiting = [(); 3].map(|()| events.recv(&b));
            events.run_until_idle();
            let [first, second, third] = waiting;
            assert!(events.cancel(first).is_none());
            if at % 2 == 1 {
                // The second is cancelled too, before it is polled again.
                assert!(events.cancel(second).is_none());
            } else {
                events.assert_receives_next(&a, second, 10 * at);
            }
            events.assert_receives_next(&a, third, 10 * at + 1);
        }
        // A call is cancelled after its message arrived: the next call gets the message.
        for len in LENS {
            let taking = events.recv(&b);
            events.run_until_idle();
            let sending = events.deliver(&a, message(len, &[len]));
            events.run_without(taking.key);
            let taken = events.cancel(taking);
            let taken = match taken {
                Some(taken) => taken,
                None => {
                    let again = events.recv(&b);
                    events.end(again)
                }
            };
            assert_message(&taken.unwrap(), len, &[len]);
            events.end(sending).unwrap();
        }
        // A cancelled send is still sent.
        for len in LENS {
            let sending = events.deliver(&a, message(len + 1, &[len]));
            drop(events.cancel(sending));
            let taking = events.recv(&b);
            assert_message(&events.end(taking).unwrap(), len + 1, &[len]);
        }
        events.assert_carries(&b, &a, 7, &LENS);
        assert!(events.calls.is_empty());
    })
    .await;
}

async fn the_end_of_a_connection_wakes_the_loop(row: &'static Row) {
    with_event_loop(move |events| {
        for (aborts, kind) in [(false, ErrorKind::Closed), (true, ErrorKind::PeerLost)] {
            let (a, b) = events.pair(row);
            events.assert_carries(&a, &b, 0, &[10]);
            let taking = [(); 2].map(|()| events.recv(&b));
            let accepting = events.start({
                let b = b.clone();
                async move { b.incoming().await.map(drop) }
            });
            events.run_until_idle();
            let ending =
                events.start(async move { if aborts { a.abort() } else { a.close().await.unwrap() } });
            for call in taking {
                assert_eq!(events.end(call).unwrap_err().kind(), kind);
            }
            assert_eq!(events.end(accepting).unwrap_err().kind(), kind);
            events.end(ending);
        }
        assert!(events.calls.is_empty());
    })
    .await;
}

async fn a_killed_peer_wakes_the_loop(row: &'static Row) {
    let (peer, address) = Peer::serving(row).await;
    with_event_loop(move |events| {
        let endpoint = row.builder().heartbeat(HEARTBEAT).build().unwrap();
        let connecting = events.start(async move { endpoint.connect(&address).await.unwrap() });
        let connection = events.end(connecting);
        for len in LENS {
            let asking = events.deliver(&connection, Message::new(ECHO).with_frame(bytes(len, len)));
            let taking = events.recv(&connection);
            events.end(asking).unwrap();
            let (header, frames) = events.end(taking).unwrap().into_parts();
            assert_eq!(header[..], *ECHO.as_bytes());
            assert_bytes(&frames[0].to_vec().unwrap(), len, 0);
        }

        let getting = row.caps.contains(Caps::ONE_SIDED).then(|| {
            let asking = events.deliver(&connection, Message::new(EXPOSE));
            let answer = events.recv(&connection);
            events.end(asking).unwrap();
            let region = RemoteRegion::from_bytes(events.end(answer).unwrap().header()).unwrap();
            let connection = connection.clone();
            events.start(async move {
                let mut into = BufferMut::with_capacity(EXPOSED_LEN);
                loop {
                    into = connection.get(&region, 0, into).await?;
                    into.clear();
                }
            })
        });
        let taking = events.recv(&connection);
        let last = events.deliver(&connection, Message::new(IGNORE));
        events.end(last).unwrap();
        let mut stuck = vec![];
        for len in [100, 5 << 20] {
            stuck.push(events.deliver(&connection, message(1, &[len])));
        }
        for _ in 0..20 {
            events.turn(Duration::from_millis(5));
        }

        peer.signal(Signal::KILL);
        let limit = Duration::from_secs(1);
        assert_eq!(events.within(limit, taking).unwrap_err().kind(), ErrorKind::PeerLost);
        for call in stuck {
            assert_eq!(events.within(limit, call).unwrap_err().kind(), ErrorKind::PeerLost);
        }
        if let Some(call) = getting {
            let ended: Result<(), towline::Failed<BufferMut>> = events.within(limit, call);
            let failed = ended.unwrap_err();
            assert_eq!(failed.error.kind(), ErrorKind::PeerLost);
            assert_eq!(failed.returned.capacity(), EXPOSED_LEN, "its memory returns");
        }
        assert!(events.calls.is_empty());
    })
    .await;
}

async fn a_forked_child_takes_no_wakeup_of_its_parent(row: &'static Row) {
    with_event_loop(move |events| {
        let (a, b) = events.pair(row);
        let (wakeups, taking) = (events.wakeups.clone(), events.recv(&b));
        let own = wakeups.waker(0);
        own.wake_by_ref();
        let mut inherited = Some((own, std::mem::take(&mut events.calls)));
        let child = Forked::new(|| {
            assert_eq!(wakeups.drain(), []);
            let (own, calls) = inherited.take().unwrap();
            own.wake_by_ref();
            calls.values().for_each(|(waker, _)| waker.wake_by_ref());
            drop((own, calls));
            assert_eq!(wakeups.drain(), []);
            // Wakeups that the child makes work.
            let wakeups = Wakeups::new().unwrap();
            wakeups.waker(7).wake();
            assert_eq!(wakeups.drain(), [7]);
        });
        child.assert_done(TIMEOUT);
        let (_own, calls) = inherited.take().unwrap();
        events.calls = calls;
        let ready = poll(&mut [PollFd::new(&wakeups, PollFlags::IN)], Some(&Timespec::default()));
        assert_eq!(ready, Ok(1), "the descriptor is still readable");
        let woken = wakeups.drain();
        assert!(woken.contains(&0));
        // The other calls are woken only once, too.
        woken.into_iter().for_each(|key| events.poll(key));
        events.assert_receives_next(&a, taking, 5);
    })
    .await;
}
