//! Two ends, of which one fetches large frames from the other's memory. Each byte is copied once. Nothing is
//! delivered that may have been overwritten before.

use std::mem::MaybeUninit;
use std::sync::Mutex;

use super::*;
use crate::wire::fetching::{FETCH_LEN_MIN, FETCHED_AT_ONCE, FETCHED_FRAMES_MAX, Fetcher, Part, PartEnd};
use crate::wire::record::put_message;

const LARGE: usize = FETCH_LEN_MIN as usize;

/// One end's memory, as its peer can read it.
#[derive(Debug, Default)]
struct SenderMemory {
    frames: Vec<Buffer>,
    /// The memory was returned to its owners.
    retracted: bool,
    /// The number of reads that will still succeed.
    reads: Option<usize>,
    bytes_read: usize,
    completes: Completes,
}

/// When the result of a part is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Completes {
    #[default]
    AtOnce,
    /// Not yet.
    Later,
    /// Not in time.
    Never,
}

#[derive(Debug)]
struct ModelFetcher {
    ours: Arc<Mutex<SenderMemory>>,
    theirs: Arc<Mutex<SenderMemory>>,
    broken: bool,
    fetched: Option<PartEnd>,
}

impl ModelFetcher {
    fn fetch<'a>(&mut self, address: u64, into: &'a mut [MaybeUninit<u8>]) -> Result<&'a mut [u8]> {
        let mut theirs = self.theirs.lock().unwrap();
        let offset = |frame: &Buffer| (address as usize).wrapping_sub(frame.as_ptr().addr());
        let fits = |frame: &&Buffer| offset(frame).saturating_add(into.len()) <= frame.len();
        let found = theirs.frames.iter().find(fits).cloned();
        let succeeds = theirs.reads.is_none_or(|reads| reads > 0);
        match found.filter(|_| succeeds) {
            Some(frame) => {
                theirs.reads = theirs.reads.map(|reads| reads - 1);
                theirs.bytes_read += into.len();
                let from = offset(&frame);
                Ok(into.write_copy_of_slice(&frame.as_slice().unwrap()[from..from + into.len()]))
            }
            None => {
                self.broken = true;
                Err(crate::Error::new(ErrorKind::Unavailable, "a bad address"))
            }
        }
    }

    fn confirm(&mut self) -> Result<()> {
        match self.theirs.lock().unwrap().retracted {
            false => Ok(()),
            true => Err(crate::Error::new(ErrorKind::PeerLost, "retracted")),
        }
    }

    /// The result of the part, known at once.
    fn read(&mut self, mut part: Part) -> PartEnd {
        if part.read_by(|address, into| self.fetch(address, into)).is_err() {
            return PartEnd::Failed(part);
        }
        match if part.is_last { self.confirm() } else { Ok(()) } {
            Ok(()) => PartEnd::Read(part),
            Err(why) => PartEnd::Lost(part, why),
        }
    }
}

impl Fetcher for ModelFetcher {
    fn fetches(&self) -> bool {
        !self.broken
    }

    fn begin(&mut self, part: Part) -> Result<(), Part> {
        if self.broken {
            return Err(part);
        }
        let fetched = self.read(part);
        self.fetched = Some(fetched);
        Ok(())
    }

    fn finished(&mut self) -> Option<PartEnd> {
        match self.theirs.lock().unwrap().completes {
            Completes::AtOnce => self.fetched.take(),
            Completes::Later => None,
            Completes::Never => {
                self.broken = true;
                Some(PartEnd::Stuck(crate::Error::new(ErrorKind::TimedOut, "no answer")))
            }
        }
    }

    fn abandon(&mut self, then: Box<dyn FnOnce(Option<Part>) + Send>) {
        then(self.fetched.take().and_then(PartEnd::into_part));
    }

    fn retract(&mut self) {
        self.ours.lock().unwrap().retracted = true;
    }
}

impl Drop for ModelFetcher {
    fn drop(&mut self) {
        self.retract();
    }
}

/// Two ends, and the first end's memory as its peer sees it.
struct FetchingPair {
    a: End,
    b: End,
    memory: Arc<Mutex<SenderMemory>>,
}

