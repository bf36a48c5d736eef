//! A future that was polled and then left, as in `select!` loops, delays no other call.
//!
//! It may be left at any moment: while it spins, sleeps, or was woken. Other calls on its connection, in its
//! task or another, complete within a millisecond. The driver's sweep of all links would take 25 to 50 ms.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Waker};
use std::thread;
use std::time::{Duration, Instant};

use towline::{Buffer, BufferMut, Connection, ErrorKind, Message, Region, RemoteRegion};

use crate::backends::{Pair, Row};
use crate::callers::without_tokio;
use crate::content::{assert_message, message};
use crate::polls::{block_on, in_time, polled};
use crate::suite::cases;

cases! {
    ANY:
        #[core] a_pinned_recv_delays_no_call_of_its_own_task,
        #[core] a_recv_left_at_any_moment_delays_no_other_task,
        #[core] a_recv_that_was_woken_and_is_not_polled_delays_no_other_task,
        #[core] a_recv_of_a_stopped_runtime_delays_no_other_task,
        #[core] several_unpolled_recvs_delay_no_other_task,
        #[core] a_reader_that_is_polled_delays_no_other_task,
        #[core] a_large_send_continues_despite_an_unpolled_recv;
    ONE_SIDED:
        #[core] a_pinned_recv_delays_no_get_or_put;
}

type Recv = Pin<Box<dyn Future<Output = towline::Result<Message>> + Send>>;

/// Calls whose quarter counts, so that a busy machine does not matter.
const CALLS: usize = 16;
/// Longer than a scheduling delay, and shorter than a wait for the driver's sweep.
const DELAY_MAX: Duration = Duration::from_millis(12);

fn recv_of(connection: &Connection) -> Recv {
    let connection = connection.clone();
    Box::pin(async move { connection.recv().await })
}

/// Receives and drops messages until the connection ends.
fn receive_all(connection: &Connection) -> tokio::task::JoinHandle<ErrorKind> {
    let connection = connection.clone();
    tokio::spawn(async move {
        loop {
            if let Err(end) = connection.recv().await {
                return end.kind();
            }
        }
    })
}

/// Returns the time that a quarter of `CALLS` calls do not exceed.
async fn quarter(mut call: impl AsyncFnMut()) -> Duration {
    let mut took = Vec::new();
    for _ in 0..CALLS {
        let begin = Instant::now();
        in_time("a call", call()).await;
        took.push(begin.elapsed());
    }
    quarter_of(took)
}

fn quarter_of(mut took: Vec<Duration>) -> Duration {
    took.sort_unstable();
    took[CALLS / 4]
}

async fn deliveries(connection: &Connection) -> Duration {
    quarter(async || connection.deliver(message(1, &[100])).await.unwrap()).await
}

#[track_caller]
fn assert_fast(took: Duration, alone: Duration, what: &str) {
    // A busy machine is as busy without the future.
    let limit = DELAY_MAX + alone * 3;
    assert!(took < limit, "{took:?} a call {what}, {alone:?} without");
}

/// Polls the future again: it gets the next message.
async fn assert_receives(recv: Recv, pair: &Pair) {
    let both = async { tokio::join!(recv, pair.b.send(message(7, &[30]))) };
    let (taken, sent) = in_time("the future that was left", both).await;
    sent.unwrap();
    assert_message(&taken.unwrap(), 7, &[30]);
}

async fn a_pinned_recv_delays_no_call_of_its_own_task(row: &'static Row) {
    let pair = row.pair().await;
    let receiver = receive_all(&pair.b);
    let alone = deliveries(&pair.a).await;
    // As in a server that reads a connection, and sends answers from elsewhere.
    let mut recv = recv_of(&pair.a);
    for pause in [Duration::ZERO, Duration::from_millis(2)] {
        let took = quarter(async || {
            tokio::select! {
                biased;
                _ = &mut recv => panic!("no message was sent"),
                () = tokio::time::sleep(pause) => {}
            }
            pair.a.deliver(message(1, &[100])).await.unwrap();
            pair.a.deliver(message(2, &[20_000])).await.unwrap();
        })
        .await;
        assert_fast(took, alone, "of the task that left it");
    }
    assert_receives(recv, &pair).await;
    in_time("close", pair.a.close()).await.unwrap();
    assert_eq!(in_time("the receiver", receiver).await.unwrap(), ErrorKind::Closed);
}

async fn a_recv_left_at_any_moment_delays_no_other_task(row: &'static Row) {
    let pair = row.pair().await;
    let _taker = receive_all(&pair.b);
    let alone = deliveries(&pair.a).await;
    for polls in 1..=6 {
        let mut recv = recv_of(&pair.a);
        assert!(polled(Pin::new(&mut recv), polls).await.is_none(), "no message was sent");
        let took = deliveries(&pair.a).await;
        assert_fast(took, alone, &format!("with one polled {polls} times"));
        let a = pair.a.clone();
        let elsewhere =
            in_time("a thread without tokio", without_tokio(move || block_on(deliveries_without_timer(&a))));
        assert_fast(elsewhere.await, alone, "of a thread without tokio");
        let took = deliveries(&pair.a).await;
        assert_fast(took, alone, "afterwards");
        drop(recv);
    }
}

