//! Unit tests of the ring between two ends in ordinary memory. `models` holds the tests that need every
//! interleaving.

#![cfg(not(towline_loom))]

use std::mem::offset_of;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use super::heap::{Heap, pair};
use super::{BYTES_AT, CacheLine, Ring, RingHeader};
use crate::error::ErrorKind;

const LEN: usize = 64;

fn byte(position: usize) -> u8 {
    (position * 31 + position / 251) as u8
}

fn bytes(from: usize, count: usize) -> Vec<u8> {
    (from..from + count).map(byte).collect()
}

/// Moves `count` bytes from one end to the other.
fn carry(from: &mut Ring, to: &mut Ring, count: usize) {
    let sent = bytes(from.written as usize, count);
    assert!(from.writable(count).unwrap() >= count);
    from.put(&sent);
    assert!(!from.publish(), "neither end is armed");
    assert_eq!(to.readable(count).unwrap(), count);
    assert_eq!(to.take(count), sent);
    assert!(!to.release(), "neither end is armed");
}

#[test]
fn each_header_word_has_its_own_cache_lines() {
    let places =
        [offset_of!(RingHeader, produced), offset_of!(RingHeader, consumed), offset_of!(RingHeader, armed)];
    assert_eq!(places, [0, 128, 256]);
    assert!(size_of::<RingHeader>() <= BYTES_AT && align_of::<RingHeader>() == 128);
}

#[test]
fn bytes_are_unchanged_wherever_the_ring_wraps() {
    for offset in 0..LEN {
        for count in 0..=LEN {
            let (mut one, mut other, _) = pair(LEN);
            carry(&mut one, &mut other, offset);
            carry(&mut one, &mut other, count);
            carry(&mut other, &mut one, count);
        }
    }
}

#[test]
fn counters_wrap_around() {
    let (mut one, mut other, peer) = pair(LEN);
    let late = u64::MAX - 20;
    (one.written, one.published, one.taken) = (late, late, late);
    (other.arrived, other.read, other.released) = (late, late, late);
    peer.header.consumed.0.store(late, Relaxed);
    one.put(&bytes(0, LEN));
    assert!(!one.publish());
    assert_eq!((one.writable(1).unwrap(), other.readable(1).unwrap()), (0, LEN));
    assert_eq!(other.take(LEN), bytes(0, LEN));
    assert!(!other.release());
    assert_eq!(one.writable(1).unwrap(), LEN);
}

#[test]
fn a_ring_holds_its_length_and_no_more() {
    let (mut one, mut other, _) = pair(LEN);
    assert_eq!(one.writable(LEN + 1).unwrap(), LEN);
    one.put(&bytes(0, LEN - 1));
    assert_eq!(one.writable(LEN).unwrap(), 1);
    assert_eq!(other.readable(1).unwrap(), 0, "nothing is published");
    one.put(&[byte(LEN - 1)]);
    assert!(!one.publish());
    assert_eq!((one.writable(1).unwrap(), other.readable(1).unwrap()), (0, LEN));
    assert_eq!(other.take(10), bytes(0, 10));
    assert_eq!(one.writable(1).unwrap(), 0, "nothing is released");
    assert!(!other.release());
    assert_eq!(one.writable(1).unwrap(), 10);
    one.put(&bytes(LEN, 10));
    assert!(!one.publish());
    assert_eq!(other.take(LEN), bytes(10, LEN - 10), "what was known of");
    assert_eq!(other.readable(1).unwrap(), 10);
    assert_eq!(other.take(10), bytes(LEN, 10));
}

#[test]
#[should_panic(expected = "more than is writable")]
fn writing_beyond_the_room_is_a_bug() {
    pair(LEN).0.put(&[0; LEN + 1]);
}

#[test]
#[should_panic(expected = "more than is readable")]
fn reading_beyond_the_data_is_a_bug() {
    pair(LEN).0.copy_out(&mut [std::mem::MaybeUninit::uninit()]);
}

/// Returns an end that has written 40 bytes and published 30, of which the peer has read 5. It knows of 50
/// bytes of the peer's, has read 20 of them and released 10.
fn mid_stream() -> (Ring, Arc<Heap>) {
    let (mut one, mut other, peer) = pair(LEN);
    one.put(&bytes(0, 30));
    assert!(!one.publish());
    one.put(&bytes(30, 10));
    assert_eq!(other.readable(1).unwrap(), 30);
    other.take(5);
    assert!(!other.release());
    assert_eq!(one.writable(LEN).unwrap(), LEN - 35);
    other.put(&bytes(0, 50));
    assert!(!other.publish());
    assert_eq!(one.readable(1).unwrap(), 50);
    one.take(10);
    assert!(!one.release());
    one.take(10);
    (one, peer)
}

