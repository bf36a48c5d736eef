//! The state machine by itself, against workers and clients played by hand.

mod bounds;
mod stall_timeout;

use super::state::{Action, Departure, State, Violation};
use crate::error::{Error, ErrorKind, Failure};
use crate::protocol::{
    Arguments, Assignment, ClientId, FromClient, FromWorker, Key, Offer, ToClient, ToWorker, WorkerId,
};

/// A scheduler with one client, and what was said to whom and not looked at yet.
struct Play {
    state: State,
    client: ClientId,
    to_client: Vec<ToClient>,
    to_workers: Vec<(WorkerId, ToWorker)>,
    /// What workers were given and have not answered.
    sent: Vec<(WorkerId, Assignment)>,
}

impl Play {
    fn new(workers: u32) -> Self {
        let mut state = State::default();
        let client = state.client_joined().unwrap();
        let function = FromClient::Function { name: "f".into(), types: 0 };
        state.client_said(client, function).unwrap();
        let mut play =
            Self { state, client, to_client: Vec::new(), to_workers: Vec::new(), sent: Vec::new() };
        for _ in 0..workers {
            play.join(1, 1000);
        }
        play
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
                Action::Client(_, word) => self.to_client.push(word),
                Action::Worker(worker, word) => {
                    if let ToWorker::Attempt(order) = &word {
                        self.sent.push((worker, order.clone()));
                    }
                    self.to_workers.push((worker, word));
                }
            }
        }
    }

    fn client(&mut self, word: FromClient) {
        self.state.client_said(self.client, word).unwrap();
        self.collect();
    }

    fn submit(&mut self, sequence: u64, inputs: &[u64]) {
        let inputs = inputs.iter().map(|input| self.key(*input)).collect();
        let key = self.key(sequence);
        self.client(FromClient::Submit { key, function: 0, inputs, arguments: Arguments::default() });
    }

    fn release(&mut self, sequence: u64) {
        let key = self.key(sequence);
        self.client(FromClient::Release { key });
    }

    fn worker(&mut self, worker: WorkerId, word: FromWorker) {
        if let FromWorker::Done { run, .. }
        | FromWorker::Failed { run, .. }
        | FromWorker::Returned { run, .. } = word
        {
            self.sent.retain(|(_, order)| order.run != run);
        }
        self.state.worker_said(worker, word).unwrap();
        self.collect();
    }

    fn gone(&mut self, worker: WorkerId, departure: Departure) {
        self.sent.retain(|(to, _)| *to != worker);
        self.state.worker_gone(worker, departure);
        self.collect();
    }

    fn sent_to(&self, worker: WorkerId) -> Vec<Assignment> {
        self.sent.iter().filter(|(to, _)| *to == worker).map(|(_, order)| order.clone()).collect()
    }

    fn done(&mut self, (worker, order): &(WorkerId, Assignment), bytes: u64) {
        self.worker(*worker, FromWorker::Done { key: order.key, run: order.run, bytes, micros: 1_000_000 });
    }

    /// What was given to workers since the last look, as (worker, order).
    fn orders(&mut self) -> Vec<(WorkerId, Assignment)> {
        let said = std::mem::take(&mut self.to_workers).into_iter();
        said.filter_map(|(worker, word)| match word {
            ToWorker::Attempt(order) => Some((worker, order)),
            _ => None,
        })
        .collect()
    }

    fn order(&mut self) -> (WorkerId, Assignment) {
        let orders = self.orders();
        let [order] = <[_; 1]>::try_from(orders).expect("one order");
        order
    }

    fn freed(&mut self) -> Vec<(WorkerId, Key)> {
        let said = std::mem::take(&mut self.to_workers).into_iter();
        said.filter_map(|(worker, word)| match word {
            ToWorker::Free { key } => Some((worker, key)),
            _ => None,
        })
        .collect()
    }

    fn failure(&mut self, sequence: u64) -> Option<Failure> {
        let key = self.key(sequence);
        self.to_client.iter().find_map(|word| match word {
            ToClient::Failed { key: failed, failure } if *failed == key => Some(Failure::clone(failure)),
            _ => None,
        })
    }

    fn is_done(&self, sequence: u64) -> bool {
        let key = self.key(sequence);
        self.to_client.iter().any(|word| matches!(word, ToClient::Done { key: done, .. } if *done == key))
    }
}

