//! Tests of the state machine alone: the tests play the scheduler and the driver.

use super::state::{FETCHES_MAX, Start, WorkerAction, WorkerState};
use crate::error::{ErrorKind, Failure};
use crate::protocol::{Assignment, Attempt, FromWorker, Input, Key, Priority, TaskArguments};

const A: Key = Key::new(1, 1);
const B: Key = Key::new(1, 2);

fn input(key: Key, bytes: u64, holders: &[u32]) -> Input {
    Input { key, bytes, holders: holders.to_vec() }
}

fn assignment(attempt: Attempt, inputs: &[Input]) -> Assignment {
    Assignment {
        key: Key::new(2, attempt),
        attempt,
        function: 0,
        priority: Priority { root: attempt, ..Priority::default() },
        inputs: inputs.to_vec(),
        arguments: TaskArguments::default(),
    }
}

fn begun(actions: &[WorkerAction]) -> Vec<Attempt> {
    let attempt = |action: &WorkerAction| match action {
        WorkerAction::Begin(Start { attempt, .. }) => Some(*attempt),
        _ => None,
    };
    actions.iter().filter_map(attempt).collect()
}

fn fetches(actions: &[WorkerAction]) -> Vec<(Key, u32)> {
    let fetch = |action: &WorkerAction| match action {
        WorkerAction::Fetch { key, from, .. } => Some((*key, *from)),
        _ => None,
    };
    actions.iter().filter_map(fetch).collect()
}

fn sent(actions: Vec<WorkerAction>) -> Vec<FromWorker> {
    let message = |action| match action {
        WorkerAction::Send(message) => Some(message),
        _ => None,
    };
    actions.into_iter().filter_map(message).collect()
}

#[test]
fn slots_limit_concurrency_and_urgent_attempts_run_first() {
    let mut state = WorkerState::new(2, 1000);
    for attempt in [3, 1, 2] {
        state.assigned(assignment(attempt, &[]));
    }
    assert_eq!(begun(&state.take_actions()), [1, 2]);
    state.ended(1, Key::new(2, 1), Ok(10), 5);
    let actions = state.take_actions();
    assert_eq!(begun(&actions), [3]);
    assert_eq!(sent(actions), [FromWorker::Done { key: Key::new(2, 1), attempt: 1, bytes: 10, micros: 5 }]);
    assert_eq!(state.bytes(), 10);
}

#[test]
fn shared_input_is_fetched_once() {
    let mut state = WorkerState::new(4, 1000);
    state.assigned(assignment(1, &[input(A, 10, &[7]), input(B, 10, &[8])]));
    state.assigned(assignment(2, &[input(A, 10, &[7])]));
    assert_eq!(fetches(&state.take_actions()), [(A, 7), (B, 8)]);
    state.fetched(A, Some(10));
    let actions = state.take_actions();
    assert_eq!((begun(&actions), fetches(&actions)), (vec![2], vec![]));
    assert_eq!(sent(actions), [FromWorker::HasCopy { key: A }]);
    state.fetched(B, Some(10));
    assert_eq!(begun(&state.take_actions()), [1]);
}

#[test]
fn fetches_and_memory_are_bounded() {
    let mut state = WorkerState::new(1, 100);
    let inputs: Vec<_> = (0..40).map(|n| input(Key::new(1, n), 1, &[7])).collect();
    state.assigned(assignment(1, &inputs));
    assert_eq!(fetches(&state.take_actions()).len(), FETCHES_MAX);

    let mut state = WorkerState::new(1, 100);
    state.assigned(assignment(1, &[input(A, 80, &[7])]));
    state.assigned(assignment(2, &[input(B, 80, &[7])]));
    assert_eq!(fetches(&state.take_actions()), [(A, 7)]);
    state.fetched(A, Some(80));
    let actions = state.take_actions();
    assert_eq!((begun(&actions), fetches(&actions)), (vec![1], vec![]), "no room for the second");
    state.ended(1, Key::new(2, 1), Ok(0), 1);
    state.freed(A);
    let actions = state.take_actions();
    assert!(actions.contains(&WorkerAction::Discard(A)));
    assert_eq!(fetches(&actions), [(B, 7)]);
}

#[test]
fn full_worker_still_fetches_one_input() {
    let mut state = WorkerState::new(1, 100);
    state.stored(A, 90);
    state.assigned(assignment(1, &[input(B, 80, &[7])]));
    assert_eq!(fetches(&state.take_actions()), [(B, 7)], "nothing else could go on");
}

