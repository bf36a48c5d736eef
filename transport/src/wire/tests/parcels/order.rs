//! What leaves before what, and what waits for it.

use super::*;

#[test]
fn transfers_take_turns_beside_a_stream_that_is_not_due_for_them() {
    let (mut a, mut b) = granted(false, 2 * PARCEL_LEN + 1);
    a.send(&[EAGER_LEN_MAX as usize, 3]);
    settle_records(&mut a, &mut b);
    let announced = b.end.announced.pop_front().expect("announced");
    let landings = announced.frames.iter().map(|frame| Some(BufferMut::with_capacity(frame.len + 3)));
    let taken = b.end.accept(announced.id, landings.collect());
    b.received.push(Some((vec![true; 2], taken)));
    settle_records(&mut a, &mut b);
    assert!(a.end.session.has_parcel() && !a.end.session.is_due(Urgency::Word));
    assert!(!b.end.session.has_parcel() && b.end.session.next_parcel().is_none());
    post_all(&mut a, &mut b);
    let turn = |(head, bytes): &(Vec<u8>, Vec<u8>)| {
        let transfer = Head::decode(head, PARCEL_LEN).unwrap().transfer;
        (transfer, record::offset_of(head).unwrap(), bytes.len())
    };
    let turns: Vec<_> = b.under_way.iter().map(turn).collect();
    let (first, second) = (Transfer::Message(0), Transfer::Message(1));
    assert_eq!(
        turns,
        [
            (first, 0, PARCEL_LEN),
            (second, 0, EAGER_LEN_MAX as usize + 3),
            (first, PARCEL_LEN as u64, PARCEL_LEN),
            (first, 2 * PARCEL_LEN as u64, 1),
        ]
    );
    run_dry(&mut a, &mut b, &mut Seed(1));
    b.check(&a, true);
    a.check_sent(true);
}

#[test]
fn a_word_that_overtakes_the_parcel_it_is_on_waits_until_that_has_left() {
    let (mut a, mut b) = granted(false, 2 * PARCEL_LEN);
    let writable = b.end.regions.expose_mut(BufferMut::zeroed(PARCEL_LEN), Duration::MAX);
    let frame = Buffer::from(bytes(PARCEL_LEN));
    let puts = [0, 1].map(|offset| {
        let (from, put) = Operation::new(frame.slice(..PARCEL_LEN - 1));
        a.end.session.put(writable.remote(), offset, from);
        put
    });
    settle_records(&mut a, &mut b);
    let mut held: Vec<_> = std::iter::from_fn(|| a.end.session.next_parcel()).collect();
    b.under_way = held.iter().map(copied).collect();
    // Of the message the first half is there, and the first put; the second one finds its region revoked.
    for _ in 0..2 {
        let (head, bytes) = b.under_way.remove(0);
        let Came::Here(mut landing) = b.end.session.parcel_came(&head, bytes.len()).unwrap() else {
            panic!("it was granted")
        };
        fill(&mut landing, &bytes);
        b.end.session.parcel_landed(landing).unwrap();
    }
    drop(ready(writable.revoke()));
    land_all(&mut a, &mut b);
    let (_, sent, settled) = a.sent.pop().expect("it was sent");
    assert!(sent.try_take().is_none() && settled.try_take().is_none(), "its memory is read still");
    assert!(puts.iter().all(|put| put.try_take().is_none()), "theirs too");
    while let Some(parcel) = held.pop() {
        a.end.session.parcel_left(parcel);
    }
    assert!(sent.try_take().expect("it has left").is_ok());
    assert_eq!(settled.try_take().expect("it was said before").unwrap(), Delivery::Delivered);
    let [done, refused] = puts.map(|put| put.try_take().expect("it was said before"));
    assert!(done.is_ok());
    let failed = refused.expect_err("revoked");
    assert_eq!(failed.error.kind(), ErrorKind::Rejected);
    drop(failed);
    assert!(frame.try_into_mut().is_ok(), "nobody else has the memory");
    b.received.clear();
}

/// Moves what has come to its place, and then records, and tells nobody that anything has left.
fn land_all(from: &mut Post, to: &mut Post) {
    let mut seed = Seed(1);
    while to.act(from, 4, &mut seed).unwrap() || to.act(from, 5, &mut seed).unwrap() {}
    settle_records(from, to);
}

#[test]
fn a_get_is_answered_for_the_one_who_asks_before_its_parcel_has_left() {
    const GETS: usize = 1024;
    let (mut a, mut b) = Post::pair(false);
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
        settle_records(&mut a, &mut b);
        while let Some(parcel) = a.end.session.next_parcel() {
            b.under_way.push(copied(&parcel));
            held.push(parcel);
        }
        land_all(&mut a, &mut b);
        for got in gets {
            assert!(got.try_take().expect("answered").expect("well").as_slice().unwrap() == bytes(100));
        }
    }
    assert_eq!(held.len(), 3 * GETS);
    held.into_iter().for_each(|parcel| a.end.session.parcel_left(parcel));
    assert!(ready(readable.revoke()).try_into_mut().is_ok(), "nobody else has the memory");
}

