//! The state machine by itself, with a scheduler and a shell played by hand.

use super::state::{Action, FETCHES_MAX, Start, State};
use crate::error::{ErrorKind, Failure};
use crate::protocol::{Arguments, Assignment, Attempt, FromWorker, Input, Key, Priority};

const A: Key = Key::new(1, 1);
const B: Key = Key::new(1, 2);

fn input(key: Key, bytes: u64, holders: &[u32]) -> Input {
    Input { key, bytes, holders: holders.to_vec() }
}

fn order(run: Attempt, inputs: &[Input]) -> Assignment {
    Assignment {
        key: Key::new(2, run),
        run,
        function: 0,
        priority: Priority { root: run, ..Priority::default() },
        inputs: inputs.to_vec(),
        arguments: Arguments::default(),
    }
}

fn begun(actions: &[Action]) -> Vec<Attempt> {
    let run = |action: &Action| match action {
        Action::Begin(Start { run, .. }) => Some(*run),
        _ => None,
    };
    actions.iter().filter_map(run).collect()
}

fn fetches(actions: &[Action]) -> Vec<(Key, u32)> {
    let fetch = |action: &Action| match action {
        Action::Fetch { key, from, .. } => Some((*key, *from)),
        _ => None,
    };
    actions.iter().filter_map(fetch).collect()
}

fn said(actions: Vec<Action>) -> Vec<FromWorker> {
    let word = |action| match action {
        Action::Say(word) => Some(word),
        _ => None,
    };
    actions.into_iter().filter_map(word).collect()
}

#[test]
fn as_many_run_as_there_are_slots_and_the_most_urgent_first() {
    let mut state = State::new(2, 1000);
    for run in [3, 1, 2] {
        state.ordered(order(run, &[]));
    }
    assert_eq!(begun(&state.take_actions()), [1, 2]);
    state.ended(1, Key::new(2, 1), Ok(10), 5);
    let actions = state.take_actions();
    assert_eq!(begun(&actions), [3]);
    assert_eq!(said(actions), [FromWorker::Done { key: Key::new(2, 1), run: 1, bytes: 10, micros: 5 }]);
    assert_eq!(state.bytes(), 10);
}

#[test]
fn an_input_is_fetched_once_for_all_that_need_it() {
    let mut state = State::new(4, 1000);
    state.ordered(order(1, &[input(A, 10, &[7]), input(B, 10, &[8])]));
    state.ordered(order(2, &[input(A, 10, &[7])]));
    assert_eq!(fetches(&state.take_actions()), [(A, 7), (B, 8)]);
    state.fetched(A, Some(10));
    let actions = state.take_actions();
    assert_eq!((begun(&actions), fetches(&actions)), (vec![2], vec![]));
    assert_eq!(said(actions), [FromWorker::Has { key: A }]);
    state.fetched(B, Some(10));
    assert_eq!(begun(&state.take_actions()), [1]);
}

#[test]
fn fetches_are_bounded_and_so_is_memory() {
    let mut state = State::new(1, 100);
    let inputs: Vec<_> = (0..40).map(|n| input(Key::new(1, n), 1, &[7])).collect();
    state.ordered(order(1, &inputs));
    assert_eq!(fetches(&state.take_actions()).len(), FETCHES_MAX);

    let mut state = State::new(1, 100);
    state.ordered(order(1, &[input(A, 80, &[7])]));
    state.ordered(order(2, &[input(B, 80, &[7])]));
    assert_eq!(fetches(&state.take_actions()), [(A, 7)]);
    state.fetched(A, Some(80));
    let actions = state.take_actions();
    assert_eq!((begun(&actions), fetches(&actions)), (vec![1], vec![]), "no room for the second");
    state.ended(1, Key::new(2, 1), Ok(0), 1);
    state.freed(A);
    let actions = state.take_actions();
    assert!(actions.contains(&Action::Discard(A)));
    assert_eq!(fetches(&actions), [(B, 7)]);
}

#[test]
fn a_worker_that_is_full_of_results_still_takes_one_input() {
    let mut state = State::new(1, 100);
    state.given(A, 90);
    state.ordered(order(1, &[input(B, 80, &[7])]));
    assert_eq!(fetches(&state.take_actions()), [(B, 7)], "nothing else could go on");
}

