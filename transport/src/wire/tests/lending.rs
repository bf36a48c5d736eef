//! Two ends of one host that lend each other frames. Nothing is copied, and every lease is returned exactly
//! once.

mod deaths;

use super::*;
use crate::wire::lending::model::{LeaseCounts, ModelArena, SEGMENT};
use crate::wire::lending::{LENT_FRAMES_MAX, LentFrame, Scope};
use crate::wire::record::put_message;

/// More leases than any of these tests needs.
const LEASES: usize = 100_000;

/// Two ends, each with an arena to lend from.
pub(super) struct LendingPair {
    pub(super) a: End,
    pub(super) b: End,
    pub(super) arenas: [ModelArena; 2],
}

impl LendingPair {
    fn new(leases_max: usize) -> Self {
        Self::over([ModelArena::default(), ModelArena::default()], leases_max)
    }

    pub(super) fn over(arenas: [ModelArena; 2], leases_max: usize) -> Self {
        let end = |ours: &ModelArena, theirs: &ModelArena| {
            let mut end = End::new();
            end.session = end.session.lending(ours.lender(theirs, leases_max));
            end
        };
        Self { a: end(&arenas[0], &arenas[1]), b: end(&arenas[1], &arenas[0]), arenas }
    }

    /// A frame in the first end's arena.
    pub(super) fn block(&self, len: usize) -> Buffer {
        self.arenas[0].block((0..len).map(|at| (at / 251 + at) as u8).collect())
    }

    pub(super) fn run(&mut self) {
        run(&mut self.a, &mut self.b, &mut Seed(1)).expect("a good peer");
    }

    /// Sends a message to the other end, which takes it.
    pub(super) fn exchange(&mut self, message: &Message) -> Vec<Buffer> {
        let (sent, _) = self.a.send(message.clone());
        self.run();
        let taken = self.b.take().expect("announced");
        self.run();
        assert!(sent.try_take().expect("it left").is_ok());
        taken.frames()
    }

    fn leases(&self) -> LeaseCounts {
        self.arenas[0].leases()
    }

    pub(super) fn finish(self) {
        let Self { a, b, arenas } = self;
        drop((a, b));
        for arena in arenas {
            arena.check();
            let LeaseCounts { out, borrowed, .. } = arena.leases();
            assert_eq!((out, borrowed), (0, 0), "leases were never returned");
        }
    }
}

pub(super) fn same(frames: &[Buffer], originals: &[Buffer]) {
    assert_eq!(frames.len(), originals.len());
    for (frame, original) in frames.iter().zip(originals) {
        assert!(frame.as_slice() == original.as_slice());
    }
}

#[test]
fn arena_frames_are_lent_and_other_frames_are_sent() {
    let mut host = LendingPair::new(LEASES);
    let block = host.block(5 << 20);
    let message = Message::new("lent")
        .with_frame(block.slice(100..))
        .with_frame("beside")
        .with_frame(Buffer::new())
        .with_frame(block.slice(..7))
        .with_frame(vec![1; 16_000]);
    let (sent, acked) = host.a.send(message.clone());
    let mut len = 0;
    while host.a.write(&mut host.b.wire, usize::MAX) {
        len = host.b.wire.len();
    }
    assert_eq!(len, 16 + 16 + 8 + 5 * 8 + 4 + 2 * 20 + 6 + 16_000);
    assert!(sent.try_take().expect("its announcement was sent").is_ok());
    assert!(acked.try_take().is_none());
    assert_eq!(host.leases(), LeaseCounts { made: 2, out: 2, borrowed: 0 });
    host.run();
    let places: Vec<_> = host.b.announced[0].frames.iter().map(|frame| frame.place).collect();
    assert_eq!(places, [Place::Arena, Place::Host, Place::Host, Place::Arena, Place::Host]);
    let frames = host.b.take().expect("announced").frames();
    host.run();
    assert_eq!(acked.try_take().expect("acknowledged").unwrap(), Delivery::Delivered);
    same(&frames, message.frames());
    assert_eq!((frames[0].place(), frames[0].as_ptr()), (Place::Arena, message.frames()[0].as_ptr()));
    assert_eq!((frames[3].place(), frames[3].as_ptr()), (Place::Arena, block.as_ptr()));
    assert_eq!(frames[1].place(), Place::Host);
    assert_eq!(
        (host.a.session.counts().copied(), host.b.session.counts().copied()),
        (0, 16_006),
        "only the frames that were sent"
    );
    // The owner drops its handles: what the peer borrowed remains readable.
    drop((message, block));
    assert_eq!(host.leases(), LeaseCounts { made: 2, out: 2, borrowed: 2 });
    let slice = frames[0].slice(10..20);
    drop(frames);
    assert_eq!(host.leases(), LeaseCounts { made: 2, out: 1, borrowed: 1 });
    drop(slice);
    host.finish();
}

