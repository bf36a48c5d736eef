//! `towline scheduler` and `towline top`, with workers and clients of this process.

use std::io::BufRead;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use towline::Endpoint;
use towline_runtime::{Client, Data, ErrorKind, Function, Registry, TaskResult, Worker};

use crate::command::{LIMIT, Running, spawn, start, towline};
use crate::interruptions::signal;
use crate::metrics::{page, value};
use crate::readers::{Format, read};

pub(crate) const FILL: Function<(u8, usize), Data> = Function::new("fill");
pub(crate) const LEN: Function<(Vec<Data>,), usize> = Function::new("len");
const FAIL: Function<(), ()> = Function::new("fail");

pub(crate) const BLOCK_LEN: usize = 1 << 20;

pub(crate) fn registry() -> Registry {
    Registry::new()
        .with(FILL, |byte, len| {
            // Long enough for the other worker to get its tasks.
            std::thread::sleep(Duration::from_millis(30));
            TaskResult::Ok(Data::from(vec![byte; len]))
        })
        .with(LEN, |blocks: Vec<Data>| TaskResult::Ok(blocks.iter().map(|block| block.buffer().len()).sum()))
        .with(FAIL, || TaskResult::Err("planned".into()))
}

/// Returns a scheduler, its address, and the URL of its metrics.
fn scheduler() -> (Running, String, String) {
    scheduler_by(&mut Command::new(env!("CARGO_BIN_EXE_towline")))
}

/// The same for a `command` that starts `towline` with the arguments added to it.
pub(crate) fn scheduler_by(command: &mut Command) -> (Running, String, String) {
    let arguments = ["scheduler", "towline://127.0.0.1:0", "--metrics", "127.0.0.1:0"];
    let mut scheduler = spawn(command.args(arguments));
    let (address, mut rest) = scheduler.first_line();
    let mut line = String::new();
    rest.read_line(&mut line).unwrap();
    let url = line.trim().strip_prefix("metrics at http://").unwrap().to_owned();
    (scheduler, address, url.strip_suffix("/metrics").unwrap().to_owned())
}

/// Runs `test` with two workers and a client of the scheduler at `address`.
fn with_workers<T>(address: &str, test: impl AsyncFnOnce(&Client, &mut [Worker]) -> T) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let address = address.parse().unwrap();
        let mut workers = Vec::new();
        for _ in 0..2 {
            // Like processes, each has its own endpoint.
            let endpoint = Endpoint::new().unwrap();
            workers.push(Worker::builder(registry()).slots(1).start(&endpoint, &address).await.unwrap());
        }
        let client = Client::connect(&Endpoint::new().unwrap(), &address).await.unwrap();
        tokio::time::timeout(LIMIT, test(&client, &mut workers)).await.unwrap()
    })
}

/// Returns the metrics of a worker, in Prometheus' text format.
fn plain(worker: &Worker) -> String {
    let mut registry = prometheus_client::registry::Registry::default();
    registry.register_collector(Box::new(worker.metrics()));
    let mut page = String::new();
    prometheus_client::encoding::prometheus_text::encode(&mut page, &registry).unwrap();
    page
}

