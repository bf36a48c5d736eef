//! Tests of the state machine alone: the tests play workers and clients.

mod bounds;
mod stall_timeout;

use super::state::{Departure, SchedulerAction, SchedulerState, Violation};
use crate::error::{Error, ErrorKind, Failure};
use crate::protocol::{
    Assignment, ClientId, FromClient, FromWorker, Key, Offer, TaskArguments, ToClient, ToWorker, WorkerId,
};

/// A scheduler with one client, and the messages that the test has not inspected yet.
struct Harness {
    state: SchedulerState,
    client: ClientId,
    to_client: Vec<ToClient>,
    to_workers: Vec<(WorkerId, ToWorker)>,
    /// Assignments that workers have not answered.
    sent: Vec<(WorkerId, Assignment)>,
}

impl Harness {
    fn new(workers: u32) -> Self {
        let mut state = SchedulerState::default();
        let client = state.client_joined().unwrap();
        let function = FromClient::Function { name: "f".into(), types: 0 };
        state.on_client_message(client, function).unwrap();
        let mut harness =
            Self { state, client, to_client: Vec::new(), to_workers: Vec::new(), sent: Vec::new() };
        for _ in 0..workers {
            harness.join(1, 1000);
        }
        harness
    }

    fn join(&mut self, slots: u32, memory_bytes_max: u64) -> WorkerId {
        let offer = Offer { address: "mem://x".into(), slots, memory_bytes_max };
        let worker = self.state.worker_joined(offer);
        self.collect();
        worker
    }

    fn key(&self, sequence: u64) -> Key {
        Key::new(self.client, sequence)
    }

    fn collect(&mut self) {
        for action in self.state.take_actions() {
            match action {
                SchedulerAction::Client(_, message) => self.to_client.push(message),
                SchedulerAction::Worker(worker, message) => {
                    if let ToWorker::Assign(assignment) = &message {
                        self.sent.push((worker, assignment.clone()));
                    }
                    self.to_workers.push((worker, message));
                }
            }
        }
    }

    fn client(&mut self, message: FromClient) {
        self.state.on_client_message(self.client, message).unwrap();
        self.collect();
    }

    fn submit(&mut self, sequence: u64, inputs: &[u64]) {
        let inputs = inputs.iter().map(|input| self.key(*input)).collect();
        let key = self.key(sequence);
        self.client(FromClient::Submit { key, function: 0, inputs, arguments: TaskArguments::default() });
    }

    fn release(&mut self, sequence: u64) {
        let key = self.key(sequence);
        self.client(FromClient::Release { key });
    }

    fn worker(&mut self, worker: WorkerId, message: FromWorker) {
        if let FromWorker::Done { attempt, .. }
        | FromWorker::Failed { attempt, .. }
        | FromWorker::Returned { attempt, .. } = message
        {
            self.sent.retain(|(_, assignment)| assignment.attempt != attempt);
        }
        self.state.on_worker_message(worker, message).unwrap();
        self.collect();
    }

    fn gone(&mut self, worker: WorkerId, departure: Departure) {
        self.sent.retain(|(to, _)| *to != worker);
        self.state.worker_gone(worker, departure);
        self.collect();
    }

    fn sent_to(&self, worker: WorkerId) -> Vec<Assignment> {
        self.sent.iter().filter(|(to, _)| *to == worker).map(|(_, assignment)| assignment.clone()).collect()
    }

    fn done(&mut self, (worker, assignment): &(WorkerId, Assignment), bytes: u64) {
        self.worker(
            *worker,
            FromWorker::Done { key: assignment.key, attempt: assignment.attempt, bytes, micros: 1_000_000 },
        );
    }

    /// Takes the assignments since the last call, as (worker, assignment).
    fn assignments(&mut self) -> Vec<(WorkerId, Assignment)> {
        let sent_messages = std::mem::take(&mut self.to_workers).into_iter();
        sent_messages
            .filter_map(|(worker, message)| match message {
                ToWorker::Assign(assignment) => Some((worker, assignment)),
                _ => None,
            })
            .collect()
    }