#[test]
fn an_impossible_counter_is_corrupt() {
    let near = |at: u64| (0..300).map(move |step| at.wrapping_add(step).wrapping_sub(150));
    let far = (0..64).flat_map(|bit| near(1 << bit)).chain(near(u64::MAX));
    for word in near(150).chain(far) {
        let (mut one, peer) = mid_stream();
        peer.header.consumed.0.store(word, Relaxed);
        match one.writable(LEN) {
            Ok(room) => assert_eq!(room as u64, LEN as u64 - (40 - word), "{word}"),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Corrupt);
                assert_eq!(one.writable(LEN).unwrap_err().kind(), ErrorKind::Corrupt, "it stays corrupt");
            }
        }
        assert_eq!(one.writable(LEN).is_ok(), (5..=30).contains(&word), "consumed {word}");

        peer.header.produced.0.store(word, Relaxed);
        match one.readable(LEN) {
            Ok(unread) => {
                assert_eq!(unread as u64, word - 20, "{word}");
                assert_eq!(one.take(LEN).len(), unread);
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Corrupt);
                assert_eq!(one.readable(LEN).unwrap_err().kind(), ErrorKind::Corrupt, "it stays corrupt");
            }
        }
        let possible = 50..=10 + LEN as u64;
        assert_eq!(one.arrived == word, possible.contains(&word), "produced {word}");
    }
}

#[test]
fn a_hostile_armed_word_costs_at_most_one_doorbell() {
    for word in [0, 1, 2, 3, 4, 7, 1 << 63, u64::MAX] {
        let (mut one, peer) = mid_stream();
        peer.header.armed.0.store(word, Relaxed);
        assert_eq!(one.publish(), word & 1 != 0, "{word}");
        assert_eq!(one.release(), word & 2 != 0 && word & 1 == 0, "{word}: once for each");
        assert!(!one.publish() && !one.release(), "no changed");
    }
}

#[test]
fn peer_counters_are_loaded_only_when_cached_ones_are_insufficient() {
    let (mut one, peer) = mid_stream();
    peer.header.consumed.0.store(u64::MAX, Relaxed);
    peer.header.produced.0.store(u64::MAX, Relaxed);
    assert_eq!((one.writable(29).unwrap(), one.readable(30).unwrap()), (29, 30));
    assert!(one.writable(30).is_err() && one.readable(31).is_err());
}

#[test]
fn an_armed_end_is_rung_once_for_what_it_armed() {
    let (mut one, mut other, _) = pair(LEN);
    let write = |ring: &mut Ring| {
        ring.put(&[7]);
        ring.publish()
    };
    assert!(!write(&mut one), "it is awake");
    assert_eq!(other.readable(1).unwrap(), 1);
    assert!(other.arm(false));
    assert!(write(&mut one));
    assert!(!write(&mut one), "it was rung");
    other.disarm();
    assert!(!write(&mut one));
    assert!(!other.arm(false), "there is unread data");
    assert!(!write(&mut one), "it is not armed");
    assert_eq!(other.readable(9).unwrap(), 5);
    assert!(other.arm(false));
    assert!(other.arm(false), "arming again counts as a new arm");
    assert!(write(&mut one));

    one.taken = 0;
    assert!(one.arm(true), "nothing is released");
    assert_eq!(other.take(2).len(), 2);
    assert!(other.release());
    assert_eq!(other.take(1).len(), 1);
    assert!(!other.release(), "it was rung");
    assert!(!one.arm(true), "there is unseen room");
    assert!(one.arm(false), "and no bytes");
    assert_eq!(other.take(1).len(), 1);
    assert!(!other.release(), "it is armed for data");
    assert!(write(&mut other));
    one.disarm();
    assert!(!write(&mut other));
}

/// A doorbell that an armed end waits for. A wait of ten seconds is a lost wake-up.
#[derive(Debug, Default)]
struct TestDoorbell {
    rung: Mutex<bool>,
    ringing: Condvar,
}

impl TestDoorbell {
    fn ring(&self, due: bool) {
        if due {
            *self.rung.lock().unwrap() = true;
            self.ringing.notify_one();
        }
    }

    fn wait(&self) {
        let rung = self.rung.lock().unwrap();
        let timeout = Duration::from_secs(10);
        let (mut rung, late) = self.ringing.wait_timeout_while(rung, timeout, |rung| !*rung).unwrap();
        assert!(!late.timed_out(), "a wake-up was lost");
        *rung = false;
    }
}

#[test]
fn two_threads_stream_both_ways_and_sleep() {
    const TOTAL: usize = 4 << 20;
    let (one, other, _) = pair(1024);
    let doorbells = [TestDoorbell::default(), TestDoorbell::default()];
    thread::scope(|scope| {
        scope.spawn(|| stream(one, &doorbells[0], &doorbells[1], TOTAL, 1));
        scope.spawn(|| stream(other, &doorbells[1], &doorbells[0], TOTAL, 2));
    });
}

/// Writes and reads `total` bytes in pieces of every size, and sleeps whenever neither makes progress.
fn stream(mut ring: Ring, own: &TestDoorbell, peers: &TestDoorbell, total: usize, seed: usize) {
    let (mut written, mut read, mut size) = (0, 0, seed);
    while written < total || read < total {
        size = (size * 5 + 3) % 1021;
        let room = ring.writable(size + 1).unwrap().min(size + 1).min(total - written);
        ring.put(&bytes(written, room));
        written += room;
        peers.ring(ring.publish());
        ring.readable(size + 1).unwrap();
        let taken = ring.take(size + 1);
        assert_eq!(taken, bytes(read, taken.len()));
        read += taken.len();
        peers.ring(ring.release());
        if room == 0 && taken.is_empty() && (written < total || read < total) && ring.arm(written < total) {
            own.wait();
            ring.disarm();
        }
    }
}

#[test]
fn a_ring_is_send() {
    fn goes<T: Send>() {}
    goes::<Ring>();
    assert_eq!(align_of::<CacheLine<u8>>(), 128);
}
