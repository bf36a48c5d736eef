//! Limits on what peers can make the scheduler store, send and trust.

use super::*;
use crate::batch::{BATCH_LEN, BATCH_LEN_MAX};
use crate::protocol::{ARGUMENTS_LEN_MAX, Blob, INPUTS_MAX, Input, NEW_FUNCTIONS_MAX, Priority};
use crate::value::Placeholder;

impl Harness {
    fn client_violation(&mut self, message: FromClient) -> Error {
        self.state.on_client_message(self.client, message).unwrap_err().into()
    }

    fn worker_violation(&mut self, worker: WorkerId, message: FromWorker) -> Error {
        self.state.on_worker_message(worker, message).unwrap_err().into()
    }

    fn submit_long(&mut self, sequence: u64, arguments_len: usize) {
        let key = self.key(sequence);
        let arguments =
            TaskArguments { bytes: Blob(vec![0; arguments_len].into()), placeholders: Vec::new() };
        self.client(FromClient::Submit { key, function: 0, inputs: Vec::new(), arguments });
    }
}

#[test]
fn client_memory_limit_counts_unreleased_tasks() {
    let mut harness = Harness::new(0);
    harness.state.set_client_bytes_max(100_000);
    harness.submit_long(1, 50_000);
    harness.release(1);
    harness.submit_long(2, 50_000);
    let (key, arguments) =
        (harness.key(3), TaskArguments { bytes: Blob(vec![0; 50_000].into()), placeholders: Vec::new() });
    let error =
        harness.client_violation(FromClient::Submit { key, function: 0, inputs: Vec::new(), arguments });
    assert_eq!(error.kind(), ErrorKind::TooLarge, "{error}");
    // Small tasks take memory as well.
    let scatter = |key| FromClient::Scatter { key, worker: 9 };
    let scattered = (4..)
        .take_while(|n| harness.state.on_client_message(harness.client, scatter(harness.key(*n))).is_ok());
    assert!(scattered.count() < 500);
    harness.collect();
    harness.state.check();
    // Other clients have a limit of their own.
    let other = harness.state.client_joined().unwrap();
    harness.state.on_client_message(other, scatter(Key::new(other, 1))).unwrap();
}

#[test]
fn new_functions_are_limited_per_client() {
    let mut harness = Harness::new(0);
    let named = |n: usize| FromClient::Function { name: format!("f{n}"), types: 0 };
    for n in 1..NEW_FUNCTIONS_MAX {
        harness.client(named(n));
    }
    assert_eq!(harness.client_violation(named(NEW_FUNCTIONS_MAX)).kind(), ErrorKind::TooLarge);
    let other = harness.state.client_joined().unwrap();
    for n in 0..NEW_FUNCTIONS_MAX {
        harness.state.on_client_message(other, named(n)).unwrap();
    }
}

#[test]
fn large_assignments_are_limited_by_bytes() {
    let mut harness = Harness::new(1);
    harness.submit(1, &[]);
    let first = harness.assignment();
    // It takes no time, so that a worker has room for many.
    harness.worker(
        first.0,
        FromWorker::Done { key: first.1.key, attempt: first.1.attempt, bytes: 1, micros: 1 },
    );
    (2..50).for_each(|sequence| harness.submit_long(sequence, 1 << 20));
    assert_eq!(harness.sent_to(1).len(), 4, "4 MiB at once");
    while let Some(sent) = harness.sent.first().cloned() {
        harness.done(&sent, 1);
        harness.state.check();
        assert!(harness.sent.len() <= 4);
    }
    assert_eq!(harness.state.stats().tasks.done, 49);
}

#[test]
fn longest_assignment_fits_into_a_batch() {
    let key = Key::new((1 << 24) - 1, (1 << 40) - 1);
    let input = Input { key, bytes: u64::MAX, holders: vec![u32::MAX; 4] };
    // The distance between two placeholders is at most the length of all arguments.
    let placeholder = Placeholder { after: ARGUMENTS_LEN_MAX as u32, input: INPUTS_MAX as u32 - 1 };
    let arguments = TaskArguments {
        bytes: Blob(vec![0; ARGUMENTS_LEN_MAX].into()),
        placeholders: vec![placeholder; INPUTS_MAX],
    };
    assert!(arguments.are_within_limits(INPUTS_MAX) && !arguments.are_within_limits(INPUTS_MAX + 1));
    let priority = Priority { root: u64::MAX, depth: std::cmp::Reverse(u32::MAX), number: u64::MAX };
    let inputs = vec![input; INPUTS_MAX];
    let assignment = Assignment { key, attempt: u64::MAX, function: u32::MAX, priority, inputs, arguments };
    let len = postcard::to_allocvec(&ToWorker::Assign(assignment)).unwrap().len();
    assert!((BATCH_LEN + len) as u64 <= BATCH_LEN_MAX, "{len}");

    let mut harness = Harness::new(0);
    let arguments =
        TaskArguments { placeholders: vec![placeholder; INPUTS_MAX + 1], ..TaskArguments::default() };
    let key = harness.key(1);
    let error =
        harness.client_violation(FromClient::Submit { key, function: 0, inputs: Vec::new(), arguments });
    assert_eq!(error.kind(), ErrorKind::TooLarge, "{error}");
}