    fn assignment(&mut self) -> (WorkerId, Assignment) {
        let assignments = self.assignments();
        let [assignment] = <[_; 1]>::try_from(assignments).expect("one assignment");
        assignment
    }

    fn freed(&mut self) -> Vec<(WorkerId, Key)> {
        let sent_messages = std::mem::take(&mut self.to_workers).into_iter();
        sent_messages
            .filter_map(|(worker, message)| match message {
                ToWorker::Free { key } => Some((worker, key)),
                _ => None,
            })
            .collect()
    }

    fn failure(&mut self, sequence: u64) -> Option<Failure> {
        let key = self.key(sequence);
        self.to_client.iter().find_map(|message| match message {
            ToClient::Failed { key: failed, failure } if *failed == key => Some(Failure::clone(failure)),
            _ => None,
        })
    }

    fn is_done(&self, sequence: u64) -> bool {
        let key = self.key(sequence);
        self.to_client
            .iter()
            .any(|message| matches!(message, ToClient::Done { key: done, .. } if *done == key))
    }
}

#[test]
fn task_runs_near_its_inputs_once_they_are_done() {
    let mut harness = Harness::new(0);
    harness.join(1, 1 << 30);
    harness.join(1, 1 << 30);
    harness.submit(1, &[]);
    harness.submit(2, &[]);
    harness.submit(3, &[1, 2]);
    let assignments = harness.assignments();
    assert_eq!(assignments.iter().map(|(worker, _)| *worker).collect::<Vec<_>>(), [1, 2]);
    harness.done(&assignments[0], 10);
    assert!(harness.assignments().is_empty());
    harness.done(&assignments[1], 900_000);
    let (worker, assignment) = harness.assignment();
    assert_eq!((worker, assignment.key), (2, harness.key(3)), "where most bytes are");
    let holders: Vec<_> = assignment.inputs.iter().map(|input| (input.bytes, &input.holders[..])).collect();
    assert_eq!(holders, [(10, &[1][..]), (900_000, &[2])]);
    assert!(harness.is_done(1) && harness.is_done(2) && !harness.is_done(3));
}

#[test]
fn dependents_run_before_new_roots() {
    let mut harness = Harness::new(1);
    for root in 0..10 {
        harness.submit(2 * root + 1, &[]);
    }
    for root in 0..10 {
        harness.submit(100 + root, &[2 * root + 1]);
    }
    // One runs and one waits in the worker; the rest waits at the scheduler.
    let assignments = harness.assignments();
    assert_eq!(assignments.len(), 2);
    harness.done(&assignments[0], 1);
    assert_eq!(harness.assignment().1.key, harness.key(100));
}

#[test]
fn data_is_freed_when_neither_client_nor_task_needs_it() {
    let mut harness = Harness::new(1);
    harness.submit(1, &[]);
    harness.submit(2, &[1]);
    harness.release(1);
    let assignment = harness.assignment();
    harness.done(&assignment, 5);
    let assignment = harness.assignment();
    assert!(harness.freed().is_empty(), "a task needs it");
    harness.done(&assignment, 5);
    assert_eq!(harness.freed(), [(1, harness.key(1))]);
    assert_eq!(harness.state.tasks(), 2, "it is lineage");
    harness.release(2);
    assert_eq!((harness.freed(), harness.state.tasks()), (vec![(1, harness.key(2))], 0));
}

#[test]
fn released_unneeded_tasks_do_not_run() {
    let mut harness = Harness::new(0);
    harness.submit(1, &[]);
    harness.submit(2, &[1]);
    harness.release(1);
    harness.release(2);
    assert_eq!(harness.state.tasks(), 0);
    harness.join(1, 1000);
    assert!(harness.assignments().is_empty());
}