impl FetchingPair {
    fn new() -> Self {
        let (memory, other) = <[Arc<Mutex<SenderMemory>>; 2]>::default().into();
        let end = |ours: &Arc<Mutex<SenderMemory>>, theirs: &Arc<Mutex<SenderMemory>>| {
            let mut end = End::new();
            let model =
                ModelFetcher { ours: ours.clone(), theirs: theirs.clone(), broken: false, fetched: None };
            end.session = end.session.fetching(Box::new(model));
            end
        };
        Self { a: end(&memory, &other), b: end(&other, &memory), memory }
    }

    fn send(&mut self, message: &Message) -> (Sent, Completion<Result<Delivery>>) {
        self.memory.lock().unwrap().frames.extend(message.frames().iter().cloned());
        self.a.send(message.clone())
    }

    /// Moves all bytes, and fetches.
    fn run(&mut self) -> Result<()> {
        loop {
            run(&mut self.a, &mut self.b, &mut Seed(1))?;
            if !self.b.session.fetch()? {
                return Ok(());
            }
        }
    }

    fn bytes_read(&self) -> usize {
        self.memory.lock().unwrap().bytes_read
    }

    fn copied(&self) -> (u64, u64) {
        (self.a.session.counts().copied(), self.b.session.counts().copied())
    }
}

fn frame(number: usize, len: usize) -> Buffer {
    (0..len).map(|at| (at / 251 + at + number) as u8).collect::<Vec<_>>().into()
}

/// The message's destinations, in the order of its frames, without those listed.
fn destinations(message: &Message, discarded: &[usize]) -> Vec<Option<BufferMut>> {
    let destination = |(index, frame): (usize, &Buffer)| {
        (!discarded.contains(&index)).then(|| BufferMut::with_capacity(frame.len()))
    };
    message.frames().iter().enumerate().map(destination).collect()
}

#[test]
fn large_frames_are_fetched_and_not_sent() {
    let one_more = LARGE + 1;
    for lens in [
        vec![LARGE],
        vec![one_more],
        vec![FETCHED_AT_ONCE - 1],
        vec![FETCHED_AT_ONCE],
        vec![3 * FETCHED_AT_ONCE + 1],
        vec![LARGE, 0, 1, 3 * LARGE],
        vec![0, FETCHED_AT_ONCE, 0, FETCHED_AT_ONCE + 1, 0],
    ] {
        let mut host = FetchingPair::new();
        let frames: Vec<_> = lens.iter().enumerate().map(|(number, len)| frame(number, *len)).collect();
        let message = Message::from_parts("large", frames);
        let (sent, acked) = host.send(&message);
        host.run().unwrap();
        assert!(sent.try_take().is_none(), "its memory is not free yet");
        let id = host.b.announced.pop_front().expect("announced").id;
        let Taken::Pending(landed) = host.b.accept(id, destinations(&message, &[])) else { unreachable!() };
        assert!(host.b.session.has_to_fetch());
        host.run().unwrap();
        assert!(!host.b.session.has_to_fetch());
        assert!(sent.try_take().expect("it was acknowledged").is_ok());
        assert_eq!(acked.try_take().expect("acknowledged").unwrap(), Delivery::Delivered);
        let taken = landed.try_take().expect("landed").unwrap();
        for (taken, sent) in taken.iter().zip(message.frames()) {
            assert!(taken.as_slice() == sent.as_slice());
        }
        assert_eq!(host.copied(), (0, message.payload_len()), "{lens:?}");
        assert_eq!(host.bytes_read() as u64, message.payload_len());
    }
}

#[test]
fn discarded_frames_are_not_fetched_and_messages_take_turns() {
    let mut host = FetchingPair::new();
    let first = Message::from_parts("", (0..3).map(|number| frame(number, 2 * FETCHED_AT_ONCE)).collect());
    let second = Message::new("").with_frame(frame(9, FETCHED_AT_ONCE));
    let sent = [host.send(&first), host.send(&second)];
    host.run().unwrap();
    let Taken::Pending(landed) = host.b.accept(0, destinations(&first, &[1])) else { unreachable!() };
    let Taken::Pending(other) = host.b.accept(1, destinations(&second, &[])) else { unreachable!() };
    assert!(host.b.session.fetch().unwrap() && host.b.session.fetch().unwrap());
    assert!(
        other.try_take().is_some_and(|landed| landed.is_ok()),
        "the small message is complete after its first part"
    );
    assert!(landed.try_take().is_none());
    host.run().unwrap();
    let taken = landed.try_take().expect("landed").unwrap();
    assert!(taken[1].is_empty() && taken[2].as_slice() == first.frames()[2].as_slice());
    assert_eq!(host.bytes_read(), 5 * FETCHED_AT_ONCE);
    for (sent, acked) in sent {
        assert!(sent.try_take().is_some() && acked.try_take().is_some());
    }
}

