//! What peers may make the scheduler keep, say and believe.

use super::*;
use crate::line::{BATCH_LEN, BATCH_LEN_MAX};
use crate::protocol::{ARGUMENTS_LEN_MAX, Blob, INPUTS_MAX, Input, NEW_FUNCTIONS_MAX, Priority};
use crate::value::Placeholder;

impl Play {
    fn refused(&mut self, word: FromClient) -> Error {
        self.state.client_said(self.client, word).unwrap_err().into()
    }

    fn violates(&mut self, worker: WorkerId, word: FromWorker) -> Error {
        self.state.worker_said(worker, word).unwrap_err().into()
    }

    fn submit_long(&mut self, sequence: u64, arguments_len: usize) {
        let key = self.key(sequence);
        let arguments = Arguments { bytes: Blob(vec![0; arguments_len].into()), placeholders: Vec::new() };
        self.client(FromClient::Submit { key, function: 0, inputs: Vec::new(), arguments });
    }
}

#[test]
fn a_client_whose_tasks_take_too_much_is_refused_and_what_it_releases_counts_no_more() {
    let mut play = Play::new(0);
    play.state.set_client_bytes_max(100_000);
    play.submit_long(1, 50_000);
    play.release(1);
    play.submit_long(2, 50_000);
    let (key, arguments) =
        (play.key(3), Arguments { bytes: Blob(vec![0; 50_000].into()), placeholders: Vec::new() });
    let error = play.refused(FromClient::Submit { key, function: 0, inputs: Vec::new(), arguments });
    assert_eq!(error.kind(), ErrorKind::TooLarge, "{error}");
    // Small tasks take memory as well.
    let scatter = |key| FromClient::Scatter { key, worker: 9 };
    let scattered = (4..).take_while(|n| play.state.client_said(play.client, scatter(play.key(*n))).is_ok());
    assert!(scattered.count() < 500);
    play.collect();
    play.state.check();
    // Others have a share of their own.
    let other = play.state.client_joined().unwrap();
    play.state.client_said(other, scatter(Key::new(other, 1))).unwrap();
}

#[test]
fn a_client_may_name_so_many_new_functions_and_others_name_theirs() {
    let mut play = Play::new(0);
    let named = |n: usize| FromClient::Function { name: format!("f{n}"), types: 0 };
    for n in 1..NEW_FUNCTIONS_MAX {
        play.client(named(n));
    }
    assert_eq!(play.refused(named(NEW_FUNCTIONS_MAX)).kind(), ErrorKind::TooLarge);
    let other = play.state.client_joined().unwrap();
    for n in 0..NEW_FUNCTIONS_MAX {
        play.state.client_said(other, named(n)).unwrap();
    }
}

#[test]
fn large_tasks_wait_for_room_at_a_worker_as_many_do() {
    let mut play = Play::new(1);
    play.submit(1, &[]);
    let first = play.order();
    // It takes no time, so that a worker has room for many.
    play.worker(first.0, FromWorker::Done { key: first.1.key, run: first.1.run, bytes: 1, micros: 1 });
    (2..50).for_each(|sequence| play.submit_long(sequence, 1 << 20));
    assert_eq!(play.sent_to(1).len(), 4, "4 MiB at once");
    while let Some(sent) = play.sent.first().cloned() {
        play.done(&sent, 1);
        play.state.check();
        assert!(play.sent.len() <= 4);
    }
    assert_eq!(play.state.stats().tasks.done, 49);
}

