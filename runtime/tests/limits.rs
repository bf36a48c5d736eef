//! Many workers, and limits in time: the stall timeout, and the loss of the scheduler.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use towline::{Address, Endpoint};
use towline_runtime::{
    Client, Data, ErrorKind, Function, LocalCluster, Registry, Scheduler, TaskResult, Worker,
};

const ADD: Function<(u64, u64), u64> = Function::new("add");
const BLOCK: Function<(u8, usize), Data> = Function::new("block");
const JOIN: Function<(Vec<Data>,), u64> = Function::new("join");
const SLEEP: Function<(u64,), u64> = Function::new("sleep");

/// Bound for each test.
const LONG: Duration = Duration::from_secs(60);
/// A lost scheduler is detected within this time.
const LOST_MAX: Duration = Duration::from_secs(12);
const STALL_TIMEOUT: Duration = Duration::from_millis(200);

fn registry() -> Registry {
    Registry::new()
        .with(ADD, |a, b| TaskResult::Ok(a + b))
        .with(BLOCK, |byte, len| TaskResult::Ok(Data::from(vec![byte; len])))
        .with(JOIN, |blocks: Vec<Data>| {
            TaskResult::Ok(blocks.iter().map(|block| block.buffer().len() as u64).sum())
        })
        .with(SLEEP, |millis| {
            std::thread::sleep(Duration::from_millis(millis));
            TaskResult::Ok(millis)
        })
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async { tokio::time::timeout(LONG, test).await.expect("it ends") });
}

/// The resources that a graph takes: task entries, values, their bytes, memory of the pool.
fn resources_in_use(cluster: &LocalCluster) -> (usize, usize, u64, usize) {
    let values = cluster.workers().iter().map(Worker::values).sum();
    let bytes = cluster.workers().iter().map(Worker::memory_bytes).sum();
    (cluster.scheduler().tasks(), values, bytes, cluster.endpoint().pool().stats().in_use_bytes)
}

#[test]
fn two_hundred_workers_share_the_work() {
    run(async {
        let cluster = LocalCluster::start(200, registry()).await.unwrap();
        assert_eq!(cluster.workers().len(), 200);
        let client = cluster.client();
        let blocks = client.map(BLOCK, (0..1_000).map(|n| (n as u8, 1_000))).unwrap();
        let sums = client.map(JOIN, blocks.windows(2).map(|two| (two.to_vec(),))).unwrap();
        assert_eq!(client.gather(&sums).await.unwrap(), vec![2_000; 999]);
        let used = cluster.workers().iter().filter(|worker| worker.values() > 0).count();
        assert_eq!(used, 200, "each of them has worked");
        drop((blocks, sums));
        while resources_in_use(&cluster) != (0, 0, 0, 0) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
}

/// A scheduler with a short stall timeout, and a client.
async fn with_short_stall_timeout(endpoint: &Endpoint) -> (Scheduler, Client) {
    let address: Address = "mem://".parse().unwrap();
    let scheduler =
        Scheduler::builder().stall_timeout(STALL_TIMEOUT).start(endpoint, &address).await.unwrap();
    let client = Client::connect(endpoint, scheduler.address()).await.unwrap();
    (scheduler, client)
}

#[test]
fn task_without_a_worker_fails_after_the_stall_timeout() {
    run(async {
        let endpoint = Endpoint::new().unwrap();
        let (scheduler, client) = with_short_stall_timeout(&endpoint).await;
        let task = client.submit(ADD, (1, 2)).unwrap();
        let next = client.submit(ADD, (&task, 3)).unwrap();
        let error = next.result().await.unwrap_err();
        assert_eq!((error.kind(), error.task()), (ErrorKind::TimedOut, Some("add")), "{error}");
        assert!(error.detail().contains("no worker joined for 0.2 s"), "{error}");
        // A worker that joins in time runs the waiting tasks.
        let task = client.submit(ADD, (1, 2)).unwrap();
        let _worker =
            Worker::builder(registry()).slots(1).start(&endpoint, scheduler.address()).await.unwrap();
        assert_eq!(task.result().await.unwrap(), 3);
    });
}

#[test]
fn full_workers_block_new_data_until_the_stall_timeout() {
    run(async {
        let endpoint = Endpoint::new().unwrap();
        let (scheduler, client) = with_short_stall_timeout(&endpoint).await;
        let builder = Worker::builder(registry()).slots(1).memory_bytes_max(10_000);
        let _worker = builder.start(&endpoint, scheduler.address()).await.unwrap();
        let kept = client.submit(BLOCK, (1, 9_000)).unwrap();
        kept.done().await.unwrap();
        let held_back = client.submit(BLOCK, (2, 1_000)).unwrap();
        let error = held_back.result().await.unwrap_err();
        assert_eq!((error.kind(), error.task()), (ErrorKind::TimedOut, Some("block")), "{error}");
        assert!(error.detail().contains("memory of every worker is full"), "{error}");
        // A task with inputs runs on a full worker, and a released result makes room.
        assert_eq!(client.submit(JOIN, (vec![&kept],)).unwrap().result().await.unwrap(), 9_000);
        let held_back = client.submit(BLOCK, (2, 1_000)).unwrap();
        tokio::time::sleep(STALL_TIMEOUT / 4).await;
        kept.release();
        assert_eq!(held_back.result().await.unwrap().buffer().len(), 1_000);
    });
}

#[test]
fn lost_scheduler_ends_workers_and_clients_in_time() {
    for address in ["mem://", "tcp://127.0.0.1:0", "towline://127.0.0.1:0"] {
        run(async {
            let endpoint = Endpoint::new().unwrap();
            let scheduler = Scheduler::start(&endpoint, &address.parse().unwrap()).await.unwrap();
            let builder = Worker::builder(registry()).slots(1);
            let mut worker = builder.start(&endpoint, scheduler.address()).await.unwrap();
            let client = Client::connect(&endpoint, scheduler.address()).await.unwrap();
            let done = client.submit(ADD, (1, 2)).unwrap();
            done.done().await.unwrap();
            let running = client.submit(SLEEP, (50,)).unwrap();
            let waiting = client.map(ADD, (0..10_000).map(|n| (n, n))).unwrap();
            drop(scheduler);
            let ends = async {
                assert_eq!(worker.ended().await.kind(), ErrorKind::SchedulerLost, "{address}");
                for future in waiting.iter().chain([&done, &running]) {
                    let error = future.result().await.unwrap_err();
                    assert_eq!(error.kind(), ErrorKind::SchedulerLost, "{address}: {error}");
                }
                let late = client.submit(ADD, (1, 2)).unwrap_err();
                assert_eq!(late.kind(), ErrorKind::SchedulerLost, "{address}");
                assert_eq!(client.scatter(1u64).await.unwrap_err().kind(), ErrorKind::SchedulerLost);
            };
            tokio::time::timeout(LOST_MAX, ends).await.expect("in time");
        });
    }
}