#[test]
fn small_fragmented_or_pooled_messages_are_sent() {
    let many = vec![frame(0, LARGE / 2); FETCHED_FRAMES_MAX + 1];
    for (what, message, in_pool) in [
        ("a little less", Message::new("").with_frame(frame(0, LARGE - 1)), false),
        ("small pieces", Message::from_parts("", vec![frame(0, 60_000); 5]), false),
        ("too many pieces", Message::from_parts("", many), false),
        ("pool memory", Message::new("").with_frame(frame(0, LARGE)), true),
    ] {
        let mut host = FetchingPair::new();
        host.b.session.expect(in_pool);
        let (sent, _) = host.send(&message);
        host.run().unwrap();
        let taken = host.b.take().expect("announced");
        assert!(!host.b.session.has_to_fetch(), "{what}");
        host.run().unwrap();
        assert!(sent.try_take().expect(what).is_ok());
        for (taken, sent) in taken.frames().iter().zip(message.frames()) {
            assert!(taken.as_slice() == sent.as_slice(), "{what}");
        }
        assert_eq!(host.bytes_read(), 0, "{what}");
    }
    // Everything is discarded: nothing is read or waited for.
    let mut host = FetchingPair::new();
    let message = Message::new("").with_frame(frame(0, LARGE));
    let (sent, acked) = host.send(&message);
    host.run().unwrap();
    drop(host.b.accept(0, vec![None]));
    host.run().unwrap();
    assert!(sent.try_take().is_some() && acked.try_take().is_some());
    assert_eq!(host.bytes_read(), 0);
}

#[test]
fn a_failed_fetch_is_requested_once_and_arrives_complete() {
    for reads in 0..4 {
        let mut host = FetchingPair::new();
        host.memory.lock().unwrap().reads = Some(reads);
        let messages: Vec<_> = (0..3)
            .map(|number| {
                Message::new("").with_frame(frame(number, FETCHED_AT_ONCE + 7)).with_frame(frame(9, LARGE))
            })
            .collect();
        let sent: Vec<_> = messages.iter().map(|message| host.send(message)).collect();
        host.run().unwrap();
        let accept = |host: &mut FetchingPair, id: usize| match host
            .b
            .accept(id as u64, destinations(&messages[id], &[]))
        {
            Taken::Pending(landed) => landed,
            Taken::Here(_) => unreachable!(),
        };
        let mut landed = vec![accept(&mut host, 0), accept(&mut host, 1)];
        host.run().unwrap();
        landed.push(accept(&mut host, 2));
        assert!(!host.b.session.has_to_fetch(), "a failed fetch is not retried");
        host.run().unwrap();
        for (landed, message) in landed.iter().zip(&messages) {
            let taken = landed.try_take().expect("landed").unwrap();
            for (taken, sent) in taken.iter().zip(message.frames()) {
                assert!(taken.as_slice() == sent.as_slice(), "after {reads} reads");
            }
        }
        for (sent, acked) in sent {
            assert!(sent.try_take().is_some_and(|sent| sent.is_ok()));
            assert_eq!(acked.try_take().expect("acknowledged").unwrap(), Delivery::Delivered);
        }
    }
}

