//! The order of packets, records and completions.

use super::*;

#[test]
fn transfers_take_turns_without_making_the_stream_due() {
    let (mut a, mut b) = granted(false, 2 * PACKET_LEN + 1);
    a.send(&[EAGER_LEN_MAX as usize, 3]);
    ack_records(&mut a, &mut b);
    let announced = b.end.announced.pop_front().expect("announced");
    let destinations = announced.frames.iter().map(|frame| Some(BufferMut::with_capacity(frame.len + 3)));
    let taken = b.end.accept(announced.id, destinations.collect());
    b.received.push(Some((vec![true; 2], taken)));
    ack_records(&mut a, &mut b);
    assert!(a.end.session.has_packet() && !a.end.session.is_due(Urgency::Ack));
    assert!(!b.end.session.has_packet() && b.end.session.next_packet().is_none());
    post_all(&mut a, &mut b);
    let turn = |(head, bytes): &(Vec<u8>, Vec<u8>)| {
        let transfer = Head::decode(head, PACKET_LEN).unwrap().transfer;
        (transfer, record::offset_of(head).unwrap(), bytes.len())
    };
    let turns: Vec<_> = b.in_flight.iter().map(turn).collect();
    let (first, second) = (Transfer::Message(0), Transfer::Message(1));
    assert_eq!(
        turns,
        [
            (first, 0, PACKET_LEN),
            (second, 0, EAGER_LEN_MAX as usize + 3),
            (first, PACKET_LEN as u64, PACKET_LEN),
            (first, 2 * PACKET_LEN as u64, 1),
        ]
    );
    run_dry(&mut a, &mut b, &mut Seed(1));
    b.check(&a, true);
    a.check_sent(true);
}

#[test]
fn an_ack_before_its_packet_has_left_waits_for_it() {
    let (mut a, mut b) = granted(false, 2 * PACKET_LEN);
    let writable = b.end.regions.expose_mut(BufferMut::zeroed(PACKET_LEN), Duration::MAX);
    let frame = Buffer::from(bytes(PACKET_LEN));
    let puts = [0, 1].map(|offset| {
        let (from, put) = Operation::new(frame.slice(..PACKET_LEN - 1));
        a.end.session.put(writable.remote(), offset, from);
        put
    });
    ack_records(&mut a, &mut b);
    let mut held: Vec<_> = std::iter::from_fn(|| a.end.session.next_packet()).collect();
    b.in_flight = held.iter().map(copied).collect();
    // The first half of the message and the first put have arrived; the region of the second put is revoked.
    for _ in 0..2 {
        let (head, bytes) = b.in_flight.remove(0);
        let PacketArrival::Accepted(mut destination) =
            b.end.session.packet_arrived(&head, bytes.len()).unwrap()
        else {
            panic!("it was granted")
        };
        fill(&mut destination, &bytes);
        b.end.session.packet_landed(destination).unwrap();
    }
    drop(ready(writable.revoke()));
    land_all(&mut a, &mut b);
    let (_, sent, acked) = a.sent.pop().expect("it was sent");
    assert!(sent.try_take().is_none() && acked.try_take().is_none(), "its memory is read still");
    assert!(puts.iter().all(|put| put.try_take().is_none()), "theirs too");
    while let Some(packet) = held.pop() {
        a.end.session.packet_left(packet);
    }
    assert!(sent.try_take().expect("it has left").is_ok());
    assert_eq!(acked.try_take().expect("it was acknowledged before").unwrap(), Delivery::Delivered);
    let [done, refused] = puts.map(|put| put.try_take().expect("it was answered before"));
    assert!(done.is_ok());
    let failed = refused.expect_err("revoked");
    assert_eq!(failed.error.kind(), ErrorKind::Rejected);
    drop(failed);
    assert!(frame.try_into_mut().is_ok(), "the handle is unique");
    b.received.clear();
}

/// Writes arrived packets to their destinations, then moves records. Reports no packet as left.
fn land_all(from: &mut PacketEnd, to: &mut PacketEnd) {
    let mut seed = Seed(1);
    while to.act(from, 4, &mut seed).unwrap() || to.act(from, 5, &mut seed).unwrap() {}
    ack_records(from, to);
}

#[test]
fn a_get_counts_as_answered_before_its_packet_has_left() {
    const GETS: usize = 1024;
    let (mut a, mut b) = PacketEnd::pair(false);
    let readable = a.end.regions.expose(bytes(100).into(), Duration::MAX);
    let mut held = Vec::new();
    for _ in 0..3 {
        let gets: Vec<_> = (0..GETS)
            .map(|_| {
                let (into, got) = Operation::new(BufferMut::with_capacity(100));
                b.end.session.get(readable.remote(), 0, into);
                got
            })
            .collect();
        ack_records(&mut a, &mut b);
        while let Some(packet) = a.end.session.next_packet() {
            b.in_flight.push(copied(&packet));
            held.push(packet);
        }
        land_all(&mut a, &mut b);
        for got in gets {
            assert!(got.try_take().expect("answered").expect("well").as_slice().unwrap() == bytes(100));
        }
    }
    assert_eq!(held.len(), 3 * GETS);
    held.into_iter().for_each(|packet| a.end.session.packet_left(packet));
    assert!(ready(readable.revoke()).try_into_mut().is_ok(), "the handle is unique");
}

