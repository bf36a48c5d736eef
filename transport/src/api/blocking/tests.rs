use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::{Connection, Endpoint};
use crate::error::ErrorKind;
use crate::memory::{Buffer, BufferMut};
use crate::transfer::destination::Destination;
use crate::transfer::message::Message;
use crate::transfer::region::RemoteRegion;

/// Bounds a wait that must not happen: the test fails instead of hanging.
const LONG: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(30);
const LIFETIME: Duration = Duration::from_secs(60);

const ADDRESSES: [&str; 2] = ["mem://", "tcp://127.0.0.1:0"];

/// Makes the two ends of a connection, each bounded so that a mistake does not hang.
fn pair(address: &str) -> (Connection, Connection) {
    let endpoint = Endpoint::new().unwrap();
    let listener = endpoint.listen(&address.parse().unwrap()).unwrap().with_deadline(LONG);
    let connected = thread::scope(|scope| {
        let connecting = scope.spawn(|| endpoint.connect(listener.address()).unwrap());
        (connecting.join().unwrap(), listener.accept().unwrap())
    });
    (connected.0.with_deadline(LONG), connected.1.with_deadline(LONG))
}

/// Returns the first `len` of 300,000 bytes.
fn payload(len: usize) -> Buffer {
    static BYTES: LazyLock<Buffer> =
        LazyLock::new(|| (0..300_000).map(|i| (i * 31 % 251) as u8).collect::<Vec<_>>().into());
    BYTES.slice(..len)
}

#[test]
fn threads_exchange_messages_both_ways_at_once() {
    const COUNT: usize = 200;
    const LENGTHS: [usize; 4] = [0, 100, 20_000, 300_000];
    for address in ADDRESSES {
        let (left, right) = pair(address);
        thread::scope(|scope| {
            for (from, to) in [(left.clone(), right.clone()), (right, left)] {
                scope.spawn(move || {
                    let receipts: Vec<_> = (0..COUNT)
                        .map(|i| {
                            let frame = payload(LENGTHS[i % LENGTHS.len()]);
                            from.send(Message::new(i.to_string()).with_frame(frame)).unwrap()
                        })
                        .collect();
                    for receipt in receipts {
                        receipt.delivered().unwrap();
                    }
                });
                scope.spawn(move || {
                    for i in 0..COUNT {
                        let message = to.recv().unwrap();
                        assert_eq!(&message.header()[..], i.to_string().as_bytes());
                        let expected = payload(LENGTHS[i % LENGTHS.len()]);
                        assert_eq!(message.frames()[0].to_vec().unwrap(), expected.to_vec().unwrap());
                    }
                });
            }
        });
    }
}

#[test]
fn threads_measure_and_are_measured() {
    for address in ADDRESSES {
        let (left, right) = pair(address);
        let explanation = thread::scope(|scope| {
            let other = scope.spawn(|| right.be_measured());
            let explanation = left.measure().unwrap();
            other.join().unwrap().unwrap();
            explanation
        });
        let measured = explanation.measured.unwrap();
        assert!(measured.speed.gb_per_s > 0.0 && measured.speed.p50_us > 0.0, "{measured:?}");
        assert_eq!(measured.peer.chosen(), Some(left.path().chosen()));
        assert!(right.explain().unwrap().measured.is_none());
    }
}

#[test]
fn the_receiver_chooses_each_frames_destination() {
    for address in ADDRESSES {
        let (left, right) = pair(address);
        thread::scope(|scope| {
            scope.spawn(|| {
                let message = Message::new("x").with_frame(payload(50_000)).with_frame(payload(10));
                left.deliver(message.clone()).unwrap();
                left.deliver(message.clone()).unwrap();
                let error = left.deliver(message).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Rejected, "{error}");
            });
            let message = right.recv_into(BufferMut::with_capacity(50_010)).unwrap();
            assert_eq!(message.payload_len(), 50_010);
            let incoming = right.incoming().unwrap();
            assert_eq!((incoming.frames().len(), incoming.payload_len()), (2, 50_010));
            let destination = BufferMut::with_capacity(50_000);
            let at = destination.as_ptr();
            let destinations = vec![Destination::Buffer(destination), Destination::Discard];
            let message = incoming.accept_into(destinations).unwrap();
            assert_eq!(message.frames()[0].as_ptr(), at);
            right.incoming().unwrap().reject();
        });
    }
}

#[test]
fn regions_are_read_written_and_revoked() {
    for address in ADDRESSES {
        let (left, right) = pair(address);
        thread::scope(|scope| {
            scope.spawn(|| {
                let readable = left.expose(payload(30_000), LIFETIME).unwrap();
                let writable = left.expose_mut(BufferMut::zeroed(30_000), LIFETIME).unwrap();
                let keys = [readable.remote().to_bytes(), writable.remote().to_bytes()].concat();
                left.deliver(Message::new(keys)).unwrap();
                left.recv().unwrap();
                let written = left.revoke(writable).unwrap();
                assert_eq!(written.as_slice().unwrap(), payload(30_000).as_slice().unwrap());
                assert_eq!(left.revoke(readable).unwrap().len(), 30_000);
                left.deliver(Message::new("revoked")).unwrap();
            });
            let keys = right.recv().unwrap();
            let [readable, writable] =
                [0, 32].map(|at| RemoteRegion::from_bytes(&keys.header()[at..at + 32]).unwrap());
            let got = right.get(&readable, 0, BufferMut::with_capacity(30_000)).unwrap().freeze();
            assert_eq!(got.as_slice(), payload(30_000).as_slice());
            right.put(&writable, 0, got).unwrap();
            right.deliver(Message::new("written")).unwrap();
            right.recv().unwrap();
            let failed = right.get(&readable, 0, BufferMut::with_capacity(10)).unwrap_err();
            assert_eq!(failed.error.kind(), ErrorKind::Rejected, "{failed}");
            assert_eq!(failed.returned.unwrap().capacity(), 10);
        });
    }
}