#[test]
fn the_longest_order_fits_into_a_batch() {
    let key = Key::new((1 << 24) - 1, (1 << 40) - 1);
    let input = Input { key, bytes: u64::MAX, holders: vec![u32::MAX; 4] };
    // What stands between two placeholders is no longer than all arguments.
    let placeholder = Placeholder { after: ARGUMENTS_LEN_MAX as u32, input: INPUTS_MAX as u32 - 1 };
    let arguments = Arguments {
        bytes: Blob(vec![0; ARGUMENTS_LEN_MAX].into()),
        placeholders: vec![placeholder; INPUTS_MAX],
    };
    assert!(arguments.may_be(INPUTS_MAX) && !arguments.may_be(INPUTS_MAX + 1));
    let priority = Priority { root: u64::MAX, depth: std::cmp::Reverse(u32::MAX), number: u64::MAX };
    let inputs = vec![input; INPUTS_MAX];
    let order = Assignment { key, run: u64::MAX, function: u32::MAX, priority, inputs, arguments };
    let len = postcard::to_allocvec(&ToWorker::Attempt(order)).unwrap().len();
    assert!((BATCH_LEN + len) as u64 <= BATCH_LEN_MAX, "{len}");

    let mut play = Play::new(0);
    let arguments = Arguments { placeholders: vec![placeholder; INPUTS_MAX + 1], ..Arguments::default() };
    let key = play.key(1);
    let error = play.refused(FromClient::Submit { key, function: 0, inputs: Vec::new(), arguments });
    assert_eq!(error.kind(), ErrorKind::TooLarge, "{error}");
}

#[test]
fn what_workers_are_told_of_many_tasks_is_said_in_parts() {
    let mut play = Play::new(0);
    (0..3).for_each(|_| _ = play.join(1000, 1000));
    for sequence in 1..=10_000 {
        let (key, arguments) = (play.key(sequence), Arguments::default());
        let submit = FromClient::Submit { key, function: 0, inputs: Vec::new(), arguments };
        play.state.client_said(play.client, submit).unwrap();
    }
    let mut said = Vec::new();
    while said.is_empty() || play.state.is_cut_short() {
        said.push(play.state.take_actions().len());
    }
    assert_eq!(said.iter().sum::<usize>(), 3 * (1 + 1001), "a function, and a task beyond the slots");
    assert!(said.len() > 1 && said.iter().all(|said| *said <= 2000), "{said:?}");
    play.state.check();
    // An answer that is much longer than its question is said before the next is looked at.
    play.state.client_said(play.client, FromClient::HowIsIt { request: 1 }).unwrap();
    assert!(!play.state.has_said_much());
    (0..1000).for_each(|request| {
        play.state.client_said(play.client, FromClient::HowIsIt { request }).unwrap();
    });
    assert!(play.state.has_said_much());
}

#[test]
fn no_result_is_larger_than_its_workers_memory() {
    let mut play = Play::new(1);
    play.submit(1, &[]);
    let (worker, Assignment { key, run, .. }) = play.order();
    let error = play.violates(worker, FromWorker::Done { key, run, bytes: 1001, micros: 1 });
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    let boundless = play.join(1, u64::MAX);
    play.gone(worker, Departure::Died);
    let (worker, Assignment { key, run, .. }) = play.order();
    assert_eq!(worker, boundless);
    play.violates(worker, FromWorker::Done { key, run, bytes: u64::MAX, micros: 1 });
    play.worker(worker, FromWorker::Done { key, run, bytes: 1 << 48, micros: 1 });
}

#[test]
fn a_worker_lacks_inputs_and_nothing_else() {
    let mut play = Play::new(1);
    play.submit(1, &[]);
    let made = play.order();
    play.done(&made, 10);
    play.submit(2, &[]);
    let (worker, Assignment { key, run, .. }) = play.order();
    let lacking = vec![(play.key(1), made.0)];
    let error = play.violates(worker, FromWorker::Returned { key, run, lacking });
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
}

#[test]
fn a_failure_is_kept_once_and_not_longer_than_any_may_be() {
    let mut play = Play::new(1);
    play.submit(1, &[]);
    (2..100).for_each(|sequence| play.submit(sequence, &[1]));
    let (worker, Assignment { key, run, .. }) = play.order();
    let failure =
        Failure { kind: ErrorKind::Failed, task: Some("f".repeat(10_000)), detail: "x".repeat(1 << 20) };
    play.worker(worker, FromWorker::Failed { key, run, failure });
    let failures: Vec<_> = play
        .to_client
        .iter()
        .filter_map(|word| match word {
            ToClient::Failed { failure, .. } => Some(failure.clone()),
            _ => None,
        })
        .collect();
    assert_eq!(failures.len(), 99);
    assert!(failures.iter().all(|failure| std::sync::Arc::ptr_eq(failure, &failures[0])));
    assert!(failures[0].detail.len() < 5_000 && failures[0].task.as_ref().unwrap().len() < 300);
}
