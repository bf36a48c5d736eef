//! A child forked without `exec`. Inherited handles do nothing in it, and handles that it creates work.

use std::fmt::Debug;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use towline::{
    Address, Buffer, BufferMut, Caps, Connection, Destination, Endpoint, Error, ErrorKind, Failed, Listener,
    Message, blocking,
};

use crate::backends::{Pair, Row, connect_pair};
use crate::callers::without_tokio;
use crate::content::{assert_message, message};
use crate::forked::Forked;
use crate::mixed::{Random, seeds};
use crate::polls::{TIMEOUT, block_on, in_time, polled};
use crate::suite::cases;

cases! {
    ONE_SIDED:
        drops_in_a_forked_child_disturb_no_peer,
        inherited_handles_fail_with_a_reason,
        calls_in_progress_at_a_fork_fail_in_the_child_only,
        a_forked_child_can_build_endpoints,
        a_close_is_seen_while_a_forked_child_lives,
        #[core] forks_of_a_busy_process_end_and_disturb_no_peer;
}

const LENS: Range<usize> = 0..6;
const LIFETIME: Duration = Duration::from_secs(60);

fn lengths(at: usize) -> Vec<usize> {
    vec![[0, 10, 700, 20_000, 300_000, 2 << 20][at % LENS.end]; 2]
}

/// Exchanges messages of every size both ways, numbered from `from`.
async fn exchange(a: &Connection, b: &Connection, from: usize) {
    for at in LENS {
        for (near, far) in [(a, b), (b, a)] {
            let message = message(from + at, &lengths(at));
            let both = async { tokio::join!(near.deliver(message), far.recv()) };
            let (sent, taken) = in_time("a message", both).await;
            sent.unwrap();
            assert_message(&taken.unwrap(), from + at, &lengths(at));
        }
    }
}

/// Asserts that the peer of `a` receives the close.
async fn assert_closes(a: &Connection, b: &Connection) {
    let both = async { tokio::join!(a.close(), b.recv()) };
    let (closed, end) = in_time("the close", both).await;
    closed.unwrap();
    assert_eq!(end.unwrap_err().kind(), ErrorKind::Closed);
}

#[track_caller]
fn assert_inherited(error: &Error) {
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    assert!(error.to_string().contains("forked from the one that owns this"), "{error}");
}

/// Asserts that a call fails in the forked child, and returns its memory.
#[track_caller]
fn assert_returned<T: Debug, M>(result: Result<T, Failed<M>>) -> M {
    let failed = result.map(drop).expect_err("an inherited connection fails");
    assert_inherited(&failed.error);
    failed.returned
}

async fn drops_in_a_forked_child_disturb_no_peer(row: &'static Row) {
    let pair = row.pair().await;
    let Pair { a, b, .. } = &pair;
    exchange(a, b, 0).await;
    // Everything that a child can inherit, at both ends.
    let receipt = a.send(message(100, &[10])).await.unwrap();
    let large = Message::new("large").with_frame(vec![1; 300_000]);
    let sending = tokio::spawn({
        let a = a.clone();
        async move { a.deliver(large).await }
    });
    let small = in_time("the small one", b.incoming()).await.unwrap();
    let incoming = in_time("the large one", b.incoming()).await.unwrap();
    let region = a.expose(vec![7; 1000].into(), LIFETIME).unwrap();
    let remote = region.remote();
    let pooled = pair.near.pool().take(100_000).unwrap();
    let mut held = Some((pair, receipt, small, incoming, region, pooled));
    let held = without_tokio(move || {
        // In the child these are the last handles, except those of tasks that never run there.
        Forked::new(|| drop(held.take())).assert_done(TIMEOUT);
        held
    });
    let (pair, receipt, small, incoming, region, pooled) = held.await.unwrap();
    let Pair { a, b, near, far, listener } = &pair;
    assert_message(&in_time("accept", small.accept()).await.unwrap(), 100, &[10]);
    in_time("the receipt", receipt.delivered()).await.unwrap();
    let taken = in_time("accept", incoming.accept()).await.unwrap();
    assert_eq!(taken.frames()[0].to_vec().unwrap(), vec![1; 300_000]);
    in_time("deliver", sending).await.unwrap().unwrap();
    let got = in_time("get", b.get(&remote, 0, BufferMut::with_capacity(1000))).await.unwrap();
    assert_eq!(got.as_slice().unwrap(), [7; 1000]);
    assert_eq!(in_time("revoke", region.revoke()).await.len(), 1000);
    drop(pooled);
    exchange(a, b, 200).await;
    let (c, d) = in_time("one more", connect_pair(near, listener)).await;
    exchange(&c, &d, 300).await;
    assert_closes(a, b).await;
    assert_closes(&d, &c).await;
    in_time("the end", far.close()).await;
}