#[test]
fn every_holder_is_tried_before_a_run_is_given_back() {
    let mut state = State::new(1, 1000);
    state.ordered(order(1, &[input(A, 1, &[7, 8]), input(B, 1, &[9])]));
    state.take_actions();
    state.fetched(B, Some(1));
    state.fetched(A, None);
    assert_eq!(fetches(&state.take_actions()), [(A, 8)]);
    state.fetched(A, None);
    let lacking = vec![(A, 7), (A, 8)];
    let returned = FromWorker::Returned { key: Key::new(2, 1), run: 1, lacking };
    assert_eq!(said(state.take_actions()), [returned]);
    state.freed(B);
    assert!(state.take_actions().contains(&Action::Discard(B)));
    assert_eq!(state.bytes(), 0);
}

#[test]
fn recalled_runs_go_back_unless_they_have_begun() {
    let mut state = State::new(1, 1000);
    state.ordered(order(1, &[]));
    state.ordered(order(2, &[]));
    state.take_actions();
    state.recalled(1);
    state.recalled(2);
    let returned = FromWorker::Returned { key: Key::new(2, 2), run: 2, lacking: Vec::new() };
    assert_eq!(said(state.take_actions()), [returned]);
    state.ended(1, Key::new(2, 1), Ok(1), 1);
    assert_eq!(begun(&state.take_actions()), []);
}

#[test]
fn what_a_dropped_run_made_is_discarded() {
    let mut state = State::new(1, 1000);
    state.ordered(order(1, &[input(A, 5, &[7])]));
    state.take_actions();
    state.fetched(A, Some(5));
    state.take_actions();
    state.freed(A);
    assert!(state.take_actions().is_empty(), "the run uses it");
    state.dropped(1);
    assert_eq!(state.take_actions(), [Action::Discard(A)]);
    state.ended(1, Key::new(2, 1), Ok(9), 1);
    assert_eq!(state.take_actions(), [Action::Discard(Key::new(2, 1))]);
    assert_eq!(state.bytes(), 0);
}

#[test]
fn a_fetch_that_nobody_waits_for_leaves_nothing() {
    let mut state = State::new(1, 1000);
    state.ordered(order(1, &[input(A, 5, &[7]), input(B, 5, &[7])]));
    state.take_actions();
    state.dropped(1);
    state.fetched(A, Some(5));
    state.fetched(B, None);
    assert_eq!(state.take_actions(), [Action::Discard(A), Action::Discard(B)]);
    assert_eq!(state.bytes(), 0);
}

/// Found by the simulation: seed 3409.
#[test]
fn what_a_dropped_run_made_of_a_value_that_was_being_fetched_is_discarded() {
    let mut state = State::new(2, 1000);
    state.ordered(order(1, &[input(A, 5, &[7])]));
    // The scheduler has lost its holder, has it made here, and needs it no more.
    state.ordered(Assignment { key: A, ..order(2, &[]) });
    assert_eq!(begun(&state.take_actions()), [2]);
    state.dropped(1);
    state.dropped(2);
    state.ended(2, A, Ok(5), 1);
    assert_eq!(state.take_actions(), [], "it is on its way here still");
    state.fetched(A, None);
    assert_eq!(state.take_actions(), [Action::Discard(A)]);
    state.check_empty();
}

#[test]
fn a_result_that_never_fits_is_an_error() {
    let mut state = State::new(1, 100);
    state.ordered(order(1, &[]));
    state.take_actions();
    let key = Key::new(2, 1);
    state.ended(1, key, Ok(101), 1);
    let actions = state.take_actions();
    assert!(actions.contains(&Action::Discard(key)));
    let words = said(actions);
    let [FromWorker::Failed { failure: Failure { kind, detail, .. }, .. }] = &words[..] else {
        panic!("{words:?}")
    };
    assert_eq!(*kind, ErrorKind::TooLarge);
    assert!(detail.contains("101") && detail.contains("100"), "{detail}");
}

#[test]
fn what_clients_are_giving_has_its_room() {
    let mut state = State::new(1, 100);
    state.expect(A, 60).unwrap();
    assert_eq!(state.expect(B, 60).unwrap_err().kind, ErrorKind::TooLarge, "though nothing is here");
    state.gave(60);
    state.given(A, 60);
    assert_eq!(state.expect(A, 10).unwrap_err().kind, ErrorKind::Invalid, "what is here stays as it is");
    assert_eq!(state.expect(B, u64::MAX).unwrap_err().kind, ErrorKind::TooLarge);
    state.expect(B, 40).unwrap();
    // Nothing else is brought into that room while something runs.
    state.ordered(order(1, &[]));
    state.ordered(order(2, &[input(Key::new(1, 3), 1, &[7])]));
    assert_eq!(fetches(&state.take_actions()), []);
    state.gave(40);
    state.ordered(order(3, &[input(Key::new(1, 4), 1, &[7])]));
    assert_eq!(fetches(&state.take_actions()).len(), 2);
}
