//! What a peer of the cluster may say that means harm: questions whose answers are much larger, and claims that nobody can
//! believe. Whoever says it is held up, or turned away with a reason; others are served all the while.
//!
//! The words are bytes as `protocol.rs` has them, since no honest end says these.

use std::pin::pin;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use towline::{Address, Connection, Endpoint, ErrorKind, Message};
use towline_runtime::StageCounts;

use crate::cluster::{Case, Cluster, SOON, run};
use crate::functions::SLEEP;
use crate::peer::endpoint;

pub(crate) const CASES: &[Case] = &[
    ("a_scheduler_bounds_what_a_client_makes_it_answer_and_serves_others", floods),
    ("a_worker_that_no_worker_can_be_is_refused_and_told_why", absurd_workers),
];

/// How long others may wait for an answer meanwhile, on a machine that has nothing else to do.
const SERVED_WITHIN: Duration = Duration::from_secs(2);
/// How long a peer is hostile.
const FLOODED_FOR: Duration = Duration::from_secs(1);
/// Nearly the longest batch that a scheduler takes.
const BATCH_LEN: usize = 4 << 20;
/// What the scheduler may take beyond what it has once it serves.
const MEMORY_MAX: u64 = 512 << 20;

/// The begin of a word, by what it is.
const FUNCTION: u8 = 0;
const SUBMIT: u8 = 1;
const SCATTER: u8 = 2;
const RELEASE: u8 = 3;
const CANCEL: u8 = 4;
const WHO_HAS: u8 = 6;
const HOW_IS_IT: u8 = 7;

/// What a client floods the scheduler with.
struct Flood {
    what: &'static str,
    /// A batch, given the client's number and how many there were before.
    words: fn(u64, u64) -> Vec<u8>,
    /// Why the client is turned away, where it is: else its answers wait until it listens, and it waits for them.
    refusal: Option<&'static str>,
    /// It takes its answers.
    listens: bool,
}

const FLOODS: [Flood; 10] = [
    Flood {
        what: "how everything is",
        words: |_, _| batch(|_| vec![HOW_IS_IT, 0]),
        refusal: None,
        listens: false,
    },
    Flood {
        what: "tasks that are cancelled",
        words: |me, _| {
            batch(|n| [submit(me, n, &[], 0), about(CANCEL, me, n), about(RELEASE, me, n)].concat())
        },
        refusal: None,
        listens: false,
    },
    Flood {
        what: "who has what",
        words: |me, turn| {
            let ask = [about(WHO_HAS, me, turn + 1), vec![0]].concat();
            [submit(me, turn + 1, &[], 0), batch(|_| ask.clone())].concat()
        },
        refusal: None,
        listens: false,
    },
    Flood {
        what: "data for nobody",
        words: |me, turn| batch(|n| [about(SCATTER, me, turn << 24 | n), vec![99]].concat()),
        refusal: None,
        listens: false,
    },
    Flood {
        what: "tasks of many inputs",
        words: |me, turn| {
            let first = (turn << 24) + 1;
            [submit(me, first, &[], 0), batch(|n| submit(me, first + n, &[first; 60_000], 0))].concat()
        },
        refusal: Some("more memory than the scheduler gives"),
        listens: false,
    },
    Flood {
        what: "tasks of long arguments",
        words: |me, turn| batch(|n| submit(me, turn << 24 | n, &[], 1 << 20)),
        refusal: Some("more memory than the scheduler gives"),
        listens: false,
    },
    Flood {
        what: "functions",
        words: |_, _| batch(|n| [&[FUNCTION, 8], format!("{n:08}").as_bytes(), &[0]].concat()),
        refusal: Some("more functions"),
        listens: false,
    },
    Flood {
        what: "words that are none",
        words: |_, _| vec![0xff; BATCH_LEN],
        refusal: Some("not what they should be"),
        listens: false,
    },
    Flood {
        what: "how everything is, and listens",
        words: |_, _| batch(|_| vec![HOW_IS_IT, 0]),
        refusal: None,
        listens: true,
    },
    Flood {
        what: "data for nobody, and listens",
        words: |me, turn| batch(|n| [about(SCATTER, me, turn << 24 | n), vec![99]].concat()),
        refusal: Some("more memory than the scheduler gives"),
        listens: true,
    },
];

/// An end of the scheduler's protocol that says what it likes.
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

    /// Its number.
    fn number(&self) -> u64 {
        assert!(self.welcome.len() == 2 && self.welcome[0] == 0, "{:?}", self.welcome);
        self.welcome[1].into()
    }

    /// Says it until it is turned away: with what reason.
    async fn flood(&self, me: u64, flood: &Flood) -> String {
        let words = flood.words;
        let flooding = async {
            for turn in 0.. {
                // Others are not to wait for this process.
                let words = tokio::task::spawn_blocking(move || words(me, turn)).await.unwrap();
                let message = Message::default().with_frame(words);
                if self.connection.deliver(message).await.is_err() {
                    break;
                }
            }
        };
        if flood.listens {
            tokio::join!(flooding, self.farewell()).1
        } else {
            flooding.await;
            self.farewell().await
        }
    }

    /// The last that it hears before its connection ends.
    async fn farewell(&self) -> String {
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

/// As postcard has it.
fn varint(mut number: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
    bytes
}

/// As many words as one batch takes.
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

/// A word that begins with a key.
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
            // What it leaves behind is cleared away, and holds up nobody either.
            let limit = Instant::now() + SOON;
            while served(&cluster, what).await != (1, 0) {
                assert!(Instant::now() < limit, "something is left: {what}");
            }
            let task = cluster.client.submit(SLEEP, (1,)).unwrap();
            assert_eq!(task.result().await.unwrap(), 1, "{what}");
        }
    });
}

/// How many times longer a processor's work takes now than alone on the machine.
fn slowdown() -> f64 {
    let worked = || {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
    };
    let (begun, before) = (Instant::now(), worked());
    while worked() - before < Duration::from_millis(100) {}
    (begun.elapsed().as_secs_f64() / (worked() - before).as_secs_f64()).max(1.0)
}

/// An honest client is answered in time; how many clients and how many tasks there are.
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

fn absurd_workers() {
    run(async {
        let cluster = Cluster::start(1, 1).await;
        let endpoint = endpoint();
        let long = format!("tcp://{}:9", "a".repeat(100_000));
        for (why, hello) in [
            ("the most are 4096", worker("tcp://127.0.0.1:9", u32::MAX.into(), 1 << 30)),
            ("address", worker("somewhere", 1, 1 << 30)),
            ("address", worker(&long, 1, 1 << 30)),
        ] {
            let hostile = Hostile::join(&endpoint, &cluster.address, &hello).await;
            assert!(hostile.welcome.len() < 5_000, "its own words do not come back");
            let welcome = String::from_utf8_lossy(&hostile.welcome);
            assert!(hostile.welcome[0] > 1 && welcome.contains(why), "{welcome:?} names {why}");
            assert_eq!(hostile.farewell().await, "");
        }
        let tasks = cluster.client.map(SLEEP, (0..20).map(|_| (1,))).unwrap();
        assert_eq!(cluster.client.gather(&tasks).await.unwrap(), [1; 20]);
    });
}
