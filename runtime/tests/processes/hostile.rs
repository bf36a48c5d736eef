//! Hostile peers: requests whose replies are much larger, and invalid claims. The scheduler delays or refuses
//! such a peer with a reason, and serves others meanwhile.
//!
//! The messages are written as the bytes of `protocol.rs`, since no correct peer sends them.

use std::pin::pin;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use towline::{Address, Connection, Endpoint, ErrorKind, Message};
use towline_runtime::StageCounts;

use crate::cluster::{Case, Cluster, TIMEOUT, run};
use crate::functions::SLEEP;
use crate::peer::endpoint;

pub(crate) const CASES: &[Case] = &[
    ("scheduler_bounds_a_hostile_client_and_serves_others", floods),
    ("invalid_worker_hello_is_refused_with_a_reason", invalid_workers),
];

/// Time limit for replies to other clients meanwhile, on an otherwise idle machine.
const SERVED_WITHIN: Duration = Duration::from_secs(2);
/// For how long each flood lasts.
const FLOODED_FOR: Duration = Duration::from_secs(1);
/// Nearly the longest batch that a scheduler accepts.
const BATCH_LEN: usize = 4 << 20;
/// Memory that the scheduler may take beyond its initial size, in bytes.
const MEMORY_MAX: u64 = 512 << 20;

/// The first byte of a message: its variant.
const FUNCTION: u8 = 0;
const SUBMIT: u8 = 1;
const SCATTER: u8 = 2;
const RELEASE: u8 = 3;
const CANCEL: u8 = 4;
const WHO_HAS: u8 = 6;
const HOW_IS_IT: u8 = 7;

/// A flood of messages from a client.
struct Flood {
    what: &'static str,
    /// Returns a batch, given the client's number and the number of batches before.
    batch: fn(u64, u64) -> Vec<u8>,
    /// The reason of the expected refusal. Without one, the scheduler stops receiving until the client
    /// receives its replies.
    refusal: Option<&'static str>,
    /// The client receives its replies.
    reads_replies: bool,
}

const FLOODS: [Flood; 10] = [
    Flood {
        what: "how everything is",
        batch: |_, _| batch(|_| vec![HOW_IS_IT, 0]),
        refusal: None,
        reads_replies: false,
    },
    Flood {
        what: "tasks that are cancelled",
        batch: |me, _| {
            batch(|n| [submit(me, n, &[], 0), about(CANCEL, me, n), about(RELEASE, me, n)].concat())
        },
        refusal: None,
        reads_replies: false,
    },
    Flood {
        what: "who has what",
        batch: |me, turn| {
            let ask = [about(WHO_HAS, me, turn + 1), vec![0]].concat();
            [submit(me, turn + 1, &[], 0), batch(|_| ask.clone())].concat()
        },
        refusal: None,
        reads_replies: false,
    },
    Flood {
        what: "data without a receiver",
        batch: |me, turn| batch(|n| [about(SCATTER, me, turn << 24 | n), vec![99]].concat()),
        refusal: None,
        reads_replies: false,
    },
    Flood {
        what: "tasks of many inputs",
        batch: |me, turn| {
            let first = (turn << 24) + 1;
            [submit(me, first, &[], 0), batch(|n| submit(me, first + n, &[first; 60_000], 0))].concat()
        },
        refusal: Some("more memory than the scheduler gives"),
        reads_replies: false,
    },
    Flood {
        what: "tasks of long arguments",
        batch: |me, turn| batch(|n| submit(me, turn << 24 | n, &[], 1 << 20)),
        refusal: Some("more memory than the scheduler gives"),
        reads_replies: false,
    },
    Flood {
        what: "functions",
        batch: |_, _| batch(|n| [&[FUNCTION, 8], format!("{n:08}").as_bytes(), &[0]].concat()),
        refusal: Some("more functions"),
        reads_replies: false,
    },
    Flood {
        what: "words that are none",
        batch: |_, _| vec![0xff; BATCH_LEN],
        refusal: Some("do not decode"),
        reads_replies: false,
    },
    Flood {
        what: "how everything is, and listens",
        batch: |_, _| batch(|_| vec![HOW_IS_IT, 0]),
        refusal: None,
        reads_replies: true,
    },
    Flood {
        what: "data for no task, while reading replies",
        batch: |me, turn| batch(|n| [about(SCATTER, me, turn << 24 | n), vec![99]].concat()),
        refusal: Some("more memory than the scheduler gives"),
        reads_replies: true,
    },
];

/// A peer of the scheduler that sends arbitrary bytes.
#[derive(Debug)]
struct Hostile {
    connection: Connection,
    welcome: Vec<u8>,
}

impl Hostile {
    async fn join(endpoint: &Endpoint, address: &Address, hello: &[u8]) -> Self {
        let connection = endpoint.connect(address).await.unwrap();
        connection.send(Message::default().with_frame(hello.to_vec())).await.unwrap();
        let welcome = connection.recv().await.unwrap().header().to_vec();
        Self { connection, welcome }
    }

    /// Its client number.
    fn number(&self) -> u64 {
        assert!(self.welcome.len() == 2 && self.welcome[0] == 0, "{:?}", self.welcome);
        self.welcome[1].into()
    }

    /// Sends the flood until the scheduler refuses it. Returns the reason.
    async fn flood(&self, me: u64, flood: &Flood) -> String {
        let batch = flood.batch;
        let flooding = async {
            for turn in 0.. {
                // The other tasks of this process must not wait for this one.
                let words = tokio::task::spawn_blocking(move || batch(me, turn)).await.unwrap();
                let message = Message::default().with_frame(words);
                if self.connection.deliver(message).await.is_err() {
                    break;
                }
            }
        };
        if flood.reads_replies {
            tokio::join!(flooding, self.last_message()).1
        } else {
            flooding.await;
            self.last_message().await
        }
    }

