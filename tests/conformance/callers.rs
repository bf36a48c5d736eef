//! Connections work for callers on any executor, task or thread.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CpuSet, sched_getcpu, sched_setaffinity};
use towline::{BufferMut, Connection, Destination, ErrorKind, Message, Wait, blocking};

use crate::backends::{Pair, Row};
use crate::content::{assert_message, message, number};
use crate::polls::{TIMEOUT, block_on, in_time, polled, within};
use crate::suite::cases;
use crate::usage;

cases! {
    ANY:
        threads_without_tokio_exchange_messages,
        threads_without_tokio_measure,
        blocking_calls_exchange_messages,
        one_thread_serves_both_ends,
        halves_work_in_two_tasks,
        two_tasks_receive_each_message_once,
        many_tasks_send_on_one_connection,
        #[core] a_task_that_blocks_its_thread_delays_no_other_task,
        every_way_to_wait_works,
        a_connection_is_used_from_several_runtimes,
        a_detached_send_arrives,
        a_burst_arrives_without_a_waiting_sender,
        bursts_of_a_thread_and_a_runtime_all_arrive,
        waiting_takes_no_processor_time,
        #[core] adaptive_waiting_is_about_as_fast_as_sleeping_on_a_busy_core,
        building_an_endpoint_without_a_thread_fails_with_io;
}

const LENS: [usize; 4] = [0, 700, 20_000, 2 << 20];

/// Exchanges messages of every size, both ways.
async fn exchange(a: &Connection, b: &Connection) {
    for (at, len) in LENS.into_iter().enumerate() {
        for (from, to) in [(a, b), (b, a)] {
            let both = async { tokio::join!(from.deliver(message(at, &[len, len])), to.recv()) };
            let (sent, taken) = both.await;
            sent.unwrap();
            assert_message(&taken.unwrap(), at, &[len, len]);
        }
    }
}

/// Runs `work` on a thread outside tokio.
pub(crate) async fn without_tokio<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let thread = thread::spawn(work);
    tokio::task::spawn_blocking(|| thread.join().unwrap()).await.unwrap()
}

async fn threads_without_tokio_exchange_messages(row: &'static Row) {
    const COUNT: usize = 200;
    let echo = |row: &Row| {
        let endpoint = row.endpoint();
        let listener = block_on(endpoint.listen(&row.address())).unwrap();
        let address = listener.address().clone();
        let serve = move || {
            block_on(async {
                let connection = listener.accept().await.unwrap();
                loop {
                    match connection.recv().await {
                        Ok(message) => drop(connection.send(message).await.unwrap()),
                        Err(end) => return end.kind(),
                    }
                }
            })
        };
        (address, thread::spawn(serve))
    };
    let talk = without_tokio(move || {
        let (address, server) = echo(row);
        let endpoint = row.endpoint();
        block_on(async {
            let connection = endpoint.connect(&address).await.unwrap();
            for at in 0..COUNT {
                let lengths = [LENS[at % LENS.len()]];
                connection.send(message(at, &lengths)).await.unwrap();
                assert_message(&connection.recv().await.unwrap(), at, &lengths);
            }
            connection.close().await.unwrap();
        });
        server.join().unwrap()
    });
    assert_eq!(in_time("both threads", talk).await, ErrorKind::Closed);
}

async fn threads_without_tokio_measure(row: &'static Row) {
    let pair = row.pair().await;
    let measure = without_tokio(move || {
        let Pair { a, b, near: _near, far: _far, .. } = pair;
        let taking_part = thread::spawn(move || {
            let part = block_on(b.be_measured());
            // Keep this end until the measuring end has its answer.
            (part, b)
        });
        let explanation = block_on(a.measure()).unwrap();
        let (part, _b) = taking_part.join().unwrap();
        part.unwrap();
        explanation
    });
    let explanation = in_time("a measurement", measure).await;
    assert!(explanation.measured.is_some());
}