#[test]
fn memory_returns_only_after_retraction_and_nothing_is_delivered_then() {
    for parts in 0..3 {
        let mut host = FetchingPair::new();
        let message = Message::new("").with_frame(frame(0, 2 * FETCHED_AT_ONCE));
        host.memory.lock().unwrap().frames.extend(message.frames().iter().cloned());
        let (returned, memory) = (Done::new(), host.memory.clone());
        let operation = Operation::with(message.clone(), move |sent| {
            let retracted = memory.lock().unwrap().retracted;
            returned.0.resolve(Ok((retracted, sent.is_err())));
        });
        host.a.session.send(operation, Done::new().0, false, false);
        host.run().unwrap();
        let Taken::Pending(landed) = host.b.accept(0, destinations(&message, &[])) else { unreachable!() };
        for _ in 0..parts.min(1) {
            assert!(host.b.session.fetch().unwrap());
        }
        let why = crate::Error::new(ErrorKind::Closed, "over");
        // By ending the session, or by dropping it.
        match parts {
            2 => host.a = End::new(),
            _ => host.a.session.give_up(&why),
        }
        assert_eq!(returned.1.try_take().expect("it ended").unwrap(), (true, true));
        let end = loop {
            match host.b.session.fetch() {
                Ok(succeeds) => assert!(succeeds, "it was delivered"),
                Err(end) => break end,
            }
        };
        assert_eq!(end.kind(), ErrorKind::PeerLost, "{end}");
        assert!(landed.try_take().is_none());
        host.b.session.give_up(&end);
        let failed = landed.try_take().expect("it ended").unwrap_err();
        assert_eq!(failed.returned.len(), 1, "the destination comes back");
    }
}

#[test]
fn close_waits_for_fetches() {
    let mut host = FetchingPair::new();
    let message = Message::new("").with_frame(frame(0, 2 * FETCHED_AT_ONCE));
    let (sent, _) = host.send(&message);
    host.run().unwrap();
    let Taken::Pending(landed) = host.b.accept(0, destinations(&message, &[])) else { unreachable!() };
    for end in [&mut host.a, &mut host.b] {
        end.session.close(Done::new().0);
    }
    run(&mut host.a, &mut host.b, &mut Seed(1)).unwrap();
    assert!(!host.a.session.is_over() && !host.b.session.is_over());
    host.run().unwrap();
    assert!(landed.try_take().is_some_and(|landed| landed.is_ok()) && sent.try_take().is_some());
    assert!(host.a.session.is_over() && host.b.session.is_over());
}

#[test]
fn a_checksummed_session_sends_everything() {
    let memory = Arc::<Mutex<SenderMemory>>::default();
    let (mut a, mut b) = (End::with(true), End::with(true));
    for end in [&mut a, &mut b] {
        let model =
            ModelFetcher { ours: memory.clone(), theirs: memory.clone(), broken: false, fetched: None };
        let session = std::mem::replace(&mut end.session, End::new().session);
        end.session = session.fetching(Box::new(model));
    }
    let message = Message::new("").with_frame(frame(0, LARGE));
    drop(a.send(message.clone()));
    run(&mut a, &mut b, &mut Seed(1)).unwrap();
    let taken = b.take().expect("announced");
    run(&mut a, &mut b, &mut Seed(1)).unwrap();
    assert!(taken.frames()[0].as_slice() == message.frames()[0].as_slice());
}

/// A message of host frames of these lengths, announced with these flags and so many bytes of addresses.
fn announcement(flags: u8, lens: &[usize], addresses_len: usize) -> Vec<u8> {
    let mut records = Vec::new();
    let frames = lens.iter().map(|len| FrameInfo { len: *len, place: Place::Host });
    put_message(&mut records, 0, false, Payload::Fetchable(&[]), b"", frames, addresses_len as u64);
    records[1] = flags;
    records.resize(records.len() + addresses_len, 9);
    let head = Head { records_len: records.len(), data_len: 0, transfer: Transfer::Message(0) };
    [&head.encode()[..], &records].concat()
}

