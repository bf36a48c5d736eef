//! Packets that were not granted, or were damaged in transit.

use super::*;
use crate::wire::record::{HEAD_LEN, put_offset, put_put};

/// A head without checksums.
fn head(records_len: usize, data_len: usize, transfer: Transfer, offset: u64) -> Vec<u8> {
    let mut head = [&Head { records_len, data_len, transfer }.encode()[..], &[0; 8]].concat();
    assert_eq!(head.len(), HEAD_LEN + 8);
    put_offset(&mut head, offset);
    head
}

/// An action of a hostile `a`.
enum PeerInput {
    /// Sends a packet with this head and this many bytes.
    Packet(Vec<u8>, usize),
    /// Sends a record.
    Record(Record<'static>),
    /// Sends bytes on the stream.
    Stream(Vec<u8>),
}

/// Applies the inputs while `b` waits for a message, a get and a put of three packets. Returns how many
/// packets were early.
fn hostile(inputs: Vec<PeerInput>) -> Result<usize> {
    let (mut a, mut b) = granted(false, 3 * PACKET_LEN - 1);
    let readable = a.end.regions.expose(bytes(3 * PACKET_LEN).into(), Duration::MAX);
    let (into, got) = Operation::new(BufferMut::with_capacity(3 * PACKET_LEN));
    b.end.session.get(readable.remote(), 0, into);
    let writable = b.end.regions.expose_mut(BufferMut::zeroed(3 * PACKET_LEN), Duration::MAX);
    let (from, _put) = Operation::new(Buffer::from(bytes(3 * PACKET_LEN)));
    a.end.session.put(writable.remote(), 0, from);
    ack_records(&mut a, &mut b);
    let mut early = 0;
    let mut apply = |inputs| {
        match inputs {
            PeerInput::Packet(head, len) => match b.end.session.packet_arrived(&head, len)? {
                PacketArrival::Accepted(destination) => b.receiving.push((destination, vec![1; len])),
                PacketArrival::Early => early += 1,
            },
            PeerInput::Record(record) => {
                let mut records = Vec::new();
                record::put(&mut records, &record);
                let head = Head { records_len: records.len(), data_len: 0, transfer: Transfer::Message(0) };
                b.end.session.received(0, &[&head.encode()[..], &records].concat())?;
            }
            PeerInput::Stream(bytes) => b.end.session.received(0, &bytes)?,
        }
        Ok(())
    };
    let result: Result<()> = inputs.into_iter().try_for_each(&mut apply);
    b.give_up(ErrorKind::Corrupt, &mut Seed(3));
    let failed = got.try_take().expect("it ends").expect_err("it did not come");
    assert_eq!((failed.returned.len(), failed.returned.capacity()), (0, 3 * PACKET_LEN));
    b.check(&a, false);
    assert_eq!(b.pool.stats().in_use_bytes, 0, "all memory comes back");
    result.map(|()| early)
}

#[test]
fn ungranted_packets_are_corrupt() {
    let (message, get, put) = (Transfer::Message(0), Transfer::Get(0), Transfer::Put(0));
    let packet_len = PACKET_LEN as u64;
    let whole = |transfer, offset| PeerInput::Packet(head(0, PACKET_LEN, transfer, offset), PACKET_LEN);
    let last = || PeerInput::Packet(head(0, PACKET_LEN - 1, message, 2 * packet_len), PACKET_LEN - 1);
    let close = |packets| PeerInput::Record(Record::Close { packets });
    let fine = vec![whole(get, 0), whole(put, 2 * packet_len), last(), close(4)];
    assert_eq!(hostile(fine).expect("a correct peer so far"), 0);
    let early = vec![whole(Transfer::Message(1), 0), whole(Transfer::Message(WINDOW.messages), 0)];
    assert_eq!(hostile(early).expect("announcements may still come"), 2);
    let data = Head { records_len: 0, data_len: PACKET_LEN, transfer: message };
    let put_again = {
        let mut records = Vec::new();
        put_put(&mut records, 0, &[7; 16], 0, EAGER_LEN_MAX, false);
        let head = Head { records_len: records.len(), data_len: 0, transfer: message };
        PeerInput::Stream([&head.encode()[..], &records].concat())
    };
    let refused = Record::Refused { id: 0, reason: "no".into() };
    let kind = {
        let mut head = head(0, PACKET_LEN, message, 0);
        head[8] = 3;
        PeerInput::Packet(head, PACKET_LEN)
    };
    for (what, inputs) in [
        ("no head", vec![PeerInput::Packet(Vec::new(), PACKET_LEN)]),
        (
            "a head that is too short",
            vec![PeerInput::Packet(head(0, PACKET_LEN, message, 0)[1..].to_vec(), PACKET_LEN)],
        ),
        (
            "a head with checksums",
            vec![PeerInput::Packet([head(0, PACKET_LEN, message, 0), vec![0; 12]].concat(), PACKET_LEN)],
        ),
        ("records", vec![PeerInput::Packet(head(1, PACKET_LEN, message, 0), PACKET_LEN)]),
        ("data of nothing", vec![kind]),
        ("nothing", vec![PeerInput::Packet(head(0, 0, message, 0), 0)]),
        (
            "fewer bytes than it says",
            vec![PeerInput::Packet(head(0, PACKET_LEN, message, 0), PACKET_LEN - 1)],
        ),
        ("more bytes than it says", vec![PeerInput::Packet(head(0, PACKET_LEN, message, 0), PACKET_LEN + 1)]),
        ("more than a packet", vec![PeerInput::Packet(head(0, PACKET_LEN + 1, message, 0), PACKET_LEN + 1)]),
        ("less than a packet", vec![PeerInput::Packet(head(0, PACKET_LEN - 1, message, 0), PACKET_LEN - 1)]),
        ("more than is left", vec![whole(message, 2 * packet_len)]),
        ("an offset off the grid", vec![whole(message, 1)]),
        ("an offset at the end", vec![whole(get, 3 * packet_len)]),
        ("an offset beyond the end", vec![whole(get, u64::MAX / packet_len * packet_len)]),
        ("a packet twice", vec![last(), last()]),
        ("a packet of a get twice", vec![whole(get, 0), whole(get, 0)]),
        ("a packet of a put twice", vec![whole(put, 0), whole(put, 0)]),
        ("a get that was not requested", vec![whole(Transfer::Get(1), 0)]),
        ("a put that was not granted", vec![whole(Transfer::Put(1), 0)]),
        ("a message beyond the window", vec![whole(Transfer::Message(1 + WINDOW.messages), 0)]),
        ("an unannounced message after a close", vec![close(1), whole(Transfer::Message(1), 0)]),
        ("a close that counts too few packets", vec![last(), close(0)]),
        ("one packet more than the close counts", vec![whole(get, 0), close(1), last()]),
        ("a refusal of a get whose answer comes", vec![whole(get, 0), PeerInput::Record(refused)]),
        ("a shorter put of the number of one whose bytes come", vec![whole(put, 2 * packet_len), put_again]),
        ("data in the stream", vec![PeerInput::Stream(data.encode().to_vec())]),
    ] {
        let error = hostile(inputs).expect_err(what);
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{what}: {error}");
    }
}

#[test]
fn a_close_that_counts_packets_on_a_plain_stream_is_corrupt() {
    let mut b = End::new();
    let mut records = Vec::new();
    record::put(&mut records, &Record::Close { packets: 1 });
    let start = Head { records_len: records.len(), data_len: 0, transfer: Transfer::Message(0) };
    let error = b.session.received(0, &[&start.encode()[..], &records].concat()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    let packet = head(0, PACKET_LEN, Transfer::Get(0), 0);
    assert_eq!(b.session.packet_arrived(&packet, PACKET_LEN).unwrap_err().kind(), ErrorKind::Corrupt);
}

#[test]
fn damaged_packets_are_located_and_never_delivered() {
    for damaged in 0..37 {
        let (mut a, mut b) = granted(true, 2 * PACKET_LEN);
        post_all(&mut a, &mut b);
        let (mut head, mut bytes) = b.in_flight.swap_remove(1);
        // Every byte of the head, and one byte of the data.
        match head.get_mut(damaged) {
            Some(byte) => *byte ^= 1 << (damaged % 8),
            None => bytes[777] ^= 1,
        }
        let came = b.end.session.packet_arrived(&head, bytes.len());
        let error = match came {
            Ok(PacketArrival::Accepted(mut destination)) => {
                fill(&mut destination, &bytes);
                b.end.session.packet_landed(destination).expect_err("it is damaged")
            }
            Ok(PacketArrival::Early) => panic!("byte {damaged}: nothing of it may be accepted"),
            Err(error) => error,
        };
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        let place = if damaged < head.len() {
            "damaged in transit: the head of a packet"
        } else {
            "damaged in transit: message 0, frame 0, the chunk at offset 20000"
        };
        assert_eq!(error.detail(), place, "byte {damaged}");
        b.give_up(ErrorKind::Corrupt, &mut Seed(1));
        b.check(&a, false);
    }
}
