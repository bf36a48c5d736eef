//! An event loop that polls no futures: it starts operations under keys, and a completion queue returns their
//! results.

use std::future::poll_fn;
use std::task::Poll;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use towline::{CompletionQueue, Connection, Endpoint, ErrorKind, Listener, Message, Prefetch, Result};

use crate::backends::Row;
use crate::callers::without_tokio;
use crate::content::{assert_message, message};
use crate::forked::Forked;
use crate::polls::{TIMEOUT, in_time};
use crate::suite::cases;

cases! {
    ANY:
        one_queue_serves_both_ends,
        one_queue_serves_an_endpoint_that_connects_to_itself,
        results_come_in_the_order_of_messages,
        a_cancelled_operation_returns_no_result,
        an_operation_cancelled_while_it_ends_returns_no_result,
        the_end_of_a_connection_ends_its_operations,
        a_forked_child_neither_takes_nor_cancels_operations;
}

const LENS: [usize; 5] = [0, 700, 20_000, 300_000, 2 << 20];

enum Outcome {
    Nothing,
    Listening(Listener),
    Connected(Connection),
    Received(Message),
}

/// An event loop, and the endpoints of both ends.
struct EventLoop {
    queue: CompletionQueue<Outcome>,
    near: Endpoint,
    far: Endpoint,
    last: u64,
    /// Results that nobody has asked for yet.
    results: Vec<(u64, Result<Outcome>)>,
}

impl EventLoop {
    fn new(row: &'static Row) -> Self {
        let [near, far] = [(); 2].map(|()| row.builder().build().unwrap());
        Self { queue: CompletionQueue::new().unwrap(), near, far, last: 0, results: Vec::new() }
    }

    fn start(&mut self, operation: impl Future<Output = Result<Outcome>> + Send + 'static) -> u64 {
        self.last += 1;
        let result = self.queue.start(&self.near, self.last, operation);
        self.results.extend(result.map(|result| (self.last, result)));
        self.last
    }

    fn watch(&mut self, operation: impl Future<Output = Result<Outcome>> + Send + 'static) -> u64 {
        self.last += 1;
        let result = self.queue.watch(self.last, operation);
        self.results.extend(result.map(|result| (self.last, result)));
        self.last
    }

    fn send(&mut self, to: &Connection, message: Message) -> u64 {
        let to = to.clone();
        self.start(async move { to.send(message).await.map(|_| Outcome::Nothing).map_err(Into::into) })
    }

    fn recv(&mut self, from: &Connection) -> u64 {
        let from = from.clone();
        self.watch(async move { from.recv().await.map(Outcome::Received) })
    }

    /// Sleeps until there are results, at most `limit`, and takes them.
    fn turn(&mut self, limit: Duration) {
        let limit = Timespec::try_from(limit).unwrap();
        if poll(&mut [PollFd::new(&self.queue, PollFlags::IN)], Some(&limit)).unwrap() > 0 {
            self.results.extend(self.queue.drain());
        }
    }

    #[track_caller]
    fn end(&mut self, key: u64) -> Result<Outcome> {
        let end = Instant::now() + TIMEOUT;
        loop {
            if let Some(at) = self.results.iter().position(|(ended, _)| *ended == key) {
                return self.results.remove(at).1;
            }
            let left = end.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "operation {key} did not end");
            self.turn(left);
        }
    }

    #[track_caller]
    fn received(&mut self, key: u64) -> Message {
        match self.end(key) {
            Ok(Outcome::Received(message)) => message,
            Ok(_) => panic!("operation {key} received no message"),
            Err(error) => panic!("operation {key} failed: {error}"),
        }
    }

    /// Connects two ends, which prefetch.
    fn pair(&mut self, row: &'static Row) -> [Connection; 2] {
        let (far, address) = (self.far.clone(), row.address());
        let listening = self.start(async move { far.listen(&address).await.map(Outcome::Listening) });
        let Ok(Outcome::Listening(listener)) = self.end(listening) else { panic!("it listens") };
        let (near, address) = (self.near.clone(), listener.address().clone());
        let accepting = self.watch(async move { listener.accept().await.map(Outcome::Connected) });
        let connecting = self.watch(async move { near.connect(&address).await.map(Outcome::Connected) });
        [connecting, accepting].map(|key| {
            let Ok(Outcome::Connected(connection)) = self.end(key) else { panic!("it connects") };
            connection.prefetch(Prefetch::default().writable(true)).unwrap();
            connection
        })
    }

    fn assert_idle(&mut self) {
        self.turn(Duration::ZERO);
        assert!(self.queue.is_empty(), "{} operations are left", self.queue.len());
        assert!(self.results.is_empty(), "{} results are left", self.results.len());
    }
}

/// Runs `work` with an event loop on a thread without an async runtime.
async fn with_event_loop(row: &'static Row, work: impl FnOnce(&mut EventLoop) + Send + 'static) {
    in_time("the loop", without_tokio(move || work(&mut EventLoop::new(row)))).await;
}

async fn one_queue_serves_both_ends(row: &'static Row) {
    with_event_loop(row, move |events| serve_both_ends(row, events)).await;
}