#[test]
fn a_task_runs_once_its_inputs_are_done_and_near_them() {
    let mut play = Play::new(0);
    play.join(1, 1 << 30);
    play.join(1, 1 << 30);
    play.submit(1, &[]);
    play.submit(2, &[]);
    play.submit(3, &[1, 2]);
    let orders = play.orders();
    assert_eq!(orders.iter().map(|(worker, _)| *worker).collect::<Vec<_>>(), [1, 2]);
    play.done(&orders[0], 10);
    assert!(play.orders().is_empty());
    play.done(&orders[1], 900_000);
    let (worker, order) = play.order();
    assert_eq!((worker, order.key), (2, play.key(3)), "where most bytes are");
    let holders: Vec<_> = order.inputs.iter().map(|input| (input.bytes, &input.holders[..])).collect();
    assert_eq!(holders, [(10, &[1][..]), (900_000, &[2])]);
    assert!(play.is_done(1) && play.is_done(2) && !play.is_done(3));
}

#[test]
fn what_uses_something_up_goes_before_new_roots() {
    let mut play = Play::new(1);
    for root in 0..10 {
        play.submit(2 * root + 1, &[]);
    }
    for root in 0..10 {
        play.submit(100 + root, &[2 * root + 1]);
    }
    // One runs and one waits in the worker; the rest waits here.
    let orders = play.orders();
    assert_eq!(orders.len(), 2);
    play.done(&orders[0], 1);
    assert_eq!(play.order().1.key, play.key(100));
}

#[test]
fn data_is_freed_when_neither_client_nor_task_needs_it() {
    let mut play = Play::new(1);
    play.submit(1, &[]);
    play.submit(2, &[1]);
    play.release(1);
    let order = play.order();
    play.done(&order, 5);
    let order = play.order();
    assert!(play.freed().is_empty(), "a task needs it");
    play.done(&order, 5);
    assert_eq!(play.freed(), [(1, play.key(1))]);
    assert_eq!(play.state.tasks(), 2, "it is lineage");
    play.release(2);
    assert_eq!((play.freed(), play.state.tasks()), (vec![(1, play.key(2))], 0));
}

#[test]
fn released_tasks_that_nobody_needs_do_not_run() {
    let mut play = Play::new(0);
    play.submit(1, &[]);
    play.submit(2, &[1]);
    play.release(1);
    play.release(2);
    assert_eq!(play.state.tasks(), 0);
    play.join(1, 1000);
    assert!(play.orders().is_empty());
}

#[test]
fn lost_data_is_made_again_from_what_made_it() {
    let mut play = Play::new(2);
    play.submit(1, &[]);
    play.submit(2, &[1]);
    play.release(1);
    let first = play.order();
    play.done(&first, 5);
    let second = play.order();
    assert_eq!(second.0, first.0);
    play.done(&second, 5);
    play.gone(second.0, Departure::Died);
    assert!(play.to_client.contains(&ToClient::Again { key: play.key(2) }));
    let again = play.order();
    assert_eq!((again.1.key, again.0 == first.0), (play.key(1), false), "its input was freed long ago");
    play.to_client.clear();
    play.done(&again, 5);
    let again = play.order();
    assert_eq!(again.1.key, play.key(2));
    play.done(&again, 5);
    assert!(play.is_done(2) && !play.is_done(1));
}

#[test]
fn a_ready_task_waits_again_when_its_input_is_lost() {
    let mut play = Play::new(1);
    play.submit(1, &[]);
    let order = play.order();
    play.done(&order, 5);
    let other = play.join(1, 1000);
    for sequence in 2..8 {
        play.submit(sequence, &[1]);
    }
    play.gone(1, Departure::Left);
    for _ in 0..20 {
        let Some(order) = play.sent_to(other).into_iter().next() else { break };
        if order.inputs.iter().any(|input| input.holders == [1]) {
            // Sent before the loss: the worker cannot get the input.
            let lacking = vec![(play.key(1), 1)];
            play.worker(other, FromWorker::Returned { key: order.key, run: order.run, lacking });
        } else {
            play.done(&(other, order), 5);
        }
    }
    assert!((1..8).all(|sequence| play.is_done(sequence)), "{:#?}", play.state);
}

