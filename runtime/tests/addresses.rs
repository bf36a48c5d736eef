//! Addresses of workers: where they listen, what the scheduler publishes, and what peers connect to.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use towline::{Address, Endpoint, Token};
use towline_runtime::{Client, ErrorKind, Function, Registry, Scheduler, TaskResult, Worker};

const ADD: Function<(u64, u64), u64> = Function::new("add");
const TEXT: Function<(usize,), String> = Function::new("text");

fn registry() -> Registry {
    Registry::new().with(ADD, |a, b| TaskResult::Ok(a + b)).with(TEXT, |len| TaskResult::Ok("x".repeat(len)))
}

fn endpoint() -> Endpoint {
    Endpoint::builder().token(Token::from_bytes("of this cluster").unwrap()).build().unwrap()
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(60), test).await.expect("it ends") });
}

fn address(text: &str) -> Address {
    text.parse().unwrap()
}

#[test]
fn results_come_from_workers_at_wildcard_addresses() {
    for listen in ["tcp://0.0.0.0:0", "tcp://*:0", "towline://*:0"] {
        run(async {
            let endpoints = [endpoint(), endpoint(), endpoint()];
            let scheduler = Scheduler::start(&endpoints[0], &address("tcp://127.0.0.1:0")).await.unwrap();
            let mut workers = Vec::new();
            for endpoint in &endpoints[1..] {
                let builder = Worker::builder(registry()).slots(1).listen(address(listen));
                workers.push(builder.start(endpoint, scheduler.address()).await.unwrap());
            }
            let client = Client::connect(&endpoints[0], scheduler.address()).await.unwrap();
            // Each worker has some of the texts and needs the other's.
            let texts = client.map(TEXT, (0..8).map(|n| (100_000 + n,))).unwrap();
            let lens = client.gather(&texts).await.unwrap();
            assert_eq!(lens.iter().map(String::len).sum::<usize>(), 800_028, "{listen}");
            let [first, second] = &client.workers()[..] else { panic!("two workers") };
            for worker in [first, second] {
                assert!(worker.contains("127.0.0.1:"), "{listen}: {worker} leads somewhere");
            }
        });
    }
}

#[test]
fn peers_connect_to_the_advertised_address() {
    run(async {
        let endpoint = endpoint();
        let scheduler = Scheduler::start(&endpoint, &address("tcp://127.0.0.1:0")).await.unwrap();
        let builder = Worker::builder(registry()).slots(1).listen(address("tcp://0.0.0.0:0"));
        // As for a worker whose port is published elsewhere.
        let builder = builder.advertise(address("tcp://127.0.0.2:0"));
        let _worker = builder.start(&endpoint, scheduler.address()).await.unwrap();
        let client = Client::connect(&endpoint, scheduler.address()).await.unwrap();
        let five = client.submit(ADD, (2, 3)).unwrap();
        assert_eq!(five.result().await.unwrap(), 5);
        assert!(client.workers()[0].starts_with("tcp://127.0.0.2:"), "{:?}", client.workers());
        let nowhere = Worker::builder(registry()).advertise(address("tcp://*:0"));
        let refused = nowhere.start(&endpoint, scheduler.address()).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Invalid, "{refused}");
    });
}

#[test]
fn worker_address_inherits_scheduler_address_options() {
    run(async {
        let endpoint = endpoint();
        let scheduler = Scheduler::start(&endpoint, &address("tcp://127.0.0.1:0")).await.unwrap();
        let asked = scheduler.address().clone().with_option("integrity", "crc32c").unwrap();
        let _worker = Worker::builder(registry()).slots(1).start(&endpoint, &asked).await.unwrap();
        let client = Client::connect(&endpoint, scheduler.address()).await.unwrap();
        assert_eq!(client.submit(ADD, (2, 3)).unwrap().result().await.unwrap(), 5);
        assert!(client.workers()[0].ends_with("?integrity=crc32c"), "{:?}", client.workers());
    });
}