#[test]
fn lost_result_is_recomputed_with_its_inputs() {
    let mut harness = Harness::new(2);
    harness.submit(1, &[]);
    harness.submit(2, &[1]);
    harness.release(1);
    let first = harness.assignment();
    harness.done(&first, 5);
    let second = harness.assignment();
    assert_eq!(second.0, first.0);
    harness.done(&second, 5);
    harness.gone(second.0, Departure::Died);
    assert!(harness.to_client.contains(&ToClient::Recomputing { key: harness.key(2) }));
    let again = harness.assignment();
    assert_eq!((again.1.key, again.0 == first.0), (harness.key(1), false), "its input was freed long ago");
    harness.to_client.clear();
    harness.done(&again, 5);
    let again = harness.assignment();
    assert_eq!(again.1.key, harness.key(2));
    harness.done(&again, 5);
    assert!(harness.is_done(2) && !harness.is_done(1));
}

#[test]
fn a_ready_task_waits_again_when_its_input_is_lost() {
    let mut harness = Harness::new(1);
    harness.submit(1, &[]);
    let assignment = harness.assignment();
    harness.done(&assignment, 5);
    let other = harness.join(1, 1000);
    for sequence in 2..8 {
        harness.submit(sequence, &[1]);
    }
    harness.gone(1, Departure::Left);
    for _ in 0..20 {
        let Some(assignment) = harness.sent_to(other).into_iter().next() else { break };
        if assignment.inputs.iter().any(|input| input.holders == [1]) {
            // Sent before the loss: the worker cannot fetch the input.
            let lacking = vec![(harness.key(1), 1)];
            harness.worker(
                other,
                FromWorker::Returned { key: assignment.key, attempt: assignment.attempt, lacking },
            );
        } else {
            harness.done(&(other, assignment), 5);
        }
    }
    assert!((1..8).all(|sequence| harness.is_done(sequence)), "{:#?}", harness.state);
}

#[test]
fn failure_fails_only_dependents() {
    let mut harness = Harness::new(1);
    harness.submit(1, &[]);
    harness.submit(2, &[1]);
    harness.submit(3, &[2]);
    harness.submit(4, &[]);
    let assignments = harness.assignments();
    let failure = Failure::new(ErrorKind::Failed, "no").of("f");
    let (worker, Assignment { key, attempt, .. }) = assignments[0].clone();
    harness.worker(worker, FromWorker::Failed { key, attempt, failure: failure.clone() });
    for sequence in 1..=3 {
        assert_eq!(harness.failure(sequence), Some(failure.clone()));
    }
    harness.submit(5, &[3]);
    assert_eq!(harness.failure(5), Some(failure));
    assert_eq!(harness.failure(4), None);
    for sequence in [1, 2, 3, 5] {
        harness.release(sequence);
    }
    assert_eq!(harness.state.tasks(), 1);
}

#[test]
fn task_that_kills_three_workers_fails_alone() {
    let mut harness = Harness::new(0);
    let killer = harness.key(3);
    for sequence in 1..=6 {
        harness.submit(sequence, &[]);
    }
    for death in 0..3 {
        let worker = harness.join(6, 1000);
        // Suspects that run before it are cleared.
        while let sent = harness.sent_to(worker)
            && sent.iter().all(|assignment| assignment.key != killer)
        {
            harness.done(&(worker, sent[0].clone()), 1);
        }
        assert_eq!(death > 0, harness.sent_to(worker).len() < 6, "suspects run one at a time");
        harness.gone(worker, Departure::Died);
    }
    let failure = harness.failure(3).expect("given up");
    assert_eq!((failure.kind, failure.task.as_deref()), (ErrorKind::Killed, Some("f")));
    for sequence in [1, 2, 4, 5, 6] {
        assert_eq!(harness.failure(sequence), None);
    }
}

