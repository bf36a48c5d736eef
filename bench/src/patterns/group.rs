//! Patterns of more than two workers: all send to their peers and count at the same time, while this process
//! waits.

use towline::Address;

use super::workers::{MessageCount, WorkerCommand, WorkerCost, WorkerReply, Workers};
use crate::case::Pace;
use crate::case::{Case, Pattern};
use crate::ceiling::socket::SocketTest;
use crate::failure::Failure;
use crate::results::ceiling::Ceiling;
use crate::results::sample::Sample;
use crate::security::trust::Trust;

/// Workers that are connected to their peers.
#[derive(Debug)]
pub(super) struct WorkerGroup {
    workers: Workers,
    pub(super) path: String,
}

impl WorkerGroup {
    /// Starts workers that send to the peer at `address` (incast), or to each other and to that peer, if any
    /// (alltoall).
    pub(super) async fn gather(
        case: &Case,
        trust: &Trust,
        address: Option<&Address>,
    ) -> Result<Self, Failure> {
        let mut workers = Workers::start(case.workers - usize::from(address.is_some()), case, trust)?;
        let address = address.map(Address::to_string);
        let (peers, mutual) = match address {
            Some(address) if case.pattern == Pattern::Incast => (vec![vec![address]; workers.count()], None),
            mutual => (others(&listen(&mut workers, case).await?), mutual),
        };
        let meet =
            |addresses| WorkerCommand::Connect { addresses, mutual: mutual.clone(), spec: case.spec() };
        let path = |answer| match answer {
            WorkerReply::Connected { path } => Some(path),
            _ => None,
        };
        let mut paths = workers.each(peers.into_iter().map(meet).collect(), path).await?;
        paths.sort();
        paths.dedup();
        Ok(Self { workers, path: paths.join("+") })
    }

    /// Lets all workers send, and counts while all of them are sending.
    pub(super) async fn measure(&mut self, case: &Case, pace: Pace) -> Result<Sample, Failure> {
        self.workers.all(WorkerCommand::Run, |answer| (answer == WorkerReply::Running).then_some(())).await?;
        self.workers.rest(pace.warmup).await?;
        let counted = |answer| match answer {
            WorkerReply::Counted { out, reverse } => Some((out, reverse)),
            _ => None,
        };
        let duration_us = pace.duration.as_micros() as u64;
        let counted = self.workers.all(WorkerCommand::Count { duration_us }, counted).await?;
        let spent = |answer| match answer {
            WorkerReply::Stopped(spent) => Some(spent),
            _ => None,
        };
        let spent = self.workers.all(WorkerCommand::Stop, spent).await?;
        Ok(sample(case, &counted, &spent))
    }

    /// Measures one bare socket for each worker, all at once. They also spin if each end has a core.
    pub(super) async fn sockets(&mut self, course: impl Fn(bool) -> SocketTest) -> Result<Ceiling, Failure> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let blocking = self.pour(course(false)).await?;
        if 2 * self.workers.count() > cores {
            return Ok(blocking);
        }
        Ok(blocking.best(self.pour(course(true)).await?))
    }

    async fn pour(&mut self, course: SocketTest) -> Result<Ceiling, Failure> {
        self.workers
            .all(WorkerCommand::Open { course }, |answer| (answer == WorkerReply::Opened).then_some(()))
            .await?;
        let rate = |answer| match answer {
            WorkerReply::Poured { gb_per_s } => Some(gb_per_s),
            _ => None,
        };
        let rates = self.workers.all(WorkerCommand::Pour, rate).await?;
        Ok(Ceiling::rate("socket", rates.iter().sum()))
    }
}

/// Returns the address at which each worker listens.
async fn listen(workers: &mut Workers, case: &Case) -> Result<Vec<String>, Failure> {
    let address = case.transport.local_address();
    workers
        .all(WorkerCommand::Listen { address }, |answer| match answer {
            WorkerReply::Listening { address } => Some(address),
            _ => None,
        })
        .await
}

/// Returns for each address all the others, starting with the next one, so that not all connect to the same
/// one first.
fn others(addresses: &[String]) -> Vec<Vec<String>> {
    let count = addresses.len();
    let of = |own: usize| (1..count).map(|step| addresses[(own + step) % count].clone()).collect();
    (0..count).map(of).collect()
}