async fn blocking_calls_exchange_messages(row: &'static Row) {
    let talk = without_tokio(move || {
        let (near, far) =
            (blocking::Endpoint::from(row.endpoint()), blocking::Endpoint::from(row.endpoint()));
        let listener = far.listen(&row.address()).unwrap();
        let address = listener.address().clone();
        let server = thread::spawn(move || {
            let connection = listener.accept().unwrap();
            for (at, len) in LENS.into_iter().enumerate() {
                let incoming = connection.incoming().unwrap();
                let destinations = incoming.frames().iter().map(|frame| BufferMut::with_capacity(frame.len));
                let destinations = destinations.map(Destination::Buffer).collect();
                let message = incoming.accept_into(destinations).unwrap();
                assert_message(&message, at, &[len]);
                connection.deliver(message).unwrap();
            }
            drop(connection.incoming().unwrap());
            connection.recv().unwrap_err().kind()
        });
        let connection = near.connect(&address).unwrap().with_deadline(TIMEOUT);
        for (at, len) in LENS.into_iter().enumerate() {
            connection.send(message(at, &[len])).unwrap().delivered().unwrap();
            assert_message(&connection.recv_into(BufferMut::with_capacity(len)).unwrap(), at, &[len]);
        }
        assert_eq!(connection.deliver(message(9, &[1])).unwrap_err().kind(), ErrorKind::Rejected);
        let short_deadline = connection.clone().with_deadline(Duration::from_millis(50));
        assert_eq!(short_deadline.recv().unwrap_err().kind(), ErrorKind::TimedOut);
        connection.close().unwrap();
        server.join().unwrap()
    });
    assert_eq!(in_time("both threads", talk).await, ErrorKind::Closed);
}

async fn a_burst_arrives_without_a_waiting_sender(row: &'static Row) {
    const COUNT: usize = 1000;
    let Pair { a, b, .. } = &row.pair().await;
    let take = async |first: usize| {
        for at in first..first + COUNT {
            assert_message(&b.recv().await.unwrap(), at, &[10]);
        }
    };
    let (sender, (done, idle)) = (a.clone(), tokio::sync::oneshot::channel::<()>());
    let burst = tokio::spawn(async move {
        for at in 0..COUNT {
            drop(sender.send(message(at, &[10])).await.unwrap());
        }
        idle.await.unwrap();
    });
    in_time("a burst of a task that waits elsewhere", take(0)).await;
    done.send(()).unwrap();
    burst.await.unwrap();
    // A runtime that no thread drives any more.
    let (sender, (done, computing)) = (a.clone(), std::sync::mpsc::channel::<()>());
    let burst = thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            for at in COUNT..2 * COUNT {
                drop(sender.send(message(at, &[10])).await.unwrap());
            }
        });
        computing.recv_timeout(TIMEOUT).unwrap();
    });
    in_time("a burst of a thread that computes", take(COUNT)).await;
    done.send(()).unwrap();
    tokio::task::spawn_blocking(|| burst.join().unwrap()).await.unwrap();
}

async fn bursts_of_a_thread_and_a_runtime_all_arrive(row: &'static Row) {
    const COUNT: usize = 5_000;
    let Pair { a, b, .. } = &row.pair().await;
    let burst = |sender: Connection| async move {
        for at in 0..COUNT {
            drop(sender.send(message(at, &[10])).await.unwrap());
        }
    };
    let (plain, idle) = (burst(a.clone()), burst(a.clone()));
    let plain = thread::spawn(|| block_on(plain));
    let idle = thread::spawn(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(idle);
        // From here on no thread drives the runtime, and so not the rest of its burst.
        runtime
    });
    let take = async {
        for _ in 0..2 * COUNT {
            b.recv().await.unwrap();
        }
    };
    in_time("two bursts", take).await;
    plain.join().unwrap();
    let idle = idle.join().unwrap();
    let take = async {
        for at in 0..COUNT {
            assert_message(&b.recv().await.unwrap(), at, &[10]);
        }
    };
    in_time("a burst with an idle runtime", async { tokio::join!(burst(a.clone()), take) }).await;
    idle.shutdown_background();
}

async fn one_thread_serves_both_ends(row: &'static Row) {
    let talk = without_tokio(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let pair = row.pair().await;
            exchange(&pair.a, &pair.b).await;
            let (a, b) = (pair.a.clone(), pair.b.clone());
            let sending = tokio::spawn(async move {
                for at in 0..500 {
                    a.send(message(at, &[LENS[at % 3]])).await.unwrap();
                }
            });
            for at in 0..500 {
                assert_message(&b.recv().await.unwrap(), at, &[LENS[at % 3]]);
            }
            sending.await.unwrap();
        });
    });
    in_time("one thread", talk).await;
}

async fn halves_work_in_two_tasks(row: &'static Row) {
    const COUNT: usize = 300;
    let Pair { a, b, near: _near, far: _far, .. } = row.pair().await;
    let both = [a, b].map(|end| {
        let (sender, mut receiver) = end.split();
        let sending = tokio::spawn(async move {
            for at in 0..COUNT {
                sender.send(message(at, &[LENS[at % 3], 5])).await.unwrap();
            }
            sender.deliver(Message::new("last")).await.unwrap();
        });
        let receiving = tokio::spawn(async move {
            for at in 0..COUNT {
                assert_message(&receiver.recv().await.unwrap(), at, &[LENS[at % 3], 5]);
            }
            assert_eq!(receiver.recv().await.unwrap().header().as_ref(), b"last");
            // The other half may be dropped: this half keeps the connection open.
            receiver
        });
        (sending, receiving)
    });
    for (sending, receiving) in both {
        in_time("the sending half", sending).await.unwrap();
        in_time("the receiving half", receiving).await.unwrap();
    }
}

