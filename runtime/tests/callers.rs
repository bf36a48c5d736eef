//! Calls from any runtime, executor or thread: they succeed, and keep succeeding after that runtime has
//! ended.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use towline::environment::System;
use towline::{Address, Endpoint};
use towline_runtime::{Client, Data, ErrorKind, Function, Future, Registry, Scheduler, TaskResult, Worker};
use towline_tests::polls::{block_on, in_time};

const ADD: Function<(u64, u64), u64> = Function::new("add");
const ADD_ASYNC: Function<(u64, u64), u64> = Function::new("add_async");
const BLOCK: Function<(u8, usize), Data> = Function::new("block");

const WAIT: Function<(), ()> = Function::new("wait");

/// Releases the tasks that wait.
static OPEN: AtomicBool = AtomicBool::new(false);

fn registry() -> Registry {
    Registry::new()
        .with(WAIT, || {
            while !OPEN.load(Ordering::Acquire) {
                thread::sleep(Duration::from_millis(1));
            }
            TaskResult::Ok(())
        })
        .with(ADD, |a, b| TaskResult::Ok(a + b))
        .with_async(ADD_ASYNC, |a, b| async move { TaskResult::Ok(a + b) })
        .with(BLOCK, |byte, len| TaskResult::Ok(Data::from(vec![byte; len])))
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

/// Returns the result of `work`, which runs on a thread without tokio.
async fn without_tokio<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(|| thread::spawn(work).join().unwrap()).await.unwrap()
}

/// Makes each waiting call of a client.
async fn all_calls(client: &Client, kept: &Future<Data>) {
    assert_eq!(kept.result().await.unwrap().as_slice(), Some(&[7; 50_000][..]));
    kept.done().await.unwrap();
    let sums = client.map(ADD, (0..100).map(|n| (n, n))).unwrap();
    assert_eq!(client.gather(&sums).await.unwrap(), (0..200).step_by(2).collect::<Vec<_>>());
    let given = client.scatter(Data::from(vec![3; 50_000])).await.unwrap();
    assert_eq!(given.result().await.unwrap().buffer().len(), 50_000);
    assert_eq!(client.who_has(&given).await.unwrap().len(), 1);
    assert!(!client.stats().await.unwrap().workers.is_empty());
}

/// A scheduler, two workers and a client, started and connected on the caller's executor.
async fn start(address: &str) -> (Scheduler, Vec<Worker>, Arc<Client>, Future<Data>) {
    let address: Address = address.parse().unwrap();
    let endpoint = || Endpoint::new().unwrap();
    let scheduler = Scheduler::start(&endpoint(), &address).await.unwrap();
    let mut workers = Vec::new();
    for _ in 0..2 {
        let builder = Worker::builder(registry()).slots(1);
        workers.push(builder.start(&endpoint(), scheduler.address()).await.unwrap());
    }
    let client = Client::connect(&endpoint(), scheduler.address()).await.unwrap();
    let kept = client.submit(BLOCK, (7, 50_000)).unwrap();
    kept.done().await.unwrap();
    (scheduler, workers, Arc::new(client), kept)
}

const ADDRESSES: [&str; 3] = ["mem://", "tcp://127.0.0.1:0", "towline://127.0.0.1:0"];

#[test]
fn calls_survive_the_end_of_other_callers_runtimes() {
    for address in ADDRESSES {
        runtime().block_on(async {
            let (_scheduler, _workers, client, kept) = start(address).await;
            for _ in 0..3 {
                let (theirs, their_kept) = (client.clone(), kept.clone());
                let elsewhere = without_tokio(move || runtime().block_on(all_calls(&theirs, &their_kept)));
                in_time("another runtime, which ends", elsewhere).await;
                in_time("this runtime", all_calls(&client, &kept)).await;
            }
        });
    }
}

#[test]
fn every_call_works_without_tokio() {
    for address in ADDRESSES {
        let talk = without_tokio(move || {
            block_on(async {
                let (scheduler, mut workers, client, kept) = start(address).await;
                all_calls(&client, &kept).await;
                let sum = client.submit(ADD_ASYNC, (1, 2)).unwrap();
                assert_eq!(sum.result().await.unwrap(), 3);
                workers.pop().unwrap().close().await;
                all_calls(&client, &kept).await;
                scheduler.close().await;
                workers.pop().unwrap().ended().await
            })
        });
        runtime().block_on(in_time("a thread without tokio", talk));
    }
}

#[test]
fn cluster_survives_the_runtime_that_started_it() {
    for address in ADDRESSES {
        let starting = runtime();
        let (_scheduler, _workers, client, kept) = starting.block_on(start(address));
        // The starting runtime exists, but nothing drives it.
        runtime().block_on(in_time("next to an idle runtime", all_calls(&client, &kept)));
        drop(starting);
        runtime().block_on(in_time("after that runtime", all_calls(&client, &kept)));
    }
}

#[test]
fn end_of_an_environment_fails_all_pending_calls() {
    for address in ADDRESSES {
        let environment = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let handle = environment.handle().clone();
        let on_it = || {
            let system = Arc::new(System::on(handle.clone()));
            Endpoint::builder().environment(system).build().unwrap()
        };
        runtime().block_on(async {
            let (scheduler, workers, client, _kept) = start(address).await;
            let builder = Worker::builder(registry()).slots(1);
            let mut lost = builder.start(&on_it(), scheduler.address()).await.unwrap();
            let deaf = Client::connect(&on_it(), scheduler.address()).await.unwrap();
            let waiting = deaf.submit(WAIT, ()).unwrap();
            // One task runs on the worker that will be lost.
            let busy = client.map(WAIT, [(), (), ()]).unwrap();
            let all_busy =
                async || client.stats().await.unwrap().workers.iter().all(|worker| worker.given > 0);
            while !all_busy().await {}
            environment.shutdown_background();
            assert_eq!(in_time("a worker", lost.ended()).await.kind(), ErrorKind::Closed);
            assert_eq!(in_time("a result", waiting.result()).await.unwrap_err().kind(), ErrorKind::Closed);
            assert_eq!(in_time("an answer", deaf.stats()).await.unwrap_err().kind(), ErrorKind::Closed);
            assert_eq!(deaf.submit(ADD, (1, 2)).unwrap_err().kind(), ErrorKind::Closed);
            // The lost worker's task runs on another worker.
            OPEN.store(true, Ordering::Release);
            in_time("what it ran", client.gather(&busy)).await.unwrap();
            in_time("the others", all_calls(&client, &client.submit(BLOCK, (7, 50_000)).unwrap())).await;
            drop(workers);
        });
        OPEN.store(false, Ordering::Release);
    }
}
