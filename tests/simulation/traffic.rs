//! Random traffic of the two ends of one connection: send, receive, access regions, drop calls, close.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use towline::{BufferMut, Connection, Destination, Endpoint, ErrorKind, Incoming, Pool};

use crate::flow::Flow;
use crate::regions;
use crate::rng::Rng;
use crate::run::{Run, Scenario, poll_then_drop};

/// More messages than the receiver's window, sent before the receiver receives the first.
const BURST: u64 = 1100;

/// Runs traffic in both directions, and returns after it and the connection have ended.
pub(crate) async fn run(run: &Run, ends: &[(usize, Endpoint); 2], pair: [Connection; 2], rng: &mut Rng) {
    let tasks = Tasks { run: run.clone(), busy: Arc::default() };
    let mut flows = Vec::new();
    for way in 0..2 {
        let (from, to) = (pair[way].clone(), pair[1 - way].clone());
        let count = if rng.one_in(150) { BURST } else { rng.below(12) as u64 };
        let flow = Flow::new(rng.next(), if count == BURST { 10 } else { usize::MAX });
        flows.push(flow.clone());
        let host = ends[way].0;
        tasks.begin(host, send(tasks.clone(), host, from.clone(), flow.clone(), count, fork(rng)));
        let pool = ends[1 - way].1.pool().clone();
        tasks.begin(ends[1 - way].0, take(run.clone(), to.clone(), flow, count, pool, fork(rng)));
        if rng.one_in(2) {
            tasks.begin(host, regions::access(run.clone(), from, to, fork(rng)));
        }
    }
    if run.scenario == Scenario::Ending {
        let (of, which, mut rng) = (run.clone(), rng.below(2), fork(rng));
        let connection = pair[which].clone();
        let ending = async move {
            of.pause(&mut rng, 60).await;
            match rng.below(3) {
                0 => connection.abort(),
                1 => drop(poll_then_drop(connection.close(), 1 + rng.below(2)).await),
                _ => of.close(&connection).await,
            }
        };
        tasks.begin(ends[which].0, ending);
    }
    while tasks.busy.load(Ordering::Relaxed) > 0 {
        run.simulation.sleep(Duration::from_millis(10)).await;
    }
    for flow in flows {
        let (submitted, sent, acked) = flow.counts();
        let whole = run.scenario != Scenario::NoFaults || (submitted == acked && sent <= acked);
        assert!(whole, "{submitted} messages were submitted, {acked} arrived");
        run.simulation.note(submitted ^ sent << 20 ^ acked << 40);
    }
    // The first end closes or is dropped. The second must detect the end.
    let [first, second] = pair;
    if rng.one_in(2) {
        run.close(&first).await;
    }
    drop(first);
    let error = second.recv().await.expect_err("every message was received, or the connection had ended");
    assert!(run.scenario != Scenario::NoFaults || error.kind() == ErrorKind::Closed, "{error}");
}

/// The tasks of one connection.
#[derive(Clone)]
struct Tasks {
    run: Run,
    busy: Arc<AtomicUsize>,
}