async fn two_tasks_receive_each_message_once(row: &'static Row) {
    const COUNT: usize = 600;
    let pair = row.pair().await;
    let tasks: Vec<_> = (0..2)
        .map(|_| {
            let b = pair.b.clone();
            tokio::spawn(async move {
                let mut taken = Vec::new();
                loop {
                    match b.recv().await {
                        Ok(message) => {
                            let at = number(message.header());
                            assert_message(&message, at, &[LENS[at % 3]]);
                            taken.push(at);
                        }
                        Err(end) => return (end.kind(), taken),
                    }
                }
            })
        })
        .collect();
    for at in 0..COUNT {
        in_time("send", pair.a.send(message(at, &[LENS[at % 3]]))).await.unwrap();
    }
    in_time("close", pair.a.close()).await.unwrap();
    let mut all = Vec::new();
    for task in tasks {
        let (end, taken) = in_time("a receiver", task).await.unwrap();
        assert_eq!(end, ErrorKind::Closed);
        assert!(taken.is_sorted(), "each task receives in order");
        all.extend(taken);
    }
    assert_eq!(all.len(), COUNT);
    assert_eq!(BTreeSet::from_iter(all).len(), COUNT);
}

async fn many_tasks_send_on_one_connection(row: &'static Row) {
    const TASKS: usize = 16;
    const EACH: usize = 50;
    let pair = row.pair().await;
    let tasks: Vec<_> = (0..TASKS)
        .map(|task| {
            let a = pair.a.clone();
            tokio::spawn(async move {
                for at in 0..EACH {
                    let number = task * EACH + at;
                    a.deliver(message(number, &[LENS[number % 3]])).await.unwrap();
                }
            })
        })
        .collect();
    let mut last = [None; TASKS];
    for _ in 0..TASKS * EACH {
        let taken = in_time("recv", pair.b.recv()).await.unwrap();
        let at = number(taken.header());
        assert_message(&taken, at, &[LENS[at % 3]]);
        assert!(last[at / EACH] < Some(at), "each task's messages in order");
        last[at / EACH] = Some(at);
    }
    for task in tasks {
        in_time("a sender", task).await.unwrap();
    }
}

async fn a_task_that_blocks_its_thread_delays_no_other_task(row: &'static Row) {
    let pair = Arc::new(row.pair().await);
    // This task leads the link, and then blocks its thread.
    let blocking = {
        let b = pair.b.clone();
        tokio::spawn(async move {
            let message = b.recv().await.unwrap();
            thread::sleep(Duration::from_secs(1));
            message
        })
    };
    in_time("the first", pair.a.deliver(message(0, &[10]))).await.unwrap();
    let others = async { exchange(&pair.a, &pair.b).await };
    within(Duration::from_millis(900), "others on the connection", others).await;
    assert_message(&blocking.await.unwrap(), 0, &[10]);
}

async fn every_way_to_wait_works(row: &'static Row) {
    for wait in [Wait::Spin, Wait::Adaptive, Wait::Sleep] {
        let pair = row.pair_with(|builder| builder.wait(wait)).await;
        in_time(&format!("{wait:?}"), exchange(&pair.a, &pair.b)).await;
        in_time("close", pair.a.close()).await.unwrap();
    }
}

async fn a_connection_is_used_from_several_runtimes(row: &'static Row) {
    let pair = row.pair().await;
    for _ in 0..5 {
        let (a, b) = (pair.a.clone(), pair.b.clone());
        let elsewhere = without_tokio(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(exchange(&a, &b));
        });
        in_time("another runtime", elsewhere).await;
        in_time("this runtime", exchange(&pair.a, &pair.b)).await;
        let (a, b) = (pair.a.clone(), pair.b.clone());
        in_time("no runtime", without_tokio(move || block_on(exchange(&a, &b)))).await;
    }
}