#[test]
fn messages_that_cannot_be_lent_are_sent_complete() {
    let mut host = LendingPair::new(2);
    let block = host.block(40_000);
    let others = |len: usize| Message::new("").with_frame(block.clone()).with_frame(vec![1; len]);
    let many = vec![block.slice(..1); LENT_FRAMES_MAX + 1];
    let unauthenticated_peer = ModelArena::default().block(vec![3; 20_000]);
    for (what, message, made, frames_lent) in [
        ("little", Message::new("").with_frame(block.slice(..1000)), 0, 0),
        (
            "little in all",
            Message::new("").with_frame(block.slice(..500)).with_frame(block.slice(..523)),
            0,
            0,
        ),
        (
            "enough in all",
            Message::new("").with_frame(block.slice(..500)).with_frame(block.slice(..524)),
            2,
            2,
        ),
        ("beside large frames", others(EAGER_LEN_MAX as usize), 0, 0),
        ("beside small ones", others(EAGER_LEN_MAX as usize - 1), 1, 1),
        ("one lease too many", Message::from_parts("", vec![block.slice(..9000); 3]), 2, 0),
        (
            "one that is not ours",
            Message::new("").with_frame(block.clone()).with_frame(unauthenticated_peer),
            1,
            0,
        ),
        ("too many lent frames", Message::from_parts("", many), 0, 0),
    ] {
        let before = host.leases().made;
        let frames = host.exchange(&message);
        same(&frames, message.frames());
        let lent = frames.iter().filter(|frame| frame.place() == Place::Arena).count();
        let leases = host.leases();
        assert_eq!((leases.made - before, lent), (made, frames_lent), "{what}");
        assert_eq!((leases.out, leases.borrowed), (lent, lent), "{what}");
    }
    host.finish();
}

#[test]
fn a_forwarded_borrowed_frame_keeps_its_lease_until_sent() {
    let mut host = LendingPair::new(LEASES);
    let original = Message::new("").with_frame(host.block(100_000));
    let frames = host.exchange(&original);
    let (sent, _) = host.b.send(Message::from_parts("", frames));
    host.run();
    assert_eq!(host.leases().borrowed, 1, "it waits to be forwarded");
    let back = host.a.take().expect("announced");
    host.run();
    assert!(sent.try_take().expect("sent").is_ok());
    same(&back.frames(), original.frames());
    assert_eq!(host.leases(), LeaseCounts { made: 1, out: 0, borrowed: 0 });
    host.finish();
}

#[test]
fn small_arena_frames_are_coalesced() {
    let mut host = LendingPair::new(LEASES);
    let message = Message::new("").with_frame(host.block(900));
    let (sent, _) = host.a.send_with(message.clone(), true);
    assert!(sent.try_take().is_some_and(|sent| sent.is_ok()), "its memory is free");
    assert!(!host.a.session.is_due(Urgency::Now) && host.a.session.is_due(Urgency::Coalesced));
    let (large, _) = host.a.send_with(Message::new("").with_frame(host.block(2000)), true);
    assert!(host.a.session.is_due(Urgency::Now));
    host.run();
    assert!(large.try_take().is_some());
    same(&host.b.take().expect("announced").frames(), message.frames());
    drop(host.b.take());
    host.finish();
}

#[test]
fn many_lent_frames_stay_within_the_window_as_both_ends_count_it() {
    let mut host = LendingPair::new(LEASES);
    let block = host.block(LENT_FRAMES_MAX);
    let frames: Vec<_> = (0..LENT_FRAMES_MAX).map(|at| block.slice(at..=at)).collect();
    for _ in 0..5 {
        drop(host.a.send(Message::from_parts("", frames.clone())));
    }
    let mut taken = 0;
    while taken < 5 {
        host.run();
        assert_eq!(host.b.announced.len(), 2.min(5 - taken), "459 KB of a window of 1 MiB each");
        while let Some(message) = host.b.take() {
            same(&message.frames(), &frames);
            taken += 1;
        }
    }
    host.finish();
}

#[test]
fn a_checksummed_session_lends_nothing() {
    let arena = ModelArena::default();
    let (mut a, mut b) = (End::with(true), End::with(true));
    a.session = a.session.lending(arena.lender(&arena, LEASES));
    b.session = b.session.lending(arena.lender(&arena, LEASES));
    let message = Message::new("").with_frame(arena.block(vec![4; 20_000]));
    drop(a.send(message.clone()));
    run(&mut a, &mut b, &mut Seed(1)).unwrap();
    let taken = b.take().expect("announced");
    run(&mut a, &mut b, &mut Seed(1)).unwrap();
    same(&taken.frames(), message.frames());
    assert_eq!(arena.leases(), LeaseCounts::default());
}