#[test]
fn a_failure_fails_those_that_wait_and_nobody_else() {
    let mut play = Play::new(1);
    play.submit(1, &[]);
    play.submit(2, &[1]);
    play.submit(3, &[2]);
    play.submit(4, &[]);
    let orders = play.orders();
    let failure = Failure::new(ErrorKind::Failed, "no").of("f");
    let (worker, Assignment { key, run, .. }) = orders[0].clone();
    play.worker(worker, FromWorker::Failed { key, run, failure: failure.clone() });
    for sequence in 1..=3 {
        assert_eq!(play.failure(sequence), Some(failure.clone()));
    }
    play.submit(5, &[3]);
    assert_eq!(play.failure(5), Some(failure));
    assert_eq!(play.failure(4), None);
    for sequence in [1, 2, 3, 5] {
        play.release(sequence);
    }
    assert_eq!(play.state.tasks(), 1);
}

#[test]
fn a_task_that_kills_its_worker_three_times_is_given_up_and_those_beside_it_are_not() {
    let mut play = Play::new(0);
    let killer = play.key(3);
    for sequence in 1..=6 {
        play.submit(sequence, &[]);
    }
    for death in 0..3 {
        let worker = play.join(6, 1000);
        // Suspects that go before it clear themselves.
        while let sent = play.sent_to(worker)
            && sent.iter().all(|order| order.key != killer)
        {
            play.done(&(worker, sent[0].clone()), 1);
        }
        assert_eq!(death > 0, play.sent_to(worker).len() < 6, "suspects run one at a time");
        play.gone(worker, Departure::Died);
    }
    let failure = play.failure(3).expect("given up");
    assert_eq!((failure.kind, failure.task.as_deref()), (ErrorKind::Killed, Some("f")));
    for sequence in [1, 2, 4, 5, 6] {
        assert_eq!(play.failure(sequence), None);
    }
}

#[test]
fn who_ran_beside_a_suspect_is_one_as_well_and_not_to_blame() {
    let mut play = Play::new(0);
    play.submit(1, &[]);
    play.submit(2, &[]);
    let first = play.join(1, 1000);
    assert_eq!(play.sent_to(first).len(), 2);
    play.gone(first, Departure::Died);
    // The second clears itself, and is lost with what it made.
    let second = play.join(2, 1000);
    let key = play.key(1);
    assert_eq!(play.sent_to(second).iter().map(|order| order.key).collect::<Vec<_>>(), [key]);
    play.submit(3, &[]);
    assert_eq!(play.sent_to(second).len(), 2, "beside what is no suspect");
    play.gone(second, Departure::Died);
    let third = play.join(2, 1000);
    assert_eq!(play.sent_to(third).len(), 1, "all three are suspects now");
    play.gone(third, Departure::Died);
    let kind = |failure: Option<Failure>| failure.map(|failure| failure.kind);
    assert_eq!([1, 2, 3].map(|sequence| kind(play.failure(sequence))), [Some(ErrorKind::Killed), None, None]);
}

#[test]
fn scattered_data_is_lost_with_the_worker_that_was_to_have_it() {
    let mut play = Play::new(2);
    let key = play.key(1);
    play.client(FromClient::Scatter { key, worker: 1 });
    play.submit(2, &[1]);
    play.submit(3, &[]);
    assert_eq!(play.sent_to(1).len() + play.sent_to(2).len(), 1, "what is awaited takes nobody's place");
    play.gone(1, Departure::Died);
    for sequence in [1, 2] {
        assert_eq!(play.failure(sequence).map(|failure| failure.kind), Some(ErrorKind::Lost));
    }
    // As it is told of a worker that is gone already.
    let key = play.key(4);
    play.client(FromClient::Scatter { key, worker: 1 });
    assert_eq!(play.failure(4).map(|failure| failure.kind), Some(ErrorKind::Lost));
    play.state.check();
}

/// Found by the simulation: seed 14593.
#[test]
fn nothing_is_asked_back_for_an_idle_worker_that_is_full() {
    let mut play = Play::new(1);
    play.submit(1, &[]);
    let order = play.order();
    play.done(&order, 900);
    let other = play.join(1, 1000);
    play.submit(2, &[]);
    play.submit(3, &[]);
    assert_eq!(play.sent_to(other).len(), 2);
    let is_recall = |(_, word): &(WorkerId, ToWorker)| matches!(word, ToWorker::Recall { .. });
    assert!(!play.to_workers.iter().any(is_recall), "{:?}", play.to_workers);
}

#[test]
fn a_task_goes_where_its_inputs_fit() {
    let mut play = Play::new(0);
    let small = play.join(1, 100);
    let large = play.join(1, 1000);
    play.submit(1, &[]);
    play.submit(2, &[]);
    let orders = play.orders();
    assert_eq!(orders.iter().map(|(worker, _)| *worker).collect::<Vec<_>>(), [small, large]);
    play.done(&orders[0], 90);
    play.done(&orders[1], 60);
    play.submit(3, &[1, 2]);
    assert_eq!(play.order().0, large, "most of it is at the small one");
}