impl Tasks {
    fn begin(&self, host: usize, work: impl Future<Output = ()> + Send + 'static) {
        let busy = self.busy.clone();
        busy.fetch_add(1, Ordering::Relaxed);
        self.run.begin(host, async move {
            work.await;
            busy.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

fn fork(rng: &mut Rng) -> Rng {
    Rng::new(rng.next(), 0)
}

/// Sends messages, several at a time. Some calls and some receipts are dropped.
async fn send(tasks: Tasks, host: usize, from: Connection, flow: Flow, count: u64, mut rng: Rng) {
    let run = &tasks.run;
    for _ in 0..count {
        if count < BURST && rng.one_in(4) {
            run.pause(&mut rng, 10).await;
        }
        let (number, message) = flow.next();
        let (of, connection, model, ack_now) = (run.clone(), from.clone(), flow.clone(), rng.one_in(2));
        let forgets = rng.one_in(5);
        let mut sending = Box::pin(async move {
            if ack_now {
                let ack = connection.deliver(message).await.map_err(|error| error.kind());
                return record_ack(&of, &model, number, ack);
            }
            match connection.send(message).await {
                Ok(receipt) => {
                    model.record_sent();
                    if forgets {
                        return true;
                    }
                    record_ack(&of, &model, number, receipt.delivered().await.map_err(|error| error.kind()))
                }
                Err(failed) => {
                    model.check_returned(number, &failed.returned);
                    of.may_fail("send", failed.error.kind());
                    false
                }
            }
        });
        // The first poll submits the message in order. It is sent even if the call is dropped after that.
        let first = std::future::poll_fn(|cx| Poll::Ready(sending.as_mut().poll(cx))).await;
        let waits_from = if count < BURST { 0 } else { 1 };
        let lives = match (first, waits_from + rng.below(3 - waits_from)) {
            (Poll::Ready(lives), _) => lives,
            (Poll::Pending, 0) => sending.await,
            (Poll::Pending, 1) => {
                drop(sending);
                true
            }
            (Poll::Pending, _) => {
                tasks.begin(host, async move {
                    sending.await;
                });
                true
            }
        };
        if !lives {
            return;
        }
    }
}

/// Checks an acknowledgement. Returns false if the connection has ended.
fn record_ack(run: &Run, flow: &Flow, number: u64, ack: Result<(), ErrorKind>) -> bool {
    let lives = flow.record_ack(number, ack);
    if let (false, Err(kind)) = (lives, ack) {
        run.may_fail("a receipt", kind);
    }
    lives
}

/// Receives every message, each by a random method. Some calls are dropped.
async fn take(run: Run, to: Connection, flow: Flow, count: u64, pool: Pool, mut rng: Rng) {
    if count == BURST {
        run.simulation.sleep(Duration::from_millis(200)).await;
    }
    while flow.counts().2 < count {
        if rng.one_in(4) {
            run.pause(&mut rng, 10).await;
        }
        let polls = rng.choose(&[1, 2, 3, usize::MAX]);
        let ended = match rng.below(4) {
            0 => poll_up_to(to.recv(), polls).await.map(|taken| {
                taken.map(|taken| flow.record_received(&taken, &[])).map_err(|error| error.kind())
            }),
            1 => {
                let capacity = rng.choose(&[0, 5000, 50_000]);
                let buffer = BufferMut::with_capacity(capacity);
                poll_up_to(to.recv_into(buffer), polls).await.map(|taken| match taken {
                    Ok(taken) => {
                        assert!(taken.payload_len() <= capacity as u64);
                        flow.record_received(&taken, &[]);
                        Ok(())
                    }
                    Err(failed) => {
                        assert_eq!(failed.returned.capacity(), capacity, "the buffer is returned");
                        match failed.error.kind() {
                            ErrorKind::TooLarge => Ok(()),
                            kind => Err(kind),
                        }
                    }
                })
            }
            _ => match poll_up_to(to.incoming(), polls).await {
                Some(Ok(incoming)) => Some(decide(&run, incoming, &flow, &pool, &mut rng).await),
                Some(Err(error)) => Some(Err(error.kind())),
                None => None,
            },
        };
        if let Some(Err(kind)) = ended {
            return run.may_fail("a receive", kind);
        }
    }
}

/// Awaits `future`, or polls it at most `polls` times.
async fn poll_up_to<T>(future: impl Future<Output = T>, polls: usize) -> Option<T> {
    if polls == usize::MAX { Some(future.await) } else { poll_then_drop(future, polls).await }
}

async fn decide(
    run: &Run,
    incoming: Incoming,
    flow: &Flow,
    pool: &Pool,
    rng: &mut Rng,
) -> Result<(), ErrorKind> {
    flow.check_next(incoming.header());
    if rng.one_in(3) {
        run.pause(rng, 5).await;
    }
    match rng.below(5) {
        0 => {
            flow.record_rejected();
            incoming.reject();
        }
        1 => {
            flow.record_rejected();
            let mut destinations: Vec<_> = incoming.frames().iter().map(|_| Destination::Discard).collect();
            destinations.push(Destination::Discard);
            let failed = incoming.accept_into(destinations).await.expect_err("one destination too many");
            assert_eq!(failed.error.kind(), ErrorKind::Invalid);
        }
        2 => flow.record_received(&incoming.accept().await.map_err(|error| error.kind())?, &[]),
        _ => {
            let discarded: Vec<_> = incoming.frames().iter().map(|_| rng.one_in(4)).collect();
            let destination =
                |(frame, discarded): (&towline::FrameInfo, &bool)| match (discarded, rng.below(3)) {
                    (true, _) => Destination::Discard,
                    (false, 0) => Destination::Pool(pool.clone()),
                    (false, 1) => Destination::Place(towline::Place::Host),
                    (false, _) => Destination::Buffer(BufferMut::with_capacity(frame.len)),
                };
            let destinations = incoming.frames().iter().zip(&discarded).map(destination).collect();
            let taken = incoming.accept_into(destinations).await.map_err(|failed| failed.error.kind())?;
            flow.record_received(&taken, &discarded);
        }
    }
    Ok(())
}
