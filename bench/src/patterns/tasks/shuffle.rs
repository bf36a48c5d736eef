//! A shuffle between two workers: each block consists of parts, and each sink takes one part of every block.
//!
//! The blocks are made once, before the measurement. Only moving the parts to their sinks is timed.

use std::time::Instant;

use serde::{Deserialize, Serialize};
use towline_runtime::{Client, Data, Function, Future, Registry, TaskResult, Worker};

use super::{Cluster, RuntimeThread};
use crate::case::Pace;
use crate::case::{Case, Wait};
use crate::ceiling::blocking;
use crate::ceiling::memcpy::Destination;
use crate::data::payload::{Check, Layout, Payload, check};
use crate::data::place::Place;
use crate::failure::Failure;
use crate::process::child::Child;
use crate::results::sample::{Repeat, Sample};
use crate::security::trust::Trust;

/// Makes a block, of a number of parts of a number of bytes each.
const MAKE: Function<(u64, usize, usize), Vec<Part>> = Function::new("make");
const PICK: Function<(Vec<Part>, usize), Part> = Function::new("pick");
const SINK: Function<(Vec<Part>,), Consumed> = Function::new("sink");

/// One part of a block, and the number of the worker that made it.
#[derive(Debug, Serialize, Deserialize)]
struct Part {
    worker: u32,
    layout: Layout,
    number: u64,
    bytes: Data,
}

/// Bytes that a sink took, and those of them that another worker made.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Consumed {
    all: u64,
    crossed: u64,
}

/// Returns the functions of worker `worker`.
pub(super) fn registry(worker: u32) -> Registry {
    Registry::new()
        .with(MAKE, move |block, parts, part_bytes| make(worker, block, parts, part_bytes))
        .with(PICK, |parts: Vec<Part>, number: usize| {
            TaskResult::Ok(parts.into_iter().nth(number).ok_or("a block of fewer parts")?)
        })
        .with(SINK, move |parts: Vec<Part>| sink(worker, &parts))
}

fn make(worker: u32, block: u64, parts: usize, part_bytes: usize) -> TaskResult<Vec<Part>> {
    let layout = Layout::new(part_bytes, parts);
    let memory = Payload::default().prepare(layout, Place::Host)?;
    let part = |at| {
        let number = block * parts as u64 + at;
        let begin = layout.offset(number);
        Part { worker, layout, number, bytes: memory.slice(begin..begin + part_bytes).into() }
    };
    Ok((0..parts as u64).map(part).collect())
}

fn sink(worker: u32, parts: &[Part]) -> TaskResult<Consumed> {
    let mut taken = Consumed { all: 0, crossed: 0 };
    for Part { worker: maker, layout, number, bytes } in parts {
        let bytes = bytes.as_slice().ok_or("a part that is not in host memory")?;
        if bytes.len() != layout.size_bytes {
            return Err(format!("a part of {} bytes, not {}", bytes.len(), layout.size_bytes).into());
        }
        check(*layout, *number, 0, bytes, Check::Edges)?;
        taken.all += bytes.len() as u64;
        taken.crossed += if *maker == worker { 0 } else { bytes.len() as u64 };
    }
    Ok(taken)
}