/// Both ends are polled by one driver.
async fn one_queue_serves_an_endpoint_that_connects_to_itself(row: &'static Row) {
    with_event_loop(row, move |events| {
        events.far = events.near.clone();
        serve_both_ends(row, events);
    })
    .await;
}

fn serve_both_ends(row: &'static Row, events: &mut EventLoop) {
    let [a, b] = events.pair(row);
    for (at, len) in LENS.into_iter().enumerate() {
        for (from, to) in [(&a, &b), (&b, &a)] {
            let taking = events.recv(to);
            let sending = events.send(from, message(at, &[len, 10]));
            assert_message(&events.received(taking), at, &[len, 10]);
            events.end(sending).unwrap();
        }
    }
    let closing = events.start(async move { a.close().await.map(|()| Outcome::Nothing) });
    let taking = events.recv(&b);
    assert_eq!(events.end(taking).err().unwrap().kind(), ErrorKind::Closed);
    events.end(closing).unwrap();
    events.assert_idle();
}

async fn results_come_in_the_order_of_messages(row: &'static Row) {
    const COUNT: usize = 60;
    with_event_loop(row, move |events| {
        let [a, b] = events.pair(row);
        let len = |at: usize| LENS[at % LENS.len()];
        let sending: Vec<_> = (0..COUNT).map(|at| events.send(&a, message(at, &[len(at)]))).collect();
        for at in 0..COUNT {
            let taking = events.recv(&b);
            assert_message(&events.received(taking), at, &[len(at)]);
        }
        for key in sending {
            events.end(key).unwrap();
        }
        events.assert_idle();
    })
    .await;
}

async fn a_cancelled_operation_returns_no_result(row: &'static Row) {
    with_event_loop(row, move |events| {
        let [a, b] = events.pair(row);
        for round in 0..20 {
            let [first, second] = [(); 2].map(|()| events.recv(&b));
            events.queue.cancel(first);
            let sending = events.send(&a, message(round, &[700]));
            assert_message(&events.received(second), round, &[700]);
            events.end(sending).unwrap();
            // A cancelled send is still sent, whether or not it has ended.
            let sending = events.send(&a, message(round, &[2 << 20]));
            events.queue.cancel(sending);
            events.results.retain(|(key, _)| *key != sending);
            let taking = events.recv(&b);
            assert_message(&events.received(taking), round, &[2 << 20]);
        }
        // An operation that was woken already.
        let taking = events.recv(&b);
        let sending = events.send(&a, message(7, &[10]));
        poll(&mut [PollFd::new(&events.queue, PollFlags::IN)], None).unwrap();
        events.queue.cancel(taking);
        let again = events.recv(&b);
        assert_message(&events.received(again), 7, &[10]);
        events.end(sending).unwrap();
        events.assert_idle();
    })
    .await;
}

async fn an_operation_cancelled_while_it_ends_returns_no_result(row: &'static Row) {
    with_event_loop(row, move |events| {
        let (queue, key) = (events.queue.clone(), events.last + 1);
        events.start(in_the_driver(move || queue.cancel(key)));
        // The driver polls it after the first.
        let next = events.start(in_the_driver(|| ()));
        events.end(next).unwrap();
        events.assert_idle();
    })
    .await;
}

/// Ends once the driver polls it, after `work`.
async fn in_the_driver(work: impl FnOnce()) -> Result<Outcome> {
    let mut polled = false;
    poll_fn(|_| if std::mem::replace(&mut polled, true) { Poll::Ready(()) } else { Poll::Pending }).await;
    work();
    Ok(Outcome::Nothing)
}

async fn the_end_of_a_connection_ends_its_operations(row: &'static Row) {
    with_event_loop(row, move |events| {
        let [a, b] = events.pair(row);
        let taking = [&a, &b, &b].map(|end| events.recv(end));
        let watching = {
            let b = b.clone();
            events.watch(async move { Err(b.closed().await) })
        };
        a.abort();
        for key in taking.into_iter().chain([watching]) {
            assert!(events.end(key).is_err());
        }
        let late = events.send(&b, message(0, &[10]));
        assert!(events.end(late).is_err());
        events.assert_idle();
    })
    .await;
}

async fn a_forked_child_neither_takes_nor_cancels_operations(row: &'static Row) {
    with_event_loop(row, move |events| {
        let [a, b] = events.pair(row);
        let taking = events.recv(&b);
        let sending = events.send(&a, message(3, &[700]));
        poll(&mut [PollFd::new(&events.queue, PollFlags::IN)], None).unwrap();
        let (queue, near) = (events.queue.clone(), events.near.clone());
        let child = Forked::new(|| {
            assert!(queue.drain().is_empty());
            queue.cancel(taking);
            let refused = queue.start(&near, 1000, async { Ok(Outcome::Nothing) });
            assert_eq!(refused.unwrap().err().unwrap().kind(), ErrorKind::Unsupported);
        });
        child.assert_done(TIMEOUT);
        assert_message(&events.received(taking), 3, &[700]);
        events.end(sending).unwrap();
        events.assert_idle();
    })
    .await;
}
