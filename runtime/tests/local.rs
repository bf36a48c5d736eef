//! Clusters within this process: the guarantees for a client.

use std::future::Future as StdFuture;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use towline::Place;
use towline_runtime::{Client, Data, ErrorKind, Function, LocalCluster, Registry, TaskResult};

const ADD: Function<(i64, i64), i64> = Function::new("add");
const SUM: Function<(Vec<i64>,), i64> = Function::new("sum");
const FAIL: Function<(String,), i64> = Function::new("fail");
const PANIC: Function<(), i64> = Function::new("panic");
const PANIC_ASYNC: Function<(), i64> = Function::new("panic_async");
const SLEEP: Function<(u64,), i64> = Function::new("sleep");
const SLEEP_ASYNC: Function<(u64,), i64> = Function::new("sleep_async");
const BLOCK: Function<(u8, usize), Data> = Function::new("block");
const PAIR: Function<(Data, Data), (Data, u64)> = Function::new("pair");
const UNKNOWN: Function<(), ()> = Function::new("unknown");
const MISTYPED: Function<(String,), i64> = Function::new("add");

/// Bound for each test.
const LONG: Duration = Duration::from_secs(30);

fn registry() -> Registry {
    Registry::new()
        .with(ADD, |a, b| TaskResult::Ok(a + b))
        .with(SUM, |numbers: Vec<i64>| TaskResult::Ok(numbers.iter().sum()))
        .with(FAIL, |why: String| TaskResult::Err(why.into()))
        .with(PANIC, || panic!("planned"))
        .with_async(PANIC_ASYNC, panic_async)
        .with(SLEEP, |millis| {
            std::thread::sleep(Duration::from_millis(millis));
            TaskResult::Ok(millis as i64)
        })
        .with_async(SLEEP_ASYNC, |millis| async move {
            tokio::time::sleep(Duration::from_millis(millis)).await;
            TaskResult::Ok(millis as i64)
        })
        .with(BLOCK, |byte, len| TaskResult::Ok(Data::from(vec![byte; len])))
        .with(PAIR, |a: Data, b: Data| {
            let len = (a.buffer().len() + b.buffer().len()) as u64;
            TaskResult::Ok((a, len))
        })
}

async fn panic_async() -> TaskResult<i64> {
    tokio::task::yield_now().await;
    panic!("planned too")
}

/// Runs a test with a cluster of `workers` workers, within a time limit.
fn with_cluster<F: StdFuture<Output = ()>>(workers: usize, test: impl FnOnce(LocalCluster) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let cluster = LocalCluster::start(workers, registry()).await.expect("a cluster");
        tokio::time::timeout(LONG, test(cluster)).await.expect("it ends");
    });
}

#[test]
fn data_can_be_scattered_once_a_worker_has_joined() {
    for _ in 0..20 {
        with_cluster(2, |cluster| async move {
            let client = Client::connect(cluster.endpoint(), cluster.address()).await.unwrap();
            for client in [&client, cluster.client()] {
                let data = client.scatter(7i64).await.unwrap();
                assert_eq!(data.result().await.unwrap(), 7);
            }
            assert_eq!(cluster.client().workers().len(), 2);
        });
    }
}

#[test]
fn results_are_inputs_of_other_tasks() {
    with_cluster(2, |cluster| async move {
        let client = cluster.client();
        let mut last = client.submit(ADD, (0, 1)).unwrap();
        for n in 2..=100 {
            last = client.submit(ADD, (&last, n)).unwrap();
        }
        assert_eq!(last.result().await.unwrap(), 5050);
        let squares = client.map(ADD, (0..50).map(|n| (n, n))).unwrap();
        let sum = client.submit(SUM, (&squares,)).unwrap();
        let again = client.submit(SUM, (vec![&squares[1], &squares[1], &sum],)).unwrap();
        assert_eq!(again.result().await.unwrap(), 2 + 2 + 2450);
        assert_eq!(client.gather(&squares).await.unwrap(), (0..50).map(|n| 2 * n).collect::<Vec<_>>());
    });
}

#[test]
fn inputs_come_from_the_worker_that_has_them_without_a_copy() {
    with_cluster(2, |cluster| async move {
        let client = cluster.client();
        let one = client.scatter(Data::from(vec![1; 1 << 20])).await.unwrap();
        let two = client.scatter(Data::from(vec![2; 1 << 20])).await.unwrap();
        let holders = [client.who_has(&one).await.unwrap(), client.who_has(&two).await.unwrap()];
        assert_ne!(holders[0], holders[1], "they are with different workers");
        let pair = client.submit(PAIR, (&one, &two)).unwrap();
        let (first, len) = pair.result().await.unwrap();
        assert_eq!((len, first.buffer().place()), (2 << 20, Place::Host));
        let original = one.result().await.unwrap();
        assert_eq!(first.buffer().as_ptr(), original.buffer().as_ptr(), "the very bytes that were scattered");
        assert_eq!(client.who_has(&one).await.unwrap().len() + client.who_has(&two).await.unwrap().len(), 3);
    });
}

