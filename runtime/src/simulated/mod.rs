//! A simulated cluster on one thread, with a seeded clock and network. It runs the production state machines
//! of scheduler, workers and clients. The simulated drivers delay messages and values in seeded order, while
//! workers join, leave, pause and die, and clients cancel, release and leave.
//!
//! Failing seeds are printed. `TOWLINE_SEED=7 cargo test --package towline-runtime --lib -- simulated` runs
//! one again and prints its events. `TOWLINE_SEEDS=10000` runs that many.

mod client;
mod graph;
mod rng;
mod simulation;
mod worker;

use std::ops::Range;
use std::panic::catch_unwind;
use std::sync::atomic::{AtomicU64, Ordering};

use self::graph::Outcomes;
use self::simulation::Simulation;
use crate::error::ErrorKind;

/// Default number of seeds.
const SEEDS: u64 = 1000;
/// Threads that run seeds: each seed runs on one thread.
const THREADS: usize = 2;
/// All outcomes of a task.
const KINDS: [Option<ErrorKind>; 8] = [
    None,
    Some(ErrorKind::Failed),
    Some(ErrorKind::Panicked),
    Some(ErrorKind::Killed),
    Some(ErrorKind::Cancelled),
    Some(ErrorKind::Lost),
    Some(ErrorKind::TooLarge),
    Some(ErrorKind::TimedOut),
];
const REPRODUCE: &str = "cargo test --package towline-runtime --lib -- simulated";

#[test]
fn every_simulated_graph_ends_correctly_and_leaves_nothing() {
    if let Some(seed) = env_u64("TOWLINE_SEED") {
        let mut simulation = Simulation::new(seed);
        simulation.prints_events = true;
        simulation.run();
        return;
    }
    let seeds = env_u64("TOWLINE_SEEDS").unwrap_or(SEEDS);
    let (outcomes, failed) = run_all(0..seeds);
    assert!(failed.is_empty(), "{} seeds failed: {failed:?}", failed.len());
    // Every outcome must occur, or the test covers less than intended.
    for kind in KINDS.iter().filter(|_| seeds >= SEEDS) {
        assert!(outcomes.contains(kind), "no task ended like this: {kind:?}");
    }
}

#[test]
fn a_simulated_seed_gives_the_same_trace_every_time() {
    for seed in 0..20 {
        assert_eq!(Simulation::new(seed).run(), Simulation::new(seed).run(), "seed {seed}");
    }
    assert_ne!(Simulation::new(0).run(), Simulation::new(1).run());
}

fn env_u64(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name}={value} is no number")))
}

/// Returns the outcomes of tasks, and the failed seeds.
fn run_all(seeds: Range<u64>) -> (Outcomes, Vec<u64>) {
    let next = AtomicU64::new(seeds.start);
    let (mut outcomes, mut failed) = (Outcomes::new(), Vec::new());
    std::thread::scope(|scope| {
        let work = || {
            let (mut outcomes, mut failed) = (Outcomes::new(), Vec::new());
            loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= seeds.end {
                    return (outcomes, failed);
                }
                match catch_unwind(|| Simulation::new(seed).run()) {
                    Ok((more, _)) => outcomes.extend(more),
                    Err(_) => {
                        eprintln!("seed {seed} failed: TOWLINE_SEED={seed} {REPRODUCE}");
                        failed.push(seed);
                    }
                }
            }
        };
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(work)).collect();
        for thread in threads {
            let (more, also) = thread.join().expect("it catches");
            outcomes.extend(more);
            failed.extend(also);
        }
    });
    (outcomes, failed)
}