async fn inherited_handles_fail_with_a_reason(row: &'static Row) {
    let pair = row.pair().await;
    let Pair { a, b, near, far, listener } = &pair;
    let receipt = a.send(message(0, &[10])).await.unwrap();
    let incoming = in_time("incoming", b.incoming()).await.unwrap();
    let sending = tokio::spawn({
        let a = a.clone();
        async move { a.send(message(1, &[300_000])).await.map(drop) }
    });
    let region = a.expose(vec![7; 1000].into(), LIFETIME).unwrap();
    let second = in_time("incoming", b.incoming()).await.unwrap();
    let (near, far, a, b) = (near.clone(), far.clone(), a.clone(), b.clone());
    let mut held = Some((receipt, incoming, second, region));
    thread::scope(|scope| {
        let work = || {
            let (receipt, incoming, second, region) = held.take().unwrap();
            let remote = region.remote();
            assert_eq!(assert_returned(block_on(a.send(message(7, &[10])))).payload_len(), 10);
            assert_eq!(assert_returned(block_on(b.send(message(7, &[300_000])))).payload_len(), 300_000);
            assert_inherited(&block_on(a.deliver(message(7, &[]))).unwrap_err());
            assert_inherited(&block_on(b.recv()).unwrap_err());
            assert_inherited(&block_on(a.incoming()).unwrap_err());
            assert_eq!(assert_returned(block_on(b.recv_into(BufferMut::with_capacity(99)))).capacity(), 99);
            assert_eq!(
                assert_returned(block_on(b.get(&remote, 0, BufferMut::with_capacity(9)))).capacity(),
                9
            );
            assert_eq!(assert_returned(block_on(b.put(&remote, 0, Buffer::new()))).len(), 0);
            assert_eq!(assert_returned(a.expose(vec![1; 5].into(), LIFETIME)).len(), 5);
            assert_eq!(assert_returned(a.expose_mut(vec![1; 5].into(), LIFETIME)).len(), 5);
            assert_inherited(&block_on(receipt.delivered()).unwrap_err());
            assert_inherited(&block_on(incoming.accept()).unwrap_err());
            assert_eq!(assert_returned(block_on(second.accept_into(vec![Destination::Discard]))).len(), 1);
            assert_eq!(block_on(region.revoke()).to_vec().unwrap(), [7; 1000], "its own copy");
            assert_inherited(&block_on(listener.accept()).unwrap_err());
            assert_inherited(&block_on(near.connect(listener.address())).unwrap_err());
            assert_inherited(&block_on(far.listen(&row.address())).unwrap_err());
            assert_inherited(&block_on(a.close()).unwrap_err());
            assert_inherited(&blocking::Connection::from(a.clone()).recv().unwrap_err());
            b.abort();
            block_on(near.close());
            assert_eq!((a.stats().messages_sent, near.metrics().text().as_str()), (0, "# EOF\n"));
            assert!(near.pool().take(5000).is_ok());
        };
        scope.spawn(move || Forked::new(work).assert_done(TIMEOUT)).join().unwrap();
    });
    drop(held);
    in_time("what was rejected", sending).await.unwrap().unwrap();
    exchange(&pair.a, &pair.b, 10).await;
    assert_closes(&pair.b, &pair.a).await;
}