#[test]
fn invalid_fetchable_messages_are_corrupt() {
    const FETCHABLE: u8 = 16;
    let handle_record = |end: &mut End, said: Vec<u8>| -> Result<()> {
        end.wire.extend(said);
        while end.read(usize::MAX)? {}
        Ok(())
    };
    handle_record(&mut FetchingPair::new().b, announcement(FETCHABLE, &[LARGE, 0], 16))
        .expect("a correct peer");
    let asked = handle_record(&mut End::new(), announcement(FETCHABLE, &[LARGE, 0], 16))
        .expect_err("fetching is off");
    assert_eq!(asked.kind(), ErrorKind::Corrupt);
    let many = vec![LARGE; FETCHED_FRAMES_MAX + 1];
    for (what, flags, lens, addresses_len) in [
        ("no address", FETCHABLE, &[LARGE][..], 0),
        ("half an address", FETCHABLE, &[LARGE], 4),
        ("an address too many", FETCHABLE, &[LARGE], 16),
        ("an address too few", FETCHABLE, &[LARGE, LARGE], 8),
        ("small payload", FETCHABLE, &[100], 8),
        ("nothing", FETCHABLE, &[], 0),
        ("more frames than may be", FETCHABLE, &many, many.len() * 8),
        ("fetchable and streaming", FETCHABLE | 2, &[LARGE], 8),
        ("fetchable and eager", FETCHABLE | 4, &[LARGE], 8),
        ("fetchable and lent", FETCHABLE | 8, &[LARGE], 8),
    ] {
        let mut host = FetchingPair::new();
        let error = handle_record(&mut host.b, announcement(flags, lens, addresses_len)).expect_err(what);
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{what}: {error}");
        assert!(host.b.announced.is_empty());
    }
    // Data of a message that was fetched and not requested.
    let mut host = FetchingPair::new();
    let message = Message::new("").with_frame(frame(0, 2 * FETCHED_AT_ONCE));
    drop(host.send(&message));
    host.run().unwrap();
    drop(host.b.accept(0, destinations(&message, &[])));
    let head = Head { records_len: 0, data_len: 100, transfer: Transfer::Message(0) };
    let error = handle_record(&mut host.b, [&head.encode()[..], &[1; 100]].concat()).expect_err("data");
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    // An acknowledgement of a message that cannot be fetched here.
    let mut host = FetchingPair::new();
    drop(host.send(&Message::new("").with_frame(frame(0, LARGE - 1))));
    host.run().unwrap();
    let mut word = Vec::new();
    record::put(&mut word, &Record::Ack { first: 0, count: 1, delivery: Delivery::Delivered });
    let head = Head { records_len: word.len(), data_len: 0, transfer: Transfer::Message(0) };
    let error = handle_record(&mut host.a, [&head.encode()[..], &word].concat()).expect_err("a word");
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
}

#[test]
fn a_stuck_read_fails_only_its_message() {
    let mut host = FetchingPair::new();
    let messages = [0, 1].map(|number| Message::new("").with_frame(frame(number, LARGE)));
    let sent: Vec<_> = messages.iter().map(|message| host.send(message)).collect();
    host.run().unwrap();
    let accept =
        |host: &mut FetchingPair, id: usize| match host.b.accept(id as u64, destinations(&messages[id], &[]))
        {
            Taken::Pending(landed) => landed,
            Taken::Here(_) => unreachable!(),
        };
    let landed = [accept(&mut host, 0), accept(&mut host, 1)];
    host.memory.lock().unwrap().completes = Completes::Later;
    host.run().unwrap();
    assert!(landed.iter().all(|landed| landed.try_take().is_none()) && !host.b.session.has_to_fetch());
    host.memory.lock().unwrap().completes = Completes::Never;
    host.run().unwrap();
    let failed = landed[0].try_take().expect("it ended").unwrap_err();
    assert_eq!(failed.error.kind(), ErrorKind::TimedOut);
    assert!(matches!(&failed.returned[..], [None]), "its memory may still be written");
    let taken = landed[1].try_take().expect("it was sent").unwrap();
    assert!(taken[0].as_slice() == messages[1].frames()[0].as_slice());
    let words = sent.iter().map(|(_, acked)| acked.try_take().expect("acknowledged").unwrap());
    assert!(words.eq([Delivery::Rejected, Delivery::Delivered]));
}

#[test]
fn memory_of_a_part_in_flight_returns_at_the_end() {
    let mut host = FetchingPair::new();
    let message = Message::new("").with_frame(frame(0, 2 * FETCHED_AT_ONCE)).with_frame(frame(1, 10));
    let (_sent, _acked) = host.send(&message);
    host.run().unwrap();
    let Taken::Pending(landed) = host.b.accept(0, destinations(&message, &[])) else { unreachable!() };
    host.memory.lock().unwrap().completes = Completes::Later;
    assert!(host.b.session.fetch().unwrap() && !host.b.session.fetch().unwrap(), "a part is in flight");
    host.b.session.give_up(&crate::Error::new(ErrorKind::Closed, "over"));
    let failed = landed.try_take().expect("it ended").unwrap_err();
    assert!(failed.returned.iter().all(Option::is_some), "{failed:?}");
}