#[test]
fn a_good_bye_leaves_after_the_last_parcel_and_counts_when_that_has_landed() {
    let (mut a, mut b) = granted(true, 5 * PARCEL_LEN);
    let closed = a.close();
    let parcels: Vec<_> = std::iter::from_fn(|| a.end.session.next_parcel()).collect();
    assert_eq!(parcels.len(), 5);
    for parcel in parcels {
        assert!(!a.end.session.is_due(Urgency::Word), "its memory is read still");
        b.under_way.push(copied(&parcel));
        a.end.session.parcel_left(parcel);
    }
    settle_records(&mut a, &mut b);
    assert!(a.end.session.may_end() && !a.end.session.is_over(), "it has left");
    while let Some((head, bytes)) = b.under_way.pop() {
        assert!(!b.end.session.may_end() && !b.end.session.is_due(Urgency::Word), "some are on their way");
        let Came::Here(mut landing) = b.end.session.parcel_came(&head, bytes.len()).unwrap() else {
            panic!("it was announced")
        };
        fill(&mut landing, &bytes);
        assert!(!b.end.session.may_end(), "one is landing");
        b.end.session.parcel_landed(landing).unwrap();
    }
    settle_records(&mut a, &mut b);
    assert!(a.end.session.is_over() && b.end.session.is_over());
    b.check(&a, true);
    a.check_sent(true);
    a.give_up(ErrorKind::Closed, &mut Seed(1));
    assert!(closed.try_take().expect("closed").is_ok());
}

#[test]
fn a_peer_that_closes_gets_its_answer_once_what_is_out_has_left() {
    let (mut a, _) = granted(false, 3 * PARCEL_LEN);
    let parcel = a.end.session.next_parcel().expect("granted");
    // One that waits for nothing says good-bye in its stead.
    let mut b = Post::new(false);
    drop(b.close());
    b.end.write(&mut a.end.wire, usize::MAX);
    while a.end.read(usize::MAX).unwrap() {}
    assert!(!a.end.session.has_parcel() && !a.end.session.is_due(Urgency::Word));
    a.end.session.parcel_left(parcel);
    assert!(a.end.session.is_due(Urgency::Now) && !a.end.session.is_over());
    while a.end.write(&mut VecDeque::new(), usize::MAX) {}
    assert!(a.end.session.is_over());
}

#[test]
fn a_message_that_nobody_accepts_keeps_nobody_from_closing() {
    let (mut a, mut b) = Post::pair(false);
    a.send(&[2 * PARCEL_LEN]);
    drop(a.close());
    settle_records(&mut a, &mut b);
    assert!(!a.end.session.may_end(), "it waits for the word on its message");
    drop(b.close());
    settle_records(&mut a, &mut b);
    assert!(a.end.session.is_over() && b.end.session.is_over());
}

#[test]
fn a_region_revoked_amid_a_put_costs_the_put_alone() {
    for landed_before in 0..3 {
        let (mut a, mut b) = Post::pair(true);
        let writable = b.end.regions.expose_mut(BufferMut::zeroed(3 * PARCEL_LEN), Duration::MAX);
        let (from, put) = Operation::new(Buffer::from(bytes(3 * PARCEL_LEN)));
        a.end.session.put(writable.remote(), 0, from);
        settle_records(&mut a, &mut b);
        assert_eq!(post_all(&mut a, &mut b), 3);
        let mut seed = Seed(landed_before);
        while b.act(&mut a, 4, &mut seed).unwrap() {}
        for _ in 0..landed_before {
            assert!(b.act(&mut a, 5, &mut seed).unwrap());
        }
        // Those that are here go nowhere: nobody else writes to a region, so it waits for none of them.
        let written = ready(writable.revoke());
        assert_eq!(written.as_slice().unwrap().iter().any(|byte| *byte != 0), landed_before > 0);
        run_dry(&mut a, &mut b, &mut seed);
        let failed = put.try_take().expect("it ends").expect_err("it was revoked");
        assert_eq!((failed.error.kind(), failed.returned.len()), (ErrorKind::Rejected, 3 * PARCEL_LEN));
        a.send(&[PARCEL_LEN]);
        run_dry(&mut a, &mut b, &mut seed);
        assert_eq!(b.received.len(), 1, "the connection lives");
        b.received.clear();
        assert_eq!(b.pool.stats().in_use_bytes, 0);
    }
}
