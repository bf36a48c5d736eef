//! Processor time of the hot paths, each beside its lower bound. Both ends run on one thread, so that nothing
//! waits.
//!
//! `cargo bench -p towline-bench -- --save-baseline before` saves a run; `-- --baseline before` compares with
//! it.

#![expect(clippy::unwrap_used, reason = "a benchmark fails by panicking")]
#![expect(missing_docs, reason = "criterion's macro makes a public function")]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tokio::task::JoinSet;
use towline::{Buffer, Connection, Endpoint, Message, Pool, Wait};

/// Numbers of connections of one endpoint.
const CONNECTIONS: [usize; 4] = [1, 10, 100, 1000];
/// A small message, and one too large to be sent eagerly.
const SIZES: [usize; 2] = [8, 64 << 10];

criterion_group! {
    name = hot_paths;
    config = Criterion::default().warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(3));
    targets = pool, messages, connections
}
criterion_main!(hot_paths);

/// Takes and drops a warm block, beside a fresh allocation.
fn pool(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("pool");
    let pool = Pool::new(64 << 20);
    for len in SIZES {
        group.bench_function(format!("take and drop/{len}"), |bencher| {
            bencher.iter(|| pool.take(len).unwrap());
        });
        group.bench_function(format!("a vector/{len}"), |bencher| {
            bencher.iter(|| Vec::<u8>::with_capacity(len));
        });
    }
    group.finish();
}

/// Sends one message each way: `send` at one end, `recv` at the other, without coalescing.
fn messages(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut group = criterion.benchmark_group("there and back");
    for len in SIZES {
        group.throughput(Throughput::Bytes(2 * len as u64));
        let frame = Buffer::from(vec![1; len]);
        for address in ["mem://", "tcp://127.0.0.1:0"] {
            let (a, b) = runtime.block_on(pair(address));
            let name = a.path().chosen();
            group.bench_function(format!("{name}/{len}"), |bencher| {
                bencher.iter(|| runtime.block_on(there_and_back(&a, &b, &frame)));
            });
        }
        let (mut near, mut far) = sockets();
        let (message, mut destination) = (vec![1; len], vec![0; len]);
        group.bench_function(format!("bare socket/{len}"), |bencher| {
            bencher.iter(|| {
                near.write_all(&message).unwrap();
                far.read_exact(&mut destination).unwrap();
                far.write_all(&destination).unwrap();
                near.read_exact(&mut destination).unwrap();
            });
        });
    }
    group.finish();
}

/// Does the same over many connections of one endpoint, all at once and one after another. The cost of a
/// message does not grow with their number.
fn connections(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut group = criterion.benchmark_group("connections");
    let frame = Buffer::from(vec![1; SIZES[0]]);
    for count in CONNECTIONS {
        let pairs = runtime.block_on(pairs("tcp://127.0.0.1:0", count));
        group.throughput(Throughput::Elements(count as u64));
        group.bench_function(format!("at once/{count}"), |bencher| {
            bencher.iter(|| runtime.block_on(all_there_and_back(&pairs, &frame)));
        });
        let mut turns = pairs.iter().cycle();
        group.throughput(Throughput::Elements(1));
        group.bench_function(format!("in turn/{count}"), |bencher| {
            bencher.iter(|| {
                let (a, b) = turns.next().unwrap();
                runtime.block_on(there_and_back(a, b, &frame));
            });
        });
    }
    group.finish();
}

async fn there_and_back(a: &Connection, b: &Connection, frame: &Buffer) {
    for (from, to) in [(a, b), (b, a)] {
        let message = Message::new("").with_frame(frame.clone());
        let (sent, taken) = tokio::join!(from.send(message), to.recv());
        drop(sent.unwrap());
        taken.unwrap();
    }
}

async fn all_there_and_back(pairs: &[(Connection, Connection)], frame: &Buffer) {
    let mut tasks = JoinSet::new();
    for (a, b) in pairs {
        let (a, b, frame) = (a.clone(), b.clone(), frame.clone());
        tasks.spawn(async move { there_and_back(&a, &b, &frame).await });
    }
    tasks.join_all().await;
}

async fn pair(address: &str) -> (Connection, Connection) {
    pairs(address, 1).await.remove(0)
}

/// Opens `count` connections between two endpoints.
async fn pairs(address: &str, count: usize) -> Vec<(Connection, Connection)> {
    let endpoint = || Endpoint::builder().wait(Wait::Spin).build().unwrap();
    let listener = endpoint().listen(&address.parse().unwrap()).await.unwrap();
    let near = endpoint();
    let mut pairs = Vec::new();
    for _ in 0..count {
        let (a, b) = tokio::join!(near.connect(listener.address()), listener.accept());
        pairs.push((a.unwrap(), b.unwrap()));
    }
    pairs
}

fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (far, _) = listener.accept().unwrap();
    for end in [&near, &far] {
        end.set_nodelay(true).unwrap();
    }
    (near, far)
}
