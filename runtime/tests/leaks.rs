//! Graphs leave nothing behind. This test has a process of its own, in which nothing else opens descriptors.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use towline_runtime::{Data, ErrorKind, Function, LocalCluster, Registry, TaskResult, Worker};

const BLOCK: Function<(u8, usize), Data> = Function::new("block");
const JOIN: Function<(Vec<Data>,), u64> = Function::new("join");
const ADD: Function<(u64, u64), u64> = Function::new("add");
const FAIL: Function<(u64,), u64> = Function::new("fail");

const GRAPHS: u64 = 10_000;
const LONG: Duration = Duration::from_secs(120);

fn registry() -> Registry {
    Registry::new()
        .with(BLOCK, |byte, len| TaskResult::Ok(Data::from(vec![byte; len])))
        .with(JOIN, |blocks: Vec<Data>| {
            TaskResult::Ok(blocks.iter().map(|block| block.buffer().len() as u64).sum())
        })
        .with(ADD, |a, b| TaskResult::Ok(a + b))
        .with(FAIL, |n: u64| TaskResult::Err(format!("{n}").into()))
}

/// Descriptors and threads of this process.
fn open() -> [usize; 2] {
    ["/proc/self/fd", "/proc/self/task"].map(|folder| std::fs::read_dir(folder).expect("Linux").count())
}

/// Runs a graph of five tasks and their data; some graphs fail, are cancelled, or are dropped.
async fn run_one(cluster: &LocalCluster, graph: u64) {
    let client = cluster.client();
    let blocks = client.map(BLOCK, (0..3).map(|byte| (byte, 2_000))).unwrap();
    let joined = client.submit(JOIN, (&blocks,)).unwrap();
    let sum = client.submit(ADD, (&joined, graph)).unwrap();
    match graph % 10 {
        0 => {
            let failed = client.submit(FAIL, (&sum,)).unwrap();
            assert_eq!(failed.result().await.unwrap_err().kind(), ErrorKind::Failed);
        }
        1 => sum.cancel(),
        2 => drop(client.scatter(Data::from(vec![1; 100])).await.unwrap()),
        3 => {}
        _ => assert_eq!(sum.result().await.unwrap(), 6_000 + graph),
    }
}

#[test]
fn nothing_is_left_of_ten_thousand_graphs() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let graphs = async {
        let cluster = LocalCluster::start(3, registry()).await.unwrap();
        for graph in 0..100 {
            run_one(&cluster, graph).await;
        }
        // By now all connections are established.
        let before = open();
        for graph in 0..GRAPHS {
            run_one(&cluster, graph).await;
        }
        let left = || {
            let values: usize = cluster.workers().iter().map(Worker::values).sum();
            let bytes: u64 = cluster.workers().iter().map(Worker::memory_bytes).sum();
            (cluster.scheduler().tasks(), values, bytes, cluster.endpoint().pool().stats().in_use_bytes)
        };
        while left() != (0, 0, 0, 0) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(open(), before);
    };
    runtime.block_on(async { tokio::time::timeout(LONG, graphs).await.expect("nothing is left in time") });
}