async fn a_detached_send_arrives(row: &'static Row) {
    const LEN: usize = 48 << 20;
    let pair = row.pair_with(|builder| builder.heartbeat(Duration::from_secs(60))).await;
    for turn in 0..3 {
        // The message exceeds a socket's buffer. Its future is dropped in flight, while another call comes
        // and ends.
        let mut sending = Box::pin(pair.a.send(message(turn, &[LEN])));
        let submitted = polled(sending.as_mut(), 1).await;
        let incoming = in_time("incoming", pair.b.incoming()).await.unwrap();
        let taking = tokio::spawn(incoming.accept());
        if submitted.is_none() {
            drop(polled(sending.as_mut(), 3).await);
        }
        drop((submitted, sending));
        let back = async { tokio::join!(pair.b.send(message(9, &[10])), pair.a.recv()) };
        let (sent, taken) = in_time("a message the other way", back).await;
        sent.unwrap();
        assert_message(&taken.unwrap(), 9, &[10]);
        let taken = within(Duration::from_secs(10), "the detached message", taking).await.unwrap();
        assert_message(&taken.unwrap(), turn, &[LEN]);
    }
}

async fn waiting_takes_no_processor_time(row: &'static Row) {
    let pair = row.pair().await;
    exchange(&pair.a, &pair.b).await;
    let waiting: Vec<_> = [&pair.a, &pair.b, &pair.b]
        .map(|end| {
            let end = end.clone();
            tokio::spawn(async move { end.recv().await })
        })
        .into();
    let (undelivered, b) = (pair.a.clone(), pair.b.clone());
    let without_reactor = thread::spawn(move || block_on(b.recv()));
    tokio::time::sleep(Duration::from_millis(300)).await;
    let before = usage::processor_time();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let spent = usage::processor_time() - before;
    assert!(spent < Duration::from_millis(200), "{spent:?} of processor time in a second of waiting");
    // Assert that they were waiting.
    for at in 0..3 {
        in_time("a message", undelivered.deliver(message(at, &[10]))).await.unwrap();
    }
    in_time("a message", pair.b.deliver(message(3, &[10]))).await.unwrap();
    for task in waiting {
        in_time("a receiver", task).await.unwrap().unwrap();
    }
    without_reactor.join().unwrap().unwrap();
}

/// Both ends share one core with two threads that compute.
async fn adaptive_waiting_is_about_as_fast_as_sleeping_on_a_busy_core(row: &'static Row) {
    let measured = without_tokio(move || {
        let mut core = CpuSet::new();
        core.set(sched_getcpu());
        // Threads started from here inherit the core, the drivers too.
        sched_setaffinity(None, &core).unwrap();
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            let compute = || {
                while !over.load(Ordering::Relaxed) {
                    std::hint::spin_loop()
                }
            };
            (0..2).for_each(|_| drop(scope.spawn(compute)));
            let took = [Wait::Sleep, Wait::Adaptive].map(|wait| round_trip(row, wait));
            over.store(true, Ordering::Relaxed);
            took
        })
    });
    let [asleep, adaptive] = in_time("two ends on one core", measured).await;
    // Each yield to a computing thread takes milliseconds, and every second yield is one.
    assert!(adaptive < asleep * 3 + Duration::from_micros(500), "adaptive {adaptive:?}, asleep {asleep:?}");
}

/// Returns the median time of a round trip between two threads.
fn round_trip(row: &'static Row, wait: Wait) -> Duration {
    let endpoint = || blocking::Endpoint::from(row.builder().wait(wait).build().unwrap());
    let (near, listener) = (endpoint(), endpoint().listen(&row.address()).unwrap());
    let address = listener.address().clone();
    let server = thread::spawn(move || {
        let connection = listener.accept().unwrap();
        while let Ok(message) = connection.recv() {
            drop(connection.send(message).unwrap());
        }
    });
    let connection = near.connect(&address).unwrap().with_deadline(TIMEOUT);
    let mut took: Vec<_> = (0..200)
        .map(|at| {
            let begin = Instant::now();
            drop(connection.send(message(at, &[64])).unwrap());
            connection.recv().unwrap();
            begin.elapsed()
        })
        .collect();
    connection.close().unwrap();
    server.join().unwrap();
    took.sort_unstable();
    took[took.len() / 2]
}

async fn building_an_endpoint_without_a_thread_fails_with_io(row: &'static Row) {
    let before = getrlimit(Resource::Data);
    // Less than a thread's stack.
    let limit = Some(usage::data() + (1 << 20));
    setrlimit(Resource::Data, Rlimit { current: limit, ..before }).unwrap();
    let built = row.builder().build();
    setrlimit(Resource::Data, before).unwrap();
    assert_eq!(built.map(drop).unwrap_err().kind(), ErrorKind::Io);
    let pair = row.pair().await;
    in_time("afterwards", exchange(&pair.a, &pair.b)).await;
}