#[test]
fn output_for_many_tasks_is_split() {
    let mut harness = Harness::new(0);
    (0..3).for_each(|_| _ = harness.join(1000, 1000));
    for sequence in 1..=10_000 {
        let (key, arguments) = (harness.key(sequence), TaskArguments::default());
        let submit = FromClient::Submit { key, function: 0, inputs: Vec::new(), arguments };
        harness.state.on_client_message(harness.client, submit).unwrap();
    }
    let mut batch_lens = Vec::new();
    while batch_lens.is_empty() || harness.state.has_more_output() {
        batch_lens.push(harness.state.take_actions().len());
    }
    assert_eq!(batch_lens.iter().sum::<usize>(), 3 * (1 + 1001), "a function, and a task beyond the slots");
    assert!(
        batch_lens.len() > 1 && batch_lens.iter().all(|batch_lens| *batch_lens <= 2000),
        "{batch_lens:?}"
    );
    harness.state.check();
    // A reply much larger than its request is sent before the next request is applied.
    harness.state.on_client_message(harness.client, FromClient::GetStats { request: 1 }).unwrap();
    assert!(!harness.state.output_is_full());
    (0..1000).for_each(|request| {
        harness.state.on_client_message(harness.client, FromClient::GetStats { request }).unwrap();
    });
    assert!(harness.state.output_is_full());
}

#[test]
fn result_larger_than_worker_memory_is_a_violation() {
    let mut harness = Harness::new(1);
    harness.submit(1, &[]);
    let (worker, Assignment { key, attempt, .. }) = harness.assignment();
    let error = harness.worker_violation(worker, FromWorker::Done { key, attempt, bytes: 1001, micros: 1 });
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    let boundless = harness.join(1, u64::MAX);
    harness.gone(worker, Departure::Died);
    let (worker, Assignment { key, attempt, .. }) = harness.assignment();
    assert_eq!(worker, boundless);
    harness.worker_violation(worker, FromWorker::Done { key, attempt, bytes: u64::MAX, micros: 1 });
    harness.worker(worker, FromWorker::Done { key, attempt, bytes: 1 << 48, micros: 1 });
}

#[test]
fn missing_inputs_must_be_inputs_of_the_task() {
    let mut harness = Harness::new(1);
    harness.submit(1, &[]);
    let made = harness.assignment();
    harness.done(&made, 10);
    harness.submit(2, &[]);
    let (worker, Assignment { key, attempt, .. }) = harness.assignment();
    let lacking = vec![(harness.key(1), made.0)];
    let error = harness.worker_violation(worker, FromWorker::Returned { key, attempt, lacking });
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
}

#[test]
fn failure_is_truncated_and_shared() {
    let mut harness = Harness::new(1);
    harness.submit(1, &[]);
    (2..100).for_each(|sequence| harness.submit(sequence, &[1]));
    let (worker, Assignment { key, attempt, .. }) = harness.assignment();
    let failure =
        Failure { kind: ErrorKind::Failed, task: Some("f".repeat(10_000)), detail: "x".repeat(1 << 20) };
    harness.worker(worker, FromWorker::Failed { key, attempt, failure });
    let failures: Vec<_> = harness
        .to_client
        .iter()
        .filter_map(|message| match message {
            ToClient::Failed { failure, .. } => Some(failure.clone()),
            _ => None,
        })
        .collect();
    assert_eq!(failures.len(), 99);
    assert!(failures.iter().all(|failure| std::sync::Arc::ptr_eq(failure, &failures[0])));
    assert!(failures[0].detail.len() < 5_000 && failures[0].task.as_ref().unwrap().len() < 300);
}