#[test]
fn unsent_leases_are_taken_back_wherever_the_stream_is_cut() {
    let lent = |host: &LendingPair| {
        Message::new("").with_frame(host.block(5000)).with_frame("travels").with_frame(host.block(70))
    };
    let mut len = usize::MAX;
    let mut cut_at = 0;
    while cut_at <= len {
        let mut host = LendingPair::new(LEASES);
        let (sent, acked) = host.a.send(lent(&host));
        let (later, _) = host.a.send(lent(&host));
        // The cut never falls after the last byte of the second message.
        host.a.write(&mut host.b.wire, cut_at);
        let why = crate::Error::new(ErrorKind::PeerLost, "cut");
        host.a.session.give_up(&why);
        assert!(acked.try_take().expect("it ends").is_err());
        let (first_left, second_left) =
            (sent.try_take().expect("it ends").is_ok(), later.try_take().expect("it ends"));
        let made = if cut_at == usize::MAX { 0 } else { 4 };
        let out = 2 * usize::from(first_left) + 2 * usize::from(second_left.is_ok());
        assert_eq!(host.leases(), LeaseCounts { made, out, borrowed: 0 }, "after {cut_at} bytes");
        if let Err(failed) = second_left {
            same(failed.returned.frames(), lent(&host).frames());
        } else {
            len = cut_at;
        }
        // The other end reads on: every announcement that it received is readable.
        while host.b.read(usize::MAX).unwrap() {}
        let announced = host.b.announced.len();
        assert!(2 * announced <= out && (cut_at < len || announced == 2));
        let kept: Vec<_> = std::iter::from_fn(|| host.b.take()).map(Taken::frames).collect();
        host.b.session.give_up(&why);
        host.arenas[0].peer_is_gone();
        assert_eq!(host.leases().out, 2 * announced, "what it reads stays with it");
        kept.iter().for_each(|frames| same(frames, lent(&host).frames()));
        drop(kept);
        host.finish();
        cut_at += 1;
    }
    assert!(len > 200, "{len}");
}

#[test]
fn a_receiver_that_rejects_or_gives_up_returns_every_lease() {
    let mut host = LendingPair::new(LEASES);
    for _ in 0..3 {
        drop(host.a.send(Message::new("").with_frame(host.block(5000))));
    }
    host.run();
    let Announced { id, arrival, .. } = host.b.announced.pop_front().expect("announced");
    host.b.session.ack(id, Delivery::Rejected, false);
    drop(arrival);
    assert_eq!(host.leases().out, 2);
    drop(host.b.announced.pop_front());
    assert_eq!(host.leases().out, 1, "before its acknowledgement as well");
    drop(host.a.send(Message::new("").with_frame(host.block(5000))));
    while host.a.write(&mut host.b.wire, usize::MAX) {}
    // Received and not handed out.
    let bytes: Vec<u8> = host.b.wire.drain(..).collect();
    host.b.session.received(0, &bytes).unwrap();
    assert_eq!(host.leases().borrowed, 2);
    host.b.session.give_up(&crate::Error::new(ErrorKind::PeerLost, "cut"));
    assert_eq!(host.leases().borrowed, 1);
    host.b.announced.clear();
    host.finish();
}

/// A message of these frames, announced with these lent frames, and this payload of the other frames.
fn announcement(flags: u8, frames: &[FrameInfo], lent_frames: &[LentFrame], payload: &[u8]) -> Vec<u8> {
    let mut records = Vec::new();
    let len = lent_frames.len() * 20 + payload.len();
    put_message(
        &mut records,
        0,
        false,
        Payload::Lent(Scope::Arenas, &[], &[]),
        b"",
        frames.iter().copied(),
        len as u64,
    );
    records[1] = flags;
    records.extend(lent_frames.iter().flat_map(|lent_frame| lent_frame.encode()));
    records.extend(payload);
    let head = Head { records_len: records.len(), data_len: 0, transfer: Transfer::Message(0) };
    [&head.encode()[..], &records].concat()
}

