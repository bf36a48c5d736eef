//! Processes that are killed or stopped while they work.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use towline_runtime::{Client, Data, ErrorKind, Future};
use towline_tests::polls::within;

use crate::cluster::{Case, Cluster, run};
use crate::functions::{ABORT, BLOCK, MIX, SLEEP, block, mix};
use crate::peer::{HEARTBEAT, Peer};

pub(crate) const CASES: &[Case] = &[
    ("results_are_correct_when_workers_are_killed", killed_during_graphs),
    ("task_that_kills_three_workers_fails_and_others_succeed", three_losses),
    ("stopped_worker_is_lost_and_its_work_is_repeated", stopped),
    ("killed_scheduler_ends_workers_and_clients_within_a_second", scheduler_killed),
    ("stopped_scheduler_ends_workers_and_clients_by_heartbeat", scheduler_stopped),
];

/// Rounds of graphs in one cluster. Each round kills two workers.
const ROUNDS: u64 = 8;
const WIDTH: usize = 12;
const LAYERS: usize = 5;
const LEN: usize = 20_000;

/// Seeded random numbers (splitmix64).
#[derive(Debug)]
struct Rng(u64);

impl Rng {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end
    }
}

/// Returns the inputs of a block of the next layer.
fn partners(at: usize, layer: usize) -> [usize; 2] {
    [at, (at * 5 + layer + 1) % WIDTH]
}

/// Submits layers of blocks, each mixed from two blocks of the layer before. Returns the futures of the last
/// layer, and its expected contents.
fn graph(client: &Client, round: u64) -> (Vec<Future<Data>>, Vec<Vec<u8>>) {
    let seed = |at: usize| (at as u64 * 7 + round) as u8;
    let mut last = client.map(BLOCK, (0..WIDTH).map(|at| (seed(at), LEN))).unwrap();
    let mut expected: Vec<_> = (0..WIDTH).map(|at| block(seed(at), LEN)).collect();
    for layer in 0..LAYERS {
        let pairs = (0..WIDTH).map(|at| partners(at, layer));
        last = client.map(MIX, pairs.clone().map(|[a, b]| (&last[a], &last[b]))).unwrap();
        expected = pairs.map(|[a, b]| mix(&expected[a], &expected[b])).collect();
    }
    (last, expected)
}

fn killed_during_graphs() {
    let base: u64 = std::env::var("TOWLINE_SEED").map_or(1, |seed| seed.parse().unwrap());
    run(async {
        let mut cluster = Cluster::start(3, 2).await;
        for round in 0..ROUNDS {
            let mut rng = Rng(base.wrapping_mul(ROUNDS) + round);
            println!("round {round} of TOWLINE_SEED={base}");
            let (blocks, expected) = graph(&cluster.client, round);
            for _ in 0..2 {
                tokio::time::sleep(Duration::from_millis(rng.below(40))).await;
                let victim = rng.below(cluster.workers.len() as u64) as usize;
                cluster.workers.swap_remove(victim).signal(Signal::KILL);
                cluster.join(2).await;
            }
            let results = cluster.client.gather(&blocks).await.unwrap();
            for (result, expected) in results.iter().zip(&expected) {
                assert!(result.as_slice() == Some(expected), "round {round} of TOWLINE_SEED={base}");
            }
        }
        let stats = cluster.eventually("all deaths were noticed", |it| it.workers.len() == 3).await;
        assert_eq!(stats.workers_lost, 2 * ROUNDS);
        let tasks = ROUNDS * (WIDTH * (LAYERS + 1)) as u64;
        assert!(stats.runs_done > tasks, "something was made again: {stats:#?}");
        cluster.eventually("nothing is left", |it| it.workers.iter().all(|it| it.results == 0)).await;
    });
}

fn three_losses() {
    run(async {
        let mut cluster = Cluster::start(4, 2).await;
        let beside = cluster.client.map(SLEEP, (0..8).map(|_| (20,))).unwrap();
        let killer = cluster.client.submit(ABORT, ()).unwrap();
        let after = cluster.client.map(SLEEP, (0..8).map(|_| (20,))).unwrap();
        let error = killer.result().await.unwrap_err();
        assert_eq!((error.kind(), error.task()), (ErrorKind::Killed, Some("abort")), "{error}");
        let all: Vec<_> = beside.into_iter().chain(after).collect();
        assert_eq!(cluster.client.gather(&all).await.unwrap(), [20; 16]);
        let stats = cluster.client.stats().await.unwrap();
        assert_eq!((stats.workers.len(), stats.workers_lost), (1, 3), "{stats:#?}");
        cluster.join(1).await;
    });
}

fn stopped() {
    run(async {
        let mut cluster = Cluster::start(2, 2).await;
        let (blocks, expected) = graph(&cluster.client, 3);
        tokio::time::sleep(Duration::from_millis(20)).await;
        cluster.workers[0].signal(Signal::STOP);
        // The scheduler detects the loss after three heartbeats, and notifies workers that are fetching from
        // it.
        let limit = 3 * HEARTBEAT + Duration::from_secs(3);
        let results = within(limit, "the graph", cluster.client.gather(&blocks)).await.unwrap();
        assert!(results.iter().zip(&expected).all(|(result, expected)| result.as_slice() == Some(expected)));
        let stats = cluster.eventually("it is lost", |stats| stats.workers.len() == 1).await;
        assert_eq!(stats.workers_lost, 1);
        // When the worker continues, it detects that it was lost.
        cluster.workers[0].signal(Signal::CONT);
        assert_eq!(cluster.workers[0].line().await, "SchedulerLost");
        assert_eq!(cluster.client.submit(SLEEP, (1,)).unwrap().result().await.unwrap(), 1);
    });
}

fn scheduler_killed() {
    scheduler_ends(Signal::KILL, Duration::from_secs(1));
}

fn scheduler_stopped() {
    scheduler_ends(Signal::STOP, 4 * HEARTBEAT + Duration::from_secs(1));
}

/// Asserts that all detect the loss within `limit`.
fn scheduler_ends(signal: Signal, limit: Duration) {
    run(async {
        let mut cluster = Cluster::start(2, 1).await;
        let mut client = Peer::start("client", &cluster.address, 0);
        assert_eq!(client.line().await, "made");
        let endless = cluster.client.submit(SLEEP, (3_600_000,)).unwrap();
        cluster.eventually("it runs", |stats| stats.tasks.sent == 2).await;
        cluster.scheduler.signal(signal);
        let begin = Instant::now();
        let error = endless.result().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::SchedulerLost, "{error}");
        assert_eq!(client.line().await, "SchedulerLost");
        for worker in &mut cluster.workers {
            assert_eq!(worker.line().await, "SchedulerLost");
        }
        assert!(begin.elapsed() < limit, "{:?} is more than {limit:?}", begin.elapsed());
        assert_eq!(cluster.client.submit(SLEEP, (1,)).unwrap_err().kind(), ErrorKind::SchedulerLost);
    });
}
