//! The stall timeout, with the time as an argument.

use std::time::Duration;

use super::super::stall_timeout::STALL_TIMEOUT;
use super::super::state::Departure;
use super::Harness;
use crate::error::ErrorKind;
use crate::protocol::{FromWorker, ToWorker};

const SECOND: Duration = Duration::from_secs(1);

impl Harness {
    fn tick(&mut self, now: Duration) {
        self.state.tick(now);
        self.collect();
        self.state.check();
    }

    fn has_timed_out(&mut self, sequence: u64) -> bool {
        self.failure(sequence).is_some_and(|failure| failure.kind == ErrorKind::TimedOut)
    }
}

#[test]
fn task_without_a_worker_times_out() {
    let mut harness = Harness::new(0);
    harness.submit(1, &[]);
    harness.submit(2, &[1]);
    harness.tick(SECOND);
    harness.submit(3, &[]);
    harness.tick(STALL_TIMEOUT);
    assert!(!harness.has_timed_out(1));
    harness.tick(STALL_TIMEOUT + SECOND);
    assert!(harness.has_timed_out(1) && harness.has_timed_out(2) && !harness.has_timed_out(3));
    harness.tick(2 * STALL_TIMEOUT + SECOND);
    assert!(harness.has_timed_out(3));
}

#[test]
fn stall_timeout_restarts_after_progress() {
    let mut harness = Harness::new(0);
    harness.submit(1, &[]);
    harness.submit(2, &[]);
    harness.tick(SECOND);
    // Between two ticks a worker joined, began a task, and left.
    let worker = harness.join(1, 1000);
    harness.gone(worker, Departure::Left);
    harness.tick(STALL_TIMEOUT + SECOND);
    assert!(!harness.has_timed_out(1));
    harness.tick(2 * STALL_TIMEOUT + SECOND);
    assert!(harness.has_timed_out(1));
    // A task that runs for ever is no stall.
    harness.submit(3, &[]);
    harness.join(1, 1000);
    harness.submit(4, &[]);
    harness.tick(3 * STALL_TIMEOUT);
    harness.tick(9 * STALL_TIMEOUT);
    assert!(!harness.has_timed_out(3) && !harness.has_timed_out(4));
}

#[test]
fn full_workers_free_copies_before_tasks_fail() {
    let mut harness = Harness::new(2);
    harness.submit(1, &[]);
    let (holder, assignment) = harness.assignment();
    harness.done(&(holder, assignment), 900);
    let other = 3 - holder;
    let key = harness.key(1);
    harness.worker(other, FromWorker::HasCopy { key });
    harness.submit(2, &[]);
    assert!(harness.assignments().is_empty(), "both are full");
    harness.tick(SECOND);
    let sent_messages = std::mem::take(&mut harness.to_workers);
    let freed: Vec<_> = sent_messages
        .iter()
        .filter(|(_, message)| *message == ToWorker::Free { key })
        .map(|(worker, _)| *worker)
        .collect();
    assert_eq!(freed.len(), 1, "one of two copies");
    assert!(
        matches!(&sent_messages.last(), Some((worker, ToWorker::Assign(_))) if *worker == freed[0]),
        "{sent_messages:?}"
    );

    let mut harness = Harness::new(1);
    harness.submit(1, &[]);
    let assignment = harness.assignment();
    harness.done(&assignment, 900);
    harness.submit(2, &[]);
    harness.tick(SECOND);
    harness.tick(STALL_TIMEOUT + SECOND);
    assert!(harness.has_timed_out(2), "the last copy is kept");
    let failure = harness.failure(2).expect("it failed");
    assert!(failure.detail.contains("memory of every worker is full"), "{failure:?}");
}
