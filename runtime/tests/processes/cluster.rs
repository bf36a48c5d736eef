//! A cluster of processes; this process is its client.

use std::time::{Duration, Instant};

use towline::{Address, Endpoint};
use towline_runtime::{Client, Stats};

use crate::peer::{Peer, endpoint};

/// A test's name and function.
pub(crate) type Case = (&'static str, fn());

/// Bound for each test.
const LONG: Duration = Duration::from_secs(100);
/// Bound for each step of a test.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(20);

#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) scheduler: Peer,
    pub(crate) address: Address,
    pub(crate) workers: Vec<Peer>,
    pub(crate) endpoint: Endpoint,
    pub(crate) client: Client,
}

impl Cluster {
    /// Starts a scheduler, `workers` workers and this client. They choose their own paths.
    pub(crate) async fn start(workers: usize, slots: u32) -> Self {
        let anywhere = "towline://127.0.0.1:0".parse().unwrap();
        let mut scheduler = Peer::start("scheduler", &anywhere, 0);
        let address: Address = scheduler.line().await.parse().unwrap();
        let endpoint = endpoint();
        let client = Client::connect(&endpoint, &address).await.unwrap();
        let mut cluster = Self { scheduler, address, workers: Vec::new(), endpoint, client };
        for _ in 0..workers {
            cluster.join(slots).await;
        }
        cluster.eventually("all have joined", |stats| stats.workers.len() == workers).await;
        cluster
    }

    pub(crate) async fn join(&mut self, slots: u32) {
        let mut worker = Peer::start("worker", &self.address, slots);
        assert_eq!(worker.line().await, "joined");
        self.workers.push(worker);
    }

    /// Waits until the scheduler's statistics satisfy the condition.
    pub(crate) async fn eventually(&self, what: &str, condition: impl Fn(&Stats) -> bool) -> Stats {
        let limit = Instant::now() + TIMEOUT;
        loop {
            let stats = self.client.stats().await.unwrap();
            if condition(&stats) {
                return stats;
            }
            assert!(Instant::now() < limit, "not within {TIMEOUT:?}: {what}: {stats:#?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// Runs a test within the time limit.
pub(crate) fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(LONG, test).await.expect("it ends") });
}
