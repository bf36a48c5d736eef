//! Several streams: their bytes overtake each other, which must have no visible effect.

use super::*;
use crate::wire::chunks::CHUNK_LEN;
use crate::wire::record::{HEAD_LEN, Head, Record, Transfer, put, put_offset, put_put};

const LANES: usize = 3;

fn pair(checked: bool) -> (End, End) {
    (End::striped(checked, LANES), End::striped(checked, LANES))
}

/// Bytes that encode their position.
fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at / 251 + at) as u8).collect()
}

/// A packet without checksums, for a connection with several streams.
fn packet(records: &[u8], transfer: Transfer, offset: u64, data: &[u8]) -> Vec<u8> {
    let head = Head { records_len: records.len(), data_len: data.len(), transfer };
    let mut packet = [&head.encode()[..], &[0; 8]].concat();
    put_offset(&mut packet, offset);
    assert_eq!(packet.len(), HEAD_LEN + 8);
    [&packet, records, data].concat()
}

/// Moves everything on the main stream, and nothing on the lanes.
fn ack_main(a: &mut End, b: &mut End) {
    while a.write(&mut b.wire, usize::MAX)
        | b.write(&mut a.wire, usize::MAX)
        | a.read(usize::MAX).unwrap()
        | b.read(usize::MAX).unwrap()
    {}
}

#[test]
fn messages_arrive_complete_and_in_order_for_any_order_of_streams() {
    for number in 0..60 {
        let mut seed = Seed(number);
        let (mut a, mut b) = pair(number % 2 == 0);
        if seed.below(2) == 1 {
            b.session.expect(true);
        }
        let lens = [0, 5, CHUNK_LEN - 1, CHUNK_LEN, 3 * CHUNK_LEN + 7, 20 * CHUNK_LEN];
        let sent: Vec<_> = (0..12)
            .map(|number: usize| {
                let frames = (0..seed.below(4)).map(|_| Buffer::from(bytes(lens[seed.below(lens.len())])));
                Message::from_parts(number.to_string(), frames.collect())
            })
            .collect();
        let completions: Vec<_> = sent.iter().map(|message| a.send(message.clone())).collect();
        let mut taken = Vec::new();
        while taken.len() < sent.len() {
            run(&mut a, &mut b, &mut seed).expect("a good peer");
            let more: Vec<_> = std::iter::from_fn(|| b.take()).collect();
            assert!(!more.is_empty(), "seed {number}: stuck after {} messages", taken.len());
            taken.extend(more);
        }
        run(&mut a, &mut b, &mut seed).expect("a good peer");
        for (message, taken) in sent.iter().zip(taken) {
            let frames = taken.frames();
            assert_eq!(frames.len(), message.frames().len());
            for (is, should_be) in frames.iter().zip(message.frames()) {
                assert!(is.as_slice() == should_be.as_slice(), "seed {number}, {:?}", message.header());
            }
        }
        for (sent, acked) in completions {
            assert!(sent.try_take().expect("sent").is_ok());
            assert_eq!(acked.try_take().expect("acknowledged").unwrap(), Delivery::Delivered);
        }
    }
}

#[test]
fn gets_and_puts_are_striped() {
    let (mut a, mut b) = pair(true);
    let source = bytes(10 * CHUNK_LEN + 20);
    let readable = b.regions.expose(source.clone().into(), Duration::MAX);
    let mut into = BufferMut::with_capacity(10 * CHUNK_LEN + 3);
    into.extend_from_slice(b"abc").unwrap();
    let (into, got) = Operation::new(into);
    a.session.get(readable.remote(), 20, into);
    while a.write(&mut b.wire, usize::MAX) {}
    while b.read(usize::MAX).unwrap() {}
    // The main stream is full: the lanes carry everything.
    let mut rounds = 0;
    while (1..=LANES).fold(false, |moved, stream| {
        let wrote = b.write_lane(stream, &mut a.lanes[stream - 1], usize::MAX);
        wrote | moved | a.read_from(stream, usize::MAX).unwrap()
    }) {
        rounds += 1;
    }
    assert!(rounds > 1);
    let got = got.try_take().expect("ended").expect("got");
    assert!(got.as_slice().unwrap() == [b"abc", &source[20..]].concat());
    drop(readable);

    let writable = b.regions.expose_mut(BufferMut::zeroed(10 * CHUNK_LEN), Duration::MAX);
    let (from, put) = Operation::new(Buffer::from(source[..9 * CHUNK_LEN + 1].to_vec()));
    a.session.put(writable.remote(), 5, from);
    run(&mut a, &mut b, &mut Seed(1)).unwrap();
    assert!(put.try_take().expect("ended").is_ok());
    let mut revoking = std::pin::pin!(writable.revoke());
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    let std::task::Poll::Ready(written) = std::future::Future::poll(revoking.as_mut(), &mut cx) else {
        panic!("nothing is in flight")
    };
    assert!(written.as_slice().unwrap()[5..][..9 * CHUNK_LEN + 1] == source[..9 * CHUNK_LEN + 1]);
}