#[test]
fn all_holders_are_tried_before_an_attempt_is_returned() {
    let mut state = WorkerState::new(1, 1000);
    state.assigned(assignment(1, &[input(A, 1, &[7, 8]), input(B, 1, &[9])]));
    state.take_actions();
    state.fetched(B, Some(1));
    state.fetched(A, None);
    assert_eq!(fetches(&state.take_actions()), [(A, 8)]);
    state.fetched(A, None);
    let lacking = vec![(A, 7), (A, 8)];
    let returned = FromWorker::Returned { key: Key::new(2, 1), attempt: 1, lacking };
    assert_eq!(sent(state.take_actions()), [returned]);
    state.freed(B);
    assert!(state.take_actions().contains(&WorkerAction::Discard(B)));
    assert_eq!(state.bytes(), 0);
}

#[test]
fn recalled_attempts_are_returned_unless_begun() {
    let mut state = WorkerState::new(1, 1000);
    state.assigned(assignment(1, &[]));
    state.assigned(assignment(2, &[]));
    state.take_actions();
    state.recalled(1);
    state.recalled(2);
    let returned = FromWorker::Returned { key: Key::new(2, 2), attempt: 2, lacking: Vec::new() };
    assert_eq!(sent(state.take_actions()), [returned]);
    state.ended(1, Key::new(2, 1), Ok(1), 1);
    assert_eq!(begun(&state.take_actions()), []);
}

#[test]
fn result_of_a_dropped_attempt_is_discarded() {
    let mut state = WorkerState::new(1, 1000);
    state.assigned(assignment(1, &[input(A, 5, &[7])]));
    state.take_actions();
    state.fetched(A, Some(5));
    state.take_actions();
    state.freed(A);
    assert!(state.take_actions().is_empty(), "the run uses it");
    state.dropped(1);
    assert_eq!(state.take_actions(), [WorkerAction::Discard(A)]);
    state.ended(1, Key::new(2, 1), Ok(9), 1);
    assert_eq!(state.take_actions(), [WorkerAction::Discard(Key::new(2, 1))]);
    assert_eq!(state.bytes(), 0);
}

#[test]
fn unneeded_fetch_leaves_nothing() {
    let mut state = WorkerState::new(1, 1000);
    state.assigned(assignment(1, &[input(A, 5, &[7]), input(B, 5, &[7])]));
    state.take_actions();
    state.dropped(1);
    state.fetched(A, Some(5));
    state.fetched(B, None);
    assert_eq!(state.take_actions(), [WorkerAction::Discard(A), WorkerAction::Discard(B)]);
    assert_eq!(state.bytes(), 0);
}

/// Found by the simulation: seed 3409.
#[test]
fn dropped_attempt_and_fetch_of_one_key_leave_nothing() {
    let mut state = WorkerState::new(2, 1000);
    state.assigned(assignment(1, &[input(A, 5, &[7])]));
    // The scheduler has lost the holder, computes the value here, and then releases it.
    state.assigned(Assignment { key: A, ..assignment(2, &[]) });
    assert_eq!(begun(&state.take_actions()), [2]);
    state.dropped(1);
    state.dropped(2);
    state.ended(2, A, Ok(5), 1);
    assert_eq!(state.take_actions(), [], "it is on its way here still");
    state.fetched(A, None);
    assert_eq!(state.take_actions(), [WorkerAction::Discard(A)]);
    state.check_empty();
}

#[test]
fn result_larger_than_memory_fails() {
    let mut state = WorkerState::new(1, 100);
    state.assigned(assignment(1, &[]));
    state.take_actions();
    let key = Key::new(2, 1);
    state.ended(1, key, Ok(101), 1);
    let actions = state.take_actions();
    assert!(actions.contains(&WorkerAction::Discard(key)));
    let messages = sent(actions);
    let [FromWorker::Failed { failure: Failure { kind, detail, .. }, .. }] = &messages[..] else {
        panic!("{messages:?}")
    };
    assert_eq!(*kind, ErrorKind::TooLarge);
    assert!(detail.contains("101") && detail.contains("100"), "{detail}");
}

#[test]
fn client_values_have_reservations() {
    let mut state = WorkerState::new(1, 100);
    state.reserve(A, 60).unwrap();
    assert_eq!(state.reserve(B, 60).unwrap_err().kind, ErrorKind::TooLarge, "though nothing is here");
    state.release_reservation(60);
    state.stored(A, 60);
    assert_eq!(state.reserve(A, 10).unwrap_err().kind, ErrorKind::Invalid, "what is here stays as it is");
    assert_eq!(state.reserve(B, u64::MAX).unwrap_err().kind, ErrorKind::TooLarge);
    state.reserve(B, 40).unwrap();
    // Nothing else may use the reservation while an attempt runs.
    state.assigned(assignment(1, &[]));
    state.assigned(assignment(2, &[input(Key::new(1, 3), 1, &[7])]));
    assert_eq!(fetches(&state.take_actions()), []);
    state.release_reservation(40);
    state.assigned(assignment(3, &[input(Key::new(1, 4), 1, &[7])]));
    assert_eq!(fetches(&state.take_actions()).len(), 2);
}
