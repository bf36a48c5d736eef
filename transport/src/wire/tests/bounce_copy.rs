//! Bounce copies between ends of one host: large frames outside arenas are copied once, in parts, and lent.

use super::lending::{LendingPair, same};
use super::*;
use crate::wire::bounce_copy::BOUNCED_AT_ONCE;
use crate::wire::lending::BOUNCED_LEN_MIN;
use crate::wire::lending::model::{LeaseCounts, ModelArena};

const LEASES: usize = 100_000;
const BOUNCE_ARENA_BYTES: usize = 8 << 20;
/// The least length that is bounce-copied.
const LEAST: usize = BOUNCED_LEN_MIN as usize;

/// Two ends. The second receives into its pool, and the first has received its pre-granted credit.
fn granted(leases_max: usize) -> LendingPair {
    let mut host = LendingPair::over(
        [ModelArena::with_bounce_arena(BOUNCE_ARENA_BYTES), ModelArena::default()],
        leases_max,
    );
    host.b.session.expect(true);
    same(&host.exchange(&host_message(&[20_000])), host_message(&[20_000]).frames());
    host
}

fn host_message(lens: &[usize]) -> Message {
    let frame = |(at, len): (usize, &usize)| {
        Buffer::from((0..*len).map(|i| (i / 253 + i + at) as u8).collect::<Vec<_>>())
    };
    Message::from_parts("host", lens.iter().enumerate().map(frame).collect())
}

/// Polls until something is sent, and returns the number of polls.
fn polls_until_sent(host: &mut LendingPair) -> usize {
    let polls = (1..).find(|_| host.a.write(&mut host.b.wire, usize::MAX) && !host.b.wire.is_empty());
    polls.expect("the number of polls fits")
}

#[test]
fn a_large_frame_is_copied_once_and_a_part_at_a_time() {
    let mut host = granted(LEASES);
    let before = (host.a.session.counts().copied(), host.b.session.counts().copied());
    let len = 5 * BOUNCED_AT_ONCE / 2;
    let (message, small) = (host_message(&[100, len, 5000]), host_message(&[7]));
    let (sent, acked) = host.a.send(message.clone());
    let (sent_small, _) = host.a.send(small.clone());
    assert!(host.a.write(&mut host.b.wire, usize::MAX) && host.a.session.is_paused());
    assert!(!host.a.session.is_due(Urgency::Ack), "the next poll continues");
    assert_eq!(host.a.session.counts().bounced() as usize, BOUNCED_AT_ONCE);
    // Other output is sent meanwhile.
    drop(host.b.send(Message::new("from the other end")));
    while host.b.write(&mut host.a.wire, usize::MAX) {}
    while host.a.read(usize::MAX).unwrap() {}
    drop(host.a.take().expect("announced"));
    assert!(
        host.a.write(&mut host.b.wire, usize::MAX) && !host.b.wire.is_empty() && host.a.session.is_paused()
    );
    assert!(sent.try_take().is_none() && sent_small.try_take().is_none());
    while host.b.read(usize::MAX).unwrap() {}
    assert!(host.b.announced.is_empty() && host.b.wire.is_empty());
    assert_eq!(polls_until_sent(&mut host), 1);
    assert!(!host.a.session.is_paused());
    assert!(sent.try_take().expect("it was sent").is_ok(), "its memory is free");
    assert!(sent_small.try_take().expect("it left").is_ok());
    host.run();

    let places: Vec<_> = host.b.announced[0].frames.iter().map(|frame| frame.place).collect();
    assert_eq!(places, [Place::Host; 3], "the table has the sender's places");
    let frames = host.b.take().expect("announced").frames();
    same(&frames, message.frames());
    assert_eq!(frames.iter().map(Buffer::place).collect::<Vec<_>>(), places);
    same(&host.b.take().expect("in order").frames(), small.frames());
    host.run();
    assert_eq!(acked.try_take().expect("acknowledged").unwrap(), Delivery::Delivered);
    let copied = (host.a.session.counts().copied() - before.0, host.b.session.counts().copied() - before.1);
    assert_eq!(copied, (len as u64 + 5000, 100 + 7), "every byte is copied once");
    assert_eq!(host.a.session.counts().bounced() as usize, len + 5000);
    assert_eq!(host.arenas[0].leases(), LeaseCounts { made: 2, out: 2, borrowed: 2 });
    assert!(host.arenas[0].bounced_bytes() >= len + 5000);
    let slice = frames[1].slice(3..9);
    drop(frames);
    assert!((len..len + 5000).contains(&host.arenas[0].bounced_bytes()), "each frame is returned separately");
    drop(slice);
    assert_eq!(host.arenas[0].bounced_bytes(), 0);
    host.finish();
}

