//! What nothing can move, with the time told by hand.

use std::time::Duration;

use super::super::stall_timeout::STALL_TIMEOUT;
use super::super::state::Departure;
use super::Play;
use crate::error::ErrorKind;
use crate::protocol::{FromWorker, ToWorker};

const SECOND: Duration = Duration::from_secs(1);

impl Play {
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
fn without_a_worker_each_task_waits_as_long_as_it_may() {
    let mut play = Play::new(0);
    play.submit(1, &[]);
    play.submit(2, &[1]);
    play.tick(SECOND);
    play.submit(3, &[]);
    play.tick(STALL_TIMEOUT);
    assert!(!play.has_timed_out(1));
    play.tick(STALL_TIMEOUT + SECOND);
    assert!(play.has_timed_out(1) && play.has_timed_out(2) && !play.has_timed_out(3));
    play.tick(2 * STALL_TIMEOUT + SECOND);
    assert!(play.has_timed_out(3));
}

#[test]
fn stall_timeout_begins_anew_when_something_moved() {
    let mut play = Play::new(0);
    play.submit(1, &[]);
    play.submit(2, &[]);
    play.tick(SECOND);
    // Between two looks a worker came, began, and left.
    let worker = play.join(1, 1000);
    play.gone(worker, Departure::Left);
    play.tick(STALL_TIMEOUT + SECOND);
    assert!(!play.has_timed_out(1));
    play.tick(2 * STALL_TIMEOUT + SECOND);
    assert!(play.has_timed_out(1));
    // One that runs for ever is no stall.
    play.submit(3, &[]);
    play.join(1, 1000);
    play.submit(4, &[]);
    play.tick(3 * STALL_TIMEOUT);
    play.tick(9 * STALL_TIMEOUT);
    assert!(!play.has_timed_out(3) && !play.has_timed_out(4));
}

#[test]
fn full_workers_give_copies_up_before_tasks_are() {
    let mut play = Play::new(2);
    play.submit(1, &[]);
    let (holder, order) = play.order();
    play.done(&(holder, order), 900);
    let other = 3 - holder;
    let key = play.key(1);
    play.worker(other, FromWorker::Has { key });
    play.submit(2, &[]);
    assert!(play.orders().is_empty(), "both are full");
    play.tick(SECOND);
    let said = std::mem::take(&mut play.to_workers);
    let freed: Vec<_> =
        said.iter().filter(|(_, word)| *word == ToWorker::Free { key }).map(|(worker, _)| *worker).collect();
    assert_eq!(freed.len(), 1, "one of two copies");
    assert!(matches!(&said.last(), Some((worker, ToWorker::Attempt(_))) if *worker == freed[0]), "{said:?}");

    let mut play = Play::new(1);
    play.submit(1, &[]);
    let order = play.order();
    play.done(&order, 900);
    play.submit(2, &[]);
    play.tick(SECOND);
    play.tick(STALL_TIMEOUT + SECOND);
    assert!(play.has_timed_out(2), "the last copy is kept");
    let failure = play.failure(2).expect("it failed");
    assert!(failure.detail.contains("memory of every worker is full"), "{failure:?}");
}