#[test]
fn an_error_reaches_every_dependent_with_the_task_that_failed() {
    with_cluster(2, |cluster| async move {
        let client = cluster.client();
        let failed = client.submit(FAIL, ("no such file",)).unwrap();
        let next = client.submit(ADD, (&failed, 1)).unwrap();
        let last = client.submit(SUM, (vec![&next, &next],)).unwrap();
        for future in [&failed, &next, &last] {
            let error = future.result().await.unwrap_err();
            assert_eq!((error.kind(), error.task()), (ErrorKind::Failed, Some("fail")), "{error}");
            assert_eq!(error.to_string(), "task \"fail\": failed: no such file");
        }
        // Dependents of a task that has already failed, and panics.
        let late = client.submit(ADD, (&last, 1)).unwrap();
        assert_eq!(late.result().await.unwrap_err().task(), Some("fail"));
        let panicked = client.submit(PANIC, ()).unwrap();
        let after = client.submit(ADD, (1, &panicked)).unwrap();
        let error = after.result().await.unwrap_err();
        assert_eq!(error.to_string(), "task \"panic\": panicked: planned");
        let error = client.submit(PANIC_ASYNC, ()).unwrap().result().await.unwrap_err();
        assert_eq!(error.to_string(), "task \"panic_async\": panicked: planned too");
    });
}

#[test]
fn mismatches_and_oversized_arguments_are_reported() {
    with_cluster(1, |cluster| async move {
        let client = cluster.client();
        let unknown = client.submit(UNKNOWN, ()).unwrap().result().await.unwrap_err();
        assert_eq!((unknown.kind(), unknown.task()), (ErrorKind::UnknownFunction, Some("unknown")));
        let mistyped = client.submit(MISTYPED, ("x",)).unwrap().result().await.unwrap_err();
        assert_eq!((mistyped.kind(), mistyped.task()), (ErrorKind::Invalid, Some("add")));
        let data = client.submit(PAIR, (Data::default(), Data::default())).unwrap_err();
        assert!(data.to_string().contains("scatter it"), "{data}");
        let large = client.submit(FAIL, ("x".repeat(2 << 20),)).unwrap_err();
        assert_eq!(large.kind(), ErrorKind::TooLarge);
        // Long arguments below the limit take a frame of their own.
        let long = client.submit(FAIL, ("x".repeat(1 << 19),)).unwrap().result().await.unwrap_err();
        assert_eq!(long.kind(), ErrorKind::Failed);
        let other = LocalCluster::start(1, registry()).await.unwrap();
        let foreign = other.client().submit(ADD, (1, 2)).unwrap();
        let mixed = client.submit(ADD, (&foreign, 1));
        // The first clients of two schedulers have the same number; then the scheduler reports the error.
        if let Ok(mixed) = mixed {
            assert!(mixed.result().await.is_err());
        }
    });
}

#[test]
fn async_functions_run_side_by_side_with_others() {
    with_cluster(2, |cluster| async move {
        let client = cluster.client();
        let sleepers = client.map(SLEEP_ASYNC, [(5,), (6,), (7,)]).unwrap();
        assert_eq!(client.gather(&sleepers).await.unwrap(), [5, 6, 7]);
    });
}

#[test]
fn cancelled_tasks_fail_and_so_do_their_dependents() {
    with_cluster(1, |cluster| async move {
        let client = cluster.client();
        let busy = client.submit(SLEEP, (100,)).unwrap();
        let queued = client.submit(ADD, (1, 1)).unwrap();
        let next = client.submit(ADD, (&queued, 1)).unwrap();
        queued.cancel();
        for future in [&queued, &next] {
            let error = future.result().await.unwrap_err();
            assert_eq!((error.kind(), error.task()), (ErrorKind::Cancelled, Some("add")));
        }
        assert_eq!(busy.result().await.unwrap(), 100);
        busy.cancel();
        assert_eq!(busy.result().await.unwrap(), 100, "what is done stays");
    });
}

#[test]
fn released_data_is_freed() {
    with_cluster(2, |cluster| async move {
        let client = cluster.client();
        for _ in 0..20 {
            let blocks = client.map(BLOCK, (0..8).map(|byte| (byte, 100_000))).unwrap();
            let pairs = client.map(PAIR, blocks.windows(2).map(|pair| (&pair[0], &pair[1]))).unwrap();
            client.gather(&pairs).await.unwrap();
        }
        let held = || cluster.workers().iter().map(|worker| worker.memory_bytes()).sum::<u64>();
        while held() > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
}

#[test]
fn work_of_killed_workers_is_repeated() {
    static RUNS: AtomicUsize = AtomicUsize::new(0);
    with_cluster(3, |mut cluster| async move {
        RUNS.fetch_add(1, Ordering::Relaxed);
        let blocks = cluster.client().map(BLOCK, (0..12).map(|byte| (byte, 1000))).unwrap();
        for block in &blocks {
            block.done().await.unwrap();
        }
        let slow = cluster.client().map(SLEEP, (0..6).map(|_| (30,))).unwrap();
        tokio::time::sleep(Duration::from_millis(10)).await;
        cluster.end_worker(0, true);
        cluster.end_worker(0, false);
        for (byte, block) in blocks.iter().enumerate() {
            assert_eq!(block.result().await.unwrap().as_slice(), Some(&[byte as u8; 1000][..]));
        }
        assert_eq!(cluster.client().gather(&slow).await.unwrap(), [30; 6]);
        cluster.join().await.unwrap();
        let sums = cluster.client().map(ADD, (0..20).map(|n| (n, 1))).unwrap();
        assert_eq!(cluster.client().gather(&sums).await.unwrap().len(), 20);
    });
}

#[test]
fn lost_scattered_data_is_an_error() {
    with_cluster(1, |mut cluster| async move {
        let data = cluster.client().scatter(7i64).await.unwrap();
        assert_eq!(data.result().await.unwrap(), 7);
        cluster.end_worker(0, true);
        let next = cluster.client().submit(ADD, (&data, 1)).unwrap();
        assert_eq!(next.result().await.unwrap_err().kind(), ErrorKind::Lost);
    });
}
