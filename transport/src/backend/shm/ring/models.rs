//! The ring under loom: every interleaving of two threads, and every value that memory may show. A byte read
//! while it is written fails the model, and so does a lost wake-up.

#![cfg(towline_loom)]

use loom::model::Builder;
use loom::sync::{Arc, Notify};
use loom::thread;

use super::Ring;
use super::heap::pair;

/// The number of preemptions per thread. Unbounded, the longest model takes minutes.
const PREEMPTIONS_MAX: usize = 4;

fn model(run: impl Fn() + Send + Sync + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(PREEMPTIONS_MAX);
    builder.check(run);
}

/// Two ends that ring each other's doorbell.
fn ends(len: usize) -> (RingEnd, RingEnd) {
    let (one, other, _) = pair(len);
    let doorbells = [Arc::new(Notify::new()), Arc::new(Notify::new())];
    let [first, second] = doorbells.clone();
    (
        RingEnd { ring: one, own: first.clone(), peers: second.clone() },
        RingEnd { ring: other, own: second, peers: first },
    )
}

struct RingEnd {
    ring: Ring,
    own: Arc<Notify>,
    peers: Arc<Notify>,
}

impl RingEnd {
    /// Writes `bytes` in messages of at most `len`, waiting for room.
    fn write(&mut self, mut bytes: &[u8], len: usize) {
        while !bytes.is_empty() {
            let room = self.ring.writable(1).unwrap();
            if room == 0 {
                self.sleep(true);
                continue;
            }
            let (now, later) = bytes.split_at(room.min(len).min(bytes.len()));
            self.ring.put(now);
            if self.ring.publish() {
                self.peers.notify();
            }
            bytes = later;
        }
    }

    /// Reads `count` bytes, waiting for data.
    fn read(&mut self, count: usize) -> Vec<u8> {
        let mut all = Vec::new();
        while all.len() < count {
            if self.ring.readable(1).unwrap() == 0 {
                self.sleep(false);
                continue;
            }
            all.extend(self.ring.take(count - all.len()));
            if self.ring.release() {
                self.peers.notify();
            }
        }
        all
    }

    fn sleep(&mut self, for_room: bool) {
        if self.ring.arm(for_room) {
            self.own.wait();
            self.ring.disarm();
        }
    }
}

#[test]
fn readable_bytes_are_whole_and_in_order() {
    model(|| {
        let (mut one, mut other, _) = pair(4);
        let writer = thread::spawn(move || {
            for message in [[1, 2], [3, 4], [5, 6]] {
                if one.writable(2).unwrap() >= 2 {
                    one.put(&message);
                    assert!(!one.publish());
                }
            }
            one
        });
        let mut got = Vec::new();
        for _ in 0..2 {
            other.readable(4).unwrap();
            got.extend(other.take(4));
            assert!(!other.release());
        }
        let one = writer.join().unwrap();
        other.readable(4).unwrap();
        got.extend(other.take(4));
        assert_eq!(got, [1, 2, 3, 4, 5, 6][..one.written as usize]);
    });
}

#[test]
fn a_reader_that_sleeps_is_woken() {
    model(|| {
        let (mut one, mut other) = ends(4);
        let writer = thread::spawn(move || one.write(&[1, 2], 1));
        assert_eq!(other.read(2), [1, 2]);
        writer.join().unwrap();
    });
}

#[test]
fn a_writer_at_a_full_ring_is_woken() {
    model(|| {
        let (mut one, mut other) = ends(1);
        let writer = thread::spawn(move || one.write(&[1, 2], 1));
        assert_eq!(other.read(2), [1, 2]);
        writer.join().unwrap();
    });
}

#[test]
fn ends_that_both_write_and_then_sleep_are_both_woken() {
    model(|| {
        let (mut one, mut other) = ends(2);
        let peer = thread::spawn(move || {
            one.write(&[1], 1);
            one.read(1)
        });
        other.write(&[2], 1);
        assert_eq!((other.read(1), peer.join().unwrap()), (vec![1], vec![2]));
    });
}