async fn calls_in_progress_at_a_fork_fail_in_the_child_only(row: &'static Row) {
    let pair = row.pair().await;
    let Pair { a, b, near, listener, .. } = &pair;
    let mut recv = Box::pin(b.recv());
    let mut incoming = Box::pin(b.incoming());
    let mut accept = Box::pin(listener.accept());
    let mut deliver = Box::pin(a.deliver(message(0, &[300_000])));
    assert!(polled(recv.as_mut(), 2).await.is_none(), "there is nothing to take");
    assert!(polled(incoming.as_mut(), 2).await.is_none(), "another call receives first");
    assert!(polled(accept.as_mut(), 2).await.is_none(), "no peer connects");
    assert!(polled(deliver.as_mut(), 1).await.is_none(), "it is not received yet");
    // The child drops what the parent continues, polled in the child or not.
    let mut under_way = Some((recv, incoming, accept, deliver));
    Forked::new(|| drop(under_way.take())).assert_done(TIMEOUT);
    Forked::new(|| {
        let (recv, incoming, accept, deliver) = under_way.take().unwrap();
        assert_inherited(&block_on(recv).unwrap_err());
        assert_inherited(&block_on(incoming).unwrap_err());
        assert_inherited(&block_on(accept).unwrap_err());
        assert_inherited(&block_on(deliver).unwrap_err());
    })
    .assert_done(TIMEOUT);
    let (recv, incoming, accept, deliver) = under_way.unwrap();
    let (sent, taken) = in_time("the message", async { tokio::join!(deliver, recv) }).await;
    sent.unwrap();
    assert_message(&taken.unwrap(), 0, &[300_000]);
    let (sent, taken) = in_time("one more", async { tokio::join!(a.send(message(1, &[])), incoming) }).await;
    sent.unwrap();
    assert_message(&taken.unwrap().accept().await.unwrap(), 1, &[]);
    let (connected, accepted) =
        in_time("a peer", async { tokio::join!(near.connect(listener.address()), accept) }).await;
    connected.unwrap();
    accepted.unwrap();
}

/// Exchanges messages between two endpoints of this process.
fn exchange_with_self(row: &Row, at: &Address, from: usize) {
    let (near, far) = (row.endpoint(), row.endpoint());
    let listener = blocking::Endpoint::from(far).listen(at).unwrap();
    let near = blocking::Endpoint::from(near);
    thread::scope(|scope| {
        let serving = scope.spawn(|| {
            let connection = listener.accept().unwrap().with_deadline(TIMEOUT);
            for at in LENS {
                assert_message(&connection.recv().unwrap(), from + at, &lengths(at));
                connection.deliver(message(from + at, &lengths(at))).unwrap();
            }
            assert_eq!(connection.recv().unwrap_err().kind(), ErrorKind::Closed);
        });
        let connection = near.connect(listener.address()).unwrap().with_deadline(TIMEOUT);
        for at in LENS {
            connection.deliver(message(from + at, &lengths(at))).unwrap();
            assert_message(&connection.recv().unwrap(), from + at, &lengths(at));
        }
        connection.close().unwrap();
        serving.join().unwrap();
    });
}

async fn a_forked_child_can_build_endpoints(row: &'static Row) {
    let pair = row.pair().await;
    let Pair { a, b, near, listener, .. } = &pair;
    // The forking thread has waited before, so its runtime is inherited too.
    let (address, identity) = (listener.address().clone(), *near.identity());
    let crosses = row.caps.contains(Caps::CROSS_PROCESS);
    let child = without_tokio(move || {
        exchange_with_self(row, &row.address(), 0);
        Forked::new(move || {
            let own = blocking::Endpoint::from(row.endpoint());
            assert!(!own.as_async().identity().same_process(&identity), "a fork is another process");
            assert_ne!(own.as_async().identity().process_nonce, identity.process_nonce);
            if crosses {
                let connection = own.connect(&address).unwrap().with_deadline(TIMEOUT);
                connection.deliver(message(50, &[300_000])).unwrap();
                assert_message(&connection.recv().unwrap(), 51, &[10]);
                connection.close().unwrap();
                exchange_with_self(row, &row.address(), 60);
            } else {
                // The parent's name is free in the child.
                assert_eq!(own.connect(&address).unwrap_err().kind(), ErrorKind::Refused);
                exchange_with_self(row, &address, 60);
            }
            // The child's own children fail the same way.
            let child = Forked::new(|| {
                assert_inherited(&own.listen(&row.address()).unwrap_err());
                exchange_with_self(row, &row.address(), 70);
            });
            child.assert_done(TIMEOUT);
            exchange_with_self(row, &row.address(), 80);
        })
    })
    .await;
    if crosses {
        let from_child = in_time("the child", listener.accept()).await.unwrap();
        assert_message(&in_time("its receipt", from_child.recv()).await.unwrap(), 50, &[300_000]);
        in_time("an answer", from_child.deliver(message(51, &[10]))).await.unwrap();
        assert_eq!(in_time("its end", from_child.recv()).await.unwrap_err().kind(), ErrorKind::Closed);
    }
    without_tokio(move || child.assert_done(2 * TIMEOUT)).await;
    exchange(a, b, 100).await;
}