#[test]
fn an_idle_worker_gets_what_another_has_not_begun() {
    let mut play = Play::new(1);
    play.submit(1, &[]);
    play.submit(2, &[]);
    let orders = play.orders();
    assert_eq!(orders.len(), 2, "one runs, one waits there");
    let idle = play.join(1, 1000);
    let key = play.key(2);
    let run = orders[1].1.run;
    assert!(play.to_workers.contains(&(1, ToWorker::Recall { key, run })));
    play.to_workers.clear();
    play.worker(1, FromWorker::Returned { key, run, lacking: Vec::new() });
    assert_eq!(play.order().0, idle);
}

#[test]
fn a_full_worker_gets_no_roots_and_what_never_fits_is_an_error() {
    let mut play = Play::new(1);
    play.submit(1, &[]);
    let order = play.order();
    play.done(&order, 900);
    play.submit(2, &[]);
    assert!(play.orders().is_empty(), "full");
    play.submit(3, &[1]);
    let order = play.order();
    assert_eq!(order.1.key, play.key(3));
    play.done(&order, 200);
    play.submit(4, &[1, 3]);
    let failure = play.failure(4).expect("1100 bytes do not fit into 1000");
    assert_eq!(failure.kind, ErrorKind::TooLarge);
    assert!(failure.detail.contains("1100") && failure.detail.contains("1000"), "{failure:?}");
    play.release(1);
    play.release(3);
    play.release(4);
    assert_eq!(play.order().1.key, play.key(2), "there is room again");
}

#[test]
fn late_words_change_nothing() {
    let mut play = Play::new(2);
    play.submit(1, &[]);
    let (worker, order) = play.order();
    play.worker(worker, FromWorker::Done { key: order.key, run: order.run + 1, bytes: 1, micros: 1 });
    assert_eq!(play.freed(), [(worker, order.key)]);
    play.release(1);
    play.to_workers.clear();
    play.done(&(worker, order.clone()), 1);
    assert_eq!(play.freed(), [(worker, order.key)], "what it made is not wanted");
    play.worker(worker, FromWorker::Has { key: order.key });
    assert_eq!(play.freed(), [(worker, order.key)]);
    assert_eq!(play.state.tasks(), 0);
}

#[test]
fn what_a_client_cannot_say_is_a_violation() {
    let mut play = Play::new(1);
    play.submit(1, &[]);
    let client = play.client;
    let submit = |key, function, inputs: &[Key]| FromClient::Submit {
        key,
        function,
        inputs: inputs.to_vec(),
        arguments: Arguments::default(),
    };
    let words = [
        submit(play.key(1), 0, &[]),
        submit(Key::new(client + 1, 2), 0, &[]),
        submit(play.key(2), 1, &[]),
        submit(play.key(2), 0, &[play.key(3)]),
        submit(play.key(2), 0, &[play.key(2)]),
        FromClient::Release { key: play.key(2) },
        FromClient::Cancel { key: Key::new(client + 1, 1) },
        FromClient::WhoHas { request: 1, key: play.key(2) },
        FromClient::Lacks { key: play.key(2), worker: 1 },
        FromClient::Function { name: String::new(), types: 0 },
        FromClient::Function { name: "x".repeat(256), types: 0 },
    ];
    for word in words {
        assert!(matches!(play.state.client_said(client, word.clone()), Err(Violation { .. })), "{word:?}");
    }
    assert_eq!(play.state.tasks(), 1);
    play.state.client_left(client);
    assert_eq!(play.state.tasks(), 0, "what it wanted is released");
}

#[test]
fn a_long_chain_is_made_and_forgotten_without_a_deep_stack() {
    let mut play = Play::new(1);
    play.submit(1, &[]);
    for sequence in 2..100_000 {
        play.submit(sequence, &[sequence - 1]);
        play.release(sequence - 1);
    }
    play.release(99_999);
    assert_eq!(play.state.tasks(), 0);
    play.submit(200_000, &[]);
    for sequence in 200_001..300_000 {
        play.submit(sequence, &[sequence - 1]);
    }
    let key = play.key(200_000);
    play.client(FromClient::Cancel { key });
    assert_eq!(play.failure(299_999).map(|failure| failure.kind), Some(ErrorKind::Cancelled));
}