    /// Returns the last message that arrives before the connection ends.
    async fn last_message(&self) -> String {
        let mut last = String::new();
        loop {
            match self.connection.recv().await {
                Ok(message) => last = String::from_utf8_lossy(message.header()).into_owned(),
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Closed, "in good order");
                    return last;
                }
            }
        }
    }
}

/// Encodes a number as postcard does.
fn varint(mut number: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
    bytes
}

/// Fills one batch with messages.
fn batch(word: impl Fn(u64) -> Vec<u8>) -> Vec<u8> {
    let mut batch = Vec::with_capacity(BATCH_LEN);
    for n in 1.. {
        let word = word(n);
        if batch.len() + word.len() > BATCH_LEN {
            break;
        }
        batch.extend(word);
    }
    batch
}

/// A message that begins with a key.
fn about(word: u8, client: u64, sequence: u64) -> Vec<u8> {
    [vec![word], varint(client), varint(sequence)].concat()
}

fn submit(client: u64, sequence: u64, inputs: &[u64], arguments_len: usize) -> Vec<u8> {
    let mut word = about(SUBMIT, client, sequence);
    word.push(0);
    word.extend(varint(inputs.len() as u64));
    inputs.iter().for_each(|input| word.extend([varint(client), varint(*input)].concat()));
    word.extend(varint(arguments_len as u64));
    word.resize(word.len() + arguments_len, 0);
    word.push(0);
    word
}

/// The hello of a worker.
fn worker(address: &str, slots: u64, memory_bytes_max: u64) -> Vec<u8> {
    let address = [varint(address.len() as u64), address.as_bytes().to_vec()].concat();
    [vec![1, 1], address, varint(slots), varint(memory_bytes_max)].concat()
}

fn floods() {
    run(async {
        let cluster = Cluster::start(2, 1).await;
        cluster.scheduler.limit_memory(MEMORY_MAX);
        let endpoint = endpoint();
        for flood in FLOODS {
            let Flood { what, refusal, .. } = flood;
            let hostile = Hostile::join(&endpoint, &cluster.address, &[1, 0]).await;
            let me = hostile.number();
            let function = [vec![FUNCTION, 5], b"sleep".to_vec(), vec![0]].concat();
            hostile.connection.send(Message::new(function)).await.unwrap();
            let begun = Instant::now();
            let mut flooding = pin!(hostile.flood(me, &flood));
            let mut refused = None;
            while begun.elapsed() < FLOODED_FOR || refusal.is_some() && refused.is_none() {
                tokio::select! {
                    why = &mut flooding, if refused.is_none() => refused = Some(why),
                    _ = served(&cluster, what) => {}
                }
            }
            let refused = refused.as_deref();
            assert!(
                refused.is_some_and(|why| why.contains(refusal.unwrap_or("no reason"))) == refusal.is_some(),
                "{what}: {refused:?}"
            );
            hostile.connection.abort();
            // The scheduler removes what the flood has left, and serves others meanwhile.
            let limit = Instant::now() + TIMEOUT;
            while served(&cluster, what).await != (1, 0) {
                assert!(Instant::now() < limit, "something is left: {what}");
            }
            let task = cluster.client.submit(SLEEP, (1,)).unwrap();
            assert_eq!(task.result().await.unwrap(), 1, "{what}");
        }
    });
}

/// Measures the ratio of wall time to CPU time on this machine.
fn slowdown() -> f64 {
    let worked = || {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
    };
    let (begun, before) = (Instant::now(), worked());
    while worked() - before < Duration::from_millis(100) {}
    (begun.elapsed().as_secs_f64() / (worked() - before).as_secs_f64()).max(1.0)
}

/// Asserts that the scheduler serves another client in time. Returns the numbers of clients and tasks.
async fn served(cluster: &Cluster, what: &str) -> (u32, u64) {
    let asked = Instant::now();
    let stats = cluster.client.stats().await;
    let stats = stats.unwrap_or_else(|error| panic!("the scheduler is gone: {what}: {error}"));
    let took = asked.elapsed();
    if took >= SERVED_WITHIN {
        let slowdown = slowdown();
        assert!(
            took < SERVED_WITHIN.mul_f64(slowdown),
            "{what}: an answer took {took:?}, {slowdown} times slowed down"
        );
    }
    tokio::time::sleep(Duration::from_millis(20)).await;
    let StageCounts { released, waiting, ready, sent, done, failed, .. } = stats.tasks;
    (stats.clients, released + waiting + ready + sent + done + failed)
}

fn invalid_workers() {
    run(async {
        let cluster = Cluster::start(1, 1).await;
        let endpoint = endpoint();
        let long = format!("tcp://{}:9", "a".repeat(100_000));
        for (why, hello) in [
            ("the maximum is 4096", worker("tcp://127.0.0.1:9", u32::MAX.into(), 1 << 30)),
            ("address", worker("somewhere", 1, 1 << 30)),
            ("address", worker(&long, 1, 1 << 30)),
        ] {
            let hostile = Hostile::join(&endpoint, &cluster.address, &hello).await;
            assert!(hostile.welcome.len() < 5_000, "the reply does not repeat the hello");
            let welcome = String::from_utf8_lossy(&hostile.welcome);
            assert!(hostile.welcome[0] > 1 && welcome.contains(why), "{welcome:?} names {why}");
            assert_eq!(hostile.last_message().await, "");
        }
        let tasks = cluster.client.map(SLEEP, (0..20).map(|_| (1,))).unwrap();
        assert_eq!(cluster.client.gather(&tasks).await.unwrap(), [1; 20]);
    });
}