#[test]
fn task_beside_a_suspect_becomes_a_suspect_without_a_death() {
    let mut harness = Harness::new(0);
    harness.submit(1, &[]);
    harness.submit(2, &[]);
    let first = harness.join(1, 1000);
    assert_eq!(harness.sent_to(first).len(), 2);
    harness.gone(first, Departure::Died);
    // The second task is cleared, and its result is lost with the worker.
    let second = harness.join(2, 1000);
    let key = harness.key(1);
    assert_eq!(harness.sent_to(second).iter().map(|assignment| assignment.key).collect::<Vec<_>>(), [key]);
    harness.submit(3, &[]);
    assert_eq!(harness.sent_to(second).len(), 2, "beside what is no suspect");
    harness.gone(second, Departure::Died);
    let third = harness.join(2, 1000);
    assert_eq!(harness.sent_to(third).len(), 1, "all three are suspects now");
    harness.gone(third, Departure::Died);
    let kind = |failure: Option<Failure>| failure.map(|failure| failure.kind);
    assert_eq!(
        [1, 2, 3].map(|sequence| kind(harness.failure(sequence))),
        [Some(ErrorKind::Killed), None, None]
    );
}

#[test]
fn scattered_data_is_lost_with_its_worker() {
    let mut harness = Harness::new(2);
    let key = harness.key(1);
    harness.client(FromClient::Scatter { key, worker: 1 });
    harness.submit(2, &[1]);
    harness.submit(3, &[]);
    assert_eq!(harness.sent_to(1).len() + harness.sent_to(2).len(), 1, "an awaited task takes no place");
    harness.gone(1, Departure::Died);
    for sequence in [1, 2] {
        assert_eq!(harness.failure(sequence).map(|failure| failure.kind), Some(ErrorKind::Lost));
    }
    // Scattered to a worker that is gone already.
    let key = harness.key(4);
    harness.client(FromClient::Scatter { key, worker: 1 });
    assert_eq!(harness.failure(4).map(|failure| failure.kind), Some(ErrorKind::Lost));
    harness.state.check();
}

/// Found by the simulation: seed 14593.
#[test]
fn no_recall_for_a_full_idle_worker() {
    let mut harness = Harness::new(1);
    harness.submit(1, &[]);
    let assignment = harness.assignment();
    harness.done(&assignment, 900);
    let other = harness.join(1, 1000);
    harness.submit(2, &[]);
    harness.submit(3, &[]);
    assert_eq!(harness.sent_to(other).len(), 2);
    let is_recall = |(_, message): &(WorkerId, ToWorker)| matches!(message, ToWorker::Recall { .. });
    assert!(!harness.to_workers.iter().any(is_recall), "{:?}", harness.to_workers);
}

#[test]
fn a_task_goes_where_its_inputs_fit() {
    let mut harness = Harness::new(0);
    let small = harness.join(1, 100);
    let large = harness.join(1, 1000);
    harness.submit(1, &[]);
    harness.submit(2, &[]);
    let assignments = harness.assignments();
    assert_eq!(assignments.iter().map(|(worker, _)| *worker).collect::<Vec<_>>(), [small, large]);
    harness.done(&assignments[0], 90);
    harness.done(&assignments[1], 60);
    harness.submit(3, &[1, 2]);
    assert_eq!(harness.assignment().0, large, "most of it is at the small one");
}

#[test]
fn idle_worker_gets_tasks_that_another_has_not_begun() {
    let mut harness = Harness::new(1);
    harness.submit(1, &[]);
    harness.submit(2, &[]);
    let assignments = harness.assignments();
    assert_eq!(assignments.len(), 2, "one runs, one waits there");
    let idle = harness.join(1, 1000);
    let key = harness.key(2);
    let attempt = assignments[1].1.attempt;
    assert!(harness.to_workers.contains(&(1, ToWorker::Recall { key, attempt })));
    harness.to_workers.clear();
    harness.worker(1, FromWorker::Returned { key, attempt, lacking: Vec::new() });
    assert_eq!(harness.assignment().0, idle);
}