#[test]
fn a_lane_carries_nothing_while_the_main_stream_has_room() {
    let (mut a, mut b) = pair(false);
    let (sent, _) = a.send(Message::new("").with_frame(bytes(3 * CHUNK_LEN)));
    ack_main(&mut a, &mut b);
    let taken = b.take().expect("announced");
    b.write(&mut a.wire, usize::MAX);
    a.read(usize::MAX).unwrap();
    for (full, first) in [(0b0000, 0), (0b0001, 1), (0b0011, 2), (0b0101, 1), (0b0111, 3), (0b1110, 0)] {
        a.session.choose_stream(full);
        assert_eq!(a.session.is_due(Urgency::Now), first == 0, "{full:04b}");
        for stream in 1..=LANES {
            assert_eq!(a.session.lane_is_due(stream), stream == first, "{full:04b}, stream {stream}");
        }
    }
    ack_main(&mut a, &mut b);
    assert!(sent.try_take().expect("it was sent on the main stream").is_ok());
    assert!(taken.frames()[0].as_slice().unwrap() == bytes(3 * CHUNK_LEN));
}

#[test]
fn close_counts_after_all_lanes_have_closed() {
    let (mut a, mut b) = pair(false);
    let (sent, _) = a.send(Message::new("").with_frame(bytes(8 * CHUNK_LEN)));
    ack_main(&mut a, &mut b);
    let taken = b.take().expect("announced");
    b.write(&mut a.wire, usize::MAX);
    a.read(usize::MAX).unwrap();
    // Every chunk takes a lane and stays there.
    let mut under_way = vec![VecDeque::new(); LANES];
    while (1..=LANES)
        .fold(false, |moved, stream| moved | a.write_lane(stream, &mut under_way[stream - 1], usize::MAX))
    {
    }
    assert!(sent.try_take().expect("it left").is_ok());
    let (done, closed) = Done::new();
    a.session.close(done);
    ack_main(&mut a, &mut b);
    assert!(!b.session.may_end() && !b.session.is_over(), "chunks are still in flight");
    assert!(b.session.continues_without(0), "the main stream may end before them");
    b.lanes = under_way;
    let mut seed = Seed(2);
    run(&mut a, &mut b, &mut seed).unwrap();
    assert!(taken.frames()[0].as_slice().unwrap() == bytes(8 * CHUNK_LEN));
    assert!(a.session.is_over() && b.session.is_over());
    a.session.give_up(&crate::Error::new(ErrorKind::Closed, "over"));
    assert!(closed.try_take().expect("closed").is_ok());
}

#[test]
fn a_cut_at_any_step_returns_all_memory() {
    for cut_at in 0.. {
        let mut seed = Seed(7);
        let (mut a, mut b) = pair(cut_at % 2 == 0);
        b.session.expect(cut_at % 3 == 0);
        let (sent, acked) = a.send(Message::new("").with_frame(bytes(5 * CHUNK_LEN + 9)));
        let readable = b.regions.expose(bytes(3 * CHUNK_LEN).into(), Duration::MAX);
        let (into, got) = Operation::new(BufferMut::with_capacity(3 * CHUNK_LEN));
        a.session.get(readable.remote(), 0, into);
        let mut landed = None;
        let mut moved = true;
        for _ in 0..cut_at {
            moved = a.write(&mut b.wire, 1 + seed.below(CHUNK_LEN)) | b.write(&mut a.wire, usize::MAX);
            moved |= a.read(1 + seed.below(CHUNK_LEN)).unwrap() | b.read(usize::MAX).unwrap();
            for stream in 1..=LANES {
                moved |= a.write_lane(stream, &mut b.lanes[stream - 1], 1 + seed.below(CHUNK_LEN));
                moved |= b.write_lane(stream, &mut a.lanes[stream - 1], 1 + seed.below(CHUNK_LEN));
                moved |= a.read_from(stream, 1 + seed.below(CHUNK_LEN)).unwrap();
                moved |= b.read_from(stream, 1 + seed.below(CHUNK_LEN)).unwrap();
            }
            landed = landed.or_else(|| b.take());
        }
        let why = crate::Error::new(ErrorKind::PeerLost, "cut");
        a.session.give_up(&why);
        b.session.give_up(&why);
        let is_complete = match sent.try_take().expect("it ends") {
            Ok(()) => true,
            Err(failed) => {
                assert!(failed.returned.frames()[0].as_slice().unwrap() == bytes(5 * CHUNK_LEN + 9));
                false
            }
        };
        assert!(acked.try_take().is_some());
        match got.try_take().expect("it ends") {
            Ok(got) => assert!(got.as_slice().unwrap() == bytes(3 * CHUNK_LEN)),
            Err(failed) => {
                assert_eq!((failed.returned.len(), failed.returned.capacity()), (0, 3 * CHUNK_LEN));
            }
        }
        if let Some(Taken::Pending(landed)) = landed {
            match landed.try_take().expect("it ends") {
                Ok(frames) => assert!(frames[0].as_slice().unwrap() == bytes(5 * CHUNK_LEN + 9)),
                Err(failed) => {
                    let buffer = failed.returned[0].as_ref().expect("it comes back");
                    assert_eq!((buffer.len(), buffer.capacity()), (0, 5 * CHUNK_LEN + 9));
                }
            }
        }
        if is_complete && !moved {
            assert!(cut_at > 5);
            return;
        }
    }
}