#[test]
fn small_frames_and_frames_without_room_are_sent_as_payload() {
    let mut host = granted(300);
    let block = host.block(40_000);
    let mixed = |arena: usize, len: usize| host_message(&[len]).with_frame(block.slice(..arena));
    for (what, message, lent_frames, bounced) in [
        ("a little less", host_message(&[LEAST - 1]), 0, 0),
        ("enough", host_message(&[LEAST]), 1, LEAST),
        ("enough in all", host_message(&[LEAST - 5000, 5000]), 2, LEAST),
        ("little, in short frames", host_message(&[LEAST - 4095, 4095]), 0, 0),
        ("much, in short frames", host_message(&[4095; 100]), 0, 0),
        (
            "large frames, and as many short ones as a record carries",
            host_message(&[LEAST, 4095, 4095, 4095, 4095]),
            1,
            LEAST,
        ),
        ("and one more short frame", host_message(&[LEAST, 4095, 4095, 4095, 4095, 4]), 0, 0),
        ("a part and no more", host_message(&[BOUNCED_AT_ONCE]), 1, BOUNCED_AT_ONCE),
        ("a part and a byte", host_message(&[BOUNCED_AT_ONCE + 1]), 1, BOUNCED_AT_ONCE + 1),
        (
            "several on both sides of a part",
            host_message(&[BOUNCED_AT_ONCE - 1, 4096, 70_000]),
            3,
            BOUNCED_AT_ONCE + 74_095,
        ),
        ("empty ones among them", host_message(&[0, LEAST, 0]), 1, LEAST),
        ("with an arena frame", mixed(40_000, LEAST), 2, LEAST),
        ("with an arena frame, enough in total", mixed(20_000, LEAST - 15_000), 2, LEAST - 15_000),
        ("with an arena frame that is lent alone", mixed(40_000, 10_000), 1, 0),
        ("as many as there are leases", host_message(&[4096; 300]), 300, 300 * 4096),
        ("one more", host_message(&[4096; 301]), 0, 301 * 4096),
        ("the whole bounce arena", host_message(&[BOUNCE_ARENA_BYTES]), 1, BOUNCE_ARENA_BYTES),
        ("more than the bounce arena", host_message(&[BOUNCE_ARENA_BYTES + 1]), 0, 0),
        ("more than the bounce arena in total", host_message(&[BOUNCE_ARENA_BYTES - 4096, 8192]), 0, 0),
    ] {
        let (leases, before) = (host.arenas[0].leases(), host.a.session.counts().bounced());
        let frames = host.exchange(&message);
        same(&frames, message.frames());
        assert_eq!(host.arenas[0].leases().out - leases.out, lent_frames, "{what}");
        assert_eq!((host.a.session.counts().bounced() - before) as usize, bounced, "{what}");
        drop(frames);
        assert_eq!(host.arenas[0].bounced_bytes(), 0, "{what}");
    }
    host.finish();
}