#[test]
fn top_and_metrics_show_the_state_of_a_cluster() {
    let (_scheduler, address, at) = scheduler();
    let (document, text, scheduler_pages, worker_pages) = with_workers(&address, async |client, workers| {
        let blocks = client.map(FILL, [(1, BLOCK_LEN), (2, BLOCK_LEN)]).unwrap();
        let len = client.submit(LEN, (&blocks,)).unwrap();
        assert_eq!(len.result().await.unwrap(), 2 * BLOCK_LEN);
        let failed = client.submit(FAIL, ()).unwrap();
        assert_eq!(failed.result().await.unwrap_err().kind(), ErrorKind::Failed);
        let pages: Vec<_> = workers.iter().map(|worker| worker.metrics().text()).collect();
        let plain = plain(&workers[0]);
        let scheduler = address.clone();
        let looks = move || {
            let look = ["top", &scheduler, "--once", "--interval", "0.1"];
            let json = towline(&[&look[..], &["--json"]].concat());
            json.exits_with(0);
            let text = towline(&look);
            text.exits_with(0);
            read(&plain, Format::Plain);
            for page in &pages {
                read(page, Format::OpenMetrics);
            }
            let scheduler_pages = [Format::Plain, Format::OpenMetrics].map(|format| {
                let page = page(&at, format);
                // The families of the endpoint, of each connection, and of the scheduler.
                read(&page, format)
                    .inspect(|(all, histograms)| assert!(*all >= 28 && *histograms >= 7, "{page}"));
                page
            });
            (json.document(), text.out, scheduler_pages, pages)
        };
        tokio::task::spawn_blocking(looks).await.unwrap()
    });
    assert_eq!((&document["schema"], &document["clients"]), (&1.into(), &2.into()), "{document:#}");
    let tasks = &document["tasks"];
    assert_eq!((&tasks["done"], &tasks["failed"]), (&3.into(), &1.into()), "{document:#}");
    assert_eq!((&document["runs_done"], &document["runs_failed"]), (&3.into(), &1.into()), "{document:#}");
    let workers = document["workers"].as_array().unwrap();
    assert_eq!(workers.len(), 2, "{document:#}");
    assert!(workers.iter().all(|it| it["slots"] == 1 && it["tasks_per_s"].is_number()), "{document:#}");
    let memory: u64 = workers.iter().map(|it| it["memory_bytes"].as_u64().unwrap()).sum();
    assert!(memory >= 3 * BLOCK_LEN as u64, "two blocks, and a copy of one: {document:#}");
    let [pair] = &document["pairs"].as_array().unwrap()[..] else { panic!("{document:#}") };
    assert!(pair["bytes"].as_u64().unwrap() >= BLOCK_LEN as u64, "{document:#}");
    assert_eq!(pair["values"], 1, "{document:#}");
    assert_eq!(document["moved_bytes"], pair["bytes"], "{document:#}");
    let path = pair["path"].as_str().unwrap();
    assert!(text.contains("2 workers with 2 slots, 0 lost; 2 clients"), "{text}");
    assert!(text.contains("runs     3 done, 1 failed; 0.0/s"), "{text}");
    assert!(text.lines().any(|line| line.contains(path) && line.contains("1.0 MiB")), "{text}");

    for scheduler_page in &scheduler_pages {
        assert_eq!(value(scheduler_page, "towline_scheduler_workers"), 2.0);
        assert_eq!(value(scheduler_page, "towline_scheduler_tasks{stage=\"done\"}"), 3.0);
        assert_eq!(value(scheduler_page, "towline_scheduler_runs_total{outcome=\"failed\"}"), 1.0);
        assert!(value(scheduler_page, "towline_scheduler_moved_bytes_total") >= BLOCK_LEN as f64);
        assert!(value(scheduler_page, "towline_received_bytes_count") > 0.0, "the endpoint's as well");
    }
    let sum = |name| worker_pages.iter().map(|page| value(page, name)).sum::<f64>();
    assert_eq!(sum("towline_worker_runs_total{outcome=\"done\"}"), 3.0);
    assert_eq!(sum("towline_worker_fetched_bytes_total"), pair["bytes"].as_f64().unwrap());
    // One of the blocks was also sent to the client.
    assert!(sum("towline_worker_given_bytes_total") >= pair["bytes"].as_f64().unwrap());
    assert!(sum("towline_worker_memory_bytes{state=\"in_use\"}") >= 3.0 * BLOCK_LEN as f64);
    assert!(sum("towline_worker_run_seconds_total") > 0.05);
}

#[test]
fn a_live_table_repeats_until_interrupted() {
    let (_scheduler, address, _) = scheduler();
    let mut top = start(&["top", &address, "--interval", "0.05"]);
    let (empty, out) = top.first_line();
    assert!(empty.is_empty(), "no escapes where there is no terminal: {empty}");
    let heads = out.lines().map_while(Result::ok).filter(|line| line.contains("0 workers with 0 slots"));
    assert_eq!(heads.take(3).count(), 3);
    signal(top.id(), Signal::INT);
    top.finish().exits_with(130);
}

#[test]
fn an_ended_scheduler_closes_its_connections() {
    for (by, code) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let (scheduler, address, _) = scheduler();
        with_workers(&address, async |client, workers| {
            let begin = Instant::now();
            signal(scheduler.id(), by);
            for worker in workers {
                let error = worker.ended().await;
                assert_eq!(error.kind(), ErrorKind::SchedulerLost, "{error}");
                assert!(error.to_string().contains("closed"), "it closed in good order: {error}");
            }
            let after = client.submit(FAIL, ());
            let error = match after {
                Ok(future) => future.result().await.unwrap_err(),
                Err(error) => error,
            };
            assert_eq!(error.kind(), ErrorKind::SchedulerLost, "{error}");
            assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
        });
        scheduler.finish().exits_with(code);
    }
}

#[test]
fn top_fails_without_a_scheduler() {
    let missing = towline(&["top", "tcp://127.0.0.1:1", "--once"]);
    missing.exits_with(1);
    assert!(missing.err.contains("tcp://127.0.0.1:1"), "{}", missing.err);
    let mut serve = start(&["serve", "tcp://127.0.0.1:0"]);
    let (address, _rest) = serve.first_line();
    let wrong_kind = towline(&["top", &address, "--once"]);
    wrong_kind.exits_with(1);
    assert!(!wrong_kind.err.is_empty());
}