pub(super) async fn repeat(
    cluster: &Cluster,
    case: &Case,
    pace: Pace,
    trust: &Trust,
    destination: &mut Destination,
) -> Result<Repeat, Failure> {
    let (blocks, part_bytes) = (case.window, part_bytes(case));
    let mut workers = ShuffleWorkers::start(cluster, case, trust).await?;
    let outcome = async {
        let client = Client::connect(&cluster.endpoint, cluster.address()).await?;
        // Both workers connect before the first block is made; otherwise one of them would get all blocks.
        while client.workers().len() < case.workers {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        let made = client.map(MAKE, (0..blocks as u64).map(|block| (block, blocks, part_bytes)))?;
        for block in &made {
            block.done().await?;
        }
        let begin = Instant::now();
        while begin.elapsed() < pace.warmup {
            round(&client, &made, &mut Sample::new()).await?;
        }
        let mut sample = Sample::new();
        let begin = Instant::now();
        loop {
            round(&client, &made, &mut sample).await?;
            sample.elapsed = begin.elapsed();
            if sample.elapsed >= pace.duration {
                break;
            }
        }
        Ok(sample)
    };
    let sample = outcome.await.map_err(|failure: Failure| workers.explain(failure))?;
    drop(workers);
    let layout = Layout::new(part_bytes, blocks);
    let memory = Payload::default().prepare(layout, Place::Host)?;
    let (mut copied, duration) = (std::mem::take(destination), pace.ceiling());
    let (copied, memcpy) = blocking(move || {
        let ceiling = copied.measure(layout, memory.as_slice().unwrap_or_default(), duration);
        (copied, ceiling)
    })
    .await?;
    *destination = copied;
    Ok(Repeat { path: cluster.path.clone(), sample, ceilings: vec![memcpy] })
}

/// Returns the bytes of a part; each block has as many parts as there are blocks.
pub(crate) fn part_bytes(case: &Case) -> usize {
    (case.size.0 / (case.window * case.window)).max(1)
}

/// Moves all parts to their sinks, once.
async fn round(client: &Client, made: &[Future<Vec<Part>>], sample: &mut Sample) -> Result<(), Failure> {
    let begin = Instant::now();
    let sinks = (0..made.len()).map(|number| {
        let parts = client.map(PICK, made.iter().map(|block| (block, number)))?;
        client.submit(SINK, (&parts,))
    });
    let sinks = sinks.collect::<Result<Vec<_>, _>>()?;
    let taken = client.gather(&sinks).await?;
    sample.record(begin.elapsed());
    sample.count(1, taken.iter().map(|taken| taken.crossed).sum());
    sample.shuffled_bytes += taken.iter().map(|taken| taken.all).sum::<u64>();
    Ok(())
}

/// Workers: a process each, or for `mem` a thread of this process each.
#[derive(Debug)]
enum ShuffleWorkers {
    Processes(Vec<Child>),
    Threads { _threads: Vec<(Worker, RuntimeThread)> },
}

impl ShuffleWorkers {
    async fn start(cluster: &Cluster, case: &Case, trust: &Trust) -> Result<Self, Failure> {
        let (scheduler, address) = (cluster.address(), case.transport.local_address());
        let memory_bytes = 4 * case.size.0 as u64 + (64 << 20);
        if case.transport.name != "mem" {
            let process = |number| {
                let words = [
                    "task-work".into(),
                    scheduler.to_string(),
                    address.clone(),
                    format!("--number={number}"),
                    format!("--memory={memory_bytes}"),
                    format!("--wait={}", case.wait.name()),
                ];
                let own = trust.serving_arguments(case.transport.is_encrypted());
                let started = Child::start(words.map(Into::into).into_iter().chain(own));
                started
                    .map(|(child, _)| child)
                    .map_err(|error| Failure::run(format!("start a worker: {error}")))
            };
            return (0..case.workers).map(process).collect::<Result<_, _>>().map(Self::Processes);
        }
        let mut threads = Vec::new();
        for number in 0..case.workers as u32 {
            let thread = RuntimeThread::start("worker", case.wait == Wait::Spin)?;
            let (endpoint, scheduler) = (trust.endpoint(case.wait)?, scheduler.clone());
            let builder = Worker::builder(registry(number)).slots(1).memory_bytes_max(memory_bytes);
            let worker = thread.run(async move { builder.start(&endpoint, &scheduler).await }).await??;
            threads.push((worker, thread));
        }
        Ok(Self::Threads { _threads: threads })
    }

    /// Returns the failure to report: a worker's death, if one died, or else `failure`.
    fn explain(&mut self, failure: Failure) -> Failure {
        let Self::Processes(children) = self else { return failure };
        let died = children.iter_mut().find_map(|child| Some((child.id(), child.status()?)));
        match died {
            Some((id, status)) => Failure::run(format!("the worker process {id} died ({status})")),
            None => failure,
        }
    }
}
