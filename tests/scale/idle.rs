//! Ten thousand connections from one process to one endpoint of another.

use std::future::Future;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio::time::sleep;
use towline::{Address, Connection, Endpoint, Message};
use towline_tests::polls::{TIMEOUT, in_time};

use crate::peer::{Peer, USAGE, Usage, allow_files};

const CONNECTIONS: usize = 10_000;
/// The descriptors that each process needs.
pub(crate) const FILES: u64 = CONNECTIONS as u64 + 200;
/// The memory of one connection at one end, in bytes: the session, its registrations with the driver and a
/// reactor, its metrics, the application's task that waits for a message, and the allocator's overhead.
const MEMORY_MAX: u64 = 20 << 10;
/// The limit on connections being opened at once, and on messages in flight.
const AT_ONCE: usize = 64;
/// Longer than a heartbeat, so that each connection sends a ping.
const IDLE: Duration = Duration::from_secs(4);

pub(crate) async fn ten_thousand() {
    allow_files();
    let (_peer, address) = Peer::serving();
    let endpoint = Endpoint::new().unwrap();
    let control = in_time("the first connection", endpoint.connect(&address)).await.unwrap();

    // Allocate everything that is made once per process before counting.
    let nothing = BothEnds::now(&control).await;
    let few = open(&endpoint, &address, 200).await;
    echo_on(few).await;
    let before = until_closed(&control, nothing).await;

    let connections = open(&endpoint, &address, CONNECTIONS).await;
    echo_on(connections.clone()).await;
    sleep(IDLE).await;
    let while_open = BothEnds::now(&control).await;
    for (end, now, before) in while_open.paired_with(before) {
        assert_eq!(now.descriptors - before.descriptors, CONNECTIONS as u64, "descriptors of the {end} end");
        let each = now.memory.saturating_sub(before.memory) / CONNECTIONS as u64;
        println!("{each} bytes a connection at the {end} end");
        assert!(each <= MEMORY_MAX, "{each} bytes a connection at the {end} end");
    }
    // Idle connections still work: check every 23rd.
    echo_on(connections.iter().skip(17).step_by(23).cloned().collect()).await;

    drop(connections);
    until_closed(&control, before).await;
    // As many new connections reuse the freed memory: a leak would add to it. The allocator may fragment it.
    let connections = open(&endpoint, &address, CONNECTIONS).await;
    echo_on(connections.clone()).await;
    let again = BothEnds::now(&control).await;
    for (end, again, first) in again.paired_with(while_open) {
        assert!(
            again.memory <= first.memory + first.memory / 4,
            "the {end} end: {} bytes, and {} with the first ones",
            again.memory,
            first.memory
        );
    }
    drop(connections);
    until_closed(&control, before).await;
}

/// The resource usage of both ends.
#[derive(Clone, Copy, Debug)]
struct BothEnds {
    near: Usage,
    far: Usage,
}

impl BothEnds {
    async fn now(control: &Connection) -> Self {
        let answer = exchange(control, Message::new(USAGE)).await;
        Self { near: Usage::now(), far: Usage::from_bytes(answer.header()) }
    }

    fn paired_with(self, other: Self) -> [(&'static str, Usage, Usage); 2] {
        [("connecting", self.near, other.near), ("accepting", self.far, other.far)]
    }
}

/// Waits until both ends have no more descriptors than `before`, since connections close in the background.
async fn until_closed(control: &Connection, before: BothEnds) -> BothEnds {
    let limit = Instant::now() + TIMEOUT;
    loop {
        let now = BothEnds::now(control).await;
        if now.paired_with(before).iter().all(|(_, now, before)| now.descriptors <= before.descriptors) {
            return now;
        }
        assert!(Instant::now() < limit, "still open after {TIMEOUT:?}: {now:?}, before {before:?}");
        sleep(Duration::from_millis(50)).await;
    }
}

async fn open(endpoint: &Endpoint, address: &Address, count: usize) -> Vec<Connection> {
    let connect = |_| {
        let (endpoint, address) = (endpoint.clone(), address.clone());
        async move { in_time("a connection", endpoint.connect(&address)).await.unwrap() }
    };
    run_limited((0..count).map(connect)).await
}

/// Sends a different message on each connection, and checks its echo.
async fn echo_on(connections: Vec<Connection>) {
    let echo = |(number, connection): (usize, Connection)| async move {
        let frame = vec![number as u8; 100];
        let message = Message::new(number.to_le_bytes().to_vec()).with_frame(frame.clone());
        let answer = exchange(&connection, message).await;
        assert_eq!(answer.header(), &number.to_le_bytes()[..]);
        assert_eq!(answer.frames()[0].as_slice().unwrap(), frame);
    };
    run_limited(connections.into_iter().enumerate().map(echo)).await;
}

async fn exchange(connection: &Connection, message: Message) -> Message {
    let both = async { tokio::join!(connection.deliver(message), connection.recv()) };
    let (sent, answer) = in_time("an echo", both).await;
    sent.unwrap();
    answer.unwrap()
}

/// Runs all futures, at most [`AT_ONCE`] at a time, each in its own task. Returns the outputs in the order of
/// completion.
async fn run_limited<F>(tasks: impl Iterator<Item = F>) -> Vec<F::Output>
where
    F: Future<Output: Send + 'static> + Send + 'static,
{
    let (mut running, mut outputs) = (JoinSet::new(), Vec::new());
    for task in tasks {
        // A task that has ended keeps its memory until it is joined.
        if running.len() == AT_ONCE {
            outputs.extend(running.join_next().await.map(Result::unwrap));
        }
        running.spawn(task);
    }
    outputs.extend(running.join_all().await);
    outputs
}