/// Adds up what the workers measured. Each worker's rate is over its own interval; all were sending in all of
/// these intervals. The messages from the mutual peer add up to that peer's rate.
fn sample(case: &Case, counted: &[(MessageCount, Option<MessageCount>)], spent: &[WorkerCost]) -> Sample {
    let mut sample = Sample::new();
    let mut rates: Vec<f64> = counted.iter().map(|(out, _)| out.messages_per_s()).collect();
    let reverses: Vec<&MessageCount> = counted.iter().filter_map(|(_, reverse)| reverse.as_ref()).collect();
    if !reverses.is_empty() {
        rates.push(reverses.iter().map(|reverse| reverse.messages_per_s()).sum());
    }
    for MessageCount { messages, times, .. } in counted.iter().map(|(out, _)| out).chain(reverses) {
        sample.count(*messages, messages * case.size.0 as u64);
        // All have the same bounds, so adding cannot fail.
        let _ = sample.times.add(times.to_histogram());
    }
    let together: f64 = rates.iter().sum();
    sample.elapsed = std::time::Duration::from_secs_f64(sample.messages as f64 / together);
    let slowest = rates.iter().copied().fold(f64::INFINITY, f64::min);
    sample.fairness = Some(slowest / (together / rates.len() as f64));
    // The costs are of all messages; the counted messages have their share of them.
    let moved: u64 = spent.iter().map(|spent| spent.messages).sum();
    let share = sample.messages as f64 / moved as f64;
    let copied: u64 = spent.iter().map(|spent| spent.bytes_copied).sum();
    sample.bytes_copied = Some((copied as f64 * share).round() as u64);
    // In alltoall a worker both sends and receives, so its CPU time is of both.
    if case.pattern == Pattern::Incast {
        let near: f64 = spent.iter().map(|spent| spent.cpu_s).sum();
        let begin = spent.iter().map(|spent| spent.far_cpu_s.0).fold(f64::INFINITY, f64::min);
        let end = spent.iter().map(|spent| spent.far_cpu_s.1).fold(0.0, f64::max);
        sample.cpu = Some((near * share, (end - begin) * share));
    }
    sample
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::case::tests::case;
    use crate::results::histogram::HistogramCounts;

    fn counted(messages: u64, elapsed_ms: u64) -> MessageCount {
        let mut sample = Sample::new();
        (0..messages).for_each(|_| sample.record(Duration::from_micros(10)));
        MessageCount {
            elapsed_ns: elapsed_ms * 1_000_000,
            messages,
            times: HistogramCounts::of(&sample.times),
        }
    }

    fn reverse(messages: u64, elapsed_ms: u64) -> MessageCount {
        MessageCount { messages, ..counted(0, elapsed_ms) }
    }

    #[test]
    fn rates_add_up_and_fairness_is_that_of_the_slowest() {
        let spent = |begin, end| WorkerCost {
            messages: 600,
            cpu_s: 0.25,
            far_cpu_s: (begin, end),
            bytes_copied: 600 * (1 << 20),
        };
        let case = case("tcp", Pattern::Incast, 1 << 20);
        // 1,000 and 3,000 a second, over different times.
        let counted = [(counted(200, 200), None), (counted(300, 100), None)];
        let sample = sample(&case, &counted, &[spent(5.0, 6.5), spent(5.5, 7.0)]);
        assert_eq!((sample.messages, sample.times.len()), (500, 500));
        assert!((sample.messages_per_s() - 4000.0).abs() < 1e-3, "{}", sample.messages_per_s());
        assert!((sample.gb_per_s() - 4000.0 * 1.048576e-3).abs() < 1e-6, "{}", sample.gb_per_s());
        assert_eq!(sample.fairness, Some(0.5));
        assert_eq!(sample.copies(), Some(1.0));
        // Half a second of the senders' and two of the receiver's, for 1,200 messages.
        let gb = 1200.0 * 1.048576e-3;
        assert!((sample.send_cpu_s_per_gb().unwrap() - 0.5 / gb).abs() < 1e-9);
        assert!((sample.recv_cpu_s_per_gb().unwrap() - 2.0 / gb).abs() < 1e-9);
    }

    #[test]
    fn messages_of_the_mutual_peer_are_a_rate() {
        let spent =
            WorkerCost { messages: 1000, cpu_s: 0.25, far_cpu_s: (5.0, 6.0), bytes_copied: 1000 << 10 };
        let case = case("tcp", Pattern::Alltoall, 1 << 10);
        // 2,000 and 3,000 a second of the two here, 400 and 600 of the one there.
        let counted =
            [(counted(200, 100), Some(reverse(80, 200))), (counted(600, 200), Some(reverse(60, 100)))];
        let sample = sample(&case, &counted, &[spent.clone(), spent]);
        assert_eq!((sample.messages, sample.times.len()), (940, 800), "the times are of the near ones");
        assert!((sample.messages_per_s() - 6000.0).abs() < 1e-3, "{}", sample.messages_per_s());
        assert_eq!((sample.fairness, sample.cpu), (Some(0.5), None), "1,000 where 2,000 is the mean");
        assert_eq!(sample.copies(), Some(1.0));
    }

    #[test]
    fn every_worker_connects_to_all_others_once() {
        let addresses: Vec<String> = ["a", "b", "c"].map(str::to_owned).into();
        assert_eq!(others(&addresses), [["b", "c"], ["c", "a"], ["a", "b"]]);
    }
}
