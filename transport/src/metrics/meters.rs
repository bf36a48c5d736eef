//! The counters: each connection's, without a lock, and the endpoint's, when a connection begins or ends.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use super::Stats;
use super::histogram::{Histogram, HistogramSnapshot};
use crate::backend::CurrentLink;
use crate::error::ErrorKind;
use crate::platform::mutex::Mutex;

/// The counters of one connection. Two relaxed additions per message and direction, and two per delivery.
#[derive(Debug)]
pub(crate) struct ConnectionCounts {
    link: CurrentLink,
    pub(crate) sent: Histogram,
    pub(crate) received: Histogram,
    pub(crate) deliveries: Histogram,
    pub(crate) bytes_copied: AtomicU64,
}

impl ConnectionCounts {
    pub(crate) fn of(link: CurrentLink) -> Self {
        Self {
            link,
            sent: Histogram::of_bytes(),
            received: Histogram::of_bytes(),
            deliveries: Histogram::of_times(),
            bytes_copied: AtomicU64::new(0),
        }
    }

    pub(crate) fn stats(&self) -> Stats {
        self.read().stats()
    }

    fn read(&self) -> CountsSnapshot {
        let link = self.link.load().stats();
        CountsSnapshot {
            sent: self.sent.read(),
            received: self.received.read(),
            deliveries: self.deliveries.read(),
            bytes_copied: link.bytes_copied + self.bytes_copied.load(Ordering::Relaxed),
            bytes_bounced: link.bytes_bounced,
            system_calls: link.system_calls,
            credit_stalls: link.credit_stalls,
        }
    }
}

/// The counters of one connection at one moment, or the sum of many.
#[derive(Clone, Debug)]
pub(super) struct CountsSnapshot {
    pub(super) sent: HistogramSnapshot,
    pub(super) received: HistogramSnapshot,
    pub(super) deliveries: HistogramSnapshot,
    pub(super) bytes_copied: u64,
    pub(super) bytes_bounced: u64,
    pub(super) system_calls: u64,
    pub(super) credit_stalls: u64,
}

impl CountsSnapshot {
    fn zero() -> Self {
        let bytes = || Histogram::of_bytes().read();
        Self {
            sent: bytes(),
            received: bytes(),
            deliveries: Histogram::of_times().read(),
            bytes_copied: 0,
            bytes_bounced: 0,
            system_calls: 0,
            credit_stalls: 0,
        }
    }

    fn add(&mut self, other: &Self) {
        self.sent += &other.sent;
        self.received += &other.received;
        self.deliveries += &other.deliveries;
        self.bytes_copied += other.bytes_copied;
        self.bytes_bounced += other.bytes_bounced;
        self.system_calls += other.system_calls;
        self.credit_stalls += other.credit_stalls;
    }

    fn stats(&self) -> Stats {
        Stats {
            messages_sent: self.sent.count(),
            messages_received: self.received.count(),
            bytes_sent: self.sent.sum(),
            bytes_received: self.received.sum(),
            bytes_copied: self.bytes_copied,
            bytes_bounced: self.bytes_bounced,
            system_calls: self.system_calls,
            credit_stalls: self.credit_stalls,
        }
    }
}

pub(super) type Labels<const N: usize> = [(&'static str, String); N];

/// Events, counted by label.
#[derive(Debug, Default)]
pub(super) struct LabelledCounter<const N: usize>(Mutex<BTreeMap<Labels<N>, u64>>);

impl<const N: usize> LabelledCounter<N> {
    fn add_one(&self, labels: Labels<N>) {
        *self.0.lock().entry(labels).or_default() += 1;
    }

    pub(super) fn read(&self) -> Vec<(u64, Labels<N>)> {
        let counts = self.0.lock();
        counts.iter().map(|(labels, count)| (*count, labels.clone())).collect()
    }
}

/// The counters of one endpoint, kept by its driver.
#[derive(Debug)]
pub(crate) struct Meters {
    connections: Mutex<Connections>,
    pub(super) opened: LabelledCounter<2>,
    pub(super) ended: LabelledCounter<1>,
    pub(super) failed: LabelledCounter<2>,
    pub(super) establish_times: Histogram,
}

#[derive(Debug)]
struct Connections {
    living: BTreeMap<u64, (Arc<ConnectionCounts>, Labels<3>)>,
    /// The sum of the connections that have ended.
    retired: CountsSnapshot,
}

impl Meters {
    pub(crate) fn new() -> Self {
        Self {
            connections: Mutex::new(Connections { living: BTreeMap::new(), retired: CountsSnapshot::zero() }),
            opened: LabelledCounter::default(),
            ended: LabelledCounter::default(),
            failed: LabelledCounter::default(),
            establish_times: Histogram::of_times(),
        }
    }

    /// Adds an open connection.
    pub(crate) fn adopt(
        &self,
        number: u64,
        counts: &Arc<ConnectionCounts>,
        path: &'static str,
        peer: String,
    ) {
        let labels = [("connection", number.to_string()), ("path", path.to_owned()), ("peer", peer)];
        self.connections().living.insert(number, (counts.clone(), labels));
    }

    /// Removes a connection and adds its counters to the endpoint's. `end` is how it ended.
    pub(crate) fn retire(&self, number: u64, counts: &ConnectionCounts, end: Option<ErrorKind>) {
        let counted = counts.read();
        let mut connections = self.connections();
        if let Some(kept) = connections.living.remove(&number) {
            connections.retired.add(&counted);
            drop(connections);
            drop(kept);
            self.ended.add_one([("how", end.map_or_else(|| "dropped".into(), label_value))]);
        }
    }

    /// ConnectionCounts an attempt that took `time` and opened a connection over `path`, or failed.
    pub(crate) fn established(
        &self,
        role: &'static str,
        path: Result<&'static str, ErrorKind>,
        time: Duration,
    ) {
        match path {
            Ok(path) => {
                self.establish_times.record_time(time);
                self.opened.add_one([("role", role.into()), ("path", path.into())]);
            }
            Err(kind) => {
                self.failed.add_one([("role", role.into()), ("why", label_value(kind))]);
            }
        }
    }

    /// Returns the counters of each open connection, and the sum of all connections ever opened.
    pub(super) fn read(&self) -> (Vec<(CountsSnapshot, Labels<3>)>, CountsSnapshot) {
        let (living, mut all) = {
            let connections = self.connections();
            (connections.living.values().cloned().collect::<Vec<_>>(), connections.retired.clone())
        };
        let living: Vec<_> = living.into_iter().map(|(counts, labels)| (counts.read(), labels)).collect();
        for (counted, _) in &living {
            all.add(counted);
        }
        (living, all)
    }

    fn connections(&self) -> MutexGuard<'_, Connections> {
        self.connections.lock()
    }
}

/// Returns an error kind as a label value: `peer_lost`.
fn label_value(kind: ErrorKind) -> String {
    kind.to_string().replace([' ', '/'], "_")
}