#[test]
fn only_a_receiver_that_uses_pool_memory_gets_bounce_copies() {
    let mut host =
        LendingPair::over([ModelArena::with_bounce_arena(BOUNCE_ARENA_BYTES), ModelArena::default()], LEASES);
    let message = host_message(&[2 * LEAST]);
    let bounced = |host: &mut LendingPair| {
        let before = host.a.session.counts().bounced();
        same(&host.exchange(&message), message.frames());
        host.a.session.counts().bounced() > before
    };
    assert!(!bounced(&mut host), "no pre-granted credit yet");
    host.b.session.expect(true);
    assert!(!bounced(&mut host), "credit is granted when a message waits");
    assert!(bounced(&mut host));
    host.b.session.expect(false);
    host.run();
    assert!(!bounced(&mut host), "the receiver names memory");
    host.b.session.expect(true);
    host.run();
    assert!(bounced(&mut host));
    host.finish();
}

#[test]
fn frames_are_sent_as_payload_when_the_bounce_arena_is_full() {
    let mut host = granted(LEASES);
    let message = host_message(&[3 << 20]);
    let kept: Vec<_> = (0..5).map(|_| host.exchange(&message)).collect();
    assert_eq!(host.arenas[0].leases().out, 2, "8 MiB hold two of 3 copies");
    kept.iter().for_each(|frames| same(frames, message.frames()));
    drop(kept);
    drop(host.exchange(&message));
    assert_eq!(host.arenas[0].leases(), LeaseCounts { made: 3, out: 0, borrowed: 0 });
    host.finish();
}

#[test]
fn a_checksummed_session_makes_no_bounce_copies() {
    let arena = ModelArena::with_bounce_arena(BOUNCE_ARENA_BYTES);
    let (mut a, mut b) = (End::with(true), End::with(true));
    a.session = a.session.lending(arena.lender(&arena, LEASES));
    b.session = b.session.lending(arena.lender(&arena, LEASES));
    b.session.expect(true);
    for _ in 0..3 {
        let message = host_message(&[LEAST]);
        drop(a.send(message.clone()));
        run(&mut a, &mut b, &mut Seed(1)).unwrap();
        let taken = b.take().expect("announced");
        run(&mut a, &mut b, &mut Seed(1)).unwrap();
        same(&taken.frames(), message.frames());
    }
    assert_eq!((arena.leases(), a.session.counts().bounced()), (LeaseCounts::default(), 0));
}

#[test]
fn bounce_copies_are_returned_wherever_a_connection_ends() {
    let lens = [BOUNCED_AT_ONCE + 10_000, 9000, 100, 2 * BOUNCED_AT_ONCE];
    for polls in 0..12 {
        let mut host = granted(LEASES);
        let sending = [host.a.send(host_message(&lens)), host.a.send(host_message(&lens))];
        for _ in 0..polls {
            host.a.write(&mut host.b.wire, 250);
        }
        let why = crate::Error::new(ErrorKind::PeerLost, "cut");
        host.a.session.give_up(&why);
        assert!(!host.a.session.is_paused());
        for (sent, acked) in sending {
            assert!(acked.try_take().expect("it ends").is_err());
            if let Err(failed) = sent.try_take().expect("it ends") {
                same(failed.returned.frames(), host_message(&lens).frames());
            }
        }
        // What the other end has received remains readable.
        while host.b.read(usize::MAX).unwrap() {}
        let kept: Vec<_> = std::iter::from_fn(|| host.b.take()).map(Taken::frames).collect();
        host.b.session.give_up(&why);
        host.arenas[0].peer_is_gone();
        assert_eq!(host.arenas[0].leases().out, 3 * kept.len(), "after {polls} polls");
        assert!(polls < 11 || kept.len() == 2, "{} came", kept.len());
        kept.iter().for_each(|frames| same(frames, host_message(&lens).frames()));
        drop(kept);
        assert_eq!(host.arenas[0].bounced_bytes(), 0, "after {polls} polls");
        host.finish();
    }
}