#[test]
fn a_timed_out_call_names_its_deadline_and_loses_no_message() {
    for address in ADDRESSES {
        let (left, right) = pair(address);
        let hasty = right.clone().with_deadline(SHORT);
        let begun = Instant::now();
        let error = hasty.recv().unwrap_err();
        assert!(begun.elapsed() >= SHORT);
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        assert!(error.to_string().contains("recv") && error.to_string().contains("within 0.03 s"), "{error}");
        let failed = hasty.recv_into(BufferMut::with_capacity(10)).unwrap_err();
        assert_eq!(failed.error.kind(), ErrorKind::TimedOut);

        let receipt = left.send(Message::new("late")).unwrap();
        assert_eq!(&hasty.with_deadline(LONG).recv().unwrap().header()[..], b"late");
        receipt.delivered().unwrap();
    }
}

#[test]
fn receivers_that_time_out_and_retry_lose_and_repeat_nothing() {
    const PER_SENDER: usize = 150;
    for address in ADDRESSES {
        let (left, right) = pair(address);
        let hasty = right.with_deadline(Duration::from_micros(300));
        let taken = AtomicUsize::new(0);
        let received = thread::scope(|scope| {
            for sender in 0..2 {
                let left = &left;
                scope.spawn(move || {
                    for i in sender * PER_SENDER..(sender + 1) * PER_SENDER {
                        let message = Message::new(i.to_string()).with_frame(payload(i * 200));
                        left.deliver(message).unwrap();
                    }
                });
            }
            let receive = || {
                let mut mine = Vec::new();
                while taken.load(Ordering::Relaxed) < 2 * PER_SENDER {
                    match hasty.recv() {
                        Ok(message) => {
                            taken.fetch_add(1, Ordering::Relaxed);
                            let i: usize = str::from_utf8(message.header()).unwrap().parse().unwrap();
                            assert_eq!(message.frames()[0].as_slice(), payload(i * 200).as_slice());
                            mine.push(i);
                        }
                        Err(error) => assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}"),
                    }
                }
                mine
            };
            let receivers = [(); 3].map(|()| scope.spawn(receive));
            let mut all: Vec<_> = receivers.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
            all.sort_unstable();
            all
        });
        assert_eq!(received, (0..2 * PER_SENDER).collect::<Vec<_>>());
    }
}

#[test]
fn accept_times_out_at_its_deadline() {
    for address in ADDRESSES {
        let listener = Endpoint::new().unwrap().listen(&address.parse().unwrap()).unwrap();
        let error = listener.with_deadline(SHORT).accept().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        assert!(error.to_string().starts_with("accept "), "{error}");
    }
}

#[test]
fn a_closed_connection_fails_with_closed_and_returns_the_message() {
    for address in ADDRESSES {
        let (left, right) = pair(address);
        thread::scope(|scope| {
            scope.spawn(|| left.close().unwrap());
            assert_eq!(right.recv().unwrap_err().kind(), ErrorKind::Closed);
        });
        let failed = left.send(Message::new("x")).err().unwrap();
        assert_eq!(failed.error.kind(), ErrorKind::Closed);
        assert_eq!(&failed.returned.unwrap().header()[..], b"x");
    }
}

#[test]
fn blocking_calls_inside_an_async_runtime_fail_and_return_memory() {
    let (left, right) = pair("mem://");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let failed = left.send(Message::new("x")).err().unwrap();
        assert_eq!(failed.error.kind(), ErrorKind::Invalid);
        assert!(failed.error.to_string().contains("async"), "{failed}");
        let message = failed.returned.unwrap();
        assert_eq!(left.recv().unwrap_err().kind(), ErrorKind::Invalid);
        assert_eq!(Endpoint::new().unwrap().close().unwrap_err().kind(), ErrorKind::Invalid);

        let receipt = left.as_async().send(message).await.unwrap();
        assert_eq!(&right.as_async().recv().await.unwrap().header()[..], b"x");
        receipt.delivered().await.unwrap();
    });
}

#[test]
fn a_connection_outlives_the_threads_that_waited_on_it() {
    for address in ADDRESSES {
        let (left, right) = pair(address);
        for i in 0..20 {
            thread::scope(|scope| {
                scope.spawn(|| left.deliver(Message::new(vec![i])).unwrap());
                scope.spawn(|| assert_eq!(right.recv().unwrap().header()[..], [i]));
            });
        }
    }
}