#[test]
fn close_leaves_after_the_last_packet_and_counts_when_it_has_arrived() {
    let (mut a, mut b) = granted(true, 5 * PACKET_LEN);
    let closed = a.close();
    let packets: Vec<_> = std::iter::from_fn(|| a.end.session.next_packet()).collect();
    assert_eq!(packets.len(), 5);
    for packet in packets {
        assert!(!a.end.session.is_due(Urgency::Ack), "its memory is read still");
        b.in_flight.push(copied(&packet));
        a.end.session.packet_left(packet);
    }
    ack_records(&mut a, &mut b);
    assert!(a.end.session.may_end() && !a.end.session.is_over(), "it has left");
    while let Some((head, bytes)) = b.in_flight.pop() {
        assert!(!b.end.session.may_end() && !b.end.session.is_due(Urgency::Ack), "packets are in flight");
        let PacketArrival::Accepted(mut destination) =
            b.end.session.packet_arrived(&head, bytes.len()).unwrap()
        else {
            panic!("it was announced")
        };
        fill(&mut destination, &bytes);
        assert!(!b.end.session.may_end(), "one packet is being received");
        b.end.session.packet_landed(destination).unwrap();
    }
    ack_records(&mut a, &mut b);
    assert!(a.end.session.is_over() && b.end.session.is_over());
    b.check(&a, true);
    a.check_sent(true);
    a.give_up(ErrorKind::Closed, &mut Seed(1));
    assert!(closed.try_take().expect("closed").is_ok());
}

#[test]
fn a_close_is_answered_once_packets_in_flight_have_left() {
    let (mut a, _) = granted(false, 3 * PACKET_LEN);
    let packet = a.end.session.next_packet().expect("granted");
    // The other end closes instead.
    let mut b = PacketEnd::new(false);
    drop(b.close());
    b.end.write(&mut a.end.wire, usize::MAX);
    while a.end.read(usize::MAX).unwrap() {}
    assert!(!a.end.session.has_packet() && !a.end.session.is_due(Urgency::Ack));
    a.end.session.packet_left(packet);
    assert!(a.end.session.is_due(Urgency::Now) && !a.end.session.is_over());
    while a.end.write(&mut VecDeque::new(), usize::MAX) {}
    assert!(a.end.session.is_over());
}

#[test]
fn an_unaccepted_message_does_not_block_close() {
    let (mut a, mut b) = PacketEnd::pair(false);
    a.send(&[2 * PACKET_LEN]);
    drop(a.close());
    ack_records(&mut a, &mut b);
    assert!(!a.end.session.may_end(), "it waits for its acknowledgement");
    drop(b.close());
    ack_records(&mut a, &mut b);
    assert!(a.end.session.is_over() && b.end.session.is_over());
}

#[test]
fn a_region_revoked_during_a_put_fails_only_the_put() {
    for landed_before in 0..3 {
        let (mut a, mut b) = PacketEnd::pair(true);
        let writable = b.end.regions.expose_mut(BufferMut::zeroed(3 * PACKET_LEN), Duration::MAX);
        let (from, put) = Operation::new(Buffer::from(bytes(3 * PACKET_LEN)));
        a.end.session.put(writable.remote(), 0, from);
        ack_records(&mut a, &mut b);
        assert_eq!(post_all(&mut a, &mut b), 3);
        let mut seed = Seed(landed_before);
        while b.act(&mut a, 4, &mut seed).unwrap() {}
        for _ in 0..landed_before {
            assert!(b.act(&mut a, 5, &mut seed).unwrap());
        }
        // Packets that have arrived are discarded: the revoked region does not wait for them.
        let written = ready(writable.revoke());
        assert_eq!(written.as_slice().unwrap().iter().any(|byte| *byte != 0), landed_before > 0);
        run_dry(&mut a, &mut b, &mut seed);
        let failed = put.try_take().expect("it ends").expect_err("it was revoked");
        assert_eq!((failed.error.kind(), failed.returned.len()), (ErrorKind::Rejected, 3 * PACKET_LEN));
        a.send(&[PACKET_LEN]);
        run_dry(&mut a, &mut b, &mut seed);
        assert_eq!(b.received.len(), 1, "the connection lives");
        b.received.clear();
        assert_eq!(b.pool.stats().in_use_bytes, 0);
    }
}