#[test]
fn invalid_lent_frames_are_corrupt_and_take_no_lease() {
    const LENT: u8 = 8;
    let frame = |place, len| FrameInfo { len, place };
    let large = frame(Place::Arena, 20_000);
    // Each case gets a valid lent frame.
    let lend = || {
        let host = LendingPair::new(LEASES);
        let block = host.block(20_000);
        let lent_frame = host.arenas[0].lender(&host.arenas[1], 1).lend(&block).expect("lent");
        (host, lent_frame)
    };
    let handle_record = |end: &mut End, said: Vec<u8>| -> Result<()> {
        end.wire.extend(said);
        while end.read(usize::MAX)? {}
        Ok(())
    };
    let (mut host, lent_frame) = lend();
    handle_record(&mut host.b, announcement(LENT, &[large], &[lent_frame], b"")).expect("a correct peer");
    assert_eq!(host.b.take().expect("announced").frames()[0].len(), 20_000);
    host.finish();
    let (mut host, lent_frame) = lend();
    let bounced = [frame(Place::Host, 4095), frame(Place::Host, 20_000)];
    handle_record(&mut host.b, announcement(LENT | 32, &bounced, &[lent_frame], &[0; 4095]))
        .expect("a correct peer");
    assert_eq!(host.b.take().expect("announced").frames()[1].place(), Place::Host);
    host.finish();

    let good = |lent_frame| vec![lent_frame];
    let many = vec![frame(Place::Arena, 1); LENT_FRAMES_MAX + 1];
    type Violation<'a> = (&'a str, u8, Vec<FrameInfo>, &'a dyn Fn(LentFrame) -> Vec<LentFrame>, &'a [u8]);
    let violations: [Violation<'_>; 22] = [
        ("no lent frame", LENT, vec![large], &|_| Vec::new(), b""),
        ("a lent frame too many", LENT, vec![large], &|lent_frame| vec![lent_frame; 2], b""),
        ("nothing to lend", LENT, vec![frame(Place::Host, 5)], &|_| Vec::new(), b"hello"),
        ("nothing at all", LENT, Vec::new(), &|_| Vec::new(), b""),
        ("a frame of no bytes", LENT, vec![frame(Place::Arena, 0)], &good, b""),
        ("a host frame lent", LENT, vec![frame(Place::Host, 20_000)], &good, b""),
        ("unexpected payload", LENT, vec![large], &good, b"x"),
        ("missing payload", LENT, vec![large, frame(Place::Host, 5)], &good, b"hell"),
        (
            "payload beyond the eager limit",
            LENT,
            vec![large, frame(Place::Host, 16_384)],
            &good,
            &[0; 16_384],
        ),
        ("too many lent frames", LENT, many, &|lent_frame| vec![lent_frame; LENT_FRAMES_MAX + 1], b""),
        ("lent and eager", LENT | 4, vec![large], &good, b""),
        ("lent and streaming", LENT | 2, vec![large], &good, b""),
        (
            "another segment",
            LENT,
            vec![large],
            &|lent_frame| vec![LentFrame { segment: SEGMENT + 1, ..lent_frame }],
            b"",
        ),
        (
            "another place",
            LENT,
            vec![large],
            &|lent_frame| vec![LentFrame { offset: u64::MAX, ..lent_frame }],
            b"",
        ),
        (
            "another lease",
            LENT,
            vec![large],
            &|lent_frame| vec![LentFrame { lease: u64::MAX, ..lent_frame }],
            b"",
        ),
        ("a longer frame", LENT, vec![frame(Place::Arena, 20_001)], &good, b""),
        ("one lease twice", LENT, vec![large, large], &|lent_frame| vec![lent_frame; 2], b""),
        ("bounced and not lent", 32, vec![frame(Place::Host, 20_000)], &good, b""),
        ("bounced, without a lent frame", LENT | 32, vec![frame(Place::Host, 20_000)], &|_| Vec::new(), b""),
        (
            "bounced, with payload in the record",
            LENT | 32,
            vec![large, frame(Place::Host, 4096)],
            &good,
            &[0; 4096],
        ),
        ("bounced, and too short", LENT | 32, vec![frame(Place::Host, 4095)], &good, b""),
        ("bounced and eager", LENT | 32 | 4, vec![large], &good, b""),
    ];
    for (what, flags, frames, lent_frames, payload) in violations {
        let (mut host, lent_frame) = lend();
        let error =
            handle_record(&mut host.b, announcement(flags, &frames, &lent_frames(lent_frame), payload))
                .expect_err(what);
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{what}: {error}");
        assert!(host.b.announced.is_empty());
        assert_eq!(host.leases().borrowed, 0, "{what}");
        host.arenas[0].peer_is_gone();
        host.finish();
    }

    let (host, lent_frame) = lend();
    let mut end = End::new();
    let error = handle_record(&mut end, announcement(LENT, &[large], &[lent_frame], b""))
        .expect_err("lending is off");
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    host.arenas[0].peer_is_gone();
    host.finish();
}