/// Measures deliveries without a timer.
async fn deliveries_without_timer(connection: &Connection) -> Duration {
    let mut took = Vec::new();
    for _ in 0..CALLS {
        let begin = Instant::now();
        connection.deliver(message(1, &[100])).await.unwrap();
        took.push(begin.elapsed());
    }
    quarter_of(took)
}

async fn a_recv_that_was_woken_and_is_not_polled_delays_no_other_task(row: &'static Row) {
    let pair = row.pair().await;
    let _taker = receive_all(&pair.b);
    let alone = deliveries(&pair.a).await;
    let mut took = Vec::new();
    for _ in 0..CALLS {
        let (mut recv, (leave, left)) = (recv_of(&pair.a), tokio::sync::oneshot::channel());
        // It sleeps in its task, which then waits for something else: its wakeups have no effect.
        let task = tokio::spawn(async move {
            tokio::select! {
                biased;
                () = tokio::time::sleep(Duration::from_millis(1)) => {}
                _ = &mut recv => panic!("no message was sent"),
            }
            left.await.unwrap();
            drop(recv);
        });
        tokio::time::sleep(Duration::from_millis(5)).await;
        let begin = Instant::now();
        in_time("a delivery", pair.a.deliver(message(1, &[100]))).await.unwrap();
        took.push(begin.elapsed());
        leave.send(()).unwrap();
        in_time("the task", task).await.unwrap();
    }
    assert_fast(quarter_of(took), alone, "with one asleep and unpolled");
}

async fn a_recv_of_a_stopped_runtime_delays_no_other_task(row: &'static Row) {
    let pair = row.pair().await;
    let _taker = receive_all(&pair.b);
    let alone = deliveries(&pair.a).await;
    let a = pair.a.clone();
    // It sleeps on a reactor that no thread drives any more.
    let (runtime, recv) = without_tokio(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mut recv = recv_of(&a);
        runtime.block_on(async {
            assert!(tokio::time::timeout(Duration::from_millis(5), &mut recv).await.is_err());
        });
        (runtime, recv)
    })
    .await;
    let took = deliveries(&pair.a).await;
    assert_fast(took, alone, "with one of a stopped runtime");
    assert_receives(recv, &pair).await;
    thread::spawn(move || drop(runtime)).join().unwrap();
}

async fn several_unpolled_recvs_delay_no_other_task(row: &'static Row) {
    let pair = row.pair().await;
    let _taker = receive_all(&pair.b);
    let alone = deliveries(&pair.a).await;
    let mut left: Vec<_> = (0..4).map(|_| recv_of(&pair.a)).collect();
    for (at, recv) in left.iter_mut().enumerate() {
        // No waker is woken. The first holds the poll lock, and passes it on when it is dropped.
        assert!(recv.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        let took = deliveries(&pair.a).await;
        assert_fast(took, alone, &format!("with {} unpolled", at + 1));
    }
    while !left.is_empty() {
        drop(left.remove(0));
        let both = async { tokio::join!(deliveries(&pair.a), deliveries(&pair.a)) };
        let (one, other) = both.await;
        assert_fast(one.min(other), alone, &format!("with {} unpolled", left.len()));
    }
}

async fn a_reader_that_is_polled_delays_no_other_task(row: &'static Row) {
    let pair = row.pair().await;
    let _taker = receive_all(&pair.b);
    let alone = deliveries(&pair.a).await;
    let a = pair.a.clone();
    let _reader = tokio::spawn(async move { a.recv().await });
    // It sleeps and wakes at any moment of the deliveries.
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(1) {
        in_time("a delivery", pair.a.deliver(message(1, &[100]))).await.unwrap();
    }
    assert_fast(deliveries(&pair.a).await, alone, "with a reader");
}

async fn a_large_send_continues_despite_an_unpolled_recv(row: &'static Row) {
    const LEN: usize = 12 << 20;
    let pair = row.pair().await;
    let _taker = receive_all(&pair.b);
    let large = Message::new("").with_frame(Buffer::from(vec![1; LEN]));
    let alone = quarter(async || pair.a.deliver(large.clone()).await.unwrap()).await;
    let mut recv = recv_of(&pair.a);
    assert!(polled(Pin::new(&mut recv), 2).await.is_none(), "no message was sent");
    let took = quarter(async || pair.a.deliver(large.clone()).await.unwrap()).await;
    assert_fast(took, alone, "of 12 MiB");
    assert_receives(recv, &pair).await;
}

async fn a_pinned_recv_delays_no_get_or_put(row: &'static Row) {
    const LEN: usize = 4096;
    let pair = row.pair().await;
    let lifetime = Duration::from_secs(60);
    let readable: Region<Buffer> = pair.b.expose(Buffer::from(vec![3; LEN]), lifetime).unwrap();
    let writable = pair.b.expose_mut(BufferMut::zeroed(LEN), lifetime).unwrap();
    let (from, to): (RemoteRegion, RemoteRegion) = (readable.remote(), writable.remote());
    let both = async || {
        let got = pair.a.get(&from, 0, BufferMut::with_capacity(LEN)).await.unwrap();
        pair.a.put(&to, 0, got.freeze()).await.unwrap();
    };
    // A task of the owner waits, so that it serves at once.
    let _taker = receive_all(&pair.b);
    let alone = quarter(both).await;
    let mut recv = recv_of(&pair.a);
    assert!(polled(Pin::new(&mut recv), 3).await.is_none(), "no message was sent");
    let took = quarter(both).await;
    assert_fast(took, alone, "of a get and a put");
    drop(recv);
}