#[test]
fn full_worker_gets_no_roots_and_oversized_inputs_fail() {
    let mut harness = Harness::new(1);
    harness.submit(1, &[]);
    let assignment = harness.assignment();
    harness.done(&assignment, 900);
    harness.submit(2, &[]);
    assert!(harness.assignments().is_empty(), "full");
    harness.submit(3, &[1]);
    let assignment = harness.assignment();
    assert_eq!(assignment.1.key, harness.key(3));
    harness.done(&assignment, 200);
    harness.submit(4, &[1, 3]);
    let failure = harness.failure(4).expect("1100 bytes do not fit into 1000");
    assert_eq!(failure.kind, ErrorKind::TooLarge);
    assert!(failure.detail.contains("1100") && failure.detail.contains("1000"), "{failure:?}");
    harness.release(1);
    harness.release(3);
    harness.release(4);
    assert_eq!(harness.assignment().1.key, harness.key(2), "there is room again");
}

#[test]
fn late_messages_change_nothing() {
    let mut harness = Harness::new(2);
    harness.submit(1, &[]);
    let (worker, assignment) = harness.assignment();
    harness.worker(
        worker,
        FromWorker::Done { key: assignment.key, attempt: assignment.attempt + 1, bytes: 1, micros: 1 },
    );
    assert_eq!(harness.freed(), [(worker, assignment.key)]);
    harness.release(1);
    harness.to_workers.clear();
    harness.done(&(worker, assignment.clone()), 1);
    assert_eq!(harness.freed(), [(worker, assignment.key)], "what it made is not wanted");
    harness.worker(worker, FromWorker::HasCopy { key: assignment.key });
    assert_eq!(harness.freed(), [(worker, assignment.key)]);
    assert_eq!(harness.state.tasks(), 0);
}

#[test]
fn invalid_client_messages_are_violations() {
    let mut harness = Harness::new(1);
    harness.submit(1, &[]);
    let client = harness.client;
    let submit = |key, function, inputs: &[Key]| FromClient::Submit {
        key,
        function,
        inputs: inputs.to_vec(),
        arguments: TaskArguments::default(),
    };
    let messages = [
        submit(harness.key(1), 0, &[]),
        submit(Key::new(client + 1, 2), 0, &[]),
        submit(harness.key(2), 1, &[]),
        submit(harness.key(2), 0, &[harness.key(3)]),
        submit(harness.key(2), 0, &[harness.key(2)]),
        FromClient::Release { key: harness.key(2) },
        FromClient::Cancel { key: Key::new(client + 1, 1) },
        FromClient::WhoHas { request: 1, key: harness.key(2) },
        FromClient::FetchFailed { key: harness.key(2), worker: 1 },
        FromClient::Function { name: String::new(), types: 0 },
        FromClient::Function { name: "x".repeat(256), types: 0 },
    ];
    for message in messages {
        assert!(
            matches!(harness.state.on_client_message(client, message.clone()), Err(Violation { .. })),
            "{message:?}"
        );
    }
    assert_eq!(harness.state.tasks(), 1);
    harness.state.client_left(client);
    assert_eq!(harness.state.tasks(), 0, "what it wanted is released");
}

#[test]
fn long_chain_needs_no_deep_stack() {
    let mut harness = Harness::new(1);
    harness.submit(1, &[]);
    for sequence in 2..100_000 {
        harness.submit(sequence, &[sequence - 1]);
        harness.release(sequence - 1);
    }
    harness.release(99_999);
    assert_eq!(harness.state.tasks(), 0);
    harness.submit(200_000, &[]);
    for sequence in 200_001..300_000 {
        harness.submit(sequence, &[sequence - 1]);
    }
    let key = harness.key(200_000);
    harness.client(FromClient::Cancel { key });
    assert_eq!(harness.failure(299_999).map(|failure| failure.kind), Some(ErrorKind::Cancelled));
}
