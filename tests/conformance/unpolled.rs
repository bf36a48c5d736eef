//! A future that was begun and is polled no more, as `select!` loops leave them: nobody else waits for it.
//!
//! It may have been left at any moment: while it was spinning, asleep, or woken. Whoever else uses its connection, in its task
//! or elsewhere, gets what it wants within a millisecond, where the driver's look at all links would take 25 to 50.

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

/// Calls of which a quarter is as fast as is told, however busy the machine is.
const CALLS: usize = 16;
/// More than a delay that is noticed takes, and less than one that only the driver's look ends.
const DELAY_MAX: Duration = Duration::from_millis(12);

fn recv_of(connection: &Connection) -> Recv {
    let connection = connection.clone();
    Box::pin(async move { connection.recv().await })
}

/// Takes what comes and lets it go, until the connection ends.
fn taking(connection: &Connection) -> tokio::task::JoinHandle<ErrorKind> {
    let connection = connection.clone();
    tokio::spawn(async move {
        loop {
            if let Err(end) = connection.recv().await {
                return end.kind();
            }
        }
    })
}

/// What a quarter of `CALLS` calls do not take longer than.
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
fn assert_ack_now(took: Duration, alone: Duration, what: &str) {
    // A machine that is busy is so with and without the future.
    let limit = DELAY_MAX + alone * 3;
    assert!(took < limit, "{took:?} a call {what}, {alone:?} without");
}

/// What was left is taken up again, and gets what comes.
async fn assert_well(recv: Recv, pair: &Pair) {
    let both = async { tokio::join!(recv, pair.b.send(message(7, &[30]))) };
    let (taken, sent) = in_time("what was left", both).await;
    sent.unwrap();
    assert_message(&taken.unwrap(), 7, &[30]);
}

async fn a_pinned_recv_delays_no_call_of_its_own_task(row: &'static Row) {
    let pair = row.pair().await;
    let taker = taking(&pair.b);
    let alone = deliveries(&pair.a).await;
    // As in a server that reads, and answers what comes from elsewhere.
    let mut recv = recv_of(&pair.a);
    for pause in [Duration::ZERO, Duration::from_millis(2)] {
        let took = quarter(async || {
            tokio::select! {
                biased;
                _ = &mut recv => panic!("nobody sent anything"),
                () = tokio::time::sleep(pause) => {}
            }
            pair.a.deliver(message(1, &[100])).await.unwrap();
            pair.a.deliver(message(2, &[20_000])).await.unwrap();
        })
        .await;
        assert_ack_now(took, alone, "of the task that left it");
    }
    assert_well(recv, &pair).await;
    in_time("close", pair.a.close()).await.unwrap();
    assert_eq!(in_time("the taker", taker).await.unwrap(), ErrorKind::Closed);
}

async fn a_recv_left_at_any_moment_delays_no_other_task(row: &'static Row) {
    let pair = row.pair().await;
    let _taker = taking(&pair.b);
    let alone = deliveries(&pair.a).await;
    for polls in 1..=6 {
        let mut recv = recv_of(&pair.a);
        assert!(polled(Pin::new(&mut recv), polls).await.is_none(), "nobody sent anything");
        let took = deliveries(&pair.a).await;
        assert_ack_now(took, alone, &format!("beside one that was polled {polls} times"));
        let a = pair.a.clone();
        let elsewhere =
            in_time("a thread without tokio", without_tokio(move || block_on(deliveries_by_hand(&a))));
        assert_ack_now(elsewhere.await, alone, "of a thread without tokio");
        let took = deliveries(&pair.a).await;
        assert_ack_now(took, alone, "afterwards");
        drop(recv);
    }
}

/// The same where there is no timer.
async fn deliveries_by_hand(connection: &Connection) -> Duration {
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
    let _taker = taking(&pair.b);
    let alone = deliveries(&pair.a).await;
    let mut took = Vec::new();
    for _ in 0..CALLS {
        let (mut recv, (leave, left)) = (recv_of(&pair.a), tokio::sync::oneshot::channel());
        // It falls asleep in its task, which then waits for something else; whatever comes wakes that task in vain.
        let task = tokio::spawn(async move {
            tokio::select! {
                biased;
                () = tokio::time::sleep(Duration::from_millis(1)) => {}
                _ = &mut recv => panic!("nobody sent anything"),
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
    assert_ack_now(quarter_of(took), alone, "beside one that sleeps unpolled");
}

async fn a_recv_of_a_stopped_runtime_delays_no_other_task(row: &'static Row) {
    let pair = row.pair().await;
    let _taker = taking(&pair.b);
    let alone = deliveries(&pair.a).await;
    let a = pair.a.clone();
    // Asleep on a reactor that does not turn any more.
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
    assert_ack_now(took, alone, "beside one whose runtime stands still");
    assert_well(recv, &pair).await;
    thread::spawn(move || drop(runtime)).join().unwrap();
}

async fn several_unpolled_recvs_delay_no_other_task(row: &'static Row) {
    let pair = row.pair().await;
    let _taker = taking(&pair.b);
    let alone = deliveries(&pair.a).await;
    let mut left: Vec<_> = (0..4).map(|_| recv_of(&pair.a)).collect();
    for (at, recv) in left.iter_mut().enumerate() {
        // Each wakes nobody; the first of them has the turn, and hands it to the next when it is dropped.
        assert!(recv.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        let took = deliveries(&pair.a).await;
        assert_ack_now(took, alone, &format!("beside {} unpolled", at + 1));
    }
    while !left.is_empty() {
        drop(left.remove(0));
        let both = async { tokio::join!(deliveries(&pair.a), deliveries(&pair.a)) };
        let (one, other) = both.await;
        assert_ack_now(one.min(other), alone, &format!("beside {} unpolled", left.len()));
    }
}

async fn a_reader_that_is_polled_delays_no_other_task(row: &'static Row) {
    let pair = row.pair().await;
    let _taker = taking(&pair.b);
    let alone = deliveries(&pair.a).await;
    let a = pair.a.clone();
    let _reader = tokio::spawn(async move { a.recv().await });
    // It sleeps and wakes beside them, and so at any moment of theirs.
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(1) {
        in_time("a delivery", pair.a.deliver(message(1, &[100]))).await.unwrap();
    }
    assert_ack_now(deliveries(&pair.a).await, alone, "beside a reader");
}

async fn a_large_send_continues_despite_an_unpolled_recv(row: &'static Row) {
    const LEN: usize = 12 << 20;
    let pair = row.pair().await;
    let _taker = taking(&pair.b);
    let large = Message::new("").with_frame(Buffer::from(vec![1; LEN]));
    let alone = quarter(async || pair.a.deliver(large.clone()).await.unwrap()).await;
    let mut recv = recv_of(&pair.a);
    assert!(polled(Pin::new(&mut recv), 2).await.is_none(), "nobody sent anything");
    let took = quarter(async || pair.a.deliver(large.clone()).await.unwrap()).await;
    assert_ack_now(took, alone, "of 12 MiB");
    assert_well(recv, &pair).await;
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
    // The owner has a task that waits, so that it serves at once.
    let _taker = taking(&pair.b);
    let alone = quarter(both).await;
    let mut recv = recv_of(&pair.a);
    assert!(polled(Pin::new(&mut recv), 3).await.is_none(), "nobody sent anything");
    let took = quarter(both).await;
    assert_ack_now(took, alone, "of a get and a put");
    drop(recv);
}