/// The result of bytes from a hostile `a` on these streams, in this order. Meanwhile `b` waits for a message,
/// a get and a put of three chunks.
fn hostile(said: &[(usize, Vec<u8>)]) -> Result<()> {
    let (mut a, mut b) = pair(false);
    let (_sent, _) = a.send(Message::new("").with_frame(bytes(3 * CHUNK_LEN)));
    let readable = a.regions.expose(bytes(3 * CHUNK_LEN).into(), Duration::MAX);
    let (into, got) = Operation::new(BufferMut::with_capacity(3 * CHUNK_LEN));
    b.session.get(readable.remote(), 0, into);
    let _writable = b.regions.expose_mut(BufferMut::zeroed(3 * CHUNK_LEN), Duration::MAX);
    ack_main_one_way(&mut a, &mut b);
    let taken = b.take().expect("announced");
    b.write(&mut VecDeque::new(), usize::MAX);
    let mut result = Ok(());
    for (stream, bytes) in said {
        match stream {
            0 => b.wire.extend(bytes),
            _ => b.lanes[stream - 1].extend(bytes),
        }
        while result.is_ok()
            && b.read_from(*stream, usize::MAX)
                .inspect_err(|error| result = Err(error.clone()))
                .is_ok_and(|read| read)
        {}
    }
    b.session.give_up(&crate::Error::new(ErrorKind::Corrupt, "given up"));
    drop(got.try_take().expect("it ends"));
    if let Taken::Pending(landed) = taken {
        drop(landed.try_take().expect("it ends"));
    }
    result
}

fn ack_main_one_way(a: &mut End, b: &mut End) {
    while a.write(&mut b.wire, usize::MAX) | b.read(usize::MAX).unwrap() {}
}

#[test]
fn ungranted_data_is_corrupt_on_every_stream() {
    let (message, get) = (Transfer::Message(0), Transfer::Get(0));
    let chunk = bytes(CHUNK_LEN);
    let at = |transfer, offset, data: &[u8]| packet(&[], transfer, offset, data);
    let record = |record: &Record<'_>| {
        let mut records = Vec::new();
        put(&mut records, record);
        packet(&records, Transfer::Message(0), 0, &[])
    };
    let first = at(message, 0, &chunk);
    let put = |chunks: usize| {
        let mut records = Vec::new();
        put_put(&mut records, 0, &[7; 16], 0, (chunks * CHUNK_LEN) as u64, false);
        packet(&records, Transfer::Message(0), 0, &[])
    };
    let last_of_put = at(Transfer::Put(0), 2 * CHUNK_LEN as u64, &chunk)[..40].to_vec();
    let half = first[..first.len() / 2].to_vec();
    let refused = record(&Record::Refused { id: 0, reason: "no".into() });
    // A peer that is correct so far.
    hostile(&[(1, first.clone()), (2, at(get, CHUNK_LEN as u64, &chunk))]).unwrap();
    hostile(&[(3, at(Transfer::Message(1), 0, &chunk))]).expect("its announcement may still come");
    for (what, said) in [
        ("a chunk twice", vec![(1, first.clone()), (2, first.clone())]),
        ("a chunk twice at once", vec![(1, half.clone()), (2, first.clone())]),
        ("a chunk twice, also on the main stream", vec![(1, half.clone()), (0, first.clone())]),
        ("an offset off the grid", vec![(1, at(message, 1, &chunk))]),
        ("an offset beyond the end", vec![(1, at(message, 3 * CHUNK_LEN as u64, &chunk))]),
        ("half a chunk", vec![(1, at(message, 0, &chunk[1..]))]),
        ("a get that was not requested", vec![(1, at(Transfer::Get(9), 0, &chunk))]),
        ("a put that was not granted", vec![(1, at(Transfer::Put(0), 0, &chunk))]),
        ("a message beyond the window", vec![(1, at(Transfer::Message(1 + WINDOW.messages), 0, &chunk))]),
        ("records on a lane", vec![(1, record(&Record::Ping))]),
        ("an unannounced message on the main stream", vec![(0, at(Transfer::Message(1), 0, &chunk))]),
        (
            "an unannounced message after a close",
            vec![(1, at(Transfer::Message(1), 0, &chunk)), (0, record(&Record::Close { packets: 0 }))],
        ),
        ("a put of the number of one that comes", vec![(0, put(3)), (1, last_of_put), (0, put(1))]),
        ("a refusal of a get whose answer comes", vec![(1, at(get, 0, &chunk)[..40].to_vec()), (0, refused)]),
    ] {
        let error = hostile(&said).expect_err(what);
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{what}: {error}");
    }
}