async fn a_close_is_seen_while_a_forked_child_lives(row: &'static Row) {
    let pair = row.pair().await;
    let child = without_tokio(|| Forked::new(|| thread::sleep(LIFETIME))).await;
    exchange(&pair.a, &pair.b, 0).await;
    assert_closes(&pair.a, &pair.b).await;
    drop(child);
}

const FORKS: usize = 50;

/// One action of a busy process's child on inherited handles.
fn act_in_child(
    row: &Row,
    choice: usize,
    a: Connection,
    b: Connection,
    near: &Endpoint,
    listener: &Listener,
) {
    match choice {
        0 => drop((a, b)),
        1 => drop(assert_returned(block_on(a.send(message(7, &[10]))))),
        2 => assert_inherited(&block_on(b.recv()).unwrap_err()),
        3 => assert_inherited(&block_on(a.close()).unwrap_err()),
        4 => assert_inherited(&block_on(near.connect(listener.address())).unwrap_err()),
        5 => assert_inherited(&block_on(listener.accept()).unwrap_err()),
        6 => drop((near.pool().take(100_000).unwrap(), a.stats(), near.metrics().text())),
        _ => exchange_with_self(row, &row.address(), 0),
    }
}

async fn forks_of_a_busy_process_end_and_disturb_no_peer(row: &'static Row) {
    let seed = seeds(1..2).start;
    println!("seed {seed}");
    let pair = row.pair().await;
    let Pair { a, b, near, listener, .. } = &pair;
    // Creates what the tests create once.
    exchange(a, b, 0).await;
    let done = AtomicBool::new(false);
    // Each thread sends until the forks are over, and returns its number of messages.
    let send = |from: &Connection| {
        let mut at = 0;
        while !done.load(Ordering::Relaxed) {
            block_on(from.deliver(message(at, &lengths(at)))).unwrap();
            at += 1;
        }
        block_on(from.deliver(message(usize::MAX, &[]))).unwrap();
        at
    };
    let take = |by: &Connection| {
        for at in 0.. {
            let message = block_on(by.recv()).unwrap();
            if message.header()[..] == (usize::MAX as u64).to_le_bytes() {
                return at;
            }
            assert_message(&message, at, &lengths(at));
        }
        unreachable!("it sends a last message")
    };
    let talk = || {
        thread::scope(|scope| {
            let sending = [scope.spawn(|| send(a)), scope.spawn(|| send(b))];
            let taking = [scope.spawn(|| take(b)), scope.spawn(|| take(a))];
            let forking = scope.spawn(|| {
                let mut random = Random::new(seed, 0);
                for fork in 0..FORKS {
                    thread::sleep(Duration::from_micros(random.below(3000) as u64));
                    let choice = random.below(8);
                    let child =
                        Forked::new(|| act_in_child(row, choice, a.clone(), b.clone(), near, listener));
                    child.assert_done(TIMEOUT);
                    println!("fork {fork} did {choice}");
                }
            });
            let forked = forking.join();
            done.store(true, Ordering::Relaxed);
            let sent = sending.map(|thread| thread.join().unwrap());
            assert_eq!(taking.map(|thread| thread.join().unwrap()), sent, "none lost, none twice");
            forked.unwrap();
        });
    };
    tokio::task::block_in_place(talk);
    exchange(a, b, 0).await;
    assert_closes(a, b).await;
}
